"""operations.py without a kernel: what becomes of requests that are cancelled, lost or answered by a bug (with one: test_fuse.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from isblk.block.request import Geometry, Op, Request
from isblk.errors import PathLost
from isblk.export.files import ROOT, Details, Owner, Volume
from isblk.export.operations import ALONE_SECONDS, FuseExport

MIB = 1 << 20


def test_the_root_has_the_protocols_inode_number() -> None:
    assert pyfuse3.ROOT_INODE == ROOT


class SlowDisk:
    """Keeps requests until told to finish them."""

    def __init__(self) -> None:
        self.geometry = Geometry(MIB, 512, 512)
        self.held: list[Request] = []
        self.kicks = 0

    def submit(self, request: Request) -> None:
        self.held.append(request)

    def kick(self) -> None:
        self.kicks += 1


async def test_a_truncating_open_waits_until_it_is_alone_and_then_gives_up(autojump_clock: trio.testing.MockClock) -> None:
    export = FuseExport(Volume.of_directory({0: SlowDisk(), 1: SlowDisk()}, Owner(0, 0, 0)))
    first, second = ROOT + 1, ROOT + 2
    handle = (await export.open(first, os.O_RDONLY, None)).fh
    await export.open(second, os.O_WRONLY | os.O_TRUNC, None)
    with pytest.raises(pyfuse3.FUSEError, check=lambda error: error.errno == errno.EBUSY):
        await export.open(first, os.O_WRONLY | os.O_TRUNC, None)
    assert trio.current_time() >= ALONE_SECONDS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.open, first, os.O_WRONLY | os.O_TRUNC, None)
        await trio.testing.wait_all_tasks_blocked()
        await export.release(handle)


async def test_a_cancelled_read_waits_for_its_buffer() -> None:
    disk = SlowDisk()
    export = FuseExport(Volume.of_file(disk, Owner(0, 0, 0)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.read, ROOT << 1, 0, 4096)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert export.counters.in_flight == 1
        disk.held[0].finish()
    assert (export.counters.in_flight, disk.kicks) == (0, 1)


@pytest.mark.logs("a bug: a request ended")
async def test_a_bug_below_fails_the_request_and_not_the_mount() -> None:
    disk = SlowDisk()
    export = FuseExport(Volume.of_file(disk, Owner(0, 0, 0)))

    async def attempt() -> None:
        with pytest.raises(pyfuse3.FUSEError, check=lambda error: error.errno == errno.EIO):
            await export.read(ROOT << 1, 0, 4096)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        await trio.testing.wait_all_tasks_blocked()
        disk.held[0].finish(KeyError("odd"))


async def test_a_lost_path_ends_every_request_with_its_errno() -> None:
    disk = SlowDisk()
    export = FuseExport(Volume.of_file(disk, Owner(0, 0, 0)))
    failed: list[int] = []

    async def attempt(work: Callable[[], Any]) -> None:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await work()
        failed.append(caught.value.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, lambda: export.read(ROOT << 1, 0, 4096))
        nursery.start_soon(attempt, lambda: export.write(ROOT << 1, 0, b"x"))
        nursery.start_soon(attempt, lambda: export.fsync(ROOT << 1, False))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(request.op for request in disk.held) == [Op.READ, Op.WRITE, Op.FLUSH]
        for request in disk.held:
            request.finish(PathLost("the connection ended"))
    assert failed == [errno.EIO] * 3
    assert export.counters.errors == 3


async def test_memory_in_use_is_that_of_reads_and_writes_on_their_way() -> None:
    disk = SlowDisk()
    export = FuseExport(Volume.of_file(disk, Owner(0, 0, 0)))
    handle = (await export.open(ROOT, os.O_RDWR, None)).fh
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.read, handle, 0, 8192)
        nursery.start_soon(export.write, handle, 0, bytes(4096))
        nursery.start_soon(export.fsync, handle, False)
        await trio.testing.wait_all_tasks_blocked()
        assert export.counters.held() == 8192 + 4096
        for request in disk.held:
            request.finish()
    assert export.counters.held() == 0


async def test_an_open_waits_for_a_disk_whose_size_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only: told.append((inode, attr_only)))
    disk, asked = SlowDisk(), trio.Event()
    disk.geometry = Geometry(0, 512, 512)

    async def ready() -> None:
        if asked.is_set():
            raise PathLost("nobody answers")
        asked.set()
        await trio.lowlevel.checkpoint()
        disk.geometry = Geometry(MIB, 512, 512, read_only=True)

    export = FuseExport(Volume.of_file(disk, Owner(0, 0, 0), details=Details(ready=ready)))
    with pytest.raises(pyfuse3.FUSEError, check=lambda error: error.errno == errno.EROFS):
        await export.open(ROOT, os.O_RDWR, None)
    assert told == [(ROOT, True)], "the kernel must not believe in the size that it was told first"
    await export.open(ROOT, os.O_RDONLY, None)
    disk.geometry = Geometry(0, 512, 512)
    with pytest.raises(pyfuse3.FUSEError, check=lambda error: error.errno == errno.EIO):
        await export.open(ROOT, os.O_RDONLY, None)
