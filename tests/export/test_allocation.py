"""allocation.py: when a disk is asked, what is remembered, and what is told while nothing is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import trio

from isblk.block.mapping import Extent
from isblk.export.allocation import FRESH_SECONDS, SHARE, Allocation
from isblk.export.files import PREFERRED_BLOCK, ROOT, Details, Owner, Volume
from isblk.scsi.data import Provisioning
from support.memorydevice import MemoryDevice

MIB = 1 << 20


class Disk:
    """A thin disk of which `mapped` bytes are allocated, and which takes `seconds` to say so."""

    def __init__(self, mapped: int = 3 * MIB, seconds: float = 0.0) -> None:
        self.device = MemoryDevice(16 * MIB)
        self.mapped = mapped
        self.seconds = seconds
        self.asked = 0
        self.spawned: list[Callable[[], Awaitable[object]]] = []
        self.allocation = Allocation(self.device, self.lba_status, self.spawned.append)
        self.volume = Volume.of_file(self.device, Owner(0, 0, 0), details=Details(lba_status=self.lba_status, usage=self.allocation))

    async def lba_status(self, offset: int, length: int) -> Sequence[Extent]:
        self.asked += 1
        await trio.sleep(self.seconds)
        assert (offset, length) == (0, self.device.geometry.size)
        rest = Extent(self.mapped, length - self.mapped, Provisioning.DEALLOCATED)
        return [Extent(0, self.mapped // 2, Provisioning.MAPPED), Extent(self.mapped // 2, self.mapped // 2, Provisioning.ANCHORED), rest]

    async def stat(self) -> int:
        """Bytes in the blocks that stat(2) shows; what that sets off is carried out before this returns."""
        shown = self.volume.attributes(ROOT).blocks * 512
        while self.spawned:
            await self.spawned.pop()()
        return shown


async def test_what_is_allocated_is_known_before_it_is_asked_for(autojump_clock: object) -> None:
    disk = Disk()
    await disk.allocation.first()
    assert disk.volume.attributes(ROOT).blocks * 512 == 3 * MIB and disk.asked == 1


async def test_it_is_asked_anew_when_somebody_wants_to_know_but_not_too_often(autojump_clock: object) -> None:
    disk = Disk()
    assert await disk.stat() == 16 * MIB, "the whole disk, while nothing is known"
    disk.mapped = 5 * MIB
    before = trio.current_time()
    assert await disk.stat() == 3 * MIB
    assert trio.current_time() - before == FRESH_SECONDS and disk.asked == 2
    assert disk.volume.blocks(ROOT) * 512 == 5 * MIB and not disk.spawned, "only stat asks"


async def test_a_disk_that_takes_long_is_asked_seldom(autojump_clock: object) -> None:
    disk = Disk(seconds=0.9)
    await disk.allocation.first()
    before = trio.current_time()
    await disk.stat()
    assert trio.current_time() - before == pytest.approx(0.9 / SHARE + 0.9)


async def test_nobody_waits_long_for_the_first_estimate_and_nobody_asks_twice_at_once(autojump_clock: object) -> None:
    disk = Disk(seconds=3600.0)
    before = trio.current_time()
    await disk.allocation.first()
    assert trio.current_time() - before == 1 and disk.volume.attributes(ROOT).blocks * 512 == 16 * MIB
    await trio.sleep(3600)
    disk.volume.attributes(ROOT)
    disk.volume.attributes(ROOT)
    assert len(disk.spawned) == 1


async def test_a_disk_never_has_no_blocks_and_never_more_than_its_size(autojump_clock: object) -> None:
    """GNU tar does not read a file of no blocks."""
    disk = Disk(mapped=0)
    await disk.allocation.first()
    assert await disk.stat() == PREFERRED_BLOCK
    disk.device.resize(512)
    assert await disk.stat() == 512


async def test_what_is_not_allocated_counts_only_where_it_reads_as_zeroes(autojump_clock: object) -> None:
    disk = Disk()
    disk.device.geometry = replace(disk.device.geometry, trim_reads_zero=False)
    await disk.allocation.first()
    assert await disk.stat() == 16 * MIB
