"""fusememory.py: where requests land and what reads are answered from, within bounds."""

from __future__ import annotations

import ctypes
import gc

import pytest

from isblk.export.fusememory import CHUNK, CHUNKS_KEPT, KEPT, SIZES, Chunk, Landing, Slot, Slots
from isblk.export.fusewire import HEAD_LENGTH, MAX_WRITE, PAGE


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("size", SIZES)
def test_a_slots_data_fills_pages_right_behind_its_header(size: int) -> None:
    slot = Slot(size)
    assert (len(slot.data), len(slot.header), len(slot.reply)) == (size, 16, 16 + size)
    assert address(slot.data) % PAGE == 0
    slot.header[:] = b"h" * 16
    slot.data[:4] = b"data"
    assert slot.reply[:20] == b"h" * 16 + b"data"


@pytest.mark.parametrize("length, size", [(1, 4096), (4096, 4096), (4097, 65536), (200_000, 262144), (MAX_WRITE, MAX_WRITE)])
def test_a_slot_is_of_the_smallest_size_that_fits(length: int, size: int) -> None:
    slots = Slots()
    slot = slots.take(length)
    assert slot is not None and slot.size == size and slots.used == size
    slots.give(slot)
    assert slots.used == 0
    assert slots.take(length) is slot, "it is used again"


def test_the_budget_bounds_slots_but_one_is_always_there() -> None:
    slots = Slots(budget=65536)
    large = slots.take(MAX_WRITE)
    assert large is not None and slots.take(1) is None
    slots.give(large)
    taken = [slots.take(4096) for _ in range(16)]
    assert None not in taken and slots.take(1) is None
    for slot in taken:
        assert slot is not None
        slots.give(slot)
    assert slots.take(1) is not None


def test_more_free_slots_than_are_worth_keeping_are_let_go() -> None:
    slots = Slots(budget=1 << 30)
    taken = [slots.take(MAX_WRITE) for _ in range(KEPT[MAX_WRITE] + 3)]
    for slot in taken:
        assert slot is not None
        slots.give(slot)
    again = [slots.take(MAX_WRITE) for _ in taken]
    assert len({id(slot) for slot in again} & {id(slot) for slot in taken}) >= KEPT[MAX_WRITE]
    assert slots.used == len(taken) * MAX_WRITE


def test_there_is_always_room_for_the_largest_request() -> None:
    landing = Landing()
    for length in (1, 4096, 4097, MAX_WRITE, 512) * 5:
        buffers = landing.buffers()
        assert buffers is not None and [len(each) for each in buffers] == [HEAD_LENGTH, MAX_WRITE]
        assert address(buffers[1]) % PAGE == 0
        landing.keep(length)


def test_the_buffers_stay_the_same_until_something_is_kept() -> None:
    landing = Landing()
    assert landing.buffers() is landing.buffers()
    before = landing.buffers()
    landing.keep(512)
    assert landing.buffers() is not before


def test_small_payloads_share_a_chunk_and_never_overlap() -> None:
    landing = Landing()
    kept = []
    for number in range(40):
        landing.buffers()
        chunk, data = landing.keep(4096)
        data[:] = bytes([number]) * 4096
        kept.append((chunk, data))
    assert len({id(chunk) for chunk, _ in kept}) == 1
    assert all(data == bytes([number]) * 4096 for number, (_, data) in enumerate(kept))


def test_a_chunk_comes_back_with_the_last_of_its_payloads() -> None:
    landing = Landing(chunks=2)
    kept = []
    while landing.buffers() is not None:
        kept.append(landing.keep(MAX_WRITE)[0])
    assert len(kept) == 2
    landing.give(kept[0])
    assert landing.buffers() is not None
    landing.keep(MAX_WRITE)
    assert landing.buffers() is None
    landing.give(kept[1])
    assert landing.buffers() is not None


def test_a_chunk_of_small_payloads_waits_for_all_of_them() -> None:
    landing = Landing(chunks=1)
    kept = []
    while landing.buffers() is not None:
        kept.append(landing.keep(PAGE)[0])
    assert len(kept) == (CHUNK - MAX_WRITE) // PAGE + 1
    for chunk in kept[:-1]:
        landing.give(chunk)
        assert landing.buffers() is None
    landing.give(kept[-1])
    assert landing.buffers() is not None


def test_memory_that_nobody_uses_is_begun_anew() -> None:
    landing = Landing(chunks=1)
    first = landing.buffers()
    assert first is not None
    for _ in range(1000):
        landing.buffers()
        landing.give(landing.keep(PAGE)[0])
    again = landing.buffers()
    assert again is not None and address(again[1]) == address(first[1])


def test_memory_in_use_is_that_of_the_chunks_that_hold_something() -> None:
    landing = Landing(chunks=3)
    assert landing.used == 0
    kept = []
    while landing.buffers() is not None:
        kept.append(landing.keep(MAX_WRITE)[0])
        assert landing.used == len(kept) * CHUNK
    for chunk in kept[:-1]:
        landing.give(chunk)
    assert landing.used == CHUNK


# ------------------------------------------------------------------------------------------------------------------------- holding


def test_a_held_payload_stays_as_it_is_and_its_chunk_comes_back_behind_it() -> None:
    landing = Landing(chunks=1, may_be_held=1)
    landing.buffers()
    chunk, data = landing.keep(MAX_WRITE)
    data[:] = b"held" * (MAX_WRITE // 4)
    hold = chunk.hold()
    assert hold is not None
    landing.give(chunk)
    for _ in range(3):  # what is held takes nothing away from the requests that follow
        buffers = landing.buffers()
        assert buffers is not None and address(buffers[1]) != address(data)
        buffers[1][:] = bytes(MAX_WRITE)
        landing.give(landing.keep(MAX_WRITE)[0])
    assert data == b"held" * (MAX_WRITE // 4)
    del hold
    first, second = landing.buffers(), landing.keep(MAX_WRITE)
    assert first is not None and second[0] is not chunk and landing.buffers() is None, "one chunk was meant, whoever had it"
    landing.give(second[0])
    assert landing.buffers() is not None


def test_no_more_is_held_than_was_meant() -> None:
    landing = Landing(chunks=4, may_be_held=1)
    landing.buffers()
    one, _ = landing.keep(MAX_WRITE)
    landing.buffers()
    other, _ = landing.keep(MAX_WRITE)
    first, again = one.hold(), one.hold()
    assert first is not None and again is not None, "a second payload of the same chunk costs nothing more"
    assert other.hold() is None
    del first
    assert other.hold() is None
    del again
    assert other.hold() is not None


def test_what_a_burst_needed_is_let_go_when_it_was_not_needed_again() -> None:
    landing = Landing(chunks=30)
    for _ in range(2):
        chunks = []
        while landing.buffers() is not None:
            chunks.append(landing.keep(MAX_WRITE)[0])
        assert len(chunks) == 30
        for chunk in chunks:
            landing.give(chunk)
        landing.trim()
    del chunks, chunk

    def made() -> int:
        return sum(isinstance(each, Chunk) and each.landing is landing for each in gc.get_objects())

    assert made() == 30, "they were needed since the last time"
    landing.trim()
    assert CHUNKS_KEPT <= made() <= CHUNKS_KEPT + 1
