"""Peers that misbehave, as TCP servers in a thread: scripted ones, and a proxy that spoils what an honest target answers.

The proxy knows as much of RFC 7143 as it takes to find where a PDU ends: 48 bytes of header, AHS, padded data, and digests once the
login is over.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LOGIN_RESPONSE, TEXT_RESPONSE, SCSI_RESPONSE, DATA_IN, LOGOUT_RESPONSE = 0x23, 0x24, 0x21, 0x25, 0x26
IDLE = 20.0  # seconds until a thread gives up: no test waits that long

Script = Callable[[socket.socket], None]
Spoil = Callable[[bytearray], bytes]


@contextmanager
def server(script: Script) -> Iterator[str]:
    """A server that runs `script` on each connection, one after another; the portal it listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = threading.Event()

        def serve() -> None:
            while not stopping.is_set():
                connection, _ = listener.accept()
                if stopping.is_set():
                    connection.close()
                    return
                with connection, suppress(OSError):
                    connection.settimeout(IDLE)
                    script(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopping.set()
            with socket.create_connection(listener.getsockname()):
                thread.join(IDLE)
            assert not thread.is_alive()


def silent(connection: socket.socket) -> None:
    """Listen, and say nothing."""
    while connection.recv(65536):
        pass


def closing(connection: socket.socket) -> None:
    """Hear the first words and hang up."""
    connection.recv(65536)


def saying(data: bytes) -> Script:
    """Answer the first words with these bytes, and stay."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(data)
        silent(connection)

    return script


def _exactly(upstream: socket.socket, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        part = upstream.recv(count - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def _next_pdu(upstream: socket.socket, digests: bool) -> bytearray:
    """One PDU with everything that belongs to it."""
    pdu = _exactly(upstream, 48)
    length = int.from_bytes(pdu[5:8], "big")
    rest = pdu[4] * 4 + (4 if digests else 0) + (length + -length % 4 + (4 if digests else 0) if length else 0)
    return pdu + _exactly(upstream, rest)


def spoiling(portal: str, spoil: Spoil = bytes, digests: bool = False, limit: float = math.inf) -> Script:
    """Between an initiator and the target at `portal`: each answer goes through `spoil`.

    After `limit` bytes of answers the connection is closed. `digests`: both digests are on after the login.
    """

    def script(connection: socket.socket) -> None:
        host, _, port = portal.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=IDLE) as upstream:
            pump = threading.Thread(target=_pump, args=(connection, upstream), daemon=True)
            pump.start()
            with suppress(OSError):
                full_feature, left = False, limit
                while left > 0:
                    pdu = _next_pdu(upstream, digests and full_feature)
                    # The last answer of a login (T bit, next stage 3) is the last one without digests.
                    full_feature = full_feature or (pdu[0] == LOGIN_RESPONSE and pdu[1] & 0x83 == 0x83)
                    spoiled = spoil(pdu)
                    connection.sendall(spoiled[: int(min(left, len(spoiled)))])
                    left -= len(spoiled)
            for one in (connection, upstream):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            pump.join(IDLE)

    return script


def _pump(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def only(opcode: int, change: Callable[[bytearray], bytes]) -> Spoil:
    """Change the answers of one opcode, leave the others."""

    def spoil(pdu: bytearray) -> bytes:
        return change(pdu) if pdu[0] == opcode else bytes(pdu)

    return spoil
