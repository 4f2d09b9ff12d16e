"""A workload on devices of all tempers, and the figures that come of it; no real time passes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from isblk.block.request import Op, Request
from isblk.errors import PathLost, RequestFailed, UsageError
from isblk.perf import PATTERNS, Result, Runner, Sample, Workload, _percentile
from support.memorydevice import MemoryDevice


def workload(pattern: str = "read", block_size: int = 512, iodepth: int = 4, runtime: float = 10) -> Workload:
    return Workload(pattern, block_size, iodepth, runtime)


def a_device(size: int = 1 << 14, **settings: Any) -> MemoryDevice:
    return MemoryDevice(size, **{"delay": 0.5, **settings})


async def test_requests_are_kept_in_flight_for_the_whole_time(autojump_clock: MockClock) -> None:
    device = a_device()
    result = await Runner(device, workload(iodepth=4)).run()
    assert result.errors == 0 and result.first_error is None
    assert 4 * 19 <= result.requests <= 4 * 20 and result.bytes == result.requests * 512
    assert len(device.requests) >= result.requests and device.kicks > 0


async def test_a_sequential_run_goes_through_the_device_and_begins_again(autojump_clock: MockClock) -> None:
    device = a_device(2048)
    await Runner(device, workload(iodepth=1, runtime=3.2)).run()
    assert [seen.offset for seen in device.requests[:6]] == [0, 512, 1024, 1536, 0, 512]


async def test_a_random_run_stays_within_the_device_and_on_block_boundaries(autojump_clock: MockClock) -> None:
    device = a_device(10_000)
    await Runner(device, workload("randread", iodepth=16)).run()
    offsets = {seen.offset for seen in device.requests}
    assert len(offsets) > 5 and all(offset % 512 == 0 and offset + 512 <= 10_000 for offset in offsets)


@pytest.mark.parametrize("pattern, ops", [("read", {Op.READ}), ("write", {Op.WRITE}), ("randread", {Op.READ}), ("randwrite", {Op.WRITE})])
async def test_a_pattern_asks_for_its_own_operation_only(pattern: str, ops: set[Op], autojump_clock: MockClock) -> None:
    device = a_device()
    await Runner(device, workload(pattern)).run()
    assert {seen.op for seen in device.requests} == ops


@pytest.mark.parametrize("pattern", ["rw", "randrw"])
async def test_a_mixed_pattern_does_both(pattern: str, autojump_clock: MockClock) -> None:
    device = a_device()
    await Runner(device, workload(pattern, iodepth=16)).run()
    assert {seen.op for seen in device.requests} == {Op.READ, Op.WRITE}


def test_it_is_known_which_patterns_destroy_data() -> None:
    assert {pattern for pattern in PATTERNS if workload(pattern).writes} == {"write", "randwrite", "rw", "randrw"}


async def test_ticks_come_every_second_with_the_rate_of_that_second(autojump_clock: MockClock) -> None:
    samples: list[Sample] = []
    await Runner(a_device(), workload(iodepth=4, runtime=5.25)).run(samples.append)
    assert len(samples) == 5
    assert [round(sample.seconds) for sample in samples] == [1, 2, 3, 4, 5]
    assert sum(sample.requests_per_second for sample in samples) == pytest.approx(4 * 10, abs=4)
    assert samples[2].bytes_per_second == samples[2].requests_per_second * 512


async def test_a_device_that_finishes_within_submit_neither_recurses_nor_stops_the_clock() -> None:
    device = MemoryDevice(1 << 14)
    result = await Runner(device, workload(runtime=0.05)).run()
    assert result.requests > 4 and result.errors == 0


class Gone:
    """A device whose path is lost: every request fails within submit, some frames deeper than the last."""

    geometry = MemoryDevice(1 << 14).geometry

    def __init__(self) -> None:
        self.requests = 0

    def submit(self, request: Request, depth: int = 12) -> None:
        if depth:
            self.submit(request, depth - 1)
            return
        self.requests += 1
        request.finish(PathLost("the cable is cut"))

    def kick(self) -> None:
        pass


async def test_a_device_that_fails_everything_ends_the_run_early_and_says_why(autojump_clock: MockClock) -> None:
    device = Gone()
    start = trio.current_time()
    result = await Runner(device, workload(iodepth=8, runtime=1000)).run()
    assert trio.current_time() - start < 10
    assert result.requests == 0 and result.first_error == "the cable is cut"
    assert 100 <= result.errors <= 100 + 8 and device.requests == result.errors


async def test_a_run_waits_for_what_is_in_flight(autojump_clock: MockClock) -> None:
    device = a_device(delay=30)
    start = trio.current_time()
    result = await Runner(device, workload(runtime=10)).run()
    assert trio.current_time() - start == 30 and result.requests == 0
    assert len(device.requests) == 4


async def test_single_failures_are_counted_and_the_run_goes_on() -> None:
    device = MemoryDevice(1 << 14)
    device.fail_next += [RequestFailed("once"), RequestFailed("twice")]
    result = await Runner(device, workload(runtime=0.05)).run()
    assert result.errors == 2 and result.first_error == "once" and result.requests > 50


def test_a_device_smaller_than_a_block_is_refused() -> None:
    with pytest.raises(UsageError, match="smaller --bs"):
        Runner(MemoryDevice(4096), workload(block_size=8192))


def test_a_write_protected_device_is_not_written() -> None:
    with pytest.raises(UsageError, match="write-protected"):
        Runner(MemoryDevice(4096, read_only=True), workload("randrw"))
    Runner(MemoryDevice(4096, read_only=True), workload("randread"))


def test_percentiles_are_nearest_ranks() -> None:
    values = [(10, 50), (20, 40), (30, 9), (40, 1)]
    assert [_percentile(values, 100, level) for level in (50, 90, 99, 99.9)] == [10, 20, 30, 40]


async def test_latencies_are_summed_up(autojump_clock: MockClock) -> None:
    latency = (await Runner(a_device(), workload()).run()).latency
    assert list(latency) == ["min", "mean", "p50", "p90", "p99", "p99_9", "max"]
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]


def test_a_result_becomes_json() -> None:
    result = Result(1000, 4_096_000, 2.0, 1, "why", {"p50": 12.345})
    assert result.as_dict() == {
        "iops": 500.0,
        "mb_per_s": 2.05,
        "requests": 1000,
        "bytes": 4096000,
        "seconds": 2.0,
        "latency_us": {"p50": 12.3},
        "errors": 1,
        "first_error": "why",
    }
    assert Result(0, 0, 0.0, 0, None, {}).as_dict()["iops"] == 0
