"""A Device in memory for tests: records requests, and finishes them at once, after a delay, or when the test says so; fails on order."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from isblk.block.request import Geometry, Op, Request
from isblk.errors import RequestFailed


@dataclass(frozen=True)
class Seen:
    """What one request asked for."""

    op: Op
    offset: int
    length: int
    fua: bool


class MemoryDevice:
    """`size` and `block_size` in bytes.

    `hold`: requests stay in `pending` until `complete` (and may take effect before that, by `apply`). `delay`: they finish after so many
    seconds of trio's clock. Neither: they finish within `submit`. `fail_next` lists errors for the next requests; `failing(request)` may
    return an error for any. What no FLUSH or FUA made durable is lost by `crash`.
    """

    def __init__(self, size: int = 1 << 20, block_size: int = 512, hold: bool = False, delay: float = 0, read_only: bool = False) -> None:
        self.content = bytearray(size)
        self.durable = bytes(size)
        self.hold = hold
        self.delay = delay
        self.requests: list[Seen] = []
        self.pending: list[Request] = []
        self.applied: set[int] = set()
        self.kicks = 0
        self.fail_next: list[Exception] = []
        self.failing: Callable[[Request], Exception | None] = lambda _request: None
        self.geometry = Geometry(
            size,
            block_size,
            block_size,
            read_only=read_only,
            can_trim=True,
            can_zero=True,
            can_fua=True,
            write_cache=True,
            trim_reads_zero=True,
        )

    def resize(self, size: int) -> None:
        """Grow or shrink; the geometry becomes a new object."""
        self.content = self.content[:size].ljust(size, b"\0")
        self.geometry = replace(self.geometry, size=size)

    def submit(self, request: Request) -> None:
        """Take one request, which must be whole blocks inside the device with data of its length."""
        block = self.geometry.block_size
        assert request.offset % block == 0 and request.length % block == 0, f"{request!r} is not whole blocks of {block}"
        assert 0 <= request.offset <= request.offset + request.length <= self.geometry.size, f"{request!r} is out of range"
        assert request.data is None or len(request.data) == request.length
        self.requests.append(Seen(request.op, request.offset, request.length, request.fua))
        if self.hold:
            self.pending.append(request)
        elif self.delay:
            self.pending.append(request)
            trio.lowlevel.spawn_system_task(self._later, request)
        else:
            self._finish(request)

    def kick(self) -> None:
        """Count the batches."""
        self.kicks += 1

    async def _later(self, request: Request) -> None:
        await trio.sleep(self.delay)
        self.complete(self.pending.index(request))

    def apply(self, index: int = 0) -> None:
        """Let a pending request take effect without finishing it, as a device that has not answered yet."""
        request = self.pending[index]
        if id(request) not in self.applied:
            self.applied.add(id(request))
            self._act(request)

    def complete(self, index: int = 0, error: Exception | None = None) -> Request:
        """Finish a pending request, with an error if the test says so."""
        if error is None:
            self.apply(index)
        request = self.pending.pop(index)
        self.applied.discard(id(request))
        request.finish(error)
        return request

    def complete_all(self) -> None:
        """Finish everything, what is submitted meanwhile included."""
        while self.pending:
            self.complete()

    def crash(self) -> None:
        """Lose what is not durable."""
        self.content[:] = self.durable

    def _finish(self, request: Request) -> None:
        error = self.fail_next.pop(0) if self.fail_next else self.failing(request)
        if error is None:
            self._act(request)
        request.finish(error)

    def _act(self, request: Request) -> None:
        where = slice(request.offset, request.offset + request.length)
        if request.op is Op.READ:
            assert request.data is not None
            request.data[:] = self.content[where]
        elif request.op is Op.WRITE:
            assert request.data is not None
            self.content[where] = request.data
        elif request.op in (Op.TRIM, Op.ZERO):
            self.content[where] = bytes(request.length)
        if request.op is Op.FLUSH:
            self.durable = bytes(self.content)
        elif request.fua:
            self.durable = self.durable[: where.start] + bytes(self.content[where]) + self.durable[where.stop :]


def broken(error_number: int = errno.EIO) -> RequestFailed:
    """An error as a device reports it."""
    return RequestFailed("the test wants this to fail", error_number)
