"""Text for people."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from isblk.cli.text import age_text, has_colours, paint, size_text, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (4096, "4.00 KiB"),
        (64 << 20, "64.0 MiB"),
        (100 << 20, "100 MiB"),
        (1000 << 20, "1000 MiB"),
        (3 << 39, "1.50 TiB"),
        (5 << 50, "5.00 PiB"),
        (5 << 62, "20480 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_table_aligns_columns_and_changes_no_cell() -> None:
    text = table(("LUN", "SERIAL"), [(0, "0123"), (16384, "1e5"), ("-", "a b")])
    assert [line.rstrip() for line in text.split("\n")] == ["LUN    SERIAL", "0      0123", "16384  1e5", "-      a b"]


def test_a_table_without_rows_is_its_headings() -> None:
    assert table(("LUN", "TYPE"), []).split() == ["LUN", "TYPE"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:00:05"), (3725, "1:02:05"), (-9, "0:00:00"), (200000, "2 d 7 h")])
def test_age(seconds: int, text: str) -> None:
    assert age_text(time.time() - seconds - 0.3) == text


@pytest.mark.parametrize(
    ("terminal", "no_color", "term", "coloured"),
    [(True, "", "xterm", True), (False, "", "xterm", False), (True, "1", "xterm", False), (True, "", "dumb", False)],
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, no_color: str, term: str, coloured: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    assert has_colours() is coloured
    assert paint("up", "green") == ("\x1b[32mup\x1b[0m" if coloured else "up")
    assert paint("up", None) == "up" and paint("", "red") == ""
