"""One client of the NBD server on the plane: its socket, from the greeting to the end (NBD protocol).

Theory of operation. `ready` reads as much as one turn may, lets the handshake or the session take it, and at the end of the plane's batch
`_flush` sends all replies of the batch with one sendmsg. The turn of a client that has more to say ends after a few receives or requests;
its next one comes with the next poll (`Server.next_turn`), behind everybody who is ready by then.

A client is not read from while its session is parked: because of its own limits until it takes its replies, because of everybody's memory
until the server gives it a `turn`. Whatever goes wrong here, bytes or a bug, ends this client and nothing else.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from isblk.errors import IsblkError, ProtocolError
from isblk.export.nbdhandshake import Handshake, Phase
from isblk.export.nbdsession import Session
from isblk.export.nbdtls import TlsSocket
from isblk.link.plane import WRITABLE, Plane

RECEIVES: Final = 8
"""Receives of one turn."""
SENDS: Final = 16
"""Sends of one turn: a client that reads as fast as we send would never let it end."""
PIECES: Final = 1024
"""Buffers one sendmsg takes (UIO_MAXIOV)."""
SEND_BUFFER: Final = 1 << 20
"""Bytes of replies that the kernel may hold for a client; it gives no more than net.core.wmem_max, doubled."""
HANDSHAKE_SECONDS: Final = 10.0
"""How long a client may take to choose an export, TLS included."""
HANDSHAKE_CHUNK: Final = 4096
"""Bytes received at a time before an export is chosen."""

_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """What the server hands over when an export has been chosen: the session, and how to find out what is allocated."""

    session: Session
    block_status: Callable[[Session, int, int, int, bool], None]


class Server(Protocol):
    """What a client needs of its server."""

    plane: Plane
    context: ssl.SSLContext | None

    def open_export(self, client: Client) -> Opened:
        """A session on the export that was agreed on."""

    def next_turn(self, client: Client) -> None:
        """Call `client.turn` at the next poll."""

    def wait_for_memory(self, client: Client) -> None:
        """Call `client.turn` when memory has come back."""

    def gone(self, client: Client) -> None:
        """The client has ended."""


class Client:
    """A connected client; `address` for people, and `why` it has gone when it has."""

    def __init__(self, server: Server, sock: socket.socket, address: str, handshake: Handshake) -> None:
        self.address = address
        self.handshake = handshake
        self.session: Session | None = None
        self.ended = False
        self.why = ""
        self.leaving = False
        self.stuck = False
        self.deadline = trio.current_time() + HANDSHAKE_SECONDS
        self.bytes_received = 0
        self.bytes_sent = 0
        self.receives = 0
        self.sends = 0
        self._server = server
        self._plane = server.plane
        self._socket = sock
        self._fileno = sock.fileno()
        self._tls: TlsSocket | None = None
        self._recv_into: Callable[[memoryview], int] = sock.recv_into
        self._sendmsg: Callable[[Sequence[bytes | memoryview]], int] = sock.sendmsg
        self._turn: Callable[[], None] = self._shake_hands
        self._opened: Opened | None = None
        self._prefix: list[bytes] = []
        self._unsent: Sequence[bytes | memoryview] = ()
        self._lent = False
        self._dirty = False
        self._yielding = False
        self._watched = (True, False)
        with suppress(OSError):  # Without it a batch of large replies goes in parts, and the target idles while the client reads.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._plane.register(self._fileno, self)
        self._say()
        if handshake.phase is Phase.TRANSMISSION:
            self._open()

    @property
    def said_goodbye(self) -> bool:
        """Whether it has sent DISC, the orderly end."""
        return self.session is not None and self.session.disconnecting

    @property
    def tls_version(self) -> str:
        """'TLSv1.3', or 'none'."""
        return "none" if self._tls is None else self._tls.version

    # ------------------------------------------------------------------ the plane's calls

    def ready(self, events: int) -> None:
        """The socket is readable, writable or broken."""
        if events & WRITABLE and self.stuck:
            self._flush()
        if self.ended:
            return
        if self._watched[0]:
            self._turn()
            if not self.ended:
                self._watch()
        elif events & _GONE:
            self.end("it closed the connection")

    def turn(self) -> None:
        """Go on where a turn ended, or where something was in the way. An exception of it ends this client."""
        self._yielding = False
        if self.ended:
            return
        try:
            self._turn()
            if not self.ended:
                self._watch()
        except Exception as error:
            self.broken(error)

    def _yield(self) -> None:
        if not self._yielding:
            self._yielding = True
            self._server.next_turn(self)

    def broken(self, error: Exception) -> None:
        """What goes wrong while handling a client ends that client."""
        if not isinstance(error, (IsblkError, OSError)):
            _log.error("a bug: serving the NBD client %s failed, so it was disconnected; please report this", self.address, exc_info=error)
        self.end(str(error))

    def shut_down(self) -> None:
        """The server is being closed: answer what is in flight, then end."""
        self.handshake.closing = True
        if self.session is None:
            self.end("the server is shutting down")
            return
        self.session.closing = True
        self._leave()

    def end(self, why: str) -> None:
        """Close now; harmless when it has ended. Requests in flight keep their buffers until the device is done with them."""
        if self.ended:
            return
        self.ended = True
        self.why = why
        _log.info("NBD client %s has gone: %s", self.address, why)
        self._plane.unregister(self._fileno)
        if self._tls is not None:
            self._tls.close_notify()
        self._socket.close()
        self._unsent = ()
        if self.session is not None:
            self.session.end()
        self._server.gone(self)

    def _leave(self) -> None:
        """Nothing more is read; end when what was read has been answered."""
        self.leaving = True
        self._watch()
        if not self._dirty and not self.stuck:
            self._end_when_idle()

    def _end_when_idle(self) -> None:
        session = self.session
        if session is None or (session.idle and not session.more and not session.parked):
            self.end("it is done")

    def _watch(self) -> None:
        """Reading while something can be done with what comes; writing while something waits to be sent."""
        session = self.session
        free = not self.stuck if session is None else not session.parked
        wanted = (free and not self.leaving, self.stuck)
        if wanted != self._watched:
            self._watched = wanted
            self._plane.watch(self._fileno, reading=wanted[0], writing=wanted[1])

    # ------------------------------------------------------------------ turns: handshake, TLS, transmission

    def _say(self) -> None:
        self._prefix += self.handshake.outgoing()
        self.output()

    def _shake_hands(self) -> None:
        handshake, buffer = self.handshake, memoryview(bytearray(HANDSHAKE_CHUNK))
        for _ in range(RECEIVES):
            if self.stuck:
                return
            try:
                count = self._recv_into(buffer)
            except BlockingIOError:
                return
            if not count:
                self.end("it left during the handshake")
                return
            self.bytes_received += count
            handshake.receive(buffer[:count])
            self._prefix += handshake.outgoing()
            self._flush()
            if self._after_options():
                return
        self._yield()

    def _after_options(self) -> bool:
        """Act on what the client has chosen; True when that ends the turn."""
        phase = self.handshake.phase
        if self.ended or phase is Phase.ENDED:
            self._leave()
        elif phase is Phase.STARTTLS:
            self._start_tls()
        elif phase is Phase.TRANSMISSION:
            self._open()
        return self.ended or self._turn != self._shake_hands or self.leaving

    def _start_tls(self) -> None:
        if self.stuck:
            raise ProtocolError("a client does not read the answer to STARTTLS")  # 20 bytes that no socket buffer is too small for
        if self._server.context is None:
            raise AssertionError("STARTTLS was acknowledged without a context")
        self._tls = TlsSocket(self._socket, self._server.context)
        self._recv_into, self._sendmsg = self._tls.recv_into, self._tls.sendmsg
        self._turn = self._secure
        self._secure()

    def _secure(self) -> None:
        tls = self._tls
        assert tls is not None
        if tls.handshake():
            self.handshake.secured()
            self._turn = self._shake_hands
            self._yield()  # The first option may be in the same record; no event would tell.
        self._set_stuck(tls.pending)

    def _open(self) -> None:
        self._opened = self._server.open_export(self)
        self.session = session = self._opened.session
        self._turn = self._transmit
        rest = self.handshake.rest
        if rest:
            session.receive_buffer()[: len(rest)] = rest
            session.received(len(rest))
        self._after_take(session)
        self._yield()  # TLS may have decrypted more than was taken.

    def _transmit(self) -> None:
        """Hot. One turn of requests."""
        session, recv_into = self.session, self._recv_into
        assert session is not None
        if session.parked or session.more:
            session.take()
        if not (session.parked or session.more or session.disconnecting or self.leaving):
            for _ in range(RECEIVES):
                buffer = session.receive_buffer()
                try:
                    count = recv_into(buffer)
                except BlockingIOError:
                    break
                if not count:
                    self._leave()
                    break
                self.bytes_received += count
                self.receives += 1
                session.received(count)
                if count < len(buffer) or session.parked or session.more or session.disconnecting:
                    break
            else:
                self._yield()  # What TLS has decrypted already is no event for epoll.
        self._after_take(session)

    def _after_take(self, session: Session) -> None:
        session.device.kick()
        if self.ended:
            return
        if session.disconnecting and not self.leaving:
            self._leave()
        elif session.more:
            self._yield()
        elif session.parked and session.short:
            self._server.wait_for_memory(self)

    # ------------------------------------------------------------------ the session's host

    def output(self) -> None:
        """Send at the end of the batch."""
        if not self._dirty and not self.stuck and not self.ended:
            self._dirty = True
            self._plane.at_batch_end(self, self._flush)

    def block_status(self, cookie: int, offset: int, length: int, one: bool) -> None:
        """Ask beside the hot path."""
        assert self._opened is not None
        self._opened.block_status(self._opened.session, cookie, offset, length, one)

    # ------------------------------------------------------------------ sending

    def _flush(self) -> None:
        """Send what is there, one sendmsg for up to PIECES replies, bounded; the rest waits for the socket to be writable."""
        if self.ended:
            return
        stuck = True
        for _ in range(SENDS):
            if not self._unsent and not self._refill():
                stuck = self._tls is not None and self._tls.pending
                if not stuck:
                    break
            unsent = self._unsent
            try:
                sent = self._sendmsg(unsent if len(unsent) <= PIECES else unsent[:PIECES])
            except BlockingIOError:
                break
            self.bytes_sent += sent
            self.sends += 1
            self._unsent = _behind(unsent, sent)
        self._dirty = False
        self._set_stuck(stuck)
        if self.leaving and not stuck:
            self._end_when_idle()

    def _refill(self) -> bool:
        """The next replies to send, when all before have been sent."""
        session = self.session
        if self._prefix:
            self._unsent, self._prefix = self._prefix, []
        elif session is not None:
            if self._lent:
                session.sent()
                if session.parked and not session.short:
                    self._yield()
            self._unsent = session.outgoing()
            self._lent = bool(self._unsent)
        return bool(self._unsent)

    def _set_stuck(self, stuck: bool) -> None:
        if stuck is not self.stuck:
            self.stuck = stuck
            self._watch()


def _behind(buffers: Sequence[bytes | memoryview], sent: int) -> Sequence[bytes | memoryview]:
    """What is left when `sent` bytes of it have gone."""
    if sent == sum(map(len, buffers)):
        return ()
    position = 0
    while sent >= len(buffers[position]):
        sent -= len(buffers[position])
        position += 1
    return [memoryview(buffers[position])[sent:], *buffers[position + 1 :]]


def negotiated(client: Client) -> dict[str, bool | str]:
    """What a client and the server agreed on, for status."""
    agreed = client.handshake.agreed
    tls = client.tls_version
    if agreed is None:
        return {"phase": client.handshake.phase.value, "tls": tls}
    return {"phase": "transmission", "replies": agreed.replies.name, "allocation": agreed.allocation, "tls": tls}
