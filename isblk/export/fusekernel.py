"""The FUSE engine that reads /dev/fuse itself, on the plane: draining it, replies, backing off, and each way a mount may end.

Theory of operation. /dev/fuse gives one request for each readv(2) and takes one reply for each write(2). Its handler reads until it would
block, bounded by TURN, and then the devices are kicked once: one send to the target for everything that was read. While the session is
blocked (fusesession.py) the descriptor is not watched.

Draining costs a last readv that finds nothing, which would be spent before the target hears of the request. So a request that is alone,
with no other open, ends the turn: at depth 1 that is one system call in eight less. If there are more, the next poll tells.

Replies are written together at the end of a batch: an asker that is woken for the first finds the others there when it looks. Written one
by one as they came, each was a wake-up of its own (measured on a null LUN at depth 32: reads 5 % slower, writes 12 %, with 23 us of CPU
each instead of 18).

Notices to the kernel (a resized disk) are written outside of request handling, and only such as cannot wait: NOTIFY_INVAL_INODE with an
offset below 0 marks the attributes as old and touches no page, while dropping pages waits for those that are being read or written, which
is for us. Where pages have to be dropped (`forget_pages`), a thread does it, and requests are served until it has: a mount that ended under
it would leave it waiting in the kernel, where no signal reaches it.

The end. When everybody has let go, the kernel says ENODEV. `stop` takes the mount out of sight, and after a grace ends it for those who
still have it open: nothing is read any more, what was read is answered, the descriptor is closed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from isblk.errors import UsageError
from isblk.export import fusewire as wire
from isblk.export.buffers import keep_memory
from isblk.export.files import Volume
from isblk.export.fusemount import Mounted, mount
from isblk.export.fuseoptions import Caching, Counters, MountOptions
from isblk.export.fusesession import Session
from isblk.export.mountpoint import Mountpoint, device_number, unmount
from isblk.link.plane import Plane

log: Final = logging.getLogger(__name__)

TURN: Final = 64
"""Requests read in one turn, so that the plane's other descriptors have theirs."""
TURN_BYTES: Final = 1 << 20
"""Payload of one turn: it goes out while it is in the processor's cache, and the target has work while the next is read. (1 MiB writes at
depth 8 over TCP, all eight read before the first was sent: 5 to 10 % more CPU.)"""
STOP_GRACE: Final = 2.0
"""Seconds between taking the mount out of sight and ending it under those who still have it open."""
SYNC_GRACE: Final = 4.0
"""Seconds for the kernel to write back what it holds, with -o writeback, before the mount is taken out of sight."""
RESIZE_SECONDS: Final = 0.25
"""How often it is looked whether a disk has another size, or more or less of it is allocated."""
TRIM_SECONDS: Final = 5.0
"""How often memory that was not needed since is let go."""
READ_AHEAD_KIB: Final = 4096
"""How far the kernel reads ahead in a file that is read in order, where this process may say so (root): several requests of 1 MiB."""
_NOBODY_WAITS: Final = (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED)
"""Of a reply: the asker was killed, or the mount has ended."""
_BDI: Final = Path("/sys/class/bdi")


class Channel:
    """An open /dev/fuse on the plane. `ended` is set when the kernel will send nothing more, `idle` tells that nothing is open."""

    def __init__(self, plane: Plane, mounted: Mounted, volume: Volume, caching: Caching, counters: Counters) -> None:
        self.session = Session(volume, self, caching, counters)
        self.ended = trio.Event()
        self.agreed = trio.Event()
        self.drained = trio.Event()
        self.reads = 0
        self._plane = plane
        self._mounted = mounted
        self._fileno = mounted.descriptor
        self._watched = True
        self._leaving = False
        self._waking = False
        self._replies: list[bytes | memoryview] = []
        self._inodes = list(volume.devices)
        self._forgetting = trio.Lock()
        self.settle: Callable[[], Awaitable[None]] | None = None
        plane.register(self._fileno, self)

    # ------------------------------------------------------------------ the plane's calls

    def ready(self, events: int) -> None:
        """Hot. Read requests until there are no more, none may be taken, or the turn is over; then one kick."""
        session, fileno, readv = self.session, self._fileno, os.readv
        count = landed = 0
        try:
            while count < TURN and landed < TURN_BYTES:
                landing = session.buffers()
                if landing is None:
                    self._watch(False)
                    break
                length = readv(fileno, landing)
                session.received(length)
                landed += length
                count += 1
                if session.open < 2:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._not_read(error)
        self.reads += count
        session.kick()

    def broken(self, error: Exception) -> None:
        """A bug, or a kernel that broke its protocol: the mount cannot go on."""
        log.error("serving the mount failed, so it ends: %s", error, exc_info=error)
        self.end()

    def _not_read(self, error: OSError) -> None:
        """What a readv that failed means: unmounted or aborted, or a request that was gone again."""
        if error.errno in (errno.ENODEV, errno.ECONNABORTED):
            self.end()
        elif error.errno not in (errno.ENOENT, errno.EINTR):
            raise error

    # ------------------------------------------------------------------ the session's host

    def answer(self, reply: bytes | memoryview) -> None:
        """Hot. Keep a reply for the end of the batch."""
        self._replies.append(reply)
        if len(self._replies) == 1:
            self._plane.at_batch_end(self, self._flush)

    def _flush(self) -> None:
        """Hot. One write for one reply, all of a batch at once."""
        write, fileno, replies = os.write, self._fileno, self._replies
        self._replies = []
        for reply in replies:
            try:
                write(fileno, reply)
            except OSError as error:
                if error.errno not in _NOBODY_WAITS:
                    log.error("a bug: the kernel does not take the reply %s: %s", bytes(reply[:16]).hex(), error)
        self.session.answered()

    def room(self) -> None:
        """Something was finished: what could not be read may be read now, and whoever waits for the last one may go on."""
        if self._leaving:
            self._drain()
        elif not self._watched and not self._waking:
            self._waking = True
            self._plane.at_batch_end(self, self._wake)

    def _wake(self) -> None:
        self._waking = False
        if not self._leaving and self.session.buffers() is not None:
            self._watch(True)
        self.session.kick()

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Beside the plane."""
        self._plane.start_soon(function, *arguments)

    def initialized(self) -> None:
        """INIT has been answered."""
        self.agreed.set()

    # ------------------------------------------------------------------ control

    def tell_changed(self) -> bool:
        """Let the kernel ask again for the attributes of disks that have changed; whether any has another size."""
        resized = self.session.refresh()
        for inode in {*resized, *self.session.reallocated()}:
            self.answer(wire.inval_inode(inode))
        return bool(resized)

    async def resized(self) -> None:
        """Have the kernel know sizes that have changed."""
        if self.tell_changed() and self.settle is not None:
            await self.settle()

    async def forget_pages(self) -> None:
        """Have the kernel drop every page it caches, once those that are being read or written are done."""
        async with self._forgetting:
            for inode in self._inodes:
                if not self.ended.is_set():
                    await trio.to_thread.run_sync(self._notify, wire.inval_pages(inode))

    def _notify(self, notice: bytes) -> None:
        try:
            os.write(self._fileno, notice)
        except OSError as error:
            if error.errno not in _NOBODY_WAITS:
                log.warning("the kernel does not forget cached pages: %s", error)

    async def stop_reading(self) -> None:
        """Read nothing more, once no pages are being forgotten: the kernel waits there for what we serve."""
        async with self._forgetting:
            self.end()

    async def leave(self) -> None:
        """Read nothing more, answer what was read, close. Those who still have files open get ENOTCONN from now on."""
        await self.stop_reading()
        self._leaving = True
        self._drain()
        await self.drained.wait()
        self._mounted.close()
        self._fileno = -1  # the number may be somebody else's from now on

    def _drain(self) -> None:
        """Go on with what was read and had no memory yet; note when nothing is left."""
        self.session.buffers()
        self.session.kick()
        self.session.blocked = True  # so that it tells when something else is finished
        if self.session.idle:
            self.drained.set()

    def _watch(self, reading: bool) -> None:
        if reading is not self._watched and not self.ended.is_set():
            self._watched = reading
            self._plane.watch(self._fileno, reading=reading, writing=False)

    def end(self) -> None:
        """Read nothing more."""
        if not self.ended.is_set():
            self._plane.unregister(self._fileno)
            self.ended.set()


async def serve(
    plane: Plane,
    volume: Volume,
    mountpoint: Mountpoint,
    options: MountOptions,
    counters: Counters | None = None,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount, report started once INIT has been answered, serve until unmounted; nothing is mounted on return.

    Returns after `umount`, `fusermount3 -u`, or `stop`, when every request taken from the kernel has been answered; flushing and ending the
    devices is the caller's. A cancelled serve ends as well, but not before its requests in flight have finished. Raises UsageError when the
    kernel or fusermount3 refuses the mount.
    """
    keep_memory()
    mounted = mount(mountpoint, options, volume.read_only or options.read_only)
    caching = Caching.WRITE_THROUGH if volume.read_only and options.caching is Caching.WRITEBACK else options.caching
    channel = Channel(plane, mounted, volume, caching, counters if counters is not None else Counters())
    files = _Files(volume, mountpoint, mounted, caching)
    channel.settle = files.settle
    volume.forget_pages = channel.forget_pages if caching is not Caching.NONE else None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_report, channel, files, task_status)
            nursery.start_soon(_watch_sizes, channel)
            nursery.start_soon(_trim, channel)
            if stop is not None:
                nursery.start_soon(_stop, stop, channel, files)
            await channel.ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await channel.leave()
        _unmount(mountpoint, mounted)
    if channel.session.refused is not None:
        raise UsageError(f"{mountpoint.path} cannot be mounted on: {channel.session.refused}")


def _unmount(mountpoint: Mountpoint, mounted: Mounted) -> None:
    """Unmount what is still ours, and only that: after a lazy unmount somebody else's mount may be at that path by now."""
    if mounted.number is not None and device_number(mountpoint.path) == mounted.number:
        with suppress(UsageError):
            unmount(mountpoint.path, lazy=True)
    mounted.dismiss()
    mountpoint.remove()


async def _report(channel: Channel, files: _Files, task_status: trio.TaskStatus[None]) -> None:
    await channel.agreed.wait()
    if channel.session.refused is not None:
        channel.end()
        return
    if files.mounted.number is not None:
        _read_further_ahead(files.mounted.number)
    await files.settle()
    task_status.started()


def _read_further_ahead(number: tuple[int, int]) -> None:
    """Raise the kernel's 128 KiB of read-ahead; the mount works without."""
    for name in ("{}:{}".format(*number), "{}:{}-fuse".format(*number)):
        with suppress(OSError):
            (_BDI / name / "read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")


async def _watch_sizes(channel: Channel) -> None:
    while True:
        await trio.sleep(RESIZE_SECONDS)
        await channel.resized()


async def _trim(channel: Channel) -> None:
    while True:
        await trio.sleep(TRIM_SECONDS)
        channel.session.trim()


async def _stop(stop: trio.Event, channel: Channel, files: _Files) -> None:
    """Take the mount out of sight, which ends it when nobody has it open; after a grace, end it for those who have.

    What they wrote until then is answered; what they write afterwards fails with ENOTCONN, as on a disk that was pulled out.
    """
    await stop.wait()
    with trio.move_on_after(SYNC_GRACE):
        await files.sync()
    with trio.move_on_after(STOP_GRACE):
        try:
            await trio.to_thread.run_sync(unmount, files.mountpoint.path, True, abandon_on_cancel=True)
        except UsageError as error:
            log.info("%s", error)  # unmounted meanwhile by somebody else, which is as good
        await trio.sleep_forever()
    await channel.stop_reading()


class _Files:
    """The files of a mount with a write-back cache, which the kernel thinks are its own: what has to be asked of it as any user would.

    It believes nobody about their size, but for what truncate(2) is answered: so each is truncated to the size it has, at first and after a
    resize. And what it has not written yet it writes when fsync(2) asks. Both wait for requests to be answered, so they are done in a
    thread, and in nothing but our own file system: after an unmount something else is at that path.
    """

    def __init__(self, volume: Volume, mountpoint: Mountpoint, mounted: Mounted, caching: Caching) -> None:
        self.mountpoint = mountpoint
        self.mounted = mounted
        self._volume = volume
        self._is_needed = caching is Caching.WRITEBACK and mounted.number is not None

    async def settle(self) -> None:
        """Have the kernel know the sizes."""
        if self._is_needed:
            await trio.to_thread.run_sync(self._each, self._truncate, abandon_on_cancel=True)

    async def sync(self) -> None:
        """Have it write back what it holds."""
        if self._is_needed:
            await trio.to_thread.run_sync(self._each, lambda descriptor, _size: os.fsync(descriptor), abandon_on_cancel=True)

    def _each(self, function: Callable[[int, int], None]) -> None:
        for name, inode in self._volume.files().items():
            if self._volume.is_read_only(inode) or not self._volume.size(inode):
                continue  # What has no size yet would be waited for.
            try:
                descriptor = os.open(self.mountpoint.path / os.fsdecode(name), os.O_WRONLY | os.O_CLOEXEC)
            except OSError as error:
                log.info("%s: %s", self.mountpoint.path, error)
                continue
            try:
                if os.fstat(descriptor).st_dev == os.makedev(*(self.mounted.number or (0, 0))):
                    function(descriptor, self._volume.size(inode))
            except OSError as error:
                log.warning("%s: %s", self.mountpoint.path, error.strerror)
            finally:
                with suppress(OSError):
                    os.close(descriptor)

    @staticmethod
    def _truncate(descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
