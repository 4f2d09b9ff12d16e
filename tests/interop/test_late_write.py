"""The late write: a target, or the network, still has an old write when it was repeated and a newer one acknowledged; it must never land.

`Node.hold` keeps a complete write in the target; the relay keeps one on the network. Each test would fail without the fence: the controls
run with policy `fast`, and there the old write does land.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from isblk.block.attach import Where, attached
from isblk.block.choose import FAIL, QUEUE, NoPathRetry
from isblk.block.multipath import Multipath
from isblk.block.policies import FencePolicy, Policies
from isblk.block.request import Device, flush, read, write
from isblk.errors import RequestFailed
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import BackOff
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.link.sweeper import Timing
from isblk.target.config import PortalConfig, Reinstatement
from support.faultline import Fault, Relay, Way
from support.targets import Offer, RunningTarget, running_target
from support.waiting import eventually

OLD, NEW = b"o" * 4096, b"n" * 4096
KINDS = (Reinstatement.WAIT, Reinstatement.AT_ONCE, Reinstatement.REFUSE)
WRITE_10 = 0x2A
STRICT, FAST = FencePolicy.STRICT, FencePolicy.FAST
TIMING = Timing(login_timeout=1, logout_timeout=1, noop_interval=1, noop_timeout=1)
FENCE_WAIT = 1.0
LONG_ENOUGH = 4.0
"""Seconds in which a write that can be repeated has been."""

pytestmark = pytest.mark.logs("path .* is (up|down)")


class Stage:
    """A target behind relays, and the device over them."""

    def __init__(self, target: RunningTarget, relays: list[Relay], device: Multipath, disk: Device) -> None:
        self.target = target
        self.relays = relays
        self.device = device
        self.disk = disk
        self.acknowledged: list[bytes] = []

    async def write(self, data: bytes, done: trio.Event) -> None:
        """Write over the same block; `done` when it is acknowledged."""
        await write(self.disk, 0, data)
        self.acknowledged.append(data)
        done.set()

    async def held(self) -> None:
        """Wait until the target keeps the write."""
        await eventually(lambda: self.target.node.held)

    def hold_next_write(self) -> None:
        """Have the target keep the next write, complete, and do it when it is released."""

        def hold(lun: bytes, cdb: bytes) -> bool:
            if cdb[0] != WRITE_10:
                return False
            self.target.node.hold = None
            return True

        self.target.node.hold = hold

    async def on_all_paths(self) -> None:
        """Wait until every path is there."""
        await eventually(lambda: len(self.device.live) == len(self.relays))

    async def stands(self) -> bytes:
        """What the block holds in the end, and the medium too."""
        await self.on_all_paths()
        found = await read(self.disk, 0, len(NEW))
        await flush(self.disk)
        assert self.target.unit().store.durable(0, len(NEW)) == found
        return found


@asynccontextmanager
async def stage(
    kind: Reinstatement, groups: tuple[int, ...], fence: FencePolicy = STRICT, no_path: NoPathRetry = QUEUE
) -> AsyncIterator[Stage]:
    """A path for each portal group tag in `groups`."""
    async with AsyncExitStack() as stack:
        portals = tuple(PortalConfig(port=0, tpgt=tag) for tag in groups)
        target = await stack.enter_async_context(running_target(portals=portals, reinstatement=kind, offer=Offer(default_time2wait=0)))
        relays = [await stack.enter_async_context(Relay(int(portal.rpartition(":")[2])).running()) for portal in target.portals]
        plane = await stack.enter_async_context(running_plane())
        places = tuple(Portal.parse(relay.portal) for relay in relays)
        isids = tuple(Isid.from_random(5, slot) for slot in range(len(relays)))
        access = Access("iqn.2026-11.test.isblk:late", isids[0], timing=TIMING, time2wait=0)
        waits = {"network_wait": FENCE_WAIT, "fence_wait": FENCE_WAIT, "settle_wait": math.inf}
        policies = Policies(fence=fence, no_path=no_path, poll_interval=0, **waits)
        where = Where(target.name, places, isids, 0)
        attachment = await stack.enter_async_context(attached(plane, where, access, policies, BackOff(0.01, 0.05, 1)))
        (device,) = attachment.paths.devices.values()
        here = Stage(target, relays, device, attachment.disks[0].gate)
        await here.on_all_paths()
        yield here


async def _old_then_new(here: Stage) -> bool:
    """Write OLD, lose its path while the target keeps it, write NEW behind it; whether both were acknowledged before the target let go."""
    here.hold_next_write()
    old, new = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.write, OLD, old)
        await here.held()
        here.relays[0].reset()
        nursery.start_soon(_after, old, here, new)
        with trio.move_on_after(LONG_ENOUGH):
            await new.wait()
        early = new.is_set()
        here.target.node.release()
    assert here.acknowledged == [OLD, NEW]
    return early


async def _after(old: trio.Event, here: Stage, new: trio.Event) -> None:
    await old.wait()
    await here.write(NEW, new)


@pytest.mark.parametrize("groups", [(1,), (1, 1), (1, 2)], ids=["one path", "one group", "two groups"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
async def test_a_write_that_the_target_keeps_never_lands_late(kind: Reinstatement, groups: tuple[int, ...]) -> None:
    async with stage(kind, groups) as here:
        early = await _old_then_new(here)
        assert await here.stands() == NEW
        # One path alone has nobody to reset the unit with while the target does not let it in: then the repetition waits for the target.
        assert early is (len(groups) > 1 or kind is Reinstatement.AT_ONCE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
async def test_without_the_fence_it_does(kind: Reinstatement) -> None:
    async with stage(kind, (1, 2), FAST) as here:
        assert await _old_then_new(here)
        assert await here.stands() == OLD, "the test cannot tell a late write"


async def _old_kept_by_the_network(here: Stage, fault: Fault) -> None:
    """Write OLD, of which the network keeps the end when it loses the path; write NEW when OLD has been repeated; then deliver it."""
    old, new = trio.Event(), trio.Event()
    network = here.relays[0]
    network.arm(Way.TO_TARGET, 100, fault)  # within the write's data
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.write, OLD, old)
        await network.fired.wait()
        nursery.start_soon(_after, old, here, new)
        await new.wait()
    network.heal()
    await trio.sleep(0.1)
    await network.accept()


@pytest.mark.parametrize("groups", [(1,), (1, 1), (1, 2)], ids=["one path", "one group", "two groups"])
async def test_bytes_that_the_network_keeps_never_land_late(groups: tuple[int, ...]) -> None:
    async with stage(Reinstatement.AT_ONCE, groups) as here:
        await _old_kept_by_the_network(here, Fault.CLIENT_RESET)
        assert await here.stands() == NEW


@pytest.mark.parametrize("fault", [Fault.CLIENT_RESET, Fault.BLACK_HOLE], ids=lambda fault: fault.value)
async def test_a_session_is_ended_through_its_sibling_where_its_own_portal_is_gone(fault: Fault) -> None:
    async with stage(Reinstatement.AT_ONCE, (1, 1)) as here:
        here.relays[0].refuse()
        await _old_kept_by_the_network(here, fault)
        assert await here.stands() == NEW


async def test_without_the_fence_they_do() -> None:
    async with stage(Reinstatement.AT_ONCE, (1, 2), FAST) as here:
        here.relays[0].refuse()
        await _old_kept_by_the_network(here, Fault.CLIENT_RESET)
        assert await here.stands() == OLD, "the test cannot tell late bytes"


@pytest.mark.parametrize("groups", [(1,), (1, 1)], ids=["one path", "one group"])
async def test_a_write_that_failed_never_lands_over_a_newer_one(groups: tuple[int, ...]) -> None:
    """Whoever asked for it was told that it failed; what may still land stays in the way of newer writes until it cannot any more."""
    async with stage(Reinstatement.AT_ONCE, groups, no_path=FAIL) as here:
        here.hold_next_write()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, here)
            await here.held()
            for relay in here.relays:
                relay.refuse()
                relay.reset()
        for relay in here.relays:
            await relay.accept()
        await here.on_all_paths()
        await here.write(NEW, trio.Event())
        assert here.target.node.release() == 1
        assert await here.stands() == NEW


async def _fails(here: Stage) -> None:
    with pytest.raises(RequestFailed, match="no path"):
        await write(here.disk, 0, OLD)
