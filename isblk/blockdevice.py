"""One disk as a block device of the kernel, from login to logout: what `isblk attach` runs, in the foreground or detached.

Theory of operation: each connection is a socketpair. One end is the kernel's NBD client's, given over netlink; the other is a client of
an NbdServer in this process, which needs no handshake. The kernel sends DISC on every connection when the device is disconnected, whoever
asked for it, so a connection that ends with DISC is the end, and one that ends without (a request took longer than the kernel's timeout,
or a bug here) is replaced by a new one.

The order of the end: the page cache is written back, while the server still serves; the kernel disconnects; requests in flight finish;
SYNCHRONIZE CACHE, Logout. It holds for `isblk detach`, SIGTERM and Ctrl-C, and, but for the page cache, which nobody asked for then, for
`nbd-client -d`. Whether somebody uses the device is asked before the end is asked for (cli/detach.py): a daemon that is told to end does.

Calls that may wait for requests which this process serves run in a thread. CONNECT does not, and is made on the main thread, for the
process that makes it is the one that sysfs names.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from isblk.block.attach import Attached, Where, attached
from isblk.block.choose import NoPathRetry
from isblk.block.policies import Policies
from isblk.block.request import Geometry
from isblk.block.stack import Disk
from isblk.changing import changes
from isblk.config import Target
from isblk.ending import controlled, written_back
from isblk.errors import IsblkError, RequestFailed
from isblk.export import nbddevice
from isblk.export.nbd import Export, NbdServer, transmission_flags
from isblk.export.nbdclient import Client
from isblk.export.nbdwire import TransmissionFlag
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.nbdserver import buffers_status, client_status, export_of, export_status, until_any
from isblk.scsi.lun_number import lun_text
from isblk.status import device_status, session_status

LONGEST_TIMEOUT = 2_000_000
"""Seconds: some 23 days. The kernel counts in 32 bits of jiffies, and has no "never" where there are several connections."""
NO_TIMEOUT = 0
"""With one connection the kernel then never gives it up, and repeats what was on its way only where the connection is another's by now; it
looks every 30 s (queue/io_timeout)."""
NO_TIMEOUT_SINCE = (5, 10)
"""Linux that surely does so; before 5.7 such a request failed."""
MARGIN = 300
"""Seconds that the kernel's patience is longer than isblk's own wait for a path, where it has to end: a command that a path never answers
(60 s, 15 for an abort, 30 for a reset), a fence (45 s), a login (15 s), and the same command over another path."""
DEAD_CONNECTION_TIMEOUT = 30
"""Seconds: what a service manager needs to start a daemon that died, and it to log in."""
WRITE_BACK_SECONDS = 45.0
"""How long writing back the page cache may take at the end; a path that does not come back ends it within seconds."""
DISCONNECT_SECONDS = 10.0
"""How long the kernel may take to disconnect."""
DRAIN_SECONDS = 6.0
"""How long, after that, requests that the kernel waits for no more may take."""
TICK_SECONDS = 1.0
"""How often the size is looked at, and how soon a connection is replaced."""
_KERNEL_FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.READ_ONLY
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.ROTATIONAL
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.CAN_MULTI_CONN
)
"""What the kernel's client knows, ROTATIONAL and WRITE_ZEROES since Linux 6.12; an older one ignores them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceSpec:
    """What to attach where: `index` of /dev/nbdN, None for a free one; times in seconds, as netlink's Device has them."""

    target: Target
    lun: int | None
    index: int | None
    run_directory: Path
    connections: int
    timeout: int
    dead_connection_timeout: int = DEAD_CONNECTION_TIMEOUT
    read_only: bool = False
    policies: Policies = field(default_factory=Policies)
    isids: tuple[Isid, ...] = ()


class Kernel(Protocol):
    """The kernel's NBD client: the module export/nbdnetlink.py, which raises UsageError and RequestFailed."""

    def connect(
        self,
        index: int | None,
        descriptors: Sequence[int],
        size: int,
        block_size: int,
        flags: int,
        *,
        timeout: int,
        dead_connection_timeout: int,
        backend: str,
    ) -> int:
        """Make a device; its index."""

    def reconnect(self, index: int, descriptors: Sequence[int], backend: str) -> None:
        """Replace dead connections."""

    def resize(self, index: int, size: int, backend: str) -> None:
        """Change the size in bytes."""

    def disconnect(self, index: int) -> None:
        """End it."""


def default_timeout(no_path: NoPathRetry, connections: int, kernel: str | None = None) -> int:
    """Seconds that the kernel should wait for an answer: for ever (NO_TIMEOUT) where it can, else longer than isblk waits for a path.

    A connection given up has its requests repeated on another while the first may still be on their way: the answer must come before.
    With several connections the kernel knows no "for ever". `kernel` is its release, such as 6.1.0-18-amd64; None for this one's.
    """
    if connections == 1 and release(kernel or os.uname().release) >= NO_TIMEOUT_SINCE:
        return NO_TIMEOUT
    return LONGEST_TIMEOUT if math.isinf(no_path.seconds) else min(math.ceil(no_path.seconds) + MARGIN, LONGEST_TIMEOUT)


def release(text: str) -> tuple[int, ...]:
    """A kernel's release as numbers: (6, 1) of 6.1.0-18-amd64; () of what has none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return () if found is None else (int(found[1]), int(found[2]))


def logical_block(unit: Geometry) -> int:
    """Bytes of the device's block: the LUN's, which partition tables count in, within what the kernel can (512 to a page)."""
    return min(max(unit.block_size, 512), mmap.PAGESIZE)


class BlockDevice:
    """/dev/nbdN while it is attached. `over` is set when the kernel has let go of it."""

    def __init__(self, kernel: Kernel, server: NbdServer, disk: Disk, spec: DeviceSpec) -> None:
        self.index = -1
        self.over = trio.Event()
        self.since = time.time()
        self.backend = f"isblk {spec.target.name} {disk.description.wwid or f'LUN {lun_text(disk.description.lun)}'}"
        self.block_size = logical_block(disk.device.geometry)
        self.size = self._size_of(disk)
        self._kernel = kernel
        self._server = server
        self._disk = disk
        self._spec = spec
        self._goodbye = False
        self._lost = 0
        self._made = 0
        server.on_gone = self._gone

    async def attach(self) -> None:
        """Make the device, or take over one that a daemon which died has left behind. Raises UsageError, RequestFailed."""
        index, spec = self._spec.index, self._spec
        theirs = self._sockets(spec.connections)
        try:
            descriptors = [sock.fileno() for sock in theirs]
            if index is not None and is_orphan(index, self.backend):
                self._kernel.reconnect(index, descriptors, self.backend)
                _log.warning("%s was left behind by a daemon that died: it is served again", nbddevice.path(index))
                self.index = index
                await _in_thread(self._kernel.resize, index, self.size, self.backend)
            else:
                geometry = self._disk.gate.geometry
                read_only = spec.read_only or geometry.read_only
                flags = transmission_flags(geometry, read_only=read_only, rotational=geometry.rotational)
                self.index = self._kernel.connect(
                    index,
                    descriptors,
                    self.size,
                    self.block_size,
                    int(flags & _KERNEL_FLAGS),
                    timeout=spec.timeout,
                    dead_connection_timeout=spec.dead_connection_timeout,
                    backend=self.backend,
                )
        finally:
            for sock in theirs:
                sock.close()

    async def keep(self) -> None:
        """Replace connections that were lost, and let the device have the disk's size, until cancelled."""
        while True:
            await trio.sleep(TICK_SECONDS)
            try:
                if self._lost:
                    await self._replace()
                if self._size_of(self._disk) != self.size:
                    await self._resize()
            except IsblkError as error:
                _log.error("%s: %s", nbddevice.path(self.index), error)

    async def end(self) -> None:
        """Write back the page cache, disconnect, and let what is in flight finish. Raises RequestFailed when that could not be."""
        failure: RequestFailed | None = None
        if not self.over.is_set():
            failure = await self._write_back()
            with trio.move_on_after(DISCONNECT_SECONDS):
                try:
                    await _in_thread(self._kernel.disconnect, self.index)
                except IsblkError as error:
                    _log.warning("%s could not be disconnected: %s", nbddevice.path(self.index), error)
        self._goodbye = True
        self._server.close()
        with trio.move_on_after(DRAIN_SECONDS):
            await self._server.drained()
        self._server.abort()
        if failure is not None:
            raise failure

    def status(self) -> dict[str, Any]:
        """For the control socket."""
        return {
            "path": nbddevice.path(self.index),
            "size": self.size,
            "block_size": self.block_size,
            "connections": len(self._server.clients),
            "timeout": self._spec.timeout,
            "dead_connection_timeout": self._spec.dead_connection_timeout,
            "replaced_connections": self._made - self._spec.connections,
        }

    # ------------------------------------------------------------------ within

    def _size_of(self, disk: Disk) -> int:
        """Whole blocks: the kernel's devices have no others."""
        return disk.gate.geometry.size // self.block_size * self.block_size

    def _sockets(self, count: int) -> list[socket.socket]:
        """The kernel's ends of new connections; the server has ours."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]
        for ours, _ in pairs:
            self._made += 1
            self._server.adopt(ours, f"kernel, connection {self._made}")
        return [theirs for _, theirs in pairs]

    def _gone(self, client: Client) -> None:
        """A connection has ended. One that never carried anything is not replaced: the kernel had no use for it."""
        self._goodbye |= client.said_goodbye
        if not self._goodbye and client.bytes_received:
            self._lost += 1
        elif not self._server.clients:
            self.over.set()

    async def _replace(self) -> None:
        lost, self._lost = self._lost, 0
        if self._goodbye:
            return
        _log.warning("%s lost %d of its connections: the kernel gets new ones", nbddevice.path(self.index), lost)
        theirs = self._sockets(lost)
        try:
            await _in_thread(self._kernel.reconnect, self.index, [sock.fileno() for sock in theirs], self.backend)
        finally:
            for sock in theirs:
                sock.close()

    async def _resize(self) -> None:
        before, self.size = self.size, self._size_of(self._disk)
        await _in_thread(self._kernel.resize, self.index, self.size, self.backend)
        _log.info("%s had %d bytes and has %d now", nbddevice.path(self.index), before, self.size)

    async def _write_back(self) -> RequestFailed | None:
        with trio.move_on_after(WRITE_BACK_SECONDS):
            try:
                await _in_thread(nbddevice.write_back, self.index)
            except RequestFailed as error:
                return error
            return None
        open_requests = [client.counters.get("open", 0) for client in self._server.clients]
        _log.warning(
            "%s: writing back takes too long; requests of the kernel that are open: %s, in flight at the target: %d",
            nbddevice.path(self.index),
            open_requests,
            self._disk.gate.in_flight,
        )
        return RequestFailed(f"what was written to {nbddevice.path(self.index)} was not written back within {WRITE_BACK_SECONDS:.0f} s")


def is_orphan(index: int, backend: str) -> bool:
    """Whether the device shows this very disk, and the process that connected it has ended."""
    owner = nbddevice.owner(index)
    if owner is None or nbddevice.backend(index) != backend:
        return False
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


async def serve(spec: DeviceSpec, kernel: Kernel, access: Access, stop: trio.Event, started: Callable[[str], None]) -> None:
    """Log in, attach the disk, serve until `stop` or until somebody else disconnects it, write back, log out.

    `started` is called with the device's path when it is there. Raises IsblkError: before `started` no session is left; after it, data
    could not be written back.
    """
    number = spec.lun if spec.lun is not None else spec.target.lun
    where = Where(spec.target.name, spec.target.portals, spec.isids, number)
    async with (
        running_plane() as plane,
        attached(plane, where, access, spec.policies) as attachment,
        written_back(plane, attachment, stop),
    ):
        disk = attachment.disks[0]
        export = export_of(disk)
        server = NbdServer(plane, [export], None, spec.read_only)
        device = BlockDevice(kernel, server, disk, spec)

        def status() -> dict[str, Any]:
            return _status(spec, access, attachment, server, export, device)

        try:
            await device.attach()
            more = changes(attachment.paths, spec.timeout or None)
            async with controlled(spec.run_directory, status, stop, more, attachment.paths.events):
                started(nbddevice.path(device.index))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(device.keep)
                    await until_any(stop, device.over)
                    nursery.cancel_scope.cancel()
        finally:
            stop.set()
            with trio.CancelScope(shield=True):
                await (device.end() if device.index >= 0 else _abandon(server))


async def _abandon(server: NbdServer) -> None:
    server.abort()


async def _in_thread(function: Callable[..., None], *arguments: object) -> None:
    """A call that may wait for what this process serves; one that is not waited for any more is left to itself."""
    await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)


def _status(
    spec: DeviceSpec, access: Access, attachment: Attached, server: NbdServer, export: Export, device: BlockDevice
) -> dict[str, Any]:
    """The answer of the control socket."""
    return {
        "pid": os.getpid(),
        "kind": "attach",
        "where": nbddevice.path(device.index),
        "target": spec.target.name,
        "read_only": spec.read_only or export.gate.geometry.read_only,
        "since": device.since,
        "initiator_name": access.initiator_name,
        "sessions": [session_status(keeper) for keeper in attachment.paths.keepers],
        "devices": [device_status(disk) for disk in attachment.disks],
        "exports": [export_status(export, spec.read_only)],
        "clients": [client_status(client) for client in server.clients],
        "block_device": device.status(),
        "buffers": buffers_status(server),
    }
