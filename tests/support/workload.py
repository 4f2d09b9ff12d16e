"""Random reads, writes, trims, zeroes and flushes on a device, each of them checked by an oracle, and how long each of them took."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from isblk.block.request import Device, Op, Request
from support.oracle import BLOCK, Oracle

MOST_BLOCKS = 16
MIX = {Op.WRITE: 60, Op.READ: 26, Op.FLUSH: 8, Op.TRIM: 3, Op.ZERO: 3}
TRIM_BLOCKS = 8  # a page, below which memory cannot be given back


class Workload:
    """`workers` that each have one request on its way, on the oracle's blocks from `base` bytes on.

    `errors` are requests that failed: what a user would have seen. `longest` is the longest wait for one of them in seconds since `forget`.
    """

    def __init__(self, device: Device, oracle: Oracle, seed: int, base: int = 0, mix: dict[Op, int] | None = None) -> None:
        self.device = device
        self.oracle = oracle
        self.errors: list[str] = []
        self.requests: Counter[Op] = Counter()
        self.longest = 0.0
        self._base = base
        self._random = random.Random(seed)
        self._mix = mix or MIX
        self._open = 0
        self._idle = trio.Event()
        self._running = trio.Event()
        self._running.set()

    async def run(self, workers: int) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            # Looked at once more behind the wait, with no checkpoint before the request is open: the pause may have come in between, and
            # `quiet` would already have found nothing on its way.
            while not self._running.is_set():
                await self._running.wait()
            await self.one()
            if self._random.random() < 0.02:
                await trio.sleep(self._random.random() * 0.02)

    async def one(self, op: Op | None = None) -> None:
        """One random request."""
        chance = self._random
        op = chance.choices(list(self._mix), list(self._mix.values()))[0] if op is None else op
        count = chance.choice((1, 2, 8, 8, 8, MOST_BLOCKS))
        first = chance.randrange(self.oracle.blocks - count + 1)
        if op is Op.TRIM:
            first, count = first - first % TRIM_BLOCKS, TRIM_BLOCKS
        await self.request(op, first, count, fua=chance.random() < 0.05)

    async def request(self, op: Op, first: int = 0, count: int = 0, fua: bool = False) -> Exception | None:
        """One request on `count` blocks, checked; its error."""
        where, length = self._base + first * BLOCK, count * BLOCK
        if op is Op.FLUSH:
            return await self._do(Request(op))
        if op is Op.READ:
            reading, buffer = self.oracle.reading(first, count), bytearray(length)
            error = await self._do(Request(op, where, length, memoryview(buffer)))
            if error is None:
                reading.check(buffer)
            return error
        change, data = self.oracle.begin(op, first, count)
        is_write = op is Op.WRITE
        fua = fua and is_write and self.device.geometry.can_fua
        error = await self._do(Request(op, where, length, memoryview(data) if is_write else None, fua))
        self.oracle.end(change, first, count, acknowledged=error is None)
        return error

    async def _do(self, request: Request) -> Exception | None:
        began, finished = trio.current_time(), trio.Event()
        self._open += 1
        request.done = lambda _: finished.set()
        self.device.submit(request)
        self.device.kick()
        try:
            await finished.wait()
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
        self.longest = max(self.longest, trio.current_time() - began)
        self.requests[request.op] += 1
        if request.error is not None:
            self.errors.append(f"{request!r}: {request.error}")
        return request.error

    def forget(self) -> None:
        """Measure waits anew from now on."""
        self.longest = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No new requests; `quiet` waits for those on their way."""
        self._running = trio.Event()
        try:
            yield
        finally:
            self._running.set()

    async def quiet(self) -> None:
        """Until nothing is on its way."""
        while self._open:
            self._idle = trio.Event()
            await self._idle.wait()

    async def verify(self) -> None:
        """Read everything and compare; nothing else should be on its way."""
        for first in range(0, self.oracle.blocks, 128):
            await self.request(Op.READ, first, min(128, self.oracle.blocks - first))
