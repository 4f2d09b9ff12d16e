"""What a command is to the device server: its row in the table of commands, whom it comes from, how it ends (SAM-5 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from isblk.target import check

if TYPE_CHECKING:
    from isblk.target.unit import Unit

Data = bytes | bytearray | memoryview


class Nexus(NamedTuple):
    """An I_T nexus: initiator port (name and ISID) and target port (portal group tag) (RFC 7143 4.4.1)."""

    initiator: str
    isid: bytes
    tpgt: int


class Outcome(NamedTuple):
    """How a command ended: SAM status, sense data, Data-In, and how many bytes of Data-Out the CDB asked for."""

    status: int
    sense: bytes = b""
    data: Data = b""
    wanted: int = 0


class Command(NamedTuple):
    """A row of the table: the CDB's length, the function, and what it needs; `any_device` exists on units without a medium too."""

    length: int
    run: Callable[[Unit, bytes, Data, Nexus], Outcome]
    medium: bool = True
    thin: bool = False
    any_device: bool = False

    def allowed(self, unit: Unit) -> bool:
        return self.any_device or (unit.has_medium and (not self.thin or unit.config.thin))


Key = tuple[int, int]
"""Operation code and service action (0 where the code has none)."""
WITH_ACTIONS = frozenset((0x5E, 0x9E, 0xA3))


def key_of(cdb: bytes) -> Key:
    return cdb[0], cdb[1] & 0x1F if cdb[0] in WITH_ACTIONS else 0


def answer(data: bytes, allocation_length: int) -> Outcome:
    """Data-In cut to the allocation length, which is no error (SPC-4 4.2.5.6)."""
    return Outcome(check.GOOD, data=data[:allocation_length])
