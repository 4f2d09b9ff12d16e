"""The options that several commands share, and what they are made into: portals, names, credentials, how to log in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DIGESTS = {
    "none": ("none", "none"),
    "allow": ("allow", "allow"),
    "prefer": ("prefer", "prefer"),
    "header": ("crc32c", "none"),
    "data": ("none", "crc32c"),
    "both": ("crc32c", "crc32c"),
}
"""`--digest` to the preferences for the header digest and the data digest."""

LOG_LEVELS = ("error", "warning", "info", "debug")
DEFAULT_IDLE = 300
"""Seconds without use after which an automount logs out."""

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class Size(click.ParamType[int]):
    """A number of bytes, such as 4096, 4k, 1M or 10GiB (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """To bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError:
            self.fail(f"{value!r} is not a size; it looks like 4096, 4k, 1M or 10GiB", param, ctx)


class Lun(click.ParamType[int]):
    """A LUN as `isblk ls` prints it: decimal, or 0x hexadecimal for the long ones."""

    name = "lun"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """To its number."""
        from isblk.errors import IsblkError
        from isblk.scsi.lun_number import lun_from_bytes, parse_lun

        try:
            return value if isinstance(value, int) else lun_from_bytes(parse_lun(value))
        except IsblkError as error:
            self.fail(str(error), param, ctx)


def parse_size(text: str) -> int:
    """Bytes of a size such as '4k' or '10GiB'. Raises ValueError."""
    letters = text.strip().upper().removesuffix("IB").removesuffix("B") if not text.strip().isdigit() else text.strip()
    unit = letters[-1:] if letters[-1:].isalpha() else ""
    digits = letters[: len(letters) - len(unit)]
    if unit not in _UNITS or not digits.isdecimal() or not digits.isascii():
        raise ValueError(text)
    return int(digits) * _UNITS[unit]


def option_words(groups: tuple[str, ...], known: Sequence[str]) -> set[str]:
    """The words of every -o, taken apart at the commas. Raises UsageError for one that is not known, and for ro beside rw."""
    from isblk.errors import UsageError

    words = {word for group in groups for word in group.split(",") if word}
    unknown = sorted(words - set(known))
    if unknown:
        raise UsageError(f"unknown mount option {unknown[0]!r}: there are {', '.join(known)}")
    if {"ro", "rw"} <= words:
        raise UsageError("-o ro and -o rw contradict each other: give one of them")
    return words


def _stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


log_options = _stacked(
    click.option("-v", "--verbose", count=True, help="Log what happens; twice: everything."),
    click.option("-q", "--quiet", is_flag=True, help="Log errors alone."),
    click.option("--log-level", type=click.Choice(LOG_LEVELS), metavar="LEVEL", help="error, warning (default), info or debug."),
)
"""How much is logged; logs/output.py makes a level of it."""


def _absolute(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A file from here, also for a daemon, which works elsewhere; a credential of systemd is none (config.py)."""
    return value if not value or value.startswith("credential:") else os.path.abspath(value)


_portals = click.option(
    "-p",
    "--portal",
    "portals",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where the target listens; `mount`, `nbd`, `attach` and `doctor` use them all, others the first that answers.",
)
discovery_options = _stacked(
    click.option("--user", metavar="NAME", help="CHAP name to log in with; the secret comes from --secret-file or $ISBLK_SECRET."),
    click.option("--secret-file", metavar="FILE", callback=_absolute, help="File (mode 0600) whose first line is our CHAP secret."),
    click.option("--target-user", metavar="NAME", help="CHAP name that the target must prove to be (mutual CHAP)."),
    click.option("--target-secret-file", metavar="FILE", callback=_absolute, help="File of the target's secret; or $ISBLK_TARGET_SECRET."),
    click.option("--chap-algorithms", metavar="LIST", help="CHAP algorithms offered; default: sha3-256,sha256,sha1,md5."),
    click.option("--no-md5-retry", is_flag=True, help="Never retry a refused CHAP login with MD5 alone."),
    click.option(
        "--digest",
        type=click.Choice(list(DIGESTS)),
        default="allow",
        show_default=True,
        help="CRC32C digests: if the target insists (allow), if it can (prefer), or required on the header, the data or both.",
    ),
    click.option("--initiator-name", metavar="NAME", help="Our iSCSI name, instead of the configured one."),
    click.option(
        "--login-timeout", type=click.FloatRange(0.1, 3600), default=15, show_default=True, metavar="S", help="Seconds for a login."
    ),
    log_options,
    click.option("--trace", is_flag=True, help="Print every PDU as one line (never its payload)."),
    click.option(
        "--pcap", type=click.Path(dir_okay=False, resolve_path=True), metavar="FILE", help="Capture the wire for Wireshark, data included."
    ),
)
"""Who to be and how to log in; a discovery names its portal by itself."""
session_options = _stacked(_portals, discovery_options)
"""The same with where the target is."""

path_options = _stacked(
    click.option("--all-portals", is_flag=True, help="Use every portal that the target reports, too."),
    click.option("--policy", metavar="NAME", help="failover (default), round-robin, queue-length or service-time."),
    click.option("--failback", metavar="WHEN", help="Back to a better path: immediate (default), manual, or after so many seconds."),
    click.option("--no-path-retry", metavar="WHAT", help="Without a path: fail, queue, or wait so many seconds (default 120)."),
    click.option("--replacement-timeout", metavar="S", help="The same for one path: seconds, 0 fails at once, -1 waits for ever."),
    click.option("--noop-interval", metavar="S", help="Ping a silent target after so many seconds (default 5; 0 never)."),
    click.option("--noop-timeout", metavar="S", help="Give it so many seconds to answer (default 5)."),
    click.option(
        "--fence",
        metavar="POLICY",
        help="strict (default): repeat a write when the old one cannot land; fast: at once, at the risk of data.",
    ),
    click.option("--shared", is_flag=True, help="Other hosts use the logical unit too: never reset it."),
    click.option(
        "--queue-depth", metavar="N", help="Send at most so many requests at once over one path (default: what the target takes)."
    ),
)
"""How the paths to a target are used; isblk/config.py checks them."""

automount_options = _stacked(
    click.option("--automount/--no-automount", help="Show the file at once, log in when it is used, log out when it is not."),
    click.option(
        "--idle",
        type=click.FloatRange(0, 10_000_000),
        default=DEFAULT_IDLE,
        show_default=True,
        metavar="S",
        help="With --automount: log out after so many seconds without use; 0 never.",
    ),
)
"""Whether sessions are there all the time."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
lun_option = click.option("--lun", type=Lun(), metavar="N", help="The logical unit; not needed when there is one disk.")
