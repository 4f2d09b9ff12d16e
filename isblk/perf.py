"""A workload on a device and what it measured: requests and bytes per second, latency percentiles."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import random
from time import perf_counter_ns

import trio

from isblk.block.request import Device, Op, Request
from isblk.errors import UsageError

PATTERNS = ("read", "write", "randread", "randwrite", "rw", "randrw")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
TICK_SECONDS = 1.0


@dataclass(frozen=True)
class Workload:
    """What to do: pattern, `block_size` in bytes, requests in flight, `runtime` in seconds."""

    pattern: str
    block_size: int
    iodepth: int
    runtime: float

    @property
    def writes(self) -> bool:
        """Whether it destroys data."""
        return self.pattern not in ("read", "randread")


@dataclass(frozen=True)
class Sample:
    """One tick of a running workload."""

    seconds: float
    requests_per_second: float
    bytes_per_second: float
    errors: int


@dataclass(frozen=True)
class Result:
    """The whole run; latencies in microseconds."""

    requests: int
    bytes: int
    seconds: float
    errors: int
    first_error: str | None
    latency: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """For `--json`: MB are 10**6 bytes."""
        seconds = self.seconds or 1e-9
        return {
            "iops": round(self.requests / seconds, 1),
            "mb_per_s": round(self.bytes / seconds / 1e6, 2),
            "requests": self.requests,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "latency_us": {name: round(value, 1) for name, value in self.latency.items()},
            "errors": self.errors,
            "first_error": self.first_error,
        }


class _Slot(Request):
    """A request that starts again when it has finished: one object for a whole run."""

    __slots__ = ("started",)

    def __init__(self, op: Op, data: memoryview, done: Callable[[Request], None]) -> None:
        super().__init__(op, 0, len(data), data, False, done)
        self.started = 0


class Runner:
    """A workload in progress. Raises UsageError when the device cannot carry it."""

    def __init__(self, device: Device, workload: Workload) -> None:
        self._device = device
        self._workload = workload
        self._places = device.geometry.size // workload.block_size
        if not self._places:
            raise UsageError(
                f"the device has {device.geometry.size} bytes, less than one block of {workload.block_size}: use a smaller --bs"
            )
        if workload.writes and device.geometry.read_only:
            raise UsageError("the device is write-protected: choose a reading --rw")
        self._random = workload.pattern.startswith("rand")
        self._mixed = workload.pattern in ("rw", "randrw")
        self._next = 0
        self._running = True
        self._in_flight = 0
        self._starting = False
        self._idle = trio.Event()
        self._latencies: list[int] = []
        self._histogram: Counter[int] = Counter()
        self._requests = 0
        self._errors = 0
        self._first_error: str | None = None

    async def run(self, tick: Callable[[Sample], None] | None = None) -> Result:
        """Run for the workload's time and wait for what is in flight."""
        start = perf_counter_ns()
        self._soon = trio.lowlevel.current_trio_token().run_sync_soon
        for slot in self._slots():
            self._in_flight += 1
            self._start(slot)
        self._device.kick()
        with trio.move_on_after(self._workload.runtime):
            await self._ticks(tick)
        self._running = False
        seconds = (perf_counter_ns() - start) / 1e9
        requests = self._requests
        if self._in_flight:
            await self._idle.wait()
        self._gather()
        return Result(requests, requests * self._workload.block_size, seconds, self._errors, self._first_error, self._latency())

    def _slots(self) -> list[_Slot]:
        op = Op.WRITE if self._workload.writes and not self._mixed else Op.READ
        fill = os.urandom(self._workload.block_size)
        return [_Slot(op, memoryview(bytearray(fill)), self._finished) for _ in range(self._workload.iodepth)]

    async def _ticks(self, tick: Callable[[Sample], None] | None) -> None:
        before, start = 0, trio.current_time()
        last = start
        while self._in_flight:
            with trio.move_on_after(TICK_SECONDS):
                await self._idle.wait()
            now = trio.current_time()
            done, before = self._requests - before, self._requests
            if tick is not None and now > last:
                rate = done / (now - last)
                tick(Sample(now - start, rate, rate * self._workload.block_size, self._errors))
            last = now
            self._gather()

    def _start(self, slot: _Slot) -> None:
        if self._random:
            place = int(random() * self._places)
        else:
            place = self._next
            self._next = place + 1 if place + 1 < self._places else 0
        if self._mixed:
            slot.op = Op.WRITE if random() < 0.5 else Op.READ
        slot.offset = place * self._workload.block_size
        slot.renew()
        slot.started = perf_counter_ns()
        self._starting = True
        self._device.submit(slot)
        self._starting = False

    def _finished(self, request: Request) -> None:
        assert isinstance(request, _Slot)
        self._latencies.append((perf_counter_ns() - request.started) // 1000)
        if request.error is not None:
            self._failed(request.error)
        else:
            self._requests += 1
        if self._starting:
            # Finished within `submit`: starting again from here would recurse without end, and a loop would never let the clock run.
            self._soon(self._again, request)
        else:
            self._again(request)

    def _again(self, slot: _Slot) -> None:
        if self._running:
            self._start(slot)
            self._device.kick()
            return
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    def _failed(self, error: Exception) -> None:
        """A device that fails a hundred requests will fail them all: stop instead of spinning."""
        self._errors += 1
        self._first_error = self._first_error or str(error)
        if self._errors >= 100:
            self._running = False

    def _gather(self) -> None:
        """Into the histogram, once a tick: what a run keeps is bounded by the number of distinct latencies."""
        latencies, self._latencies = self._latencies, []
        self._histogram.update(latencies)

    def _latency(self) -> dict[str, float]:
        total = sum(self._histogram.values())
        if not total:
            return {}
        values = sorted(self._histogram.items())
        mean = sum(value * count for value, count in values) / total
        named = {f"p{level:g}".replace(".", "_"): _percentile(values, total, level) for level in PERCENTILES}
        return {"min": float(values[0][0]), "mean": mean, **named, "max": float(values[-1][0])}


def _percentile(values: list[tuple[int, int]], total: int, level: float) -> float:
    """The smallest latency that `level` percent of the requests did not exceed (nearest rank)."""
    rank, seen = total * level / 100, 0
    for value, count in values:
        seen += count
        if seen >= rank:
            return float(value)
    return float(values[-1][0])
