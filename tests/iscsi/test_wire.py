"""The numbers every PDU carries, and the queue of what must be sent."""

from __future__ import annotations

import pytest

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.serial import MASK
from isblk.iscsi.wire import Wire
from support.scripts import LUN_1, Sent, digest, login_result, taken_apart, words


def sent(wire: Wire, digests: bool = False) -> list[Sent]:
    return list(taken_apart(b"".join(bytes(piece) for piece in wire.out), digests))


def test_a_request_that_is_no_command_is_these_bytes() -> None:
    wire = Wire(login_result(cmd_sn=0x1234, exp_stat_sn=0x77))
    wire.emit(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, 0xC0000000, lun=LUN_1, word20=0xAABBCCDD, word32=0x55, data=b"abc")
    expected = bytes.fromhex("4080000000000003") + LUN_1 + words(0xC0000000, 0xAABBCCDD, 0x1234, 0x77, 0x55, 0, 0, 0) + b"abc\0"
    assert b"".join(bytes(piece) for piece in wire.out) == expected


def test_an_immediate_request_carries_the_command_number_and_leaves_it() -> None:
    wire = Wire(login_result(cmd_sn=9))
    wire.emit(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, 1)
    wire.emit(pdu.NOP_OUT, pdu.FINAL, 2, cmd_sn=5)
    assert [one.cmd_sn for one in sent(wire)] == [9, 5]
    assert wire.window.cmd_sn == 9


@pytest.mark.parametrize("header, data", [(True, False), (False, True), (True, True)])
def test_digests_follow_what_was_negotiated(header: bool, data: bool) -> None:
    wire = Wire(login_result(header_digest=header, data_digest=data))
    wire.emit(pdu.TEXT | pdu.IMMEDIATE, pdu.FINAL, 1, data=b"12345")
    stream = b"".join(bytes(piece) for piece in wire.out)
    bhs = stream[:48]
    assert stream[48:] == (digest(bhs) if header else b"") + b"12345\0\0\0" + (digest(b"12345\0\0\0") if data else b"")


def test_a_status_in_turn_counts_and_brings_the_window_along() -> None:
    wire = Wire(login_result(exp_stat_sn=5, cmd_sn=1, window=1))
    assert wire.status(5, 2, 9)
    assert wire.exp_stat_sn == 6
    assert (wire.window.exp_cmd_sn, wire.window.max_cmd_sn) == (2, 9)


def test_a_status_seen_before_is_a_duplicate() -> None:
    wire = Wire(login_result(exp_stat_sn=5))
    assert not wire.status(4, 1, 32)
    assert wire.exp_stat_sn == 5


def test_a_gap_in_the_status_numbers_is_a_lost_status() -> None:
    wire = Wire(login_result(exp_stat_sn=5))
    with pytest.raises(ProtocolError, match="StatSN 6 came where 5 was due"):
        wire.status(6, 1, 32)


def test_status_numbers_wrap() -> None:
    wire = Wire(login_result(exp_stat_sn=MASK))
    assert wire.status(MASK, 1, 32) and wire.exp_stat_sn == 0
    assert not wire.status(MASK, 1, 32)
    assert wire.status(0, 1, 32)
    with pytest.raises(ProtocolError):
        wire.status(2, 1, 32)


def test_a_trace_hears_each_pdu_without_its_data() -> None:
    wire = Wire(login_result())
    heard: list[tuple[str, str]] = []
    wire.trace = lambda direction, text: heard.append((direction, text))
    wire.emit(pdu.TEXT | pdu.IMMEDIATE, pdu.FINAL, 1, data=b"SendTargets=All\0")
    assert len(heard) == 1 and heard[0][0] == "->"
    assert heard[0][1].startswith("Text immediate") and "SendTargets" not in heard[0][1]
