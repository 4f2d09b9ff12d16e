"""SendTargets: what a portal knows of targets and of the portals that lead to them (RFC 7143 appendix C)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from isblk.errors import ProtocolError
from isblk.iscsi.keys import RESERVED
from isblk.iscsi.names import Portal, decode_name, printable
from isblk.iscsi.text import Pairs, quoted

MAX_RECORDS = 16384
MAX_PORTALS = 1024


@dataclass(frozen=True)
class TargetRecord:
    """One target: its name as it sent it (print it with names.printable), and where it listens."""

    name: str
    portals: tuple[Portal, ...]

    def __str__(self) -> str:
        """As iscsiadm prints it: a line 'ADDRESS:PORT,TPGT NAME' for each portal."""
        return "\n".join(f"{portal} {printable(self.name)}" for portal in self.portals)


class TextConnection(Protocol):
    """What discovery needs of a connection in full feature phase: one Text negotiation, long answers put together."""

    async def text(self, pairs: Iterable[tuple[str, str]]) -> Pairs:
        """Send pairs, and return the ordered pairs of the whole answer."""


def parse_records(pairs: Iterable[tuple[str, str]], asked: Portal) -> list[TargetRecord]:
    """The records of an answer to SendTargets, in its order. Raises ProtocolError.

    A target without addresses is reached at the portal that was `asked`. A target that comes twice is one record; other keys are no
    part of a record and are passed over.
    """
    records: dict[str, dict[Portal, None]] = {}
    portals: dict[Portal, None] | None = None
    for key, value in pairs:
        if key == "TargetName":
            portals = records.setdefault(decode_name(value), {})
        elif key == "TargetAddress":
            _add(portals, value)
        elif key == "SendTargets" and value in RESERVED:
            raise ProtocolError(f"the portal {asked} does not tell its targets: it answered SendTargets={value}")
        if len(records) > MAX_RECORDS:
            raise ProtocolError(f"the portal {asked} reports more than {MAX_RECORDS} targets")
    return [TargetRecord(name, tuple(found) or (asked,)) for name, found in records.items()]


def _add(portals: dict[Portal, None] | None, address: str) -> None:
    if portals is None:
        raise ProtocolError(f"the address {quoted(address)} came before any target's name (RFC 7143 appendix C)")
    portals[Portal.from_target_address(address)] = None
    if len(portals) > MAX_PORTALS:
        raise ProtocolError(f"a target with more than {MAX_PORTALS} addresses")


async def send_targets(connection: TextConnection, portal: Portal) -> list[TargetRecord]:
    """Ask for all targets over `connection`, a discovery session with `portal`. Raises ProtocolError, PathLost."""
    return parse_records(await connection.text([("SendTargets", "All")]), portal)
