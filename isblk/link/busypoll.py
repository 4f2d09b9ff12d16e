"""Waiting for the next event without giving the processor away, where that pays: at depth 1 most of a request's time is falling asleep.

A wait that sleeps costs tens of microseconds until the processor is awake and this process runs on it. So the plane first looks again and
again for SPIN_SECONDS, as the kernel's busy_poll and qemu's poll-max-ns do. Measured over NBD at depth 1, on two cores that had nothing
else to do: 14,500 requests a second became 20,200, at the same CPU time each.

It must not pay with what others need. A look that finds nothing is followed by waits that sleep at once, twice as many after each failure
in a row (PENALTY at most): a target that takes longer than a spin costs next to nothing. And where this thread is taken off its processor
by others (involuntary context switches), nothing is spun for REST bursts: no core falls asleep there, so there is nothing to be won.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import monotonic
from typing import Final

SPIN_SECONDS: Final = 50e-6
"""How long it is looked before sleeping."""
PENALTY: Final = 255
"""Waits without a look after the last of many failures."""
CROWD: Final = 2
"""Involuntary switches within a burst beyond which others need the processor."""
REST: Final = 20
"""Bursts without a look then; a burst lasts 5 ms at most."""

Events = list[tuple[int, int]]
Poll = Callable[[float], Events]
"""epoll's `poll`: at most so many seconds."""


def involuntary_switches() -> int:
    """How often this thread has been taken off its processor so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class BusyPoll:
    """How the plane waits within a burst; `burst` is told when one begins."""

    def __init__(self, clock: Callable[[], float] = monotonic, switches: Callable[[], int] = involuntary_switches) -> None:
        self._clock = clock
        self._switches = switches
        self._switched = switches()
        self._rest = 0
        self._penalty = 0
        self._asleep = 0

    def burst(self) -> None:
        """A burst begins: what the last one met tells whether others need the processor."""
        switched = self._switches()
        if switched - self._switched > CROWD:
            self._rest = REST
        elif self._rest:
            self._rest -= 1
        self._switched = switched

    def wait(self, poll: Poll, seconds: float) -> Events:
        """Hot. The next events; none when nothing has come for so long."""
        if self._asleep:
            self._asleep -= 1
        elif not self._rest and seconds > SPIN_SECONDS:
            events = self._look(poll)
            if events:
                return events
        return poll(seconds)

    def _look(self, poll: Poll) -> Events:
        """Events within SPIN_SECONDS, or none, and what follows from either for the waits to come."""
        clock = self._clock
        end = clock() + SPIN_SECONDS
        while True:
            events = poll(0)
            if events:
                self._penalty >>= 1
                return events
            if clock() >= end:
                break
        self._penalty = self._asleep = min(2 * self._penalty + 1, PENALTY)
        return events
