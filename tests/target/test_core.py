from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.pdu import RejectReason
from isblk.target import core
from isblk.target.config import Offer
from isblk.target.luns import encode_lun
from support.rawinitiator import Answer, RawInitiator, logged_in, read10, write10
from support.targets import AWKWARD, configuration, disk

BLOCK = 512


def start(offer: Offer | None = None, *pairs: tuple[str, str]) -> RawInitiator:
    return logged_in(replace(configuration((disk(0), disk(1))), offer=offer or Offer()), *pairs)


@pytest.fixture
def initiator() -> Iterator[RawInitiator]:
    made = start()
    yield made
    made.node.units.close()


def content(initiator: RawInitiator, offset: int, length: int) -> bytes:
    return bytes(initiator.node.units.units[0].store.read(offset, length))


# Reading


def test_a_short_read_is_one_data_in_with_the_status_in_it(initiator: RawInitiator) -> None:
    initiator.node.units.units[0].store.write(0, b"r" * BLOCK)
    (answer,) = initiator.command(read10(0, 1), read=BLOCK)
    assert (answer.opcode, answer.flags, answer.status) == (pdu.DATA_IN, pdu.FINAL | pdu.DATA_STATUS, 0)
    assert answer.data == b"r" * BLOCK
    assert answer.words == (0, 0, 0)


def test_without_collapse_the_status_comes_in_its_own_pdu() -> None:
    initiator = start(Offer(collapsed_status=False))
    data, status = initiator.command(read10(0, 1), read=BLOCK)
    assert (data.opcode, data.flags, data.stat_sn) == (pdu.DATA_IN, pdu.FINAL, 0)
    assert (status.opcode, status.flags, status.words) == (pdu.SCSI_RESPONSE, pdu.FINAL, (1, 0, 0))
    (nothing,) = initiator.command(bytes(6))
    assert nothing.stat_sn == status.stat_sn + 1


def test_data_in_is_split_at_the_initiators_segment_and_ends_a_sequence_at_max_burst() -> None:
    initiator = start(None, ("MaxRecvDataSegmentLength", "1024"), ("MaxBurstLength", "2560"))
    payload = os.urandom(12 * BLOCK)
    initiator.node.units.units[0].store.write(0, payload)
    answers = initiator.command(read10(0, 12), read=12 * BLOCK)
    assert b"".join(answer.data for answer in answers) == payload
    assert [answer.words[0] for answer in answers] == list(range(len(answers)))
    assert [(answer.words[1], len(answer.data)) for answer in answers] == [
        (0, 1024),
        (1024, 1024),
        (2048, 512),
        (2560, 1024),
        (3584, 1024),
        (4608, 512),
        (5120, 1024),
    ]
    assert [bool(answer.flags & pdu.FINAL) for answer in answers] == [False, False, True, False, False, True, True]
    assert [bool(answer.flags & pdu.DATA_STATUS) for answer in answers] == [False] * 6 + [True]


@pytest.mark.parametrize(
    "blocks, expected, flag, residual",
    [
        (2, 3 * BLOCK, pdu.RESPONSE_UNDERFLOW, BLOCK),
        (3, 2 * BLOCK, pdu.RESPONSE_OVERFLOW, BLOCK),
        (0, BLOCK, pdu.RESPONSE_UNDERFLOW, BLOCK),
    ],
)
def test_residuals_of_reads(initiator: RawInitiator, blocks: int, expected: int, flag: int, residual: int) -> None:
    answer = initiator.command(read10(0, blocks), read=expected)[-1]
    assert answer.flags & 6 == flag
    assert answer.words[2] == residual
    assert len(answer.data) == min(expected, blocks * BLOCK)


def test_a_failed_command_brings_sense_and_the_whole_residual(initiator: RawInitiator) -> None:
    (answer,) = initiator.command(bytes((0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1, 0)), read=BLOCK)
    assert (answer.opcode, answer.status) == (pdu.SCSI_RESPONSE, 2)
    assert answer.data[:2] == b"\0\x12"
    assert answer.sense[12] == 0x21
    assert answer.flags & 6 == pdu.RESPONSE_UNDERFLOW
    assert answer.words[2] == BLOCK


# Writing


@pytest.mark.parametrize("initial_r2t, immediate_data", list(product(("Yes", "No"), repeat=2)))
def test_a_write_in_each_of_the_four_cases(initial_r2t: str, immediate_data: str) -> None:
    initiator = start(
        None,
        ("InitialR2T", initial_r2t),
        ("ImmediateData", immediate_data),
        ("FirstBurstLength", "2048"),
        ("MaxBurstLength", "2048"),
        ("MaxOutstandingR2T", "2"),
    )
    payload = os.urandom(16 * BLOCK)
    at = 1024 if immediate_data == "Yes" else 0
    answers = initiator.command(write10(0, 16), write=len(payload), data=payload[:at], final=initial_r2t == "Yes")
    if initial_r2t == "No":
        assert answers == []
        assert initiator.data_out(payload[at : at + 512], at, 0, final=False) == []
        answers = initiator.data_out(payload[at + 512 : 2048], at + 512, 1)
        at = 2048
    while answers[0].opcode == pdu.R2T:
        more: list[Answer] = []
        for r2t in answers:
            _, offset, length = r2t.words
            assert length <= 2048
            more += initiator.data_out(payload[offset : offset + length], offset, ttt=r2t.ttt)
        answers = more
    assert [(answer.opcode, answer.status, answer.words[2]) for answer in answers] == [(pdu.SCSI_RESPONSE, 0, 0)]
    assert content(initiator, 0, len(payload)) == payload
    initiator.node.units.close()


def test_several_r2ts_are_outstanding_at_once_and_do_not_advance_stat_sn() -> None:
    initiator = start(None, ("InitialR2T", "Yes"), ("MaxBurstLength", "512"), ("MaxOutstandingR2T", "3"))
    answers = initiator.command(write10(0, 5), write=5 * BLOCK)
    assert [answer.words for answer in answers] == [(0, 0, 512), (1, 512, 512), (2, 1024, 512)]
    assert len({answer.ttt for answer in answers}) == 3
    assert len({answer.stat_sn for answer in answers}) == 1
    (fourth,) = initiator.data_out(b"1" * BLOCK, 0, ttt=answers[0].ttt)
    assert fourth.words == (3, 1536, 512)


@pytest.mark.parametrize(
    "blocks, expected, flag, residual", [(2, 1536, pdu.RESPONSE_UNDERFLOW, 512), (4, 1536, pdu.RESPONSE_OVERFLOW, 512), (3, 1536, 0, 0)]
)
def test_residuals_of_writes(initiator: RawInitiator, blocks: int, expected: int, flag: int, residual: int) -> None:
    (answer,) = initiator.command(write10(0, blocks), write=expected, data=b"w" * expected)
    assert (answer.status, answer.flags & 6, answer.words[2]) == (0, flag, residual)


def test_a_write_that_fails_has_no_residual_of_what_was_sent(initiator: RawInitiator) -> None:
    (answer,) = initiator.command(write10(0xFFFFFFF0, 1), write=BLOCK, data=bytes(BLOCK))
    assert (answer.status, answer.sense[12], answer.words[2]) == (2, 0x21, 0)


def test_an_absurd_length_is_refused_before_memory_is_spent(initiator: RawInitiator) -> None:
    (answer,) = initiator.command(write10(0, 1), write=0xFFFFFFFF)
    assert (answer.status, answer.sense[12]) == (2, 0x24)


def test_data_out_for_an_unknown_task_is_ignored(initiator: RawInitiator) -> None:
    assert initiator.data_out(b"x" * 512, 0, itt=77) == []
    assert not initiator.connection.closing


@pytest.mark.parametrize("length", [1000, 200_000])
def test_large_and_small_segments_land_in_order_however_the_bytes_arrive(length: int) -> None:
    blocks = -(-length // BLOCK)
    payload = os.urandom(blocks * BLOCK)
    for chunk in (1 << 20, 70_000, 4096):
        initiator = start(
            Offer(max_recv_data_segment_length=1 << 20, first_burst_length=1 << 20), ("InitialR2T", "Yes"), ("FirstBurstLength", "1048576")
        )
        (answer,) = initiator.command(write10(0, blocks), write=len(payload), data=payload, chunk=chunk)
        assert answer.status == 0
        assert content(initiator, 0, len(payload)) == payload
        (r2t,) = initiator.command(write10(8, blocks), write=len(payload))
        bhs = pdu.INITIATOR.pack(pdu.DATA_OUT, 0x80, 0, len(payload), bytes(8), initiator.itt, r2t.ttt, 0, 0, 0, 0, 0, 0)
        (answer,) = initiator.send(bhs, payload, chunk)
        assert answer.status == 0
        assert content(initiator, 8 * BLOCK, len(payload)) == payload
        initiator.node.units.close()


def test_immediate_data_of_a_command_that_waits_is_kept(initiator: RawInitiator) -> None:
    initiator.node.hold = lambda lun, cdb: True
    initiator.command(write10(0, 1), write=BLOCK, data=b"k" * BLOCK)
    initiator.command(write10(1, 1), write=BLOCK, data=b"l" * BLOCK)
    initiator.node.hold = None
    assert initiator.node.release() == 2
    assert [answer.status for answer in initiator.collect()] == [0, 0]
    assert content(initiator, 0, 2 * BLOCK) == b"k" * BLOCK + b"l" * BLOCK


# Order and window


def test_commands_run_in_the_order_of_their_numbers(initiator: RawInitiator) -> None:
    first, second, third = (initiator.next_cmd_sn() for _ in range(3))
    assert initiator.command(write10(0, 1), write=BLOCK, data=b"3" * BLOCK, cmd_sn=third) == []
    assert initiator.command(write10(0, 1), write=BLOCK, data=b"2" * BLOCK, cmd_sn=second) == []
    answers = initiator.command(read10(0, 1), read=BLOCK, cmd_sn=first)
    assert [answer.opcode for answer in answers] == [pdu.DATA_IN, pdu.SCSI_RESPONSE, pdu.SCSI_RESPONSE]
    assert answers[0].data == bytes(BLOCK)
    assert content(initiator, 0, BLOCK) == b"3" * BLOCK


def test_an_immediate_command_does_not_wait_and_takes_no_number(initiator: RawInitiator) -> None:
    (answer,) = initiator.command(bytes(6), immediate=True)
    assert answer.exp_cmd_sn == initiator.cmd_sn
    (answer,) = initiator.command(bytes(6))
    assert answer.exp_cmd_sn == initiator.cmd_sn


def test_commands_outside_the_window_and_duplicates_are_ignored() -> None:
    initiator = start(AWKWARD)
    beyond = (initiator.cmd_sn + 4) & 0xFFFFFFFF
    assert initiator.command(bytes(6), cmd_sn=beyond) == []
    assert initiator.command(bytes(6), cmd_sn=(initiator.cmd_sn - 1) & 0xFFFFFFFF) == []
    later = initiator.cmd_sn + 1
    assert initiator.command(bytes(6), cmd_sn=later) == []
    assert initiator.command(bytes(6), cmd_sn=later) == []
    assert len(initiator.command(bytes(6))) == 2
    assert not initiator.connection.tasks


def test_a_full_window_closes_and_opens_with_each_answer() -> None:
    initiator = start(AWKWARD)
    initiator.node.hold = lambda lun, cdb: True
    for _ in range(4):
        initiator.command(bytes(6))
    (pong,) = initiator.request(pdu.NOP_OUT, immediate=True, w20=pdu.RESERVED_TAG)
    assert (pong.exp_cmd_sn, pong.max_cmd_sn) == (initiator.cmd_sn, initiator.cmd_sn - 1)
    assert initiator.command(bytes(6), cmd_sn=initiator.cmd_sn) == []
    initiator.node.release(1)
    (answer,) = initiator.collect()
    assert answer.max_cmd_sn == initiator.cmd_sn


def test_sequence_numbers_go_around() -> None:
    initiator = start(replace(AWKWARD, window=8))
    seen = [initiator.command(bytes(6))[0].stat_sn for _ in range(12)]
    assert 0xFFFFFFFF in seen
    assert seen == [(seen[0] + step) & 0xFFFFFFFF for step in range(12)]


def test_a_task_tag_in_use_is_rejected_but_its_number_counts(initiator: RawInitiator) -> None:
    initiator.node.hold = lambda lun, cdb: True
    initiator.command(bytes(6), itt=5)
    (answer,) = initiator.command(bytes(6), itt=5)
    assert (answer.opcode, answer.second) == (pdu.REJECT, RejectReason.TASK_IN_PROGRESS)
    assert len(answer.data) == 48
    assert answer.exp_cmd_sn == initiator.cmd_sn


def test_a_bidirectional_command_is_not_supported(initiator: RawInitiator) -> None:
    (answer,) = initiator.command(bytes(6), read=512, write=512)
    assert (answer.opcode, answer.second) == (pdu.REJECT, RejectReason.COMMAND_NOT_SUPPORTED)


def test_much_output_holds_commands_back_until_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "OUTGOING_LIMIT", 2000)
    initiator = start()
    stream = b""
    for _ in range(10):
        bhs = pdu.COMMAND.pack(
            1, 0xC1, 0, 0, bytes(8), initiator.next_itt(), 1024, initiator.next_cmd_sn(), 0, read10(0, 2).ljust(16, b"\0")
        )
        stream += bhs
    initiator.connection.receive_buffer()[: len(stream)] = stream
    initiator.connection.received(len(stream))
    pieces = []
    while buffers := initiator.connection.outgoing():
        pieces.append(sum(len(each) for each in buffers))
    assert len(pieces) == 5
    assert sum(pieces) == 10 * (48 + 1024)


# NOP, text, logout, async


def test_a_ping_is_echoed_up_to_the_initiators_limit() -> None:
    initiator = start(None, ("MaxRecvDataSegmentLength", "512"))
    (answer,) = initiator.request(pdu.NOP_OUT, data=b"p" * 600, w20=pdu.RESERVED_TAG)
    assert (answer.opcode, answer.data, answer.itt, answer.ttt) == (pdu.NOP_IN, b"p" * 512, initiator.itt, pdu.RESERVED_TAG)


def test_a_ping_of_ours_is_answered(initiator: RawInitiator) -> None:
    before = initiator.command(bytes(6))[0].stat_sn
    ttt = initiator.connection.ping(b"there?", encode_lun(1))
    (ping,) = initiator.collect()
    assert (ping.opcode, ping.itt, ping.ttt, ping.data, ping.lun) == (pdu.NOP_IN, pdu.RESERVED_TAG, ttt, b"there?", encode_lun(1))
    assert ping.stat_sn == before + 1
    assert initiator.connection.pings == {ttt: None}
    assert initiator.request(pdu.NOP_OUT, data=b"there?", itt=pdu.RESERVED_TAG, w20=ttt, immediate=True) == []
    assert initiator.connection.pings == {ttt: b"there?"}
    assert initiator.command(bytes(6))[0].stat_sn == before + 1


def test_discovery_lists_the_target_in_pieces() -> None:
    initiator = RawInitiator(start(AWKWARD).node)
    initiator.log_in(discovery=True, isid=b"\x80\0\0\0\0\5")
    text, ttt, pairs = b"SendTargets=All\0", pdu.RESERVED_TAG, []
    while True:
        (answer,) = initiator.request(pdu.TEXT, data=text, w20=ttt, immediate=True)
        pairs += answer.text
        text, ttt = b"", answer.ttt
        if answer.flags & pdu.FINAL:
            break
        assert ttt != pdu.RESERVED_TAG
    assert ttt == pdu.RESERVED_TAG
    assert pairs == [("TargetName", initiator.node.config.name), ("TargetAddress", "127.0.0.1:3260,1")]


def test_a_discovery_session_does_nothing_else() -> None:
    initiator = RawInitiator(start().node)
    initiator.log_in(discovery=True, isid=b"\x80\0\0\0\0\5")
    (answer,) = initiator.command(bytes(6))
    assert (answer.opcode, answer.second) == (pdu.REJECT, RejectReason.PROTOCOL_ERROR)
    assert initiator.connection.closing


@pytest.mark.parametrize(
    "reason, cid, response, closing",
    [(0, 0, 0, True), (1, 0, 0, True), (1, 9, 1, False), (2, 0, 2, False)],
    ids=["session", "this", "other", "recovery"],
)
def test_logout(initiator: RawInitiator, reason: int, cid: int, response: int, closing: bool) -> None:
    (answer,) = initiator.request(pdu.LOGOUT, 0x80 | reason, w20=cid << 16)
    assert (answer.opcode, answer.second, answer.words[1]) == (pdu.LOGOUT_RESPONSE, response, 2 << 16 | 20)
    assert initiator.connection.closing is closing


def test_a_lost_connection_ends_its_session_and_its_tasks(initiator: RawInitiator) -> None:
    initiator.node.hold = lambda lun, cdb: True
    initiator.command(write10(0, 1), write=BLOCK, data=b"g" * BLOCK)
    initiator.connection.lost()
    initiator.connection.lost()
    assert not initiator.node.sessions
    initiator.node.release()
    assert content(initiator, 0, BLOCK) == bytes(BLOCK)
    assert initiator.collect() == []


def test_async_messages_have_their_fields(initiator: RawInitiator) -> None:
    initiator.connection.request_logout(15)
    (answer,) = initiator.collect()
    assert (answer.opcode, answer.itt, answer.words) == (pdu.ASYNC_MESSAGE, pdu.RESERVED_TAG, (1 << 24, 15, 0))
    initiator.connection.send_async(2, vcode=3, parameters=(4, 5, 6), lun=encode_lun(1), data=b"\0\2xy")
    (answer,) = initiator.collect()
    assert answer.words == (2 << 24 | 3 << 16 | 4, 5 << 16 | 6, 0)
    assert (answer.lun, answer.data) == (encode_lun(1), b"\0\2xy")


def test_a_snack_is_rejected_without_a_status_number_and_an_unknown_opcode_with_one(initiator: RawInitiator) -> None:
    (snack,) = initiator.request(pdu.SNACK, immediate=True)
    assert (snack.opcode, snack.second) == (pdu.REJECT, RejectReason.SNACK_REJECT)
    (unknown,) = initiator.request(0x1F, immediate=True)
    assert (unknown.opcode, unknown.second, unknown.stat_sn) == (pdu.REJECT, RejectReason.COMMAND_NOT_SUPPORTED, snack.stat_sn)
    assert initiator.command(bytes(6))[0].stat_sn == snack.stat_sn + 1


# Violations


@pytest.mark.parametrize(
    "breach",
    [
        lambda initiator: initiator.command(bytes(6), read=1, data=b"x"),
        lambda initiator: initiator.command(bytes(6), itt=pdu.RESERVED_TAG),
        lambda initiator: initiator.request(pdu.LOGIN),
        lambda initiator: initiator.request(pdu.LOGOUT, 0x83),
        lambda initiator: initiator.request(pdu.TEXT, w20=55),
        lambda initiator: initiator.request(pdu.TEXT, data=b"rubbish", w20=pdu.RESERVED_TAG),
    ],
    ids=["data with a read", "reserved tag", "second login", "logout reason", "wrong tag", "no text"],
)
def test_a_violation_is_rejected_with_the_header_and_ends_the_connection(initiator: RawInitiator, breach: object) -> None:
    answers: list[Answer] = breach(initiator)  # type: ignore[operator]
    assert (answers[-1].opcode, answers[-1].second, len(answers[-1].data)) == (pdu.REJECT, RejectReason.PROTOCOL_ERROR, 48)
    assert initiator.connection.closing
    assert initiator.connection.why
    assert initiator.command(bytes(6)) == []


def test_a_wrong_data_sn_ends_the_connection(initiator: RawInitiator) -> None:
    (r2t,) = initiator.command(write10(0, 1), write=BLOCK)
    (answer,) = initiator.data_out(b"x" * BLOCK, 0, data_sn=1, ttt=r2t.ttt)
    assert (answer.opcode, answer.second) == (pdu.REJECT, RejectReason.PROTOCOL_ERROR)


@pytest.mark.parametrize("key", ["HeaderDigest", "DataDigest"])
def test_digests_both_ways_and_a_wrong_one_ends_the_connection(key: str) -> None:
    initiator = start(None, (key, "CRC32C"))
    (answer,) = initiator.command(write10(0, 2), write=1024, data=b"d" * 1024)
    assert answer.status == 0
    (answer,) = initiator.command(read10(0, 2), read=1024)
    assert answer.data == b"d" * 1024
    bhs = pdu.COMMAND.pack(1, 0xA1, 0, 512, bytes(8), 99, 512, initiator.cmd_sn, 0, write10(0, 1).ljust(16, b"\0"))
    stream = bytearray(b"".join(frame(bhs, bytes(512), initiator.header_digest, initiator.data_digest)))
    stream[20 if key == "HeaderDigest" else 100] ^= 1
    assert initiator.send_bytes(bytes(stream)) == []
    assert initiator.connection.closing
    assert "digest" in initiator.connection.why


def test_a_segment_beyond_what_was_declared_ends_the_connection() -> None:
    initiator = start(AWKWARD)
    initiator.request(pdu.NOP_OUT, data=bytes(513), w20=pdu.RESERVED_TAG)
    assert initiator.connection.closing


def test_every_pdu_is_traced_in_one_line(initiator: RawInitiator) -> None:
    lines: list[str] = []
    initiator.node.trace = lambda direction, line: lines.append(direction + line)
    initiator.command(read10(0, 1), read=BLOCK)
    assert [line.split(" bytes")[0].split(" flags")[0] for line in lines] == ["<SCSI Command", ">Data-In"]


@given(st.lists(st.binary(min_size=48, max_size=120), max_size=6))
def test_rubbish_ends_its_own_connection_at_most(rubbish: list[bytes]) -> None:
    initiator = start()
    for each in rubbish:
        if initiator.connection.closing or initiator.connection.dropped:
            break
        # Whole PDUs with random headers: what a framer alone would never let through.
        bhs = each[:4] + b"\0" + (len(each) - 48).to_bytes(3, "big") + each[8:48]
        initiator.send(bhs, each[48:])
    other = RawInitiator(initiator.node)
    assert other.log_in(isid=b"\x80\0\0\0\0\5").login_status == 0
    initiator.node.units.close()
