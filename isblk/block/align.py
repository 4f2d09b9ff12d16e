"""Device over a Device, in bytes: whole blocks pass through, the rest is read-modify-write under a range lock.

Theory of operation. The device below takes whole blocks only. An edit (an unaligned WRITE, or ZERO) reads the blocks at its edges,
changes them and writes them back, so bytes that it was not asked to touch pass through its hands. They would be lost if they changed
below in between, whoever changes them. Therefore an edit claims its covering blocks exclusively: it waits until every change of these
blocks that is already below has finished, and each change that arrives later waits until the edit has finished. Claims are served in
order of arrival, so nothing starves. Two aligned changes never wait for each other: the order of overlapping unfinished writes is
nobody's promise.

Reads never wait. A block below holds, at any moment of an edit, the old or the new bytes of the edit and every acknowledged byte of others.

The price for whole blocks: a read pays one comparison; a change is also kept in a set while it is below, because a later edit must find
it, and this is a witness of its end. (A child Request for each change was the alternative, a whole object more per write. Locking only
while an edit runs is not enough: the edit would not know of the changes that were sent before it.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Final

from isblk.block.request import Device, Geometry, Op, Request, Witness

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_FLUSH: Final = Op.FLUSH
_TRIM: Final = Op.TRIM
_ZERO: Final = Op.ZERO


class _Claim:
    """A change that holds, or waits for, bytes `start` to `end` (whole blocks); `exclusive` for an edit."""

    __slots__ = ("end", "exclusive", "request", "start", "ticket")

    def __init__(self, ticket: int, start: int, end: int, request: Request, exclusive: bool) -> None:
        self.ticket = ticket
        self.start = start
        self.end = end
        self.request = request
        self.exclusive = exclusive

    def meets(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


class Aligned(Witness):
    """A Device with a block size of one byte. The block size below must not change; its size may."""

    def __init__(self, below: Device) -> None:
        self._below = below
        self._submit_below = below.submit
        self._below_geometry = below.geometry
        self._geometry = _in_bytes(below.geometry)
        self.block_size = below.geometry.block_size
        self._mask = self.block_size - 1
        self._tickets = count()
        self._changing: set[Request] = set()
        self._exclusive: list[_Claim] = []  # edits, running or waiting
        self._waiting: list[_Claim] = []
        self._waking = False

    @property
    def geometry(self) -> Geometry:
        """That of the device below, in blocks of one byte."""
        if self._below.geometry is not self._below_geometry:
            self._below_geometry = self._below.geometry
            self._geometry = _in_bytes(self._below_geometry)
        return self._geometry

    def submit(self, request: Request) -> None:
        """Queue one request of any offset and length."""
        if (request.offset | request.length) & self._mask:
            _UNALIGNED[request.op](self, request)
        elif request.op is _READ or request.op is _FLUSH:
            self._submit_below(request)
        elif self._exclusive:
            self._claim(request, request.offset, request.offset + request.length, exclusive=False)
        else:
            self._change(request)

    def kick(self) -> None:
        """End of a batch."""
        self._below.kick()

    def _change(self, request: Request) -> None:
        self._changing.add(request)
        request.lock = self
        self._submit_below(request)

    def passed(self, request: Request) -> None:
        """A change has ended: what waited for it may go."""
        self._changing.remove(request)
        if self._waiting:
            self._wake()

    def _read(self, request: Request) -> None:
        """READ through a buffer of the covering blocks; only requests that are not whole blocks pay for the copy."""
        start, end = self._cover(request)
        buffer = memoryview(bytearray(end - start))

        def done(child: Request) -> None:
            if child.error is None:
                _data(request)[:] = buffer[request.offset - start :][: request.length]
            request.finish(child.error)

        self._below.submit(Request(_READ, start, end - start, buffer, done=done))

    def _edit(self, request: Request) -> None:
        if not request.length:
            request.finish()
            return
        start, end = self._cover(request)
        self._claim(request, start, end, exclusive=True)

    def _trim(self, request: Request) -> None:
        """TRIM shrinks to the whole blocks inside: it is a hint, and its neighbours are in use."""
        start, end = self._inside(request)
        if start >= end:
            request.finish()
            return
        self.submit(Request(_TRIM, start, end - start, done=lambda child: request.finish(child.error)))

    def _flush(self, request: Request) -> None:
        raise AssertionError("a FLUSH has offset and length 0, it is always aligned")

    def _cover(self, request: Request) -> tuple[int, int]:
        return request.offset & ~self._mask, (request.offset + request.length + self._mask) & ~self._mask

    def _inside(self, request: Request) -> tuple[int, int]:
        return (request.offset + self._mask) & ~self._mask, (request.offset + request.length) & ~self._mask

    def _claim(self, request: Request, start: int, end: int, exclusive: bool) -> None:
        claim = _Claim(next(self._tickets), start, end, request, exclusive)
        if exclusive:
            self._exclusive.append(claim)
        if self._must_wait(claim):
            self._waiting.append(claim)
        else:
            self._start(claim)

    def _must_wait(self, claim: _Claim) -> bool:
        """True while something that came earlier stands in the way of a claim."""
        start, end, ticket = claim.start, claim.end, claim.ticket
        if any(other.ticket < ticket and other.meets(start, end) for other in self._exclusive):
            return True
        if not claim.exclusive:
            return False
        if any(other.ticket < ticket and other.meets(start, end) for other in self._waiting):
            return True
        return any(claim.meets(request.offset, request.offset + request.length) for request in self._changing)

    def _start(self, claim: _Claim) -> None:
        if claim.exclusive:
            _Edit(self._below, claim, self.block_size, self._edited).start()
        else:
            self._change(claim.request)

    def _edited(self, claim: _Claim, error: Exception | None) -> None:
        self._exclusive.remove(claim)
        if self._waiting:
            self._wake()
        claim.request.finish(error)

    def _wake(self) -> None:
        """Start every claim that need not wait any more. What it starts may finish at once and come back here: the outer loop goes on."""
        if self._waking:
            return
        self._waking = True
        try:
            while (claim := next((each for each in self._waiting if not self._must_wait(each)), None)) is not None:
                self._waiting.remove(claim)
                self._start(claim)
        finally:
            self._waking = False
        self._below.kick()


class _Edit:
    """One read-modify-write: the blocks at the edges are read, then everything is written; errors of either phase end it."""

    __slots__ = ("_below", "_block_size", "_claim", "_edges", "_error", "_finished", "_next", "_pending")

    def __init__(self, below: Device, claim: _Claim, block_size: int, finished: Callable[[_Claim, Exception | None], None]) -> None:
        self._below = below
        self._claim = claim
        self._block_size = block_size
        self._finished = finished
        self._error: Exception | None = None
        self._pending = 0
        self._next = self._write
        self._edges = {at: memoryview(bytearray(block_size)) for at in self._edge_blocks()}

    def _edge_blocks(self) -> set[int]:
        request, claim = self._claim.request, self._claim
        edges = set()
        if request.offset != claim.start:
            edges.add(claim.start)
        if request.offset + request.length != claim.end:
            edges.add(claim.end - self._block_size)
        return edges

    def start(self) -> None:
        self._issue([Request(_READ, at, self._block_size, block, done=self._done) for at, block in self._edges.items()])

    def _issue(self, requests: list[Request]) -> None:
        self._pending = len(requests)
        for request in requests:
            self._below.submit(request)
        self._below.kick()

    def _done(self, request: Request) -> None:
        self._error = self._error or request.error
        self._pending -= 1
        if self._pending == 0:
            if self._error is None:
                self._next()
            else:
                self._end()

    def _write(self) -> None:
        self._next = self._end
        self._issue(self._overwritten() if self._claim.request.op is _WRITE else self._zeroed())

    def _end(self) -> None:
        self._finished(self._claim, self._error)

    def _overwritten(self) -> list[Request]:
        """One WRITE of all covering blocks: the caller's bytes between the edges."""
        request, start, end = self._claim.request, self._claim.start, self._claim.end
        whole = memoryview(bytearray(end - start))
        for at, block in self._edges.items():
            whole[at - start : at - start + self._block_size] = block
        skip = request.offset - start
        whole[skip : skip + request.length] = _data(request)
        return [Request(_WRITE, start, end - start, whole, request.fua, self._done)]

    def _zeroed(self) -> list[Request]:
        """A WRITE for each edge block, and a ZERO for the whole blocks between them."""
        request, size = self._claim.request, self._block_size
        requests = []
        for at, block in self._edges.items():
            first, last = max(request.offset, at) - at, min(request.offset + request.length, at + size) - at
            block[first:last] = bytes(last - first)
            requests.append(Request(_WRITE, at, size, block, request.fua, self._done))
        start = self._claim.start + (size if self._claim.start in self._edges else 0)
        end = self._claim.end - (size if self._claim.end - size in self._edges else 0)
        if start < end:
            requests.append(Request(_ZERO, start, end - start, None, request.fua, self._done))
        return requests


_UNALIGNED: Final[dict[Op, Callable[[Aligned, Request], None]]] = {
    _READ: Aligned._read,
    _WRITE: Aligned._edit,
    _FLUSH: Aligned._flush,
    _TRIM: Aligned._trim,
    _ZERO: Aligned._edit,
}


def _data(request: Request) -> memoryview:
    if request.data is None:
        raise AssertionError(f"{request!r} has no data")
    return request.data


def _in_bytes(geometry: Geometry) -> Geometry:
    return replace(geometry, block_size=1)
