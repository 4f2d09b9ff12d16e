"""One mount's conversation with the kernel: requests in, block Requests and replies out; no descriptor here.

Theory of operation. The plane part (fusekernel.py) lets one request land in `buffers()`, calls `received`, and again until the kernel has
no more; then `kick`. READ and WRITE are the hot road: one unpack, one Request, and when it is done one reply. Everything else goes through
the table `_HANDLERS`, whose functions return the body of the reply, raise an IsblkError for its errno, or return `LATER` when the reply
comes from something that is under way. What a file system is asked of names is answered in fusenames.py, what takes several steps in
fuseranges.py.

Back-pressure: `buffers()` is None while there is no memory for another request, while a READ that was taken waits for a slot, or while
OPEN_LIMIT requests are open; the host is told by `room` when that is over.

Caching (fuseoptions.Caching) is decided here for each handle. With the page cache a buffered write through an O_SYNC or O_DSYNC handle is
followed by an FSYNC from the kernel, so nothing more is done about it. A direct one is not when it is asynchronous (libaio and io_uring
with O_DIRECT: the kernel syncs behind writes that have ended when the call returns), so a direct write with the flag is done with FUA, and
so is every such write without the page cache. RWF_DSYNC arrives in the same flags.

O_TRUNC: FUSE_ATOMIC_O_TRUNC is not asked for, since with it the kernel takes the file for empty until it next asks for the size. Without
it open(2) is an OPEN and then a SETATTR to size 0, which is answered with the size that the disk has, and nothing was empty at any time. A
truncate(2) by name looks the same but for the OPEN; so size 0 is accepted from a thread that has the file open for writing, and EINVAL for
all others, as for every other size.

INTERRUPT is answered ENOSYS, after which the kernel sends no more: a disk's I/O is not interruptible, and a write that was told to have
been interrupted could still land on newer data.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

from isblk.block.request import Device, Op, Request
from isblk.errors import IsblkError, ProtocolError, RequestFailed, RequestInvalid
from isblk.export import fuseranges as ranges
from isblk.export import fusewire as wire
from isblk.export.files import Volume
from isblk.export.fusememory import Chunk, Landing, Slot, Slots
from isblk.export.fusenames import Names
from isblk.export.fuseoptions import Caching, Counters
from isblk.export.fusewire import HEAD_LENGTH, MAX_WRITE, OUT_LENGTH, Header, InitFlag, Opcode, OpenFlag, SetattrFlag

log: Final = logging.getLogger(__name__)

OPEN_LIMIT: Final = 512
"""Requests that may be open at once; the kernel itself keeps asynchronous ones to BACKGROUND."""
KEEP_IN_PLACE: Final = 128 << 10
"""Bytes of a payload from which on it is not copied for the journal (block/journal.py): 40 % of the CPU time of a 1 MiB write was that."""
BACKGROUND: Final = 64
"""Asynchronous requests the kernel may have outstanding; its default of 12 would hold libaio and io_uring below the iodepth asked for."""
LATER: Final = None

_READ: Final = int(Opcode.READ)
_WRITE: Final = int(Opcode.WRITE)
_OP_READ: Final = Op.READ
_OP_WRITE: Final = Op.WRITE
_WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.HANDLE_KILLPRIV_V2  # else each write asks for security.capability
    | InitFlag.INIT_EXT
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)
_OPEN_FLAGS: Final = {
    Caching.WRITE_THROUGH: OpenFlag(0),  # without KEEP_CACHE: whoever opens a file sees what others have written to the disk by then
    Caching.NONE: OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES,
    Caching.WRITEBACK: OpenFlag.KEEP_CACHE,
}


class Host(Protocol):
    """What a session needs of its surroundings."""

    def answer(self, reply: bytes | memoryview) -> None:
        """Give one whole reply to the kernel, now or soon; a memoryview is lent until `answered`."""

    def room(self) -> None:
        """`buffers()` may have some again, or nothing is open any more."""

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run an async function beside the plane."""

    def initialized(self) -> None:
        """INIT has been answered (or refused): the file is there for everybody."""

    async def resized(self) -> None:
        """Have the kernel know the sizes of the disks as they are now."""


class _Node:
    """A disk as the hot road sees it; `size`, and the `blocks` that were told to the kernel, follow the device's by `Session.refresh`."""

    __slots__ = ("blocks", "device", "inode", "size", "submit")

    def __init__(self, inode: int, device: Device, blocks: int) -> None:
        self.inode = inode
        self.device = device
        self.submit = device.submit
        self.size = device.geometry.size
        self.blocks = blocks


class _Handle:
    """One open file: who opened it, whether for writing, and the losses of acknowledged data it has been told of (fsync(2), errseq)."""

    __slots__ = ("losses", "node", "pid", "writes")

    def __init__(self, node: _Node, pid: int, writes: bool) -> None:
        self.node = node
        self.pid = pid
        self.writes = writes
        self.losses = losses(node.device)


class FuseRequest(Request):
    """A Request that knows which reply it is, and its memory. Both are set behind Request's own constructor: hot."""

    __slots__ = ("chunk", "slot", "unique")

    unique: int
    slot: Slot
    chunk: Chunk

    def keep(self) -> tuple[bytes | memoryview, object]:
        """A large payload stays in its chunk for whoever keeps it; a copy of a small one is cheaper, and the memory around it is used."""
        assert self.data is not None
        held = self.chunk.hold() if self.length >= KEEP_IN_PLACE else None
        return (self.data, held) if held is not None else super().keep()


def losses(device: Device) -> int:
    """How often the device has lost acknowledged data; a device that cannot has no such count."""
    return int(getattr(device, "losses", 0))


class Session:
    """One mounted volume. `refused` says why INIT could not be agreed on. `received` raises ProtocolError for what is no request."""

    def __init__(
        self,
        volume: Volume,
        host: Host,
        caching: Caching = Caching.WRITE_THROUGH,
        counters: Counters | None = None,
        slots: Slots | None = None,
        landing: Landing | None = None,
    ) -> None:
        self.counters = counters if counters is not None else Counters()
        self.agreed: wire.Agreed | None = None
        self.refused: str | None = None
        self.open = 0
        self.blocked = False
        self._volume = volume
        self._host = host
        self._caching = caching
        self._cached = caching is not Caching.NONE
        self._slots = slots if slots is not None else Slots()
        self._landing = landing if landing is not None else Landing()
        self.counters.held = lambda: self._slots.used + self._landing.used
        self._head = self._landing.head
        self._nodes = {inode: _Node(inode, device, volume.blocks(inode)) for inode, device in volume.devices.items()}
        self._names = Names(volume)
        self._handles: dict[int, _Handle] = {}
        self._serial = 0
        self._parked: tuple[int, _Node, int, int] | None = None
        self._touched: set[Device] = set()
        self._lent: list[Slot] = []
        self._sole = next(iter(self._nodes.values())).device if len(self._nodes) == 1 else None
        self._when_read = self._read_done  # bound once: a bound method for each request is an object for each
        self._when_written = self._write_done

    # ------------------------------------------------------------------ the plane part's calls

    def buffers(self) -> list[memoryview] | None:
        """Where the next request must land; None, and `blocked`, when nothing may be read now."""
        if (self._parked is not None and not self._unpark(self._parked)) or self.open >= OPEN_LIMIT:
            self.blocked = True
            return None
        buffers = self._landing.buffers()
        self.blocked = buffers is None
        return buffers

    def received(self, count: int) -> None:
        """Hot. One request of `count` bytes has landed."""
        length, opcode, unique, node_id, _, offset, size, _, flags = wire.TRANSFER.unpack_from(self._head)
        if length == count:
            if opcode == _READ and count == HEAD_LENGTH:
                node = self._nodes.get(node_id)
                if node is not None and 0 < size <= MAX_WRITE and offset + size <= node.size:
                    self._read(unique, node, offset, size)
                else:
                    self._read_carefully(unique, node, offset, size)
                return
            if opcode == _WRITE and count == HEAD_LENGTH + size:
                node = self._nodes.get(node_id)
                if node is not None and size and offset + size <= node.size and not flags & os.O_DSYNC:
                    self._write(unique, node, offset, size, False, self._when_written)
                else:
                    self._write_carefully(unique, node, offset, size, flags)
                return
        self._other(count)

    @property
    def idle(self) -> bool:
        """Whether everything that was taken has been answered."""
        return not self.open and self._parked is None

    def kick(self) -> None:
        """End of a batch: let the devices send what was submitted."""
        if self._sole is not None:
            self._sole.kick()
        elif self._touched:
            touched, self._touched = self._touched, set()
            for device in touched:
                device.kick()

    def answered(self) -> None:
        """Hot. Every reply has been given to the kernel: the memory of READs is free again."""
        lent, give = self._lent, self._slots.give
        if lent:
            self._lent = []
            for slot in lent:
                give(slot)
            if self.blocked:
                self._host.room()

    def trim(self) -> None:
        """Let go of memory that was not needed since the last call."""
        self._landing.trim()

    def refresh(self) -> list[int]:
        """Take up sizes that have changed; the inodes they belong to, for the kernel to be told."""
        changed = [node for node in self._nodes.values() if node.size != node.device.geometry.size]
        for node in changed:
            node.size = node.device.geometry.size
        return [node.inode for node in changed]

    def reallocated(self) -> list[int]:
        """The inodes of disks of which another number of blocks is known to be allocated, for the kernel to be told."""
        changed = [node for node in self._nodes.values() if node.blocks != self._volume.blocks(node.inode)]
        for node in changed:
            node.blocks = self._volume.blocks(node.inode)
        return [node.inode for node in changed]

    # ------------------------------------------------------------------ READ

    def _read(self, unique: int, node: _Node, offset: int, size: int) -> None:
        slot = self._slots.take(size)
        if slot is None:
            self._parked = (unique, node, offset, size)
            return
        self.open += 1
        counters = self.counters
        counters.in_flight += 1
        counters.reads += 1
        request = FuseRequest(_OP_READ, offset, size, slot.data if size == slot.size else slot.data[:size], False, self._when_read)
        request.unique = unique
        request.slot = slot
        if self._sole is None:
            self._touched.add(node.device)
        node.submit(request)

    def _unpark(self, parked: tuple[int, _Node, int, int]) -> bool:
        """Go on with the READ that found no slot; False when there is none yet."""
        self._parked = None
        self._read(*parked)
        return not self._is_parked()

    def _is_parked(self) -> bool:
        return self._parked is not None

    def _read_carefully(self, unique: int, node: _Node | None, offset: int, size: int) -> None:
        """A READ that is not plain: what lies before the end, after a look at the size as it is now."""
        if node is None or size > MAX_WRITE:
            self._fail(unique, RequestInvalid(f"a read of {size} bytes of what is no file", errno.EIO))
            return
        node.size = node.device.geometry.size
        length = self._volume.readable(node.inode, offset, size)
        if length:
            self._read(unique, node, offset, length)
        else:
            self._host.answer(wire.ok(unique))

    def _read_done(self, request: Request) -> None:
        """Hot. The data is in its slot, right behind where the header goes."""
        assert isinstance(request, FuseRequest)
        slot, counters = request.slot, self.counters
        self.open -= 1
        counters.in_flight -= 1
        if request.error is None:
            length = request.length
            counters.bytes_read += length
            wire.OUT.pack_into(slot.header, 0, OUT_LENGTH + length, 0, request.unique)
            self._lent.append(slot)
            self._host.answer(slot.reply if length == slot.size else slot.reply[: OUT_LENGTH + length])
        else:
            self._fail(request.unique, request.error)
            self._slots.give(slot)
        if self.blocked:
            self._host.room()

    # ------------------------------------------------------------------ WRITE

    def _write(self, unique: int, node: _Node, offset: int, size: int, fua: bool, done: Callable[[Request], None]) -> None:
        chunk, data = self._landing.keep(size)
        self.open += 1
        counters = self.counters
        counters.in_flight += 1
        counters.writes += 1
        request = FuseRequest(_OP_WRITE, offset, size, data, fua, done)
        request.unique = unique
        request.chunk = chunk
        if self._sole is None:
            self._touched.add(node.device)
        node.submit(request)

    def _write_carefully(self, unique: int, node: _Node | None, offset: int, size: int, flags: int) -> None:
        """A WRITE that is not plain: it passes the end (as much as fits, else ENOSPC), or has to be durable before it is answered."""
        try:
            if node is None or size > MAX_WRITE:
                raise RequestInvalid(f"a write of {size} bytes to what is no file", errno.EIO)
            node.size = node.device.geometry.size
            length = self._volume.writable(node.inode, offset, size)
        except IsblkError as error:
            self._fail(unique, error)
            return
        geometry = node.device.geometry
        durable = bool(flags & os.O_DSYNC) and geometry.write_cache and (not self._cached or bool(flags & os.O_DIRECT))
        if not length:
            self._host.answer(wire.WRITTEN.pack(wire.WRITTEN.size, 0, unique, 0, 0))
        elif durable and not geometry.can_fua:
            self._write(unique, node, offset, length, False, partial(self._then_flush, node.device))
        else:
            self._write(unique, node, offset, length, durable, self._when_written)

    def _write_done(self, request: Request) -> None:
        """Hot. The target has it, so the payload's memory is free."""
        assert isinstance(request, FuseRequest)
        counters = self.counters
        self.open -= 1
        counters.in_flight -= 1
        if request.error is None:
            counters.bytes_written += request.length
            self._host.answer(wire.WRITTEN.pack(24, 0, request.unique, request.length, 0))
        else:
            self._fail(request.unique, request.error)
        self._landing.give(request.chunk)
        if self.blocked:
            self._host.room()

    def _then_flush(self, device: Device, request: Request) -> None:
        """FUA for a device without it: what the flush behind the write says is answered."""

        def flushed(flush: Request) -> None:
            request.error = flush.error
            self._write_done(request)

        if request.error is not None:
            self._write_done(request)
            return
        self.counters.flushes += 1
        device.submit(Request(Op.FLUSH, done=flushed))
        device.kick()

    # ------------------------------------------------------------------ everything else

    def _other(self, count: int) -> None:
        """One request of any kind but a plain READ or WRITE."""
        header = wire.decode_header(self._head, count)
        if header.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            return  # the inodes are there as long as the mount is; no answer is waited for
        handler = _HANDLERS.get(header.opcode)
        if handler is None:
            self._host.answer(wire.error(header.unique, errno.ENOSYS))
            return
        body = bytes(self._head[wire.HEADER.size : count]) + bytes(self._landing.room[: max(0, count - HEAD_LENGTH)])
        try:
            answer = handler(self, header, body)
        except IsblkError as error:
            if isinstance(error, ProtocolError):
                log.warning("a request that makes no sense was answered with EIO: %s", error)
            self._fail(header.unique, error)
        else:
            if answer is not LATER:
                self._host.answer(wire.ok(header.unique, answer))

    def _fail(self, unique: int, error: Exception) -> None:
        number = errno.EIO
        if isinstance(error, IsblkError):
            number = error.errno
            log.debug("answered with errno %d: %s", number, error)
        else:  # answered, for it must not end the mount
            log.error("a bug: a request ended with an error that is none of isblk's", exc_info=error)
        if number not in _NO_FAILURE:
            self.counters.errors += 1
        self._host.answer(wire.error(unique, number))

    def _init(self, header: Header, body: bytes) -> bytes | None:
        offered = wire.decode_init(body)
        wanted = _WANTED | (InitFlag.WRITEBACK_CACHE if self._caching is Caching.WRITEBACK else InitFlag(0))
        agreed = wire.negotiate(offered, wanted)
        if agreed is None:
            self.refused = f"the kernel speaks FUSE {offered.major}.{offered.minor}; isblk needs 7.{wire.OLDEST_MINOR} (Linux 5.4) or later"
            self._host.answer(wire.error(header.unique, errno.EPROTO))
            self._host.initialized()
            return LATER
        self._host.answer(wire.ok(header.unique, wire.init_reply(agreed, BACKGROUND)))
        if offered.major == wire.MAJOR:  # else the kernel asks once more, having seen our version
            self.agreed = agreed
            self._host.initialized()
        return LATER

    def _destroy(self, header: Header, body: bytes) -> bytes:
        return b""

    def _interrupt(self, header: Header, body: bytes) -> bytes:
        raise RequestInvalid("a disk's requests are not interrupted", errno.ENOSYS)

    # ------------------------------------------------------------------ handles

    def _open(self, header: Header, body: bytes) -> bytes | None:
        flags = wire.decode_open(body)
        awaited = self._volume.awaited(header.node) if header.node in self._nodes else None
        if awaited is not None:
            return self._later(header, partial(self._open_later, awaited, header, flags))
        return self._opened(header, flags)

    async def _open_later(self, awaited: Callable[[], Awaitable[None]], header: Header, flags: int) -> bytes:
        await awaited()
        await self._host.resized()
        return self._opened(header, flags)

    def _opened(self, header: Header, flags: int) -> bytes:
        self._volume.check_open(header.node, flags)
        self._serial += 1
        self._handles[self._serial] = _Handle(self._nodes[header.node], header.pid, flags & os.O_ACCMODE != os.O_RDONLY)
        return wire.open_reply(self._serial, _OPEN_FLAGS[self._caching])

    def _release(self, header: Header, body: bytes) -> bytes:
        self._handles.pop(wire.decode_release(body), None)
        return b""

    def _handle(self, fh: int) -> _Handle:
        handle = self._handles.get(fh)
        if handle is None:
            raise RequestInvalid(f"handle {fh} is not open", errno.EBADF)
        return handle

    def _flush(self, header: Header, body: bytes) -> bytes:
        """close(2) promises nothing about durability, and nothing is held back here: with ENOSYS the kernel stops asking."""
        raise RequestInvalid("nothing is done at close", errno.ENOSYS)

    def _fsync(self, header: Header, body: bytes) -> bytes | None:
        handle, unique = self._handle(wire.decode_fsync(body)), header.unique
        device = handle.node.device

        def flushed(request: Request) -> None:
            self.open -= 1
            self.counters.in_flight -= 1
            seen, handle.losses = handle.losses, losses(device)
            error = request.error
            if error is None and seen < handle.losses:
                error = RequestFailed("acknowledged writes were lost since this file was opened")
            if error is None:
                self._host.answer(wire.ok(unique))
            else:
                self._fail(unique, error)
            self._host.room()

        self.open += 1
        self.counters.in_flight += 1
        self.counters.flushes += 1
        self._touched.add(device)
        device.submit(Request(Op.FLUSH, done=flushed))
        return LATER

    def _setattr(self, header: Header, body: bytes) -> bytes:
        asked = wire.decode_setattr(body)
        by_name = asked.valid & SetattrFlag.SIZE and not asked.valid & SetattrFlag.FH and not asked.size
        opened = any(each.node.inode == header.node and each.writes and each.pid == header.pid for each in self._handles.values())
        return self._names.setattr(header, asked, is_open_with_truncation=bool(by_name and opened))

    # ------------------------------------------------------------------ what takes several steps

    def _fallocate(self, header: Header, body: bytes) -> bytes | None:
        asked = wire.decode_fallocate(body)
        node = self._handle(asked.fh).node
        return self._later(header, partial(ranges.allocate, node.device, self._volume.details(node.inode), asked))

    def _lseek(self, header: Header, body: bytes) -> bytes | None:
        """ENOSYS with a write-back cache, after which the kernel takes everything for data: what it has not written yet is no hole."""
        if self._caching is Caching.WRITEBACK:
            raise RequestInvalid("holes are not told while the kernel holds writes back", errno.ENOSYS)
        asked = wire.decode_lseek(body)
        node = self._handle(asked.fh).node
        return self._later(header, partial(ranges.seek, node.device, self._volume.details(node.inode), asked))

    def _copy(self, header: Header, body: bytes) -> bytes | None:
        asked = wire.decode_copy(body)
        source, target = self._handle(asked.fh_in).node.device, self._handle(asked.fh_out).node.device
        reply = wire.offset_reply if header.opcode == Opcode.COPY_FILE_RANGE_64 else wire.copied_reply
        return self._later(header, partial(ranges.copy, source, target, asked, reply))

    def _ioctl(self, header: Header, body: bytes) -> bytes:
        asked = wire.decode_ioctl(body)
        if asked.command != wire.BLKGETSIZE64 or asked.out_size < 8 or header.node not in self._nodes:
            raise RequestInvalid(f"ioctl {asked.command:#x} is none of a disk's", errno.ENOTTY)
        return wire.ioctl_reply(wire.offset_reply(self._volume.size(header.node)))

    def _later(self, header: Header, ask: Callable[[], Awaitable[bytes]]) -> bytes | None:
        self.open += 1
        self.counters.in_flight += 1
        self._host.start_soon(self._carry_out, header.unique, ask)
        return LATER

    async def _carry_out(self, unique: int, ask: Callable[[], Awaitable[bytes]]) -> None:
        failure: Exception | None = None
        answer = b""
        try:
            answer = await ask()
        except Exception as error:
            failure = error
        finally:
            self.open -= 1
            self.counters.in_flight -= 1
            self._host.room()
        if failure is None:
            self._host.answer(wire.ok(unique, answer))
        else:
            self._fail(unique, failure)


_NO_FAILURE: Final = (errno.ENOSYS, errno.ENOENT, errno.ENODATA, errno.ENOTTY, errno.ENXIO, errno.EOPNOTSUPP)
"""Answers to questions, not failures worth counting."""

_Handler = Callable[[Session, Header, bytes], bytes | None]


def _named(method: Callable[[Names, Header, bytes], bytes]) -> _Handler:
    return lambda session, header, body: method(session._names, header, body)


_HANDLERS: Final[dict[int, _Handler]] = {
    Opcode.INIT: Session._init,
    Opcode.DESTROY: Session._destroy,
    Opcode.INTERRUPT: Session._interrupt,
    Opcode.OPEN: Session._open,
    Opcode.RELEASE: Session._release,
    Opcode.FLUSH: Session._flush,
    Opcode.FSYNC: Session._fsync,
    Opcode.SETATTR: Session._setattr,
    Opcode.FALLOCATE: Session._fallocate,
    Opcode.LSEEK: Session._lseek,
    Opcode.COPY_FILE_RANGE: Session._copy,
    Opcode.COPY_FILE_RANGE_64: Session._copy,
    Opcode.IOCTL: Session._ioctl,
    Opcode.LOOKUP: _named(Names.lookup),
    Opcode.GETATTR: _named(Names.getattr),
    Opcode.STATX: _named(Names.statx),
    Opcode.STATFS: _named(Names.statfs),
    Opcode.ACCESS: _named(Names.access),
    Opcode.OPENDIR: _named(Names.opendir),
    Opcode.READDIR: _named(Names.readdir),
    Opcode.READDIRPLUS: _named(Names.readdir),
    Opcode.RELEASEDIR: _named(Names.releasedir),
    Opcode.FSYNCDIR: _named(Names.fsyncdir),
    Opcode.GETXATTR: _named(Names.getxattr),
    Opcode.LISTXATTR: _named(Names.listxattr),
}
