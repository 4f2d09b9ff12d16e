"""`isblk events`: the past as lines and as JSON, by level, and new ones until interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from isblk import following
from isblk.errors import Unreachable

Run = Callable[..., Result]


def event(number: int, kind: str = "login", level: str = "info", text: str = "logged in", **more: Any) -> dict[str, Any]:
    moment = time.mktime((2026, 11, 26, 10, 0, number, 0, 0, -1)) + 0.25
    return {"number": number, "time": moment, "kind": kind, "level": level, "text": text, "pid": 7, "where": "/mnt/disk", **more}


PAST = [event(number) for number in range(1, 15)] + [event(20, "path-down", "warning", "LUN 0: path is down", lun=0)]


class Follower:
    """Stands in for following.Follower: tells what it was given, and then Ctrl-C."""

    news: list[list[dict[str, Any]]]
    closed = False

    def __init__(self, _run: Path, known: dict[int, int]) -> None:
        assert known == {7: 20}

    def poll(self) -> list[dict[str, Any]]:
        if not Follower.news:
            raise KeyboardInterrupt
        return Follower.news.pop(0)

    def close(self) -> None:
        Follower.closed = True


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "past", lambda _run: (PAST, {7: 20}, []))
    monkeypatch.setattr(following, "Follower", Follower)
    Follower.news = [[event(21, "path-up", text="LUN 0: path is up")], [], [event(22, "no-path", "warning", "no path is left")]]


def test_an_event_is_a_line_with_time_kind_and_place(run: Run) -> None:
    said = run("events").stdout.splitlines()
    assert len(said) == 15
    assert said[-1] == "2026-11-26 10:00:20.250  path-down          /mnt/disk  LUN 0: path is down"


def test_the_last_ones_and_those_that_are_bad_enough(run: Run) -> None:
    assert [line[11:19] for line in run("events", "-n", 2).stdout.splitlines()] == ["10:00:14", "10:00:20"]
    assert len(run("events", "--level", "warning").stdout.splitlines()) == 1
    assert run("events", "-n", 0).stdout == run("events", "--level", "error").stdout == ""


def test_json_is_an_object_a_line(run: Run) -> None:
    assert [json.loads(line) for line in run("events", "--json").stdout.splitlines()] == PAST


def test_following_shows_a_few_of_the_past_and_ends_with_ctrl_c(run: Run) -> None:
    said = run("events", "-f").stdout.splitlines()
    assert len(said) == 12 and "path-up" in said[10] and "no-path" in said[11]
    assert Follower.closed


def test_following_obeys_the_number_and_the_level(run: Run) -> None:
    assert [json.loads(line)["number"] for line in run("events", "-f", "-n", 1, "--level", "warning", "--json").stdout.splitlines()] == [
        20,
        22,
    ]


def test_a_daemon_that_does_not_answer_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "past", lambda _run: ([], {}, [Unreachable("the daemon 7 does not answer")]))
    result = run("events")
    assert (result.stdout, result.stderr) == ("", "isblk: the daemon 7 does not answer\n")


def test_control_characters_of_a_target_do_not_reach_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "past", lambda _run: ([event(1, text="it says \x1b]0;x\x07\nand more")], {}, []))
    (line,) = run("events").stdout.splitlines()
    assert line.endswith("it says ?]0;x??and more")
