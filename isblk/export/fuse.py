"""The FUSE engine on pyfuse3: mounting, serving until unmounted, and each way it may end. What is answered is operations.py's."""

from __future__ import annotations

import errno
import logging
import os
import select
import tempfile
from contextlib import suppress
from pathlib import Path

import pyfuse3
import trio

from isblk.errors import UsageError
from isblk.export.batch import Batch
from isblk.export.buffers import keep_memory
from isblk.export.files import Volume
from isblk.export.fuseoptions import Caching, Counters, MountOptions
from isblk.export.mountpoint import FUSE_DEVICE, Mountpoint, device_number, unmount
from isblk.export.operations import TASKS, FuseExport
from isblk.link.plane import Plane

log = logging.getLogger(__name__)

IDLE_TASKS = 8
"""Tasks kept waiting. Fewer means starting one for each request of a burst; each holds a receive buffer of up to 1 MiB."""

KERNEL_BACKGROUND = 64
"""Asynchronous requests the kernel may have outstanding; its default of 12 would hold libaio and io_uring below the iodepth asked for."""

STOP_GRACE = 2.0
"""Seconds between taking the mount out of sight and ending it under those who still have it open."""

_FUSECTL = Path("/sys/fs/fuse/connections")


async def serve(
    plane: Plane,
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
    per process: pyfuse3 keeps its session in globals. It waits in trio's own loop, so the plane must not block meanwhile. Raises UsageError
    when the kernel or fusermount3 refuses the mount, and for a write-back cache: pyfuse3 is used without the kernel's page cache.
    """
    if options.caching is Caching.WRITEBACK:
        mountpoint.remove()
        raise UsageError("the pyfuse3 engine cannot do -o writeback; leave out --fuse-engine pyfuse3")
    waiting = select.poll()  # on /dev/fuse, once it is open
    batch = Batch(lambda: bool(waiting.poll(0)))
    export = FuseExport(volume, counters, batch)
    keep_memory()
    logging.getLogger("pyfuse3").addFilter(_is_news)
    before = _fuse_descriptors()
    _mount(export, mountpoint, options)
    for descriptor in _fuse_descriptors() - before:
        waiting.register(descriptor, select.POLLIN)
    number = device_number(mountpoint.path)
    try:
        with plane.impatient():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batch.run)
                nursery.start_soon(_report, export, number, task_status)
                if stop is not None:
                    nursery.start_soon(_stop, stop, mountpoint)
                await _answer_until_unmounted()
                nursery.cancel_scope.cancel()
    finally:
        _end(mountpoint, number)


def _is_news(record: logging.LogRecord) -> bool:
    """False for pyfuse3's complaint that nobody waits for an answer any more (ENOENT): the asker was killed, or the mount has ended."""
    return not (str(record.msg).endswith("fuse_reply_* failed with %s") and record.args == (os.strerror(errno.ENOENT),))


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
