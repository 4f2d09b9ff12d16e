"""The target's listeners: several portals, several portal groups, one identity (trio).

Theory of operation: one trio task a connection, and no await per PDU. A round receives what is there (bounded), lets the core act on it,
and sends everything that came of it with one sendmsg; only a round without progress waits. The core is plain functions that run between
two awaits, so connections share the node without locks. Whoever changes a connection from outside (a test, another connection's reset,
reinstatement) calls `wake`, which ends the wait.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from isblk.errors import UsageError
from isblk.target.config import PortalConfig, TargetConfig
from isblk.target.core import Connection
from isblk.target.sessions import Node

log = logging.getLogger(__name__)

LOGIN_TIMEOUT = 30.0
"""Seconds for an initiator to log in."""
CLOSE_TIMEOUT = 1.0
"""Seconds for an initiator to read our last words before the connection is cut."""
_ROUND_BYTES = 1 << 20
_ROUNDS_WITHOUT_YIELD = 8
_MAX_PIECES = 1024

Buffers = list[bytes | memoryview]


class Server:
    """A running target. `portals` are 'host:port' as bound, in the order of the configuration."""

    def __init__(self, config: TargetConfig, node: Node, listeners: list[socket.socket]) -> None:
        self.config = config
        self.node = node
        self.connections: set[Connection] = set()
        self._listeners = listeners
        node.addresses = [listener.getsockname()[:2] for listener in listeners]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def portals(self) -> list[str]:
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.node.addresses]

    @property
    def sessions(self) -> int:
        """Sessions logged in now, discovery sessions included."""
        return len(self.node.sessions)

    def drop_all(self) -> None:
        """Cut every connection without a word, as a network would."""
        for connection in list(self.connections):
            connection.drop("dropped by the target")

    def crash_cache(self) -> None:
        """Lose power: connections and everything that was not synchronized are gone; the listeners are back at once."""
        self.drop_all()
        self.node.crash()

    def release(self, count: int | None = None) -> int:
        """Let commands run that `node.hold` kept."""
        return self.node.release(count)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for listener, portal in zip(self._listeners, self.config.portals, strict=True):
                nursery.start_soon(self._listen, listener, portal, nursery)

    async def _listen(self, listener: socket.socket, portal: PortalConfig, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                log.error("cannot accept a connection: %s; close some or raise the limit of open files", error.strerror)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._serve, accepted, portal)

    async def _serve(self, accepted: socket.socket, portal: PortalConfig) -> None:
        """One connection from accept to close; whatever goes wrong in it stays in it."""
        with accepted:
            try:
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # An initiator that vanished without a word is noticed in the end, and its session with it.
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection = Connection(self.node, portal, accepted.getsockname()[0])
            except OSError:
                return  # It was gone before it was looked at.
            self.connections.add(connection)
            try:
                await _Shell(accepted, connection).run()
            except Exception:
                log.exception("a bug ended a connection of the target")
            finally:
                connection.lost()
                self.connections.discard(connection)
                log.info("connection closed: %s", connection.why)

    def __repr__(self) -> str:
        return f"<Server {self.name} at {', '.join(self.portals)}, {self.sessions} sessions>"


class _Shell:
    """Moves the bytes of one connection."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self._socket = sock
        self._connection = connection
        self._login_deadline = trio.current_time() + LOGIN_TIMEOUT
        self._scope: trio.CancelScope | None = None
        self._woken = False
        self._unsent: Buffers = []
        connection.wake = self._wake

    async def run(self) -> None:
        connection, rounds = self._connection, 0
        while not connection.dropped:
            received = 0 if connection.closing else self._receive()
            if received < 0:
                connection.lost()
                return
            await self._flush()
            if connection.closing:
                await self._close()
                return
            rounds += 1
            if not received and not self._woken:
                rounds = 0
                await self._wait(readable=True)
            elif rounds >= _ROUNDS_WITHOUT_YIELD:
                rounds = 0
                await trio.lowlevel.checkpoint()
            self._woken = False
            if connection.session is None and trio.current_time() >= self._login_deadline:
                connection.lost(f"no login within {LOGIN_TIMEOUT:.0f} s")

    def _receive(self) -> int:
        """Take in what is there, up to a bound; its bytes, 0 for nothing, -1 for the end of the stream."""
        total = 0
        while total < _ROUND_BYTES and not self._connection.closing and not self._connection.dropped:
            buffer = self._connection.receive_buffer()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError:
                return -1
            if count == 0:
                return -1
            total += count
            self._connection.received(count)
            if count < len(buffer):
                break
        return total

    async def _flush(self) -> None:
        """Send until the core has nothing more to say."""
        while not self._connection.dropped:
            self._unsent = self._unsent or self._connection.outgoing()
            if not self._unsent:
                return
            try:
                self._unsent = _send(self._socket, self._unsent)
            except OSError:
                self._connection.lost()
                return
            if self._unsent:
                await self._wait(readable=False)

    async def _wait(self, readable: bool) -> None:
        """Until the socket is ready, or `wake`, or the time to log in is over."""
        deadline = math.inf if self._connection.session is not None else self._login_deadline
        with trio.CancelScope(deadline=deadline) as self._scope:
            if readable:
                await trio.lowlevel.wait_readable(self._socket)
            else:
                await trio.lowlevel.wait_writable(self._socket)
        self._scope = None
        if deadline <= trio.current_time() and not readable:
            self._connection.lost(f"no login within {LOGIN_TIMEOUT:.0f} s")

    async def _close(self) -> None:
        """Half-close, and read what still comes: closing at once would reset the connection under our last words."""
        self._connection.lost()
        with contextlib.suppress(OSError), trio.move_on_after(CLOSE_TIMEOUT):
            self._socket.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                if not self._socket.recv(65536):
                    return

    def _wake(self) -> None:
        self._woken = True
        if self._scope is not None:
            self._scope.cancel()


def _send(sock: socket.socket, buffers: Buffers) -> Buffers:
    """Send what the socket takes; what is left."""
    at = 0
    while at < len(buffers):
        try:
            count = sock.sendmsg(buffers[at : at + _MAX_PIECES])
        except BlockingIOError:
            break
        while at < len(buffers) and count >= len(buffers[at]):
            count -= len(buffers[at])
            at += 1
        if count:
            buffers[at] = memoryview(buffers[at])[count:]
    return buffers[at:]


async def _bind(portal: PortalConfig) -> socket.socket:
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"cannot listen on {portal.host}: {error.strerror}; give an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {portal.host}:{portal.port}: {error.strerror}; give a portal with a free port of this machine"
        ) from None
    return listener


@asynccontextmanager
async def running(config: TargetConfig) -> AsyncIterator[Server]:
    """A target that listens until the block ends; then every connection is cut and the disks are written back. Raises UsageError."""
    failure: Exception | None = None
    async with contextlib.AsyncExitStack() as stack:
        node = Node(config)
        stack.callback(node.units.close)
        listeners = [stack.enter_context(await _bind(portal)) for portal in config.portals]
        server = Server(config, node, listeners)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server._run)
            try:
                yield server
            except Exception as error:
                # Raised below: the nursery would wrap the caller's own exception in a group.
                failure = error
            finally:
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def serve(config: TargetConfig, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> None:
    """Run a target until cancelled; `task_status` gets the Server once it listens (for `nursery.start`). Raises UsageError."""
    async with running(config) as server:
        task_status.started(server)
        await trio.sleep_forever()
