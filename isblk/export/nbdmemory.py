"""The memory of an NBD server: buffers of requests within one budget, so that many clients cannot make it grow (back-pressure).

A buffer has room for the longest reply header ahead of the data, so a READ is answered from the very memory it landed in, header and data
in one piece. No buffer means: read no more from that client until one comes back.

The data of a WRITE may be needed for longer than its request, by the journal of writes that are not flushed yet. Its buffer is then *held*:
it counts in a bound of its own, so that what is held can never be what the next request waits for, and comes back when the request has
ended and the last `Hold` is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from isblk.export.nbdwire import READ_ROOM

ROOM: Final = 64
"""Bytes ahead of the data: enough for every header, and a whole cache line."""
CLASSES: Final = (4096, 65536, 262144, 1048576)
"""Sizes of data in bytes whose buffers are kept for reuse; larger ones are made for one request."""
KEPT: Final = (512, 64, 16, 16)
"""Free buffers of each size that stay when there was no use for more (`Memory.trim`); of the smallest there are never more."""
HELD_MOST: Final = 56 << 20
"""Bytes of buffers that are held at most: more than a journal (64 MiB at most) has when it begins to flush; beyond it, it copies."""
HOLD_FROM: Final = 65536
"""Buffers of so many bytes are worth it, when they are more than half full: a copy of 1 MiB takes longer than everything else about it."""
_KEPT: Final = dict(zip(CLASSES, KEPT, strict=True))

if ROOM < READ_ROOM:
    raise AssertionError("the room ahead of the data does not hold the longest header")


class Slot:
    """One buffer: `memory` is all of it, `data` the `size` bytes behind the room.

    The last `reply` is kept: it is mostly the same that is asked of a buffer again. `holds` of somebody outlive its request; `ended` is set
    when that has come back meanwhile.
    """

    __slots__ = ("_end", "_lender", "_start", "_view", "data", "ended", "holds", "memory", "size")

    def __init__(self, size: int, lender: Memory) -> None:
        self.size = size
        self._lender = lender
        self.holds = 0
        self.ended = False
        self.memory = memoryview(bytearray(ROOM + size))
        self.data = self.memory[ROOM:]
        self._view = self.memory
        self._start = 0
        self._end = ROOM + size

    def reply(self, start: int, end: int) -> memoryview:
        """memory[start:end]."""
        if start != self._start or end != self._end:
            self._view = self.memory[start:end]
            self._start = start
            self._end = end
        return self._view

    def hold(self, length: int) -> Hold | None:
        """Keep the first `length` bytes, of a request that has not ended, for as long as what is returned is referred to.

        None where a copy is better, or too much is kept so.
        """
        wasted = self.size < HOLD_FROM or 2 * length <= self.size
        return None if wasted or not self._lender.may_hold(self.size) else Hold(self._lender, self)


class Hold:
    """A reference to the data of a buffer that outlives the request."""

    __slots__ = ("_memory", "_slot")

    def __init__(self, memory: Memory, slot: Slot) -> None:
        self._memory = memory
        self._slot = slot
        memory.held += 0 if slot.holds else slot.size
        slot.holds += 1

    def __del__(self) -> None:
        self._memory.unhold(self._slot)


class Memory:
    """A budget in bytes of data for all clients together; `on_room` is called when some comes back after it was short.

    `used` are bytes of buffers whose requests have not ended, `held` of those that somebody holds, before that and after it.
    """

    def __init__(self, budget: int, most_held: int = HELD_MOST) -> None:
        self.budget = budget
        self.used = 0
        self.held = 0
        self._most_held = most_held
        self._spare = dict.fromkeys(CLASSES, 0)
        self.short = False
        self.on_room: Callable[[], None] | None = None
        self._free: dict[int, list[Slot]] = {size: [] for size in CLASSES}
        self._small = self._free[CLASSES[0]]

    def take(self, length: int) -> Slot | None:
        """A buffer of at least `length` bytes with rubbish in it; None, and `short`, when the budget is used up. Hot for small ones.

        One request is always served, whatever its size: a budget below it would be a deadlock.
        """
        if length <= 4096 and self._small and self.used + 4096 <= self.budget:
            self.used += 4096
            return self._small.pop()
        size = next((each for each in CLASSES if length <= each), length)
        if self.used and self.used + size > self.budget:
            self.short = True
            return None
        self.used += size
        free = self._free.get(size)
        if not free:
            return Slot(size, self)
        slot = free.pop()
        self._spare[size] = min(self._spare[size], len(free))
        return slot

    def give(self, slot: Slot) -> None:
        """Take a buffer back: its request has ended."""
        self.used -= slot.size
        if slot.holds:
            slot.ended = True
        else:
            self._put(slot)
        if self.short:
            self._tell()

    def may_hold(self, size: int) -> bool:
        """Whether another buffer of so many bytes may be held."""
        return self.held + size <= self._most_held

    def unhold(self, slot: Slot) -> None:
        """A Hold has gone."""
        slot.holds -= 1
        if slot.holds:
            return
        self.held -= slot.size
        if slot.ended:
            slot.ended = False
            self._put(slot)

    def _put(self, slot: Slot) -> None:
        free = self._free.get(slot.size)
        if free is not None and (free is not self._small or len(free) < KEPT[0]):
            free.append(slot)

    @property
    def may_shrink(self) -> bool:
        """Whether `trim` will have something to let go of, perhaps after some time."""
        return bool(self.held) or any(len(self._free[size]) > kept for size, kept in _KEPT.items())

    def trim(self) -> None:
        """Let go of the free buffers that were not needed since the last call, but for KEPT: a burst does not hold them for ever."""
        for size, kept in _KEPT.items():
            free = self._free[size]
            del free[: max(0, min(self._spare[size], len(free)) - kept)]
            self._spare[size] = len(free)

    def give_all(self, slots: Sequence[Slot]) -> None:
        """Take many back. Hot for small ones."""
        small = self._small
        room = KEPT[0] - len(small)
        for slot in slots:
            if slot.size == 4096 and room > 0:
                room -= 1
                self.used -= 4096
                small.append(slot)
            else:
                self.give(slot)
        if self.short and slots:
            self._tell()

    def _tell(self) -> None:
        self.short = False
        if self.on_room is not None:
            self.on_room()
