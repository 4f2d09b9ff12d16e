"""Sense data in both formats, cut anywhere, and every row of the verdict table."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.scsi.sense import (
    NO_SENSE,
    STATUS_VERDICTS,
    VERDICTS,
    Action,
    Attention,
    Key,
    Sense,
    Status,
    flush_verdict,
    is_unsupported_command,
    is_unsupported_field,
    parse_sense,
    verdict,
)
from isblk.scsi.sense_text import CODES


def fixed(key: int, asc: int, ascq: int, code: int = 0xF0, information: int = 0x01020304) -> bytes:
    return bytes([code, 0, key]) + information.to_bytes(4, "big") + bytes([10]) + bytes(4) + bytes([asc, ascq]) + bytes(4)


def descriptor(key: int, asc: int, ascq: int, code: int = 0x72, descriptors: bytes = b"") -> bytes:
    return bytes([code, key, asc, ascq, 0, 0, 0, len(descriptors)]) + descriptors


INFORMATION = bytes.fromhex("00 0a 80 00 0000000102030405")
SPECIFIC = bytes.fromhex("02 06 00 00 00 00 00 00")

PARSED = [
    (fixed(3, 0x11, 0x00), Sense(Key.MEDIUM_ERROR, 0x11, 0x00, False, 0x01020304)),
    (fixed(3, 0x11, 0x00, code=0x70), Sense(Key.MEDIUM_ERROR, 0x11, 0x00)),
    (fixed(0x13, 0x11, 0x04, code=0x71), Sense(Key.MEDIUM_ERROR, 0x11, 0x04, True)),
    (descriptor(6, 0x29, 0x07), Sense(Key.UNIT_ATTENTION, 0x29, 0x07)),
    (descriptor(3, 0x0C, 0x00, code=0x73), Sense(Key.MEDIUM_ERROR, 0x0C, 0x00, True)),
    (descriptor(3, 0x11, 0x00, descriptors=INFORMATION), Sense(Key.MEDIUM_ERROR, 0x11, 0x00, False, 0x0102030405)),
    (descriptor(3, 0x11, 0x00, descriptors=SPECIFIC + INFORMATION), Sense(Key.MEDIUM_ERROR, 0x11, 0x00, False, 0x0102030405)),
    (descriptor(3, 0x11, 0x00, descriptors=INFORMATION[:2] + b"\0" + INFORMATION[3:]), Sense(Key.MEDIUM_ERROR, 0x11)),
]


@pytest.mark.parametrize(("data", "expected"), PARSED)
def test_sense_is_parsed_in_both_formats(data: bytes, expected: Sense) -> None:
    assert parse_sense(data) == expected
    assert parse_sense(memoryview(data + b"rubbish")) == expected


@pytest.mark.parametrize("length", range(19))
def test_fixed_sense_cut_anywhere_keeps_what_is_there(length: int) -> None:
    found = parse_sense(fixed(3, 0x11, 0x04)[:length])
    if length < 3:
        assert found is NO_SENSE
    assert (found.key == Key.MEDIUM_ERROR) is (length >= 3)
    assert (found.information == 0x01020304) is (length >= 7)
    assert (found.asc, found.ascq) == (0x11 if length >= 13 else 0, 0x04 if length >= 14 else 0)


@pytest.mark.parametrize("length", range(21))
def test_descriptor_sense_cut_anywhere_keeps_what_is_there(length: int) -> None:
    found = parse_sense(descriptor(3, 0x11, 0x04, descriptors=INFORMATION)[:length])
    assert (found.key == Key.MEDIUM_ERROR) is (length >= 2)
    assert (found.asc, found.ascq) == (0x11 if length >= 3 else 0, 0x04 if length >= 4 else 0)
    assert (found.information is None) is (length < 20)


def test_additional_length_ends_fixed_sense() -> None:
    assert parse_sense(fixed(3, 0x11, 0x04)[:7] + b"\x04" + fixed(3, 0x11, 0x04)[8:]) == Sense(Key.MEDIUM_ERROR, information=0x01020304)


@pytest.mark.parametrize("code", [0x00, 0x6F, 0x74, 0x7E, 0x7F])
def test_a_format_that_nobody_knows_is_no_sense(code: int) -> None:
    assert parse_sense(bytes([code]) + bytes(17)) is NO_SENSE


@given(st.binary(max_size=64), st.integers(0, 255))
def test_random_sense_is_judged_without_an_exception(data: bytes, status: int) -> None:
    assert isinstance(parse_sense(data), Sense)
    for judged in (verdict(status, data), flush_verdict(status, data)):
        assert (judged.errno == 0) is (judged.action is Action.DONE)
        assert (judged.attention is not None) is (judged.action is Action.ATTENTION)


STATUS_ROWS = [
    (0x00, Action.DONE, 0),
    (0x04, Action.DONE, 0),
    (0x08, Action.RETRY, errno.EBUSY),
    (0x18, Action.FAIL, errno.EACCES),
    (0x28, Action.RETRY, errno.EBUSY),
    (0x30, Action.RETRY, errno.EBUSY),
    (0x40, Action.RETRY, errno.EIO),
]

DONE, RETRY, OTHER_PATH, FAIL, ATTENTION = Action.DONE, Action.RETRY, Action.OTHER_PATH, Action.FAIL, Action.ATTENTION
# (key, ASC, ASCQ) as a target sends it, and what must come of it; None in place of a code: any that has no row of its own.
SENSE_ROWS: list[tuple[int, int | None, int | None, Action, int, Attention | None]] = [
    (0x0, None, None, DONE, 0, None),
    (0x1, None, None, DONE, 0, None),
    (0x2, None, None, OTHER_PATH, errno.EIO, None),
    (0x2, 0x04, 0x00, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x01, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x02, FAIL, errno.EIO, None),
    (0x2, 0x04, 0x03, FAIL, errno.EIO, None),
    (0x2, 0x04, 0x04, FAIL, errno.EBUSY, None),
    (0x2, 0x04, 0x07, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x08, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x09, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x0A, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x0B, OTHER_PATH, errno.EIO, None),
    (0x2, 0x04, 0x0C, OTHER_PATH, errno.EIO, None),
    (0x2, 0x04, 0x12, OTHER_PATH, errno.EIO, None),
    (0x2, 0x04, 0x14, RETRY, errno.EIO, None),
    (0x2, 0x04, 0x1B, FAIL, errno.EBUSY, None),
    (0x2, 0x3A, None, FAIL, errno.ENOMEDIUM, None),
    (0x2, 0x3E, 0x00, RETRY, errno.EIO, None),
    (0x3, None, None, FAIL, errno.EIO, None),
    (0x4, None, None, FAIL, errno.EIO, None),
    (0x4, 0x08, None, OTHER_PATH, errno.EIO, None),
    (0x5, None, None, FAIL, errno.EREMOTEIO, None),
    (0x5, 0x10, None, FAIL, errno.EILSEQ, None),
    (0x5, 0x20, 0x00, FAIL, errno.EOPNOTSUPP, None),
    (0x5, 0x20, 0x02, FAIL, errno.EACCES, None),
    (0x5, 0x21, None, FAIL, errno.EIO, None),
    (0x5, 0x25, None, OTHER_PATH, errno.ENXIO, None),
    (0x5, 0x27, None, FAIL, errno.EROFS, None),
    (0x6, None, None, ATTENTION, errno.EIO, Attention.OTHER),
    (0x6, 0x28, None, ATTENTION, errno.EIO, Attention.MEDIUM_CHANGED),
    (0x6, 0x29, None, ATTENTION, errno.EIO, Attention.RESET),
    (0x6, 0x29, 0x01, ATTENTION, errno.EIO, Attention.POWER_ON),
    (0x6, 0x29, 0x04, ATTENTION, errno.EIO, Attention.POWER_ON),
    (0x6, 0x2A, 0x01, ATTENTION, errno.EIO, Attention.MODE_CHANGED),
    (0x6, 0x2A, 0x03, ATTENTION, errno.EIO, Attention.RESERVATIONS_CHANGED),
    (0x6, 0x2A, 0x04, ATTENTION, errno.EIO, Attention.RESERVATIONS_CHANGED),
    (0x6, 0x2A, 0x05, ATTENTION, errno.EIO, Attention.RESERVATIONS_CHANGED),
    (0x6, 0x2A, 0x06, ATTENTION, errno.EIO, Attention.PATHS_CHANGED),
    (0x6, 0x2A, 0x07, ATTENTION, errno.EIO, Attention.PATHS_CHANGED),
    (0x6, 0x2A, 0x09, ATTENTION, errno.EIO, Attention.CAPACITY_CHANGED),
    (0x6, 0x38, 0x07, ATTENTION, errno.EIO, Attention.SPACE_LOW),
    (0x6, 0x3F, 0x03, ATTENTION, errno.EIO, Attention.IDENTITY_CHANGED),
    (0x6, 0x3F, 0x05, ATTENTION, errno.EIO, Attention.IDENTITY_CHANGED),
    (0x6, 0x3F, 0x0E, ATTENTION, errno.EIO, Attention.LUNS_CHANGED),
    (0x6, 0x47, 0x7F, ATTENTION, errno.EIO, Attention.RESET),
    (0x7, None, None, FAIL, errno.EACCES, None),
    (0x7, 0x27, None, FAIL, errno.EROFS, None),
    (0x7, 0x27, 0x07, FAIL, errno.ENOSPC, None),
    (0x8, None, None, FAIL, errno.EIO, None),
    (0x9, None, None, FAIL, errno.EIO, None),
    (0xA, None, None, FAIL, errno.EIO, None),
    (0xB, None, None, RETRY, errno.EIO, None),
    (0xB, 0x10, None, FAIL, errno.EILSEQ, None),
    (0xC, None, None, FAIL, errno.EIO, None),
    (0xD, None, None, FAIL, errno.ENOSPC, None),
    (0xE, None, None, FAIL, errno.EREMOTEIO, None),
    (0xF, None, None, DONE, 0, None),
]


@pytest.mark.parametrize(("status", "action", "error_number"), STATUS_ROWS)
def test_each_status_has_its_verdict(status: int, action: Action, error_number: int) -> None:
    judged = verdict(status)
    assert (judged.action, judged.errno) == (action, error_number)
    assert bool(judged.reason) is (status != 0)


@pytest.mark.parametrize(("key", "asc", "ascq", "action", "error_number", "attention"), SENSE_ROWS)
def test_each_sense_has_its_verdict(
    key: int, asc: int | None, ascq: int | None, action: Action, error_number: int, attention: Attention | None
) -> None:
    codes = (0x7A if asc is None else asc, 0x7B if ascq is None else ascq)
    for data in (fixed(key, *codes), descriptor(key, *codes)):
        judged = verdict(0x02, data)
        assert (judged.action, judged.errno, judged.attention) == (action, error_number, attention)
        assert judged.sense == parse_sense(data)


def test_the_tables_of_this_test_are_whole() -> None:
    rows = {tuple(code for code in row[:3] if code is not None) for row in SENSE_ROWS}
    assert rows == set(VERDICTS)
    assert {(key,) for key in Key} <= set(VERDICTS)
    assert {row[0] for row in STATUS_ROWS} == set(STATUS_VERDICTS) == set(Status) - {Status.CHECK_CONDITION}


def test_an_unknown_status_fails() -> None:
    judged = verdict(0x99)
    assert (judged.action, judged.errno, judged.reason) == (Action.FAIL, errno.EIO, "status 0x99")


@pytest.mark.parametrize("sense", [b"", b"\x70", b"\x7f\0\5", bytes(18)])
def test_check_condition_without_readable_sense_is_never_success(sense: bytes) -> None:
    assert verdict(0x02, sense).action is Action.FAIL
    assert flush_verdict(0x02, sense).action is Action.FAIL


def test_iscsi_conditions_are_reissued() -> None:
    for asc, ascq in ((0x0C, 0x0C), (0x0C, 0x0D), (0x47, 0x05), (0x11, 0x13)):
        assert verdict(0x02, fixed(Key.ABORTED_COMMAND, asc, ascq)).action is Action.RETRY


@pytest.mark.parametrize("data", [fixed(3, 0x0C, 0x00, code=0x71), descriptor(3, 0x0C, 0x00, code=0x73)])
def test_a_deferred_error_is_about_a_write_that_was_acknowledged(data: bytes) -> None:
    judged = verdict(0x02, data)
    assert (judged.action, judged.attention) == (Action.ATTENTION, Attention.WRITE_LOST)
    assert "deferred" in judged.reason


def test_a_flush_without_a_cache_is_done_and_nothing_else_is() -> None:
    no_command = fixed(Key.ILLEGAL_REQUEST, 0x20, 0x00)
    assert flush_verdict(0x02, no_command).action is Action.DONE
    assert verdict(0x02, no_command).action is Action.FAIL
    for key, asc, ascq in ((0x5, 0x24, 0x00), (0x5, 0x20, 0x02), (0x4, 0x20, 0x00), (0x3, 0x0C, 0x00)):
        assert flush_verdict(0x02, fixed(key, asc, ascq)).action is Action.FAIL
    assert flush_verdict(0x02, fixed(0x5, 0x20, 0x00, code=0x71)).action is Action.ATTENTION
    assert flush_verdict(0x00).action is Action.DONE


def test_unsupported_commands_and_fields_are_told_apart() -> None:
    assert is_unsupported_command(Sense(Key.ILLEGAL_REQUEST, 0x20, 0x00))
    assert is_unsupported_field(Sense(Key.ILLEGAL_REQUEST, 0x24, 0x00))
    assert not is_unsupported_command(Sense(Key.ILLEGAL_REQUEST, 0x24, 0x00))
    assert not is_unsupported_field(Sense(Key.ABORTED_COMMAND, 0x24, 0x00))


def test_sense_reads_as_words() -> None:
    assert str(Sense(Key.NOT_READY, 0x04, 0x01)) == "NOT READY 04/01 (logical unit is becoming ready)"
    assert str(Sense(Key.VENDOR_SPECIFIC, 0xA0, 0x02)) == "VENDOR SPECIFIC A0/02"


def test_every_code_that_has_a_verdict_of_its_own_has_words() -> None:
    assert {row[1:] for row in VERDICTS if len(row) == 3} <= set(CODES)
