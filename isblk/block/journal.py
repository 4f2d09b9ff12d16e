"""Changes that were acknowledged and are not yet known to be durable, kept so that they can be done again after a target lost its cache.

As an NFS client keeps its uncommitted pages. Bounded: `full` tells the device to flush first. Order is that of acknowledgement.

Data is kept as `Request.keep` gives it: a copy, or the front end's own memory, which is its again when nobody refers to the owner any more.
That is counted by the interpreter and not by us, because a change that is being done again still needs it when the journal has settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from isblk.block.request import Op, Request

DEFAULT_LIMIT: Final = 64 << 20
"""Bytes of data kept."""
OVERHEAD: Final = 256
"""Bytes counted for each entry beside its data: many small writes are bounded too."""
SMALL: Final = 4096
"""Bytes of data that are copied without asking the request, which costs more than the copy."""
_Small = tuple[int, bytes]
"""A small WRITE: offset, data. Of nothing that the collector of garbage looks at, so neither does it look at thousands of these."""
_Kept = tuple[Op, int, int, bytes | memoryview | None, object]
"""What any other Entry is made of; an object for each would be a call for each."""


class _Again(Request):
    """A change that is done again, from memory that `owner` keeps."""

    __slots__ = ("owner",)

    owner: object


class Entry:
    """One acknowledged change; `data` None for TRIM and ZERO, else there as long as `owner` is referred to."""

    __slots__ = ("data", "length", "offset", "op", "owner")

    def __init__(self, op: Op, offset: int, length: int, data: bytes | memoryview | None, owner: object) -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.data = data
        self.owner = owner

    def request(self) -> Request:
        """The same change as a new request."""
        again = _Again(self.op, self.offset, self.length, None if self.data is None else memoryview(self.data))
        again.owner = self.owner
        return again


class Journal:
    """The entries since the last flush that covered them. `mark` names a moment; `settle(mark)` forgets everything before it."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: deque[_Small | _Kept] = deque()
        self._settled = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter([Entry(Op.WRITE, kept[0], len(kept[1]), kept[1], None) if len(kept) == 2 else Entry(*kept) for kept in self._entries])

    @property
    def mark(self) -> int:
        """Now."""
        return self._settled + len(self._entries)

    @property
    def filling(self) -> bool:
        """Half full: time for a flush of its own."""
        return self.bytes * 2 >= self.limit

    @property
    def full(self) -> bool:
        """No more changes until a flush has succeeded."""
        return self.bytes >= self.limit

    def append(self, request: Request) -> bool:
        """Hot. Keep a change that is about to be acknowledged, with its data; returns `filling`."""
        data, length = request.data, request.length
        if data is None:
            self._entries.append((request.op, request.offset, length, None, None))
            self.bytes += OVERHEAD
        else:
            if length <= SMALL:
                self._entries.append((request.offset, bytes(data)))
            else:
                self._entries.append((request.op, request.offset, length, *request.keep()))
            self.bytes += OVERHEAD + length
        return self.bytes * 2 >= self.limit

    def settle(self, mark: int) -> None:
        """A flush that was sent at `mark` has succeeded."""
        while self._entries and self._settled < mark:
            kept = self._entries.popleft()
            self._settled += 1
            if len(kept) == 2:
                self.bytes -= OVERHEAD + len(kept[1])
            else:
                self.bytes -= OVERHEAD if kept[3] is None else OVERHEAD + kept[2]

    def clear(self) -> int:
        """Give everything up; returns how many entries that were."""
        count = len(self._entries)
        self.settle(self.mark)
        return count
