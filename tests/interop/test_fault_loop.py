"""The fault loop: the same scenario on two paths again and again, with path A failing at byte n of what it sends, or of what it receives.

n grows until a run never reaches its fault. Ordinarily by strides that grow with n, so that the whole takes a minute; with
ISBLK_EVERY_BYTE=1 in the environment, every n. After each run: what was acknowledged is what is read,
over either path; what was flushed survived the target's loss of its cache; nothing hung; the target has a session for each path, and none
when all is closed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from isblk.block.attach import Where, attached
from isblk.block.choose import QUEUE, Policy
from isblk.block.multipath import Multipath
from isblk.block.policies import Policies
from isblk.block.request import Op
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import BackOff
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.link.sweeper import Timing
from isblk.target.config import PortalConfig
from support.faultline import Fault, Relay, Way
from support.oracle import BLOCK, Oracle
from support.targets import Offer, RunningTarget, disk, running_target
from support.waiting import eventually
from support.workload import Workload

BLOCKS = 256
EVERY_BYTE = bool(os.environ.get("ISBLK_EVERY_BYTE"))
RUN_SECONDS = 15.0  # within which the scenario has ended, however its path failed
UP_AND_DOWN = "path .* is (up|down)"
OFFER = Offer(default_time2wait=0, max_burst_length=4096, first_burst_length=1024, max_recv_data_segment_length=2048, window=8)
"""Immediate data, unsolicited Data-Out, and several R2Ts in one write of 8 KiB."""

pytestmark = pytest.mark.deadline(36000 if EVERY_BYTE else 90)


class Stage:
    """A target behind two relays, the device over them, and what it may hold."""

    def __init__(self, target: RunningTarget, relays: list[Relay]) -> None:
        self.target = target
        self.relays = relays
        self.oracle = Oracle(BLOCKS)
        self.device: Multipath
        self.work: Workload

    @asynccontextmanager
    async def attached(self, policy: Policy, digest: str, interval: float) -> AsyncIterator[None]:
        """A new device, over new sessions. The first login is a path's too: both relays may fail from here on."""
        portals = tuple(Portal.parse(relay.portal) for relay in self.relays)
        isids = tuple(Isid.from_random(3, slot) for slot in range(len(portals)))
        timing = Timing(login_timeout=0.5, logout_timeout=0.5, noop_interval=interval, noop_timeout=interval)
        access = Access("iqn.2026-11.test.isblk:loop", isids[0], header_digest=digest, data_digest=digest, timing=timing, time2wait=0)
        policies = Policies(policy=policy, no_path=QUEUE, fence_wait=RUN_SECONDS, poll_interval=0)
        async with running_plane() as plane:
            with plane.impatient():  # the target runs in this thread
                where = Where(self.target.name, portals, isids, 0)
                async with attached(plane, where, access, policies, BackOff(0.005, 0.02, 1)) as attachment:
                    (self.device,) = attachment.paths.devices.values()
                    self.work = Workload(attachment.disks[0].gate, self.oracle, seed=1)
                    yield

    async def scenario(self) -> None:
        """Reads, writes, flushes, trims and zeroes, some at once; overlapping what an earlier one wrote."""
        request = self.work.request
        async with trio.open_nursery() as nursery:
            for first in range(0, 64, 16):
                nursery.start_soon(request, Op.WRITE, first, 16)
        await request(Op.FLUSH)
        self.survives_a_crash(0, 64)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request, Op.WRITE, 8, 16)
            nursery.start_soon(request, Op.READ, 32, 32)
            nursery.start_soon(request, Op.TRIM, 64, 8)
            nursery.start_soon(request, Op.ZERO, 48, 8)
        await request(Op.WRITE, 8, 1, fua=True)
        self.survives_a_crash(8, 1)
        await request(Op.READ, 0, 72)
        await request(Op.FLUSH)
        self.survives_a_crash(0, BLOCKS)

    def survives_a_crash(self, first: int, count: int) -> None:
        """What the medium holds without the cache is what may be read."""
        self.oracle.check(first, self.target.unit().store.durable(first * BLOCK, count * BLOCK))

    async def all_there(self, but: Sequence[Relay] = ()) -> None:
        """Wait until both paths are there and nothing waits; not for one that has failed `but` may be on its way back."""
        while len(self.device.live) < len(self.relays) or self.device.stuck or self.device.waiting:
            if any(relay.fired.is_set() for relay in but):
                return
            await trio.sleep(0.002)

    async def all_well(self) -> None:
        """Both paths come back, everything reads as it was written, and nothing is left over."""
        await self.all_there()
        await self.work.verify()
        assert self.target.sessions == len(self.relays)
        assert not self.work.errors and not self.oracle.wrong, [*self.work.errors, *map(str, self.oracle.wrong)]
        assert not self.device.cache_losses


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Two portals of one group, each behind a relay."""
    async with AsyncExitStack() as stack:
        portals = (PortalConfig(port=0), PortalConfig(port=0))
        target = await stack.enter_async_context(running_target([disk(0, BLOCKS * BLOCK)], portals=portals, offer=OFFER))
        relays = [await stack.enter_async_context(Relay(int(portal.rpartition(":")[2])).running()) for portal in target.portals]
        yield Stage(target, relays)


@dataclass(frozen=True)
class Plan:
    """What fails: the paths of these numbers, each at the same byte of one direction; `again`: of their return after a reset."""

    fault: Fault
    way: Way
    paths: tuple[int, ...] = (0,)
    policy: Policy = Policy.FAILOVER
    again: bool = False

    @property
    def silent(self) -> bool:
        return self.fault in (Fault.BLACK_HOLE, Fault.STALL)


async def run(plan: Plan, n: int) -> bool:
    """One run; whether the fault happened at all."""
    digest = "crc32c" if plan.fault is Fault.CORRUPT else "none"
    with trio.fail_after(RUN_SECONDS):
        async with stage() as here:
            failing = [here.relays[number] for number in plan.paths]
            async with here.attached(plan.policy, digest, 1.0 if plan.silent else 5.0), trio.open_nursery() as nursery:
                await here.all_there()
                for relay in failing:
                    relay.arm(plan.way, n, plan.fault)
                    if plan.again:
                        relay.reset()
                    nursery.start_soon(_heal_later, relay, 2.6 if plan.silent else 0.1)
                await here.scenario()
                if plan.again:
                    await here.all_there(but=failing)
                fired = any(relay.fired.is_set() for relay in failing)
                for relay in failing:
                    relay.disarm()
                    relay.heal()
                await here.all_well()
                nursery.cancel_scope.cancel()
            assert here.target.sessions == 0
    return fired


async def _heal_later(relay: Relay, seconds: float) -> None:
    """What the network kept arrives when the path has been given up and its work been done over the other."""
    await relay.fired.wait()
    await trio.sleep(seconds)
    relay.heal()


def bytes_to_fail_at(least: int, share: int) -> Iterator[int]:
    """0, 1, 2, ...; unless every byte is asked for, by strides of a `share`th of n and at `least` so many."""
    n = 0
    while True:
        yield n
        n += 1 if EVERY_BYTE else max(least, n // share)


async def loop(plan: Plan, least: int = 23, share: int = 10, at_once: int = 1) -> None:
    """Runs, some at once, until one never reaches its fault."""
    runs, places, over = 0, bytes_to_fail_at(least, share), False

    async def one(n: int) -> None:
        nonlocal runs, over
        try:
            over = not await run(plan, n) or over
        except BaseException as error:
            error.add_note(f"{plan} at byte {n}")
            raise
        runs += 1

    while not over:
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(one, next(places))
    assert runs > at_once and runs > 10, "the faults never happened"


def ident(value: Fault | Way) -> str:
    return value.name.lower().replace("_", " ")


@pytest.mark.logs(UP_AND_DOWN)
@pytest.mark.parametrize("way", list(Way), ids=ident)
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.HALF_CLOSE, Fault.CORRUPT], ids=ident)
async def test_path_a_fails_at_every_byte(fault: Fault, way: Way) -> None:
    await loop(Plan(fault, way))


@pytest.mark.logs(UP_AND_DOWN)
@pytest.mark.parametrize("way", list(Way), ids=ident)
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.HALF_CLOSE], ids=ident)
async def test_path_a_fails_at_every_byte_of_its_return(fault: Fault, way: Way) -> None:
    await loop(Plan(fault, way, again=True), least=31)


@pytest.mark.logs(UP_AND_DOWN)
async def test_path_a_is_reset_and_the_rest_arrives_late() -> None:
    await loop(Plan(Fault.CLIENT_RESET, Way.TO_TARGET))


@pytest.mark.logs(UP_AND_DOWN)
@pytest.mark.parametrize("way", list(Way), ids=ident)
@pytest.mark.parametrize("fault", [Fault.BLACK_HOLE, Fault.STALL], ids=ident)
async def test_path_a_falls_silent_at_every_byte(fault: Fault, way: Way) -> None:
    await loop(Plan(fault, way), least=101, share=5, at_once=14)


@pytest.mark.logs(UP_AND_DOWN, "unflushed writes were written again")
@pytest.mark.parametrize("way", list(Way), ids=ident)
async def test_both_paths_fail_at_every_byte(way: Way) -> None:
    await loop(Plan(Fault.RESET, way, (0, 1), Policy.ROUND_ROBIN))


@pytest.mark.logs(UP_AND_DOWN, "unflushed writes were written again")
async def test_an_acknowledgement_that_arrives_after_the_crash_is_kept_all_the_same() -> None:
    """Path A still carries the answer to a write that the target has lost, and path B is back by then: that alone proves nothing."""
    async with stage() as here, here.attached(Policy.FAILOVER, "none", 5.0), trio.open_nursery() as nursery:
        await here.all_there()
        late, other = here.relays
        assert here.device.paths[0].requests == here.device.paths[1].requests == 0
        late.stall(Way.TO_INITIATOR)
        nursery.start_soon(here.work.request, Op.WRITE, 0, 2)
        await eventually(lambda: here.target.unit().store.read(0, BLOCK) != bytes(BLOCK))
        assert here.device.paths[0].in_flight == 1
        logins = here.target.node.logins
        here.target.server.crash_cache()
        await eventually(lambda: here.target.node.logins > logins)
        assert here.target.unit().store.read(0, BLOCK) == bytes(BLOCK), "the crash lost nothing"
        await trio.sleep(0.2)  # path B is looked at, and would be used
        late.heal()
        await eventually(lambda: here.device.paths[0].losses)
        await here.all_well()
        await here.work.request(Op.FLUSH)
        here.survives_a_crash(0, BLOCKS)
        assert not here.oracle.wrong
        assert other.connections == 1
