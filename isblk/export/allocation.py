"""How much of a disk is allocated, for `st_blocks`: an estimate from GET LBA STATUS that is remembered.

`du`, `ls -s` and `stat` show it, and `cp`, `tar -S` and `rsync` look whether a file has fewer blocks than bytes before they look for holes
in it. So a thin disk tells what is behind it, and a disk of which nothing is known tells its size.

It is an estimate because asking walks over the whole disk, and stat(2) must not wait for that, least of all while no path is up. So it is
asked before the mount appears, and then beside the requests, now and then as long as somebody wants to know: what stat(2) says may lag
behind. Nobody is harmed by that, for where the holes are is asked anew each time (SEEK_HOLE); but GNU tar takes a file of no blocks
for one hole and does not read it, so a disk never has none (files.py).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import trio

from isblk.block.request import Device, Provisioned

FRESH_SECONDS = 2.0
"""How long an estimate is good enough."""
SHARE = 0.05
"""Of the time at most, asking may take: large and fragmented disks are asked less often."""
FIRST_SECONDS = 1.0
"""How long a mount may wait for the first estimate."""
_DEALLOCATED = 1


class Allocation:
    """The estimate of one disk. `lba_status(offset, length)` as files.Details has it; `spawn` runs an async function beside the plane."""

    def __init__(
        self,
        device: Device,
        lba_status: Callable[[int, int], Awaitable[Sequence[Provisioned]]],
        spawn: Callable[[Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._device = device
        self._lba_status = lba_status
        self._spawn = spawn
        self._allocated: int | None = None
        self._is_asking = False
        self._due = -math.inf

    @property
    def known(self) -> int | None:
        """Bytes that are allocated, by the latest estimate; None before the first, and where a deallocated block reads as anything."""
        return self._allocated if self._device.geometry.trim_reads_zero else None

    def ask(self) -> None:
        """Somebody wants to know: estimate anew, as soon as the latest one is old (not only if it is: the kernel may not ask again)."""
        if not self._is_asking:
            self._is_asking = True
            self._spawn(self._estimate_when_due)

    async def first(self) -> None:
        """Estimate for the first time, unless that takes long."""
        with trio.move_on_after(FIRST_SECONDS):
            await self.estimate()

    async def _estimate_when_due(self) -> None:
        await trio.sleep_until(self._due)
        await self.estimate()

    async def estimate(self) -> None:
        """Ask the disk. What it does not tell counts as allocated."""
        self._is_asking, began = True, trio.current_time()
        try:
            size = self._device.geometry.size
            extents = await self._lba_status(0, size)
            self._allocated = size - sum(extent.length for extent in extents if extent.provisioning == _DEALLOCATED)
        finally:
            self._is_asking, now = False, trio.current_time()
            self._due = now + max(FRESH_SECONDS, (now - began) / SHARE)
