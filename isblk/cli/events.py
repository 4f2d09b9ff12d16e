"""`isblk events`: what happened to paths, sessions, disks and clients, of every daemon of this user."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import click

from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.text import paint
from isblk.state import places

COLOURS = {"warning": "yellow", "error": "red"}
FOLLOWED = 10
"""Events of the past that are shown before new ones."""


@click.command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until interrupted.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help=f"Only the last N of the past (with -f: {FOLLOWED}).")
@click.option(
    "--level", type=click.Choice(["info", "warning", "error"]), default="info", show_default=True, help="Only what is at least so bad."
)
@json_option
def command(follow: bool, lines: int | None, level: str, as_json: bool) -> None:
    """Tell what happened: paths that came and went, failovers, fences, power-ons, sizes, clients.

    Each daemon remembers its latest thousand events. With -f daemons that start later are heard too. --json prints an object a line.

    \b
    isblk events
    isblk events -f
    isblk events --level warning --json
    """
    from isblk import following

    with errors_as_sentences():
        found, known, failures = following.past(places().run)
        for failure in failures:
            click.echo(f"isblk: {failure}", err=True)
        wanted = [event for event in found if _matters(event, level)]
        count = FOLLOWED if lines is None and follow else lines
        _say(wanted if count is None else wanted[len(wanted) - min(count, len(wanted)) :], as_json)
        if follow:
            _follow(following.Follower(places().run, known), level, as_json)


def _follow(follower: Any, level: str, as_json: bool) -> None:
    """Until Ctrl-C, which is how this is meant to end."""
    try:
        while True:
            _say((event for event in follower.poll() if _matters(event, level)), as_json)
    except KeyboardInterrupt:
        pass
    finally:
        follower.close()


def _matters(event: dict[str, Any], level: str) -> bool:
    order = ("info", "warning", "error")
    return event["level"] not in order or order.index(event["level"]) >= order.index(level)


def _say(events: Iterable[dict[str, Any]], as_json: bool) -> None:
    for event in events:
        click.echo(json.dumps(event, ensure_ascii=False) if as_json else _line(event))


def _line(event: dict[str, Any]) -> str:
    """Time, where, what; a target's own words are shown without control characters."""
    moment = event["time"]
    clock = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(moment))}.{int(moment * 1000) % 1000:03}"
    text = "".join(c if c.isprintable() else "?" for c in str(event["text"]))
    kind = paint(f"{event['kind']:<17}", COLOURS.get(event["level"], "green"))
    where = str(event.get("where") or f"pid {event['pid']}")
    return f"{paint(clock, 'bright_black')}  {kind}  {where}  {text}"
