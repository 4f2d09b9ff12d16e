"""Storms: what passes, what is counted, what is told of it and when; and what is never held back."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import isblk
from isblk.errors import DATA_LOSS
from isblk.logs.storm import BURST, MOST_KINDS, TRACE, WINDOW_SECONDS, Calm


class Shown(logging.Handler):
    """Keeps what gets through."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.closed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(record.getMessage())

    def close(self) -> None:
        self.closed = True
        super().close()


class Weather:
    """A calm handler with a clock and a timer that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.shown = Shown()
        self.calm = Calm(self.shown, lambda: self.now, lambda seconds, function: self.timers.append((self.now + seconds, function)))

    def log(self, text: str, *args: object, level: int = logging.WARNING, name: str = "isblk.x", extra: object = None) -> None:
        record = logging.getLogger(name).makeRecord(name, level, "f", 1, text, args, None, extra=extra)  # type: ignore[arg-type]
        self.calm.handle(record)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due, self.timers = [one for one in self.timers if one[0] <= self.now], [one for one in self.timers if one[0] > self.now]
        for _, function in due:
            function()


@pytest.fixture
def weather() -> Weather:
    return Weather()


def test_a_storm_is_shown_in_part_and_its_rest_counted_when_the_time_is_over(weather: Weather) -> None:
    for number in range(BURST + 1235):
        weather.log("request %d failed", number)
    assert len(weather.shown.lines) == BURST and len(weather.timers) == 1
    weather.pass_time(WINDOW_SECONDS)
    assert weather.shown.lines[BURST:] == [f"request {BURST + 1234} failed ... and 1234 more like it in 10 s"]
    assert weather.shown.records[-1].levelno == logging.WARNING
    weather.pass_time(60)
    assert len(weather.shown.lines) == BURST + 1


def test_a_storm_that_goes_on_is_told_of_each_time(weather: Weather) -> None:
    for _ in range(3):
        for _ in range(BURST + 5):
            weather.log("again")
        weather.pass_time(WINDOW_SECONDS)
    assert sum("4 more like it" in line for line in weather.shown.lines) == 3


def test_a_single_one_that_was_held_back_is_shown_as_it_is(weather: Weather) -> None:
    for number in range(BURST + 1):
        weather.log("number %d", number)
    weather.pass_time(WINDOW_SECONDS)
    assert weather.shown.lines[-1] == f"number {BURST}"


def test_kinds_are_counted_apart(weather: Weather) -> None:
    for _ in range(BURST):
        weather.log("the one at %s", "alpha")
        weather.log("the one at %s", "beta")
        weather.log("the one at %s", "alpha", level=logging.INFO)
        weather.log("the one at %s", "alpha", name="isblk.y")
    assert len(weather.shown.lines) == 4 * BURST


def test_what_differs_in_numbers_alone_is_of_one_kind_also_where_the_text_is_ready_made(weather: Weather) -> None:
    for number in range(BURST + 10):
        weather.log("%s", f"10.0.0.{number} did not answer")
    assert len(weather.shown.lines) == BURST


def test_what_comes_slowly_is_no_storm(weather: Weather) -> None:
    for _ in range(50):
        weather.log("now and then")
        weather.pass_time(2)
    assert len(weather.shown.lines) == 50


@pytest.mark.parametrize(
    ("level", "name", "extra"),
    [(logging.ERROR, "isblk.x", DATA_LOSS), (logging.DEBUG, "isblk.x", None), (logging.INFO, TRACE, None)],
)
def test_lost_data_and_what_was_asked_for_are_never_held_back(weather: Weather, level: int, name: str, extra: object) -> None:
    for _ in range(1000):
        weather.log("7 acknowledged writes are lost", level=level, name=name, extra=extra)
    assert len(weather.shown.lines) == 1000


def test_kinds_without_end_do_not_fill_the_memory(weather: Weather) -> None:
    for number in range(MOST_KINDS + 100):
        weather.log("kind " + "x" * number)
    assert len(weather.calm._windows) <= MOST_KINDS + 1


def test_the_end_tells_what_was_held_back(weather: Weather) -> None:
    for _ in range(BURST + 3):
        weather.log("again")
    weather.calm.close()
    assert weather.shown.lines[-1] == "again ... and 2 more like it in 10 s" and weather.shown.closed


@pytest.mark.parametrize(
    ("module", "function"),
    [("block/multipath.py", "lose_cache"), ("block/lun.py", "attention"), ("block/pathset.py", "_take_capacity"), ("detach.py", "_work")],
)
def test_what_tells_of_lost_data_is_marked_where_it_is_logged(module: str, function: str) -> None:
    tree = ast.parse((Path(isblk.__file__).parent / module).read_text())
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    told = [ast.unparse(node) for node in ast.walk(found) if isinstance(node, ast.Call) and "log." in ast.unparse(node.func)]
    assert any("extra=DATA_LOSS" in call or "extra=about" in call for call in told)
