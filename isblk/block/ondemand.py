"""A disk whose sessions are there only while it is used: a Device that has nothing below it until it is asked.

Theory of operation. Above it nothing changes: the gate, the size, the identity stay while what is below comes and goes (sleeper.py decides
when). Requests that find nothing below are queued; they hold their front end's memory, so its back-pressure bounds the queue. When the
disk is there they are checked once more, for it may have become smaller or read-only meanwhile, and go on.

Nothing that is not durable is held across a logout. A session is only left when every acknowledged change has been flushed, the journal is
empty, nothing is unfenced and nothing waits (`is_clean`): so a FLUSH that finds no session has nothing to do, and a new session needs none
of the old one's fences. A SYNCHRONIZE CACHE that failed on the way there keeps the session, and the next FLUSH from above is told, once.

While there is no session, the unit counts as one with a volatile cache, whatever it was: who needs a durable write then asks for FUA.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from isblk.block.align import Aligned
from isblk.block.gate import Gate, refusal
from isblk.block.known import Known, described
from isblk.block.multipath import Multipath
from isblk.block.request import Device, Geometry, Op, Request, execute
from isblk.block.stack import Disk
from isblk.errors import IsblkError

_log = logging.getLogger(__name__)

_FLUSH = Op.FLUSH
_NEVER_SEEN = Geometry(0, 1, 1, write_cache=True)


class OnDemand:
    """The device, in bytes, and its `disk` for front ends. `wake` is called for each request that finds no session: None, or why not."""

    def __init__(self, number: int, known: Known | None, wake: Callable[[], IsblkError | None]) -> None:
        self.known = known
        self.below: Device | None = None
        self.users = 0
        description = known.description if known is not None else described(number)
        self.disk = Disk(number, description, self, Gate(self, lambda: self.losses))
        self._wake = wake
        self._lower: Aligned | None = None
        self._queue: deque[Request] = deque()
        self._complaint: Exception | None = None
        self._refusal: IsblkError | None = None
        self._losses = 0
        self._asleep = _asleep(known)

    # ------------------------------------------------------------------ the Device

    @property
    def geometry(self) -> Geometry:
        """The disk as it is, or as it is remembered; a size of 0 when it has never been seen."""
        lower = self._lower
        return lower.geometry if lower is not None else self._asleep

    def submit(self, request: Request) -> None:
        """Hot while there is a session."""
        lower = self._lower
        if lower is not None and request.op is not _FLUSH:
            lower.submit(request)
        else:
            self._submit_carefully(request)

    def kick(self) -> None:
        """End of a batch."""
        if self._lower is not None:
            self._lower.kick()

    def _submit_carefully(self, request: Request) -> None:
        complaint = self._complaint
        if request.op is _FLUSH and complaint is not None:
            self._complaint = None
            request.finish(complaint)
        elif self._lower is not None:
            self._lower.submit(request)
        elif request.op is _FLUSH:
            request.finish()
        else:
            self._wait(request)

    def _wait(self, request: Request) -> None:
        error = self._refusal or self._wake()
        if error is not None:
            request.finish(error)
        else:
            self._queue.append(request)

    # ------------------------------------------------------------------ what sleeper.py does with it

    @property
    def waiting(self) -> int:
        """Requests that wait for a session."""
        return len(self._queue)

    @property
    def losses(self) -> int:
        """How often acknowledged writes were lost, over all sessions (gate.Gate.losses)."""
        return self._losses + (self.below.cache_losses if isinstance(self.below, Multipath) else 0)

    @property
    def activity(self) -> int:
        """A number that grows with each request."""
        return sum(self.disk.gate.counters.requests)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self.disk.gate.in_flight or self.users or self._queue)

    @property
    def is_clean(self) -> bool:
        """Whether the session may be left: nothing is held that is not durable."""
        below = self.below
        held = isinstance(below, Multipath) and (below.fence.active or below.waiting)
        return not (held or self.is_busy or self.is_dirty)

    @property
    def is_dirty(self) -> bool:
        """Whether a flush is needed. Durable writes are no changes to the gate, but stay in the journal when older ones were there."""
        return bool(self.disk.gate.unflushed or (isinstance(self.below, Multipath) and len(self.below.journal)))

    def bind(self, found: Disk) -> None:
        """The disk is there: go on with what waits. Raises WrongUnit when it is another than the one that is known."""
        if self.known is not None:
            self.known.check(found)
        before, self._refusal = self._asleep.size, None
        self.disk.number, self.disk.description = found.number, found.description
        self.known, self.below, self._lower = Known.of(found), found.device, Aligned(found.device)
        _tell_size(found, before)
        waiting, self._queue = self._queue, deque()
        for request in waiting:
            error = None if _is_knock(request) else refusal(request, self.geometry)
            if error is not None or _is_knock(request):
                request.finish(error)
            else:
                self.submit(request)
        self.kick()

    def unbind(self) -> None:
        """The session is being left: from now on requests wait. Harmless where there is none."""
        if self.below is None or self.known is None:
            return
        self._losses = self.losses
        self.known = replace(self.known, geometry=self.below.geometry)
        self._asleep = _asleep(self.known)
        self.below = self._lower = None

    def refuse(self, error: IsblkError) -> None:
        """While the other disks of the target are logged in to, this one is not there: requests fail."""
        self._refusal = error
        self.give_up(error)

    def allow(self) -> None:
        """Requests may wait again."""
        self._refusal = None

    def give_up(self, error: IsblkError) -> None:
        """Fail what waits."""
        waiting, self._queue = self._queue, deque()
        for request in waiting:
            request.finish(error)

    def complain(self, error: Exception) -> None:
        """A flush of nobody's asking has failed: the next one from above says so."""
        self._complaint = error

    # ------------------------------------------------------------------ for whoever needs the session itself

    async def ready(self) -> None:
        """Return when the disk is there. Raises what a request would end with."""
        if self._lower is None:
            await execute(_Door(self), Request(Op.READ))

    @asynccontextmanager
    async def used(self) -> AsyncIterator[Device]:
        """What is below, which stays for the length of the block. Raises as `ready`."""
        self.users += 1
        try:
            while self.below is None:
                await self.ready()
            yield self.below
        finally:
            self.users -= 1


def _is_knock(request: Request) -> bool:
    """Whether it asks for no more than that the disk is there: a READ of nothing, which no gate lets through."""
    return request.op is Op.READ and not request.length


class _Door:
    """Where a knock is submitted."""

    def __init__(self, device: OnDemand) -> None:
        self._device = device
        self.geometry = device.geometry

    def submit(self, request: Request) -> None:
        self._device._wait(request)

    def kick(self) -> None:
        self._device.kick()


def _asleep(known: Known | None) -> Geometry:
    return replace(known.geometry, block_size=1, write_cache=True) if known is not None else _NEVER_SEEN


def _tell_size(found: Disk, before: int) -> None:
    size = found.device.geometry.size
    if 0 < before < size:
        _log.warning("LUN %d has grown from %d to %d bytes", found.number, before, size)
    elif size < before:
        _log.error("LUN %d has shrunk from %d to %d bytes: requests beyond its end are refused", found.number, before, size)
