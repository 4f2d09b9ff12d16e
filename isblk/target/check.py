"""Sense data as the device server makes it: the exception that ends a command with CHECK CONDITION (SPC-4 4.5, SAM-5 5.3)."""

from __future__ import annotations

from enum import IntEnum

GOOD = 0x00
CHECK_CONDITION = 0x02
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28


class Key(IntEnum):
    """Sense keys (SPC-4 table 48)."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


def fixed_sense(key: int, asc: int, ascq: int, information: int | None = None) -> bytes:
    """Fixed-format sense data, 18 bytes (SPC-4 4.5.3); `information` is left out when it does not fit 32 bits."""
    valid = information is not None and information <= 0xFFFFFFFF
    head = bytes((0x70 | (0x80 if valid else 0), 0, key))
    info = (information or 0) if valid else 0
    return head + info.to_bytes(4, "big") + bytes((10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))


class Check(Exception):
    """The command ends with CHECK CONDITION; carries the sense data. It never leaves the device server."""

    def __init__(self, key: Key, asc: int, ascq: int, information: int | None = None) -> None:
        super().__init__(f"{key.name} {asc:02x}/{ascq:02x}")
        self.sense = fixed_sense(key, asc, ascq, information)


def invalid_opcode() -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x20, 0x00)


def out_of_range(lba: int) -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x21, 0x00, lba)


def invalid_field() -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x24, 0x00)


def no_such_unit() -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x25, 0x00)


def invalid_parameter() -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x26, 0x00)


def short_parameter_list() -> Check:
    return Check(Key.ILLEGAL_REQUEST, 0x1A, 0x00)


def write_protected() -> Check:
    return Check(Key.DATA_PROTECT, 0x27, 0x00)


def no_space() -> Check:
    return Check(Key.DATA_PROTECT, 0x27, 0x07)
