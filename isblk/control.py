"""The control socket as its users see it: what runs on this machine, asked by `isblk status` and told to stop by `isblk umount`.

Each daemon listens on RUN/<pid>.sock (0600 in a 0700 directory). A message is one line of JSON in UTF-8, of bounded length, in both
directions. Request: {"isblk": 1, "request": "status"}, or "stop", or "log" (the last lines that it logged), or {..., "request": "events",
"after": N, "wait": SECONDS}; some daemons know more (changing.py, supervisor/run.py). Answer: {"isblk": 1, "answer": {...}} or {"isblk": 1,
"error": "a sentence"}. The number is the version of
this schema: a side that does not know it says so and reads nothing else; within a version, keys are only added. Several requests may follow
each other on one connection.

This module is the client and what both sides share. It has plain blocking sockets with a deadline and no trio, which alone would double the
time `isblk status` takes to start; the server is controlserver.py.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isblk.errors import IsblkError, ProtocolError, Unreachable, UsageError

VERSION = 1

MESSAGE_LIMIT = 1 << 20
"""Bytes of an answer: a status with some hundred paths is far below it."""

REQUEST_LIMIT = 1 << 16
"""Bytes of a request: one may name many places."""

DEADLINE = 5.0
"""Seconds for one daemon's answer: a daemon answers between two requests, so a slower one is stopped or swapped out."""

ASKED_AT_ONCE = 16
"""Daemons."""

STOP_DEADLINE = 60.0
"""Seconds for a daemon to end: queued writes, SYNCHRONIZE CACHE, logout."""

CREDENTIALS = struct.Struct("iII")
"""struct ucred of unix(7): pid, uid, gid."""

_ADDRESS_LIMIT = 107  # sun_path of unix(7), without the final NUL


@dataclass(frozen=True)
class Daemon:
    """A daemon's control socket; `pid` from its name."""

    path: Path
    pid: int


def encode(message: dict[str, Any]) -> bytes:
    """One line with the schema's version."""
    return json.dumps({"isblk": VERSION, **message}, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message in a line. Raises ProtocolError for anything but a JSON object of our version."""
    try:
        message = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ProtocolError("a control message is not a line of JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a control message is not a JSON object")
    if message.get("isblk") != VERSION:
        raise ProtocolError(f"a control message of schema {message.get('isblk')!r:.40}, where this isblk speaks {VERSION}")
    return message


def socket_path(directory: Path, pid: int | None = None) -> Path:
    """Where the daemon with this process id (default: this one) listens."""
    return directory / f"{os.getpid() if pid is None else pid}.sock"


def failure_note(directory: Path, pid: int) -> Path:
    """Where a daemon writes why its data could not be written back, for `isblk umount` to tell."""
    return directory / f"{pid}.failed"


@contextmanager
def address(path: Path) -> Iterator[str]:
    """What bind(2) and connect(2) take for `path`: itself, or where it is too long for a sockaddr_un the same by way of /proc."""
    if len(os.fsencode(path)) <= _ADDRESS_LIMIT:
        yield os.fspath(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def daemons(directory: Path) -> list[Daemon]:
    """The daemons that listen in `directory`, by process id. Sockets of dead ones are removed on the way."""
    found = (Daemon(path, int(path.stem)) for path in directory.glob("*.sock") if path.stem.isdecimal())
    return sorted((daemon for daemon in found if _listens(daemon.path)), key=lambda daemon: daemon.pid)


def ask(path: Path, request: str, deadline: float = DEADLINE, **words: Any) -> dict[str, Any]:
    """One request, with the `words` that belong to it, one answer.

    Raises Unreachable when nothing answers within `deadline` seconds, ProtocolError for rubbish, UsageError with the daemon's own sentence
    when it refuses.
    """
    end = time.monotonic() + deadline
    with _connected(path, end) as connection:
        return _converse(connection, path, {"request": request, **words}, end)


def ask_all(directory: Path, request: str = "status", **about: Any) -> tuple[list[tuple[Daemon, dict[str, Any]]], list[IsblkError]]:
    """One request to every daemon at once, so that one which does not answer keeps nobody waiting for the others; answers and failures."""
    found = daemons(directory)
    if len(found) > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(len(found), ASKED_AT_ONCE)) as pool:
            said = list(pool.map(lambda daemon: _try_to_ask(daemon, request, about), found))
    else:
        said = [_try_to_ask(daemon, request, about) for daemon in found]
    answers = [(daemon, answer) for daemon, answer in zip(found, said, strict=True) if not isinstance(answer, IsblkError)]
    return answers, [answer for answer in said if isinstance(answer, IsblkError)]


def _try_to_ask(daemon: Daemon, request: str, about: dict[str, Any]) -> dict[str, Any] | IsblkError:
    try:
        return ask(daemon.path, request, **about)
    except IsblkError as error:
        return error


def stop(path: Path, deadline: float = STOP_DEADLINE) -> None:
    """Tell a daemon to unmount, flush, log out and end, and wait until its process has ended.

    Raises Unreachable when it has not within `deadline` seconds. The process is named by the kernel (SO_PEERCRED) and watched through a
    pidfd, since the daemon closes its control socket before it is done.
    """
    with watched(path) as ended:
        ask(path, "stop", deadline)
        ended(deadline)


@contextmanager
def watched(path: Path) -> Iterator[Callable[[float], None]]:
    """While something ends a daemon: yields a function that waits for the end of its process, so many seconds at most.

    Raises Unreachable when nothing listens at `path`; the function raises it when the daemon is still there.
    """

    def ended(deadline: float) -> None:
        if process is None or not select.select([process], [], [], deadline)[0]:
            raise Unreachable(f"the daemon {path.stem} should end but still runs after {deadline:.0f} s; look at its log")

    with _connected(path, time.monotonic() + DEADLINE) as connection, _process_of(connection) as process:
        yield ended


@contextmanager
def _process_of(connection: socket.socket) -> Iterator[int | None]:
    """A pidfd of who listens at the other end; None where the kernel cannot show it to us."""
    pid, _uid, _gid = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(DEADLINE)
        try:
            with address(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # nobody listens: a socket appears under this name only when it does (controlserver.py)
            return False
        except FileNotFoundError:
            return False
        except OSError:
            return True  # too busy to accept, or another user's: there, at any rate
    return True


@contextmanager
def _connected(path: Path, end: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(0.001, end - time.monotonic()))
        try:
            with address(path) as name:
                connection.connect(name)
        except OSError as error:
            raise Unreachable(f"no daemon answers at {path}: {error.strerror or error}") from None
        yield connection


def _converse(connection: socket.socket, path: Path, message: dict[str, Any], end: float) -> dict[str, Any]:
    request = message["request"]
    try:
        connection.settimeout(max(0.001, end - time.monotonic()))
        connection.sendall(encode(message))
        message = decode(_line(connection, end))
    except TimeoutError:
        raise Unreachable(f"the daemon {path.stem} does not answer; it may be stopped (kill -CONT {path.stem})") from None
    except OSError as error:
        raise Unreachable(f"the daemon {path.stem} ended while it was asked: {error.strerror or error}") from None
    if "error" in message:
        raise UsageError(f"the daemon {path.stem} refuses '{request}': {message['error']}")
    answer = message.get("answer")
    if not isinstance(answer, dict):
        raise ProtocolError(f"the daemon {path.stem} answered '{request}' with neither an answer nor an error")
    return answer


def _line(connection: socket.socket, end: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        part = _receive(connection, end)
        if not part:
            raise ConnectionResetError("no whole answer came")
        line += part
        if len(line) > MESSAGE_LIMIT:
            raise ProtocolError(f"an answer on the control socket is longer than {MESSAGE_LIMIT} bytes")
    return bytes(line)


def _receive(connection: socket.socket, end: float) -> bytes:
    """Bytes, or none at the end of the connection. Raises TimeoutError when the deadline is over, however slowly the bytes trickle in."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(65536)
