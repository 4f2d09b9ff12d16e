"""How long the way is and how wide: pings, small reads, and large reads for some seconds. It reads, and never writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Protocol

import trio

from isblk.block.request import Device, read
from isblk.doctor.findings import Report
from isblk.errors import IsblkError

ROUNDS = 50
ROUND_SECONDS = 2.0
"""For all pings, or all small reads, of one path together, and for the first of them to be answered."""
SMALL_READ = 4096
LARGE_READ = 262144
DEPTH = 8
STALL_SECONDS = 5.0
"""Without any large read's end, while small ones are answered."""
UNEVEN = 10.0
SLOW_DISK_MS = 20.0
WORTH_TELLING_MS = 10.0
SLOWER = 0.5


@dataclass(frozen=True)
class Bounds:
    """How much the throughput probe may read of each path; no seconds: it is left out."""

    seconds: float = 3.0
    bytes: int = 256 << 20


class Pinged(Protocol):
    """A connection that can be pinged."""

    async def ping(self) -> None:
        """NOP-Out and its answer."""


async def _timed(ask: Callable[[], Awaitable[object]]) -> list[float]:
    """Milliseconds of up to ROUNDS calls within ROUND_SECONDS; empty when not even the first came back."""
    times: list[float] = []
    with trio.move_on_after(ROUND_SECONDS):
        for _ in range(ROUNDS):
            began = perf_counter()
            await ask()
            times.append((perf_counter() - began) * 1000)
    return times


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * 0.99))]


async def pings(report: Report, portal: object, connection: Pinged) -> float | None:
    """The median of a round trip, in milliseconds; None when pings are not answered."""
    try:
        times = await _timed(connection.ping)
    except IsblkError as error:
        report.say("ping-unanswered", portal=portal, reason=error)
        return None
    if not times:
        report.say("ping-unanswered", portal=portal, reason=f"none came back within {ROUND_SECONDS:g} s")
        return None
    middle, slow = median(times), _p99(times)
    data = {"portal": str(portal), "median_ms": round(middle, 3), "p99_ms": round(slow, 3), "count": len(times)}
    report.say("ping", data, portal=portal, median=f"{middle:.2f}", p99=f"{slow:.2f}")
    if slow > UNEVEN * middle and slow > WORTH_TELLING_MS:
        report.say("ping-uneven", portal=portal, median=f"{middle:.2f}", p99=f"{slow:.2f}")
    return middle


async def small_reads(report: Report, portal: object, lun: object, device: Device, ping: float | None) -> bool:
    """Whether small reads come back; says how long they take."""
    size = min(SMALL_READ, device.geometry.size)
    try:
        times = await _timed(lambda: read(device, 0, size))
    except IsblkError as error:
        report.say("read-failed", portal=portal, lun=lun, reason=error)
        return False
    if not times:
        report.say("read-failed", portal=portal, lun=lun, reason=f"no answer within {ROUND_SECONDS:g} s")
        return False
    middle, slow = median(times), _p99(times)
    data = {"portal": str(portal), "median_ms": round(middle, 3), "p99_ms": round(slow, 3), "count": len(times), "bytes": size}
    report.say("read", data, portal=portal, size=size, median=f"{middle:.2f}", p99=f"{slow:.2f}")
    if ping is not None and middle - ping > SLOW_DISK_MS:
        report.say("read-slow", portal=portal, median=f"{middle:.1f}", ping=f"{ping:.1f}")
    return True


class Probe:
    """Large reads of one device, DEPTH at a time, within bounds. `progress` is told the share done, and what to say of it."""

    def __init__(self, device: Device, bounds: Bounds, progress: Callable[[float, str], None] = lambda _done, _text: None) -> None:
        self._device = device
        self._bounds = bounds
        self._progress = progress
        self._size = min(LARGE_READ, device.geometry.size)
        self._next = 0
        self._asked = 0
        self._began = 0.0
        self._last = 0.0
        self.block = self._size
        self.bytes = 0
        self.seconds = 0.0
        self.error: IsblkError | None = None

    async def run(self) -> bool:
        """Whether any read came back. Cancelled by its own bounds, and when nothing comes back for STALL_SECONDS."""
        self._began = self._last = trio.current_time()
        with trio.move_on_after(self._bounds.seconds) as scope:
            scope.deadline = max(scope.deadline, self._began + (0.0 if self.bytes else STALL_SECONDS))
            async with trio.open_nursery() as nursery:
                for _ in range(DEPTH):
                    nursery.start_soon(self._read, scope)
        self.seconds = max(self._last - self._began, 1e-6)
        return bool(self.bytes)

    async def _read(self, scope: trio.CancelScope) -> None:
        while self._asked + self._size <= max(self._bounds.bytes, self._size) and self.error is None:
            self._asked += self._size
            try:
                await read(self._device, self._place(), self._size)
            except IsblkError as error:
                self.error = self.error or error
                return
            if not self.bytes:  # It is no stall: from here on the bound is the one asked for.
                scope.deadline = self._began + self._bounds.seconds
            self._count()

    def _place(self) -> int:
        place = self._next
        self._next = place + self._size if place + 2 * self._size <= self._device.geometry.size else 0
        return place

    def _count(self) -> None:
        self.bytes += self._size
        self._last = trio.current_time()
        seconds = self._last - self._began
        share = max(self.bytes / self._bounds.bytes, seconds / self._bounds.seconds)
        self._progress(share, f"{self.bytes / max(seconds, 1e-6) / 1e6:,.0f} MB/s")


def tell(report: Report, portal: object, lun: object, probe: Probe) -> float | None:
    """Say what a probe came to; MB/s (10**6 bytes), None when it failed."""
    if probe.error is not None:
        report.say("read-failed", portal=portal, lun=lun, reason=probe.error)
        return None
    if not probe.bytes:
        report.say("read-swallowed", portal=portal, size=probe.block, seconds=f"{STALL_SECONDS:g}")
        return None
    rate = probe.bytes / probe.seconds / 1e6
    data = {"portal": str(portal), "mb_per_s": round(rate, 2), "bytes": probe.bytes, "seconds": round(probe.seconds, 3)}
    amount = f"{probe.bytes / 1e6:,.0f} MB"
    values = {"rate": f"{rate:,.0f}", "size": amount, "seconds": f"{probe.seconds:.1f}", "block": f"{probe.block} bytes", "depth": DEPTH}
    report.say("throughput", data, portal=portal, **values)
    return rate


def compare(report: Report, rates: Sequence[tuple[object, float]]) -> None:
    """Say which portals are slower by far than the best."""
    best = max((rate for _, rate in rates), default=0.0)
    for portal, rate in rates:
        if rate < SLOWER * best:
            report.say("throughput-uneven", portal=portal, rate=f"{rate:,.0f}", best=f"{best:,.0f}")
