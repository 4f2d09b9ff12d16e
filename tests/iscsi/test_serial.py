"""Serial numbers and the command window around the wrap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi.serial import MASK, CommandWindow, follows

numbers = st.integers(0, MASK)


@pytest.mark.parametrize(
    "later, earlier, answer",
    [
        (1, 0, True),
        (0, 1, False),
        (5, 5, False),
        (0, MASK, True),
        (MASK, 0, False),
        (0x80000000, 1, True),
        (0x80000000, 0, False),
        (0x7FFFFFFF, 0, True),
    ],
)
def test_one_number_follows_another_on_the_circle(later: int, earlier: int, answer: bool) -> None:
    assert follows(later, earlier) is answer


@given(numbers, st.integers(1, 0x7FFFFFFF))
def test_whatever_lies_less_than_half_a_circle_ahead_follows(start: int, distance: int) -> None:
    assert follows((start + distance) & MASK, start)
    assert not follows(start, (start + distance) & MASK)


def test_a_window_has_room_up_to_and_including_its_maximum() -> None:
    assert CommandWindow(10, 10, 13).room == 4
    assert CommandWindow(10, 10, 10).room == 1


def test_a_maximum_one_below_the_expected_number_closes_the_window() -> None:
    assert CommandWindow(10, 10, 9).room == 0


def test_a_maximum_far_behind_gives_no_room() -> None:
    assert CommandWindow(10, 10, 3).room == 0


def test_numbers_are_taken_in_order_and_wrap() -> None:
    window = CommandWindow(MASK - 1, MASK - 1, 1)
    assert window.room == 4
    assert [window.take() for _ in range(4)] == [MASK - 1, MASK, 0, 1]
    assert window.room == 0 and window.cmd_sn == 2


def test_an_update_across_the_wrap_opens_the_window() -> None:
    window = CommandWindow(MASK, MASK, MASK)
    window.take()
    window.update(0, 2)
    assert (window.exp_cmd_sn, window.max_cmd_sn, window.room) == (0, 2, 3)


@pytest.mark.parametrize("pair", [(12, 10), (10, 12), (9, 13), (MASK, 5), (13, 11)], ids=str)
def test_old_or_senseless_pairs_are_ignored_where_they_are_old_or_senseless(pair: tuple[int, int]) -> None:
    window = CommandWindow(12, 11, 13)
    window.update(*pair)
    assert window.max_cmd_sn == 13 and window.room == 2
    assert window.exp_cmd_sn in (11, 12)


def test_a_pair_whose_maximum_is_below_the_expected_number_less_one_is_ignored_whole() -> None:
    window = CommandWindow(12, 11, 13)
    window.update(20, 18)
    assert (window.exp_cmd_sn, window.max_cmd_sn) == (11, 13)


def test_a_window_may_close_by_the_expected_number_catching_up() -> None:
    window = CommandWindow(10, 10, 10)
    window.take()
    window.update(11, 10)
    assert (window.exp_cmd_sn, window.room) == (11, 0)


@given(numbers, st.lists(st.tuples(numbers, numbers), max_size=20))
def test_the_window_never_shrinks_and_its_room_is_never_negative(start: int, updates: list[tuple[int, int]]) -> None:
    window = CommandWindow(start, start, (start + 3) & MASK)
    for exp_cmd_sn, max_cmd_sn in updates:
        before = window.max_cmd_sn
        window.update(exp_cmd_sn, max_cmd_sn)
        assert window.max_cmd_sn == before or follows(window.max_cmd_sn, before)
        assert window.room >= 0


def test_a_window_tells_its_numbers() -> None:
    assert repr(CommandWindow(2, 1, 9)) == "<CommandWindow cmd_sn=2 exp=1 max=9 room=8>"
