"""blockstatus.py: asked over a path that is up, and mapped where nobody can be asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from isblk.block.attach import Where, attached
from isblk.block.blockstatus import lba_status
from isblk.block.choose import PathState
from isblk.block.multipath import Multipath
from isblk.block.policies import Policies
from isblk.block.request import trim, write
from isblk.block.stack import Disk
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Timing
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.scsi.data import Provisioning
from support.targets import MIB, RunningTarget, disk, running_target

ACCESS = Access("iqn.2026-11.test.isblk:initiator", Isid.from_random(1), timing=Timing(login_timeout=5), time2wait=0)


@asynccontextmanager
async def a_disk(target: RunningTarget) -> AsyncIterator[Disk]:
    where = Where(target.name, (Portal.parse(target.portal),), (Isid.from_random(7),))
    async with running_plane() as plane, attached(plane, where, ACCESS, Policies()) as found:
        yield found.disks[0]


async def test_what_was_written_is_mapped_and_what_was_trimmed_is_not() -> None:
    async with running_target() as target, a_disk(target) as found:
        await write(found.gate, MIB, b"x" * MIB)
        await trim(found.gate, MIB + MIB // 2, MIB // 2)
        ask = lba_status(found)
        assert ask is not None
        extents = await ask(0, 4 * MIB)
        assert sum(each.length for each in extents) == 4 * MIB
        mapped = [(each.offset, each.length) for each in extents if each.provisioning is Provisioning.MAPPED]
        assert mapped == [(MIB, MIB // 2)]


async def test_a_unit_that_is_not_thin_cannot_be_asked() -> None:
    async with running_target([disk(0, thin=False)]) as target, a_disk(target) as found:
        assert lba_status(found) is None


@pytest.mark.parametrize("state", [PathState.FENCING, None])
async def test_everything_counts_as_mapped_while_no_path_can_be_asked(state: PathState | None) -> None:
    """While a path is fenced, writes that were acknowledged may be missing on the medium: what it calls a hole may be none."""
    async with running_target() as target, a_disk(target) as found:
        device, ask = found.device, lba_status(found)
        assert isinstance(device, Multipath) and ask is not None
        (path,) = device.paths
        before = (path.state, path.unit)
        path.state, path.unit = (state, path.unit) if state is not None else (path.state, None)
        (extent,) = await ask(MIB, MIB)
        path.state, path.unit = before
        assert (extent.offset, extent.length, extent.provisioning) == (MIB, MIB, Provisioning.MAPPED)
        with trio.fail_after(5):
            await write(found.gate, 0, b"still works".ljust(512))
