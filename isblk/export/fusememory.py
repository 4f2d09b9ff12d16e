"""The memory of a FUSE mount on /dev/fuse: where requests land and what reads are answered from, both within fixed bounds.

A request can be a WRITE of 1 MiB, so the kernel takes no smaller room for any; but most are small, and a write's payload has to stay where
it landed until the target has it. So requests land in *chunks* a little larger than the largest: small payloads lie one behind the other in
the same chunk, and a chunk comes back when the last of them is done. (A buffer for each request would be a mebibyte for each 4 KiB; a copy
out of it was the other way.) Payloads begin at a page, since the kernel copies page by page.

A READ is answered from its *slot*: the data fills whole pages, the reply's header lies right before the first, and all of it is one
write(2).

No slot or no chunk means: read nothing more from the kernel until one comes back (back-pressure).

A payload may be needed for longer than its request, by the journal of writes that are not flushed yet. Its chunk is then *held*: it counts
in a bound of its own, so that what is held can never be what the next request waits for, and comes back when the last `Hold` is gone.
"""

from __future__ import annotations

import mmap
from typing import Final

from isblk.export.fusewire import HEAD_LENGTH, MAX_WRITE, OUT_LENGTH, PAGE

CHUNK: Final = MAX_WRITE + (256 << 10)
"""Bytes of a chunk: small payloads go round in so little memory that it stays in the processor's cache."""
CHUNKS: Final = 48
"""Chunks at most for requests that are under way: 60 MiB."""
CHUNKS_HELD: Final = 44
"""Chunks at most that are held: 55 MiB, more than a journal (64 MiB at most) has when it begins to flush; beyond it, it copies."""
CHUNKS_KEPT: Final = 12
"""Free chunks that stay when there was no use for more (`Landing.trim`)."""
READ_BUDGET: Final = 64 << 20
"""Bytes of reads that may be under way; one is always served."""
SIZES: Final = (4096, 65536, 262144, MAX_WRITE)
"""Sizes of slots in bytes."""
KEPT: Final = {4096: 256, 65536: 32, 262144: 16, MAX_WRITE: 12}
"""How many free slots of each size are kept, so that a burst does not hold its memory for ever."""
_HEADER_AT: Final = PAGE - OUT_LENGTH


class Slot:
    """Room for the data of one READ: `data` is `size` bytes, `header` the 16 before them, `reply` both."""

    __slots__ = ("data", "header", "reply", "size")

    def __init__(self, size: int) -> None:
        memory = memoryview(mmap.mmap(-1, PAGE + size))
        self.size = size
        self.data = memory[PAGE:]
        self.header = memory[_HEADER_AT:PAGE]
        self.reply = memory[_HEADER_AT:]


class Slots:
    """Slots within a budget of bytes."""

    def __init__(self, budget: int = READ_BUDGET) -> None:
        self.budget = budget
        self.used = 0
        self._free: dict[int, list[Slot]] = {size: [] for size in SIZES}
        self._small = self._free[PAGE]

    def take(self, length: int) -> Slot | None:
        """A slot for at most 1 MiB, with rubbish in it; None when the budget is used up. Hot for small ones."""
        if length <= PAGE and self._small and self.used + PAGE <= self.budget:
            self.used += PAGE
            return self._small.pop()
        size = next(each for each in SIZES if length <= each)
        if self.used and self.used + size > self.budget:
            return None
        self.used += size
        free = self._free[size]
        return free.pop() if free else Slot(size)

    def give(self, slot: Slot) -> None:
        """Take a slot back."""
        size = slot.size
        self.used -= size
        free = self._free[size]
        if len(free) < KEPT[size]:
            free.append(slot)


class Chunk:
    """Where payloads lie; `users` of them are not done, `holds` of these because somebody keeps them."""

    __slots__ = ("holds", "landing", "memory", "users")

    def __init__(self, landing: Landing) -> None:
        self.landing = landing
        self.memory = memoryview(mmap.mmap(-1, CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.users = 0
        self.holds = 0

    def hold(self) -> Hold | None:
        """Keep the chunk as it is for as long as what is returned is referred to; None when too many are kept so."""
        return Hold(self) if self.holds or self.landing.may_hold else None


class Hold:
    """A reference to a payload that outlives its request."""

    __slots__ = ("_chunk",)

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        chunk.landing.held(chunk)

    def __del__(self) -> None:
        self._chunk.landing.unheld(self._chunk)


class Landing:
    """Where the next request lands. `head` is its first 80 bytes, `room` what follows them."""

    def __init__(self, chunks: int = CHUNKS, may_be_held: int = CHUNKS_HELD) -> None:
        self.head = memoryview(bytearray(HEAD_LENGTH))
        self._most = self._left = chunks
        self._may_be_held = may_be_held
        self._spare = 0
        self._free: list[Chunk] = []
        self._chunk: Chunk | None = None
        self._position = 0
        self._buffers: list[memoryview] = []

    def buffers(self) -> list[memoryview] | None:
        """For readv(2): the head and 1 MiB of room; None when there is no chunk. The same until `keep` has been called."""
        if self._buffers:
            return self._buffers
        chunk = self._chunk
        if chunk is not None and not chunk.users:
            self._position = 0
        elif chunk is None or CHUNK - self._position < MAX_WRITE:
            chunk = self._chunk = self._another()
            self._position = 0
            if chunk is None:
                return None
        self._buffers = [self.head, chunk.memory[self._position : self._position + MAX_WRITE]]
        return self._buffers

    @property
    def used(self) -> int:
        """Bytes of chunks that requests use, or that are being filled; what is only held besides is not counted."""
        return max(0, self._most - self._left) * CHUNK

    @property
    def room(self) -> memoryview:
        """What landed behind the head."""
        return self._buffers[1]

    def keep(self, length: int) -> tuple[Chunk, memoryview]:
        """The first `length` bytes of the room, until `give`; the next request lands behind them. Hot."""
        chunk = self._chunk
        assert chunk is not None
        data = self._buffers[1][:length]
        chunk.users += 1
        self._position += (length + PAGE - 1) & -PAGE
        self._buffers = []
        return chunk, data

    def give(self, chunk: Chunk) -> None:
        """One of a chunk's payloads is done."""
        chunk.users -= 1
        if not chunk.users and chunk is not self._chunk:
            self._left += 1
            self._free.append(chunk)

    @property
    def may_hold(self) -> bool:
        """Whether one more chunk may be held."""
        return self._may_be_held > 0

    def held(self, chunk: Chunk) -> None:
        """Somebody keeps a payload of the chunk."""
        chunk.users += 1
        chunk.holds += 1
        if chunk.holds == 1:
            self._may_be_held -= 1
            self._left += 1

    def unheld(self, chunk: Chunk) -> None:
        """One of those does not keep it any more."""
        chunk.holds -= 1
        if not chunk.holds:
            self._may_be_held += 1
            self._left -= 1
        self.give(chunk)

    def trim(self) -> None:
        """Let go of the free chunks that were not needed since the last call, but for CHUNKS_KEPT: a burst does not hold them for ever."""
        del self._free[: max(0, min(self._spare, len(self._free)) - CHUNKS_KEPT)]
        self._spare = len(self._free)

    def _another(self) -> Chunk | None:
        if self._left <= 0:
            return None
        self._left -= 1
        if not self._free:
            return Chunk(self)
        chunk = self._free.pop()
        self._spare = min(self._spare, len(self._free))
        return chunk
