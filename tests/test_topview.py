"""The screen of `isblk top` without a terminal: every width and height, sorting, keys, and what is not well stands out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.rates import Row
from isblk.topview import COLUMNS, HELP, INTERVALS, KEYS, Line, Style, View, ordered, rate_text, screen, time_text

DISK = Row("/mnt/disk", "iqn.x", 3, None, "2/2 up", 1200.0, 300.0, 1.0, 4.9e6, 1.2e6, 0.00012, 0.0035, 8, 0, 0, 0)
PATH = replace(DISK, path="10.0.0.5:3260", state="up", reads=0.0, writes=0.0, others=1500.0)
DOWN = replace(PATH, path="10.0.0.6:3260", state="down", others=0.0, p50=None, p99=None)
SICK = replace(
    DISK,
    where="/run/sick.sock",
    lun=0,
    state="0/1 up",
    reads=0.0,
    writes=0.0,
    others=0.0,
    read_bytes=0.0,
    write_bytes=0.0,
    waiting=4,
    errors=12,
    faults=2,
    p50=None,
)
ROWS = [DISK, PATH, DOWN, SICK, replace(DOWN, where="/run/sick.sock", lun=0)]


def text(lines: list[Line]) -> list[str]:
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


def test_a_wide_screen_shows_everything() -> None:
    shown = text(screen(ROWS, View(), 120, 12, "10:11:12"))
    assert shown[0] == "isblk top  10:11:12  2 disks  1.50K IO/s  6.1 MB/s  every 1 s"
    assert shown[2].split() == ["DISK,", "PATH", "STATE", *(column.heading for column in COLUMNS)]
    assert " ".join(shown[3].split()) == "/mnt/disk LUN 3 2/2 up 1.50K 1.20K 300 6.1 120us 3.5ms 8 0 0"
    assert " ".join(shown[4].split()) == "10.0.0.5:3260 up 1.50K 6.1 120us 3.5ms 8 0"
    assert " ".join(shown[5].split()) == "10.0.0.6:3260 down 0 6.1 - - 8 0"
    assert " ".join(shown[6].split()) == "/run/sick.sock LUN 0 0/1 up 0 0 0 0 - 3.5ms 8 4 12"
    assert len(shown) == 12 and shown[-1].startswith("q quit")


@given(st.integers(0, 200), st.integers(0, 60), st.integers(0, 200), st.sampled_from(sorted(KEYS)), st.booleans())
def test_any_size_is_kept_to(width: int, height: int, offset: int, sort: str, paused: bool) -> None:
    for view in (View(sort=sort, offset=offset, paused=paused), View(help=True)):
        lines = screen(ROWS * 9, view, width, height, "10:11:12", "the daemon 7 does not answer")
        assert len(lines) == height
        assert all(len(line) <= width for line in text(lines))


def test_a_terminal_of_80_columns_keeps_what_matters_most() -> None:
    shown = text(screen(ROWS, View(), 80, 24))
    heading = shown[2].split()
    assert {"IO/s", "MB/s", "99%", "FLIGHT"} <= set(heading) and "READ/s" not in heading
    assert "/run/sick.sock LUN 0" in shown[6]
    tiny = text(screen(ROWS, View(), 44, 24))[2].split()
    assert "IO/s" in tiny


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    shown = text(screen([replace(DISK, where="/a/very/long/way/to/some/mountpoint/of/a/disk")], View(), 60, 8))
    assert shown[3].startswith("/a/very") and "LUN 3 " in shown[3] and "..." in shown[3]


@pytest.mark.parametrize(("key", "first"), [("i", "/mnt/disk"), ("e", "/run/sick.sock"), ("a", "/run/sick.sock"), ("n", "/mnt/disk")])
def test_it_is_sorted_by_a_column_and_turned_round_by_its_key_again(key: str, first: str) -> None:
    view = View(sort="b").press(key)
    found = ordered(ROWS, view)
    assert found[0].where == first and found[1].where == first, "paths stay with their device"
    assert ordered(ROWS, view.press(key))[0].where != first


def test_keys() -> None:
    view = View()
    assert not ordered(ROWS, view.press("p"))[1:][0].path and ordered(ROWS, view)[1].path
    assert view.press("q").ended and view.press(" ").paused and not view.press(" ").press(" ").paused
    assert view.press("?").help and not view.press("?").press("x").help
    assert view.press("?").press("q").ended
    assert (view.press("+").interval, view.press("-").interval) == (2.0, 0.5)
    assert view.press("-").press("-").interval == INTERVALS[0]
    assert View(interval=60.0).press("+").interval == 60.0 and View(interval=60.0).press("-").interval == 10.0
    assert view.press("Z") == view and view.press("") == view
    down = view.press("down").press("pagedown", 5)
    assert down.offset == 6 and down.press("up").offset == 5 and down.press("home").offset == 0
    assert view.press("up").offset == 0


def test_more_than_fits_is_scrolled_and_not_beyond_the_end() -> None:
    many = [replace(DISK, lun=number) for number in range(40)]
    view = View(sort="n")
    shown = text(screen(many, view, 100, 14))
    assert "LUN 0 " in shown[3] and "1-10 of 40" in shown[-1]
    shown = text(screen(many, replace(view, offset=500), 100, 14))
    assert "LUN 39 " in shown[-2] and "31-40 of 40" in shown[-1]


def test_what_is_not_well_stands_out() -> None:
    lines = screen(ROWS, View(), 120, 12)
    styles = {text([line])[0].split()[0]: {piece.style for piece in line} for line in lines[3:8]}
    assert Style.BAD not in styles["/mnt/disk"] and Style.GOOD in styles["/mnt/disk"]
    assert Style.BAD in styles["/run/sick.sock"] and Style.BAD in styles["10.0.0.6:3260"]
    assert screen(ROWS, View(), 120, 12, problem="the daemon 7 does not answer")[1][0] == ("the daemon 7 does not answer", Style.BAD)


def test_nothing_there_and_standing_still_are_said() -> None:
    assert "nothing is mounted" in "\n".join(text(screen([], View(), 80, 10)))
    assert "standing still" in text(screen([], View(paused=True), 80, 10))[0]


def test_help_names_every_key_and_fits_the_smallest_usual_terminal() -> None:
    said = "\n".join(HELP)
    for key, heading in KEYS.items():
        assert f"  {key}  {heading}" in said
    assert len(HELP) <= 24 and max(map(len, HELP)) <= 80


def test_control_characters_of_a_target_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in "".join(text(screen([replace(DISK, where="/mnt/\x1b[31m")], View(), 80, 10)))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (7.2, "7.2"), (9.97, "10"), (850.4, "850"), (999.6, "1.00K"), (12_340, "12.3K"), (1.2e6, "1.20M"), (3e12, "3000G")],
)
def test_rates_are_short(value: float, said: str) -> None:
    assert rate_text(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(None, "-"), (85e-6, "85us"), (0.0012, "1.2ms"), (0.25, "250ms"), (3.0, "3.0s"), (120.0, "120s")]
)
def test_times_are_short(value: float | None, said: str) -> None:
    assert time_text(value) == said
