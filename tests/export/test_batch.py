"""batch.py: when a kick is held back, and that it is never forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
import trio.testing

from isblk.block.request import Geometry, Request
from isblk.export.batch import LATEST, MOST, Batch


@dataclass(eq=False)
class Disk:
    kicked: list[float] = field(default_factory=list)
    geometry: Geometry = field(default_factory=lambda: Geometry(4096, 512, 512))

    def submit(self, request: Request) -> None:
        raise AssertionError("a batch only kicks")

    def kick(self) -> None:
        self.kicked.append(trio.current_time())


class Kernel:
    """Says whether more requests wait."""

    def __init__(self, more: bool) -> None:
        self.more = more

    def __call__(self) -> bool:
        return self.more


async def test_with_nothing_more_to_read_each_request_is_kicked_at_once() -> None:
    disk, batch = Disk(), Batch(Kernel(False))
    for count in range(1, 4):
        batch.submitted(disk)
        assert len(disk.kicked) == count


async def test_without_a_kernel_to_ask_each_request_is_kicked_at_once() -> None:
    disk, batch = Disk(), Batch()
    batch.submitted(disk)
    assert len(disk.kicked) == 1


async def test_the_last_of_a_burst_kicks_for_all() -> None:
    disk, other, kernel = Disk(), Disk(), Kernel(True)
    batch = Batch(kernel)
    batch.submitted(disk)
    batch.submitted(other)
    batch.submitted(disk)
    assert (disk.kicked, other.kicked) == ([], [])
    kernel.more = False
    batch.submitted(disk)
    assert (len(disk.kicked), len(other.kicked)) == (1, 1)


async def test_a_batch_is_bounded() -> None:
    disk, batch = Disk(), Batch(Kernel(True))
    for _ in range(3 * MOST):
        batch.submitted(disk)
    assert len(disk.kicked) == 3


async def test_a_reader_that_is_the_last_one_does_not_wait_for_others() -> None:
    disk, batch = Disk(), Batch(Kernel(True))
    batch.submitted(disk, last=True)
    assert len(disk.kicked) == 1


async def test_a_kick_that_nothing_follows_is_late_by_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    disk, batch = Disk(), Batch(Kernel(True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batch.run)
        for _ in range(3):
            await trio.sleep(10)
            start = trio.current_time()
            batch.submitted(disk)
            await trio.sleep(1)
            assert disk.kicked.pop() - start <= LATEST * 1.001
            assert disk.kicked == []
        nursery.cancel_scope.cancel()


async def test_an_end_forgets_nothing_and_holds_nothing_back(autojump_clock: trio.testing.MockClock) -> None:
    disk, batch = Disk(), Batch(Kernel(True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batch.run)
        await trio.testing.wait_all_tasks_blocked()
        batch.submitted(disk)
        nursery.cancel_scope.cancel()
    assert len(disk.kicked) == 1
    batch.submitted(disk)
    assert len(disk.kicked) == 2
