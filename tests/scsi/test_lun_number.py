"""LUN numbers: each addressing method both ways, and REPORT LUNS lists whole, cut and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError, UsageError
from isblk.scsi.lun_number import (
    addressing_method,
    in_sam_order,
    lun_from_bytes,
    lun_text,
    lun_to_bytes,
    parse_lun,
    parse_report_luns,
)

ADDRESSES = [
    (0, "0000000000000000", "peripheral", "0"),
    (1, "0001000000000000", "peripheral", "1"),
    (255, "00ff000000000000", "peripheral", "255"),
    (256, "4100000000000000", "flat", "256"),
    (16383, "7fff000000000000", "flat", "16383"),
    (16384, "4000000000000000", "flat", "16384"),
    (16389, "4005000000000000", "flat", "16389"),
    (0x0105000000000000, "0105000000000000", "peripheral", "0x0105000000000000"),
    (0x0101000200000000, "0101000200000000", "peripheral", "0x0101000200000000"),
    (0x8123000000000000, "8123000000000000", "logical unit", "0x8123000000000000"),
    (0xC101000000000000, "c101000000000000", "extended", "0xc101000000000000"),
    (0xD200001234000000, "d200001234000000", "extended", "0xd200001234000000"),
    ((1 << 64) - 1, "ffffffffffffffff", "extended", "0xffffffffffffffff"),
]


@pytest.mark.parametrize(("number", "raw", "method", "text"), ADDRESSES)
def test_each_address_has_one_number_and_one_text(number: int, raw: str, method: str, text: str) -> None:
    lun = bytes.fromhex(raw)
    assert lun_to_bytes(number) == lun
    assert lun_from_bytes(lun) == number
    assert addressing_method(lun) == method
    assert lun_text(lun) == text
    assert parse_lun(text) == lun


def test_the_number_that_linux_shows_for_a_flat_lun_is_understood() -> None:
    assert lun_to_bytes(0x4000 + 300) == lun_to_bytes(300) == bytes.fromhex("412c000000000000")


@given(st.binary(min_size=8, max_size=8))
def test_a_number_leads_back_to_the_same_bytes(lun: bytes) -> None:
    try:
        number = lun_from_bytes(lun)
    except ProtocolError:
        assert lun[:6] == bytes(6) and lun[6:] != bytes(2)
        return
    assert lun_to_bytes(number) == lun
    assert parse_lun(lun_text(lun)) == lun


@pytest.mark.parametrize("lun", [b"", bytes(7), bytes(9), bytes.fromhex("0000000000000005")])
def test_bytes_that_are_no_address_are_a_protocol_error(lun: bytes) -> None:
    with pytest.raises(ProtocolError):
        lun_from_bytes(lun)


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_numbers_beyond_64_bits_are_refused(number: int) -> None:
    with pytest.raises(UsageError):
        lun_to_bytes(number)


@pytest.mark.parametrize("text", ["", "x", "1.5", "0xg", "0x10000000000000000", "-1"])
def test_text_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lun(text)


def test_sam_order_goes_by_method_and_then_by_number() -> None:
    ordered = [lun_to_bytes(number) for number in (0, 2, 10, 255, 256, 1000, 0x8123000000000000, 0xC101000000000000)]
    assert in_sam_order(reversed(ordered)) == ordered


def luns_data(*luns: bytes, claimed: int | None = None) -> bytes:
    length = len(luns) * 8 if claimed is None else claimed
    return length.to_bytes(4, "big") + bytes(4) + b"".join(luns)


ONE, TWO = lun_to_bytes(1), lun_to_bytes(0x4002)


def test_report_luns_keeps_bytes_and_order() -> None:
    found = parse_report_luns(luns_data(TWO, ONE))
    assert found.luns == (TWO, ONE)
    assert found.missing == 0


def test_report_luns_lists_a_repeated_lun_once() -> None:
    assert parse_report_luns(luns_data(ONE, TWO, ONE)).luns == (ONE, TWO)


def test_a_cut_lun_list_says_how_much_to_ask_for() -> None:
    found = parse_report_luns(luns_data(ONE, TWO, claimed=80))
    assert (found.luns, found.missing, found.allocation_length) == ((ONE, TWO), 64, 88)


def test_bytes_behind_the_lun_list_are_no_luns() -> None:
    assert parse_report_luns(luns_data(ONE, TWO, claimed=8)).luns == (ONE,)


def test_half_a_lun_is_not_counted() -> None:
    found = parse_report_luns(luns_data(ONE, TWO[:5], claimed=13))
    assert (found.luns, found.missing) == ((ONE,), 0)
    assert parse_report_luns(luns_data(ONE, TWO)[:20]).missing == 8


@pytest.mark.parametrize("length", range(8))
def test_report_luns_without_a_header_is_a_protocol_error(length: int) -> None:
    with pytest.raises(ProtocolError):
        parse_report_luns(luns_data(ONE)[:length])


@given(st.binary(max_size=64))
def test_random_lun_lists_raise_nothing_but_protocol_errors(data: bytes) -> None:
    try:
        found = parse_report_luns(memoryview(data))
    except ProtocolError:
        assert len(data) < 8
        return
    assert all(len(lun) == 8 for lun in found.luns)
    assert found.allocation_length <= 8 + 0xFFFFFFFF
