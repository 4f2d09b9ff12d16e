"""What a unit answers about its blocks and paths: capacity, mode pages, LBA status, port groups, reservation keys (SBC-3 5, SPC-4 6).

As in inquiry.py, lengths are clipped to what arrived and ProtocolError is the only exception. Two neighbours hold the rest of what comes
back: inquiry.py (identity and limits) and lun_number.py (REPORT LUNS).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from isblk.errors import ProtocolError
from isblk.scsi.cdb import MODE_PAGE_CACHING

CAPACITY_10_LENGTH = 8
CAPACITY_16_LENGTH = 32
LBA_STATUS_HEADER_LENGTH = 8
LBA_STATUS_DESCRIPTOR_LENGTH = 16

_CAPACITY_10 = struct.Struct(">II")
_CAPACITY_16 = struct.Struct(">QIBBH")
_MODE_HEADER_6 = struct.Struct(">BBBB")
_MODE_HEADER_10 = struct.Struct(">HBB2xH")
_LBA_STATUS_HEADER = struct.Struct(">I4x")
_LBA_STATUS = struct.Struct(">QIB3x")
_LENGTH = struct.Struct(">I")
_PORT_GROUP = struct.Struct(">BBHxBBB")
_PORT = struct.Struct(">2xH")
_KEYS_HEADER = struct.Struct(">II")
_KEY_LENGTH = 8


@dataclass(frozen=True)
class Capacity:
    """READ CAPACITY: `blocks` logical blocks of `block_length` bytes; the rest is what only the 16-byte form knows."""

    blocks: int
    block_length: int
    blocks_per_physical_block: int = 1
    lowest_aligned_lba: int = 0
    provisioning_enabled: bool = False  # LBPME: thin or resource provisioned
    reads_zero: bool = False  # LBPRZ
    protection: bool = False  # PROT_EN

    @property
    def size(self) -> int:
        """The device in bytes."""
        return self.blocks * self.block_length


def parse_capacity_10(data: bytes | memoryview) -> Capacity | None:
    """READ CAPACITY (10) (SBC-3 5.15.2); None when the device is too large for it: ask READ CAPACITY (16)."""
    if len(data) < CAPACITY_10_LENGTH:
        raise ProtocolError(f"READ CAPACITY (10) returned {len(data)} bytes instead of {CAPACITY_10_LENGTH}")
    last_lba, block_length = _CAPACITY_10.unpack_from(data)
    return None if last_lba == 0xFFFFFFFF else Capacity(last_lba + 1, block_length)


def parse_capacity_16(data: bytes | memoryview) -> Capacity:
    """READ CAPACITY (16) (SBC-3 5.16.2); twelve bytes are enough, the flags behind them are 0 when cut off."""
    if len(data) < 12:
        raise ProtocolError(f"READ CAPACITY (16) returned {len(data)} bytes instead of {CAPACITY_16_LENGTH}")
    last_lba, block_length, protection, exponents, alignment = _CAPACITY_16.unpack_from(bytes(data).ljust(_CAPACITY_16.size, b"\0"))
    return Capacity(
        blocks=last_lba + 1,
        block_length=block_length,
        blocks_per_physical_block=1 << (exponents & 0x0F),
        lowest_aligned_lba=alignment & 0x3FFF,
        provisioning_enabled=bool(alignment & 0x8000),
        reads_zero=bool(alignment & 0x4000),
        protection=bool(protection & 0x01),
    )


@dataclass(frozen=True)
class Mode:
    """MODE SENSE: the device-specific byte of a disk and the caching page. `write_cache` is None when that page did not come."""

    write_protected: bool  # WP
    fua: bool  # DPOFUA: the FUA and DPO bits of a CDB are obeyed
    write_cache: bool | None  # WCE


def parse_mode_6(data: bytes | memoryview) -> Mode:
    """MODE SENSE (6) data (SPC-4 7.5.5); ProtocolError without its whole header."""
    if len(data) < _MODE_HEADER_6.size:
        raise ProtocolError(f"MODE SENSE (6) returned {len(data)} bytes, not even its header of {_MODE_HEADER_6.size}")
    length, _, flags, descriptors = _MODE_HEADER_6.unpack_from(data)
    return _mode(flags, bytes(data[_MODE_HEADER_6.size + descriptors : 1 + length]))


def parse_mode_10(data: bytes | memoryview) -> Mode:
    """MODE SENSE (10) data (SPC-4 7.5.5); ProtocolError without its whole header."""
    if len(data) < _MODE_HEADER_10.size:
        raise ProtocolError(f"MODE SENSE (10) returned {len(data)} bytes, not even its header of {_MODE_HEADER_10.size}")
    length, _, flags, descriptors = _MODE_HEADER_10.unpack_from(data)
    return _mode(flags, bytes(data[_MODE_HEADER_10.size + descriptors : 2 + length]))


def _mode(flags: int, pages: bytes) -> Mode:
    write_cache = None
    for code, page in _mode_pages(pages):
        if code == MODE_PAGE_CACHING and len(page) > 2:
            write_cache = bool(page[2] & 0x04)
    return Mode(bool(flags & 0x80), bool(flags & 0x10), write_cache)


def _mode_pages(pages: bytes) -> Iterator[tuple[int, bytes]]:
    """Each page's code and bytes, header included; subpages (SPF=1) have a header of four bytes and are passed over."""
    at = 0
    while at + 1 < len(pages):
        if pages[at] & 0x40:
            at += 4 + int.from_bytes(pages[at + 2 : at + 4], "big")
        else:
            end = at + 2 + pages[at + 1]
            yield pages[at] & 0x3F, pages[at:end]
            at = end


class Provisioning(IntEnum):
    """The provisioning status of a block (SBC-3 5.6.2); reserved codes count as mapped, the safe reading."""

    MAPPED = 0
    DEALLOCATED = 1
    ANCHORED = 2


@dataclass(frozen=True)
class LbaStatus:
    """`blocks` logical blocks from `lba` on have one provisioning status."""

    lba: int
    blocks: int
    provisioning: Provisioning


def parse_lba_status(data: bytes | memoryview) -> tuple[LbaStatus, ...]:
    """GET LBA STATUS (SBC-3 5.6.2): the whole descriptors that arrived; they may cover less than was asked about."""
    if len(data) < LBA_STATUS_HEADER_LENGTH:
        raise ProtocolError(f"GET LBA STATUS returned {len(data)} bytes, not even its header of {LBA_STATUS_HEADER_LENGTH}")
    length = _LBA_STATUS_HEADER.unpack_from(data)[0]
    end = min(len(data), 4 + length) - LBA_STATUS_DESCRIPTOR_LENGTH
    found = (_LBA_STATUS.unpack_from(data, at) for at in range(LBA_STATUS_HEADER_LENGTH, end + 1, LBA_STATUS_DESCRIPTOR_LENGTH))
    return tuple(LbaStatus(lba, blocks, _provisioning(status & 0x0F)) for lba, blocks, status in found)


def _provisioning(code: int) -> Provisioning:
    return Provisioning(code) if code <= Provisioning.ANCHORED else Provisioning.MAPPED


class AccessState(IntEnum):
    """Asymmetric access state of a target port group (SPC-4 table 284)."""

    OPTIMIZED = 0x0
    NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    LBA_DEPENDENT = 0x4
    OFFLINE = 0xE
    TRANSITIONING = 0xF


@dataclass(frozen=True)
class TargetPortGroup:
    """One group of REPORT TARGET PORT GROUPS; a reserved state is reported as UNAVAILABLE, so that no path is chosen for it."""

    identifier: int
    state: AccessState
    preferred: bool
    supported_states: int  # the target's byte: T O LBD U S AN AO from bit 7 (without bit 5) down
    status_code: int
    ports: tuple[int, ...]  # relative target port identifiers


def parse_target_port_groups(data: bytes | memoryview) -> tuple[TargetPortGroup, ...]:
    """REPORT TARGET PORT GROUPS, both header formats (SPC-4 6.37); a group that is cut short is left out."""
    if len(data) < _LENGTH.size:
        raise ProtocolError(f"REPORT TARGET PORT GROUPS returned {len(data)} bytes, not even its length")
    payload = bytes(data[_LENGTH.size : _LENGTH.size + _LENGTH.unpack_from(data)[0]])
    return tuple(_port_groups(payload[4:] if payload[:1] and payload[0] & 0x70 == 0x10 else payload))


def _port_groups(payload: bytes) -> Iterator[TargetPortGroup]:
    at = 0
    while at + _PORT_GROUP.size <= len(payload):
        flags, supported, identifier, status, _, count = _PORT_GROUP.unpack_from(payload, at)
        start = at + _PORT_GROUP.size
        at = start + count * _PORT.size
        if at > len(payload):
            return
        ports = tuple(_PORT.unpack_from(payload, port)[0] for port in range(start, at, _PORT.size))
        yield TargetPortGroup(identifier, _access_state(flags & 0x0F), bool(flags & 0x80), supported, status, ports)


def _access_state(code: int) -> AccessState:
    try:
        return AccessState(code)
    except ValueError:
        return AccessState.UNAVAILABLE


class ReservationKeys(NamedTuple):
    """READ KEYS: the generation counts every change of a registration; one key for each registered I_T nexus, equal ones included.

    `clipped`: more keys are registered than arrived, so what is here proves nothing about keys that are not.
    """

    generation: int
    keys: tuple[int, ...]
    clipped: bool


def parse_reservation_keys(data: bytes | memoryview) -> ReservationKeys:
    """PERSISTENT RESERVE IN, READ KEYS (SPC-4 6.15.2): the whole keys that arrived; ProtocolError without the whole header."""
    if len(data) < _KEYS_HEADER.size:
        raise ProtocolError(f"READ KEYS returned {len(data)} bytes, not even its header of {_KEYS_HEADER.size}")
    generation, length = _KEYS_HEADER.unpack_from(data)
    end = min(len(data), _KEYS_HEADER.size + length) - _KEY_LENGTH
    keys = tuple(int.from_bytes(data[at : at + _KEY_LENGTH], "big") for at in range(_KEYS_HEADER.size, end + 1, _KEY_LENGTH))
    return ReservationKeys(generation, keys, len(keys) < length // _KEY_LENGTH)
