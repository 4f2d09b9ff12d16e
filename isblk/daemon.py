"""One mount from login to logout: what `isblk mount` runs, in the foreground or detached.

The order of the end is the promise: the file goes out of sight, queued writes finish, SYNCHRONIZE CACHE, Logout. It holds for `isblk
umount`, umount(8), `fusermount3 -u`, SIGTERM and Ctrl-C alike; what could not be written back is told in the log, in the exit code, and
to `isblk umount`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from isblk import controlserver
from isblk.block.attach import Attached, Where, attached
from isblk.block.policies import Policies
from isblk.block.request import flush
from isblk.block.stack import Disk
from isblk.config import Target
from isblk.errors import IsblkError, RequestFailed
from isblk.export.files import Owner, Volume
from isblk.export.fuse import Counters, MountOptions, serve
from isblk.export.mountpoint import Mountpoint, prepare
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.link.plane import Plane, running_plane
from isblk.scsi.lun_number import lun_text
from isblk.status import device_status, session_status

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 4.0
"""How long, once the end was asked for, requests wait for a path when there is none: DefaultTime2Wait (2 s, RFC 7143 13.15) and a login."""
FENCE_PATIENCE_SECONDS = 4.0
"""How long they wait for a fence then."""


@dataclass(frozen=True)
class MountSpec:
    """What to mount where. `run_directory` is where the control socket goes; `lun` None is the only disk, or all of them in a directory."""

    target: Target
    lun: int | None
    mountpoint: str
    run_directory: Path
    read_only: bool = False
    allow_other: bool = False
    policies: Policies = field(default_factory=Policies)
    isids: tuple[Isid, ...] = ()

    def names_directory(self) -> bool:
        """Whether the mountpoint is a directory, which then shows a file for each disk."""
        return os.path.isdir(self.mountpoint)


@dataclass
class Running:
    """A mount that is there, as `isblk status` shows it."""

    spec: MountSpec
    access: Access
    mountpoint: Mountpoint
    attachment: Attached
    stop: trio.Event
    counters: Counters = field(default_factory=Counters)
    since: float = field(default_factory=time.time)

    def status(self) -> dict[str, Any]:
        """The answer of the control socket."""
        keepers = self.attachment.paths.keepers
        return {
            "pid": os.getpid(),
            "kind": "mount",
            "where": str(self.mountpoint.path),
            "target": self.spec.target.name,
            "read_only": self.spec.read_only,
            "since": self.since,
            "initiator_name": self.access.initiator_name,
            "sessions": [session_status(keeper) for keeper in keepers],
            "devices": [device_status(disk) for disk in self.attachment.disks],
            "fuse": vars(self.counters),
        }


async def mount(spec: MountSpec, access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
    """Log in, show the disks, serve until unmounted or `stop`, write back, log out. `started` is called when the file is there.

    Raises IsblkError: before `started` nothing is left mounted and no session is left; after it, data could not be written back.
    """
    number = spec.lun if spec.lun is not None else spec.target.lun
    where = Where(spec.target.name, spec.target.portals, spec.isids, number, spec.names_directory())
    async with running_plane() as plane, attached(plane, where, access, spec.policies) as attachment:
        mountpoint = prepare(spec.mountpoint, directory=spec.names_directory(), allow_other=spec.allow_other)
        running = Running(spec, access, mountpoint, attachment, stop)
        plane.start_soon(_bound_the_end, attachment, stop)
        try:
            await _serve(plane, running, started)
        finally:
            stop.set()
            mountpoint.remove()
            with trio.CancelScope(shield=True):
                await _write_back(attachment.disks)


async def _bound_the_end(attachment: Attached, stop: trio.Event) -> None:
    """From `stop` on, nothing waits for a path that does not come, and a silent one is found out soon: the end comes within seconds.

    A target that answers is given the time it needs: a large write cache may take long to synchronize.
    """
    await stop.wait()
    for keeper in attachment.paths.keepers:
        if keeper.connection is not None:
            keeper.connection.hasten()
    while True:
        stuck = [device for device in attachment.paths.devices.values() if device.stuck]
        # A fence that is being put up needs a login and a reset, no more; waiting for a target to notice a loss is too long for an end.
        await trio.sleep(PATIENCE_SECONDS if any(not device.live for device in stuck) else FENCE_PATIENCE_SECONDS if stuck else 0.25)
        for device in stuck:
            if device.stuck:
                device.end(RequestFailed(f"{device.name} has no path whose writes are certain, and it is being unmounted"))


async def _serve(plane: Plane, running: Running, started: Callable[[], None]) -> None:
    spec, disks = running.spec, running.attachment.disks
    volume = _volume(running)
    source = f"{spec.target.name}/{lun_text(disks[0].description.lun)}" if not volume.is_directory else spec.target.name
    options = MountOptions(source, read_only=volume.read_only, allow_other=spec.allow_other)
    failure: IsblkError | None = None
    with plane.impatient():
        async with trio.open_nursery() as nursery:
            # An exception that crosses a nursery comes out in a group: kept until it has closed.
            try:
                await nursery.start(controlserver.serve, spec.run_directory, running.status, running.stop.set)
                async with trio.open_nursery() as serving:
                    await serving.start(serve, volume, running.mountpoint, options, running.counters, running.stop)
                    started()
            except* IsblkError as group:
                failure = next(error for error in _leaves(group) if isinstance(error, IsblkError))
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _volume(running: Running) -> Volume:
    owner = Owner(os.getuid(), os.getgid(), time.time_ns())
    disks, read_only = running.attachment.disks, running.spec.read_only
    if running.mountpoint.is_directory:
        return Volume.of_directory({disk.number: disk.gate for disk in disks}, owner, read_only)
    return Volume.of_file(disks[0].gate, owner, read_only)


async def _write_back(disks: list[Disk]) -> None:
    """Let queued requests finish, then SYNCHRONIZE CACHE. Raises RequestFailed, naming each disk whose data may be lost."""
    lost: list[str] = []
    for disk in disks:
        disk.gate.close()
        await disk.gate.drained()
        try:
            await flush(disk.device)
        except IsblkError as error:
            if not disk.gate.unflushed:
                continue  # Every write that was acknowledged had been flushed before.
            lost.append(f"LUN {lun_text(disk.description.lun)} ({error})")
    if lost:
        raise RequestFailed(f"written data may be lost: the write cache could not be synchronized on {', '.join(lost)}")
