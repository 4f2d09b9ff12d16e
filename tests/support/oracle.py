"""What a disk may hold: every write is a stamp in each of its 512-byte blocks; readings are checked for writes that cannot be seen.

The rules. A write that was acknowledged is what is read, until a newer one. One that is on its way, or that failed, may be there or not, in
each block by itself. One that had ended before a newer one began, which then was acknowledged, must never be seen again: were it seen, the
newer one would be lost, or the older one has landed late.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from isblk.block.request import Op

BLOCK = 512
_PATTERN = struct.Struct("<QQ")
_ZEROES = bytes(BLOCK)


@dataclass(eq=False)
class Change:
    """A write, or with stamp 0 something that leaves zeroes. `began` and `ended` are moments of the ledger's clock."""

    stamp: int
    began: int
    ended: int | None = None
    acknowledged: bool = False


@dataclass(frozen=True)
class Wrong:
    """A block that holds what it cannot. `resurrected`: the newest acknowledged write had been there, and an older one is back."""

    block: int
    found: int
    newest: int
    resurrected: bool

    def __str__(self) -> str:
        what = "an old write is back" if self.resurrected else "an acknowledged write is lost"
        return f"block {self.block}: {what}: stamp {self.found} is there, {self.newest} was acknowledged"


def content(stamp: int, block: int) -> bytes:
    """The bytes of a block."""
    return _PATTERN.pack(stamp, block) * (BLOCK // _PATTERN.size) if stamp else _ZEROES


class Oracle:
    """The ledger of one disk of `blocks` blocks, which starts as zeroes."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.wrong: list[Wrong] = []
        self.verified = 0
        self._clock = itertools.count(1)
        self._now = 0
        self._possible: list[list[Change]] = [[Change(0, 0, 0, True)] for _ in range(blocks)]
        self._newest = [0] * blocks
        self._seen = [0] * blocks

    def _tick(self) -> int:
        self._now = next(self._clock)
        return self._now

    def begin(self, op: Op, first: int, count: int) -> tuple[Change, bytes]:
        """A change is about to be submitted; its data (empty for ZERO and TRIM)."""
        now = self._tick()
        change = Change(now if op is Op.WRITE else 0, now)
        for block in range(first, first + count):
            self._possible[block].append(change)
        data = b"".join(content(now, block) for block in range(first, first + count)) if op is Op.WRITE else b""
        return change, data

    def end(self, change: Change, first: int, count: int, *, acknowledged: bool) -> None:
        """It has come back. Acknowledged, it closes the book on what had ended before it began."""
        change.ended = self._tick()
        change.acknowledged = acknowledged
        if not acknowledged:
            return
        for block in range(first, first + count):
            self._newest[block] = max(self._newest[block], change.stamp or change.began)
            self._possible[block] = [one for one in self._possible[block] if one.ended is None or one.ended >= change.began]

    def reading(self, first: int, count: int) -> Reading:
        """A read is about to be submitted."""
        return Reading(self, first, [{one.stamp for one in self._possible[block]} for block in range(first, first + count)], self._now)

    def check(self, first: int, data: bytes | memoryview) -> None:
        """What the disk holds now, from its medium or from a read with nothing on its way."""
        self.reading(first, len(data) // BLOCK).check(data)

    def judge(self, block: int, found: int, allowed: bool) -> None:
        """Note what was seen."""
        self.verified += 1
        if allowed:
            self._seen[block] = max(self._seen[block], found)
        else:
            newest = self._newest[block]
            self.wrong.append(Wrong(block, found, newest, self._seen[block] >= newest))

    @property
    def lost(self) -> int:
        """Blocks in which an acknowledged write was not."""
        return sum(1 for one in self.wrong if not one.resurrected)

    @property
    def resurrected(self) -> int:
        """Blocks in which an older write came back over a newer one."""
        return sum(1 for one in self.wrong if one.resurrected)


class Reading:
    """One read: it may see what was possible when it began, and whatever has begun since."""

    def __init__(self, oracle: Oracle, first: int, possible: list[set[int]], began: int) -> None:
        self._oracle = oracle
        self._first = first
        self._possible = possible
        self._began = began

    def check(self, data: bytes | memoryview) -> None:
        """Compare what came."""
        for at, (stamp, block) in enumerate(_stamps(data)):
            here = self._first + at
            expected = content(stamp, here)
            whole = data[at * BLOCK : (at + 1) * BLOCK] == expected and (block == here or not stamp)
            # A zero that was written while the read was on its way has the stamp of all zeroes.
            zeroed = not stamp and any(not one.stamp and one.began > self._began for one in self._oracle._possible[here])
            self._oracle.judge(here, stamp, whole and (stamp in self._possible[at] or stamp > self._began or zeroed))


def _stamps(data: bytes | memoryview) -> Iterator[tuple[int, int]]:
    for at in range(0, len(data), BLOCK):
        yield _PATTERN.unpack_from(data, at)
