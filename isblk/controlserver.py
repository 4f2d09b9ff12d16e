"""The control socket as the daemon serves it: who may ask (SO_PEERCRED), how much and how long (control.py has the messages).

Nothing here can disturb the data path: one connection's fault ends that connection, their number and time are bounded, and `status` is
called between two of the daemon's own steps, so it sees its state whole. Who follows the events asks again and again (a long poll): there
is never more on its way to a slow reader than one answer, and what it misses meanwhile is counted.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from isblk.block.events import Events
from isblk.control import CREDENTIALS, MESSAGE_LIMIT, REQUEST_LIMIT, address, decode, encode, socket_path
from isblk.errors import IsblkError, ProtocolError, UsageError
from isblk.logs import recent

log = logging.getLogger(__name__)

Request = Callable[[dict[str, Any]], dict[str, Any]]
"""What answers a request: it gets the whole message, returns what JSON can hold at once, or raises IsblkError with a sentence."""
NO_MORE: Mapping[str, Request] = {}

CONNECTIONS = 16
"""Connections served at once; those behind them wait in the backlog."""

IDLE_DEADLINE = 10.0
"""Seconds for a request to come whole, and for an answer to be taken."""

FOLLOWERS = 8
"""Connections that wait for events at once: the others must be left for `status` and `stop`."""

LONGEST_POLL = 60.0
"""Seconds that a question for events may wait for one."""

EVENTS_AT_ONCE = 200
"""Events of one answer; at some hundred bytes each it stays far below the limit of a message."""

ACCEPT_PAUSE = 1.0
"""Seconds between attempts when there is no descriptor left for a connection."""


async def serve(
    directory: Path,
    status: Callable[[], dict[str, Any]],
    stop: Callable[[], None],
    more: Mapping[str, Request] = NO_MORE,
    events: Events | None = None,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen in `directory` (state.make_directory has made it) until cancelled; reports the socket's path, and removes it at the end.

    `status` returns what JSON can hold; `stop` only asks for the end and returns; `more` are requests that this daemon alone knows;
    `events` are what followers are told. Raises UsageError when the socket cannot be made.
    """
    path = socket_path(directory)
    requests: dict[str, Request] = {
        "status": lambda _: status(),
        "stop": lambda _: _stopped(stop),
        "log": lambda _: {"lines": recent.lines()},
        **more,
    }
    daemon = _Daemon(requests, _News(Events() if events is None else events))
    listener = _listen(path)
    free = trio.Semaphore(CONNECTIONS)
    try:
        with trio.socket.from_stdlib_socket(listener) as accepting:
            async with trio.open_nursery() as nursery:
                task_status.started(path)
                while True:
                    await free.acquire()
                    connection = await _accept(accepting)
                    nursery.start_soon(_serve_one, connection, daemon, free)
    finally:
        path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    """A listening socket that appears under its name only when it listens, so that a client may take one that refuses for a dead one's."""
    draft = path.with_name(f".{path.name}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        draft.unlink(missing_ok=True)
        with address(draft) as name:
            listener.bind(name)
        draft.chmod(0o600)
        listener.listen(CONNECTIONS)
        draft.rename(path)
    except OSError as error:
        listener.close()
        draft.unlink(missing_ok=True)
        raise UsageError(f"the control socket {path} cannot be made: {error.strerror or error}") from None
    return listener


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            connection, _ = await listener.accept()
            return connection
        except OSError as error:  # out of descriptors: the data path may give some back
            log.error("a control connection could not be accepted: %s", error)
            await trio.sleep(ACCEPT_PAUSE)


def peer_may_ask(connection: trio.socket.SocketType) -> bool:
    """Whether the other end is this user or root: the modes say the same, but a socket can be handed on, and directories be changed."""
    _pid, uid, _gid = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return uid in (0, os.geteuid())


class _News:
    """What followers wait for. (One event of trio's for all of them: whoever adds an event must not know who listens.)"""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.followers = 0
        self._came = trio.Event()
        events.on_event = self._ring

    def _ring(self) -> None:
        self._came.set()

    async def after(self, number: int, seconds: float, connection: trio.socket.SocketType) -> None:
        """Return when there is an event behind a number, at most after so many seconds, and when the follower says something or leaves."""
        if self.followers >= FOLLOWERS:
            raise UsageError(f"{FOLLOWERS} follow its events already")
        self.followers += 1
        try:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._left, connection, nursery.cancel_scope)
                    while self.events.last == number:
                        self._came = trio.Event() if self._came.is_set() else self._came
                        await self._came.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self.followers -= 1

    @staticmethod
    async def _left(connection: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(connection)
        scope.cancel()


@dataclass(frozen=True)
class _Daemon:
    """Who is asked: requests that are answered at once, and the events, which may be waited for."""

    requests: Mapping[str, Request]
    news: _News


def _stopped(stop: Callable[[], None]) -> dict[str, Any]:
    stop()
    return {}


async def _serve_one(connection: trio.socket.SocketType, daemon: _Daemon, free: trio.Semaphore) -> None:
    stream = trio.SocketStream(connection)
    try:
        async with stream:
            if not peer_may_ask(connection):
                await _send(stream, _error("only root and the user who started it may ask this daemon"))
                return
            await _converse(stream, daemon)
    except (ProtocolError, trio.BrokenResourceError, trio.TooSlowError) as error:
        log.debug("a control connection ended: %s", error)
    finally:
        free.release()


async def _converse(stream: trio.SocketStream, daemon: _Daemon) -> None:
    buffer = bytearray()
    while True:
        with trio.fail_after(IDLE_DEADLINE):
            line = await _next_line(stream, buffer)
        if line is None:
            return
        await _send(stream, await _answer(line, daemon, stream.socket))


async def _answer(line: bytes, daemon: _Daemon, connection: trio.socket.SocketType) -> bytes:
    """The line that answers a request. A bug in what it calls is logged and answered: it must not end the daemon."""
    try:
        message, requests = decode(line), daemon.requests
        name = message.get("request")
        if name == "events":
            return await _events(message, daemon.news, connection)
        if not isinstance(name, str) or name not in requests:
            return _error(f"there is no request {str(name)[:40]!r}; there are {', '.join(requests)}, and events")
        answer = encode({"answer": {"pid": os.getpid(), **requests[name](message)}})
        return answer if len(answer) <= MESSAGE_LIMIT else _error(f"the answer is longer than {MESSAGE_LIMIT} bytes")
    except IsblkError as error:
        return _error(str(error))
    except Exception:
        log.exception("a request on the control socket failed")
        return _error("this is a bug in isblk; the daemon's log has more")


async def _events(message: dict[str, Any], news: _News, connection: trio.socket.SocketType) -> bytes:
    """What came after the number `after`, waited for at most `wait` seconds. Raises UsageError."""
    after, wait = message.get("after", 0), message.get("wait", 0)
    if not isinstance(after, int) or not isinstance(wait, int | float) or not 0 <= wait <= LONGEST_POLL or after < 0:
        raise UsageError(f"events are asked for with a number they come after, and 0 to {LONGEST_POLL:.0f} seconds to wait")
    if wait and news.events.last == after:
        await news.after(after, wait, connection)
    found, forgotten = news.events.after(after, EVENTS_AT_ONCE)
    about = {"pid": os.getpid(), **news.events.about}
    return encode({"answer": {**about, "events": found, "last": news.events.last, "forgotten": forgotten}})


def _error(sentence: str) -> bytes:
    return encode({"error": sentence})


async def _next_line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    """A request without its newline, None at the end of the connection. Raises ProtocolError for one that is too long."""
    while (end := buffer.find(b"\n")) < 0:
        if len(buffer) > REQUEST_LIMIT:
            await _send(stream, _error(f"a request is longer than {REQUEST_LIMIT} bytes"))
            raise ProtocolError(f"a request of more than {REQUEST_LIMIT} bytes")
        received = await stream.receive_some(REQUEST_LIMIT)
        if not received:
            return None
        buffer += received
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(IDLE_DEADLINE):
        await stream.send_all(line)
