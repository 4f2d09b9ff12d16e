"""INQUIRY: who a logical unit says it is, its standard data and VPD pages 00, 80, 83, B0, B1, B2 (SPC-4 6.6 and 7.8, SBC-3 6.6).

No length that came with the data is believed: each is clipped to what arrived, a field that did not arrive is absent or 0 (for each field
read here that is also SPC's "not reported"), and the only exception is ProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from isblk.errors import ProtocolError

VPD_SUPPORTED_PAGES = 0x00
VPD_SERIAL_NUMBER = 0x80
VPD_DEVICE_IDENTIFICATION = 0x83
VPD_BLOCK_LIMITS = 0xB0
VPD_BLOCK_CHARACTERISTICS = 0xB1
VPD_LOGICAL_BLOCK_PROVISIONING = 0xB2

DEVICE_TYPE_DISK = 0x00
DEVICE_TYPES = {
    0x00: "disk",
    0x01: "tape",
    0x03: "processor",
    0x04: "write-once",
    0x05: "cd/dvd",
    0x07: "optical disk",
    0x08: "medium changer",
    0x0C: "storage array controller",
    0x0D: "enclosure",
    0x0E: "simplified disk",
    0x11: "object storage",
    0x14: "zoned disk",
    0x1E: "well-known",
    0x1F: "none",
}

_MIN_STANDARD_LENGTH = 5
_VPD_HEADER = struct.Struct(">BBH")
_DESIGNATOR_HEADER_LENGTH = 4
# Offsets count from the end of the page's four-byte header; pages of older standards are shorter and are filled with zeroes.
_BLOCK_LIMITS = struct.Struct(">xBHIIIIIIIQ")
_BLOCK_CHARACTERISTICS = struct.Struct(">HxB")
_BLOCK_PROVISIONING = struct.Struct(">BBB")


@dataclass(frozen=True)
class Inquiry:
    """Standard INQUIRY data. Texts are stripped, with a `?` for each byte that is not printable ASCII."""

    device_type: int
    qualifier: int  # 0: connected; 1: could be, is not; 3: no logical unit can be here
    removable: bool
    version: int
    protection: bool
    target_port_group_support: int  # TPGS: bit 0 implicit, bit 1 explicit asymmetric access
    vendor: str
    product: str
    revision: str

    @property
    def is_disk(self) -> bool:
        """A connected direct access block device, the only type that isblk mounts."""
        return self.qualifier == 0 and self.device_type == DEVICE_TYPE_DISK

    @property
    def type_text(self) -> str:
        """The peripheral device type in words."""
        return DEVICE_TYPES.get(self.device_type, f"type 0x{self.device_type:02x}")


class Association(IntEnum):
    """What a designator names (SPC-4 7.8.5)."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2
    RESERVED = 3


class CodeSet(IntEnum):
    """How a designator is written."""

    BINARY = 1
    ASCII = 2
    UTF8 = 3


class DesignatorType(IntEnum):
    """What kind of name a designator is; others of SPC-4 table 595 keep their number."""

    VENDOR_SPECIFIC = 0
    T10_VENDOR_ID = 1
    EUI_64 = 2
    NAA = 3
    RELATIVE_TARGET_PORT = 4
    TARGET_PORT_GROUP = 5
    LOGICAL_UNIT_GROUP = 6
    SCSI_NAME = 8


@dataclass(frozen=True)
class Designator:
    """One entry of VPD page 83; `code_set` and `type` stay plain numbers, for a target may send ones that SPC-4 does not know."""

    association: Association
    code_set: int
    type: int
    value: bytes


@dataclass(frozen=True)
class BlockLimits:
    """VPD page B0, in logical blocks; 0 is "no limit reported"."""

    max_compare_and_write: int = 0
    optimal_granularity: int = 0
    max_transfer: int = 0
    optimal_transfer: int = 0
    max_unmap_blocks: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity: int = 0
    unmap_alignment: int = 0  # the first block of the first granule, below `unmap_granularity`
    max_write_same: int = 0


@dataclass(frozen=True)
class BlockCharacteristics:
    """VPD page B1: `rotation_rate` is 1 for a medium that does not rotate, else revolutions a minute, 0 unknown."""

    rotation_rate: int = 0

    @property
    def rotational(self) -> bool:
        """True when the medium is known to rotate (rates below 401 hex are reserved)."""
        return 0x0401 <= self.rotation_rate <= 0xFFFE


@dataclass(frozen=True)
class BlockProvisioning:
    """VPD page B2: which commands deallocate, and whether deallocated blocks read as zeroes (LBPRZ)."""

    unmap: bool = False  # LBPU
    write_same_16_unmap: bool = False  # LBPWS
    write_same_10_unmap: bool = False  # LBPWS10
    reads_zero: bool = False  # LBPRZ
    provisioning_type: int = 0  # 0 not reported or full, 1 resource, 2 thin


def parse_inquiry(data: bytes | memoryview) -> Inquiry:
    """Parse standard INQUIRY data; ProtocolError when fewer than its first five bytes came."""
    if len(data) < _MIN_STANDARD_LENGTH:
        raise ProtocolError(f"INQUIRY returned {len(data)} bytes; its data has at least {_MIN_STANDARD_LENGTH}")
    there = bytes(data[: _MIN_STANDARD_LENGTH + data[4]])
    head = there.ljust(8, b"\0")
    return Inquiry(
        device_type=head[0] & 0x1F,
        qualifier=head[0] >> 5,
        removable=bool(head[1] & 0x80),
        version=head[2],
        protection=bool(head[5] & 0x01),
        target_port_group_support=head[5] >> 4 & 0x03,
        vendor=printable(there[8:16]),
        product=printable(there[16:32]),
        revision=printable(there[32:36]),
    )


def printable(raw: bytes) -> str:
    """Text of an ASCII field of the target: padding stripped, `?` for what must not reach a terminal or a log."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in raw.strip(b" \0"))


def vpd_payload(page: int, data: bytes | memoryview) -> bytes:
    """What follows the header of a VPD page, clipped to what arrived; ProtocolError on another page than the one asked for."""
    if len(data) < _VPD_HEADER.size:
        raise ProtocolError(f"VPD page {page:02X} has {len(data)} bytes, not even its header of {_VPD_HEADER.size}")
    _, code, length = _VPD_HEADER.unpack_from(data)
    if code != page:
        raise ProtocolError(f"asked for VPD page {page:02X}, got page {code:02X}")
    return bytes(data[_VPD_HEADER.size : _VPD_HEADER.size + length])


def vpd_missing(data: bytes | memoryview) -> int:
    """Bytes of a VPD page that did not fit the allocation; 0 for a whole page or one without a header."""
    if len(data) < _VPD_HEADER.size:
        return 0
    length: int = _VPD_HEADER.unpack_from(data)[2]
    return max(0, _VPD_HEADER.size + length - len(data))


def parse_supported_pages(data: bytes | memoryview) -> frozenset[int]:
    """VPD page 00: the codes of the pages there are."""
    return frozenset(vpd_payload(VPD_SUPPORTED_PAGES, data))


def parse_serial_number(data: bytes | memoryview) -> str:
    """VPD page 80: the unit serial number; empty when the target has none (SPC says spaces, some send zeroes)."""
    return printable(vpd_payload(VPD_SERIAL_NUMBER, data))


def parse_device_identification(data: bytes | memoryview) -> tuple[Designator, ...]:
    """VPD page 83: every whole designator, in the target's order; one that is cut short is left out, half a name names something else."""
    return tuple(_designators(vpd_payload(VPD_DEVICE_IDENTIFICATION, data)))


def _designators(payload: bytes) -> Iterator[Designator]:
    at = 0
    while at + _DESIGNATOR_HEADER_LENGTH <= len(payload):
        start = at + _DESIGNATOR_HEADER_LENGTH
        end = start + payload[at + 3]
        if end > len(payload):
            return
        association = Association(payload[at + 1] >> 4 & 0x03)
        yield Designator(association, payload[at] & 0x0F, payload[at + 1] & 0x0F, payload[start:end])
        at = end


def logical_unit_wwid(designators: Iterable[Designator]) -> str | None:
    """The worldwide name of the logical unit as text (naa.6..., eui...., t10.VENDOR_..., or a SCSI name string); None without one.

    The strongest name wins: NAA before EUI-64 before SCSI name before T10 vendor identification, a longer one of a kind before a
    shorter (NAA 6 before NAA 2, 3, 5). Vendor specific designators are unique to nobody and are not used.
    """
    found = [
        (-rank, len(designator.value), text)
        for designator in designators
        if designator.association is Association.LOGICAL_UNIT
        for rank, kind in enumerate(_WWID_ORDER)
        if designator.type == kind and (text := _wwid_text(designator)) is not None
    ]
    return max(found)[2] if found else None


_WWID_ORDER = (DesignatorType.NAA, DesignatorType.EUI_64, DesignatorType.SCSI_NAME, DesignatorType.T10_VENDOR_ID)


def _wwid_text(designator: Designator) -> str | None:
    if designator.type in (DesignatorType.NAA, DesignatorType.EUI_64):
        if designator.code_set != CodeSet.BINARY or not any(designator.value):
            return None
        return ("naa." if designator.type == DesignatorType.NAA else "eui.") + designator.value.hex()
    text = "_".join(printable(designator.value).split())
    if not text:
        return None
    return text if designator.type == DesignatorType.SCSI_NAME else f"t10.{text}"


def parse_block_limits(data: bytes | memoryview) -> BlockLimits:
    """VPD page B0 (SBC-3 6.6.4); the 12-byte page of SBC-2 has no UNMAP fields, they are 0."""
    payload = vpd_payload(VPD_BLOCK_LIMITS, data).ljust(_BLOCK_LIMITS.size, b"\0")
    compare, io_granularity, transfer, optimal, _, unmap, descriptors, granularity, alignment, same = _BLOCK_LIMITS.unpack_from(payload)
    aligned = alignment & 0x7FFFFFFF if alignment & 0x80000000 else 0  # UGAVALID
    return BlockLimits(
        max_compare_and_write=compare,
        optimal_granularity=io_granularity,
        max_transfer=transfer,
        optimal_transfer=optimal,
        max_unmap_blocks=unmap,
        max_unmap_descriptors=descriptors,
        unmap_granularity=granularity,
        unmap_alignment=aligned % granularity if granularity else 0,
        max_write_same=same,
    )


def parse_block_characteristics(data: bytes | memoryview) -> BlockCharacteristics:
    """VPD page B1 (SBC-3 6.6.2)."""
    payload = vpd_payload(VPD_BLOCK_CHARACTERISTICS, data).ljust(_BLOCK_CHARACTERISTICS.size, b"\0")
    return BlockCharacteristics(_BLOCK_CHARACTERISTICS.unpack_from(payload)[0])


def parse_block_provisioning(data: bytes | memoryview) -> BlockProvisioning:
    """VPD page B2 (SBC-3 6.6.5). LBPRZ became three bits in SBC-4; its lowest means zeroes in both."""
    payload = vpd_payload(VPD_LOGICAL_BLOCK_PROVISIONING, data).ljust(_BLOCK_PROVISIONING.size, b"\0")
    _, flags, kind = _BLOCK_PROVISIONING.unpack_from(payload)
    return BlockProvisioning(
        unmap=bool(flags & 0x80),
        write_same_16_unmap=bool(flags & 0x40),
        write_same_10_unmap=bool(flags & 0x20),
        reads_zero=bool(flags & 0x04),
        provisioning_type=kind & 0x07,
    )
