from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from isblk.target.extents import Extents

RANGES = st.tuples(st.integers(0, 60), st.integers(1, 20))


def test_ranges_that_touch_become_one() -> None:
    extents = Extents()
    extents.add(0, 10)
    extents.add(20, 30)
    extents.add(10, 20)
    assert list(extents) == [(0, 30)]
    assert extents.size == 30


def test_removing_from_the_middle_leaves_both_ends() -> None:
    extents = Extents()
    extents.add(0, 30)
    extents.remove(10, 20)
    assert list(extents) == [(0, 10), (20, 30)]
    assert extents.overlapping(5, 25) == [(5, 10), (20, 25)]
    assert extents.after(10) == (20, 30)
    assert extents.after(30) is None


def test_clear_forgets_everything() -> None:
    extents = Extents()
    extents.add(3, 9)
    extents.clear()
    assert not extents
    assert extents.size == 0


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=30), RANGES)
def test_it_is_a_set_of_bytes_whatever_the_order_of_operations(steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    extents, model = Extents(), set[int]()
    for is_add, (start, length) in steps:
        if is_add:
            extents.add(start, start + length)
            model |= set(range(start, start + length))
        else:
            extents.remove(start, start + length)
            model -= set(range(start, start + length))
    assert {byte for start, end in extents for byte in range(start, end)} == model
    assert extents.size == len(model)
    ranges = list(extents)
    assert all(one[1] < other[0] for one, other in pairwise(ranges))
    start, length = asked
    cut = {byte for first, end in extents.overlapping(start, start + length) for byte in range(first, end)}
    assert cut == model & set(range(start, start + length))
