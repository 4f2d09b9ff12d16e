"""LUN numbers: the eight bytes of SAM-5 4.7 and the number a person types, both ways, and REPORT LUNS (SPC-4 6.33).

What REPORT LUNS gave is kept and sent back as those eight bytes: a target may answer at flat 5 and not at peripheral 5. A number is
for people, and it is reversible for every address that SAM allows:

    0..255        peripheral addressing (00b), bus 0
    256..16383    flat addressing (01b)
    16384..32767  flat addressing of number minus 16384: the way to name flat 0..255, and what Linux shows for every flat LUN
    the rest      the eight bytes as one 64-bit number (hierarchies, logical unit 10b and extended 11b addressing)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from isblk.errors import ProtocolError, UsageError

LUN_LENGTH = 8
REPORT_LUNS_HEADER_LENGTH = 8

_PERIPHERAL_LUNS = 256
_FLAT = 0x4000
_FLAT_LUNS = 0x4000
_METHODS = ("peripheral", "flat", "logical unit", "extended")
_LUN = struct.Struct(">Q")
_LIST_LENGTH = struct.Struct(">I4x")


def lun_to_bytes(number: int) -> bytes:
    """The eight bytes of a LUN number as the table above has it; UsageError outside 0..2^64-1."""
    if not 0 <= number < 1 << 64:
        raise UsageError(f"LUN {number} is outside 0..{(1 << 64) - 1}; `isblk ls TARGET` lists the LUNs there are")
    if number < _PERIPHERAL_LUNS:
        return _LUN.pack(number << 48)
    if number < _FLAT + _FLAT_LUNS:
        return _LUN.pack((_FLAT | number) << 48)
    return _LUN.pack(number)


def lun_from_bytes(lun: bytes | memoryview) -> int:
    """The number of eight LUN bytes; ProtocolError on another length and on bytes that are no SAM address."""
    if len(lun) != LUN_LENGTH:
        raise ProtocolError(f"a LUN has 8 bytes, not {len(lun)}")
    raw: int = _LUN.unpack(lun)[0]
    first, lower_levels = raw >> 48, raw & 0xFFFFFFFFFFFF
    if lower_levels == 0:
        if first < _PERIPHERAL_LUNS:
            return first
        if _FLAT <= first < _FLAT + _FLAT_LUNS:
            return first - _FLAT if first >= _FLAT + _PERIPHERAL_LUNS else first
    if raw < _FLAT + _FLAT_LUNS:
        # Bus 0 at the first level is the end of the address (SAM-5 4.7.7.2); as a number this would pass for another LUN.
        raise ProtocolError(f"LUN {bytes(lun).hex()} goes on below a first level that ends it")
    return raw


def parse_lun(text: str) -> bytes:
    """The eight bytes of a LUN as a person writes it, decimal or 0x hexadecimal; UsageError on anything else."""
    try:
        number = int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        raise UsageError(f"{text!r} is not a LUN number; write a decimal number or 0x and hexadecimal digits") from None
    return lun_to_bytes(number)


def lun_text(lun: bytes) -> str:
    """A LUN for people, accepted by `parse_lun`: decimal where the number is short, else all 64 bits in hexadecimal."""
    number = lun_from_bytes(lun)
    return str(number) if number < _FLAT + _FLAT_LUNS else f"0x{number:016x}"


def addressing_method(lun: bytes) -> str:
    """The addressing method of the first level (SAM-5 4.7.6): peripheral, flat, logical unit or extended."""
    return _METHODS[lun[0] >> 6]


def in_sam_order(luns: Iterable[bytes]) -> list[bytes]:
    """LUNs in ascending order: SAM's order is that of the bytes, for the method leads and each level is big-endian."""
    return sorted(luns)


@dataclass(frozen=True)
class LunList:
    """What REPORT LUNS returned: each LUN once, in the target's order.

    `missing` counts the bytes of the list that did not arrive; when it is not 0, ask again with `allocation_length` bytes.
    """

    luns: tuple[bytes, ...]
    missing: int
    allocation_length: int


def parse_report_luns(data: bytes | memoryview) -> LunList:
    """Parse REPORT LUNS data (SPC-4 6.33); ProtocolError when not even the header is there.

    A truncated list is seen in LUN LIST LENGTH, never in the residual (RFC 7143 11.4.5).
    """
    if len(data) < REPORT_LUNS_HEADER_LENGTH:
        raise ProtocolError(f"REPORT LUNS returned {len(data)} bytes, not even its header of {REPORT_LUNS_HEADER_LENGTH}")
    list_length: int = _LIST_LENGTH.unpack_from(data)[0]
    list_length -= list_length % LUN_LENGTH
    there = min(list_length, (len(data) - REPORT_LUNS_HEADER_LENGTH) // LUN_LENGTH * LUN_LENGTH)
    end = REPORT_LUNS_HEADER_LENGTH + there
    found = (bytes(data[at : at + LUN_LENGTH]) for at in range(REPORT_LUNS_HEADER_LENGTH, end, LUN_LENGTH))
    return LunList(tuple(dict.fromkeys(found)), list_length - there, REPORT_LUNS_HEADER_LENGTH + list_length)
