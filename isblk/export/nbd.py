"""The NBD server: exports, listeners and clients on the plane (NBD protocol; the wire is nbdwire's, one client nbdclient's).

Memory is one budget for all clients. When it is used up, clients wait in order; a client that holds memory without taking its replies, or
without sending the data it announced, is ended after STALL_SECONDS, but only when others wait for what it holds.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from isblk.block.request import Device, Geometry, Provisioned
from isblk.errors import IsblkError
from isblk.export.nbdclient import Client, Opened, negotiated
from isblk.export.nbdhandshake import PREFERRED_LIMIT, Handshake, Offer, Tls
from isblk.export.nbdmemory import Memory
from isblk.export.nbdsession import Session
from isblk.export.nbdtls import TlsSettings
from isblk.export.nbdwire import TransmissionFlag, allocation
from isblk.link.plane import Plane

MEMORY = 256 << 20
"""Bytes of data in flight, of all clients together."""
MAX_CONNECTIONS = 128
ACCEPTS = 16
"""Clients accepted in one turn."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting after the system refused: out of descriptors, which no retry at once would change."""
TICK_SECONDS = 1.0
STALL_SECONDS = 10.0
STALL_BYTES = 64 << 10
"""Bytes that a client must move between two ticks not to count as stalled."""
STATUS_QUESTIONS = 8
"""Questions about allocation that are asked at once: they run beside the data and must not crowd it out."""

_log = logging.getLogger(__name__)


@dataclass
class Export:
    """One disk as clients see it; found by `name`, by `number` and by `wwid`.

    `gate` is the Device that every request goes to. `lba_status(offset, length)` in bytes, whole blocks, tells what is provisioned
    (block.mapping.Extent fits); without it everything counts as allocated.
    """

    name: str
    description: str
    gate: Device
    number: int
    rotational: bool = False
    wwid: str | None = None
    lba_status: Callable[[int, int], Awaitable[Sequence[Provisioned]]] | None = None

    def offer(self, read_only: bool) -> Offer:
        """How the handshake shows it now; a resize is seen by whoever connects after it."""
        geometry = self.gate.geometry
        flags = transmission_flags(geometry, read_only=read_only or geometry.read_only, rotational=self.rotational)
        return Offer(self.name, self.description, geometry.size, flags, geometry.block_size, preferred_block(geometry))


def transmission_flags(geometry: Geometry, *, read_only: bool, rotational: bool) -> TransmissionFlag:
    """What is told of an export. Several connections are safe: all end at one gate, whose FLUSH covers everything acknowledged."""
    flag = TransmissionFlag
    flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.SEND_FUA | flag.CAN_MULTI_CONN | flag.SEND_CACHE
    if rotational:
        flags |= flag.ROTATIONAL
    if read_only:
        return flags | flag.READ_ONLY
    flags |= flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO
    return flags | flag.SEND_TRIM if geometry.can_trim else flags


def preferred_block(geometry: Geometry) -> int:
    """Bytes: the optimal transfer where that is a power of two and not out of all proportion, else the physical block; at least 4096."""
    smallest = max(4096, geometry.block_size, geometry.physical_block_size)
    optimal = geometry.optimal_transfer
    fits = smallest <= optimal <= PREFERRED_LIMIT and not optimal & (optimal - 1)
    return optimal if fits else smallest


@dataclass(frozen=True)
class ClientStatus:
    """One client for `isblk status`; `export` None until one is chosen."""

    address: str
    export: str | None
    negotiated: dict[str, bool | str]
    counters: dict[str, int]


class NbdServer:
    """Exports served to whoever connects. `last_client_gone` is set when the last client that had chosen an export has gone; `on_opened` is
    called for each client that has chosen an export, `on_gone` for each that goes.

    Everything here is called on the plane's thread, between two checkpoints. Raises UsageError for TLS files that cannot be used.
    """

    def __init__(
        self,
        plane: Plane,
        exports: list[Export],
        tls: TlsSettings | None = None,
        read_only: bool = False,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        if not exports:
            raise AssertionError("a server without exports")
        self.plane = plane
        self.exports = exports
        self.context = None if tls is None else tls.context()
        self.last_client_gone = trio.Event()
        self.on_opened: Callable[[Client, str], None] | None = None
        self.on_gone: Callable[[Client], None] | None = None
        self.accepted = 0
        self.refused = 0
        self.memory = Memory(MEMORY)
        self.memory.on_room = self._room
        self._tls = Tls.NONE if tls is None else Tls.REQUIRED if tls.required else Tls.OFFERED
        self._read_only = read_only
        self._max_connections = max_connections
        self._listeners: list[_Listener] = []
        self._clients: dict[Client, tuple[int, int]] = {}  # bytes moved at the last tick, ticks without
        self._waiting: deque[Client] = deque()
        self._closing = False
        self._empty = trio.Event()
        self._empty.set()
        self._ticking = False
        self._turns = _Turns(plane)
        self._questions = trio.CapacityLimiter(STATUS_QUESTIONS)

    # ------------------------------------------------------------------ control

    def add_listener(self, sock: socket.socket) -> None:
        """Accept on a socket that listens already; it is the server's from now on."""
        sock.setblocking(False)
        self._listeners.append(_Listener(self, sock))

    def close(self) -> None:
        """Stop accepting; each client ends as soon as its requests in flight are answered, and what it sends meanwhile is refused."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for client in list(self._clients):
            client.shut_down()

    def abort(self) -> None:
        """Stop accepting and end every client now."""
        self.close()
        for client in list(self._clients):
            client.end("the server has ended")

    async def drained(self) -> None:
        """Return when no client is connected. What they had in flight may outlive them: Gate.drained."""
        while self._clients:
            await self._empty.wait()

    @property
    def clients(self) -> list[ClientStatus]:
        """Who is connected now."""
        return [_status(client) for client in self._clients]

    # ------------------------------------------------------------------ the catalogue of the handshake

    def offers(self) -> Sequence[Offer]:
        """Every export, the default one first."""
        return [export.offer(self._read_only) for export in self.exports]

    def find(self, name: str) -> Offer | None:
        """By name, number or WWID; the empty name is the only or first."""
        export = self._export(name)
        return None if export is None else export.offer(self._read_only)

    def _export(self, name: str) -> Export | None:
        if not name:
            return self.exports[0]
        return next((each for each in self.exports if name in (each.name, str(each.number), each.wwid)), None)

    # ------------------------------------------------------------------ clients

    def accept(self, sock: socket.socket, address: str) -> None:
        """A client has connected."""
        if len(self._clients) >= self._max_connections:
            self.refused += 1
            _log.info("NBD client %s was turned away: %d are connected, which is the limit", address, self._max_connections)
            sock.close()
            return
        self.accepted += 1
        self._welcome(sock, address, Handshake(self, self._tls))

    def adopt(self, sock: socket.socket, address: str) -> None:
        """A client that uses the first export from its first byte on, with simple replies and no handshake: the kernel's (blockdevice.py).

        It is not counted against the limit, for who calls this has made the connection.
        """
        self._welcome(sock, address, Handshake.elsewhere(self, self.exports[0].name))

    def _welcome(self, sock: socket.socket, address: str, handshake: Handshake) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._empty.is_set():
            self._empty = trio.Event()
        client = Client(self, sock, address, handshake)
        if not client.ended:
            self._clients[client] = (0, 0)
            self._keep_ticking()

    def open_export(self, client: Client) -> Opened:
        """A session for the export that the handshake agreed on."""
        agreed = client.handshake.agreed
        export = None if agreed is None else self._export(agreed.export)
        if agreed is None or export is None:
            raise AssertionError("a handshake ended with an export that does not exist")
        _log.info("NBD client %s uses export %s, %s replies", client.address, export.name, agreed.replies.name)
        if self.on_opened is not None:
            self.on_opened(client, export.name)
        session = Session(export.gate, self.memory, client, agreed.replies, read_only=self._read_only, allocation=agreed.allocation)
        session.closing = self._closing
        return Opened(session, partial(self._block_status, export))

    def next_turn(self, client: Client) -> None:
        """At the next poll, behind everybody who is ready by then."""
        self._turns.append(client)

    def wait_for_memory(self, client: Client) -> None:
        """In the order of asking. What came back between its looking and its asking is told at once: nobody else would."""
        if client not in self._waiting:
            self._waiting.append(client)
        if not self.memory.short:
            self._room()

    def gone(self, client: Client) -> None:
        """A client has ended."""
        self._clients.pop(client, None)
        if client in self._waiting:
            self._waiting.remove(client)
        if not self._clients:
            self._empty.set()
            self._turns.close()
        if client.session is not None and not any(each.session is not None for each in self._clients):
            self.last_client_gone.set()
        if self.on_gone is not None:
            self.on_gone(client)

    def _room(self) -> None:
        """Memory has come back: everybody who waits may try, in order, at the next poll; who finds none waits again."""
        waiting, self._waiting = self._waiting, deque()
        for client in waiting:
            self.next_turn(client)

    def _wanted_by_others(self, client: Client) -> bool:
        return any(each is not client for each in self._waiting)

    def _keep_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.plane.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """End clients that take too long to choose, or that hold what others wait for; let go of memory that was not needed."""
        self._ticking = False
        self.memory.trim()
        now = trio.current_time()
        for client, (moved, idle) in list(self._clients.items()):
            if client.session is None:
                if now >= client.deadline:
                    client.end("it did not choose an export in time")
                continue
            total = client.bytes_received + client.bytes_sent
            holds = client.session.held and not client.session.in_flight and (client.stuck or client.session.landing)
            idle = idle + 1 if holds and self._wanted_by_others(client) and total - moved < STALL_BYTES else 0
            self._clients[client] = (total, idle)
            if idle * TICK_SECONDS >= STALL_SECONDS:
                client.end("it held memory that others wait for, without going on")
        if self._clients or self.memory.may_shrink:
            self._keep_ticking()

    # ------------------------------------------------------------------ allocation

    def _block_status(self, export: Export, session: Session, cookie: int, offset: int, length: int, one: bool) -> None:
        if export.lba_status is None:
            session.answer_status(cookie, offset, [(length, 0)])
        else:
            self.plane.start_soon(self._ask_status, export, session, cookie, offset, length, one)

    async def _ask_status(self, export: Export, session: Session, cookie: int, offset: int, length: int, one: bool) -> None:
        """GET LBA STATUS, beside the data; asked in whole physical blocks, which are whole blocks of every layer."""
        geometry, ask = export.gate.geometry, export.lba_status
        assert ask is not None
        block = max(1, geometry.physical_block_size)
        first = offset // block * block
        end = min(-(-(offset + length) // block) * block, geometry.size)
        try:
            async with self._questions:
                found = [] if session.ended else await ask(first, end - first)
            extents = allocation(found, offset, length, geometry.trim_reads_zero, one)
        except Exception as error:
            if not isinstance(error, IsblkError):
                _log.exception("finding out what is allocated failed")
            session.answer_error(cookie, offset, error)
        else:
            session.answer_status(cookie, offset, extents)


def _status(client: Client) -> ClientStatus:
    agreed, session = client.handshake.agreed, client.session
    counters = {
        "bytes_received": client.bytes_received,
        "bytes_sent": client.bytes_sent,
        "receives": client.receives,
        "sends": client.sends,
    }
    if session is not None:
        counters |= session.counters.as_dict() | {"open": session.open, "held": session.held}
    return ClientStatus(client.address, None if agreed is None else agreed.export, negotiated(client), counters)


class _Turns:
    """Clients whose next turn comes with the next poll: a descriptor of the plane that is readable while there are some.

    (Watching a client's own socket for writability was the alternative; it is not writable while the client has replies to read.)
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._clients: list[Client] = []
        self._fileno = -1

    def append(self, client: Client) -> None:
        """One more."""
        if self._fileno < 0:
            self._fileno = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._plane.register(self._fileno, self)
        if not self._clients:
            os.eventfd_write(self._fileno, 1)
        self._clients.append(client)

    def ready(self, events: int) -> None:
        """A turn for each of them."""
        os.eventfd_read(self._fileno)
        clients, self._clients = self._clients, []
        for client in clients:
            client.turn()

    def broken(self, error: Exception) -> None:
        """A bug."""
        _log.error("a bug: giving NBD clients their turns failed; please report this", exc_info=error)

    def close(self) -> None:
        """No client is left; the next one opens it again."""
        self._clients.clear()
        if self._fileno >= 0:
            self._plane.unregister(self._fileno)
            os.close(self._fileno)
            self._fileno = -1


class _Listener:
    """A listening socket on the plane."""

    def __init__(self, server: NbdServer, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._fileno = sock.fileno()
        self._closed = False
        server.plane.register(self._fileno, self)

    def ready(self, events: int) -> None:
        """Somebody connects."""
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._server.accept(sock, _address(sock))
            if self._closed:
                return

    def broken(self, error: Exception) -> None:
        """A bug: it goes on listening."""
        _log.error("a bug: accepting an NBD client failed; please report this", exc_info=error)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self._server.plane.unregister(self._fileno)
        self._socket.close()

    def _pause(self, error: OSError) -> None:
        _log.warning("cannot accept an NBD client: %s; trying again in %g s", error.strerror, ACCEPT_PAUSE)
        self._server.plane.watch(self._fileno, reading=False, writing=False)
        self._server.plane.call_later(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if not self._closed:
            self._server.plane.watch(self._fileno, reading=True, writing=False)


def _address(sock: socket.socket) -> str:
    """Who it is: host and port, or the process behind a unix socket."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"process {pid} of user {uid}"
        host, port = sock.getpeername()[:2]
    except OSError:
        return "unknown"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
