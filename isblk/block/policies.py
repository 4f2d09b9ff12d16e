"""What an administrator decides about the paths of a device, checked once; the words are those of multipath.conf(5)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from isblk.block.choose import IMMEDIATE, Failback, NoPathRetry, Policy
from isblk.block.journal import DEFAULT_LIMIT
from isblk.errors import UsageError

_REPLACEMENT_TIMEOUT = NoPathRetry(120)
"""Seconds, as open-iscsi has it."""


class FencePolicy(Enum):
    """Whether a write that was sent may be repeated before the target is known not to do it any more."""

    STRICT = "strict"
    """Never: reinstate, reset where the unit is ours alone, else wait. No older write can land over a newer one."""
    FAST = "fast"
    """At once, as dm-multipath does: an old write that is stuck may land later, over a newer one."""


@dataclass(frozen=True)
class Policies:
    """All of it. Times in seconds, `journal_limit` in bytes. `shared`: other hosts use the logical unit, so it is never reset.
    `queue_depth`: requests that one path carries at most; None leaves that to the target's command window and its TASK SET FULL.

    `network_wait` is how long after its loss what a session sent that could not be ended is given to arrive, before a reset ends what the
    target has of it; `fence_wait` is how long it is given to be noticed by the target where no reset may be had either, by default LIO's
    15 + 30 s. `settle_wait` is given after a reinstatement where no reset may follow, for commands the target had already taken in.
    """

    policy: Policy = Policy.FAILOVER
    failback: Failback = IMMEDIATE
    no_path: NoPathRetry = _REPLACEMENT_TIMEOUT
    fence: FencePolicy = FencePolicy.STRICT
    shared: bool = False
    queue_depth: int | None = None
    network_wait: float = 5
    fence_wait: float = 45
    settle_wait: float = 5
    journal_limit: int = DEFAULT_LIMIT
    poll_interval: float = 10

    def __post_init__(self) -> None:
        if self.journal_limit < 1 << 20:
            raise UsageError("the journal of unflushed writes needs at least 1 MiB")
        if self.queue_depth is not None and self.queue_depth < 1:
            raise UsageError("a path that may carry no request is none: the queue depth is at least 1")
        if min(self.network_wait, self.fence_wait, self.settle_wait, self.poll_interval) < 0:
            raise UsageError("a time cannot be negative")

    @property
    def spreads(self) -> bool:
        """Whether requests go over several paths at once."""
        return self.policy is not Policy.FAILOVER

    @property
    def measures_time(self) -> bool:
        """Whether the policy needs the service time of each request."""
        return self.policy is Policy.SERVICE_TIME
