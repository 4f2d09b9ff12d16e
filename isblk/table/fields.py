"""A line of a table taken apart: its fields and options with their columns, and the escapes in them (fstab(5)). PURE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from isblk.table.problems import Problems, Say

_FIELD = re.compile(r"[^ \t]+")
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_NO_ESCAPE = re.compile(r"\\(?![0-7]{3})|\\000|\\[4-7]")


class Piece(NamedTuple):
    """Text as it stands in the file, and the column it begins at, from 1."""

    raw: str
    column: int


class Line(NamedTuple):
    """A line that is neither empty nor a comment."""

    number: int
    fields: list[Piece]
    end: int
    """The column behind its last field, where one that is missing would stand."""


def lines(text: str) -> Iterator[Line]:
    """The lines that say something."""
    for number, line in enumerate(text.split("\n"), 1):
        found = [Piece(match[0], match.start() + 1) for match in _FIELD.finditer(line.rstrip("\r"))]
        if found and not found[0].raw.startswith("#"):
            yield Line(number, found, found[-1].column + len(found[-1].raw) + 1)


def options(field: Piece) -> Iterator[tuple[Piece, Piece | None]]:
    """The options of the fourth field: each a name and, behind a '=', a value. Escapes are not yet read, so a comma may be in one."""
    column = field.column
    for part in field.raw.split(","):
        name, equals, value = part.partition("=")
        yield Piece(name, column), Piece(value, column + len(name) + 1) if equals else None
        column += len(part) + 1


def unescaped(piece: Piece, line: int, problems: Problems) -> str | None:
    """What a piece says; None, and a problem, where a backslash in it begins no escape."""
    wrong = _NO_ESCAPE.search(piece.raw)
    if wrong is not None:
        problems.at(line, piece.column + wrong.start(), Say.BAD_ESCAPE, text=piece.raw[wrong.start() : wrong.start() + 4])
        return None
    try:
        return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), piece.raw.encode()).decode()
    except UnicodeDecodeError:
        at = piece.raw.index("\\")
        problems.at(line, piece.column + at, Say.BAD_ESCAPE, text=piece.raw[at : at + 4])
        return None


def escaped(text: str) -> str:
    """The text as a field or an option's value has it."""
    return "".join(f"\\{ord(one):03o}" if one in " \t\n\r\\," or (one == "#" and not at) else one for at, one in enumerate(text))
