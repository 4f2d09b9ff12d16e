"""A FUSE session without a kernel: requests are put where they would land, and replies are kept."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from isblk.block.request import Device
from isblk.export import fusewire as wire
from isblk.export.files import Details, Owner, Volume
from isblk.export.fusememory import Landing, Slots
from isblk.export.fuseoptions import Caching
from isblk.export.fusesession import Session
from isblk.export.fusewire import Opcode

OWNER = Owner(1000, 100, 1_700_000_000_000_000_000)


class Reply(NamedTuple):
    """A reply; `error` is an errno."""

    error: int
    unique: int
    body: bytes


class FuseHost:
    """The host of one session, and the kernel in front of it."""

    def __init__(
        self,
        device: Device | None = None,
        disks: dict[int, Device] | None = None,
        caching: Caching = Caching.WRITE_THROUGH,
        read_only: bool = False,
        details: Details | None = None,
        slots: Slots | None = None,
        landing: Landing | None = None,
    ) -> None:
        self.replies: list[Reply] = []
        self.rooms = 0
        self.resizes = 0
        self.started: list[tuple[Callable[..., Awaitable[object]], tuple[object, ...]]] = []
        self.is_initialized = False
        self.lends = False
        volume = (
            Volume.of_file(device, OWNER, read_only, details)
            if device is not None
            else Volume.of_directory(disks or {}, OWNER, read_only, dict.fromkeys(disks or {}, details) if details else None)
        )
        self.session = Session(volume, self, caching, slots=slots, landing=landing)
        self._unique = 0

    def answer(self, reply: bytes | memoryview) -> None:
        """Keep a reply, which must be as long as it says."""
        length, error, unique = wire.OUT.unpack_from(reply)
        assert length == len(reply)
        self.replies.append(Reply(-error, unique, bytes(reply[16:])))
        if not self.lends:
            self.session.answered()

    def room(self) -> None:
        """Count."""
        self.rooms += 1

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Keep it for `carry_out`."""
        self.started.append((function, arguments))

    async def resized(self) -> None:
        """Take sizes up."""
        self.resizes += len(self.session.refresh())

    def initialized(self) -> None:
        """Note it."""
        self.is_initialized = True

    def send(self, opcode: int, body: bytes = b"", node: int = 1, pid: int = 77) -> int:
        """Let a request land, and kick; its `unique`."""
        self._unique += 2
        self.land(struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self._unique, node, 1000, 100, pid, 0, 0) + body)
        return self._unique

    def land(self, request: bytes) -> None:
        """Let bytes land as they are, and kick."""
        buffers = self.session.buffers()
        assert buffers is not None, "the session takes nothing"
        head, room = buffers
        head[: len(request[:80])] = request[:80]
        room[: len(request[80:])] = request[80:]
        self.session.received(len(request))
        self.session.kick()

    def ask(self, opcode: int, body: bytes = b"", node: int = 1, pid: int = 77) -> Reply:
        """Send a request that is answered at once; its reply."""
        unique = self.send(opcode, body, node, pid)
        reply = self.replies.pop()
        assert reply.unique == unique
        return reply

    async def carry_out(self) -> Reply:
        """Run what was to be run beside the plane; its reply."""
        function, arguments = self.started.pop()
        await function(*arguments)
        return self.replies.pop()

    # Requests by name; offsets and lengths in bytes.

    def open(self, flags: int = 2, node: int = 1, pid: int = 77) -> tuple[int, int]:
        """The handle and the FOPEN flags."""
        reply = self.ask(Opcode.OPEN, struct.pack("=II", flags, 0), node, pid)
        assert not reply.error, reply
        fh, open_flags, _ = struct.unpack("=QIi", reply.body)
        return fh, open_flags

    def read(self, offset: int, length: int, node: int = 1) -> int:
        """A READ is under way."""
        return self.send(Opcode.READ, struct.pack("=QQIIQII", 1, offset, length, 0, 0, 0, 0), node)

    def write(self, offset: int, data: bytes, flags: int = 0, node: int = 1) -> int:
        """A WRITE is under way."""
        return self.send(Opcode.WRITE, struct.pack("=QQIIQII", 1, offset, len(data), 0, 0, flags, 0) + data, node)

    def fsync(self, fh: int) -> int:
        """An FSYNC is under way."""
        return self.send(Opcode.FSYNC, struct.pack("=QII", fh, 0, 0))

    def setattr(self, valid: int, fh: int = 0, size: int = 0, mode: int = 0, uid: int = 0, gid: int = 0, pid: int = 77) -> Reply:
        """A SETATTR."""
        return self.ask(Opcode.SETATTR, struct.pack("=IIQQ8x24x12xI4xII4x", valid, 0, fh, size, mode, uid, gid), pid=pid)
