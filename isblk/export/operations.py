"""What the kernel asks, answered through pyfuse3: files.Volume knows what is asked of names, Devices what is asked of data.

Theory of operation. pyfuse3 runs a pool of trio tasks; one at a time waits for /dev/fuse, takes one request and handles it to its end.
A data request becomes one block Request, and the task sleeps in `wait_task_rescheduled` until `done` reschedules it: no Event, no cancel
scope, no lock. The sleep cannot be cancelled, because the device has the buffer until the request is finished; whoever ends the devices
ends it (with PathLost), so nothing hangs.

Between two checkpoints this code is atomic: a buffer is put back into the pool before it is returned, since pyfuse3 writes it to the kernel
before any other task can run. An `await` added after `_pool.give` would break that.

Files are opened with FOPEN_DIRECT_IO: no page cache, so requests of up to 1 MiB arrive in parallel, errors reach the call that caused them,
and another initiator's writes are seen. The price: a MAP_SHARED mapping fails with ENODEV (MAP_PRIVATE works), and writes of several
threads that are not asynchronous run one after the other, for pyfuse3 cannot ask for FOPEN_PARALLEL_DIRECT_WRITES.

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
from typing import NoReturn

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT

from isblk.block.request import Device, Op
from isblk.errors import IsblkError, RequestFailed, RequestInvalid
from isblk.export.batch import Batch
from isblk.export.buffers import BufferPool
from isblk.export.files import Attributes, Volume
from isblk.export.fuseoptions import Counters
from isblk.export.waiting import Waiting

log = logging.getLogger(__name__)

ATTRIBUTE_SECONDS = 1.0
"""How long the kernel may believe names and sizes: a resized disk shows within a second, and `stat` in a loop costs one request."""

ALONE_SECONDS = 2.0
"""How long an open with O_TRUNC waits for the last one who has the file open."""

TASKS = 64
"""Requests of one mount in flight at most: with the largest of 1 MiB each this bounds the memory (back-pressure: /dev/fuse is not read)."""

_SYNC = os.O_SYNC | os.O_DSYNC


def _inode(fh: int) -> InodeT:
    return InodeT(fh >> 1 & 0x7FFFFFFF)


def _losses(device: Device) -> int:
    """How often the device has lost acknowledged data; a device that cannot has no such count."""
    return int(getattr(device, "losses", 0))


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
        self._handles: dict[int, int] = {}
        self._serial = 0
        self._losses_seen: dict[int, int] = {}
        self._closed = trio.Event()
        self._pool = BufferPool()
        self._held = 0
        self.counters.held = lambda: self._held
        self._batch = batch if batch is not None else Batch()

    def init(self) -> None:
        """The kernel's first request (FUSE_INIT) is here: from now on the file is there for everybody."""
        self.answered.set()

    # Data. A file handle is a serial number above bit 32, the inode number above bit 1, and bit 0 set for O_SYNC or O_DSYNC. The serial
    # tells handles apart, because a loss of acknowledged data is told once to each that was open when it happened (fsync(2), errseq).

    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """O_TRUNC is ignored (files.py says why), but only for one who is alone with the file: `_wait_until_alone`."""
        try:
            awaited = self._volume.awaited(inode)
            if awaited is not None:
                await awaited()
                pyfuse3.invalidate_inode(inode, attr_only=True)
            self._volume.check_open(inode, flags)
        except IsblkError as error:
            self._fail(error)
        if flags & os.O_TRUNC:
            await self._wait_until_alone(inode)
        self._handles[inode] = self._handles.get(inode, 0) + 1
        self._serial += 1
        fh = FileHandleT(self._serial << 32 | inode << 1 | bool(flags & _SYNC))
        self._losses_seen[fh] = _losses(self._volume.devices[inode])
        return pyfuse3.FileInfo(fh=fh, direct_io=True, keep_cache=False)

    async def _wait_until_alone(self, inode: int) -> None:
        """Return when nobody has the file open; EBUSY when somebody still has after ALONE_SECONDS.

        libfuse asks for FUSE_ATOMIC_O_TRUNC, so the kernel takes the file for empty from this open until it next asks for the size.
        Meanwhile asynchronous direct reads (libaio, io_uring) find the end of the file at once, unasked (seen on Linux 6.18); qemu would
        hand its guest zeroes. Who opens a file asks for its size first; who has it open already does not, and must not see this.
        """
        with trio.move_on_after(ALONE_SECONDS):  # a loop device lets go a moment after its umount
            while self._handles.get(inode, 0):
                await self._closed.wait()
        if self._handles.get(inode, 0):
            self._fail(RequestInvalid("opened with truncation while others have it open", errno.EBUSY))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the disk."""
        inode = _inode(fh)
        length = self._volume.readable(inode, off, size)
        if not length:
            return b""
        buffer = self._pool.take(length)
        view = buffer[:length]
        self.counters.reads += 1
        await self._carry_out(self._volume.devices[inode], Waiting(Op.READ, off, length, view))
        self.counters.bytes_read += length
        self._pool.give(buffer)
        return view  # type: ignore[return-value]  # any buffer will do (handlers.pxi); bytes would be a copy

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """The bytes written: fewer than given only at the end of the disk, ENOSPC beyond it."""
        inode = _inode(fh)
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
        await self._carry_out(device, Waiting(Op.WRITE, off, length, memoryview(buf)[:length], fua))
        self.counters.bytes_written += length
        if through and not fua:
            await self._flush(device)
        return length

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Every write answered before this is durable: SYNCHRONIZE CACHE by way of FLUSH."""
        device = self._volume.devices[_inode(fh)]
        try:
            await self._flush(device)
        finally:
            seen, self._losses_seen[fh] = self._losses_seen.get(fh, 0), _losses(device)
        if seen < _losses(device):
            self._fail(RequestFailed("acknowledged writes were lost since this file was opened"))

    async def flush(self, fh: FileHandleT) -> None:
        """close(2) promises nothing about durability, and nothing is held back here; see the head of the file."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        """The last use of a handle has ended."""
        inode = _inode(fh)
        self._losses_seen.pop(fh, None)
        self._handles[inode] -= 1
        if not self._handles[inode]:
            self._closed.set()
            self._closed = trio.Event()

    async def _flush(self, device: Device) -> None:
        self.counters.flushes += 1
        await self._carry_out(device, Waiting(Op.FLUSH))

    async def _carry_out(self, device: Device, request: Waiting) -> None:
        """Submit and sleep until `done`; the error leaves as FUSEError."""
        counters = self.counters
        counters.in_flight += 1
        held = request.length if request.data is not None else 0
        self._held += held
        device.submit(request)
        self._batch.submitted(device, last=counters.in_flight >= TASKS)
        if not request.finished:
            request.task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(_keep_waiting)
        counters.in_flight -= 1
        self._held -= held
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
