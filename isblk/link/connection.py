"""One TCP connection and its session on the plane: receive, flush, keep alive, abort what is late, log out (RFC 7143 4.2.1, 11.18).

`submit`, `kick`, `ready` and everything they call are plain functions of the plane's contract; `watch`, `execute`, `text`, `logout` are
trio's. A connection that fails is closed with a reset, so that nothing queued in the kernel can still reach the target, and all its tasks
end with PathLost.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from isblk.errors import IsblkError, PathLost, ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.framer import Framer
from isblk.iscsi.login import Negotiated
from isblk.iscsi.names import Portal
from isblk.iscsi.session import Session, State
from isblk.iscsi.task import AsyncMessage, Exchange, Task
from isblk.iscsi.text import decode_pairs, encode_pairs
from isblk.link.plane import WRITABLE, Plane
from isblk.link.sweeper import SWEEP_SECONDS, Sweeper, Timing

PIECES: Final = 1024
"""Buffers one sendmsg takes (UIO_MAXIOV)."""
RECEIVES: Final = 16
"""Receives of one turn, so that a fast target cannot keep the plane's other descriptors waiting."""
SENDS: Final = 16
"""Sends of one turn, likewise: a peer that reads as fast as we send would never let it end."""
LONGEST_WAIT: Final = 3600
"""Seconds of Time2Wait believed: the most that can be negotiated (13.15)."""
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Completion:
    """What a logical unit answered: SAM status, sense bytes, the data that came (cut to what was transferred), bytes that did not."""

    status: int
    sense: bytes
    data: bytes
    residual: int


@dataclass
class Traffic:
    """Plain counters of one connection, in bytes and system calls."""

    bytes_received: int = 0
    bytes_sent: int = 0
    receives: int = 0
    sends: int = 0


class Tap(Protocol):
    """Hears the bytes of one connection, the login's first; capture.Tap is one. Plain functions, which raise nothing."""

    def sent(self, buffers: Sequence[bytes | memoryview], count: int) -> None:
        """The first `count` bytes of these went out."""

    def received(self, data: bytes | memoryview) -> None:
        """These came in."""

    def logged_in(self) -> None:
        """The login is over."""


class Connection:
    """A logged-in connection. `closed` is set when it has ended, `error` then says why (None after a clean logout).

    `fault` is the kind of the error that ended it: a wrong digest is a lost path for everybody else.
    """

    def __init__(
        self,
        plane: Plane,
        sock: socket.socket,
        framer: Framer,
        session: Session,
        portal: Portal,
        timing: Timing,
        tap: Tap | None = None,
    ) -> None:
        self.session = session
        self.submit: Callable[[Task], None] = session.submit
        """Queue a task; `kick` sends. The session's own: a method here would be one call more for each."""
        self.portal = portal
        self.timing = timing
        self.traffic = Traffic()
        self.closed = trio.Event()
        self.error: IsblkError | None = None
        self.fault = ""
        self.events: list[AsyncMessage] = []
        self._plane = plane
        self._socket = sock
        self._tap = tap
        self._framer = framer
        self._unsent: Sequence[bytes | memoryview] = ()
        self._position = 0
        self._dirty = False
        self._stuck = False
        self.leaving = False
        self.time2wait = float(session.negotiated.default_time2wait)
        self.moved_to: Portal | None = None
        self.on_leaving: Callable[[], None] | None = None
        self.may_reset = False
        self.hearers: dict[bytes, Callable[[Any], None]] = {}
        self._sweeper = Sweeper(self)
        plane.register(sock.fileno(), self)
        session.listen(self._async)
        self.kick()

    # ------------------------------------------------------------------ plain functions: the data path

    @property
    def negotiated(self) -> Negotiated:
        """What the login agreed on."""
        return self.session.negotiated

    def tasks(self) -> list[Task]:
        """Those that have not finished, the oldest first."""
        return self.session.unfinished()

    def kick(self) -> None:
        """End of a batch: what was queued goes out with one sendmsg, at the end of the plane's batch when one is on."""
        if not self._dirty and not self._stuck:
            self._dirty = True
            self._plane.at_batch_end(self, self._flush, early=True)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a plain function after some seconds (back-off of a busy logical unit)."""
        self._plane.call_later(seconds, function)

    def ready(self, events: int) -> None:
        """The socket is readable, writable or broken."""
        if events & WRITABLE and self._stuck:
            self._flush()
        if events & ~WRITABLE and not self.closed.is_set():
            self._receive()
        if self.session.has_output:
            self.kick()

    def broken(self, error: Exception) -> None:
        """Something below or above failed while handling this connection."""
        if isinstance(error, IsblkError):
            self.fail(error)
        elif isinstance(error, OSError):
            self.fail(PathLost(f"the connection to {self.portal} broke: {error.strerror or error}"))
        else:
            self.fail(PathLost(f"isblk failed while serving {self.portal}: {error!r}; please report this"))
            raise error

    def fail(self, error: IsblkError) -> None:
        """End the connection now with a reset; every open task finishes with PathLost. Harmless when it has ended."""
        if self.closed.is_set():
            return
        self.fault = error.kind
        if isinstance(error, ProtocolError):
            error = PathLost(f"{self.portal} broke the protocol, so the session was dropped: {error}")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._end(error)

    def _end(self, error: IsblkError) -> None:
        """Close the socket and let everything still open end with `error`; nothing to do when the target was quicker to close."""
        if self.closed.is_set():
            return
        self.error = error
        self._plane.unregister(self._socket.fileno())
        self._socket.close()
        unsent, self._unsent = self._unsent[self._position :], ()
        self.closed.set()
        self.session.fail(error, unsent)

    def _receive(self) -> None:
        """Drain the socket, bounded. A receive that does not fill its buffer has drained it: the call that would say so is saved."""
        framer, receive_into, traffic = self._framer, self._socket.recv_into, self.traffic
        for _ in range(RECEIVES):
            buffer = framer.receive_buffer()
            try:
                count = receive_into(buffer)
            except BlockingIOError:
                break
            if not count:
                self.fail(PathLost(f"{self.portal} closed the connection"))
                return
            traffic.bytes_received += count
            traffic.receives += 1
            if self._tap is not None:
                self._tap.received(buffer[:count])
            framer.received(count)
            if count < len(buffer) or self.closed.is_set():
                break
        self._sweeper.heard()

    def _flush(self) -> None:
        """Send what is queued, one sendmsg for up to PIECES buffers, bounded; the rest waits for the socket to be writable."""
        stuck = True
        for _ in range(SENDS):
            if self._position >= len(self._unsent):
                self._unsent = self.session.outgoing()
                self._position = 0
                if not self._unsent:
                    stuck = False
                    break
            unsent = self._unsent
            if self._position or len(unsent) > PIECES:
                unsent = unsent[self._position : self._position + PIECES]
            try:
                sent = self._socket.sendmsg(unsent)
            except BlockingIOError:
                break
            self.traffic.bytes_sent += sent
            self.traffic.sends += 1
            if self._tap is not None:
                self._tap.sent(unsent, sent)
            self._drop(sent)
        # Only now: what a callback of `outgoing` kicks is picked up by the loop, not by a second flush within this one.
        self._dirty = False
        if not self.closed.is_set():
            self._watch_writable(stuck)

    def _drop(self, sent: int) -> None:
        """Step over `sent` bytes of the queue, which may end within a buffer."""
        unsent = self._unsent
        if not self._position and len(unsent) <= PIECES and sent == sum(map(len, unsent)):
            self._unsent = ()
            self._position = 0
            return
        position = self._position
        while sent and sent >= len(unsent[position]):
            sent -= len(unsent[position])
            position += 1
        if sent:
            rest = list(unsent[position:])
            rest[0] = memoryview(rest[0])[sent:]
            self._unsent, position = rest, 0
        self._position = position

    def _watch_writable(self, stuck: bool) -> None:
        if stuck is not self._stuck:
            self._stuck = stuck
            self._plane.watch(self._socket.fileno(), reading=True, writing=stuck)

    def _async(self, message: AsyncMessage) -> None:
        """Acting on these beyond ending the session cleanly is the keeper's: it will log in again."""
        self.events.append(message)
        del self.events[:-16]
        if message.event in (pdu.AsyncEvent.CONNECTION_DROPPED, pdu.AsyncEvent.ALL_CONNECTIONS_DROPPED):
            self.time2wait = float(min(message.parameters[1], LONGEST_WAIT))
            self.fail(PathLost(f"{self.portal} announced that it drops the session"))
        elif message.event in (pdu.AsyncEvent.LOGOUT_REQUESTED, pdu.AsyncEvent.NEGOTIATION_REQUESTED) and not self.leaving:
            self.leave(f"{self.portal} asked for a logout", message.parameters[2])

    # ------------------------------------------------------------------ trio: control

    async def execute(self, lun: bytes, cdb: bytes, read_length: int = 0, write: bytes = b"") -> Completion:
        """One command with at most 16 MiB of data, waited for. Raises PathLost, RequestFailed.

        A cancelled wait leaves the command running; its memory belongs to it, so nothing dangles.
        """
        buffer = bytearray(read_length)
        finished = trio.Event()
        task = Task(
            lun, cdb, memoryview(buffer) if read_length else None, memoryview(write) if write else None, lambda _task: finished.set()
        )
        self.submit(task)
        self.kick()
        await finished.wait()
        if task.error is not None:
            raise task.error
        return Completion(task.status, task.sense, bytes(buffer[: task.transferred]) if read_length else b"", task.residual)

    async def text(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """A Text Request and its whole answer, however many PDUs it takes. Raises PathLost, ProtocolError."""
        exchange = await self._ask(lambda done: self.session.text(encode_pairs(pairs), done))
        assert exchange.text is not None
        return decode_pairs(exchange.text)

    async def manage(self, function: pdu.TaskManagement, *, task: Task | None = None, lun: bytes = bytes(8)) -> int:
        """A task management function; returns the response code of RFC 7143 11.6.1. Raises PathLost."""
        exchange = await self._ask(lambda done: self.session.manage(function, done, task=task, lun=lun))
        return exchange.response

    async def ping(self) -> None:
        """NOP-Out and its answer. Raises PathLost."""
        await self._ask(self.session.ping)

    async def logout(self) -> None:
        """Log out and close, within `logout_timeout`; never raises for a peer that does not play along: the connection is closed then."""
        if self.session.state in (State.LOGGED_IN, State.DRAINING):
            self.session.logout(self._logged_out)
            self.kick()
        with trio.move_on_after(self.timing.logout_timeout, shield=True):
            await self.closed.wait()
        self.fail(PathLost(f"{self.portal} did not answer the logout within {self.timing.logout_timeout:g} s"))

    def _logged_out(self, exchange: Exchange) -> None:
        """Close at once, within the delivery of the answer: targets close theirs right behind it, which is no failure then."""
        if exchange.error is not None:
            self.fail(PathLost(f"{self.portal} did not take the logout: {exchange.error}"))
        elif not self.closed.is_set():
            self._end(PathLost(f"the session to {self.portal} has been logged out"))
            self.error = None
            self.time2wait = float(min(exchange.time2wait, LONGEST_WAIT))

    def hasten(self) -> None:
        """The end is near: find out soon whether the target still answers."""
        self._sweeper.hasten()

    async def watch(self) -> None:
        """Keep alive and keep deadlines until the connection ends: NOP-Out after silence, ABORT TASK for what takes too long."""
        while not self.closed.is_set():
            with trio.move_on_after(SWEEP_SECONDS):
                await self.closed.wait()
            if not self.closed.is_set():
                self._plane.at_batch_end(self, self._sweep)  # Guarded: what raises ends the connection, not its keep-alive alone.

    def _sweep(self) -> None:
        self._sweeper.sweep()
        self.kick()

    def leave(self, why: str, seconds: float) -> None:
        """Take no more tasks, let the open ones end within `seconds`, log out; once, or a target that repeats itself fills the nursery."""
        if self.leaving:
            return
        self.leaving = True
        self.session.drain()
        if self.on_leaving is not None:
            self.on_leaving()
        self._plane.start_soon(self._leave, why, seconds)

    async def _leave(self, why: str, seconds: float) -> None:
        with trio.move_on_after(max(1.0, seconds - 1)):
            while True:
                if not self.session.open_tasks or self.closed.is_set():
                    break
                await trio.sleep(0.02)
        await self.logout()
        self.error = self.error or PathLost(why)

    async def _ask(self, send: Callable[[Callable[[Exchange], None]], None]) -> Exchange:
        finished = trio.Event()
        answers: list[Exchange] = []

        def done(exchange: Exchange) -> None:
            answers.append(exchange)
            finished.set()

        send(done)
        self.kick()
        await finished.wait()
        error = answers[0].error
        if error is not None:
            raise error
        return answers[0]

    def __repr__(self) -> str:
        return f"<Connection {self.portal} {self.session!r} {'closed' if self.closed.is_set() else 'open'}>"
