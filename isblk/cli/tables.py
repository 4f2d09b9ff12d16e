"""What the commands about isblktab share: which table, which of its entries."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

import click

from isblk.errors import NotFound
from isblk.table.check import DEFAULT
from isblk.table.entry import Entry

table_option = click.option(
    "-f",
    "--table",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT,
    show_default=True,
    metavar="FILE",
    help="The table, instead of the system's.",
)


def named(entries: Sequence[Entry], words: Sequence[str], table: str) -> list[Entry]:
    """The entries whose WHERE is among `words`, in the table's order. Raises NotFound for a word that is none, with the nearest."""
    wanted = places_of(words, [entry.where for entry in entries], table)
    return [entry for entry in entries if entry.where in wanted]


def places_of(words: Sequence[str], known: Collection[str], owner: str) -> list[str]:
    """What words of a command line are called in the table; a relative path starts from the working directory. Raises NotFound."""
    places = [word if word in known else os.path.abspath(word) for word in words]
    for word, place in zip(words, places, strict=True):
        if place not in known:
            (near,) = get_close_matches(place, known, 1, 0.6) or ("",)
            raise NotFound(f"{owner} has no export at {word}" + (f"; is {near} meant?" if near else "; `isblk check` lists what it has"))
    return places
