from __future__ import annotations

from dataclasses import replace

import pytest

from isblk.errors import ProtocolError
from isblk.target.negotiate import Agreed
from isblk.target.tasks import INCORRECT_AMOUNT, UNEXPECTED_DATA, Task

AGREED = Agreed(initial_r2t=False, first_burst_length=1000, max_burst_length=2000, max_outstanding_r2t=2)


def task(expected: int, immediate: int = 0, more: bool = False, agreed: Agreed = AGREED) -> Task:
    made = Task(1, bytes(8), bytes(16), expected, is_read=False, is_write=True, immediate=False)
    made.begin_data(immediate, more, agreed)
    return made


def take(made: Task, ttt: int | None, data_sn: int, offset: int, length: int, final: bool, agreed: Agreed = AGREED) -> None:
    made.take(made.locate(ttt, data_sn, offset, length, agreed), length, final, agreed)


def test_everything_immediate_is_complete() -> None:
    assert task(500, 500).complete
    assert not task(500, 400).complete
    assert task(0).complete


def test_unsolicited_data_follows_immediate_data_up_to_first_burst() -> None:
    made = task(3000, 400, more=True)
    take(made, None, 0, 400, 300, final=False)
    take(made, None, 1, 700, 300, final=True)
    assert made.failure == b""
    assert not made.unsolicited
    burst = made.solicit(7, AGREED)
    assert burst is not None
    assert (burst.offset, burst.length) == (1000, 2000)


def test_r2ts_cover_the_rest_in_bursts_and_are_counted() -> None:
    made = task(5500)
    assert [made.solicit(tag, AGREED) is not None for tag in (1, 2, 3)] == [True, True, False]
    take(made, 1, 0, 0, 1500, final=False)
    take(made, 1, 1, 1500, 500, final=True)
    third = made.solicit(3, AGREED)
    assert third is not None
    assert (third.offset, third.length) == (4000, 1500)
    assert made.r2t_sn == 3
    take(made, 2, 0, 2000, 2000, final=True)
    take(made, 3, 0, 4000, 1500, final=True)
    assert made.complete
    assert made.solicit(4, AGREED) is None


@pytest.mark.parametrize(
    "made, sense",
    [
        (task(500, 100, agreed=replace(AGREED, immediate_data=False)), UNEXPECTED_DATA),
        (task(500, more=True, agreed=replace(AGREED, initial_r2t=True)), UNEXPECTED_DATA),
        (task(5000, 1001), INCORRECT_AMOUNT),
        (task(50, 51), INCORRECT_AMOUNT),
    ],
)
def test_data_that_was_not_agreed_fails_the_command(made: Task, sense: bytes) -> None:
    assert made.failure == sense


def test_too_little_unsolicited_data_fails_the_command() -> None:
    made = task(3000, more=True)
    take(made, None, 0, 0, 999, final=True)
    assert made.failure == INCORRECT_AMOUNT
    short = task(300, more=True)
    take(short, None, 0, 0, 300, final=True)
    assert short.failure == b""
    assert short.complete


@pytest.mark.parametrize(
    "ttt, data_sn, offset, length",
    [
        (None, 0, 0, 10),
        (9, 0, 0, 10),
        (2, 0, 2000, 10),
        (1, 1, 0, 10),
        (1, 0, 10, 10),
        (1, 0, 0, 2001),
    ],
)
def test_solicited_data_that_does_not_fit_is_a_protocol_error(ttt: int | None, data_sn: int, offset: int, length: int) -> None:
    made = task(5000)
    made.solicit(1, AGREED)
    made.solicit(2, AGREED)
    with pytest.raises(ProtocolError):
        made.locate(ttt, data_sn, offset, length, AGREED)


@pytest.mark.parametrize("data_sn, offset, length", [(1, 0, 10), (0, 10, 10), (0, 0, 1001)])
def test_unsolicited_data_that_does_not_fit_is_a_protocol_error(data_sn: int, offset: int, length: int) -> None:
    with pytest.raises(ProtocolError):
        task(5000, more=True).locate(None, data_sn, offset, length, AGREED)


def test_final_at_the_wrong_place_is_a_protocol_error() -> None:
    early, late = task(2000), task(2000)
    for made in (early, late):
        made.solicit(1, AGREED)
    with pytest.raises(ProtocolError):
        take(early, 1, 0, 0, 100, final=True)
    with pytest.raises(ProtocolError):
        take(late, 1, 0, 0, 2000, final=False)


def test_an_aborting_task_asks_for_nothing_and_may_be_ended_early() -> None:
    made = task(6000)
    made.solicit(1, AGREED)
    made.aborting = True
    assert made.solicit(2, AGREED) is None
    take(made, 1, 0, 0, 10, final=True)
    assert not made.bursts


def test_order_matters_only_where_it_was_agreed() -> None:
    loose = replace(AGREED, data_pdu_in_order=False, data_sequence_in_order=False)
    made = task(4000, agreed=loose)
    made.solicit(1, loose)
    made.solicit(2, loose)
    take(made, 2, 0, 3000, 1000, final=False, agreed=loose)
    take(made, 1, 0, 0, 2000, final=True, agreed=loose)
    take(made, 2, 1, 2000, 1000, final=True, agreed=loose)
    assert made.complete
