"""Vectors of every CDB, from the byte tables of SPC-4 and SBC-3."""

from __future__ import annotations

import pytest

from isblk.scsi import cdb

VECTORS = [
    (cdb.test_unit_ready(), "00 00 00 00 00 00"),
    (cdb.inquiry(0x1234), "12 00 00 12 34 00"),
    (cdb.inquiry_vpd(0x83, 0x0400), "12 01 83 04 00 00"),
    (cdb.report_luns(0x01020304), "a0 00 00 00 00 00 01 02 03 04 00 00"),
    (cdb.report_luns(16, 2), "a0 00 02 00 00 00 00 00 00 10 00 00"),
    (cdb.read_capacity_10(), "25 00 00 00 00 00 00 00 00 00"),
    (cdb.read_capacity_16(), "9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00"),
    (cdb.transfer_10(cdb.READ_10, 0, 0x01020304, 0x0506), "28 00 01 02 03 04 00 05 06 00"),
    (cdb.transfer_10(cdb.READ_10, cdb.DPO, 1, 2), "28 10 00 00 00 01 00 00 02 00"),
    (cdb.transfer_10(cdb.WRITE_10, cdb.FUA, 0xFFFFFFFF, 0xFFFF), "2a 08 ff ff ff ff 00 ff ff 00"),
    (cdb.transfer_16(cdb.READ_16, cdb.FUA | cdb.DPO, 0x0102030405060708, 0x090A0B0C), "88 18 01 02 03 04 05 06 07 08 09 0a 0b 0c 00 00"),
    (cdb.transfer_16(cdb.WRITE_16, cdb.FUA, 1 << 32, 1), "8a 08 00 00 00 01 00 00 00 00 00 00 00 01 00 00"),
    (cdb.synchronize_cache_10(), "35 00 00 00 00 00 00 00 00 00"),
    (cdb.synchronize_cache_10(5, 6), "35 00 00 00 00 05 00 00 06 00"),
    (cdb.synchronize_cache_16(), "91 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"),
    (cdb.synchronize_cache_16(1 << 40, 7), "91 00 00 00 01 00 00 00 00 00 00 00 00 07 00 00"),
    (cdb.mode_sense_6(cdb.MODE_PAGE_CACHING), "1a 08 08 00 ff 00"),
    (cdb.mode_sense_6(cdb.MODE_PAGE_ALL, 192), "1a 08 3f 00 c0 00"),
    (cdb.mode_sense_10(cdb.MODE_PAGE_CACHING, 0x0102), "5a 08 08 00 00 00 00 01 02 00"),
    (cdb.unmap(24), "42 00 00 00 00 00 00 00 18 00"),
    (cdb.write_same_16(0x0A, 0x0B), "93 00 00 00 00 00 00 00 00 0a 00 00 00 0b 00 00"),
    (cdb.write_same_16(0x0A, 0x0B, unmap=True), "93 08 00 00 00 00 00 00 00 0a 00 00 00 0b 00 00"),
    (cdb.write_same_16(0, 1, no_data=True), "93 01 00 00 00 00 00 00 00 00 00 00 00 01 00 00"),
    (cdb.get_lba_status(0x0102, 0x18), "9e 12 00 00 00 00 00 00 01 02 00 00 00 18 00 00"),
    (cdb.report_target_port_groups(0x400), "a3 0a 00 00 00 00 00 00 04 00 00 00"),
    (cdb.persistent_reserve_in_read_keys(0x0102), "5e 00 00 00 00 00 00 01 02 00"),
]


@pytest.mark.parametrize(("built", "expected"), VECTORS)
def test_builder_makes_the_bytes_of_the_standard(built: bytes, expected: str) -> None:
    assert built == bytes.fromhex(expected)


def test_unmap_parameters_count_themselves_and_their_descriptors() -> None:
    assert cdb.unmap_parameters([(0x10, 0x20), (1 << 40, 0xFFFFFFFF)]) == bytes.fromhex(
        "0026 0020 000000000000000000000010 00000020 000000000000010000000000 ffffffff 00000000"
    )


def test_unmap_parameters_may_be_empty() -> None:
    assert cdb.unmap_parameters([]) == bytes.fromhex("0006 0000 00000000")


def test_the_largest_unmap_parameter_list_fits_its_length_field() -> None:
    data = cdb.unmap_parameters([(0, 1)] * cdb.MAX_UNMAP_DESCRIPTORS)
    assert cdb.unmap(len(data))[7:9] == len(data).to_bytes(2, "big")
    assert len(data) + cdb.UNMAP_DESCRIPTOR_LENGTH > 0xFFFF


@pytest.mark.parametrize(
    ("device_blocks", "max_blocks", "expected"),
    [
        (1, 1, (cdb.transfer_10, cdb.READ_10, cdb.WRITE_10)),
        (1 << 32, 0xFFFF, (cdb.transfer_10, cdb.READ_10, cdb.WRITE_10)),
        ((1 << 32) + 1, 0xFFFF, (cdb.transfer_16, cdb.READ_16, cdb.WRITE_16)),
        (1 << 20, 0x10000, (cdb.transfer_16, cdb.READ_16, cdb.WRITE_16)),
    ],
)
def test_ten_byte_transfers_are_chosen_exactly_where_they_reach(device_blocks: int, max_blocks: int, expected: object) -> None:
    pack, read, write = cdb.transfers(device_blocks, max_blocks)
    assert (pack, read, write) == expected
    for opcode in (read, write):
        assert pack(opcode, cdb.FUA, device_blocks - 1, max_blocks)[0] == opcode
