"""What a logical unit says about itself: standard INQUIRY, VPD pages and mode pages (SPC-4 6.6, 7.5, 7.8; SBC-3 6.4, 6.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from isblk.target.check import Check, Key, invalid_field
from isblk.target.config import LunConfig

VERSIONS = (0x00A0, 0x0960, 0x0460, 0x04C0)
"""SAM-5, iSCSI, SPC-4, SBC-3 (SPC-4 6.6.2)."""
UNMAP_DESCRIPTORS = 256
UNMAP_BLOCKS = 1 << 20
COMPARE_AND_WRITE_BLOCKS = 128
UNMAP_GRANULARITY = 4096
_TPGS_IMPLICIT = 0x10
_WCE = 0x04
_ISCSI_PROTOCOL = 0x50
_PIV_PORT = 0x90


@dataclass(frozen=True)
class Identity:
    """Who the unit is. Made from the target's name and the LUN, so it is the same through every portal and after every restart."""

    config: LunConfig
    target_name: str
    serial: str
    naa: bytes
    blocks: int

    @classmethod
    def of(cls, config: LunConfig, target_name: str, blocks: int) -> Identity:
        digest = hashlib.sha256(f"{target_name} {config.number}".encode()).digest()
        # NAA 3h, locally assigned: no IEEE number is claimed (SPC-4 7.8.6.6.4).
        return cls(config, target_name, digest[8:16].hex(), bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8], blocks)

    @property
    def is_disk(self) -> bool:
        return self.config.device_type == 0


def standard_inquiry(identity: Identity, many_groups: bool) -> bytes:
    """96 bytes (SPC-4 6.6.2); with several portal groups the TPGS field promises implicit ALUA."""
    config = identity.config
    data = bytearray(96)
    data[0] = config.device_type
    data[2:5] = bytes((0x06, 0x12, 91))
    data[5] = _TPGS_IMPLICIT if many_groups else 0
    data[7] = 0x02
    data[8:36] = _ascii(config.vendor, 8) + _ascii(config.product, 16) + _ascii("0001", 4)
    for index, version in enumerate(VERSIONS):
        data[58 + 2 * index : 60 + 2 * index] = version.to_bytes(2, "big")
    return bytes(data)


def vital_product_data(identity: Identity, page: int, tpgt: int) -> bytes:
    """One VPD page as seen through portal group `tpgt`; Check when the unit does not have it."""
    builder = _VPD.get(page)
    if builder is None or (page >= 0xB0 and not identity.is_disk):
        raise invalid_field()
    body = builder(identity, tpgt)
    return bytes((identity.config.device_type, page)) + len(body).to_bytes(2, "big") + body


def _supported_pages(identity: Identity, tpgt: int) -> bytes:
    return bytes(page for page in sorted(_VPD) if page < 0xB0 or identity.is_disk)


def _serial_number(identity: Identity, tpgt: int) -> bytes:
    return identity.serial.encode()


def _identification(identity: Identity, tpgt: int) -> bytes:
    """The unit's names, then those of the target port it is asked through (SPC-4 7.8.6)."""
    port_name = f"{identity.target_name},t,0x{tpgt:04x}".encode()
    # A SCSI name string ends with NUL and fills whole words (SPC-4 7.8.6.11).
    port_name += bytes(4 - len(port_name) % 4)
    return b"".join(
        (
            _designator(0x01, 0x03, identity.naa),
            _designator(0x02, 0x01, _ascii(identity.config.vendor, 8) + identity.serial.encode()),
            _designator(_ISCSI_PROTOCOL | 0x01, _PIV_PORT | 0x04, bytes(2) + tpgt.to_bytes(2, "big")),
            _designator(_ISCSI_PROTOCOL | 0x01, _PIV_PORT | 0x05, bytes(2) + tpgt.to_bytes(2, "big")),
            _designator(_ISCSI_PROTOCOL | 0x03, _PIV_PORT | 0x08, port_name),
        )
    )


def _designator(code_set: int, kind: int, value: bytes) -> bytes:
    return bytes((code_set, kind, 0, len(value))) + value


def _block_limits(identity: Identity, tpgt: int) -> bytes:
    config = identity.config
    data = bytearray(60)
    granularity = max(1, UNMAP_GRANULARITY // config.block_size)
    data[0] = 0x01  # WSNZ: a WRITE SAME of zero blocks is refused
    data[1] = COMPARE_AND_WRITE_BLOCKS
    data[2:4] = max(1, config.physical_block_size // config.block_size).to_bytes(2, "big")
    data[4:8] = (config.max_transfer // config.block_size).to_bytes(4, "big")
    data[8:12] = (min(1 << 20, config.max_transfer) // config.block_size).to_bytes(4, "big")
    if config.thin:
        data[16:20] = UNMAP_BLOCKS.to_bytes(4, "big")
        data[20:24] = UNMAP_DESCRIPTORS.to_bytes(4, "big")
        data[24:28] = granularity.to_bytes(4, "big")
        data[28:32] = (0x80000000).to_bytes(4, "big")
    data[32:40] = (config.max_transfer // config.block_size).to_bytes(8, "big")
    return bytes(data)


def _characteristics(identity: Identity, tpgt: int) -> bytes:
    return b"\0\x01" + bytes(58)  # medium rotation rate 1: does not rotate


def _provisioning(identity: Identity, tpgt: int) -> bytes:
    """LBPU, LBPWS, LBPWS10 and LBPRZ of a thin unit; type 2 (SBC-3 6.5.8)."""
    return bytes((0, 0xE4, 0x02, 0)) if identity.config.thin else bytes(4)


_VPD: dict[int, Callable[[Identity, int], bytes]] = {
    0x00: _supported_pages,
    0x80: _serial_number,
    0x83: _identification,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}


def mode_pages(identity: Identity, page: int, subpage: int, control: int) -> bytes:
    """The mode pages asked for (3Fh: all), in order. `control` is PC: current, changeable, default, saved (SPC-4 6.11.1)."""
    if control == 3:
        raise Check(Key.ILLEGAL_REQUEST, 0x39, 0x00)
    if subpage not in (0x00, 0xFF):
        raise invalid_field()
    have = {0x0A: _control_page(), **({0x08: _caching_page(identity.config.write_cache)} if identity.is_disk else {})}
    wanted: Iterable[int] = sorted(have) if page == 0x3F else (page,)
    if not set(wanted) <= set(have):
        raise invalid_field()
    # Nothing can be changed by MODE SELECT, so the mask of changeable values is all zeros.
    return b"".join(have[code][:2] + bytes(len(have[code]) - 2) if control == 1 else have[code] for code in wanted)


def mode_parameters(identity: Identity, cdb: bytes, protected: bool, long_header: bool) -> bytes:
    """The answer to MODE SENSE: header, block descriptor unless DBD, pages (SPC-4 6.11, 6.12, 7.5.5)."""
    pages = mode_pages(identity, cdb[2] & 0x3F, cdb[3], cdb[2] >> 6)
    descriptor = b""
    if identity.is_disk and not cdb[1] & 0x08:
        descriptor = min(identity.blocks, 0xFFFFFFFF).to_bytes(4, "big") + identity.config.block_size.to_bytes(4, "big")
    # WP and DPOFUA of a disk (SBC-3 6.4.1).
    specific = (0x80 if protected else 0) | 0x10 if identity.is_disk else 0
    if long_header:
        length = 6 + len(descriptor) + len(pages)
        header = length.to_bytes(2, "big") + bytes((0, specific, 0, 0)) + len(descriptor).to_bytes(2, "big")
    else:
        header = bytes((3 + len(descriptor) + len(pages), 0, specific, len(descriptor)))
    return header + descriptor + pages


def _caching_page(write_cache: bool) -> bytes:
    return bytes((0x08, 0x12, _WCE if write_cache else 0)) + bytes(17)


def _control_page() -> bytes:
    return bytes((0x0A, 0x0A)) + bytes(10)


def _ascii(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length].ljust(length)
