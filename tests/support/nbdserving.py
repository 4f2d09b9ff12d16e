"""An NbdServer on a plane of its own over devices in memory, and clients of it, for tests of the server without a target."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from isblk.block.gate import Gate
from isblk.export.nbd import Export, NbdServer
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from support.memorydevice import MemoryDevice
from support.rawnbd import RawClient

SIZE = 1 << 20


class Serving:
    """`server` with the exports "0", "1", ...; `connect` makes clients, which are closed at the end."""

    def __init__(self, plane: Plane, server: NbdServer, path: Path) -> None:
        self.plane = plane
        self.server = server
        self.path = path
        self.streams: list[trio.SocketStream] = []

    async def connect(self) -> RawClient:
        sock = trio.socket.socket(socket.AF_UNIX)
        try:
            await sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        stream = trio.SocketStream(sock)
        self.streams.append(stream)
        return RawClient(stream)

    async def client(self, *options: bytes, name: bytes = b"") -> RawClient:
        """A client in transmission."""
        client = await self.connect()
        await client.begin(name, *options)
        return client


def exports_of(*devices: MemoryDevice, **options: Any) -> list[Export]:
    return [Export(str(number), f"disk {number}", Gate(device), number, **options) for number, device in enumerate(devices)]


@asynccontextmanager
async def serving(tmp_path: Path, *devices: MemoryDevice, exports: list[Export] | None = None, **options: Any) -> AsyncIterator[Serving]:
    """A server at a unix socket, ended with everything that is still connected at the end of the block."""
    found = exports or exports_of(*(devices or (MemoryDevice(SIZE, block_size=1),)))
    path = tmp_path / "nbd.sock"
    async with running_plane() as plane:
        server = NbdServer(plane, found, **options)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(64)
        server.add_listener(listener)
        here = Serving(plane, server, path)
        try:
            yield here
        finally:
            with trio.CancelScope(shield=True):
                for stream in here.streams:
                    await stream.aclose()
                server.abort()


async def until(condition: Callable[[], object]) -> None:
    """Return when the condition holds; the test's deadline is the limit."""
    while not condition():  # noqa: ASYNC110  # what is waited for has no event
        await trio.sleep(0.001)


async def settled(seconds: float = 0.02) -> None:
    """Let the plane do what there is to do: nothing signals that nothing more will happen."""
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    await trio.sleep(seconds)
