"""The journal: order, marks, bounds, and a copy of what front ends take back."""

from __future__ import annotations

import gc

import pytest

from isblk.block.journal import OVERHEAD, SMALL, Journal
from isblk.block.request import Op, Request


def change(value: int, length: int = 512, op: Op = Op.WRITE) -> Request:
    return Request(op, value * 512, length, memoryview(bytearray([value]) * length) if op is Op.WRITE else None)


def test_what_is_kept_is_a_copy_in_order() -> None:
    journal = Journal()
    first = change(1)
    for request in (first, change(2, op=Op.TRIM), change(3)):
        journal.append(request)
    assert first.data is not None
    first.data[:] = bytes(512)
    again = [entry.request() for entry in journal]
    assert [(one.op, one.offset) for one in again] == [(Op.WRITE, 512), (Op.TRIM, 1024), (Op.WRITE, 1536)]
    assert again[0].data is not None and bytes(again[0].data) == b"\x01" * 512 and again[1].data is None
    assert not any(one.fua for one in again)


def test_a_mark_covers_what_was_before_it() -> None:
    journal = Journal()
    journal.append(change(1))
    mark = journal.mark
    journal.append(change(2))
    journal.settle(mark)
    assert [entry.offset for entry in journal] == [1024]
    journal.settle(mark)
    assert len(journal) == 1, "an older mark forgets nothing more"
    later = journal.mark
    journal.append(change(3))
    journal.settle(later)
    assert [entry.offset for entry in journal] == [1536] and journal.bytes == 512 + OVERHEAD


def test_small_changes_are_nothing_to_the_collector_of_garbage() -> None:
    journal = Journal()
    journal.append(change(1))
    gc.collect()
    assert not any(map(gc.is_tracked, journal._entries))


@pytest.mark.parametrize("op", [Op.WRITE, Op.TRIM])
def test_small_changes_are_bounded_too(op: Op) -> None:
    journal = Journal(limit=1 << 20)
    count = 0
    while not journal.full:
        assert journal.filling is (journal.bytes * 2 >= 1 << 20)
        journal.append(change(1, op=op))
        count += 1
    assert count <= (1 << 20) // OVERHEAD
    assert journal.clear() == count and (journal.bytes, len(journal), journal.filling) == (0, 0, False)


def test_a_mark_outlives_clearing() -> None:
    journal = Journal()
    journal.append(change(1))
    mark = journal.mark
    journal.clear()
    journal.append(change(2))
    journal.settle(mark)
    assert len(journal) == 1


class Lent(Request):
    """A front end that lets the journal have its memory: `owners` are told when nobody refers to it any more."""

    def keep(self) -> tuple[bytes | memoryview, object]:
        assert self.data is not None
        return self.data, Owner()


class Owner:
    gone = 0

    def __del__(self) -> None:
        Owner.gone += 1


@pytest.mark.source_form("has a kind of Request of its own")
def test_memory_that_is_lent_is_lent_until_the_change_is_done_again_too() -> None:
    Owner.gone = 0
    journal, data = Journal(), memoryview(bytearray(b"x" * 2 * SMALL))
    journal.append(Lent(Op.WRITE, 0, len(data), data))
    (again,) = [entry.request() for entry in journal]
    assert again.data is not None and again.data.obj is data.obj and journal.bytes == len(data) + OVERHEAD
    journal.clear()
    assert not Owner.gone, "it is on its way"
    del again
    assert Owner.gone == 1
