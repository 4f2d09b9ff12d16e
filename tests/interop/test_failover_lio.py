"""Failover between LIO's two portal groups: states changed in the kernel's configfs while all is written and verified."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from isblk.block.attach import Attached, Where, attached
from isblk.block.choose import NoPathRetry, Policy
from isblk.block.path import Path
from isblk.block.policies import Policies
from isblk.block.request import Op
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import BackOff
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.scsi.data import AccessState
from support.lio import Lio
from support.oracle import Oracle
from support.waiting import eventually
from support.workload import Workload

OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = 0, 1, 2, 3
BLOCKS, WORKERS = 512, 6
SOON_SECONDS = 8.0  # for a change of state to be noticed and acted on by an emulated machine
MIX = {Op.WRITE: 60, Op.READ: 30, Op.FLUSH: 10}


@pytest.fixture
def access(lio: Lio) -> Iterator[Lio]:
    """The machine, both of its groups active/optimized before and afterwards."""
    yield lio
    for group in (1, 2):
        lio.set_access(group, OPTIMIZED)


class Writing:
    """A device over both portal groups on which a workload runs."""

    def __init__(self, lio: Lio, attachment: Attached) -> None:
        self.lio = lio
        (self.disk,) = attachment.disks
        (self.device,) = attachment.paths.devices.values()
        self.oracle = Oracle(BLOCKS)
        self.work = Workload(self.disk.gate, self.oracle, seed=3, mix=MIX)

    @property
    def paths(self) -> list[Path]:
        return self.device.paths

    async def change(self, group: int, state: int) -> None:
        """Change a group's state, and wait until the path to it is known to be in that state."""
        await trio.to_thread.run_sync(self.lio.set_access, group, state)
        with trio.fail_after(SOON_SECONDS):
            await eventually(lambda: self.paths[group - 1].access is AccessState(state))

    async def goes_through(self, *groups: int) -> None:
        """See that requests end, that each of these groups carries some of them, and that no other does."""
        await trio.sleep(0.1)  # what was on its way
        before = [path.requests for path in self.paths]
        with trio.fail_after(SOON_SECONDS):
            await eventually(lambda: all(self.paths[group - 1].requests - before[group - 1] >= 20 for group in groups))
        others = [path for number, path in enumerate(self.paths, 1) if number not in groups]
        assert all(path.requests == before[path.number] for path in others), self.paths


@asynccontextmanager
async def writing(lio: Lio, **settings: Any) -> AsyncIterator[Writing]:
    """Attach and work; at the end nothing has failed, and everything reads as it was written."""
    portals = tuple(Portal.parse(portal) for portal in lio.portals)
    where = Where(lio.open, portals, (Isid.from_random(9, 1), Isid.from_random(9, 2)), 0)
    access = Access("iqn.2026-11.test.isblk:failover", where.isids[0], time2wait=0)
    policies = Policies(no_path=NoPathRetry(20), poll_interval=1, **settings)
    async with running_plane() as plane, attached(plane, where, access, policies, BackOff(0.05, 0.5, 1)) as attachment:
        here = Writing(lio, attachment)
        with trio.fail_after(SOON_SECONDS):
            await eventually(lambda: len(here.device.live) == 2)
        for first in range(0, BLOCKS, 16):
            await here.work.request(Op.WRITE, first, 16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.work.run, WORKERS)
            yield here
            with here.work.paused(), trio.fail_after(SOON_SECONDS):
                await here.work.quiet()
                await here.work.verify()
                nursery.cancel_scope.cancel()
        assert not here.work.errors
        assert not here.oracle.wrong
        assert not any(path.losses for path in here.paths), "a change of state is no loss of a path"


async def test_writing_goes_where_the_target_wants_it(access: Lio) -> None:
    async with writing(access) as here:
        await here.goes_through(1)
        await here.change(1, STANDBY)
        await here.goes_through(2)
        await here.change(1, OPTIMIZED)
        await here.change(2, UNAVAILABLE)
        await here.goes_through(1)
        await here.change(2, OPTIMIZED)
        await here.change(1, NON_OPTIMIZED)
        await here.goes_through(2)
        await here.change(2, STANDBY)
        await here.goes_through(1)


async def test_both_groups_carry_while_they_are_equal(access: Lio) -> None:
    async with writing(access, policy=Policy.ROUND_ROBIN) as here:
        await here.goes_through(1, 2)
        await here.change(2, NON_OPTIMIZED)
        await here.goes_through(1)
        await here.change(2, OPTIMIZED)
        await here.goes_through(1, 2)


async def test_requests_wait_while_no_group_carries(access: Lio) -> None:
    async with writing(access) as here:
        await here.change(2, STANDBY)
        await here.change(1, STANDBY)
        before = here.work.requests.total()
        await trio.sleep(0.5)
        assert here.work.requests.total() - before <= 2 * WORKERS
        assert here.device.waiting
        await here.change(2, OPTIMIZED)
        await here.goes_through(2)


async def test_states_change_back_and_forth_under_load(access: Lio) -> None:
    async with writing(access, policy=Policy.QUEUE_LENGTH) as here:
        for number in range(12):
            await trio.to_thread.run_sync(access.set_access, 1 + number % 2, (STANDBY, OPTIMIZED, UNAVAILABLE)[number % 3])
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(access.set_access, 1 + number % 2, OPTIMIZED)
        await here.goes_through(1, 2)
