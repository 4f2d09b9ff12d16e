"""INQUIRY and VPD pages: vectors of real targets, every truncation, random bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.scsi.inquiry import (
    Association,
    BlockLimits,
    BlockProvisioning,
    Designator,
    DesignatorType,
    logical_unit_wwid,
    parse_block_characteristics,
    parse_block_limits,
    parse_block_provisioning,
    parse_device_identification,
    parse_inquiry,
    parse_serial_number,
    parse_supported_pages,
    printable,
    vpd_missing,
)

DISK = bytes.fromhex("00 00 05 32 3d 00 00 02") + b"IET     " + b"VIRTUAL-DISK    " + b"0001" + bytes(30)


def page(code: int, payload: bytes, claimed: int | None = None) -> bytes:
    return bytes([0, code]) + (len(payload) if claimed is None else claimed).to_bytes(2, "big") + payload


def test_a_disk_is_read_as_the_target_describes_it() -> None:
    found = parse_inquiry(DISK)
    assert (found.vendor, found.product, found.revision) == ("IET", "VIRTUAL-DISK", "0001")
    assert found.is_disk and found.type_text == "disk" and found.version == 5
    assert not (found.removable or found.protection or found.target_port_group_support)


def test_the_flag_bits_are_read() -> None:
    found = parse_inquiry(bytes.fromhex("00 80 06 02 1f 31 00 00") + bytes(28))
    assert found.removable and found.protection and found.target_port_group_support == 3


@pytest.mark.parametrize(
    ("first", "disk", "words"), [(0x0C, False, "storage array controller"), (0x7F, False, "none"), (0x20, False, "disk")]
)
def test_what_is_not_a_connected_disk_is_named(first: int, disk: bool, words: str) -> None:
    found = parse_inquiry(bytes([first]) + DISK[1:])
    assert (found.is_disk, found.type_text) == (disk, words)


def test_an_unknown_device_type_is_shown_by_number() -> None:
    assert parse_inquiry(b"\x1b" + DISK[1:]).type_text == "type 0x1b"


def test_additional_length_ends_the_data() -> None:
    assert parse_inquiry(DISK[:4] + bytes([11]) + DISK[5:]).product == ""


@pytest.mark.parametrize("length", range(len(DISK)))
def test_a_cut_inquiry_is_read_as_far_as_it_goes(length: int) -> None:
    if length < 5:
        with pytest.raises(ProtocolError):
            parse_inquiry(DISK[:length])
    else:
        assert parse_inquiry(DISK[:length]).vendor == DISK[8:length][:8].decode().strip()


def test_terminal_escapes_of_a_target_do_not_get_through() -> None:
    assert printable(b"\x1b[2Jbad\xff  \0") == "?[2Jbad?"


def test_supported_pages_and_serial() -> None:
    assert parse_supported_pages(page(0x00, b"\x00\x80\x83\xb0")) == {0x00, 0x80, 0x83, 0xB0}
    assert parse_serial_number(page(0x80, b"  beaf11  ")) == "beaf11"
    assert parse_serial_number(page(0x80, b"\0\0\0\0")) == ""


def test_another_page_than_asked_for_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="asked for VPD page 80, got page 83"):
        parse_serial_number(page(0x83, b"serial"))


def test_a_page_that_did_not_fit_says_how_much_is_missing() -> None:
    assert vpd_missing(page(0x83, bytes(10), claimed=300)) == 290
    assert vpd_missing(page(0x83, bytes(10), claimed=4)) == 0
    assert vpd_missing(b"\0\0") == 0


def designator(kind: int, value: bytes, code_set: int = 1, association: int = 0) -> bytes:
    return bytes([0x50 | code_set, 0x80 | association << 4 | kind, 0, len(value)]) + value


NAA_6 = bytes.fromhex("6001405a1b2c3d4e5f60718293a4b5c6")
NAA_5 = bytes.fromhex("5001405a1b2c3d4e")
EUI = bytes.fromhex("0011223344556677")
T10 = b"IET     00010001"


def test_designators_are_read_with_association_code_set_and_type() -> None:
    data = page(0x83, designator(1, T10, 2) + designator(3, NAA_6) + designator(4, b"\0\0\0\1", association=1))
    assert parse_device_identification(data) == (
        Designator(Association.LOGICAL_UNIT, 2, DesignatorType.T10_VENDOR_ID, T10),
        Designator(Association.LOGICAL_UNIT, 1, DesignatorType.NAA, NAA_6),
        Designator(Association.TARGET_PORT, 1, DesignatorType.RELATIVE_TARGET_PORT, b"\0\0\0\1"),
    )


@pytest.mark.parametrize("cut", range(1, len(NAA_6) + 4))
def test_a_designator_that_is_cut_is_left_out(cut: int) -> None:
    whole = page(0x83, designator(3, NAA_5) + designator(3, NAA_6))
    assert [each.value for each in parse_device_identification(whole[:-cut])] == [NAA_5]


@pytest.mark.parametrize(
    ("payload", "wwid"),
    [
        (designator(3, NAA_6), "naa.6001405a1b2c3d4e5f60718293a4b5c6"),
        (designator(3, NAA_5) + designator(3, NAA_6), "naa.6001405a1b2c3d4e5f60718293a4b5c6"),
        (designator(1, T10, 2) + designator(2, EUI) + designator(3, NAA_5), "naa.5001405a1b2c3d4e"),
        (designator(1, T10, 2) + designator(2, EUI), "eui.0011223344556677"),
        (designator(1, T10, 2), "t10.IET_00010001"),
        (designator(1, T10, 2) + designator(8, b"iqn.2003-01.org:disk\0\0", 3), "iqn.2003-01.org:disk"),
        (designator(3, NAA_6, association=1) + designator(1, T10, 2), "t10.IET_00010001"),
        (designator(0, b"vendor", 2), None),
        (designator(3, bytes(16)) + designator(1, b"        ", 2), None),
        (designator(3, b"ascii-naa", 2), None),
        (b"", None),
    ],
)
def test_the_wwid_is_the_strongest_name_of_the_logical_unit(payload: bytes, wwid: str | None) -> None:
    assert logical_unit_wwid(parse_device_identification(page(0x83, payload))) == wwid


LIMITS = bytes.fromhex("01 02 0003 00000004 00000005 00000006 00000007 00000008 00000010 80000019 0000000000000100")


def test_block_limits_are_read() -> None:
    assert parse_block_limits(page(0xB0, LIMITS)) == BlockLimits(2, 3, 4, 5, 7, 8, 16, 9, 256)


def test_an_alignment_without_its_valid_bit_does_not_count() -> None:
    invalid = LIMITS[:28] + bytes.fromhex("00000019") + LIMITS[32:]
    assert parse_block_limits(page(0xB0, invalid)).unmap_alignment == 0


def test_the_short_block_limits_page_of_sbc_2_has_no_unmap_limits() -> None:
    assert parse_block_limits(page(0xB0, LIMITS[:12])) == BlockLimits(2, 3, 4, 5)


@pytest.mark.parametrize(("rate", "rotational"), [(0, False), (1, False), (0x400, False), (7200, True), (0xFFFF, False)])
def test_rotation_rate(rate: int, rotational: bool) -> None:
    assert parse_block_characteristics(page(0xB1, rate.to_bytes(2, "big") + bytes(58))).rotational is rotational


def test_provisioning_bits_are_read() -> None:
    assert parse_block_provisioning(page(0xB2, b"\0\xe4\x02\0")) == BlockProvisioning(True, True, True, True, 2)
    assert parse_block_provisioning(page(0xB2, b"\0\x88\x01\0")) == BlockProvisioning(unmap=True, provisioning_type=1)
    assert parse_block_provisioning(page(0xB2, b"")) == BlockProvisioning()


PARSERS: list[tuple[int, Callable[[bytes], object]]] = [
    (0x00, parse_supported_pages),
    (0x80, parse_serial_number),
    (0x83, lambda data: logical_unit_wwid(parse_device_identification(data))),
    (0xB0, parse_block_limits),
    (0xB1, parse_block_characteristics),
    (0xB2, parse_block_provisioning),
]


@pytest.mark.parametrize(("code", "parse"), PARSERS)
@given(data=st.binary(max_size=80), claimed=st.integers(0, 0xFFFF))
def test_random_pages_never_raise_once_their_header_is_right(
    code: int, parse: Callable[[bytes], object], data: bytes, claimed: int
) -> None:
    parse(page(code, data, claimed))


@pytest.mark.parametrize("parse", [parse for _, parse in PARSERS] + [parse_inquiry])
@given(data=st.binary(max_size=80))
def test_random_bytes_raise_only_protocol_errors(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse(data)
