"""Which path next: path groups by ALUA state, the four policies of multipath-tools, and failback (SPC-4 5.15, multipath.conf(5)). PURE.

Theory of operation: `Chooser.choose` runs once per request, so what changes rarely (which paths are in the best group) is worked out
once and kept until `changed()`, and what changes with each request (load) is read from the candidates as they are. A group is all usable
paths of one rank. The group in use is left when none of its paths is usable any more, or when the target itself demoted it; a better one
that appears later is a failback, which waits for its rule. There is no clock here: `tick(now)` brings the time.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from isblk.errors import UsageError
from isblk.scsi.data import AccessState

Access = AccessState
"""Asymmetric access state of the target port group that a path leads to (SPC-4 5.15.2)."""

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_ORDER: Final = {Access.OPTIMIZED: 0, Access.NON_OPTIMIZED: 1, Access.LBA_DEPENDENT: 2}
"""The states through which I/O goes, best first. LBA dependent: some blocks are non-optimized there, or worse (SPC-4 5.15.2.4.6)."""


Rank = tuple[int, int, int]
"""Damped, access, not preferred: less is better. A damped path comes behind any that holds still, however good its access state."""


class PathState(Enum):
    """What isblk knows of a path itself; what the target says of it is its Access."""

    UP = "up"
    STANDBY = "standby"
    FENCING = "fencing"
    DOWN = "down"
    WRONG = "wrong unit"


class Policy(Enum):
    """How requests are spread over the paths of the group in use; the words of multipath-tools."""

    FAILOVER = "failover"
    ROUND_ROBIN = "round-robin"
    QUEUE_LENGTH = "queue-length"
    SERVICE_TIME = "service-time"

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy of that name; UsageError tells the nearest name there is."""
        try:
            return cls(text)
        except ValueError:
            names = [each.value for each in cls]
            near = difflib.get_close_matches(text.lower().replace("_", "-"), names, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UsageError(f"{text!r} is no policy for choosing a path: {hint}") from None


@dataclass(frozen=True)
class Failback:
    """When a better group is returned to: after how many seconds of its being there; `inf` never."""

    seconds: float

    @classmethod
    def parse(cls, text: str) -> Failback:
        """'immediate', 'manual' or seconds. Raises UsageError."""
        return cls(_seconds(text, {"immediate": 0.0, "manual": math.inf}, "failback"))

    def __str__(self) -> str:
        return {0.0: "immediate", math.inf: "manual"}.get(self.seconds, f"{self.seconds:g}")


@dataclass(frozen=True)
class NoPathRetry:
    """How many seconds requests wait when no path is left; 0 fails them at once, `inf` keeps them."""

    seconds: float

    @classmethod
    def parse(cls, text: str) -> NoPathRetry:
        """'fail', 'queue' or seconds. Raises UsageError."""
        return cls(_seconds(text, {"fail": 0.0, "queue": math.inf}, "no_path_retry"))

    def __str__(self) -> str:
        return {0.0: "fail", math.inf: "queue"}.get(self.seconds, f"{self.seconds:g}")


IMMEDIATE, MANUAL = Failback(0.0), Failback(math.inf)
FAIL, QUEUE = NoPathRetry(0.0), NoPathRetry(math.inf)


def _seconds(text: str, words: dict[str, float], setting: str) -> float:
    if text in words:
        return words[text]
    if not _SECONDS.fullmatch(text):
        raise UsageError(f"{setting} cannot be {text!r}: it is {', '.join(words)}, or a number of seconds")
    return float(text)


class Candidate(Protocol):
    """A path as choosing sees it. Bytes in flight are of data, either way; `service_rate` is bytes per second seen, 0 unknown."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> PathState: ...
    @property
    def access(self) -> Access: ...
    @property
    def preferred(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def bytes_in_flight(self) -> int: ...
    @property
    def service_rate(self) -> float: ...
    @property
    def damped(self) -> bool: ...


T = TypeVar("T", bound=Candidate)


def rank(path: Candidate) -> Rank | None:
    """Where a path stands, less is better; None: nothing may be sent through it now."""
    order = _ORDER.get(path.access)
    if path.state is not PathState.UP or order is None:
        return None
    return path.damped, order, not path.preferred


def group(candidates: Sequence[T]) -> list[T]:
    """All paths of the best rank that has any, preferred ones first; paths that are preferred and paths that are not share a group.

    That is group_by_prio of multipath-tools: the preferred bit decides who is first, not who is left idle.
    """
    ranked = [(found, path) for path in candidates if (found := rank(path)) is not None]
    if not ranked:
        return []
    best = min(found for found, _ in ranked)[:2]
    chosen = [(found, path) for found, path in ranked if found[:2] == best]
    return [path for _, path in sorted(chosen, key=lambda each: each[0])]


def transitioning(candidates: Sequence[Candidate]) -> bool:
    """Whether a path that is up waits for its target port group to settle: requests without a path wait for it (SPC-4 5.15.2.5)."""
    return any(path.state is PathState.UP and path.access is Access.TRANSITIONING for path in candidates)


class Chooser(Generic[T]):
    """The path of each request. `repeat` is how many requests in a row round-robin gives one path (rr_min_io_rq).

    Call `changed` whenever a path's state, access, preference or damping has changed, or a path came or went; and `tick` about once a
    second while failback may be pending.
    """

    def __init__(self, policy: Policy = Policy.FAILOVER, failback: Failback = IMMEDIATE, repeat: int = 1) -> None:
        self._repeat = repeat
        self._left = repeat
        self._group: list[T] | None = None
        self._used: set[int] = set()
        self._rank: Rank = (0, 0, 0)
        self._better_waits = False
        self._better_since: float | None = None
        self._return = False
        self.follow(policy, failback)

    def follow(self, policy: Policy, failback: Failback) -> None:
        """From the next request on, choose like this."""
        self.policy = policy
        self.failback = failback
        self._pick: Callable[[Sequence[Candidate], int], int] = self._in_turn
        if policy is Policy.QUEUE_LENGTH:
            self._pick = _shortest_queue
        elif policy is Policy.SERVICE_TIME:
            self._pick = _soonest
        self.changed()

    @property
    def used(self) -> set[int]:
        """The numbers of the paths in the group in use."""
        return self._used

    def changed(self) -> None:
        """The group is worked out anew for the next request."""
        self._group = None

    def choose(self, candidates: Sequence[T], length: int) -> T | None:
        """The path for a request of `length` bytes; None when there is none to be had now."""
        paths = self._group
        if paths is None:
            paths = self._group = self._regroup(candidates)
        if len(paths) < 2:
            return paths[0] if paths else None
        at = self._pick(paths, length)
        path = paths[at]
        # The path taken goes to the end, so that equals take turns, as dm's selectors do.
        if at < len(paths) - 1 and self._left == self._repeat:
            del paths[at]
            paths.append(path)
        return path

    def tick(self, now: float) -> float | None:
        """Let a failback happen whose time has come; in how many seconds the next one is due, None when none is pending."""
        if not self._better_waits or math.isinf(self.failback.seconds):
            return None
        if self._better_since is None:
            # Counted from the first tick after it was noticed: late by a tick at most, never early.
            self._better_since = now
        left = self._better_since + self.failback.seconds - now
        if left > 0:
            return left
        self._return = True
        self.changed()
        return None

    def _regroup(self, candidates: Sequence[T]) -> list[T]:
        best = self._choose_group(candidates)
        if self.policy is Policy.FAILOVER:
            # Each path is a group of its own: the one in use stays, unless another is better.
            best = [path for path in best if path.number in self._used][:1] or best[:1]
        self._left = self._repeat
        self._used = {path.number for path in best}
        ranks = [found for path in best if (found := self._rank_of(path)) is not None]
        if ranks:
            self._rank = min(ranks)
        return best

    def _choose_group(self, candidates: Sequence[T]) -> list[T]:
        """The best group, or the one in use where failback has to wait."""
        ranked = [(found, path) for path in candidates if (found := self._rank_of(path)) is not None]
        best = min((found for found, _ in ranked), default=None)
        # A path that the target demoted since is no longer the one that was chosen: to leave it is no failback.
        staying = min((found for found, path in ranked if path.number in self._used and found <= self._rank), default=None)
        waits = best is not None and staying is not None and best < staying and self.failback.seconds > 0 and not self._return
        self._return = False
        if not waits:
            self._better_waits, self._better_since = False, None
            return group([path for found, path in ranked if found == best])
        self._better_waits = True
        return group([path for found, path in ranked if found == staying])

    def _rank_of(self, path: T) -> Rank | None:
        """With failover the preferred path is better; elsewhere preferred ones share the work with the others."""
        found = rank(path)
        return found if found is None or self.policy is Policy.FAILOVER else (*found[:2], 0)

    def _in_turn(self, paths: Sequence[Candidate], length: int) -> int:
        self._left = self._left - 1 or self._repeat
        return 0

    def __repr__(self) -> str:
        return f"<Chooser {self.policy.value}, failback {self.failback}, in use {sorted(self._used)}>"


def _shortest_queue(paths: Sequence[Candidate], length: int) -> int:
    loads = [path.in_flight for path in paths]
    return loads.index(min(loads))


def _soonest(paths: Sequence[Candidate], length: int) -> int:
    """Least (bytes in flight + length) / rate. A path without a known rate counts as fast as the fastest, so that it gets measured."""
    fastest = max(path.service_rate for path in paths) or 1.0
    times = [(path.bytes_in_flight + length) / (path.service_rate or fastest) for path in paths]
    return times.index(min(times))
