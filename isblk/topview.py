"""The screen of `isblk top` as lines with styles, for any width and height; drawing them is cli/top.py's. PURE.

A device is a line, its paths are lines below it where they are shown; what is sorted is devices, and their paths stay with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from isblk.rates import Row

INTERVALS = (0.5, 1.0, 2.0, 5.0, 10.0)


class Style(Enum):
    """How a piece of a line looks."""

    PLAIN = "plain"
    TITLE = "title"
    HEADING = "heading"
    SORTED = "sorted"
    FAINT = "faint"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


class Piece(NamedTuple):
    """Text in a style."""

    text: str
    style: Style = Style.PLAIN


Line = list[Piece]


class Column(NamedTuple):
    """One column: heading, the key that sorts by it, width, what stands in it, what it is sorted by."""

    heading: str
    key: str
    width: int
    cell: Callable[[Row], str]
    value: Callable[[Row], float | str]


def rate_text(value: float) -> str:
    """At most four characters: 0, 7.2, 850, 12.3K, 1.2M."""
    for unit in ("", "K", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    if not unit:
        return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def time_text(seconds: float | None) -> str:
    """85us, 1.2ms, 3.0s; "-" for none."""
    if seconds is None:
        return "-"
    value, unit = (seconds * 1e6, "us") if seconds < 0.001 else (seconds * 1e3, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}{unit}"


def _split(row: Row, part: float) -> str:
    return "" if row.path is not None else rate_text(part)


COLUMNS = (
    Column("IO/s", "i", 7, lambda row: rate_text(row.requests), lambda row: row.requests),
    Column("READ/s", "r", 7, lambda row: _split(row, row.reads), lambda row: row.reads),
    Column("WRITE/s", "w", 7, lambda row: _split(row, row.writes), lambda row: row.writes),
    Column("MB/s", "b", 7, lambda row: rate_text(row.moved / 1e6), lambda row: row.moved),
    Column("50%", "m", 7, lambda row: time_text(row.p50), lambda row: row.p50 or 0.0),
    Column("99%", "l", 7, lambda row: time_text(row.p99), lambda row: row.p99 or 0.0),
    Column("FLIGHT", "f", 6, lambda row: str(row.in_flight), lambda row: row.in_flight),
    Column("WAIT", "a", 5, lambda row: str(row.waiting) if row.path is None else "", lambda row: row.waiting),
    Column("ERR", "e", 5, lambda row: rate_text(row.errors), lambda row: row.errors),
)
NAME_KEY = "n"
KEYS = {column.key: column.heading for column in COLUMNS} | {NAME_KEY: "name"}
STATE_WIDTH = 10


@dataclass(frozen=True)
class View:
    """What the user has chosen; every key makes another one."""

    sort: str = "i"
    reverse: bool = False
    paths: bool = True
    help: bool = False
    paused: bool = False
    interval: float = 1.0
    offset: int = 0
    ended: bool = field(default=False)

    def press(self, key: str, page: int = 10) -> View:
        """The view after a key; `page` is how many lines fit. Keys that mean nothing change nothing."""
        if self.help and key != "q":
            return replace(self, help=False)
        if key in KEYS:
            return replace(self, sort=key, reverse=not self.reverse if key == self.sort else False, offset=0)
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -page, "pagedown": page}
        if key in moves:
            return replace(self, offset=max(0, self.offset + moves[key]))
        if key in ("+", "-"):
            return replace(self, interval=_other_interval(self.interval, 1 if key == "+" else -1))
        changes = {
            "q": {"ended": True},
            "p": {"paths": not self.paths, "offset": 0},
            "?": {"help": True},
            "h": {"help": True},
            " ": {"paused": not self.paused},
            "home": {"offset": 0},
        }
        return replace(self, **changes.get(key, {}))  # type: ignore[arg-type]  # each name is a field's, with its kind


def _other_interval(interval: float, step: int) -> float:
    longer = [each for each in INTERVALS if each > interval]
    shorter = [each for each in INTERVALS if each < interval]
    return (longer[0] if longer else interval) if step > 0 else (shorter[-1] if shorter else interval)


HELP = (
    "isblk top: what the disks of this user's daemons are doing (any key goes back)",
    "",
    "  q        quit                      p        show or hide the paths",
    "  space    stand still, go on        + -      longer or shorter intervals",
    "  up down  scroll (also k j)         ?        this help",
    "",
    "Sorted by a column with its key, and turned round by it again:",
    "",
    "  n  name                            m  50%      the median latency",
    "  i  IO/s     requests a second      l  99%      99 of 100 requests are faster",
    "  r  READ/s   of them reads          f  FLIGHT   requests on their way",
    "  w  WRITE/s  of them writes         a  WAIT     requests that wait for a path",
    "  b  MB/s     10^6 bytes a second    e  ERR      errors since the start",
    "",
    "A disk in red had faults in this interval: errors, repetitions, failovers.",
    "Latencies are of sampled requests (isblk-top(1)).",
)


def ordered(found: Sequence[Row], view: View) -> list[Row]:
    """Devices as they are sorted, each with its paths, if they are shown."""
    groups: list[list[Row]] = []
    for row in found:
        if row.path is None:
            groups.append([row])
        elif groups and view.paths:
            groups[-1].append(row)
    groups.sort(key=lambda group: (group[0].where, group[0].lun), reverse=view.sort == NAME_KEY and view.reverse)
    for column in COLUMNS:
        if column.key == view.sort:
            groups.sort(key=lambda group: column.value(group[0]), reverse=not view.reverse)
    return [row for group in groups for row in group]


def screen(found: Sequence[Row], view: View, width: int, height: int, clock: str = "", problem: str = "") -> list[Line]:
    """Exactly `height` lines of at most `width` characters."""
    if view.help:
        lines: list[Line] = [[Piece(text, Style.TITLE if number == 0 else Style.PLAIN)] for number, text in enumerate(HELP)]
    else:
        lines = _lines(ordered(found, view), found, view, width, height, clock, problem)
    lines = [_cut(line, width) for line in lines[:height]]
    return lines + [[] for _ in range(height - len(lines))]


def _lines(shown: list[Row], found: Sequence[Row], view: View, width: int, height: int, clock: str, problem: str) -> list[Line]:
    devices = [row for row in found if row.path is None]
    total, moved = sum(row.requests for row in devices), sum(row.moved for row in devices)
    count = f"{len(devices)} disk{'' if len(devices) == 1 else 's'}"
    title = f"isblk top  {clock}  {count}  {rate_text(total)} IO/s  {rate_text(moved / 1e6)} MB/s  every {view.interval:g} s"
    lines: list[Line] = [[Piece(title, Style.TITLE), Piece("  standing still", Style.WARNING) if view.paused else Piece("")]]
    lines.append([Piece(problem, Style.BAD)] if problem else [])
    columns, name_width = fitting(width)
    lines.append(_heading(columns, name_width, view))
    room = max(0, height - len(lines) - 1)
    offset = min(view.offset, max(0, len(shown) - room))
    lines += [_row(row, columns, name_width) for row in shown[offset : offset + room]]
    if not devices:
        lines.append([Piece("nothing is mounted, exported or attached", Style.FAINT)])
    lines += [[] for _ in range(height - 1 - len(lines))]
    more = f"  {offset + 1}-{min(len(shown), offset + room)} of {len(shown)}" if len(shown) > room else ""
    lines.append([Piece(f"q quit  p paths  space pause  +/- interval  ? help, sort keys{more}", Style.FAINT)])
    return lines


def fitting(width: int) -> tuple[list[Column], int]:
    """The columns that there is room for beside a name of some use, the less important ones left out; and the width of the name."""
    columns, least = list(COLUMNS), 24
    for heading in ("READ/s", "WRITE/s", "WAIT", "ERR", "50%", "FLIGHT", "99%", "MB/s"):
        if _needed(columns) + least <= width:
            break
        columns = [column for column in columns if column.heading != heading]
    return columns, max(8, width - _needed(columns))


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width + 1 for column in columns) + STATE_WIDTH + 1


def _heading(columns: Sequence[Column], name_width: int, view: View) -> Line:
    pieces = [Piece("DISK, PATH".ljust(name_width), Style.SORTED if view.sort == NAME_KEY else Style.HEADING)]
    pieces.append(Piece(" " + "STATE".ljust(STATE_WIDTH), Style.HEADING))
    pieces += [
        Piece(" " + column.heading.rjust(column.width), Style.SORTED if column.key == view.sort else Style.HEADING) for column in columns
    ]
    return pieces


def _row(row: Row, columns: Sequence[Column], name_width: int) -> Line:
    name = f"{row.where} LUN {row.lun}" if row.path is None else f"  {row.path}"
    if len(name) > name_width:
        name = f"{name[: name_width // 3]}...{name[len(name) - (name_width - name_width // 3 - 3) :]}"[:name_width]
    style = Style.BAD if row.faults and row.path is None else Style.PLAIN if row.path is None else Style.FAINT
    pieces = [Piece(name.ljust(name_width), style), Piece(" " + row.state.ljust(STATE_WIDTH), _state_style(row))]
    return pieces + [Piece(" " + column.cell(row).rjust(column.width), _cell_style(column, row)) for column in columns]


def _state_style(row: Row) -> Style:
    if row.path is None:
        up, _, rest = row.state.partition("/")
        return Style.PLAIN if not rest else Style.BAD if up == "0" else Style.GOOD if rest == f"{up} up" else Style.WARNING
    return {"up": Style.GOOD, "standby": Style.FAINT, "fencing": Style.WARNING}.get(row.state, Style.BAD)


def _cell_style(column: Column, row: Row) -> Style:
    if column.heading == "ERR":
        return Style.BAD if row.faults else Style.WARNING if row.errors else Style.FAINT
    if column.heading == "WAIT":
        return Style.BAD if row.waiting else Style.FAINT
    return Style.PLAIN if row.path is None else Style.FAINT


def _cut(line: Line, width: int) -> Line:
    found, left = [], width
    for piece in line:
        text = "".join(c if c.isprintable() else "?" for c in piece.text[:left])
        if text:
            found.append(Piece(text, piece.style))
        left -= len(text)
    return found
