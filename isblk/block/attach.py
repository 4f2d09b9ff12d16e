"""Attaching to a target over its portals: the first session chooses the disks, every portal becomes a path, and all of it ends in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio
import trio.lowlevel

from isblk.block.align import Aligned
from isblk.block.events import Events
from isblk.block.gate import Gate
from isblk.block.pathset import PathSet
from isblk.block.policies import Policies
from isblk.block.probe import Description
from isblk.block.stack import Disk, choose_disks
from isblk.errors import IsblkError, Unreachable, UsageError
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection
from isblk.link.keeper import BackOff, Keeper
from isblk.link.opening import Access, log_in, none_reachable
from isblk.link.plane import Plane
from isblk.scsi.lun_number import lun_from_bytes

_log = logging.getLogger(__name__)

END_SECONDS = 4.0
"""How long the sessions may take to log out at the end; those that do not answer are closed."""


@dataclass(frozen=True)
class Where:
    """What to attach: the target, its portals with an ISID each, and the LUN (None: the only disk, or all with `several`)."""

    target_name: str
    portals: tuple[Portal, ...]
    isids: tuple[Isid, ...]
    lun: int | None = None
    several: bool = False

    def __post_init__(self) -> None:
        addresses = [(portal.host, portal.port) for portal in self.portals]
        if len(set(addresses)) != len(addresses):
            raise UsageError("the same portal is given twice: each -p is a path of its own, so name different ones")


class Attachment(Protocol):
    """Disks for a front end, whose sessions are there all the time (Attached) or come and go (sleeper.Sleeper)."""

    @property
    def disks(self) -> list[Disk]:
        """The disks as front ends take them."""

    @property
    def paths(self) -> PathSet:
        """The paths there are now."""

    def hasten(self, seconds: float) -> None:
        """The end is near: find out soon whether the target still answers, and wait for a login no longer than so many seconds."""


@dataclass
class Attached:
    """What is attached: the disks as front ends take them, and the paths below."""

    disks: list[Disk]
    paths: PathSet

    def hasten(self, seconds: float) -> None:
        """The end is near: find out soon whether the target still answers. Requests without a path are bounded by whoever ends them."""
        for keeper in self.paths.keepers:
            if keeper.connection is not None:
                keeper.connection.hasten()


@asynccontextmanager
async def attached(
    plane: Plane, where: Where, access: Access, policies: Policies, back_off: BackOff | None = None, events: Events | None = None
) -> AsyncIterator[Attached]:
    """Keep sessions to every portal for the length of a block. Needs one that answers at the start; the others join when they do.

    Raises Unreachable, LoginRefused, NotFound, UsageError, ProtocolError, as a single login does.
    """
    paths = PathSet(plane, policies, events)
    for portal, isid in zip(where.portals, where.isids, strict=True):
        paths.add_keeper(Keeper(plane, portal, where.target_name, access.with_isid(isid), paths, back_off))
    first, connection = await _first(plane, paths.keepers, where.target_name)
    try:
        descriptions = await _looked_at(plane, connection, where)
        disks = [_disk(paths, description) for description in descriptions]
        await paths.prepare(first, connection)
    except BaseException:
        await connection.logout()
        raise
    scope, ended = trio.CancelScope(), trio.Event()
    plane.start_soon(_keep, paths, first, connection, scope, ended)
    try:
        await _up(paths)
        yield Attached(disks, paths)
    finally:
        scope.cancel()
        with trio.move_on_after(END_SECONDS, shield=True):
            await ended.wait()


async def _first(plane: Plane, keepers: Sequence[Keeper], target_name: str) -> tuple[Keeper, Connection]:
    """The first portal that lets us in; a target that says no is believed at once."""
    unreachable: list[Unreachable] = []
    for keeper in keepers:
        try:
            return keeper, await log_in(plane, [keeper.portal], target_name, keeper.access)
        except Unreachable as error:
            _log.info("%s", error)
            unreachable.append(error)
    raise none_reachable(unreachable)


async def _looked_at(plane: Plane, connection: Connection, where: Where) -> list[Description]:
    plane.start_soon(connection.watch)
    descriptions, left_out = await choose_disks(connection, where.lun, where.several, where.target_name)
    for sentence in left_out:
        _log.warning("%s; it is left out", sentence)
    return descriptions


def _disk(paths: PathSet, description: Description) -> Disk:
    device = paths.add_device(description)
    gate = Gate(Aligned(device), lambda: device.cache_losses)
    paths.gates.append(gate)
    return Disk(lun_from_bytes(description.lun), description, device, gate)


async def _up(paths: PathSet) -> None:
    """Wait until the first path was there; it has logged in already, so that is now or never."""
    while not all(any(path.session for path in device.paths) for device in paths.devices.values()):
        await trio.lowlevel.checkpoint()


async def _keep(paths: PathSet, first: Keeper, connection: Connection, scope: trio.CancelScope, ended: trio.Event) -> None:
    try:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first.take_over, connection)
                for keeper in paths.keepers:
                    if keeper is not first:
                        nursery.start_soon(keeper.run)
                nursery.start_soon(paths.tick)
    finally:
        ended.set()


def end(attachment: Attached, error: IsblkError) -> None:
    """Fail whatever still waits for a path or a fence: the time for it is over."""
    for device in attachment.paths.devices.values():
        device.end(error)
