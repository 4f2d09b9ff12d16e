"""One way to a logical unit: a session's unit with its state, its load and what it has carried."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from isblk.block.choose import PathState
from isblk.block.latency import Histogram, Sampler
from isblk.block.probe import Description, Link
from isblk.block.request import Device, Geometry
from isblk.errors import IsblkError, kind_of
from isblk.iscsi.pdu import TaskManagement
from isblk.iscsi.task import Task
from isblk.link.keeper import Keeper, Phase
from isblk.scsi.data import AccessState
from isblk.scsi.inquiry import Association, DesignatorType

FLAPS: Final = 4
FLAP_SECONDS: Final = 60.0
"""A path that was lost FLAPS times in so many seconds is damped (san_path_err_threshold of multipath-tools)."""
CARRYING: Final = (AccessState.OPTIMIZED, AccessState.NON_OPTIMIZED, AccessState.LBA_DEPENDENT)
DEPTH_LIMIT: Final = 256
"""Requests on one path beyond which a limit is no limit, where none was set: more than any front end has."""
RATE_SHARE: Final = 0.1
"""How much the latest request counts in the rate of a path (an exponential mean)."""


class Unit(Device, Protocol):
    """A logical unit by way of one session; lun.LogicalUnit is one."""

    @property
    def retries(self) -> int:
        """Commands that were sent once more."""

    @property
    def lun(self) -> bytes:
        """Its eight bytes."""

    @property
    def link(self) -> Link:
        """The session."""

    @property
    def description(self) -> Description:
        """What it has said of itself."""

    async def listen(self) -> None:
        """Have it say what it has to announce. Raises PathLost."""

    async def refresh(self) -> Geometry:
        """Take up a changed capacity. Raises IsblkError."""


class Nexus(Protocol):
    """The session of a path; link.connection.Connection is one."""

    async def manage(self, function: TaskManagement, *, task: Task | None = None, lun: bytes = bytes(8)) -> int:
        """A task management function; its response code. Raises PathLost."""

    def leave(self, why: str, seconds: float) -> None:
        """Take no more tasks, let the open ones end within so many seconds, log out."""

    def fail(self, error: IsblkError) -> None:
        """End it now."""


class Path:
    """Mutable state, changed by its Multipath alone; `on_change` is told of another state.

    `in_flight` counts requests, `bytes_in_flight` and `service_rate` bytes (per second).

    `session` counts the sessions that carried requests; `ended` is the last of them known to have ended at the target, tasks too. Every
    `every`-th request is timed (latency.py); `retries` counts commands sent again on sessions that are gone.
    """

    def __init__(self, number: int, keeper: Keeper, queue_depth: int | None = None) -> None:
        self.number = number
        self.keeper = keeper
        self.state = PathState.DOWN
        self.since = time.time()
        self.reason = "not connected yet"
        self.access = AccessState.OPTIMIZED
        self.preferred = False
        self.damped = False
        self.on_change: Callable[[Path], None] | None = None
        self.unit: Unit | None = None
        self.connection: Nexus | None = None
        self.queue_depth = queue_depth
        self.depth = queue_depth
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.service_rate = 0.0
        self.requests = 0
        self.bytes = 0
        self.errors = 0
        self.error_kinds: Counter[str] = Counter()
        self.retries = 0
        self.latency = Histogram()
        self.every = 1
        self.losses = 0
        self.last_error = ""
        self.acknowledged = 0
        self.synchronized = 0
        self.session = 0
        self.ended = 0
        self._recent: deque[float] = deque(maxlen=FLAPS)
        self._sampler = Sampler()
        self._sampled = 0

    @property
    def carries(self) -> bool:
        """Whether the target lets requests through here at all (SPC-4 5.15.2), whatever waits for the fence."""
        return self.unit is not None and self.state is not PathState.STANDBY and self.access in CARRYING

    @property
    def dirty(self) -> bool:
        """Whether it carried acknowledged changes that no flush has covered since."""
        return self.acknowledged > self.synchronized

    def become(self, state: PathState, reason: str = "") -> None:
        """Change the state; `since` and `reason` are for status."""
        if state is not self.state or reason != self.reason:
            before, self.state, self.reason, self.since = self.state, state, reason, time.time()
            if self.on_change is not None and state is not before:
                self.on_change(self)

    @property
    def is_full(self) -> bool:
        """Whether it has as many requests as the target took before it said TASK SET FULL."""
        return self.depth is not None and self.in_flight >= self.depth

    def lower_depth(self) -> None:
        """TASK SET FULL (SAM-5 5.3): a quarter fewer than were on their way, and not more until `raise_depth`."""
        self.depth = max(1, self.in_flight - max(1, self.in_flight // 4))

    def raise_depth(self) -> None:
        """Some time has gone well: let in some more; no limit is kept above DEPTH_LIMIT."""
        if self.depth is not None:
            self.depth += max(1, self.depth // 8)
            if self.depth >= (self.queue_depth or DEPTH_LIMIT):
                self.depth = self.queue_depth

    def count_loss(self, now: float) -> None:
        """The path is lost at `now` (seconds of trio's clock)."""
        self.losses += 1
        self._recent.append(now)

    def flaps(self, now: float) -> bool:
        """Whether it was lost FLAPS times within FLAP_SECONDS."""
        return len(self._recent) == FLAPS and now - self._recent[0] < FLAP_SECONDS

    def failed(self, error: Exception) -> None:
        """A request has come back with an error."""
        self.errors += 1
        self.error_kinds[kind_of(error)] += 1
        self.last_error = str(error)

    def sample(self) -> int:
        """The request that was just counted is timed; returns how many it stands for."""
        weight, self._sampled = self.requests - self._sampled, self.requests
        self._sampler.took()
        self.every = self._sampler.every
        return weight

    def tick(self) -> None:
        """A few times a second: how many requests are timed follows how many there are."""
        self._sampler.tick()
        self.every = self._sampler.every

    def finished(self, length: int, seconds: float, weight: int = 0) -> None:
        """A request that was timed has come back whole: what that says about the path's rate, and about `weight` requests of the path."""
        if weight:
            self.latency.add(seconds, weight)
        if seconds > 0:
            rate = length / seconds
            self.service_rate = rate if not self.service_rate else self.service_rate + (rate - self.service_rate) * RATE_SHARE

    def status(self) -> dict[str, Any]:
        """One path for `isblk status`."""
        keeper = self.keeper
        state, reason = self.state, self.reason
        if state is PathState.DOWN and keeper.reason:  # Why it stays down is what the keeper met since.
            state, reason = PathState.WRONG if keeper.phase is Phase.WRONG else state, keeper.reason
        return {
            "portal": str(keeper.portal),
            "portal_group": keeper.portal_group,
            "isid": str(keeper.access.isid),
            "state": state.value,
            "reason": reason or None,
            "since": self.since,
            "access": self.access.name.lower().replace("_", "-"),
            "preferred": self.preferred,
            "damped": self.damped,
            "requests": self.requests,
            "bytes": self.bytes,
            "in_flight": self.in_flight,
            "depth": self.depth,
            "errors": self.errors,
            "error_kinds": dict(self.error_kinds),
            "retries": self.retries + (self.unit.retries if self.unit is not None else 0),
            "latency": self.latency.as_dict(),
            "losses": self.losses,
            "logins": keeper.logins,
            "last_error": self.last_error or None,
        }

    def __repr__(self) -> str:
        return f"<Path {self.number} {self.keeper.portal} {self.state.value} in_flight={self.in_flight}>"


def port_group(found: Description) -> int | None:
    """The target port group (SPC-4 7.8.5.8) that VPD 83 names for the port it was asked through."""
    for designator in found.designators:
        if designator.association is Association.TARGET_PORT and designator.type == DesignatorType.TARGET_PORT_GROUP:
            return int.from_bytes(designator.value[2:4], "big")
    return None
