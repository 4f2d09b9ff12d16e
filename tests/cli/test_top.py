"""`isblk top` without a terminal: one interval as text and JSON. (On a terminal: tests/system/test_watching.py.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from isblk import control
from isblk.cli import top
from isblk.errors import Unreachable
from isblk.rates import Row
from support.waiting import until

Run = Callable[..., Result]


def daemon(where: str, reads: int, errors: int = 0) -> dict[str, Any]:
    counters = {f"{op}_requests": 0 for op in ("write", "flush", "trim", "zero")} | {"read_requests": reads, "errors": errors}
    moved = {f"{op}_bytes": 0 for op in ("write", "trim", "zero")} | {"read_bytes": 4096 * reads}
    path = {
        "portal": "10.0.0.5:3260",
        "state": "up",
        "requests": reads,
        "bytes": 0,
        "in_flight": 0,
        "errors": 0,
        "latency": {"buckets": {}},
    }
    device = {"lun": 0, "counters": counters | moved, "latency": {}, "in_flight": 1, "waiting": 0, "paths": [path]}
    return {"pid": hash(where) % 1000, "since": 1.0, "where": where, "target": "iqn.x", "devices": [device]}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """Answers, one list each time; the last one again and again."""
    answers: list[list[dict[str, Any]]] = []

    def ask_all(_run: object) -> Any:
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(None, answer) for answer in found], [Unreachable("the daemon 9 does not answer")] if not found else []

    monkeypatch.setattr(control, "ask_all", ask_all)
    return answers


def test_without_a_terminal_it_is_one_interval_as_text(run: Run, told: list[list[dict[str, Any]]]) -> None:
    told += [[daemon("/mnt/a", 0), daemon("/mnt/b", 0)], [daemon("/mnt/a", 10), daemon("/mnt/b", 1000)]]
    said = run("top", "--interval", "0.1").stdout.splitlines()
    assert said[0].startswith("isblk top") and said[1].startswith("DISK, PATH")
    assert [line.split()[0] for line in said[2:]] == ["/mnt/b", "10.0.0.5:3260", "/mnt/a", "10.0.0.5:3260"]


def test_json_has_every_row_with_its_rates(run: Run, told: list[list[dict[str, Any]]]) -> None:
    told += [[daemon("/mnt/a", 0)], [daemon("/mnt/a", 100, errors=2)]]
    found = json.loads(run("top", "--json", "--interval", "0.1", "--sort", "e").stdout)
    device, path = found["rows"]
    assert found["version"] == 1 and 0.1 <= found["seconds"] < 5
    assert device["reads"] == pytest.approx(100 / found["seconds"], rel=0.05)
    assert (device["path"], device["errors"], device["faults"], path["path"]) == (None, 2, 2, "10.0.0.5:3260")


def test_nothing_there_and_nobody_who_answers_are_said(run: Run, told: list[list[dict[str, Any]]]) -> None:
    told += [[]]
    result = run("top", "--once", "--interval", "0.1")
    assert "nothing is mounted" in result.stdout and result.stderr == "isblk: the daemon 9 does not answer\n"


def test_samples_are_taken_beside_the_screen(told: list[list[dict[str, Any]]]) -> None:
    told += [[daemon("/mnt/a", 0)], [daemon("/mnt/a", 100)], []]
    with top.Samples(0.05) as samples:
        seen: list[tuple[int, list[Row], str]] = []
        until(lambda: seen.append(samples.now) or samples.now[0] >= 3, "three intervals")
    assert any(rows and rows[0].reads > 0 for _, rows, _ in seen)
    assert seen[-1][1:] == ([], "the daemon 9 does not answer")
