"""A network between initiator and target that fails to order: now, or at an exact byte of what goes one way."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, IntEnum

import trio

RESET = struct.pack("ii", 1, 0)
PIECE = 65536


class Way(IntEnum):
    """A direction."""

    TO_TARGET = 0
    TO_INITIATOR = 1


class Fault(Enum):
    """What happens at the byte."""

    RESET = "reset"
    """RST to both."""
    CLIENT_RESET = "client reset"
    """RST to the initiator alone: the target knows nothing, and the rest of the bytes can be delivered late (`heal`)."""
    HALF_CLOSE = "half-close"
    """FIN this way; the other way stays open."""
    BLACK_HOLE = "black hole"
    """Nothing more either way, until `heal` delivers it."""
    STALL = "stall"
    """The same this way alone."""
    CORRUPT = "corrupt"
    """One bit of it is turned over."""


class Line:
    """One connection through the relay."""

    def __init__(self, client: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        self.ends = {Way.TO_INITIATOR: client, Way.TO_TARGET: target}
        self.half_closed: set[Way] = set()
        self.client_gone = False
        self.gate: trio.Event | None = None

    def reset(self) -> None:
        """RST to both ends."""
        for end in self.ends.values():
            _reset(end)


def _reset(end: trio.socket.SocketType) -> None:
    if end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.close()


class Relay:
    """From `portal` to 127.0.0.1:`port`. `fired` is set when an armed fault has happened; `counts` is bytes that went each way."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.portal = ""
        self.counts = [0, 0]
        self.fired = trio.Event()
        self._armed: tuple[Way, int, Fault] | None = None
        self._gates: list[trio.Event | None] = [None, None]
        self._lines: set[Line] = set()
        self._listener: trio.socket.SocketType | None = None
        self._address = ("127.0.0.1", 0)
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listen for the length of the block."""
        async with trio.open_nursery() as self._nursery:
            await self.accept()
            self.portal = f"127.0.0.1:{self._address[1]}"
            try:
                yield self
            finally:
                self.refuse()
                self.reset()
                self._nursery.cancel_scope.cancel()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._lines)

    def arm(self, way: Way, after: int, fault: Fault) -> None:
        """Have `fault` happen to byte `after` of those that go this way from now on."""
        self.fired = trio.Event()
        self._armed = way, self.counts[way] + after, fault

    def disarm(self) -> None:
        """Nothing happens after all."""
        self._armed = None

    def reset(self) -> None:
        """RST to both ends of every connection."""
        for line in list(self._lines):
            line.reset()
        self._lines.clear()

    def half_close(self, way: Way = Way.TO_INITIATOR) -> None:
        """FIN one way on every connection."""
        for line in self._lines:
            self._half_close(line, way)

    def stall(self, way: Way) -> None:
        """Keep what goes one way, until `heal`."""
        if self._gates[way] is None:
            self._gates[way] = trio.Event()

    def black_hole(self) -> None:
        """Keep what goes either way."""
        for way in Way:
            self.stall(way)

    def heal(self) -> None:
        """Let everything through again, and deliver what was kept."""
        for line in self._lines:
            if line.gate is not None:
                line.gate.set()
                line.gate = None
        for way, gate in enumerate(self._gates):
            if gate is not None:
                gate.set()
                self._gates[way] = None

    def refuse(self) -> None:
        """New connections are refused, until `accept`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """New connections are taken, at the same port as ever."""
        if self._listener is not None:
            return
        listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listener.bind(self._address)
        listener.listen(64)
        self._address = listener.getsockname()
        self._listener = listener
        self._nursery.start_soon(self._listen, listener)

    async def _listen(self, listener: trio.socket.SocketType) -> None:
        while True:
            try:
                client, _ = await listener.accept()
            except (OSError, trio.ClosedResourceError):
                return
            self._nursery.start_soon(self._connect, client)

    async def _connect(self, client: trio.socket.SocketType) -> None:
        target = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with client, target:
            try:
                await target.connect(("127.0.0.1", self.port))
            except OSError:
                _reset(client)
                return
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = Line(client, target)
            self._lines.add(line)
            async with trio.open_nursery() as nursery:
                for way in Way:
                    nursery.start_soon(self._pump, line, way)
            self._lines.discard(line)

    async def _pump(self, line: Line, way: Way) -> None:
        source, sink = line.ends[Way(1 - way)], line.ends[way]
        try:
            while data := await source.recv(PIECE):
                await self._open(line, way)
                data = await self._touch(line, way, data)
                if way not in line.half_closed:
                    await _send(sink, data)
            await self._open(line, way)
            self._half_close(line, way)
        except (OSError, trio.ClosedResourceError):
            if not (line.client_gone and way is Way.TO_INITIATOR):
                line.reset()

    async def _open(self, line: Line, way: Way) -> None:
        """Wait until bytes go through this way."""
        while gates := [gate for gate in (self._gates[way], line.gate) if gate is not None]:
            await gates[0].wait()

    def _half_close(self, line: Line, way: Way) -> None:
        if way not in line.half_closed and line.ends[way].fileno() >= 0:
            line.half_closed.add(way)
            try:
                line.ends[way].shutdown(socket.SHUT_WR)
            except OSError:
                line.reset()

    async def _touch(self, line: Line, way: Way, data: bytes) -> bytes:
        """Count, and let the armed fault happen at its byte; what is to be sent on after it."""
        before = self.counts[way]
        self.counts[way] += len(data)
        if self._armed is None or self._armed[0] is not way or self.counts[way] <= self._armed[1]:
            return data
        (_, at, fault), self._armed = self._armed, None
        cut = max(0, at - before)
        self.fired.set()
        if fault is Fault.CORRUPT:
            return data[:cut] + bytes((data[cut] ^ 0x10,)) + data[cut + 1 :]
        await _send(line.ends[way], data[:cut])
        if fault is Fault.RESET:
            line.reset()
        elif fault is Fault.HALF_CLOSE:
            self._half_close(line, way)
        elif fault is Fault.CLIENT_RESET:
            line.gate = trio.Event()
            line.client_gone = True
            _reset(line.ends[Way.TO_INITIATOR])
        elif fault is Fault.STALL:
            self.stall(way)
        else:
            self.black_hole()
        await self._open(line, way)
        return data[cut:]


async def _send(sink: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await sink.send(view) :]
