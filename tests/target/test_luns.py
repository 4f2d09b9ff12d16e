from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import UsageError
from isblk.target.config import Addressing, LunConfig, TargetConfig
from isblk.target.luns import LogicalUnits, decode_lun, encode_lun
from isblk.target.outcome import Nexus

NEXUS = Nexus("i", b"\x80\0\0\0\0\0", 1)
REPORT_LUNS = bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0))


@given(st.integers(0, (1 << 24) - 1), st.sampled_from(Addressing))
def test_a_lun_comes_back_whichever_way_it_is_written(number: int, addressing: Addressing) -> None:
    assert decode_lun(encode_lun(number, addressing)) == number


@pytest.mark.parametrize(
    "written, number",
    [
        ("0005000000000000", 5),
        ("4005000000000000", 5),
        ("4100000000000000", 256),
        ("7fff000000000000", 0x3FFF),
        ("d200000500000000", 5),
        ("d2ffffff00000000", 0xFFFFFF),
        ("c205000000000000", 5),
        ("e200000000050000", 5),
        ("0105000000000000", None),
        ("0005000100000000", None),
        ("4005000000000001", None),
        ("d200000500000001", None),
        ("8005000000000000", None),
        ("c101000000000000", None),
    ],
)
def test_addresses_of_every_method(written: str, number: int | None) -> None:
    assert decode_lun(bytes.fromhex(written)) == number


@given(st.binary(min_size=8, max_size=8))
def test_any_eight_bytes_are_a_lun_or_none(raw: bytes) -> None:
    number = decode_lun(raw)
    assert number is None or number >= 0


def open_units(*luns: LunConfig, addressing: Addressing = Addressing.NATURAL) -> LogicalUnits:
    return LogicalUnits.open(TargetConfig(luns=luns, addressing=addressing))


def test_report_luns_lists_what_is_there_in_order() -> None:
    units = open_units(LunConfig(300, size=4096), LunConfig(2, size=4096), LunConfig(0, device_type=12))
    data = units.execute(bytes(8), REPORT_LUNS, b"", NEXUS).data
    assert data[:8] == bytes((0, 0, 0, 24, 0, 0, 0, 0))
    assert data[8:] == encode_lun(0) + encode_lun(2) + encode_lun(300)
    units.units[2].present = False
    assert len(units.execute(bytes(8), REPORT_LUNS, b"", NEXUS).data) == 24
    units.close()


def test_report_luns_that_is_cut_still_tells_the_whole_length() -> None:
    units = open_units(*(LunConfig(number, size=4096) for number in range(5)))
    cut = bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0))
    assert units.execute(bytes(8), cut, b"", NEXUS).data == bytes((0, 0, 0, 40)) + bytes(12)
    units.close()


def test_well_known_units_are_none_and_other_reports_are_refused() -> None:
    units = open_units(LunConfig(0, size=4096))
    assert units.execute(bytes(8), REPORT_LUNS[:2] + b"\1" + REPORT_LUNS[3:], b"", NEXUS).data == bytes(8)
    assert units.execute(bytes(8), REPORT_LUNS[:2] + b"\3" + REPORT_LUNS[3:], b"", NEXUS).status == 2
    units.close()


def test_report_luns_in_another_addressing_method() -> None:
    units = open_units(LunConfig(1, size=4096), addressing=Addressing.FLAT)
    assert units.execute(bytes(8), REPORT_LUNS, b"", NEXUS).data[8:] == bytes.fromhex("4001000000000000")
    assert units.execute(encode_lun(1, Addressing.EXTENDED), bytes(6), b"", NEXUS).status == 0
    units.close()


def test_where_there_is_no_unit_inquiry_says_so_and_the_rest_fails() -> None:
    units = open_units(LunConfig(1, size=4096))
    missing = encode_lun(7)
    inquiry = units.execute(missing, bytes((0x12, 0, 0, 0, 36, 0)), b"", NEXUS)
    assert (inquiry.status, inquiry.data[0], len(inquiry.data)) == (0, 0x7F, 36)
    outcome = units.execute(missing, bytes(16), b"", NEXUS)
    assert (outcome.status, outcome.sense[2], outcome.sense[12]) == (2, 5, 0x25)
    request_sense = units.execute(missing, bytes((3, 0, 0, 0, 18, 0)), b"", NEXUS)
    assert (request_sense.status, request_sense.data[12]) == (0, 0x25)
    units.close()


def test_a_bad_set_of_units_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    good = LunConfig(0, path=path, size=4096)
    for bad in (good, LunConfig(1 << 24, size=4096), LunConfig(1, size=4097), LunConfig(1, size=4096, block_size=520), LunConfig(1)):
        with pytest.raises(UsageError):
            open_units(good, bad)
    open_units(good).close()


def test_a_nexus_reaches_every_unit() -> None:
    units = open_units(LunConfig(0, size=4096), LunConfig(1, size=4096))
    units.nexus_started(NEXUS)
    units.nexus_lost(NEXUS)
    assert [unit.take_attention(NEXUS) for unit in units.units.values()] == [(0x29, 7), (0x29, 7)]
    units.nexus_started(NEXUS)
    units.nexus_ended(NEXUS)
    assert [unit.take_attention(NEXUS) for unit in units.units.values()] == [None, None]
    units.close()
