"""How long requests take: histograms of a few timed requests, each of which stands for those that were not timed.

Theory of operation. A clock per request costs more than everything else that is counted together, so only every n-th request is timed. A
`Sampler` chooses n: one where there is little to do, more the more there is, so that there are some 250 samples a second at most. A sample
is counted as often as there were requests since the sample before (its weight), so counts and sums are estimates for all requests, whatever
n was meanwhile; where n was one all the time they are exact. n is odd and changes with the load, lest it fall into step with a queue depth.

What is timed is what the front end waits for (device) or the time from the command's submission to its end (path). A request that failed
is counted as an error, not here. There is no clock in this module.

What the hot path pays, at the gate and in multipath together, was 21 of 1150 bytecodes a read (1412 a write) when it came, and of its CPU
time less than can be told from noise: the best rounds of scripts/benchstack.py with it and without differed by -0.1 % (read) and +1.1 %
(write).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

_DIGITS = (10, 15, 20, 30, 50, 70)
BOUNDS: tuple[float, ...] = tuple(digit * 10**exponent / 1e6 for exponent in range(7) for digit in _DIGITS)
"""Upper bounds of the buckets in seconds, from 10 us to 70 s; the last bucket has none."""
SAMPLES = 64
"""Samples between two ticks beyond which fewer are taken."""
MOST = 4095
"""The largest n."""


class Sampler:
    """Which requests are timed: every `every`-th. `tick` is called a few times a second."""

    __slots__ = ("_taken", "every")

    def __init__(self) -> None:
        self.every = 1
        self._taken = 0

    def took(self) -> None:
        """A sample was taken: at once fewer of them, where it were too many."""
        self._taken += 1
        if self._taken >= SAMPLES:
            self._taken = 0
            self.every = min(self.every * 2 + 1, MOST)

    def tick(self) -> None:
        """Some time has gone by: more samples, where there were few."""
        if self._taken < SAMPLES // 2 and self.every > 1:
            self.every //= 2
        self._taken = 0


class Histogram:
    """Requests by how long they took; `counts` by bucket, `seconds` altogether, both estimates for all; `samples` were really timed."""

    __slots__ = ("counts", "samples", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.samples = 0

    def add(self, seconds: float, weight: int) -> None:
        """One sample, which stands for `weight` requests."""
        self.counts[bisect_left(BOUNDS, seconds)] += weight
        self.seconds += seconds * weight
        self.samples += 1

    def as_dict(self) -> dict[str, Any]:
        """For status: buckets by their upper bound in microseconds ("inf" the last), without those that are empty."""
        buckets = {_name(at): count for at, count in enumerate(self.counts) if count}
        return {"requests": sum(self.counts), "seconds": round(self.seconds, 6), "samples": self.samples, "buckets": buckets}


def counts_of(buckets: dict[str, int]) -> list[int]:
    """The counts by bucket of `as_dict`; a bucket that this isblk does not know is counted with the next that it knows."""
    counts = [0] * (len(BOUNDS) + 1)
    for name, count in buckets.items():
        counts[len(BOUNDS) if name == "inf" else bisect_left(BOUNDS, int(name) / 1e6)] += count
    return counts


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """The latency in seconds that so many percent of the requests did not exceed, straight within a bucket; None without requests."""
    total = sum(counts)
    if total <= 0:
        return None
    wanted, below = total * percent / 100, 0
    for at, count in enumerate(counts):
        if count and below + count >= wanted:
            low = BOUNDS[at - 1] if at else 0.0
            high = BOUNDS[at] if at < len(BOUNDS) else low
            return low + (high - low) * max(0.0, wanted - below) / count
        below += count
    return BOUNDS[-1]


def _name(at: int) -> str:
    return "inf" if at == len(BOUNDS) else str(round(BOUNDS[at] * 1e6))
