"""Command builders: the bytes of every CDB that isblk sends, one precompiled Struct each (SPC-4 chapter 6, SBC-3 chapter 5).

The READ and WRITE builders are on the hot path: `transfer_builders` chooses the 10- or the 16-byte form once for a device, and each
call afterwards is one `Struct.pack`. Their `flags` is the CDB's second byte (FUA, DPO): a pair of booleans would cost a test per I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

TEST_UNIT_READY = 0x00
INQUIRY = 0x12
MODE_SENSE_6 = 0x1A
READ_CAPACITY_10 = 0x25
READ_10 = 0x28
WRITE_10 = 0x2A
SYNCHRONIZE_CACHE_10 = 0x35
UNMAP = 0x42
MODE_SENSE_10 = 0x5A
PERSISTENT_RESERVE_IN = 0x5E
READ_16 = 0x88
WRITE_16 = 0x8A
SYNCHRONIZE_CACHE_16 = 0x91
WRITE_SAME_16 = 0x93
SERVICE_ACTION_IN_16 = 0x9E
REPORT_LUNS = 0xA0
MAINTENANCE_IN = 0xA3

FUA = 0x08  # force unit access: the data is on the medium before the status (SBC-3 5.34)
DPO = 0x10  # disable page out: do not keep these blocks in the cache

MODE_PAGE_CACHING = 0x08
MODE_PAGE_ALL = 0x3F

LAST_LBA_10 = 0xFFFFFFFF
MAX_BLOCKS_10 = 0xFFFF
MAX_BLOCKS_16 = 0xFFFFFFFF
UNMAP_HEADER_LENGTH = 8
UNMAP_DESCRIPTOR_LENGTH = 16
MAX_UNMAP_DESCRIPTORS = (0xFFFF - UNMAP_HEADER_LENGTH) // UNMAP_DESCRIPTOR_LENGTH

_READ_CAPACITY_16 = 0x10
_GET_LBA_STATUS = 0x12
_REPORT_TARGET_PORT_GROUPS = 0x0A
_READ_KEYS = 0x00
_DISABLE_BLOCK_DESCRIPTORS = 0x08
WRITE_SAME_UNMAP = 0x08
_WRITE_SAME_NO_DATA_OUT_BUFFER = 0x01

_inquiry = struct.Struct(">BBBHx").pack
_mode_sense_6 = struct.Struct(">BBBxBx").pack
_mode_sense_10 = struct.Struct(">BBB4xHx").pack
transfer_10 = struct.Struct(">BBIxHx").pack
transfer_16 = struct.Struct(">BBQIxx").pack
_persistent_reserve_in = struct.Struct(">BB5xHx").pack
_unmap = struct.Struct(">B6xHx").pack
_unmap_header = struct.Struct(">HH4x").pack
_unmap_descriptor = struct.Struct(">QI4x").pack
_report_luns = struct.Struct(">BxB3xIxx").pack
_maintenance_in = struct.Struct(">BB4xIxx").pack

TransferPacker = Callable[[int, int, int, int], bytes]
"""`(opcode, flags, lba, blocks) -> CDB` of READ or WRITE, `transfer_10` or `transfer_16` (SBC-3 5.11, 5.13, 5.34, 5.36): `lba` and `blocks`
in logical blocks, `flags` of FUA and DPO."""


def test_unit_ready() -> bytes:
    """TEST UNIT READY (SPC-4 6.47)."""
    return bytes(6)


def inquiry(allocation_length: int) -> bytes:
    """INQUIRY for the standard data (SPC-4 6.6); lengths in bytes."""
    return _inquiry(INQUIRY, 0, 0, allocation_length)


def inquiry_vpd(page: int, allocation_length: int) -> bytes:
    """INQUIRY with EVPD=1 for one vital product data page (SPC-4 6.6)."""
    return _inquiry(INQUIRY, 1, page, allocation_length)


def report_luns(allocation_length: int, select_report: int = 0) -> bytes:
    """REPORT LUNS (SPC-4 6.33): `select_report` 0 is every logical unit without the well-known ones. At least 16 bytes must be allowed."""
    return _report_luns(REPORT_LUNS, select_report, allocation_length)


def read_capacity_10() -> bytes:
    """READ CAPACITY (10) (SBC-3 5.15): 8 bytes come back."""
    return transfer_10(READ_CAPACITY_10, 0, 0, 0)


def read_capacity_16(allocation_length: int = 32) -> bytes:
    """READ CAPACITY (16) (SBC-3 5.16): 32 bytes come back."""
    return transfer_16(SERVICE_ACTION_IN_16, _READ_CAPACITY_16, 0, allocation_length)


def transfers(device_blocks: int, max_blocks: int) -> tuple[TransferPacker, int, int]:
    """How to pack a READ or WRITE for a device of `device_blocks` blocks with transfers of at most `max_blocks` blocks, and both opcodes.

    A function for each, as other commands have, would be a call more for each I/O.

    The 10-byte forms are preferred where they reach: every target has them, some small ones have no others.
    """
    if device_blocks - 1 <= LAST_LBA_10 and max_blocks <= MAX_BLOCKS_10:
        return transfer_10, READ_10, WRITE_10
    return transfer_16, READ_16, WRITE_16


def synchronize_cache_10(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE (10) (SBC-3 5.23): `blocks` 0 means to the end, so the default is the whole device."""
    return transfer_10(SYNCHRONIZE_CACHE_10, 0, lba, blocks)


def synchronize_cache_16(lba: int = 0, blocks: int = 0) -> bytes:
    """SYNCHRONIZE CACHE (16) (SBC-3 5.24)."""
    return transfer_16(SYNCHRONIZE_CACHE_16, 0, lba, blocks)


def mode_sense_6(page: int, allocation_length: int = 255) -> bytes:
    """MODE SENSE (6) for the current values of one page, without block descriptors (SPC-4 6.11)."""
    return _mode_sense_6(MODE_SENSE_6, _DISABLE_BLOCK_DESCRIPTORS, page, allocation_length)


def mode_sense_10(page: int, allocation_length: int = 255) -> bytes:
    """MODE SENSE (10) for the current values of one page, without block descriptors (SPC-4 6.12)."""
    return _mode_sense_10(MODE_SENSE_10, _DISABLE_BLOCK_DESCRIPTORS, page, allocation_length)


def unmap(parameter_list_length: int) -> bytes:
    """UNMAP (SBC-3 5.28): its descriptors travel as data, see `unmap_parameters`."""
    return _unmap(UNMAP, parameter_list_length)


def unmap_parameters(extents: Iterable[tuple[int, int]]) -> bytes:
    """UNMAP parameter list of `(lba, blocks)` extents (SBC-3 5.28.2); at most MAX_UNMAP_DESCRIPTORS fit."""
    descriptors = b"".join(_unmap_descriptor(lba, blocks) for lba, blocks in extents)
    # The first length counts what follows itself: the other six bytes of the header and the descriptors.
    return _unmap_header(UNMAP_HEADER_LENGTH - 2 + len(descriptors), len(descriptors)) + descriptors


def write_same_16(lba: int, blocks: int, unmap: bool = False, no_data: bool = False) -> bytes:
    """WRITE SAME (16) (SBC-3 5.45): one block of data is repeated over `blocks` blocks; `no_data` is NDOB (zeroes, no data sent)."""
    flags = (WRITE_SAME_UNMAP if unmap else 0) | (_WRITE_SAME_NO_DATA_OUT_BUFFER if no_data else 0)
    return transfer_16(WRITE_SAME_16, flags, lba, blocks)


def get_lba_status(lba: int, allocation_length: int) -> bytes:
    """GET LBA STATUS (SBC-3 5.6): provisioning of the blocks from `lba` on."""
    return transfer_16(SERVICE_ACTION_IN_16, _GET_LBA_STATUS, lba, allocation_length)


def report_target_port_groups(allocation_length: int) -> bytes:
    """REPORT TARGET PORT GROUPS, length-only header (SPC-4 6.37)."""
    return _maintenance_in(MAINTENANCE_IN, _REPORT_TARGET_PORT_GROUPS, allocation_length)


def persistent_reserve_in_read_keys(allocation_length: int) -> bytes:
    """PERSISTENT RESERVE IN, READ KEYS (SPC-4 6.15.2): 8 bytes of header and 8 for each registered I_T nexus come back."""
    return _persistent_reserve_in(PERSISTENT_RESERVE_IN, _READ_KEYS, allocation_length)
