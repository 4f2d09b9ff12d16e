"""The memory of an NBD server: buffers of requests within one budget, so that many clients cannot make it grow (back-pressure).

A buffer has room for the longest reply header ahead of the data, so a READ is answered from the very memory it landed in, header and data
in one piece. No buffer means: read no more from that client until one comes back.
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
_KEPT: Final = dict(zip(CLASSES, KEPT, strict=True))

if ROOM < READ_ROOM:
    raise AssertionError("the room ahead of the data does not hold the longest header")


class Slot:
    """One buffer: `memory` is all of it, `data` the `size` bytes behind the room.

    The last `reply` is kept: it is mostly the same that is asked of a buffer again.
    """

    __slots__ = ("_end", "_start", "_view", "data", "memory", "size")

    def __init__(self, size: int) -> None:
        self.size = size
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


class Memory:
    """A budget in bytes of data for all clients together; `on_room` is called when some comes back after it was short."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
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
        return free.pop() if free else Slot(size)

    def give(self, slot: Slot) -> None:
        """Take a buffer back."""
        size = slot.size
        self.used -= size
        if size in _KEPT and len(free := self._free[size]) < _KEPT[size]:
            free.append(slot)
        if self.short:
            self._tell()

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
