"""Buffers within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.export.nbdmemory import CLASSES, HOLD_FROM, KEPT, ROOM, Hold, Memory, Slot


def test_a_buffer_holds_what_was_asked_for_and_room_for_a_header() -> None:
    memory = Memory(1 << 30)
    for length in (0, 1, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1, 32 << 20):
        slot = memory.take(length)
        assert slot is not None
        assert slot.size == len(slot.data) >= length
        slot.data[:1] = b"x"
        assert slot.memory[ROOM] == ord("x")
        assert len(slot.memory) == ROOM + slot.size
        memory.give(slot)
    assert memory.used == 0


def test_buffers_are_used_again_but_not_all_are_kept() -> None:
    memory = Memory(1 << 30)
    first = memory.take(100)
    assert first is not None
    memory.give(first)
    assert memory.take(4096) is first
    many = [memory.take(1 << 20) for _ in range(40)]
    for _ in range(3):
        for slot in many:
            assert slot is not None
            memory.give(slot)
        memory.trim()
        again = [memory.take(1 << 20) for _ in range(40)]
        assert all(any(slot is each for each in many) for slot in again), "while there is use for them"
    for slot in many:
        assert slot is not None
        memory.give(slot)
    for may_shrink in (True, True, False):
        assert memory.may_shrink is may_shrink
        memory.trim()
    again = [memory.take(1 << 20) for _ in range(40)]
    assert sum(any(slot is each for each in many) for slot in again) == KEPT[CLASSES.index(1 << 20)]


def test_no_more_than_the_budget_is_lent_and_its_end_is_told() -> None:
    told: list[str] = []
    memory = Memory(10000)
    memory.on_room = lambda: told.append("room")
    one, two = memory.take(4096), memory.take(4096)
    assert one is not None and two is not None
    assert memory.take(4096) is None
    assert not told
    memory.give(one)
    assert told == ["room"]
    memory.give(two)
    assert told == ["room"], "only after somebody went without"


def test_many_come_back_as_one_by_one() -> None:
    told: list[str] = []
    memory = Memory(1 << 20)
    memory.on_room = lambda: told.append("room")
    lent = [memory.take(length) for length in (4096, 512, 65536, 4096, 262144)]
    slots = [slot for slot in lent if slot is not None]
    assert len(slots) == 5 and memory.take(1 << 20) is None and not told
    memory.give_all([])
    assert not told
    memory.give_all(slots)
    assert told == ["room"] and memory.used == 0
    assert memory.take(65536) is slots[2]
    many = [slot for slot in (Memory(1 << 30).take(1) for _ in range(KEPT[0] + 10)) if slot is not None]
    memory.used += 4096 * len(many)
    memory.give_all(many)
    assert memory.used == 65536
    again = [memory.take(1) for _ in range(200)]
    assert len({id(slot) for slot in again}) == 200


def test_a_reply_is_the_memory_from_where_to_where_it_was_asked_for() -> None:
    slot = Memory(1 << 20).take(4096)
    assert slot is not None
    for start, length in ((48, 4096), (48, 4096), (48, 512), (32, 512), (32, 4096)):
        slot.data[:length] = bytes([length % 251]) * length
        reply = slot.reply(start, ROOM + length)
        assert len(reply) == ROOM + length - start and reply[ROOM - start :] == slot.data[:length]


def test_one_request_is_always_served() -> None:
    memory = Memory(10000)
    large = memory.take(1 << 20)
    assert large is not None
    assert memory.take(1) is None
    memory.give(large)
    assert memory.take(1) is not None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100_000))))
def test_the_books_balance(steps: list[tuple[bool, int]]) -> None:
    memory, lent = Memory(200_000), []
    for take, length in steps:
        if take:
            slot = memory.take(length)
            assert (slot is None) == memory.short or slot is not None
            if slot is not None:
                assert not any(slot is other for other in lent)
                lent.append(slot)
        elif lent:
            memory.give(lent.pop(length % len(lent)))
        assert memory.used == sum(slot.size for slot in lent)
        assert memory.used <= 200_000 or len(lent) == 1
    for slot in lent:
        memory.give(slot)
    assert memory.used == 0


# ------------------------------------------------------------------------------------------------------------------------- holding


def taken(memory: Memory, length: int) -> Slot:
    slot = memory.take(length)
    assert slot is not None
    return slot


@pytest.mark.parametrize("ended_first", [True, False])
def test_a_held_buffer_comes_back_behind_its_request_and_its_hold(ended_first: bool) -> None:
    memory = Memory(1 << 20)
    slot = taken(memory, 1 << 20)
    slot.data[:] = b"held" * (1 << 18)
    hold = slot.hold(1 << 20)
    assert hold is not None and (memory.used, memory.held) == (1 << 20, 1 << 20)
    if ended_first:
        memory.give(slot)
        for _ in range(3):  # what is held takes nothing away from the requests that follow
            other = taken(memory, 1 << 20)
            assert other is not slot
            other.data[:] = bytes(1 << 20)
            memory.give(other)
        assert slot.data == b"held" * (1 << 18) and memory.used == 0
        taken(memory, 1 << 20)
        del hold
    else:
        del hold
        assert memory.held == 0 and memory.take(1 << 20) is None, "its request has not ended"
        memory.give(slot)
    assert memory.held == 0
    memory.used = 0
    assert memory.take(1 << 20) is slot


def test_a_buffer_is_held_until_the_last_one_who_does() -> None:
    memory = Memory(1 << 20)
    slot = taken(memory, 1 << 20)
    first, second = slot.hold(1 << 20), slot.hold(1 << 20)
    assert memory.held == 1 << 20
    memory.give(slot)
    del first
    assert second is not None and memory.held == 1 << 20 and memory.take(1 << 20) is not slot
    del second
    assert memory.held == 0


def test_small_buffers_half_empty_ones_and_too_many_are_not_held() -> None:
    memory = Memory(1 << 30, most_held=3 << 16)
    assert taken(memory, 4096).hold(4096) is None
    assert taken(memory, HOLD_FROM).hold(HOLD_FROM // 2) is None
    held = [taken(memory, HOLD_FROM).hold(HOLD_FROM // 2 + 1) for _ in range(4)]
    assert [each is not None for each in held] == [True, True, True, False]
    assert taken(memory, 1 << 20).hold(1 << 20) is None
    held.pop(0)
    assert taken(memory, HOLD_FROM).hold(HOLD_FROM) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 17))))
def test_nobody_is_lent_what_another_has_or_holds(steps: list[tuple[int, int]]) -> None:
    memory = Memory(1 << 20, 1 << 18)
    lent: list[Slot] = []
    holds: list[tuple[Slot, Hold]] = []
    for step, number in steps:
        if step == 0 and (slot := memory.take(number)) is not None:
            assert not any(slot is other for other in lent) and not any(slot is other for other, _ in holds)
            lent.append(slot)
        elif step == 1 and lent:
            slot = lent[number % len(lent)]
            hold = slot.hold(number)
            holds += [(slot, hold)] if hold is not None else []
            del hold
        elif step == 2 and lent:
            memory.give(lent.pop(number % len(lent)))
        elif step == 3 and holds:
            del holds[number % len(holds)]
        assert memory.used == sum(slot.size for slot in lent)
        assert memory.held == sum({id(slot): slot.size for slot, _ in holds}.values())
