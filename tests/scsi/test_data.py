"""Capacity, mode pages, LBA status and target port groups: vectors, every truncation, random bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.scsi.data import (
    AccessState,
    Capacity,
    LbaStatus,
    Mode,
    Provisioning,
    ReservationKeys,
    TargetPortGroup,
    parse_capacity_10,
    parse_capacity_16,
    parse_lba_status,
    parse_mode_6,
    parse_mode_10,
    parse_reservation_keys,
    parse_target_port_groups,
)


def test_capacity_10() -> None:
    assert parse_capacity_10(bytes.fromhex("0001ffff 00000200")) == Capacity(131072, 512)
    assert Capacity(131072, 512).size == 67108864


def test_capacity_10_of_a_large_device_asks_for_the_long_form() -> None:
    assert parse_capacity_10(bytes.fromhex("ffffffff 00000200")) is None
    assert parse_capacity_10(bytes.fromhex("fffffffe 00001000")) == Capacity(0xFFFFFFFF, 4096)


CAPACITY = bytes.fromhex("00000001 00000000 00000200 01 13 c005") + bytes(16)


def test_capacity_16() -> None:
    assert parse_capacity_16(CAPACITY) == Capacity((1 << 32) + 1, 512, 8, 5, True, True, True)


@pytest.mark.parametrize("length", range(len(CAPACITY)))
def test_a_cut_capacity_16_is_an_error_or_lacks_only_flags(length: int) -> None:
    if length < 12:
        with pytest.raises(ProtocolError):
            parse_capacity_16(CAPACITY[:length])
    else:
        found = parse_capacity_16(CAPACITY[:length])
        assert (found.blocks, found.block_length) == ((1 << 32) + 1, 512)
        assert found.protection is (length > 12)


CACHING = bytes.fromhex("88 12 04") + bytes(17)
CONTROL = bytes.fromhex("0a 0a") + bytes(10)
SUBPAGE = bytes.fromhex("4a 01 0004") + b"\x08\x12\x00\x00"
DESCRIPTOR = bytes.fromhex("00000000 00000200")


def mode_6(flags: int, pages: bytes, descriptors: bytes = b"") -> bytes:
    return bytes([3 + len(descriptors) + len(pages), 0, flags, len(descriptors)]) + descriptors + pages


def mode_10(flags: int, pages: bytes, descriptors: bytes = b"") -> bytes:
    length = 6 + len(descriptors) + len(pages)
    return length.to_bytes(2, "big") + bytes([0, flags, 0, 0]) + len(descriptors).to_bytes(2, "big") + descriptors + pages


@pytest.mark.parametrize(("build", "parse"), [(mode_6, parse_mode_6), (mode_10, parse_mode_10)])
@pytest.mark.parametrize(
    ("flags", "pages", "descriptors", "expected"),
    [
        (0x00, b"", b"", Mode(False, False, None)),
        (0x80, b"", b"", Mode(True, False, None)),
        (0x10, CACHING, b"", Mode(False, True, True)),
        (0x90, CACHING, DESCRIPTOR, Mode(True, True, True)),
        (0x10, CACHING[:2] + b"\0" + CACHING[3:], DESCRIPTOR, Mode(False, True, False)),
        (0x10, CONTROL + SUBPAGE + CACHING, DESCRIPTOR, Mode(False, True, True)),
        (0x10, CONTROL + SUBPAGE, DESCRIPTOR, Mode(False, True, None)),
        (0x00, b"\x08\x00", b"", Mode(False, False, None)),
    ],
)
def test_mode_sense(
    build: Callable[[int, bytes, bytes], bytes],
    parse: Callable[[bytes], Mode],
    flags: int,
    pages: bytes,
    descriptors: bytes,
    expected: Mode,
) -> None:
    assert parse(build(flags, pages, descriptors)) == expected
    assert parse(build(flags, pages, descriptors) + CACHING) == expected, "bytes behind the data do not count"


@pytest.mark.parametrize(("build", "parse", "header"), [(mode_6, parse_mode_6, 4), (mode_10, parse_mode_10, 8)])
def test_cut_mode_data_keeps_what_the_header_says(
    build: Callable[[int, bytes, bytes], bytes], parse: Callable[[bytes], Mode], header: int
) -> None:
    whole = build(0x90, CACHING, DESCRIPTOR)
    for length in range(header):
        with pytest.raises(ProtocolError):
            parse(whole[:length])
    for length in range(header, len(whole)):
        found = parse(whole[:length])
        assert (found.write_protected, found.fua) == (True, True)
        assert found.write_cache is (True if length >= header + 8 + 3 else None)


LBA_STATUS = (
    bytes.fromhex("00000034 00000000")
    + bytes.fromhex("0000000000000010 00000008 00 000000")
    + bytes.fromhex("0000000000000018 00000100 01 000000")
    + bytes.fromhex("0000000000000118 00000001 0f 000000")
)


def test_lba_status_descriptors_are_read_in_order() -> None:
    assert parse_lba_status(LBA_STATUS) == (
        LbaStatus(0x10, 8, Provisioning.MAPPED),
        LbaStatus(0x18, 256, Provisioning.DEALLOCATED),
        LbaStatus(0x118, 1, Provisioning.MAPPED),
    )


@pytest.mark.parametrize("length", range(len(LBA_STATUS)))
def test_cut_lba_status_gives_whole_descriptors_only(length: int) -> None:
    if length < 8:
        with pytest.raises(ProtocolError):
            parse_lba_status(LBA_STATUS[:length])
    else:
        assert len(parse_lba_status(LBA_STATUS[:length])) == (length - 8) // 16


def test_the_length_of_lba_status_ends_it() -> None:
    assert len(parse_lba_status(bytes.fromhex("00000014") + LBA_STATUS[4:])) == 1
    assert parse_lba_status(bytes.fromhex("00000000") + LBA_STATUS[4:]) == ()


GROUPS = bytes.fromhex("80 8f 0001 00 02 00 02 0000 0001 0000 0002") + bytes.fromhex("02 8f 0002 00 00 00 01 0000 0003")


def test_target_port_groups_are_read_with_their_ports() -> None:
    expected = (
        TargetPortGroup(1, AccessState.OPTIMIZED, True, 0x8F, 2, (1, 2)),
        TargetPortGroup(2, AccessState.STANDBY, False, 0x8F, 0, (3,)),
    )
    assert parse_target_port_groups(len(GROUPS).to_bytes(4, "big") + GROUPS) == expected
    extended = bytes.fromhex("10 3c 0000") + GROUPS
    assert parse_target_port_groups(len(extended).to_bytes(4, "big") + extended) == expected


@pytest.mark.parametrize(("code", "state"), [(0xF, AccessState.TRANSITIONING), (0xE, AccessState.OFFLINE), (0x7, AccessState.UNAVAILABLE)])
def test_access_states_reserved_ones_included(code: int, state: AccessState) -> None:
    data = bytes([code]) + GROUPS[1:16]
    assert [group.state for group in parse_target_port_groups(bytes.fromhex("00000010") + data)] == [state]


@pytest.mark.parametrize("length", range(len(GROUPS) + 4))
def test_a_cut_port_group_is_left_out(length: int) -> None:
    data = (len(GROUPS).to_bytes(4, "big") + GROUPS)[:length]
    if length < 4:
        with pytest.raises(ProtocolError):
            parse_target_port_groups(data)
    else:
        assert len(parse_target_port_groups(data)) == (1 if length >= 20 else 0)


KEYS = bytes.fromhex("00000007 00000010 0102030405060708 00000000000000ff")


def test_reservation_keys_come_with_their_generation() -> None:
    assert parse_reservation_keys(KEYS) == ReservationKeys(7, (0x0102030405060708, 0xFF), clipped=False)
    assert parse_reservation_keys(KEYS[:4] + bytes(4)) == (7, (), False)


@pytest.mark.parametrize("length", range(len(KEYS)))
def test_cut_reservation_keys_say_that_they_are_cut(length: int) -> None:
    if length < 8:
        with pytest.raises(ProtocolError):
            parse_reservation_keys(KEYS[:length])
    else:
        found = parse_reservation_keys(KEYS[:length])
        assert (len(found.keys), found.clipped) == ((length - 8) // 8, True)


def test_the_length_of_the_reservation_keys_ends_them() -> None:
    one = KEYS[:4] + bytes.fromhex("00000008") + KEYS[8:]
    assert parse_reservation_keys(one) == (7, (0x0102030405060708,), False)
    assert parse_reservation_keys(KEYS[:4] + bytes.fromhex("00000fa0") + KEYS[8:]).clipped
    assert parse_reservation_keys(KEYS[:4] + bytes.fromhex("0000000f") + KEYS[8:]) == (7, (0x0102030405060708,), False)


@pytest.mark.parametrize(
    "parse",
    [
        parse_capacity_10,
        parse_capacity_16,
        parse_mode_6,
        parse_mode_10,
        parse_lba_status,
        parse_target_port_groups,
        parse_reservation_keys,
    ],
)
@given(data=st.binary(max_size=96))
def test_random_bytes_raise_only_protocol_errors(parse: Callable[[bytes | memoryview], object], data: bytes) -> None:
    for view in (data, memoryview(data)):
        with contextlib.suppress(ProtocolError):
            parse(view)
