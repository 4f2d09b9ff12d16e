"""The FUSE engine: the kernel's requests through pyfuse3, to files.Volume what is asked of names, to Devices what is asked of data.

Theory of operation. pyfuse3 runs a pool of trio tasks; one at a time waits for /dev/fuse, takes one request and handles it to its end.
A data request becomes one block Request, and the task sleeps in `wait_task_rescheduled` until `done` reschedules it: no Event, no cancel
scope, no lock. The sleep cannot be cancelled, because the device has the buffer until the request is finished; whoever ends the devices
ends it (with PathLost), so nothing hangs.

Between two checkpoints this code is atomic: a buffer is put back into the pool before it is returned, since pyfuse3 writes it to the kernel
before any other task can run. An `await` added after `_pool.give` would break that.

Files are opened with FOPEN_DIRECT_IO: no page cache, so requests of up to 1 MiB arrive in parallel, errors reach the call that caused them,
and another initiator's writes are seen. MAP_SHARED works where the kernel allows it (6.6 and later with FUSE_DIRECT_IO_ALLOW_MMAP, which
pyfuse3 does not ask for); MAP_PRIVATE always does.

Durability: with FOPEN_DIRECT_IO the kernel sends no FSYNC behind a write through a handle opened O_SYNC or O_DSYNC (seen on Linux 6.18);
the server has to see to it, so such a handle writes with FUA. A single write with RWF_DSYNC (pwritev2) carries its wish only in the flags
of FUSE_WRITE, which pyfuse3 does not hand on: whoever uses that must fsync as well. A known limit of this engine.

Extended attributes and access(2) answer ENOSYS, and so does the flush at close(2): the kernel then stops asking. That spares a round trip
for each close and for each write (before which it looks for security.capability).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT

from isblk.block.request import Device, Op, Request
from isblk.errors import IsblkError, UsageError
from isblk.export.batch import Batch
from isblk.export.buffers import BufferPool, keep_memory
from isblk.export.files import Attributes, Volume
from isblk.export.mountpoint import FUSE_DEVICE, Mountpoint, device_number, unmount

log = logging.getLogger(__name__)

ATTRIBUTE_SECONDS = 1.0
"""How long the kernel may believe names and sizes: a resized disk shows within a second, and `stat` in a loop costs one request."""

TASKS = 64
"""Requests of one mount in flight at most: with the largest of 1 MiB each this bounds the memory (back-pressure: /dev/fuse is not read)."""

IDLE_TASKS = 8
"""Tasks kept waiting. Fewer means starting one for each request of a burst; each holds a receive buffer of up to 1 MiB."""

KERNEL_BACKGROUND = 64
"""Asynchronous requests the kernel may have outstanding; its default of 12 would hold libaio and io_uring below the iodepth asked for."""

STOP_GRACE = 2.0
"""Seconds between taking the mount out of sight and ending it under those who still have it open."""

_SYNC = os.O_SYNC | os.O_DSYNC
_FUSECTL = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True)
class MountOptions:
    """What mount(8) shows and allows: `source` is its first column (TARGET/LUN), `allow_other` lets other users in, by the files' modes."""

    source: str
    read_only: bool = False
    allow_other: bool = False

    def for_libfuse(self, read_only: bool = False) -> set[str]:
        """The set pyfuse3.init takes. Commas separate options and other bytes than ASCII are not taken, so the source shows them as '_'."""
        source = "".join(c if c.isascii() and c.isprintable() and c not in ",\\ " else "_" for c in self.source)
        options = {"default_permissions", f"fsname={source}", "subtype=isblk"}
        return options | ({"ro"} if self.read_only or read_only else set()) | ({"allow_other"} if self.allow_other else set())


@dataclass
class Counters:
    """Operations finished (failed ones too), bytes moved, errors returned, and requests in flight now; for `isblk status`."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    in_flight: int = 0


class _Waiting(Request):
    """A Request on which one trio task sleeps."""

    __slots__ = ("task",)

    def __init__(self, op: Op, offset: int = 0, length: int = 0, data: memoryview | None = None, fua: bool = False) -> None:
        super().__init__(op, offset, length, data, fua, _wake)
        self.task: trio.lowlevel.Task | None = None


def _wake(request: Request) -> None:
    assert isinstance(request, _Waiting)
    if request.task is not None:
        trio.lowlevel.reschedule(request.task)


def _keep_waiting(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class FuseExport(pyfuse3.Operations):
    """One mounted volume. Errors of files and devices leave as FUSEError with their errno."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, volume: Volume, counters: Counters | None = None, batch: Batch | None = None) -> None:
        super().__init__()
        self.counters = counters if counters is not None else Counters()
        self.answered = trio.Event()
        self.read_only = volume.read_only
        self._volume = volume
        self._pool = BufferPool()
        self._batch = batch if batch is not None else Batch()

    def init(self) -> None:
        """The kernel's first request (FUSE_INIT) is here: from now on the file is there for everybody."""
        self.answered.set()

    # Data. A file handle is the inode number shifted left by one, with bit 0 set when the file was opened O_SYNC or O_DSYNC.

    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """O_TRUNC is ignored (files.py says why); the kernel thinks the file empty until it asks for the size again, which it does."""
        try:
            self._volume.check_open(inode, flags)
        except IsblkError as error:
            self._fail(error)
        return pyfuse3.FileInfo(fh=FileHandleT(inode << 1 | bool(flags & _SYNC)), direct_io=True, keep_cache=False)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the disk."""
        inode = fh >> 1
        length = self._volume.readable(inode, off, size)
        if not length:
            return b""
        buffer = self._pool.take(length)
        view = buffer[:length]
        self.counters.reads += 1
        await self._carry_out(self._volume.devices[inode], _Waiting(Op.READ, off, length, view))
        self.counters.bytes_read += length
        self._pool.give(buffer)
        return view  # type: ignore[return-value]  # any buffer will do (handlers.pxi); bytes would be a copy

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """The bytes written: fewer than given only at the end of the disk, ENOSPC beyond it."""
        inode = fh >> 1
        try:
            length = self._volume.writable(inode, off, len(buf))
        except IsblkError as error:
            self._fail(error)
        if not length:
            return 0
        device = self._volume.devices[inode]
        through = bool(fh & 1) and device.geometry.write_cache
        fua = through and device.geometry.can_fua
        self.counters.writes += 1
        await self._carry_out(device, _Waiting(Op.WRITE, off, length, memoryview(buf)[:length], fua))
        self.counters.bytes_written += length
        if through and not fua:
            await self._flush(device)
        return length

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Every write answered before this is durable: SYNCHRONIZE CACHE by way of FLUSH."""
        await self._flush(self._volume.devices[fh >> 1])

    async def flush(self, fh: FileHandleT) -> None:
        """close(2) promises nothing about durability, and nothing is held back here; see the head of the file."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        """Handles hold nothing."""

    async def _flush(self, device: Device) -> None:
        self.counters.flushes += 1
        await self._carry_out(device, _Waiting(Op.FLUSH))

    async def _carry_out(self, device: Device, request: _Waiting) -> None:
        """Submit and sleep until `done`; the error leaves as FUSEError."""
        counters = self.counters
        counters.in_flight += 1
        device.submit(request)
        self._batch.submitted(device, last=counters.in_flight >= TASKS)
        if not request.finished:
            request.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(_keep_waiting)
        counters.in_flight -= 1
        if request.error is not None:
            self._fail(request.error)

    def _fail(self, error: Exception) -> NoReturn:
        self.counters.errors += 1
        if isinstance(error, IsblkError):
            log.debug("answered with errno %d: %s", error.errno, error)
            raise pyfuse3.FUSEError(error.errno) from None
        log.error("a bug: a request ended with an error that is none of isblk's", exc_info=error)  # answered, for it must not end the mount
        raise pyfuse3.FUSEError(errno.EIO) from None

    # Names and attributes.

    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Size, mode and owner, as files.py has them."""
        try:
            return _entry(self._volume.attributes(inode))
        except IsblkError as error:
            self._fail(error)

    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """The same size, and any times: done, without effect. Another size: EINVAL. Another mode or owner: EPERM."""
        try:
            now = self._volume.attributes(inode)
            if fields.update_size:
                self._volume.check_resize(inode, attr.st_size)
        except IsblkError as error:
            self._fail(error)
        same_mode = not fields.update_mode or attr.st_mode & 0o7777 == now.mode & 0o7777
        same_owner = not fields.update_uid or attr.st_uid == now.owner.uid
        same_group = not fields.update_gid or attr.st_gid == now.owner.gid
        if not (same_mode and same_owner and same_group):
            raise pyfuse3.FUSEError(errno.EPERM)
        return _entry(now)

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """A name in the directory; ENOENT where there is none."""
        try:
            return _entry(self._volume.lookup(parent_inode, name))
        except IsblkError as error:
            raise pyfuse3.FUSEError(error.errno) from None  # asking for a name is no failure worth counting

    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        """The handle of a directory is its inode number."""
        try:
            self._volume.check_directory(inode)
        except IsblkError as error:
            self._fail(error)
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """The entries behind `start_id`, as many as fit into the answer."""
        for name, attributes, cookie in self._volume.entries(start_id):
            if not pyfuse3.readdir_reply(token, FileNameT(name), _entry(attributes), cookie):
                return

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """The directory cannot change."""

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """What df shows: full."""
        space = self._volume.space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = space.block_size
        data.f_blocks = space.blocks
        data.f_files = space.files
        data.f_namemax = 255
        return data


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = InodeT(attributes.inode)
    entry.st_mode = ModeT(attributes.mode)
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.owner.uid
    entry.st_gid = attributes.owner.gid
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.owner.mounted_ns
    entry.entry_timeout = entry.attr_timeout = ATTRIBUTE_SECONDS
    return entry


async def serve(
    volume: Volume,
    mountpoint: Mountpoint,
    options: MountOptions,
    counters: Counters | None = None,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount, report started once the kernel has the answer to its first request, serve until unmounted; nothing is mounted on return.

    Returns after `umount`, `fusermount3 -u`, or `stop` (see `_stop`), when every request taken from the kernel has been answered; flushing
    and ending the devices is the caller's. A cancelled serve ends as well, but not before its requests in flight have finished. One mount
    per process: pyfuse3 keeps its session in globals. Raises UsageError when the kernel or fusermount3 refuses the mount.
    """
    waiting = select.poll()  # on /dev/fuse, once it is open
    batch = Batch(lambda: bool(waiting.poll(0)))
    export = FuseExport(volume, counters, batch)
    keep_memory()
    before = _fuse_descriptors()
    _mount(export, mountpoint, options)
    for descriptor in _fuse_descriptors() - before:
        waiting.register(descriptor, select.POLLIN)
    number = device_number(mountpoint.path)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch.run)
            nursery.start_soon(_report, export, number, task_status)
            if stop is not None:
                nursery.start_soon(_stop, stop, mountpoint)
            await _answer_until_unmounted()
            nursery.cancel_scope.cancel()
    finally:
        _end(mountpoint, number)


async def _answer_until_unmounted() -> None:
    """pyfuse3.main, for which an unmount in the middle of a read is an error: the kernel says ECONNABORTED then, and else ENODEV."""
    try:
        await pyfuse3.main(min_tasks=IDLE_TASKS, max_tasks=TASKS)
    except* OSError as group:
        _, others = group.split(lambda error: isinstance(error, OSError) and error.errno in (errno.ECONNABORTED, errno.ENODEV))
        if others is not None:
            raise others from None
        log.debug("unmounted in the middle of a request")


def _end(mountpoint: Mountpoint, number: tuple[int, int] | None) -> None:
    """Unmount what is still ours, and only that: after a lazy unmount somebody else's mount may be at that path by now.

    libfuse does not unmount a connection that was aborted (/sys/fs/fuse/connections), so the second look is not idle.
    """
    pyfuse3.close(unmount=number is not None and device_number(mountpoint.path) == number)
    if number is not None and device_number(mountpoint.path) == number:
        with suppress(UsageError):
            unmount(mountpoint.path, lazy=True)
    mountpoint.remove()


async def _report(export: FuseExport, number: tuple[int, int] | None, task_status: trio.TaskStatus[None]) -> None:
    await export.answered.wait()
    if number is not None:
        _raise_background(number[1])
    task_status.started()


async def _stop(stop: trio.Event, mountpoint: Mountpoint) -> None:
    """Take the mount out of sight, which ends it when nobody has it open; after a grace, end it for those who have.

    What they wrote until then is answered; what they write afterwards fails with ENOTCONN, as on a disk that was pulled out.
    """
    await stop.wait()
    try:
        await trio.to_thread.run_sync(unmount, mountpoint.path, True, abandon_on_cancel=True)
    except UsageError as error:
        log.info("%s", error)  # unmounted meanwhile by somebody else, which is as good
    await trio.sleep(STOP_GRACE)
    pyfuse3.terminate()


def _mount(export: FuseExport, mountpoint: Mountpoint, options: MountOptions) -> None:
    """Call pyfuse3.init with standard error caught: libfuse and fusermount3 write the reason of a refusal there and nowhere else."""
    with tempfile.TemporaryFile() as words:
        kept = os.dup(2)
        os.dup2(words.fileno(), 2)
        try:
            pyfuse3.init(export, os.fspath(mountpoint.path), options.for_libfuse(export.read_only))
        except RuntimeError:
            pyfuse3.close(unmount=False)
            mountpoint.remove()
            words.seek(0)
            lines = words.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in lines if line.strip()), "it gave no reason")
            raise UsageError(f"{mountpoint.path} cannot be mounted on: {reason}") from None
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _fuse_descriptors() -> set[int]:
    """Our open /dev/fuse; pyfuse3 keeps the number of its own to itself."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor that listdir itself had open
            if os.readlink(f"/proc/self/fd/{name}") == os.fspath(FUSE_DEVICE):
                found.add(int(name))
    return found


def _raise_background(connection: int) -> None:
    """Ask for more asynchronous requests, where the control file system is mounted and ours to write; the mount works without."""
    try:
        (_FUSECTL / str(connection) / "max_background").write_text(f"{KERNEL_BACKGROUND}\n")
        (_FUSECTL / str(connection) / "congestion_threshold").write_text(f"{KERNEL_BACKGROUND * 3 // 4}\n")
    except OSError as error:
        log.debug("the kernel keeps its own limit of asynchronous requests: %s", error)
