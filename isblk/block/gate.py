"""The gate: the one checked place every request passes, with the counters that tell what went through.

A front end is always handed a Gate, never a bare device; so a range, a flag or a capability is checked once, and whoever ends the device
can wait until nothing is in flight (`drained`).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final

import trio

from isblk.block.latency import Histogram, Sampler
from isblk.block.request import Device, Geometry, Op, Request, Witness
from isblk.errors import RequestInvalid, kind_of

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_FLUSH: Final = Op.FLUSH
_CHANGES: Final = (Op.WRITE, Op.TRIM, Op.ZERO)


@dataclass
class Counters:
    """What passed: requests and bytes by operation (indexed by Op), and requests that ended with an error, by its kind too."""

    requests: list[int] = field(default_factory=lambda: [0] * len(Op))
    bytes: list[int] = field(default_factory=lambda: [0] * len(Op))
    errors: int = 0
    error_kinds: Counter[str] = field(default_factory=Counter)

    def failed(self, error: Exception) -> None:
        """A request ended with an error, or was refused."""
        self.errors += 1
        self.error_kinds[kind_of(error)] += 1

    def as_dict(self) -> dict[str, int]:
        """For status and JSON."""
        named = {f"{op.name.lower()}_requests": self.requests[op] for op in Op}
        moved = {f"{op.name.lower()}_bytes": self.bytes[op] for op in Op if op is not Op.FLUSH}
        return {**named, **moved, "errors": self.errors}


class Gate(Witness):
    """A Device in front of a Device."""

    def __init__(self, device: Device, losses: Callable[[], int] | None = None) -> None:
        self.counters = Counters()
        self.in_flight = 0
        self._changes = 0
        self._covered = 0
        self._device = device
        self._submit_below = device.submit
        self._losses = losses
        self._latencies = [Histogram() for _ in Op]
        self._sampler = Sampler()
        self._until = self._weight = 1
        self._closed = False
        self._drained = trio.Event()
        self._drained.set()

    @property
    def geometry(self) -> Geometry:
        """The device as it is now."""
        return self._device.geometry

    @property
    def losses(self) -> int:
        """How often the device has lost writes that it had acknowledged: front ends tell each of their users once."""
        return self._losses() if self._losses is not None else 0

    @property
    def unflushed(self) -> int:
        """Changes acknowledged since the latest FLUSH that succeeded was submitted: what a target that loses its cache would lose."""
        return self._changes - self._covered

    def submit(self, request: Request) -> None:
        """Hot. Check, count and pass on. What cannot be is finished here with RequestInvalid."""
        geometry = self._device.geometry
        op, length, data = request.op, request.length, request.data
        plain = data is not None and op <= _WRITE and 0 < length == len(data) and 0 <= request.offset <= geometry.size - length
        if (not plain or self._closed or (geometry.read_only and op is _WRITE)) and not self._admit(request, geometry):
            return
        request.gate = self
        self.in_flight += 1
        self._until -= 1
        if not self._until:
            self._time(request)
        self._submit_below(request)

    def kick(self) -> None:
        """End of a batch."""
        self._device.kick()

    def latencies(self) -> dict[str, Any]:
        """How long requests took, by operation; only operations that there were."""
        return {op.name.lower(): self._latencies[op].as_dict() for op in Op if self._latencies[op].samples}

    def tick(self) -> None:
        """A few times a second: how many requests are timed follows how many there are."""
        self._sampler.tick()
        if self._until > self._sampler.every:  # The rest of a long count must not outlast the load that it was for.
            self._weight -= self._until - self._sampler.every
            self._until = self._sampler.every

    def close(self) -> None:
        """Take no more requests; those in flight go on."""
        self._closed = True

    async def drained(self) -> None:
        """Return when nothing is in flight."""
        while self.in_flight:
            if self._drained.is_set():  # Else somebody waits for it already.
                self._drained = trio.Event()
            await self._drained.wait()

    def passed(self, request: Request) -> None:
        """Hot. A request has ended: count it."""
        counters, op = self.counters, request.op
        counters.requests[op] += 1
        if request.error is None:
            counters.bytes[op] += request.length
            if op is not _READ and op is not _FLUSH and not request.fua:
                self._changes += 1
        else:
            counters.failed(request.error)
        self.in_flight -= 1
        if not self.in_flight:
            self._drained.set()

    def _time(self, request: Request) -> None:
        """One of a number: note when it began. Its callback is another, so that the others are asked nothing at their end."""
        request.done = partial(self._timed, monotonic(), self._weight, request.done)
        self._sampler.took()
        self._until = self._weight = self._sampler.every

    def _timed(self, began: float, weight: int, done: Callable[[Request], None] | None, request: Request) -> None:
        if request.error is None:
            self._latencies[request.op].add(monotonic() - began, weight)
        _give_back(request, done)

    def _admit(self, request: Request, geometry: Geometry) -> bool:
        """Everything but plain reads and writes: check; False when the request has been finished."""
        error = self._refusal(request, geometry)
        if error is not None:
            self.counters.failed(error)
            request.finish(error)
            return False
        if request.op is Op.FLUSH:
            request.done = partial(self._flushed, self._changes, request.done)
        return True

    def _flushed(self, covered: int, done: Callable[[Request], None] | None, request: Request) -> None:
        if request.error is None:
            self._covered = max(self._covered, covered)
        _give_back(request, done)

    def _refusal(self, request: Request, geometry: Geometry) -> RequestInvalid | None:
        """Why this request can never be done; None when it can."""
        if self._closed:
            return RequestInvalid("the device is being closed and takes no more requests", errno.ESHUTDOWN)
        return refusal(request, geometry)


def _give_back(request: Request, done: Callable[[Request], None] | None) -> None:
    """The request is its owner's again, callback and all; the owner is told."""
    request.done = done
    if done is not None:
        done(request)


def refusal(request: Request, geometry: Geometry) -> RequestInvalid | None:
    """Why a device of this geometry can never do the request; None when it can."""
    op, offset, length, data = request.op, request.offset, request.length, request.data
    if op is Op.FLUSH:
        return None
    if offset < 0 or length <= 0 or (op <= Op.WRITE and (data is None or len(data) != length)):
        return RequestInvalid(f"{request!r} has no valid offset, length or buffer")
    if geometry.read_only and op in _CHANGES:
        return RequestInvalid("the device is read-only", errno.EROFS)
    if offset + length > geometry.size:
        return RequestInvalid(f"{request!r} passes the end at {geometry.size}", errno.EINVAL if op is Op.READ else errno.ENOSPC)
    if op is Op.TRIM and not geometry.can_trim:
        return RequestInvalid("the device cannot discard", errno.EOPNOTSUPP)
    return None
