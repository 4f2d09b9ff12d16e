"""One mount from login to logout: what `isblk mount` runs, in the foreground or detached.

The order of the end is the promise: the file goes out of sight, queued writes finish, SYNCHRONIZE CACHE, Logout. It holds for `isblk
umount`, umount(8), `fusermount3 -u`, SIGTERM and Ctrl-C alike; what could not be written back is told in the log, in the exit code, and
to `isblk umount`.

With `automount` the file is there at once, as it is remembered, and the sessions come and go with its use (block/sleeper.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from isblk.block import sleeper
from isblk.block.attach import Attached, Attachment, Where, attached
from isblk.block.blockstatus import lba_status
from isblk.block.events import Events
from isblk.block.known import Known
from isblk.block.mapping import Extent
from isblk.block.multipath import Multipath
from isblk.block.ondemand import OnDemand
from isblk.block.pathset import PathSet
from isblk.block.policies import Policies
from isblk.block.sleeper import Hooks, Sleeper
from isblk.block.stack import Disk
from isblk.changing import changes
from isblk.config import Target
from isblk.controlserver import NO_MORE, Request
from isblk.ending import controlled, written_back
from isblk.errors import UsageError
from isblk.export.allocation import Allocation
from isblk.export.files import Details, Owner, Volume
from isblk.export.fuseoptions import DEFAULT_ENGINE, Caching, Counters, Engine, MountOptions
from isblk.export.mountpoint import Mountpoint, prepare
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from isblk.remembered import recall, remember
from isblk.scsi.data import Provisioning
from isblk.scsi.lun_number import lun_text
from isblk.status import device_status, session_status


@dataclass(frozen=True)
class MountSpec:
    """What to mount where. `run_directory` is where the control socket goes; `lun` None is the only disk, or all of them in a directory.

    `automount`: seconds without use after which sessions are logged out, 0 for never, None for sessions that are there all the time.
    `state_directory` is where what the disks are is remembered, None for nowhere.
    `source` is what mount(8) shows instead of TARGET/LUN, `kernel` words of fuseoptions.KERNEL_FLAGS.
    """

    target: Target
    lun: int | None
    mountpoint: str
    run_directory: Path
    read_only: bool = False
    allow_other: bool = False
    caching: Caching = Caching.WRITE_THROUGH
    engine: Engine = DEFAULT_ENGINE
    policies: Policies = field(default_factory=Policies)
    isids: tuple[Isid, ...] = ()
    automount: float | None = None
    state_directory: Path | None = None

    @property
    def number(self) -> int | None:
        """The LUN that was asked for."""
        return self.lun if self.lun is not None else self.target.lun

    @property
    def where(self) -> Where:
        """What to attach. Looks at the mountpoint, so not to be asked for once that is mounted."""
        return Where(self.target.name, self.target.portals, self.isids, self.number, self.names_directory())

    source: str | None = None
    kernel: frozenset[str] = frozenset()

    def names_directory(self) -> bool:
        """Whether the mountpoint is a directory, which then shows a file for each disk."""
        return os.path.isdir(self.mountpoint)


@dataclass
class Running:
    """A mount that is there, as `isblk status` shows it."""

    spec: MountSpec
    access: Access
    mountpoint: Mountpoint
    attachment: Attachment
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
            "engine": self.spec.engine.value,
            "caching": (Caching.NONE if self.spec.engine is Engine.PYFUSE3 else self.spec.caching).value,
            "since": self.since,
            "initiator_name": self.access.initiator_name,
            "sessions": [session_status(keeper) for keeper in keepers],
            "devices": [device_status(disk) for disk in self.attachment.disks],
            "automount": self.attachment.status() if isinstance(self.attachment, Sleeper) else None,
            "fuse": vars(self.counters),
            "buffers": {"in_use": self.counters.held()},
        }


async def mount(spec: MountSpec, access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
    """Log in, show the disks, serve until unmounted or `stop`, write back, log out. `started` is called when the file is there.

    Raises IsblkError: before `started` nothing is left mounted and no session is left; after it, data could not be written back.
    """
    async with running_plane() as plane, _attachment(plane, spec, access) as attachment:
        mountpoint = prepare(spec.mountpoint, directory=spec.names_directory(), allow_other=spec.allow_other)
        running = Running(spec, access, mountpoint, attachment, stop)
        async with written_back(plane, attachment, stop):
            try:
                await _serve(plane, running, started)
            finally:
                mountpoint.remove()


@asynccontextmanager
async def _attachment(plane: Plane, spec: MountSpec, access: Access) -> AsyncIterator[Attachment]:
    """The sessions, for the length of the block or as they are used. Raises what a login does, unless nobody has to be asked now."""
    where = spec.where  # Once: afterwards the mountpoint is our own, and who serves it must not look at it.

    events = Events()

    @asynccontextmanager
    async def attach(where: Where) -> AsyncIterator[Attached]:
        async with attached(plane, where, access, spec.policies, events=events) as found:
            found.paths.gates.extend(disk.gate for disk in asleep.disks)  # In front of its own: what is used knows no session.
            yield found

    async def note(found: Sequence[Known]) -> None:
        if spec.state_directory is not None:
            await trio.to_thread.run_sync(remember, spec.state_directory, where.target_name, found, where.lun, where.several)

    if spec.automount is None:
        async with attached(plane, where, access, spec.policies) as attachment:
            await note([Known.of(disk) for disk in attachment.disks])
            yield attachment
        return
    known = recall(spec.state_directory, where.target_name, where.lun, where.several) if spec.state_directory is not None else []
    nothing, patience = PathSet(plane, spec.policies, events), spec.policies.no_path.seconds
    asleep = Sleeper(where, attach, nothing, spec.automount, patience, known, hooks=Hooks(remember=note))
    async with sleeper.running(plane, asleep):
        yield asleep


def _requests(running: Running) -> Mapping[str, Request]:
    """Beside status and stop. An automount's paths come and go, and what is said of them would be forgotten with them."""
    return NO_MORE if isinstance(running.attachment, Sleeper) else changes(running.attachment.paths)


def _controlled(running: Running) -> AbstractAsyncContextManager[None]:
    spec, events = running.spec, running.attachment.paths.events
    return controlled(spec.run_directory, running.status, running.stop, _requests(running), events)


async def _serve(plane: Plane, running: Running, started: Callable[[], None]) -> None:
    spec, allocations = running.spec, _allocations(running.attachment.disks, plane)
    async with trio.open_nursery() as asking:
        for allocation in allocations.values():
            asking.start_soon(allocation.first)
    volume = _volume(running, allocations)
    if isinstance(running.attachment, Sleeper):
        running.attachment.hooks.forget = partial(_forget, volume)
    source = spec.source or _source(running)
    options = MountOptions(source, volume.read_only, spec.allow_other, spec.caching, spec.kernel)
    async with _controlled(running), trio.open_nursery() as serving:
        await serving.start(_engine(spec.engine), plane, volume, running.mountpoint, options, running.counters, running.stop)
        started()


async def _forget(volume: Volume) -> None:
    """Have the kernel drop the pages of the files, where the engine lets it cache any."""
    if volume.forget_pages is not None:
        await volume.forget_pages()


def _source(running: Running) -> str:
    """What mount(8) shows in its first column; no LUN where that is not known yet."""
    spec, attachment = running.spec, running.attachment
    is_open = isinstance(attachment, Sleeper) and not attachment.is_known and spec.number is None
    if running.mountpoint.is_directory or is_open:
        return spec.target.name
    return f"{spec.target.name}/{lun_text(attachment.disks[0].description.lun)}"


def _engine(engine: Engine) -> Callable[..., Awaitable[None]]:
    """The engine's `serve`. Only the one that is used is imported: pyfuse3 need not be installed. Raises UsageError where it is not."""
    if engine is Engine.DIRECT:
        from isblk.export import fusekernel

        return fusekernel.serve
    try:
        from isblk.export import fuse
    except ImportError as error:
        raise UsageError(
            f"the pyfuse3 engine cannot be used ({error}); pip install 'isblk[pyfuse3]', or leave out --fuse-engine pyfuse3"
        ) from None
    return fuse.serve


def _allocations(disks: Sequence[Disk], plane: Plane) -> dict[int, Allocation]:
    """Of those that are thin, by number."""
    asked = {disk.number: (disk.gate, lba_status(disk)) for disk in disks}
    return {number: Allocation(gate, ask, plane.start_soon) for number, (gate, ask) in asked.items() if ask is not None}


def _volume(running: Running, allocations: Mapping[int, Allocation]) -> Volume:
    owner = Owner(os.getuid(), os.getgid(), time.time_ns())
    disks, read_only = running.attachment.disks, running.spec.read_only
    details = {disk.number: _details(running.spec.target.name, disk, allocations.get(disk.number)) for disk in disks}
    if running.mountpoint.is_directory:
        return Volume.of_directory({disk.number: disk.gate for disk in disks}, owner, read_only, details)
    return Volume.of_file(disks[0].gate, owner, read_only, details[disks[0].number])


def _details(target: str, disk: Disk, allocation: Allocation | None) -> Details:
    """The labels as `isblk ls` and `isblk status` print them; of the paths those that are up, one a line."""

    device = disk.device if isinstance(disk.device, OnDemand) else None

    def labels() -> dict[str, str]:
        below = device.below if device is not None else disk.device
        paths = below.paths if isinstance(below, Multipath) else []
        found = {"target": target, "lun": lun_text(disk.description.lun), "wwid": disk.description.wwid or ""}
        found["paths"] = "\n".join(f"{path.keeper.portal} {path.state.value}" for path in paths)
        return {name: value for name, value in found.items() if value}

    if device is None:
        return Details(labels, lba_status(disk), allocation)
    return Details(labels, partial(_lba_status, device), ready=device.ready)


async def _lba_status(device: OnDemand, offset: int, length: int) -> Sequence[Extent]:
    """As `lba_status`, of a disk that is logged in to for it."""
    async with device.used() as below:
        ask = lba_status(Disk(device.disk.number, device.disk.description, below, device.disk.gate))
        return await ask(offset, length) if ask is not None else [Extent(offset, length, Provisioning.MAPPED)]
