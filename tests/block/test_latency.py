"""Histograms of samples that stand for all requests: weights, buckets, percentiles, and how many samples there are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.latency import BOUNDS, MOST, SAMPLES, Histogram, Sampler, counts_of, percentile


def timed(requests: int, sampler: Sampler) -> tuple[int, int]:
    """So many requests, counted as a path does: how many were timed, and how many those stand for."""
    taken = stood = last = 0
    for number in range(1, requests + 1):
        if not number % sampler.every:
            stood, last = stood + number - last, number
            taken += 1
            sampler.took()
    return taken, stood


def test_where_there_is_little_to_do_every_request_is_timed() -> None:
    sampler = Sampler()
    for _ in range(20):
        assert timed(SAMPLES // 2 - 1, sampler) == (SAMPLES // 2 - 1,) * 2
        sampler.tick()


def test_a_storm_is_sampled_less_within_the_tick_and_more_when_it_is_over() -> None:
    sampler = Sampler()
    taken, stood = timed(20_000, sampler)
    assert taken < 10 * SAMPLES and 20_000 - sampler.every < stood <= 20_000
    for _ in range(20):
        sampler.tick()
        taken, stood = timed(20_000, sampler)
        assert SAMPLES // 3 < taken < 3 * SAMPLES, "some 64 in a tick whatever the load"
        assert sampler.every % 2, "even ones fall into step with queue depths"
    for _ in range(12):
        sampler.tick()
    assert sampler.every == 1
    timed(10_000_000, sampler)
    assert sampler.every == MOST


def test_a_sample_counts_for_those_that_were_not_timed() -> None:
    histogram = Histogram()
    histogram.add(0.0001, 1)
    histogram.add(0.00011, 63)
    histogram.add(1000.0, 2)
    assert histogram.as_dict() == {"requests": 66, "seconds": 2000.00703, "samples": 3, "buckets": {"100": 1, "150": 63, "inf": 2}}


def test_bounds_rise_and_hold_what_is_equal_to_them() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS)) and (BOUNDS[0], BOUNDS[-1]) == (1e-5, 70.0)
    for bound in BOUNDS:
        histogram = Histogram()
        histogram.add(bound, 1)
        assert histogram.as_dict()["buckets"] == {str(round(bound * 1e6)): 1}


def test_buckets_survive_their_way_and_strange_ones_are_counted_where_they_fit() -> None:
    histogram = Histogram()
    for bound in (*BOUNDS, 99.0):
        histogram.add(bound, 7)
    assert counts_of(histogram.as_dict()["buckets"]) == histogram.counts
    assert counts_of({"12": 3, "99000000": 4})[1] == 3
    assert counts_of({"12": 3, "99000000": 4})[-1] == 4


def test_percentiles_lie_within_their_bucket() -> None:
    assert percentile([0] * (len(BOUNDS) + 1), 50) is None
    histogram = Histogram()
    histogram.add(0.00012, 50)
    histogram.add(0.0025, 49)
    histogram.add(500.0, 1)
    found = [percentile(histogram.counts, percent) for percent in (25, 50, 99, 100)]
    assert found == [pytest.approx(0.000125), pytest.approx(0.00015), pytest.approx(0.003), 70.0]


@given(st.lists(st.floats(1.1e-5, 60.0), min_size=1, max_size=50), st.floats(1, 100))
def test_a_percentile_is_as_near_as_buckets_are_wide(times: list[float], percent: float) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds, 1)
    found, exact = percentile(histogram.counts, percent), sorted(times)[max(0, -int(-len(times) * percent // 100) - 1)]
    assert found is not None and exact / 1.7 <= found <= exact * 1.7


def test_the_estimate_is_that_of_all() -> None:
    """Of a mix whose slow tenth comes at random, a tenth of the estimate is slow, though one in hundreds was timed."""
    chance, sampler, histogram, last = random.Random(3), Sampler(), Histogram(), 0
    for number in range(1, 400_001):
        if not number % 10_000:
            sampler.tick()
        if not number % sampler.every:
            histogram.add(0.010 if chance.random() < 0.1 else 0.0001, number - last)
            last = number
            sampler.took()
    slow = sum(histogram.counts[BOUNDS.index(0.001) :]) / sum(histogram.counts)
    assert histogram.samples < 8000 and 0.08 < slow < 0.12
