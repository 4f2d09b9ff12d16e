"""Attaching to targets in this process: which portals become paths, what is refused at the start, and an end in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from isblk.block.attach import Attached, Where, attached, end
from isblk.block.policies import Policies
from isblk.block.request import flush, read, write
from isblk.errors import NotFound, RequestFailed, Unreachable, UsageError
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Timing
from isblk.link.keeper import BackOff, Phase
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.target.config import PortalConfig
from support.targets import RunningTarget, disk, running_target

ACCESS = Access("iqn.2026-11.test.isblk:initiator", Isid.from_random(1), timing=Timing(login_timeout=5), time2wait=0)
QUICK = BackOff(first=0.01, most=0.1, stable=0, jitter=0)
TWO = (PortalConfig(port=0), PortalConfig(port=0))
NOBODY = Portal("127.0.0.1", 1)


def where(target: RunningTarget, portals: list[str] | None = None, extra: tuple[Portal, ...] = (), **settings: Any) -> Where:
    found = (*extra, *(Portal.parse(one) for one in (portals or target.portals)))
    return Where(target.name, found, tuple(Isid.from_random(0x100 + at) for at in range(len(found))), **settings)


@asynccontextmanager
async def attachment(wanted: Where, **policies: Any) -> AsyncIterator[Attached]:
    async with running_plane() as plane, attached(plane, wanted, ACCESS, Policies(**policies), QUICK) as found:
        yield found


async def until(condition: Any) -> None:
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.sleep(0.005)


async def test_every_portal_becomes_a_path_of_one_device() -> None:
    async with running_target(portals=TWO) as target:
        async with attachment(where(target)) as found:
            (one,) = found.disks
            device = found.paths.devices[bytes(8)]
            await until(lambda: len(device.live) == 2)
            assert target.sessions == 2
            await write(one.gate, 1001, b"odd")
            await flush(one.gate)
            assert await read(one.gate, 1000, 5) == b"\0odd\0"
        assert [keeper.phase for keeper in found.paths.keepers] == [Phase.ENDED] * 2
        await until(lambda: target.sessions == 0)


async def test_a_portal_that_does_not_answer_joins_later_and_holds_up_nobody() -> None:
    async with running_target() as target, attachment(where(target, extra=(NOBODY,))) as found:
        device = found.paths.devices[bytes(8)]
        assert [path.number for path in device.live] == [1]
        await until(lambda: found.paths.keepers[0].failures > 1)
        assert "cannot be reached" in device.paths[0].status()["reason"]


async def test_no_portal_at_all() -> None:
    async with running_target() as target:
        wanted = Where(target.name, (NOBODY, Portal("127.0.0.1", 2)), (Isid.from_random(1), Isid.from_random(2)))
        with pytest.raises(Unreachable, match=r"127.0.0.1:1 .*127.0.0.1:2 "):
            async with attachment(wanted):
                pytest.fail("it must not get here")


@pytest.mark.parametrize(("lun", "kind"), [(7, NotFound), (None, UsageError)])
async def test_what_is_refused_leaves_no_session(lun: int | None, kind: type[Exception]) -> None:
    async with running_target([disk(0), disk(1)]) as target:
        with pytest.raises(kind):
            async with attachment(where(target, lun=lun)):
                pytest.fail("it must not get here")
        await until(lambda: target.sessions == 0)


async def test_a_target_that_is_not_there() -> None:
    async with running_target() as target:
        wanted = where(target)
        with pytest.raises(NotFound):
            async with attachment(Where("iqn.2026-11.test.isblk:other", wanted.portals, wanted.isids)):
                pytest.fail("it must not get here")


def test_equal_portals_are_refused() -> None:
    portal = Portal("192.0.2.1", 3260)
    with pytest.raises(UsageError, match="given twice"):
        Where("iqn.2026-11.test.isblk:t", (portal, Portal("192.0.2.1", 3260, 1)), (Isid.from_random(1), Isid.from_random(2)))


@pytest.mark.logs("path .* is (up|down)", "written again")
async def test_a_drop_in_the_middle_of_writing_is_not_noticed() -> None:
    async with running_target(portals=TWO) as target, attachment(where(target)) as found:
        gate = found.disks[0].gate
        device = found.paths.devices[bytes(8)]
        await write(gate, 1 << 20, b"not flushed")

        async def writing(worker: int) -> None:
            for turn in range(40):
                data = bytes([worker * 40 + turn + 1]) * 4096
                await write(gate, worker * 4096, data)
                assert await read(gate, worker * 4096, 4096) == data

        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(writing, worker)
            for _ in range(3):
                await trio.sleep(0.02)
                target.server.drop_all()
        await until(lambda: len(device.live) == 2 and not device.fence.active)
        assert device.waiting == 0 and target.sessions == 2


@pytest.mark.logs("path .* is (up|down)")
async def test_the_end_fails_what_waits_for_a_path() -> None:
    async with running_plane() as plane:
        async with running_target() as target:
            wanted = where(target)
            manager = attached(plane, wanted, ACCESS, Policies(), QUICK)
            found = await manager.__aenter__()
        device = found.paths.devices[bytes(8)]
        await until(lambda: not device.live)
        async with trio.open_nursery() as nursery:

            async def reading() -> None:
                with pytest.raises(RequestFailed, match="unmounted"):
                    await read(found.disks[0].gate, 0, 512)

            nursery.start_soon(reading)
            await until(lambda: device.waiting)
            end(found, RequestFailed("unmounted"))
        with trio.fail_after(10):
            await manager.__aexit__(None, None, None)


@pytest.mark.logs("29/01", "written again")
async def test_a_target_whose_sessions_outlive_a_power_failure_loses_nothing() -> None:
    async with running_target() as target, attachment(where(target)) as found:
        gate, unit = found.disks[0].gate, target.unit()
        await write(gate, 0, b"unflushed" * 100)
        unit.crash()
        assert bytes(unit.store.read(0, 9)) == bytes(9)
        await flush(gate)
        assert unit.store.durable(0, 900) == b"unflushed" * 100
        assert await read(gate, 0, 9) == b"unflushed"
        assert found.paths.devices[bytes(8)].cache_losses == 0 and target.sessions == 1
