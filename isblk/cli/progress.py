"""A bar for work that takes long: on a terminal only, gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import click

STEPS = 1000
SECONDS = 0.1
"""Between two pictures: people see no more, and work has better to do."""
CLEAR = "\r\033[K\033[?25h"
"""The line empty, and the cursor, which click's bar hides, there again."""
Update = Callable[[float, str], None]


@contextmanager
def progress(label: str, shown: bool = True) -> Iterator[Update]:
    """Yields a function that is told how much is done (0 to 1) and what to say of it; a bar on standard error where that is a terminal.

    click's bar would leave a full one behind, so its end is not asked for.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda _done, _text: None
        return
    bar = click.progressbar(
        length=STEPS,
        label=label,
        file=sys.stderr,
        show_eta=False,
        show_percent=False,
        item_show_func=lambda text: text,
        width=24,
        update_min_steps=0,
    )

    shown_at = 0.0

    def update(done: float, text: str) -> None:
        nonlocal shown_at
        now = monotonic()
        if shown_at and done < 1 and now - shown_at < SECONDS:
            return
        shown_at = now
        bar.update(max(0, int(STEPS * min(1.0, done)) - bar.pos), text or " ")

    try:
        bar.update(0, " ")
        yield update
    finally:
        click.echo(CLEAR, nl=False, err=True)
