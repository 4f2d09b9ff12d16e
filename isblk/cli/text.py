"""Text for people: tables, and sizes (sizes.py)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence

from isblk.sizes import size_text

__all__ = ["size_text", "table"]


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under headings, made by tabulate; every cell as text, so that nothing is rounded or aligned as a number."""
    from tabulate import tabulate

    return tabulate([list(map(str, row)) for row in rows], headers=list(headings), tablefmt="plain", disable_numparse=True)


def paint(text: str, colour: str | None) -> str:
    """Text in a colour of the terminal's ("red", "bright_black", "bold"), where standard output is one and NO_COLOR is not set."""
    if colour is None or not text or not has_colours():
        return text
    import click

    return click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour)


def has_colours() -> bool:
    """Whether colours are welcome (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def age_text(since: float) -> str:
    """How long ago a time was: 0:00:05, 26:02:05 as 1 d 2 h."""
    seconds = max(0, int(time.time() - since))
    days, rest = divmod(seconds, 86400)
    return f"{days} d {rest // 3600} h" if days else f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
