"""The transmission phase of one client: requests out of received bytes, block Requests in, replies out (NBD protocol, Transmission).

Theory of operation. As the iSCSI framer: `receive_buffer` is where the next bytes must land, `received(n)` says they have. Requests are
taken whole out of one read-ahead buffer, many per receive; of a large WRITE that has only begun the rest lands where it is written from.
Each READ and WRITE has one buffer of the server's Memory, from its header until its reply is sent (READ) or it is done (WRITE; that
of a large one may be kept for longer). `outgoing` lends the buffers of READs to one sendmsg, and `sent` takes them back.

Back-pressure: no request is taken from the buffer while OPEN_LIMIT of them are open (a request is open until its reply has been sent, so a
client that reads no replies stops itself), while the client holds more than HELD_LIMIT bytes, or while the memory of all is used up. Then
`parked` is true, the socket is not read, and `resume` goes on.

Everything here is plain and hot; the common READ and WRITE cost one unpack, one Request object and one header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from isblk.block.request import Device, Geometry, Op, Request
from isblk.errors import IsblkError, ProtocolError, RequestFailed
from isblk.export import nbdwire as wire
from isblk.export.nbdmemory import ROOM, Memory, Slot
from isblk.export.nbdwire import MAX_PAYLOAD, Command, CommandFlag, Error

READ_AHEAD: Final = 256 * 1024
"""Bytes of the read-ahead buffer: some sixty WRITEs of 4 KiB per receive."""
LITTLE_AHEAD: Final = 4096
"""Bytes of read-ahead while large WRITEs arrive one after another."""
PLACE_FROM: Final = 32 * 1024
"""A WRITE of so many bytes that has not arrived whole lands where it is written from."""
OPEN_LIMIT: Final = 256
"""Requests of one client that may be open."""
HELD_LIMIT: Final = 64 << 20
"""Bytes of buffers that one client may hold; one request is always served."""
TURN: Final = 128
"""Requests of one turn, so that a client with a full buffer does not keep the others waiting."""
DRAIN_LIMIT: Final = 128 << 20
"""Bytes of a payload that is refused but read to its end; a client that announces more is cut off."""
ZEROES: Final = 1 << 20
"""Bytes written at a time where zeroes must not become a hole."""

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_CMD_READ: Final = int(Command.READ)
_CMD_WRITE: Final = int(Command.WRITE)
_FUA: Final = int(CommandFlag.FUA)
_ALL: Final = slice(None)

# Which flags each command takes; as int, for ~ of an IntFlag leaves unknown bits out. FUA is taken by all: "the server MUST accept all
# commands with this bit set" (Command flags).
_FLAGS: Final[dict[int, int]] = {
    Command.READ: int(CommandFlag.FUA | CommandFlag.DF),
    Command.WRITE: int(CommandFlag.FUA | CommandFlag.PAYLOAD_LEN),
    Command.FLUSH: int(CommandFlag.FUA),
    Command.TRIM: int(CommandFlag.FUA),
    Command.CACHE: int(CommandFlag.FUA),
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
_CHANGES: Final = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_ENOSPC_BEYOND: Final = (Command.WRITE, Command.WRITE_ZEROES)
_zeroes: Final = memoryview(bytes(ZEROES))


class NbdRequest(Request):
    """A Request that knows which reply it is, and its buffer if it has one. Both are set behind Request's own constructor: hot."""

    __slots__ = ("cookie", "slot")

    cookie: int
    slot: Slot

    def keep(self) -> tuple[bytes | memoryview, object]:
        """A large payload stays in its buffer for whoever keeps it."""
        assert self.data is not None
        held = self.slot.hold(self.length)
        return (self.data, held) if held is not None else super().keep()


_COUNTED: Final = ("block_status", "bytes_read", "bytes_written", "errors", "others", "reads", "writes")


class Counters:
    """Plain additions of the hot path; bytes are of data."""

    __slots__ = ("block_status", "bytes_read", "bytes_written", "errors", "others", "reads", "writes")

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.others = 0
        self.block_status = 0
        self.errors = 0

    def as_dict(self) -> dict[str, int]:
        """For status and JSON."""
        return {name: getattr(self, name) for name in _COUNTED}


class Host(Protocol):
    """What a session needs of its surroundings."""

    def output(self) -> None:
        """There is something in `outgoing`; called once until `outgoing` has been asked."""

    def block_status(self, cookie: int, offset: int, length: int, one: bool) -> None:
        """Find out and call `answer_status` or `answer_error`, at once or later."""


class Session:
    """One client in transmission; `read_only` refuses changes whatever the device can.

    `parked`: no request can be taken now, because of the client's own limits or, when `short`, because of everybody's memory. `more`: the
    turn is over, and there are requests left in the buffer.
    """

    def __init__(
        self, device: Device, memory: Memory, host: Host, replies: wire.Replies, *, read_only: bool = False, allocation: bool = False
    ) -> None:
        self.device = device
        self.counters = Counters()
        self.open = 0
        self.in_flight = 0
        self.held = 0
        self.parked = False
        self.short = False
        self.more = False
        self.disconnecting = False
        self.closing = False
        self.ended = False
        self._memory = memory
        self._host = host
        self._replies = replies
        self._read_only = read_only
        self._allocation = allocation
        self._size = replies.request.size
        self._at = ROOM - replies.read_header
        self._view = memoryview(bytearray(READ_AHEAD))
        self._start = 0
        self._end = 0
        self._ahead = READ_AHEAD
        self._landing: memoryview | None = None
        self._filled = 0
        self._placed: NbdRequest | None = None
        self._skip = 0
        self._after_skip = b""
        self._out: list[bytes | memoryview] = []
        self._slots: list[Slot] = []
        self._lent: list[Slot] = []
        self._lent_replies = 0
        self._told = False
        self._losses_seen = self._losses()
        self._mask = device.geometry.block_size - 1
        self._extended = replies is wire.EXTENDED
        self._unpack = replies.request.unpack_from
        self._magic = replies.request_magic
        write_flags = int(CommandFlag.PAYLOAD_LEN) if self._extended else 0
        self._read_head = wire.request_head(self._magic, 0, _CMD_READ)
        self._write_head = wire.request_head(self._magic, write_flags, _CMD_WRITE)
        self._fua_head = wire.request_head(self._magic, write_flags | _FUA, _CMD_WRITE)
        self._submit_below = device.submit
        self._when_read = self._read_done  # bound once: a bound method for each request is an object for each
        self._when_written = self._write_done

    # ------------------------------------------------------------------ bytes in

    def receive_buffer(self) -> memoryview:
        """Where the next bytes must land; not to be asked for while `parked`."""
        if self._landing is not None:
            return self._landing[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif READ_AHEAD - self._end < READ_AHEAD // 2:
            pending = self._end - self._start
            self._view[:pending] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, pending
        return self._view[self._end : self._end + self._ahead]

    def received(self, count: int) -> None:
        """`count` bytes landed in the buffer last returned: take what requests are whole. Raises ProtocolError."""
        landing = self._landing
        if landing is None:
            if count == self._ahead:
                self._ahead = READ_AHEAD
            self._end += count
        else:
            self._filled += count
            if self._filled < len(landing):
                return
            placed, self._landing, self._placed = self._placed, None, None
            assert placed is not None
            self.in_flight += 1
            self.device.submit(placed)
        self.take()

    @property
    def pending(self) -> bool:
        """Whether the client has begun something that it has not sent whole."""
        return self._landing is not None or self._start != self._end or bool(self._skip)

    def take(self) -> None:
        """Take requests until none is whole, something is in the way (`parked`), or a turn is over (`more`). Raises ProtocolError."""
        size, mask, view, unpack = self._size, self._mask, self._view, self._unpack
        read_head, write_head, fua_head = self._read_head, self._write_head, self._fua_head
        readable, writable = not self.closing, not (self.closing or self._read_only)
        self.parked = self.short = self.more = False
        turn = TURN
        if self._skip and not self._skip_payload():
            return
        while self._end - self._start >= size and not self.disconnecting:
            if self.open >= OPEN_LIMIT or self.held > HELD_LIMIT:
                self.parked = True
                return
            if not turn:
                self.more = True
                return
            turn -= 1
            head, cookie, offset, length = unpack(view, self._start)
            whole = not (offset | length) & mask and length <= MAX_PAYLOAD
            if head == read_head and whole and readable:
                taken = self._read(cookie, offset, length)
            elif (head == write_head or head == fua_head) and whole and writable and length:  # noqa: SIM109 - a tuple for each request
                taken = self._write(head == fua_head, cookie, offset, length)
            elif head >> 32 == self._magic:
                taken = self._other(head >> 16 & 0xFFFF, head & 0xFFFF, cookie, offset, length)
            else:
                raise ProtocolError(f"a client sent {head >> 32:#x} where a request was due")
            if not taken:
                return

    def _read(self, cookie: int, offset: int, length: int) -> bool:
        slot = self._memory.take(length)
        if slot is None:
            self.parked = self.short = True
            return False
        self._start += self._size
        self.open += 1
        self.in_flight += 1
        self.held += slot.size
        data = slot.data if length == slot.size else slot.data[:length]
        request = NbdRequest(_READ, offset, length, data, False, self._when_read)
        request.cookie = cookie
        request.slot = slot
        self._submit_below(request)
        return True

    def _write(self, fua: bool, cookie: int, offset: int, length: int) -> bool:
        body = self._start + self._size
        after, end = body + length, self._end
        if after > end and length < PLACE_FROM:
            return False
        slot = self._memory.take(length)
        if slot is None:
            self.parked = self.short = True
            return False
        self.open += 1
        self.held += slot.size
        data = slot.data if length == slot.size else slot.data[:length]
        request = NbdRequest(_WRITE, offset, length, data, fua, self._when_written)
        request.cookie = cookie
        request.slot = slot
        if after > end:
            self._land(request, data, body)
            return False
        data[_ALL] = self._view[body:after]
        self._start = after
        self.in_flight += 1
        self._submit_below(request)
        return True

    def _land(self, request: NbdRequest, data: memoryview, body: int) -> None:
        """Let the rest of a large WRITE land where it belongs."""
        arrived = self._end - body
        data[:arrived] = self._view[body : self._end]
        self._start = self._end
        self._landing, self._filled, self._placed = data, arrived, request
        self._ahead = LITTLE_AHEAD

    # ------------------------------------------------------------------ everything but the common READ and WRITE

    def _other(self, flags: int, command: int, cookie: int, offset: int, length: int) -> bool:
        """One request of any kind; False when nothing more can be taken now."""
        if command == Command.DISC:
            self.disconnecting = True
            return False
        payload = self._payload(flags, command, length)
        refusal = self._refusal(flags, command, offset, length)
        if refusal is None and command == Command.READ:
            return self._read(cookie, offset, length)
        self._start += self._size
        self.open += 1
        self.counters.others += 1
        if refusal is None:
            _STARTERS[command](self, flags, cookie, offset, length)
            return True
        self.counters.errors += 1
        self._skip, self._after_skip = payload, self._replies.error(cookie, offset, *refusal)
        return self._skip_payload()

    def _payload(self, flags: int, command: int, length: int) -> int:
        """Bytes that follow this request. Raises ProtocolError when that cannot be known, or is beyond all measure."""
        announced = bool(flags & CommandFlag.PAYLOAD_LEN) and self._extended
        if command == Command.WRITE and self._extended and not announced:
            raise ProtocolError("a client sent a WRITE with an extended header that announces no payload")
        if command != Command.WRITE and not announced:
            return 0
        if length > DRAIN_LIMIT:
            raise ProtocolError(f"a client announced a payload of {length} bytes, more than is even thrown away")
        return length

    def _skip_payload(self) -> bool:
        """Throw away what has come of a refused payload; the answer goes out behind its end, for clients do not expect it before."""
        skipped = min(self._skip, self._end - self._start)
        self._start += skipped
        self._skip -= skipped
        if self._skip:
            return False
        self._reply(self._after_skip)
        return True

    def _refusal(self, flags: int, command: int, offset: int, length: int) -> tuple[Error, str] | None:
        """Why this request cannot be done, as the specification's Error values have it; None when it can."""
        known = _FLAGS.get(command)
        if self.closing:
            return Error.ESHUTDOWN, "the server is shutting down"
        if known is None:
            return Error.EINVAL, f"command {command} is unknown"
        strange = flags & ~known or (flags & CommandFlag.PAYLOAD_LEN and not self._extended)
        if strange or (flags & CommandFlag.DF and self._replies is wire.SIMPLE):
            return Error.EINVAL, f"flags {flags:#x} do not belong to {Command(command).name}"
        if command == Command.FLUSH:
            return (Error.EINVAL, "a FLUSH has no offset and no length") if offset or length else None
        if command in _CHANGES and (self._read_only or self.device.geometry.read_only):
            return Error.EPERM, "the export is read-only"
        return self._range_refusal(command, offset, length) or self._ability_refusal(flags, command)

    def _range_refusal(self, command: int, offset: int, length: int) -> tuple[Error, str] | None:
        size = self.device.geometry.size
        if not length or (offset | length) & self._mask:
            return Error.EINVAL, f"{length} bytes at {offset} are not whole blocks of {self._mask + 1}"
        if length > MAX_PAYLOAD and command in (Command.READ, Command.WRITE):
            simple = command == Command.WRITE or self._replies is wire.SIMPLE
            return (Error.EINVAL if simple else Error.EOVERFLOW), f"{length} bytes are more than the {MAX_PAYLOAD} of one request"
        if offset + length > size:
            return (Error.ENOSPC if command in _ENOSPC_BEYOND else Error.EINVAL), f"{length} bytes at {offset} pass the end at {size}"
        return None

    def _ability_refusal(self, flags: int, command: int) -> tuple[Error, str] | None:
        geometry = self.device.geometry
        if command == Command.TRIM and not geometry.can_trim:
            return Error.EINVAL, "the export cannot trim"
        if command == Command.BLOCK_STATUS and not self._allocation:
            return Error.EINVAL, "no metadata context was selected"
        if flags & CommandFlag.FAST_ZERO and not (zeroes_fast(geometry) and not flags & CommandFlag.NO_HOLE):
            return Error.ENOTSUP, "zeroing this would be no faster than writing it"
        return None

    def _start_flush(self, flags: int, cookie: int, offset: int, length: int) -> None:
        request = NbdRequest(Op.FLUSH, done=self._flushed)
        request.cookie = cookie
        self._submit(request)

    def _start_trim(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """TRIM has no FUA below: the cache is flushed behind it."""
        request = NbdRequest(Op.TRIM, offset, length, done=self._trimmed if flags & _FUA else self._done)
        request.cookie = cookie
        self._submit(request)

    def _start_cache(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """There is no cache here to be filled: done, which the specification allows."""
        self._reply(self._replies.done(cookie, offset))

    def _start_zeroes(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """ZERO may deallocate where that reads as zeroes; what must stay allocated is written there."""
        fua, geometry = bool(flags & _FUA), self.device.geometry
        if flags & CommandFlag.NO_HOLE and geometry.can_trim and geometry.trim_reads_zero:
            _Zeroing(self, cookie, offset, length, fua).go_on()
            return
        request = NbdRequest(Op.ZERO, offset, length, fua=fua, done=self._done)
        request.cookie = cookie
        self._submit(request)

    def _start_block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self.counters.block_status += 1
        self._host.block_status(cookie, offset, length, bool(flags & CommandFlag.REQ_ONE))

    def _submit(self, request: Request) -> None:
        self.in_flight += 1
        self.device.submit(request)

    # ------------------------------------------------------------------ requests done

    def _read_done(self, request: Request) -> None:
        assert type(request) is NbdRequest
        self.in_flight -= 1
        slot = request.slot
        if request.error is not None or self.ended:
            self._give(slot)
            self._done_without_data(request, request.error)
            return
        length = request.length
        self._replies.pack_read(slot.memory, self._at, request.cookie, request.offset, length)
        self._out.append(slot.reply(self._at, ROOM + length))
        self._slots.append(slot)
        self.counters.reads += 1
        self.counters.bytes_read += length
        if not self._told:
            self._told = True
            self._host.output()

    def _write_done(self, request: Request) -> None:
        assert type(request) is NbdRequest
        self.in_flight -= 1
        self._give(request.slot)
        if request.error is None:
            self.counters.writes += 1
            self.counters.bytes_written += request.length
        self._done_without_data(request, request.error)

    def _done(self, request: Request) -> None:
        self.in_flight -= 1
        self._done_without_data(request, request.error)

    def _trimmed(self, request: Request) -> None:
        self.in_flight -= 1
        if request.error is not None or self.ended:
            self._done_without_data(request, request.error)
            return
        self._submit(Request(Op.FLUSH, done=lambda flush: self._flush_done(flush, request)))
        self.device.kick()

    def _flushed(self, flush: Request) -> None:
        self._flush_done(flush, flush)

    def _flush_done(self, flush: Request, request: Request) -> None:
        """Answer `request`. What was acknowledged and then lost is told once to each client that was connected by then."""
        self.in_flight -= 1
        error, losses = flush.error, self._losses()
        if error is None and losses > self._losses_seen:
            error = RequestFailed("acknowledged writes were lost since this client connected")
        self._losses_seen = losses
        self._done_without_data(request, error)

    def _losses(self) -> int:
        return int(getattr(self.device, "losses", 0))

    def _done_without_data(self, request: Request, error: Exception | None) -> None:
        assert isinstance(request, NbdRequest)
        if error is None:
            self._reply(self._replies.done(request.cookie, request.offset))
        else:
            self.answer_error(request.cookie, request.offset, error)

    def answer_error(self, cookie: int, offset: int, error: Exception) -> None:
        """The reply of a request that failed."""
        self.counters.errors += 1
        text = str(error) if isinstance(error, IsblkError) else "the server failed"
        self._reply(self._replies.error(cookie, offset, wire.wire_error(error), text))

    def answer_status(self, cookie: int, offset: int, extents: Sequence[tuple[int, int]]) -> None:
        """The reply of a BLOCK_STATUS: (length in bytes, State)."""
        self._reply(self._replies.status(cookie, offset, extents))

    def _reply(self, reply: bytes) -> None:
        if self.ended:
            return
        self._out.append(reply)
        if not self._told:
            self._told = True
            self._host.output()

    def _give(self, slot: Slot) -> None:
        self.held -= slot.size
        self._memory.give(slot)

    # ------------------------------------------------------------------ bytes out

    def outgoing(self) -> Sequence[bytes | memoryview]:
        """The replies to send now; the next are asked for only when `sent` has been called for these."""
        out, self._out = self._out, []
        self._lent, self._slots = self._slots, []
        self._lent_replies = len(out)
        self._told = False
        return out

    def sent(self) -> None:
        """All that `outgoing` returned last has been sent."""
        lent, self._lent = self._lent, []
        self.open -= self._lent_replies
        self._lent_replies = 0
        for slot in lent:
            self.held -= slot.size
        self._memory.give_all(lent)

    @property
    def landing(self) -> bool:
        """Whether a buffer waits for the rest of a WRITE."""
        return self._landing is not None

    @property
    def idle(self) -> bool:
        """Whether every request taken has been answered and the answer sent."""
        return not self.open

    def end(self) -> None:
        """The connection is gone: nothing more is answered, and each buffer goes back when the device is done with it."""
        if self.ended:
            return
        self.ended = True
        if self._placed is not None:
            self._give(self._placed.slot)
            self._placed = self._landing = None
        for slot in [*self._lent, *self._slots]:
            self._give(slot)
        self._lent, self._slots, self._out = [], [], []


class _Zeroing:
    """One WRITE_ZEROES that must not make a hole, as one WRITE after the other; the loop stands for recursion where they finish at once."""

    def __init__(self, session: Session, cookie: int, offset: int, length: int, fua: bool) -> None:
        self._session = session
        self._request = NbdRequest(Op.ZERO, offset, length, fua=fua)
        self._request.cookie = cookie
        self._at = offset
        self._end = offset + length
        self._waiting = False
        self._inside = False
        self._error: Exception | None = None

    def go_on(self) -> None:
        """Write until a WRITE does not finish at once, or all is done."""
        session, self._inside = self._session, True
        while self._at < self._end and self._error is None and not session.ended:
            length = min(ZEROES, self._end - self._at)
            self._waiting = True
            session.in_flight += 1
            session.device.submit(Request(_WRITE, self._at, length, _zeroes[:length], self._request.fua, self._part_done))
            self._at += length
            if self._waiting:
                self._inside = False
                session.device.kick()
                return
        session._done_without_data(self._request, self._error)

    def _part_done(self, part: Request) -> None:
        self._session.in_flight -= 1
        self._waiting = False
        self._error = part.error
        if not self._inside:
            self.go_on()


def zeroes_fast(geometry: Geometry) -> bool:
    """Whether zeroing is known to be faster than writing: only where it deallocates."""
    return geometry.can_zero and geometry.can_trim and geometry.trim_reads_zero


_STARTERS: Final[dict[int, Callable[[Session, int, int, int, int], None]]] = {
    Command.FLUSH: Session._start_flush,
    Command.TRIM: Session._start_trim,
    Command.CACHE: Session._start_cache,
    Command.WRITE_ZEROES: Session._start_zeroes,
    Command.BLOCK_STATUS: Session._start_block_status,
}
