"""`isblk perf`: figures as text and JSON, and no write without --destructive."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from support.targets import TargetProcess

Run = Callable[..., Result]
BRIEF = ("--runtime", "0.2", "--iodepth", "4")


def test_text_for_people(run: Run, target: TargetProcess) -> None:
    head, rates, latency = run("perf", target.url(1), *BRIEF, "--bs", "8k").stdout.splitlines()
    assert head == "randread, 8.00 KiB requests, 4 in flight, LUN 1"
    assert "I/O per second" in rates and "MB/s" in rates
    for word in ("min", "mean", "p50", "p90", "p99", "p99.9", "max"):
        assert f" {word} " in latency


@pytest.mark.parametrize("pattern", ["read", "write", "randread", "randwrite", "rw", "randrw"])
def test_json_adds_up(run: Run, target: TargetProcess, pattern: str) -> None:
    result = run("perf", target.url(1), *BRIEF, "--rw", pattern, "--destructive", "--json")
    told = json.loads(result.stdout)
    assert told["requests"] > 10 and told["bytes"] == told["requests"] * 4096
    assert told["errors"] == 0 and told["first_error"] is None
    latency = told["latency_us"]
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    assert told["iops"] == pytest.approx(told["requests"] / told["seconds"], rel=0.05)
    assert target.ask("sessions") == 0


@pytest.mark.parametrize("pattern", ["write", "randwrite", "rw", "randrw"])
def test_nothing_is_written_without_destructive(run: Run, target: TargetProcess, pattern: str) -> None:
    assert "add --destructive" in run("perf", target.url(1), *BRIEF, "--rw", pattern, code=2).stderr


def test_what_cannot_be_measured(run: Run, target: TargetProcess) -> None:
    assert "write-protected" in run("perf", target.url(2), *BRIEF, "--rw", "write", "--destructive", code=2).stderr
    assert "use a smaller --bs" in run("perf", target.url(1), *BRIEF, "--bs", "1G", code=2).stderr
    assert "at least one byte" in run("perf", target.url(1), *BRIEF, "--bs", "0", code=2).stderr
    assert "several disks (LUN 1, 2)" in run("perf", "-p", target.portal, target.name, *BRIEF, code=2).stderr


def test_lun_comes_before_the_one_of_a_url(run: Run, target: TargetProcess) -> None:
    assert ", LUN 2\n" in run("perf", target.url(1), *BRIEF, "--lun", "2").stdout
