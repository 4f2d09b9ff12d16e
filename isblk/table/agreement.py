"""What contradicts itself in an entry, given what the configuration says of its target: each option is right, but not together. PURE."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from isblk.block.choose import NoPathRetry
from isblk.errors import IsblkError
from isblk.export.fuseoptions import DEFAULT_ENGINE, Engine
from isblk.iscsi.names import Portal
from isblk.scsi.lun_number import lun_from_bytes, parse_lun
from isblk.table.entry import Entry
from isblk.table.options import Kind
from isblk.table.problems import Problems, Say

CONTRADICTIONS = (
    ("ro", "rw"),
    ("auto", "noauto"),
    ("direct_io", "writeback"),
    ("tls-certificates", "tls-psk"),
    ("all-portals", "automount"),
)
NEEDS = (
    ("secret-file", "user"),
    ("target-secret-file", "target-user"),
    ("target-user", "user"),
    ("idle", "automount"),
)
"""An option, and the one without which it says nothing. The second may stand in the configuration, or in the URL (user)."""


@dataclass(frozen=True)
class Effective:
    """What holds for an entry: its own options before what the configuration says of its target."""

    entry: Entry
    configured: Mapping[str, Any]

    def text(self, name: str) -> str | None:
        """The value of a setting, as text."""
        own = self.entry.value(name)
        if own is not None:
            return own
        if name == "user" and self.entry.url is not None and self.entry.url.user is not None:
            return self.entry.url.user
        value = self.configured.get(name)
        return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    def has(self, name: str) -> bool:
        """Whether it is said anywhere."""
        return self.entry.has(name) or self.text(name) not in (None, "False")

    @property
    def portals(self) -> tuple[str, ...]:
        """Where the target listens: the table, else the URL, else the configuration."""
        own = self.entry.values("portal")
        if own or self.entry.url is not None:
            return own or (str(self.entry.url.portal),) if self.entry.url is not None else own
        value = self.configured.get("portal", ())
        return (value,) if isinstance(value, str) else tuple(value)


def examine(effective: Effective, problems: Problems, doubtful: bool = False) -> None:
    """Every contradiction of an entry; that it has no portal is not said of a `doubtful` one, whose portal may be what is wrong with it.

    What the configuration says wrongly by itself is no problem of the table's.
    """
    if not effective.portals and not doubtful:
        problems.at(effective.entry.line, effective.entry.columns[0], Say.NO_PORTAL, name=effective.entry.name)
    for look in _LOOKS:
        look(effective, problems)


def _at(effective: Effective, name: str, problems: Problems, say: Say, /, **words: object) -> None:
    problems.at(effective.entry.line, effective.entry.column(name), say, **words)


def _words(effective: Effective, problems: Problems) -> None:
    for name, other in CONTRADICTIONS:
        if effective.entry.has(name) and effective.entry.has(other):
            _at(effective, other, problems, Say.CONTRADICTION, name=name, other=other)
    for name, other in NEEDS:
        if effective.entry.has(name) and not effective.has(other):
            _at(effective, name, problems, Say.NEEDS, name=name, other=other)


def _url(effective: Effective, problems: Problems) -> None:
    entry = effective.entry
    if entry.url is None:
        return
    if entry.has("portal"):
        _at(effective, "portal", problems, Say.URL_PORTAL)
    lun = entry.value("lun")
    if lun is not None and entry.url.lun is not None and lun_from_bytes(parse_lun(lun)) != entry.url.lun:
        _at(effective, "lun", problems, Say.URL_LUN, url=entry.url.lun, lun=lun)


def _portals(effective: Effective, problems: Problems) -> None:
    portals = effective.portals
    seen: set[tuple[str, int]] = set()
    columns = [given.column for given in effective.entry.options if given.name == "portal"]
    for text, column in zip(portals, columns, strict=False):
        portal = Portal.parse(text)
        if (portal.host, portal.port) in seen:
            problems.at(effective.entry.line, column, Say.SAME_PORTAL, portal=portal)
        seen.add((portal.host, portal.port))
    if effective.text("noop-interval") == "0" and (len(portals) > 1 or effective.has("all-portals")):
        _at(effective, "noop-interval", problems, Say.NO_PINGS)


def _waits(effective: Effective, problems: Problems) -> None:
    retry, replacement = effective.text("no-path-retry"), effective.text("replacement-timeout")
    wait = _seconds(retry, replacement)
    if wait is None:
        own = "replacement-timeout" if effective.entry.has("replacement-timeout") else "no-path-retry"
        _at(effective, own, problems, Say.TWO_RETRIES, one=retry, other=replacement)
    timeout = effective.entry.value("device-timeout")
    if timeout is not None and wait is not None and float(timeout) <= wait:
        words = {"timeout": timeout, "wait": "for ever" if math.isinf(wait) else f"{wait:g} s"}
        _at(effective, "device-timeout", problems, Say.SHORT_DEVICE_TIMEOUT, **words)


def _seconds(retry: str | None, replacement: str | None) -> float | None:
    """How long requests wait without a path; None where two words contradict each other. A wrong word of the configuration says nothing."""
    said = []
    for text, parse in ((retry, _retry_seconds), (replacement, _replacement_seconds)):
        with suppress(IsblkError, ValueError):
            said += [] if text is None else [parse(text)]
    return None if len(set(said)) > 1 else said[0] if said else 120.0


def _retry_seconds(text: str) -> float:
    return NoPathRetry.parse(text).seconds


def _replacement_seconds(text: str) -> float:
    return math.inf if text == "-1" else float(text)


def _fuse(effective: Effective, problems: Problems) -> None:
    if effective.entry.has("writeback") and (effective.text("fuse-engine") or DEFAULT_ENGINE.value) == Engine.PYFUSE3.value:
        _at(effective, "writeback", problems, Say.WRITEBACK_ENGINE)


def _nbd(effective: Effective, problems: Problems) -> None:
    entry = effective.entry
    if entry.kind is not Kind.NBD or entry.is_path or any(map(entry.has, ("tls-certificates", "tls-psk", "insecure"))):
        return
    if not _is_loopback(Portal.parse(entry.where).host):
        problems.at(entry.line, entry.columns[1], Say.OPEN_TO_ALL, where=entry.where)


def _is_loopback(host: str) -> bool:
    """By its looks: a name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("localhost", "localhost.localdomain", "ip6-localhost")


_LOOKS: tuple[Callable[[Effective, Problems], None], ...] = (_words, _url, _portals, _waits, _fuse, _nbd)
