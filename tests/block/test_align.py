"""Alignment against a model: any bytes, any interleaving of the completions below, and never a byte lost."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.align import Aligned
from isblk.block.request import Op, Request, flush, read, trim, write, zero
from isblk.errors import RequestFailed
from support.memorydevice import MemoryDevice, Seen, broken

BLOCK = 16
BLOCKS = 8
SIZE = BLOCK * BLOCKS


def numbered(size: int = SIZE) -> bytes:
    return bytes(number % 251 + 1 for number in range(size))


def device(hold: bool = False) -> tuple[MemoryDevice, Aligned]:
    below = MemoryDevice(SIZE, BLOCK)
    below.content[:] = numbered()
    below.hold = hold
    return below, Aligned(below)


def submit(aligned: Aligned, op: Op, offset: int, length: int, fill: bytes = b"", fua: bool = False) -> Request:
    data = memoryview(bytearray(fill * length if fill else length)) if op in (Op.READ, Op.WRITE) else None
    request = Request(op, offset, length, data, fua)
    aligned.submit(request)
    return request


def test_geometry_is_in_bytes_and_follows_a_resize() -> None:
    below, aligned = device()
    assert (aligned.geometry.block_size, aligned.geometry.size) == (1, SIZE)
    assert aligned.geometry is aligned.geometry
    below.resize(2 * SIZE)
    assert aligned.geometry.size == 2 * SIZE and aligned.geometry.block_size == 1


def test_whole_blocks_pass_through_with_the_callers_own_buffer() -> None:
    below, aligned = device(hold=True)
    request = submit(aligned, Op.WRITE, BLOCK, 2 * BLOCK, b"x", fua=True)
    reading = submit(aligned, Op.READ, 0, BLOCK)
    assert below.pending == [request, reading]
    below.complete_all()
    assert request.finished and reading.finished
    assert below.requests == [Seen(Op.WRITE, BLOCK, 2 * BLOCK, True), Seen(Op.READ, 0, BLOCK, False)]


def test_the_borrowed_callback_is_given_back() -> None:
    _below, aligned = device()
    told: list[Request] = []
    request = Request(Op.WRITE, 0, BLOCK, memoryview(bytes(BLOCK)), done=told.append)
    owner = request.done
    aligned.submit(request)
    assert told == [request] and request.done is owner


@pytest.mark.parametrize(("offset", "length"), [(1, 1), (0, 5), (BLOCK - 1, 2), (3, SIZE - 5), (SIZE - 1, 1), (BLOCK, BLOCK + 1)])
async def test_reads_of_any_bytes(offset: int, length: int) -> None:
    below, aligned = device()
    assert await read(aligned, offset, length) == numbered()[offset : offset + length]
    assert len(below.requests) == 1


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (5, 3, [(Op.READ, 0, BLOCK), (Op.WRITE, 0, BLOCK)]),
        (0, 5, [(Op.READ, 0, BLOCK), (Op.WRITE, 0, BLOCK)]),
        (BLOCK, BLOCK + 1, [(Op.READ, 2 * BLOCK, BLOCK), (Op.WRITE, BLOCK, 2 * BLOCK)]),
        (1, 3 * BLOCK - 1, [(Op.READ, 0, BLOCK), (Op.WRITE, 0, 3 * BLOCK)]),
    ],
)
async def test_writes_read_only_their_edges(offset: int, length: int, expected: list[tuple[Op, int, int]]) -> None:
    below, aligned = device()
    await write(aligned, offset, b"\xff" * length)
    assert [(seen.op, seen.offset, seen.length) for seen in below.requests] == expected
    assert below.content == numbered()[:offset] + b"\xff" * length + numbered()[offset + length :]


async def test_a_write_with_two_edges_reads_both_and_writes_once() -> None:
    below, aligned = device()
    await write(aligned, 5, b"\xff" * (3 * BLOCK), fua=True)
    assert {(seen.op, seen.offset) for seen in below.requests[:2]} == {(Op.READ, 0), (Op.READ, 3 * BLOCK)}
    assert below.requests[2:] == [Seen(Op.WRITE, 0, 4 * BLOCK, True)]
    assert not below.requests[0].fua


async def test_zero_writes_its_edges_and_zeroes_what_lies_between() -> None:
    below, aligned = device()
    await zero(aligned, 5, 3 * BLOCK, fua=True)
    assert set(below.requests[2:]) == {
        Seen(Op.WRITE, 0, BLOCK, True),
        Seen(Op.WRITE, 3 * BLOCK, BLOCK, True),
        Seen(Op.ZERO, BLOCK, 2 * BLOCK, True),
    }
    assert below.content == numbered()[:5] + bytes(3 * BLOCK) + numbered()[5 + 3 * BLOCK :]


async def test_zero_inside_one_block_is_one_write() -> None:
    below, aligned = device()
    await zero(aligned, 5, 3)
    assert [seen.op for seen in below.requests] == [Op.READ, Op.WRITE]
    assert below.content == numbered()[:5] + bytes(3) + numbered()[8:]


async def test_trim_shrinks_to_the_whole_blocks_inside() -> None:
    below, aligned = device()
    await trim(aligned, 5, 3 * BLOCK)
    assert below.requests == [Seen(Op.TRIM, BLOCK, 2 * BLOCK, False)]


@pytest.mark.parametrize(("offset", "length"), [(5, 3), (5, BLOCK), (BLOCK, BLOCK - 1), (3, 0)])
async def test_trim_of_less_than_a_block_does_nothing(offset: int, length: int) -> None:
    below, aligned = device()
    await trim(aligned, offset, length)
    assert below.requests == []


async def test_an_empty_write_in_the_middle_of_a_block_does_nothing() -> None:
    below, aligned = device()
    await write(aligned, 5, b"")
    await zero(aligned, 5, 0)
    assert below.requests == []


async def test_flush_passes() -> None:
    below, aligned = device()
    await flush(aligned)
    assert [seen.op for seen in below.requests] == [Op.FLUSH]


@pytest.mark.parametrize("op", [Op.WRITE, Op.ZERO])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_an_error_at_any_step_ends_the_edit_and_frees_its_blocks(op: Op, nth: int) -> None:
    below, aligned = device(hold=True)
    request = submit(aligned, op, 5, 3 * BLOCK, b"x")
    waiting = submit(aligned, Op.WRITE, 0, BLOCK, b"y")
    for _ in range(nth):
        below.complete()
    below.complete(0, broken(errno.ENOSPC))
    below.complete_all()
    assert isinstance(request.error, RequestFailed) and request.error.errno == errno.ENOSPC
    assert waiting.finished and waiting.error is None
    if nth < 2:
        assert [seen.op for seen in below.requests] == [Op.READ, Op.READ, Op.WRITE], "nothing is written after a failed read"


def test_an_unaligned_read_hands_on_its_error() -> None:
    below, aligned = device(hold=True)
    request = submit(aligned, Op.READ, 1, 2)
    below.complete(0, broken())
    assert request.error is not None
    assert request.data is not None and bytes(request.data) == bytes(2)


def test_an_edit_waits_for_an_aligned_write_that_is_below() -> None:
    below, aligned = device(hold=True)
    whole = submit(aligned, Op.WRITE, 0, BLOCK, b"a")
    edit = submit(aligned, Op.WRITE, 2, 3, b"b")
    assert below.pending == [whole]
    below.complete_all()
    assert edit.finished
    assert below.content[:BLOCK] == b"aabbb" + b"a" * (BLOCK - 5)


def test_an_aligned_write_waits_for_the_edit_that_is_below() -> None:
    below, aligned = device(hold=True)
    submit(aligned, Op.WRITE, 2, 3, b"b")
    whole = submit(aligned, Op.WRITE, 0, 2 * BLOCK, b"a")
    beside = submit(aligned, Op.WRITE, BLOCK, BLOCK, b"c")
    assert len(below.pending) == 2 and beside in below.pending, "only what shares a block with the edit waits"
    below.complete(1)
    below.complete()
    below.complete()
    assert below.pending == [whole]
    below.complete_all()
    assert below.content[: 2 * BLOCK] == b"a" * 2 * BLOCK


def test_a_later_edit_does_not_pass_a_write_that_waits() -> None:
    below, aligned = device(hold=True)
    first = submit(aligned, Op.WRITE, 2, 3, b"1")
    whole = submit(aligned, Op.WRITE, 0, 2 * BLOCK, b"2")
    second = submit(aligned, Op.WRITE, BLOCK + 1, 1, b"3")
    assert len(below.pending) == 1
    below.complete()
    below.complete()
    assert first.finished and below.pending == [whole]
    below.complete_all()
    assert second.finished
    assert below.content[: 2 * BLOCK] == b"2" * (BLOCK + 1) + b"3" + b"2" * (BLOCK - 2)


def test_edits_of_the_same_block_follow_each_other() -> None:
    below, aligned = device(hold=True)
    edits = [submit(aligned, Op.WRITE, at, 1, bytes([0xF0 + at])) for at in range(4)]
    elsewhere = submit(aligned, Op.WRITE, 4 * BLOCK + 1, 1, b"\xee")
    assert len(below.pending) == 2, "edits of different blocks run side by side"
    below.complete_all()
    assert all(edit.finished for edit in edits) and elsewhere.finished
    assert below.content[:5] == b"\xf0\xf1\xf2\xf3" + numbered()[4:5]


def test_reads_do_not_wait_for_an_edit() -> None:
    below, aligned = device(hold=True)
    submit(aligned, Op.WRITE, 2, 3, b"b")
    reading = submit(aligned, Op.READ, 0, BLOCK)
    assert below.pending[-1] is reading
    below.complete_all()


def test_many_edits_that_finish_at_once_do_not_pile_up_on_the_stack() -> None:
    below, aligned = device(hold=True)
    edits = [submit(aligned, Op.WRITE, 1, 1, b"x") for _ in range(3000)]
    below.hold = False
    below.complete()
    assert all(edit.finished for edit in edits)


def test_a_callback_may_submit_to_the_blocks_it_was_called_for() -> None:
    below, aligned = device()
    after: list[Request] = []
    edit = Request(Op.WRITE, 1, 1, memoryview(b"x"), done=lambda _edit: after.append(submit(aligned, Op.WRITE, 2, 1, b"y")))
    aligned.submit(edit)
    assert after[0].finished and below.content[1:3] == b"xy"


CHANGES = st.tuples(
    st.sampled_from([Op.WRITE, Op.WRITE, Op.WRITE, Op.ZERO, Op.TRIM]),
    st.integers(0, SIZE - 1),
    st.one_of(st.integers(1, SIZE), st.sampled_from([BLOCK, 2 * BLOCK])),
    st.booleans(),
)


class History:
    """When each change was submitted and finished, on one clock: which bytes may stand there when all have finished."""

    def __init__(self) -> None:
        self.now = 0
        self.changes: list[tuple[Request, int, int]] = []  # request, fill, when submitted
        self.finished: dict[Request, int] = {}

    def tick(self) -> int:
        self.now += 1
        return self.now

    def add(self, aligned: Aligned, op: Op, offset: int, length: int, fill: int) -> None:
        data = memoryview(bytes([fill]) * length) if op is Op.WRITE else None
        request = Request(op, offset, length, data, done=lambda request: self.finished.update({request: self.tick()}))
        self.changes.append((request, fill, self.tick()))
        aligned.submit(request)

    def legal(self, at: int) -> set[int]:
        """The fill of every change of a byte that had not finished before another one of it was submitted."""
        here = [change for change in self.changes if touches(change[0], at)]
        last = max((submitted for _, _, submitted in here), default=0)
        return {fill for request, fill, _ in here if self.finished[request] > last} or {numbered()[at]}


def touches(request: Request, at: int) -> bool:
    first, last = request.offset, request.offset + request.length
    if request.op is Op.TRIM:
        first, last = -(-first // BLOCK) * BLOCK, last // BLOCK * BLOCK
    return first <= at < last


@given(changes=st.lists(CHANGES, max_size=12), data=st.data())
def test_no_interleaving_loses_a_byte(changes: list[tuple[Op, int, int, bool]], data: st.DataObject) -> None:
    below, aligned = device(hold=True)
    history = History()
    for number, (op, at, wanted, whole) in enumerate(changes):
        offset, length = (at // BLOCK * BLOCK, -(-wanted // BLOCK) * BLOCK) if whole else (at, wanted)
        history.add(aligned, op, offset, min(length, SIZE - offset), 255 - number % 4 if op is Op.WRITE else 0)
        for _ in range(data.draw(st.integers(0, 3))):
            step(below, data)
    while below.pending:
        step(below, data)
    assert len(history.finished) == len(changes)
    assert [at for at in range(SIZE) if below.content[at] not in history.legal(at)] == []


def step(below: MemoryDevice, data: st.DataObject) -> None:
    """One of the requests below takes effect, or finishes."""
    if below.pending:
        index = data.draw(st.integers(0, len(below.pending) - 1))
        if data.draw(st.booleans()):
            below.apply(index)
        else:
            below.complete(index)


@given(offset=st.integers(0, SIZE), length=st.integers(0, SIZE), op=st.sampled_from([Op.READ, Op.WRITE, Op.ZERO]))
async def test_every_offset_and_length_does_exactly_what_it_says(offset: int, length: int, op: Op) -> None:
    below, aligned = device()
    length = min(length, SIZE - offset)
    model = bytearray(numbered())
    if op is Op.READ:
        assert await read(aligned, offset, length) == model[offset : offset + length]
    elif op is Op.WRITE:
        model[offset : offset + length] = b"\xff" * length
        await write(aligned, offset, b"\xff" * length)
    else:
        model[offset : offset + length] = bytes(length)
        await zero(aligned, offset, length)
    assert below.content == model
