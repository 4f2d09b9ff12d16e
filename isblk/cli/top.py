"""`isblk top`: what every disk is doing, live on a terminal or once as text.

The terminal is curses' (the standard library's): it knows every terminal, resizing and job control, and starts at once. (rich and textual
were the alternatives: ten and twenty packages for one screen of text, on hosts that want few.) The answers come from a thread of their own,
so that a daemon which is slow to answer never keeps a key waiting.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from isblk import control
from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.errors import UsageError
from isblk.rates import Row, rows
from isblk.state import places
from isblk.topview import KEYS, Style, View, ordered, screen

if TYPE_CHECKING:
    import curses

TICK_MILLISECONDS = 50
"""How long a key is waited for, and how late a new sample is drawn at most."""
TEXT_WIDTH = 120


@click.command("top")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, metavar="S", help="Seconds between samples.")
@click.option("--sort", type=click.Choice(sorted(KEYS)), default="i", show_default=True, help="The key that sorts, as on the screen.")
@click.option("--once", is_flag=True, help="One interval as text, and the end; so it is where there is no terminal.")
@json_option
def command(interval: float, sort: str, once: bool, as_json: bool) -> None:
    """Watch the disks: requests and MB a second, latency percentiles, requests in flight, faults; by disk and by path.

    On a terminal `q` quits and `?` tells the other keys. --json implies --once.

    \b
    isblk top
    isblk top --once
    isblk top --once --json --interval 5
    """
    with errors_as_sentences():
        view = View(sort=sort, interval=interval)
        if as_json or once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            _once(view, as_json)
        else:
            _live(view)


class Samples:
    """The latest interval, taken again and again by a thread; `now` is replaced as a whole."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.now: tuple[int, list[Row], str] = (0, [], "asking")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        before, at = _ask()[0], time.monotonic()
        number = 0
        while not self._stop.wait(self.interval if number else min(self.interval, 0.5)):
            after, problem = _ask()
            now = time.monotonic()
            number += 1
            self.now = (number, rows(before, after, max(now - at, 1e-3)), problem)
            before, at = after, now


def _ask() -> tuple[list[Mapping[str, Any]], str]:
    """Every daemon's answer, and in one line who gave none."""
    try:
        answers, failures = control.ask_all(places().run)
    except OSError as error:
        return [], str(error)
    return [answer for _, answer in answers], "; ".join(map(str, failures))


def _once(view: View, as_json: bool) -> None:
    before, at = _ask()[0], time.monotonic()
    time.sleep(view.interval)
    after, problem = _ask()
    seconds = time.monotonic() - at
    found = rows(before, after, seconds)
    if problem:
        click.echo(f"isblk: {problem}", err=True)
    if as_json:
        told = [row.as_dict() for row in ordered(found, view)]
        click.echo(json.dumps({"version": control.VERSION, "seconds": round(seconds, 3), "rows": told}, indent=2))
        return
    for line in screen(found, view, TEXT_WIDTH, len(found) + 5, time.strftime("%H:%M:%S"))[:-1]:
        text = "".join(piece.text for piece in line).rstrip()
        if text:
            click.echo(text)


def _live(view: View) -> None:
    import curses
    import locale

    locale.setlocale(locale.LC_ALL, "")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Else curses has a handler of its own, which exits as if there were a bug.
    try:
        curses.wrapper(_screen, view)
    except curses.error as error:
        raise UsageError(f"this terminal cannot show it ({error}); check TERM, or use isblk top --once") from None
    except KeyboardInterrupt:
        pass


def _screen(window: curses.window, view: View) -> None:
    """Until q or Ctrl-C: draw when something is new, wait for a key a moment."""
    looks = _looks()
    window.timeout(TICK_MILLISECONDS)
    shown: object = None
    standing: tuple[int, list[Row], str] | None = None
    with Samples(view.interval) as samples:
        while not view.ended:
            samples.interval = view.interval
            standing = (standing or samples.now) if view.paused else None
            number, found, problem = standing or samples.now
            height, width = window.getmaxyx()
            wanted = (number, view, height, width)
            if wanted != shown:
                shown = wanted
                _draw(window, screen(found, view, width, height, time.strftime("%H:%M:%S"), problem), looks)
            key = _key(window)
            if key:
                view = view.press(key, max(1, height - 4))


def _draw(window: curses.window, lines: Sequence[Sequence[tuple[str, Style]]], looks: Mapping[Style, int]) -> None:
    import curses

    window.erase()
    for at, line in enumerate(lines):
        column = 0
        for text, style in line:
            try:
                window.addstr(at, column, text, looks[style])
            except curses.error:  # The last cell of the screen, or a window that has shrunk meanwhile.
                break
            column += len(text)
    window.refresh()


def _key(window: curses.window) -> str:
    """The next key by its name; empty when none came, or the window has another size."""
    import curses

    code = window.getch()
    named = {
        curses.KEY_UP: "up",
        curses.KEY_DOWN: "down",
        curses.KEY_PPAGE: "pageup",
        curses.KEY_NPAGE: "pagedown",
        curses.KEY_HOME: "home",
        curses.KEY_RESIZE: "",
    }
    return named.get(code, chr(code) if 0 <= code < 128 else "")


def _looks() -> dict[Style, int]:
    """Attributes by style; without colours where the terminal has none, or NO_COLOR is set."""
    import curses

    from isblk.cli.text import has_colours

    curses.curs_set(0)
    if curses.has_colors():
        curses.use_default_colors()  # Else curses paints everything white on black.
    looks = dict.fromkeys(Style, curses.A_NORMAL)
    looks |= {
        Style.TITLE: curses.A_BOLD,
        Style.HEADING: curses.A_REVERSE,
        Style.SORTED: curses.A_REVERSE | curses.A_BOLD,
        Style.BAD: curses.A_BOLD,
    }
    if not (curses.has_colors() and has_colours()):
        return looks
    for number, (style, colour) in enumerate(_COLOURS.items(), 1):
        curses.init_pair(number, getattr(curses, f"COLOR_{colour}"), -1)
        looks[style] |= curses.color_pair(number)
    looks[Style.FAINT] |= curses.A_DIM
    return looks


_COLOURS = {Style.GOOD: "GREEN", Style.WARNING: "YELLOW", Style.BAD: "RED", Style.TITLE: "CYAN"}
