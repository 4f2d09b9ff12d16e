"""Entries of a table: text -> entries, with every problem that the text itself shows; an entry -> the command that serves it. PURE.

A line with a problem makes no entry, and the lines behind it are read all the same: all that is wrong with a file is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from isblk.errors import UsageError
from isblk.iscsi.names import Portal, TargetUrl, parse_target_url, target_name
from isblk.table import fields
from isblk.table.fields import Line, Piece, unescaped
from isblk.table.options import COMMANDS, FSTAB, IGNORED, IN_PLACE, OPTIONS, PLACES, SECRETS, Kind, of
from isblk.table.problems import Problems, Say, hint, nearest

DEFAULT_TIMEOUT = 90.0
"""Seconds that `isblk up` waits for an export, as long as systemd waits for a device."""
DEFAULT_RETRY = 60.0
"""Seconds, at most, between two attempts to start an export."""
NBD_PORT = 10809
_FIELDS = ("TARGET", "WHERE", "TYPE", "OPTIONS")
_CREDENTIAL = "credential:"


@dataclass(frozen=True)
class Given:
    """An option as a line gives it; `value` None for one that takes none, and `column` where it, or its value, stands."""

    name: str
    value: str | None
    column: int


@dataclass(frozen=True)
class Entry:
    """One export. `where` is an absolute path, or for nbd HOST:PORT; `target` as it is written, `file` and `line` where."""

    target: str
    where: str
    kind: Kind
    options: tuple[Given, ...] = ()
    file: str = ""
    line: int = 0
    columns: tuple[int, ...] = (1, 1, 1, 1)

    def has(self, name: str) -> bool:
        """Whether an option is given."""
        return any(given.name == name for given in self.options)

    def values(self, name: str) -> tuple[str, ...]:
        """Every value of an option."""
        return tuple(given.value for given in self.options if given.name == name and given.value is not None)

    def value(self, name: str) -> str | None:
        """The value of an option that is given once; None when it is not."""
        return next(iter(self.values(name)), None)

    def column(self, name: str) -> int:
        """Where an option stands; the line's end of fields where it does not."""
        return next((given.column for given in self.options if given.name == name), self.columns[-1])

    @property
    def noauto(self) -> bool:
        """Whether it is started only by its name."""
        return self.has("noauto")

    @property
    def nofail(self) -> bool:
        """Whether `isblk up` succeeds without it."""
        return self.has("nofail")

    @property
    def automount(self) -> bool:
        """Whether it is there before the login is."""
        return self.has("automount")

    @property
    def timeout(self) -> float | None:
        """Seconds that `isblk up` waits for it; None: not said."""
        text = self.value("timeout")
        return None if text is None else float(text)

    @property
    def patience(self) -> float:
        """Seconds that `isblk up` waits for it."""
        return self.timeout if self.timeout is not None else 0.0 if self.nofail else DEFAULT_TIMEOUT

    @property
    def retry(self) -> float | None:
        """Seconds, at most, between two attempts; None: there is only one."""
        text = self.value("retry")
        return DEFAULT_RETRY if text is None else None if text == "never" else float(text)

    @cached_property
    def url(self) -> TargetUrl | None:
        """TARGET, where it is a URL."""
        return parse_target_url(self.target) if "://" in self.target else None

    @property
    def name(self) -> str:
        """The target's name, normalized."""
        return self.url.name if self.url is not None else target_name(self.target)

    @property
    def names(self) -> tuple[str, ...]:
        """What a section of the configuration for this target may be called (settings.Settings.for_target)."""
        return (self.name, self.target if self.url is None else self.url.spelled or self.name)

    @property
    def is_path(self) -> bool:
        """Whether WHERE is a path, not HOST:PORT."""
        return self.where.startswith("/")

    def command(self, without: Collection[str] = ()) -> list[str]:
        """The arguments of isblk that serve it in the foreground, `without` some options. They hold no secret."""
        place = {Kind.FUSE: [], Kind.NBD: ["--socket" if self.is_path else "--listen", self.where], Kind.ATTACH: []}[self.kind]
        last = [] if self.kind is Kind.NBD else [self.where]
        return [COMMANDS[self.kind], "--foreground", *place, *self._arguments(without), "--", self.target, *last]

    @property
    def in_place(self) -> tuple[str, ...]:
        """The options that can change while it is served. What an automount logs in with is decided when it starts."""
        return () if self.automount else IN_PLACE

    def _arguments(self, without: Collection[str]) -> Iterator[str]:
        for given in self.options:
            argument = "" if given.name in without else OPTIONS[given.name].argument
            if argument == "-o":
                yield from (argument, given.name)
            elif argument and given.value is None:
                yield argument
            elif argument:
                yield f"{argument}={given.value}"


@dataclass(frozen=True)
class Table:
    """The entries of a file, in its order, and what is wrong with it; `doubtful` are what could be read of lines with problems."""

    file: str
    entries: tuple[Entry, ...]
    problems: Problems
    doubtful: tuple[Entry, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems


def parse(file: str, text: str) -> Table:
    """The entries that a text holds, and its problems. Paths in it start from the directory of `file`."""
    problems = Problems(file)
    entries: list[Entry] = []
    doubtful: list[Entry] = []
    seen: dict[str, int] = {}
    for line in fields.lines(text):
        before = len(problems)
        entry = _entry(line, problems)
        if entry is not None and entry.where in seen:
            problems.at(line.number, entry.columns[1], Say.SAME_WHERE, text=entry.where, line=seen[entry.where])
        elif entry is not None:
            seen[entry.where] = line.number
        if entry is not None:
            (entries if len(problems) == before else doubtful).append(entry)
    return Table(file, tuple(entries), problems, tuple(doubtful))


def parse_options(field: Piece, line: int, kind: Kind, problems: Problems) -> tuple[Given, ...]:
    """The options of a fourth field for a type; those that are wrong are problems, and left out."""
    found: list[Given] = []
    if field.raw in IGNORED:
        return ()
    for name, value in fields.options(field):
        given = _option(name, value, line, kind, problems)
        if given is None:
            continue
        if any(other.name == given.name for other in found) and not OPTIONS[given.name].is_repeatable:
            problems.at(line, name.column, Say.TWICE, name=given.name)
        else:
            found.append(given)
    return tuple(found)


def _entry(line: Line, problems: Problems) -> Entry | None:
    """The entry of a line; None where what identifies it is not right."""
    number = line.number
    if len(line.fields) < 3:
        problems.at(number, line.end, Say.MISSING_FIELD, field=_FIELDS[len(line.fields)])
        return None
    for extra in line.fields[4:5]:
        problems.at(number, extra.column, Say.EXTRA_FIELD, text=extra.raw.partition("=")[0])
    target, where, word = (unescaped(field, number, problems) for field in line.fields[:3])
    columns = tuple(field.column for field in line.fields[:4])
    if target is not None and not _is_target(target, number, columns[0], problems):
        target = None
    kind = None if word is None else _kind(word, number, columns[2], problems)
    if kind is None:
        return None
    place = None if where is None else _place(where, kind, number, columns[1], problems)
    given = parse_options(line.fields[3], number, kind, problems) if len(line.fields) > 3 else ()
    if target is None or place is None:
        return None
    return Entry(target, place, kind, given, problems.file, number, columns if len(columns) == 4 else (*columns, line.end))


def _kind(text: str, line: int, column: int, problems: Problems) -> Kind | None:
    """The type; where there is none of that name the nearest, so that the rest of the line is read too."""
    if text in list(Kind):
        return Kind(text)
    problems.at(line, column, Say.UNKNOWN_TYPE, text=text, hint=hint(text, Kind))
    near = nearest(text, Kind)
    return Kind(near) if near else None


def _is_target(text: str, line: int, column: int, problems: Problems) -> bool:
    try:
        parse_target_url(text) if "://" in text else target_name(text)
    except UsageError as error:
        problems.at(line, column, Say.BAD_TARGET, reason=error)
        return False
    return True


def _place(text: str, kind: Kind, line: int, column: int, problems: Problems) -> str | None:
    """WHERE, as it will be compared and named."""
    is_device = os.path.normpath(text).startswith("/dev/nbd")
    if kind is Kind.NBD and not text.startswith("/") and ":" in text:
        return _listen(text, line, column, problems)
    if not text.startswith("/"):
        problems.at(line, column, Say.NOT_A_DEVICE if kind is Kind.ATTACH else Say.RELATIVE_WHERE, text=text)
    elif kind is Kind.ATTACH and not (is_device and text.removeprefix("/dev/nbd").isdecimal()):
        problems.at(line, column, Say.NOT_A_DEVICE, text=text)
    elif kind is not Kind.ATTACH and is_device:
        problems.at(line, column, Say.A_DEVICE, text=text, kind=kind)
    else:
        return "/" + os.path.normpath(text).lstrip("/")
    return None


def _listen(text: str, line: int, column: int, problems: Problems) -> str | None:
    try:
        portal = Portal.parse(text)
        if portal.tpgt is not None:
            raise UsageError("a portal group has no place here")
    except UsageError as error:
        problems.at(line, column, Say.BAD_LISTEN, text=text, reason=error)
        return None
    is_bare = ":" in portal.host and not text.startswith("[")
    return str(Portal(portal.host, NBD_PORT) if is_bare or text.endswith("]") else portal)


def _option(name: Piece, value: Piece | None, line: int, kind: Kind, problems: Problems) -> Given | None:
    """One option; None, and a problem, where it is none of this type's or its value is not right."""
    text, column = unescaped(name, line, problems), name.column
    if text is None or (text in IGNORED and value is None):
        return None
    if not text and value is None:
        problems.at(line, column, Say.EMPTY_OPTION)
    elif text.lower().replace("_", "-") in SECRETS:
        problems.at(line, column, Say.SECRET_IN_TABLE, name=text, option=SECRETS[text.lower().replace("_", "-")])
    elif text in PLACES:
        problems.at(line, column, Say.PLACE_OPTION, name=text)
    elif FSTAB.fullmatch(text):
        problems.at(line, column, Say.FSTAB_OPTION, name=text)
    elif text not in OPTIONS:
        problems.at(line, column, Say.UNKNOWN_OPTION, text=text, hint=hint(text, of(kind)))
    elif kind not in OPTIONS[text].kinds:
        problems.at(line, column, Say.OTHER_TYPE, name=text, kinds=" and ".join(OPTIONS[text].kinds), kind=kind)
    else:
        return _with_value(text, column, value, line, problems)
    return None


def _with_value(name: str, column: int, value: Piece | None, line: int, problems: Problems) -> Given | None:
    option = OPTIONS[name]
    if option.value is None:
        if value is None:
            return Given(name, None, column)
        problems.at(line, value.column, Say.VALUE_OF_FLAG, name=name, value=value.raw)
        return None
    if value is None or not value.raw:
        problems.at(line, column, Say.NO_VALUE, name=name, example=option.value.example)
        return None
    text = unescaped(value, line, problems)
    if text is None:
        return None
    if not option.value.is_right(text):
        problems.at(line, value.column, Say.BAD_VALUE, name=name, value=text, what=option.value.what)
        return None
    return Given(name, _absolute(text, problems.file) if option.is_file else text, value.column)


def _absolute(text: str, file: str) -> str:
    """A path in the table, from the table's directory; a credential of systemd stays what it is."""
    if text.startswith((_CREDENTIAL, "~")):
        return text if text.startswith(_CREDENTIAL) else os.path.expanduser(text)
    return str(PurePath(os.path.abspath(file)).parent / text)
