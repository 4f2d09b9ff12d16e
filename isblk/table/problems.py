"""Problems of a table: every sentence that can be said about one, and where in the file it belongs. PURE.

The sentences are members of an enumeration, so that a test can assert that each of them has a table that provokes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any


class Say(Enum):
    """What can be wrong. The name in small letters, with dashes, is the `kind` of a problem in JSON."""

    NO_TABLE = "there is no table here: write one (isblktab(5)), or name another with -f"
    UNREADABLE = "the table cannot be read: {reason}"
    NOT_TEXT = "the table is not UTF-8 at byte {byte}"
    TOO_LARGE = "the table is larger than {limit} bytes; is it the right file?"
    OTHERS_CAN_WRITE = "others can change this table: chown it to you or root, and chmod go-w it"
    CONFIGURATION = "the configuration cannot be used: {reason}"

    MISSING_FIELD = "{field} is missing: a line is TARGET WHERE TYPE OPTIONS"
    EXTRA_FIELD = "{text!r} stands behind OPTIONS: a space in a field is written \\040, and a comment has a line of its own"
    BAD_ESCAPE = "{text!r} is no escape: a backslash begins three octal digits, \\040 for a space, \\054 for a comma, \\134 for itself"

    BAD_TARGET = "TARGET: {reason}"
    URL_PORTAL = "the URL in TARGET says where the target listens, and so does portal=: give one of them"
    URL_LUN = "the URL in TARGET ends in LUN {url} and lun={lun} names another: give one of them"

    RELATIVE_WHERE = "WHERE is {text!r}, but must be an absolute path, such as /{text}"
    BAD_LISTEN = "WHERE is {text!r}, but for nbd it is the absolute path of a socket, or HOST:PORT: {reason}"
    NOT_A_DEVICE = "WHERE is {text!r}, but for attach it is a device of the kernel's NBD client, such as /dev/nbd0"
    A_DEVICE = "WHERE is the device {text}, which is for the type attach, not {kind}"
    SAME_WHERE = "WHERE is {text}, as in line {line} already: each export has a place of its own"

    UNKNOWN_TYPE = "there is no type {text!r}: {hint}"
    EMPTY_OPTION = "an option is empty: take one of the two commas away"
    UNKNOWN_OPTION = "there is no option {text!r}: {hint}"
    OTHER_TYPE = "{name} is an option for {kinds}, not for {kind}"
    FSTAB_OPTION = "{name} is an option of /etc/fstab, and says nothing here: leave it out"
    PLACE_OPTION = "{name} is no option here: what nbd listens at is WHERE, the path of a socket or HOST:PORT"
    SECRET_IN_TABLE = "{name} has no place in a table: put it into a file of its own, mode 0600, and name that with {option}="
    TWICE = "{name} is given twice"
    NO_VALUE = "{name} needs a value: {name}={example}"
    VALUE_OF_FLAG = "{name} takes no value: leave {value!r} out"
    BAD_VALUE = "{name} cannot be {value!r}: it is {what}"

    CONTRADICTION = "{name} and {other} contradict each other: give one of them"
    NEEDS = "{name} says nothing without {other}: give that too"
    WRITEBACK_ENGINE = "writeback is not for the pyfuse3 engine, which caches nothing: give fuse-engine=direct too"
    SAME_PORTAL = "the portal {portal} is given twice: each is a path of its own, so name different ones"
    NO_PORTAL = "no portal for {name} here or in the configuration: say where it listens with portal=HOST[:PORT]"
    NO_PINGS = "noop-interval=0 would never find out that a path is silent, so it contradicts several portals"
    TWO_RETRIES = "no-path-retry={one} and replacement-timeout={other} contradict each other: give one of them"
    SHORT_DEVICE_TIMEOUT = (
        "device-timeout={timeout} is not longer than requests wait for a path ({wait}): the kernel would give up on requests that are "
        "still on their way"
    )
    OPEN_TO_ALL = (
        "anybody who reaches {where} could read and write the disk: give tls-certificates= or tls-psk=, listen on loopback, "
        "or insist with insecure"
    )

    NO_SECRET = "no secret for the CHAP user {user}, here or in the configuration: give {option}=FILE"
    BAD_SECRET = "{name} cannot be used: {reason}"
    SAME_SECRETS = "the two secrets of a mutual login are the same, which every target refuses: let them differ"
    BAD_TLS = "{name} cannot be used for TLS: {reason}"

    @property
    def kind(self) -> str:
        """Its name in JSON."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Problem:
    """Something wrong at a line and column (from 1; 0 where it is about the whole file or line)."""

    file: str
    line: int
    column: int
    say: Say
    sentence: str

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return f"{place}: {self.sentence}"

    def to_json(self) -> dict[str, Any]:
        """For `isblk check --json`."""
        return {"file": self.file, "line": self.line, "column": self.column, "kind": self.say.kind, "sentence": self.sentence}


class Problems(list[Problem]):
    """The problems of one file, gathered; each place is told to `at`."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def at(self, line: int, column: int, say: Say, /, **words: object) -> None:
        """One more."""
        self.append(Problem(self.file, line, column, say, say.value.format(**words)))

    def in_order(self) -> list[Problem]:
        """As they stand in the file."""
        return sorted(self, key=lambda problem: (problem.line, problem.column))


def nearest(text: str, known: Iterable[str]) -> str:
    """The nearest right word; empty when none is near."""
    by_shape = {word.lower().replace("_", "-"): word for word in known}
    near = get_close_matches(text.lower().replace("_", "-"), by_shape, 1, 0.6)
    return by_shape[near[0]] if near else ""


def hint(text: str, known: Iterable[str]) -> str:
    """The nearest right word as a question, or all there are."""
    words = list(known)
    near = nearest(text, words)
    return f"is {near} meant?" if near else f"there are {', '.join(words)}"
