"""The options of a table: for which types each is, what its value is, and what it becomes on the command line of the export. PURE.

Three kinds: the table's own (whether and how long `isblk up` waits, retries), which no command sees; those with the name and meaning of an
option of `isblk mount`, `nbd` or `attach`; and words of their `-o`. A setting of isblk.conf(5) that is in none of these tables is an
option of every type by its kind, so that a new setting is known here at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from isblk.block.choose import Failback, NoPathRetry, Policy
from isblk.errors import IsblkError
from isblk.iscsi.names import Portal, normalize_name
from isblk.scsi.lun_number import lun_from_bytes, parse_lun
from isblk.settings import SETTINGS


class Kind(StrEnum):
    """The third field."""

    FUSE = "fuse"
    NBD = "nbd"
    ATTACH = "attach"


COMMANDS = {Kind.FUSE: "mount", Kind.NBD: "nbd", Kind.ATTACH: "attach"}
"""The command that serves an export of each type."""


class Value(NamedTuple):
    """What an option's value is, in words and as an example, and whether a text is one."""

    what: str
    example: str
    is_right: Callable[[str], bool]


@dataclass(frozen=True)
class Option:
    """An option. `value` None: it takes none. `argument`: what a command calls it, --name, or -o for a word of that; empty: none does."""

    name: str
    value: Value | None = None
    argument: str = ""
    kinds: tuple[Kind, ...] = tuple(Kind)
    is_repeatable: bool = False
    is_file: bool = False


def _by(parse: Callable[[str], object]) -> Callable[[str], bool]:
    """Whether the parser that the command uses takes a text."""

    def is_right(text: str) -> bool:
        try:
            parse(text)
        except IsblkError:
            return False
        return True

    return is_right


def _number(least: float, most: float, whole: bool = False) -> Callable[[str], bool]:
    digits = r"[0-9]{1,7}" if whole else r"[0-9]{1,7}(\.[0-9]{1,3})?"
    return lambda text: re.fullmatch(digits, text, re.ASCII) is not None and least <= float(text) <= most


def _one_of(*words: str) -> Value:
    return Value(f"{', '.join(words[:-1])} or {words[-1]}", words[0], lambda text: text in words)


_ALGORITHMS = ("sha3-256", "sha256", "sha1", "md5")
_NEVER = "never"


def _are_algorithms(text: str) -> bool:
    names = [name.strip().lower() for name in text.split(",")]
    return set(names) <= set(_ALGORITHMS) and len(set(names)) == len(names)


TEXT = Value("a text", "NAME", lambda text: bool(text))
FILE = Value("the path of a file", "/etc/isblk/secret", lambda text: bool(text))
DIRECTORY = Value("the path of a directory", "/etc/isblk/nbd", lambda text: bool(text))
PORTAL = Value("HOST, HOST:PORT or [IPV6]:PORT", "10.0.0.5", _by(Portal.parse))
NUMBER = Value("a number", "15", _number(0, 9999999))
UP_WAIT = Value("a number of seconds from 1 to 86400", "90", _number(1, 86400))
RETRY = Value(
    f"the longest pause between two attempts in seconds from 1 to 86400, or {_NEVER}",
    "60",
    lambda text: text == _NEVER or _number(1, 86400)(text),
)
IDLE = Value("a number of seconds, 0 for never", "600", _number(0, 9999999))

_ALL = (
    Option("auto"),
    Option("noauto"),
    Option("nofail"),
    Option("timeout", UP_WAIT),
    Option("retry", RETRY),
    Option("ro", None, "-o"),
    Option("rw", None, "-o"),
    Option("portal", PORTAL, "--portal", is_repeatable=True),
    Option("lun", Value("a LUN as `isblk ls` prints it", "0", _by(lambda text: lun_from_bytes(parse_lun(text)))), "--lun"),
    Option("user", TEXT, "--user"),
    Option("secret-file", FILE, "--secret-file", is_file=True),
    Option("target-user", TEXT, "--target-user"),
    Option("target-secret-file", FILE, "--target-secret-file", is_file=True),
    Option(
        "chap-algorithms",
        Value(f"made of {', '.join(_ALGORITHMS)}, with \\054 for the commas between", "sha256\\054sha1", _are_algorithms),
        "--chap-algorithms",
    ),
    Option("no-md5-retry", None, "--no-md5-retry"),
    Option("digest", _one_of("none", "allow", "prefer", "header", "data", "both"), "--digest"),
    Option(
        "initiator-name",
        Value("an iSCSI name, iqn., eui. or naa.", "iqn.2001-05.com.example:host", _by(normalize_name)),
        "--initiator-name",
    ),
    Option("log-level", _one_of("error", "warning", "info", "debug"), "--log-level"),
    Option("login-timeout", Value("a number of seconds from 0.1 to 3600", "15", _number(0.1, 3600)), "--login-timeout"),
    Option("all-portals", None, "--all-portals"),
    Option("policy", Value(", ".join(each.value for each in Policy), "failover", _by(Policy.parse)), "--policy"),
    Option("failback", Value("immediate, manual or a number of seconds", "immediate", _by(Failback.parse)), "--failback"),
    Option("no-path-retry", Value("fail, queue or a number of seconds", "120", _by(NoPathRetry.parse)), "--no-path-retry"),
    Option(
        "replacement-timeout",
        Value("a number of seconds, or -1 for ever", "120", lambda text: text == "-1" or _number(0, 999999)(text)),
        "--replacement-timeout",
    ),
    Option(
        "noop-interval",
        Value("0 (never) or at least 1 second", "5", lambda text: text == "0" or _number(1, 999999)(text)),
        "--noop-interval",
    ),
    Option("noop-timeout", Value("at least 1 second", "5", _number(1, 999999)), "--noop-timeout"),
    Option("fence", _one_of("strict", "fast"), "--fence"),
    Option("queue-depth", Value("a number of requests, 1 or more", "32", _number(1, 99999, whole=True)), "--queue-depth"),
    Option("shared", None, "--shared"),
)

_FUSE = (
    Option("automount", None, "--automount", (Kind.FUSE,)),
    Option("idle", IDLE, "--idle", (Kind.FUSE,)),
    Option("allow_other", None, "-o", (Kind.FUSE,)),
    Option("direct_io", None, "-o", (Kind.FUSE,)),
    Option("writeback", None, "-o", (Kind.FUSE,)),
    Option("fuse-engine", _one_of("direct", "pyfuse3"), "--fuse-engine", (Kind.FUSE,)),
)
_NBD = (
    Option("tls-certificates", DIRECTORY, "--tls-certificates", (Kind.NBD,), is_file=True),
    Option("tls-psk", FILE, "--tls-psk", (Kind.NBD,), is_file=True),
    Option("insecure", None, "--insecure", (Kind.NBD,)),
    Option("max-connections", Value("a number from 1 to 10000", "128", _number(1, 10000, whole=True)), "--max-connections", (Kind.NBD,)),
)
_LONG = Value("a whole number of seconds from 1 to 2000000", "420", _number(1, 2_000_000, whole=True))
_ATTACH = (
    Option("connections", Value("a number from 1 to 64", "4", _number(1, 64, whole=True)), "--connections", (Kind.ATTACH,)),
    Option("device-timeout", _LONG, "--timeout", (Kind.ATTACH,)),
    Option(
        "dead-connection-timeout",
        Value("a whole number of seconds from 0 to 2000000", "600", _number(0, 2_000_000, whole=True)),
        "--dead-connection-timeout",
        (Kind.ATTACH,),
    ),
)


def _from_settings(known: dict[str, Option]) -> dict[str, Option]:
    values = {bool: None, list: TEXT, float: NUMBER, str: TEXT}
    rest = {name: kind for name, kind in SETTINGS.items() if name not in known}
    return {name: Option(name, values[kind], f"--{name}", is_repeatable=kind is list) for name, kind in rest.items()}


def _all() -> dict[str, Option]:
    known = {option.name: option for option in (*_ALL, *_FUSE, *_NBD, *_ATTACH)}
    return {**known, **_from_settings(known)}


OPTIONS: dict[str, Option] = _all()
"""By name."""
IN_PLACE = ("policy", "failback", "no-path-retry", "replacement-timeout", "fence")
"""Options that a daemon can be told while it serves: those of isblk/changing.py, which is not for a pure module to import."""
IGNORED = ("defaults", "-")
"""For a fourth field that says nothing."""
SECRETS = {
    "secret": "secret-file",
    "password": "secret-file",
    "target-secret": "target-secret-file",
    "target-password": "target-secret-file",
}
"""What is never to stand in a table, and the option that names the file it belongs in."""
PLACES = ("listen", "socket")
FSTAB = re.compile(r"_netdev|x-.*|comment|users|nouser|owner|group|suid|nosuid|exec|noexec|dev|nodev|sync|async|loop|noatime|relatime")
"""Words that mean something to mount(8) alone."""


def of(kind: Kind) -> list[str]:
    """The names of a type's options."""
    return [name for name, option in OPTIONS.items() if kind in option.kinds]
