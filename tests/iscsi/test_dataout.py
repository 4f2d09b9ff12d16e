"""Write data on its way out: the four combinations, the limits, and the bytes of each Data-Out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi.dataout import DataOut
from isblk.iscsi.task import Task
from support.scripts import LUN_1, NO_TAG, WRITE_CDB, Sent, negotiated, taken_apart, words

Pieces = list[bytes | memoryview]


def a_write(length: int) -> Task:
    task = Task(LUN_1, WRITE_CDB, None, memoryview(bytes(index % 251 for index in range(length))))
    task.itt = 0x55
    return task


def burst(task: Task, offset: int, length: int, ttt: int = 0x99, **changes: Any) -> tuple[Pieces, list[Sent]]:
    pieces: Pieces = []
    settings = negotiated(**changes)
    DataOut(settings).burst(task, ttt, offset, length, 0x33, pieces)
    return pieces, list(taken_apart(b"".join(bytes(piece) for piece in pieces), settings.header_digest))


@pytest.mark.parametrize(
    "initial_r2t, immediate_data, length, immediate, unsolicited",
    [
        (True, False, 5000, 0, 0),
        (True, True, 5000, 1024, 1024),
        (True, True, 600, 600, 600),
        (False, False, 5000, 0, 3000),
        (False, False, 2000, 0, 2000),
        (False, True, 5000, 1024, 3000),
        (False, True, 1000, 1000, 1000),
        (False, True, 3000, 1024, 3000),
    ],
)
def test_what_goes_unasked_follows_the_four_combinations(
    initial_r2t: bool, immediate_data: bool, length: int, immediate: int, unsolicited: int
) -> None:
    out = DataOut(
        negotiated(
            initial_r2t=initial_r2t, immediate_data=immediate_data, first_burst_length=3000, target_max_recv_data_segment_length=1024
        )
    )
    assert (out.immediate(length), out.unsolicited(length)) == (immediate, unsolicited)


def test_immediate_data_counts_towards_a_first_burst_shorter_than_a_segment() -> None:
    out = DataOut(negotiated(initial_r2t=False, first_burst_length=512, target_max_recv_data_segment_length=8192))
    assert out.immediate(10_000) == out.unsolicited(10_000) == 512


def test_a_solicited_data_out_is_these_bytes() -> None:
    _, sent = burst(a_write(5000), 4096, 512)
    expected = bytes.fromhex("0580000000000200") + LUN_1 + words(0x55, 0x99, 0, 0x33, 0, 0, 4096, 0)
    assert [one.bhs for one in sent] == [expected]


def test_an_unsolicited_data_out_has_the_reserved_tag_and_no_lun() -> None:
    _, sent = burst(a_write(1000), 0, 1000, NO_TAG)
    assert [(one.ttt, one.lun) for one in sent] == [(NO_TAG, bytes(8))]


def test_a_burst_is_cut_at_the_targets_segment_and_final_at_its_end_only() -> None:
    task = a_write(10_000)
    _, sent = burst(task, 1000, 5000, target_max_recv_data_segment_length=2048)
    assert [(one.word(36), one.word(40), len(one.data), one.final) for one in sent] == [
        (0, 1000, 2048, False),
        (1, 3048, 2048, False),
        (2, 5096, 904, True),
    ]
    assert task.write_from is not None
    assert b"".join(one.data for one in sent) == task.write_from[1000:6000]


def test_each_burst_begins_with_data_sn_zero() -> None:
    task = a_write(4096)
    for offset in (0, 2048):
        _, sent = burst(task, offset, 2048, target_max_recv_data_segment_length=1024)
        assert [one.word(36) for one in sent] == [0, 1]


@pytest.mark.parametrize("header_digest, data_digest", [(False, False), (True, True)])
def test_payload_is_a_view_of_the_callers_memory(header_digest: bool, data_digest: bool) -> None:
    memory = bytearray(3000)
    task = Task(LUN_1, WRITE_CDB, None, memoryview(memory))
    task.itt = 1
    pieces, _ = burst(task, 0, 3000, header_digest=header_digest, data_digest=data_digest, target_max_recv_data_segment_length=1024)
    assert sum(len(piece) for piece in pieces if isinstance(piece, memoryview) and piece.obj is memory) == 3000


def test_a_burst_without_digests_is_two_buffers_a_pdu() -> None:
    pieces, sent = burst(a_write(1 << 16), 0, 1 << 16, target_max_recv_data_segment_length=8192)
    assert len(sent) == 8 and len(pieces) == 16


@given(
    length=st.integers(1, 20_000),
    start=st.integers(0, 5000),
    segment=st.integers(512, 9000),
    digests=st.booleans(),
)
def test_any_burst_is_exactly_what_was_asked_for(length: int, start: int, segment: int, digests: bool) -> None:
    task = a_write(25_000)
    _, sent = burst(task, start, length, target_max_recv_data_segment_length=segment, header_digest=digests, data_digest=digests)
    assert task.write_from is not None
    assert b"".join(one.data for one in sent) == task.write_from[start : start + length]
    assert all(len(one.data) <= segment for one in sent)
    assert [one.final for one in sent] == [False] * (len(sent) - 1) + [True]
    assert [one.word(36) for one in sent] == list(range(len(sent)))
    assert [one.word(40) for one in sent] == [start + sum(len(each.data) for each in sent[:index]) for index in range(len(sent))]


def test_a_task_that_writes_nothing_has_no_burst() -> None:
    with pytest.raises(AssertionError, match="nothing to write"):
        burst(Task(LUN_1, WRITE_CDB), 0, 1)


@pytest.mark.parametrize("count", [1, 2, 256, 257, 258, 600])
def test_long_bursts_are_the_same_pdus_with_digests_and_without(count: int) -> None:
    """Without, headers are put together in runs; twice, for what is kept of them."""
    task = a_write(8 + 4 * count)
    _, digested = burst(task, 8, 4 * count, target_max_recv_data_segment_length=4, header_digest=True, data_digest=True)
    for _ in range(2):
        _, plain = burst(task, 8, 4 * count, target_max_recv_data_segment_length=4)
        assert [(each.bhs, each.data) for each in plain] == [(each.bhs, each.data) for each in digested]
