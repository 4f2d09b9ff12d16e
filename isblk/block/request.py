"""The request that travels through the house, and the Device protocol that every layer of the block stack speaks.

Theory of operation: a Request is the block layer's bio, not a coroutine. Whoever starts it sets `done`; whoever completes it calls
`finish` exactly once, perhaps before `submit` has returned. Nothing on this road awaits: a trio task per I/O was measured and rejected
(a wake-up costs about 20 us). `submit` only queues; `kick` ends the batch, so that one sendmsg carries everything queued since the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import trio


class Op(IntEnum):
    """What a request asks of a device."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    TRIM = 3
    ZERO = 4


class Witness:
    """A layer that every request passes, and that is told of its end before whoever waits for it. (Taking the place of `done` for that, and
    giving it back, was measured at twice the cost.)"""

    def passed(self, request: Request) -> None:
        """The request has ended."""
        raise NotImplementedError


class Request:
    """One operation on a device: `offset` and `length` in bytes, `data` a view of exactly `length` bytes (READ fills it, WRITE sends it).

    The caller lends `data` until `finish` (for longer: `keep`) and must not change it (WRITE) or look at it (READ) before.
    FLUSH has offset 0 and length 0.
    `error` may be set before the end: then it stays, unless there is another. `gate` and `lock` are two witnesses, the lock's the first.
    """

    __slots__ = ("data", "done", "error", "finished", "fua", "gate", "length", "lock", "offset", "op")

    def __init__(
        self,
        op: Op,
        offset: int = 0,
        length: int = 0,
        data: memoryview | None = None,
        fua: bool = False,
        done: Callable[[Request], None] | None = None,
    ) -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.data = data
        self.fua = fua
        self.done = done
        self.gate: Witness | None = None
        self.lock: Witness | None = None
        self.error: Exception | None = None
        self.finished = False

    def finish(self, error: Exception | None = None) -> None:
        """Complete the request, once; `error` knows its errno (errors.IsblkError)."""
        if self.finished:
            raise AssertionError(f"{self!r} finished twice")
        self.finished = True
        if error is not None:
            self.error = error
        if self.lock is not None:
            self.lock.passed(self)
        if self.gate is not None:
            self.gate.passed(self)
        if self.done is not None:
            self.done(self)

    def renew(self) -> None:
        """Its owner may start it once more after it has ended."""
        self.finished = False
        self.error = None
        self.gate = self.lock = None

    def keep(self) -> tuple[bytes | memoryview, object]:
        """The data of a WRITE for longer than until `finish`, to be asked for before it: as long as the second value is referred to.

        A copy, unless whoever made the request has memory to spare.
        """
        return bytes(self.data or b""), None

    def __repr__(self) -> str:
        return f"<Request {self.op.name} {self.offset}+{self.length}{' fua' if self.fua else ''}>"


@dataclass(frozen=True)
class Geometry:
    """What a device is: sizes in bytes. `max_transfer` bounds READ and WRITE, `max_trim` and `max_zero` TRIM and ZERO; 0 means no bound.

    `zero_unmaps`: ZERO gives the blocks back as TRIM does, where it can, and what it zeroed reads as zeroes in any case.
    """

    size: int
    block_size: int
    physical_block_size: int
    optimal_transfer: int = 0
    max_transfer: int = 0
    max_trim: int = 0
    max_zero: int = 0
    trim_granularity: int = 0
    read_only: bool = False
    can_trim: bool = False
    can_zero: bool = False
    can_fua: bool = False
    write_cache: bool = False
    trim_reads_zero: bool = False
    zero_unmaps: bool = False
    rotational: bool = False


class Device(Protocol):
    """A block device; a layer over other Devices is one too (design.md: nbdkit's filters)."""

    @property
    def geometry(self) -> Geometry:
        """The device as it is now; a new object after a resize."""

    def submit(self, request: Request) -> None:
        """Queue one request; never blocks, never awaits; may finish it before returning."""

    def kick(self) -> None:
        """End of a batch: send what was queued."""


class Provisioned(Protocol):
    """A stretch of a device in bytes; `provisioning` as GET LBA STATUS has it (SBC-3 5.6.2): 0 mapped, 1 deallocated, 2 anchored."""

    @property
    def offset(self) -> int:
        """Where it begins."""

    @property
    def length(self) -> int:
        """How long it is."""

    @property
    def provisioning(self) -> int:
        """Whether there is anything behind it."""


async def execute(device: Device, request: Request) -> None:
    """Submit one request and wait for it; raises its error. For control work and tests, not for a data path.

    A cancelled wait leaves the request running: its buffer stays lent until it finishes.
    """
    finished = trio.Event()
    request.done = lambda _request: finished.set()
    device.submit(request)
    device.kick()
    await finished.wait()
    if request.error is not None:
        raise request.error


async def read(device: Device, offset: int, length: int) -> bytes:
    """Read `length` bytes at `offset` bytes; raises errors.IsblkError."""
    buffer = bytearray(length)
    await execute(device, Request(Op.READ, offset, length, memoryview(buffer)))
    return bytes(buffer)


async def write(device: Device, offset: int, data: bytes, fua: bool = False) -> None:
    """Write `data` at `offset` bytes; durable on return only with `fua`."""
    await execute(device, Request(Op.WRITE, offset, len(data), memoryview(data), fua))


async def flush(device: Device) -> None:
    """Make every write acknowledged before this call durable."""
    await execute(device, Request(Op.FLUSH))


async def trim(device: Device, offset: int, length: int) -> None:
    """Tell the device that a range is not needed; what it reads afterwards is the device's choice."""
    await execute(device, Request(Op.TRIM, offset, length))


async def zero(device: Device, offset: int, length: int, fua: bool = False) -> None:
    """Make a range read as zeroes."""
    await execute(device, Request(Op.ZERO, offset, length, fua=fua))
