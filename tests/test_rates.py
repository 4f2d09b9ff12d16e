"""Rates from two answers: what grew, what is new, and what restarted meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isblk.rates import Row, rows

ZERO = dict.fromkeys(("read_requests", "write_requests", "flush_requests", "trim_requests", "zero_requests", "errors"), 0)
BYTES = dict.fromkeys(("read_bytes", "write_bytes", "trim_bytes", "zero_bytes"), 0)


def path(portal: str, state: str = "up", **more: Any) -> dict[str, Any]:
    found = {"portal": portal, "state": state, "requests": 0, "bytes": 0, "in_flight": 0, "errors": 0, "retries": 0, "losses": 0}
    return {**found, "latency": {"buckets": {}}, **more}


def daemon(counters: dict[str, int] | None = None, pid: int = 7, since: float = 5.0, **more: Any) -> dict[str, Any]:
    device = {"lun": 3, "counters": {**ZERO, **BYTES, **(counters or {})}, "latency": {}, "in_flight": 2, "waiting": 0, "paths": [], **more}
    return {"pid": pid, "since": since, "where": "/mnt/disk", "target": "iqn.x", "devices": [device]}


def only(before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float = 2.0) -> Row:
    (row,) = rows(before, after, seconds)
    return row


def test_rates_are_what_grew_in_a_second() -> None:
    before = daemon({"read_requests": 10, "read_bytes": 40960, "write_requests": 5, "flush_requests": 1, "errors": 2})
    after = daemon({"read_requests": 30, "read_bytes": 122880, "write_requests": 9, "write_bytes": 1000, "flush_requests": 4, "errors": 3})
    row = only([before], [after])
    assert (row.reads, row.writes, row.others, row.requests) == (10.0, 2.0, 1.5, 13.5)
    assert (row.read_bytes, row.write_bytes, row.moved) == (40960.0, 500.0, 41460.0)
    assert (row.where, row.lun, row.path, row.in_flight, row.errors, row.faults) == ("/mnt/disk", 3, None, 2, 3, 1)


def test_a_daemon_that_was_not_there_before_counts_from_nothing_and_so_does_another_with_its_number() -> None:
    after = daemon({"read_requests": 30})
    assert only([], [after]).reads == 15.0
    assert only([daemon({"read_requests": 29}, since=1.0)], [after]).reads == 15.0
    assert only([daemon({"read_requests": 31})], [after]).reads == 15.0, "a counter that shrank began anew"


def test_percentiles_are_those_of_the_interval_over_all_operations() -> None:
    was = {"read": {"buckets": {"100": 1000}}}
    now = {"read": {"buckets": {"100": 1050, "1000": 49}}, "write": {"buckets": {"5000": 1}}}
    row = only([daemon(latency=was)], [daemon(latency=now)])
    assert row.p50 == pytest.approx(0.0001) and row.p99 == pytest.approx(0.001)
    assert only([daemon(latency=now)], [daemon(latency=now)]).p50 is None


def test_paths_follow_their_device_with_their_own_figures() -> None:
    was = [path("10.0.0.5:3260", requests=10), path("10.0.0.6:3260")]
    now = [
        path("10.0.0.5:3260", requests=30, bytes=8192, retries=1, latency={"buckets": {"200": 20}}),
        path("10.0.0.6:3260", "down", losses=1),
    ]
    device, one, two = rows([daemon(paths=was)], [daemon(paths=now)], 2.0)
    assert device.state == "1/2 up"
    assert (one.path, one.requests, one.moved, one.faults, one.state) == ("10.0.0.5:3260", 10.0, 4096.0, 1, "up")
    assert one.p50 is not None and 0.00015 <= one.p50 <= 0.0002
    assert (two.requests, two.p50, two.faults, two.state) == (0.0, None, 1, "down")


def test_what_multipath_had_to_do_are_faults() -> None:
    assert only([daemon(failovers=1)], [daemon(failovers=2, fences=1)]).faults == 2


def test_a_kind_of_daemon_without_disks_has_no_rows_and_json_takes_every_row() -> None:
    assert rows([], [{"pid": 1, "kind": "supervisor"}], 1.0) == []
    row = only([], [daemon(latency={"read": {"buckets": {"100": 4}}})])
    told = json.loads(json.dumps(row.as_dict()))
    assert (told["lun"], told["reads"], told["p50"]) == (3, 0.0, pytest.approx(0.000085))
