"""controlserver.py: asked by the real client, and by clients that misbehave; none of them can end it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from isblk import controlserver
from isblk.block.events import KEPT, Events, Kind
from isblk.control import MESSAGE_LIMIT, REQUEST_LIMIT, ask, daemons, decode, encode
from isblk.controlserver import CONNECTIONS, EVENTS_AT_ONCE, FOLLOWERS, IDLE_DEADLINE, serve
from isblk.errors import PathLost, UsageError
from isblk.logs.output import remember
from support.logs import restored_logging


class Daemon:
    """What the daemon tells, and whether it was told to stop."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self.status = status
        self.stops = 0
        self.path = Path()

    def stop(self) -> None:
        self.stops += 1

    async def ask(self, request: str) -> dict[str, Any]:
        return await trio.to_thread.run_sync(ask, self.path, request)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)


@asynccontextmanager
async def serving(directory: Path, status: Callable[[], dict[str, Any]] = lambda: {"sessions": []}) -> AsyncIterator[Daemon]:
    daemon = Daemon(status)
    async with trio.open_nursery() as nursery:
        daemon.path = await nursery.start(serve, directory, daemon.status, daemon.stop)
        yield daemon
        nursery.cancel_scope.cancel()


async def lines(stream: trio.SocketStream, count: int) -> list[dict[str, Any]]:
    data = b""
    while data.count(b"\n") < count:
        part = await stream.receive_some()
        assert part, data
        data += part
    return [decode(line) for line in data.splitlines()]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_status_and_stop_reach_the_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda: {"sessions": [{"target": "iqn.x"}]}) as daemon:
        assert await daemon.ask("status") == {"pid": os.getpid(), "sessions": [{"target": "iqn.x"}]}
        assert daemon.stops == 0
        assert await daemon.ask("stop") == {"pid": os.getpid()}
        assert daemon.stops == 1


async def test_the_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        assert daemon.path.stat().st_mode & 0o777 == 0o600
        assert [one.pid for one in await trio.to_thread.run_sync(daemons, tmp_path)] == [os.getpid()]
        assert names(tmp_path) == [f"{os.getpid()}.sock"]
    assert names(tmp_path) == []


async def test_requests_follow_each_other_on_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, await daemon.connect() as stream:
        for byte in encode({"request": "status"}) + encode({"request": "status"}):
            await stream.send_all(bytes([byte]))
        assert [line["answer"]["sessions"] for line in await lines(stream, 2)] == [[], []]


@pytest.mark.parametrize(
    "request_line, words",
    [
        (b"rubbish\n", "not a line of JSON"),
        (b'{"isblk":9,"request":"status"}\n', "schema 9"),
        (b'{"isblk":1,"request":"format"}\n', "there is no request 'format'"),
        (b'{"isblk":1,"request":["status"]}\n', "there is no request"),
        (b'{"isblk":1}\n', "there is no request"),
        (b"x" * (REQUEST_LIMIT + 1), "longer than"),
    ],
)
async def test_a_bad_request_is_answered_and_harms_nobody(tmp_path: Path, request_line: bytes, words: str) -> None:
    async with serving(tmp_path) as daemon:
        async with await daemon.connect() as stream:
            await stream.send_all(request_line)
            assert words in (await lines(stream, 1))[0]["error"]
        assert (await daemon.ask("status"))["sessions"] == []


async def test_a_connection_that_breaks_off_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon:
        for part in (b"", b'{"isblk', encode({"request": "status"})):
            async with await daemon.connect() as stream:
                await stream.send_all(part or b" ")
        assert (await daemon.ask("status"))["sessions"] == []


async def test_a_failure_known_to_isblk_is_the_answer(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise PathLost("the session ended")

    async with serving(tmp_path, fails) as daemon:
        with pytest.raises(UsageError, match="the session ended"):
            await daemon.ask("status")


@pytest.mark.logs("a request on the control socket failed")
@pytest.mark.parametrize("status", [lambda: {"odd": object()}, lambda: {"odd": {}["key"]}])
async def test_a_bug_in_the_status_does_not_end_the_daemon(tmp_path: Path, status: Callable[[], dict[str, Any]]) -> None:
    async with serving(tmp_path, status) as daemon:
        for _ in range(2):
            with pytest.raises(UsageError, match="a bug in isblk"):
                await daemon.ask("status")


async def test_an_answer_too_long_for_the_client_is_not_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda: {"long": "x" * MESSAGE_LIMIT}) as daemon:
        with pytest.raises(UsageError, match="longer than"):
            await daemon.ask("status")


async def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlserver, "peer_may_ask", lambda connection: False)
    async with serving(tmp_path) as daemon, await daemon.connect() as stream:
        assert "only root and the user" in (await lines(stream, 1))[0]["error"]
        assert await stream.receive_some() == b""
    assert daemon.stops == 0


@pytest.mark.parametrize("uid, me, allowed", [(0, 1000, True), (1000, 1000, True), (1001, 1000, False), (1000, 0, False)])
def test_who_may_ask(monkeypatch: pytest.MonkeyPatch, uid: int, me: int, allowed: bool) -> None:
    class Connection:
        def getsockopt(self, level: int, option: int, length: int) -> bytes:
            assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
            return controlserver.CREDENTIALS.pack(42, uid, 5)

    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert controlserver.peer_may_ask(Connection()) is allowed  # type: ignore[arg-type]


async def test_the_kernel_names_the_peer(tmp_path: Path) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        assert controlserver.peer_may_ask(ours)


async def test_an_idle_connection_is_closed(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        free = trio.Semaphore(0)
        daemon = controlserver._Daemon({}, controlserver._News(Events()))
        nursery.start_soon(controlserver._serve_one, theirs, daemon, free)
        with ours:
            await ours.send(b'{"isblk":1,')
            assert await ours.recv(100) == b""
    assert trio.current_time() >= IDLE_DEADLINE
    assert free.value == 1


async def test_too_many_connections_wait_for_their_turn(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, trio.open_nursery() as nursery:
        idle = [await daemon.connect() for _ in range(CONNECTIONS)]
        answered = trio.Event()

        async def late() -> None:
            async with await daemon.connect() as stream:
                await stream.send_all(encode({"request": "status"}))
                await lines(stream, 1)
                answered.set()

        nursery.start_soon(late)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not answered.is_set()
        await idle[0].aclose()
        await answered.wait()
        for stream in idle:
            await stream.aclose()


async def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="control socket"):
        await serve(tmp_path / "absent", dict, lambda: None)


async def test_what_a_dead_daemon_with_our_number_left_is_replaced(tmp_path: Path) -> None:
    for name in (f"{os.getpid()}.sock", f".{os.getpid()}.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / name))
    async with serving(tmp_path) as daemon:
        assert await daemon.ask("status")
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------------ events


@asynccontextmanager
async def telling(directory: Path) -> AsyncIterator[tuple[Events, Path]]:
    events = Events()
    events.about = {"where": "/mnt/disk"}
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve, directory, dict, lambda: None, controlserver.NO_MORE, events)
        yield events, path
        nursery.cancel_scope.cancel()


async def follow(path: Path, after: int, wait: float = 0) -> dict[str, Any]:
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(encode({"request": "events", "after": after, "wait": wait}))
        return (await lines(stream, 1))[0]


async def test_events_are_answered_with_where_they_happened_and_what_was_forgotten(tmp_path: Path) -> None:
    async with telling(tmp_path) as (events, path):
        for number in range(KEPT + 5):
            events.add(Kind.LOGIN, str(number))
        answer = (await follow(path, 2))["answer"]
        assert (answer["pid"], answer["where"], answer["last"], answer["forgotten"]) == (os.getpid(), "/mnt/disk", KEPT + 5, 3)
        assert [event["number"] for event in answer["events"]] == list(range(6, 6 + EVENTS_AT_ONCE))


async def test_a_follower_waits_for_what_comes_next(tmp_path: Path) -> None:
    async with telling(tmp_path) as (events, path), trio.open_nursery() as nursery:
        heard: list[dict[str, Any]] = []

        async def ask(after: int) -> None:
            heard.append((await follow(path, after, wait=50))["answer"])

        events.add(Kind.LOGIN, "before")
        for _ in range(2):
            nursery.start_soon(ask, 1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not heard
        events.add(Kind.LOGOUT, "now")
        with trio.fail_after(5):
            while len(heard) < 2:
                await trio.lowlevel.checkpoint()
        assert [[event["text"] for event in answer["events"]] for answer in heard] == [["now"], ["now"]]
        nursery.start_soon(ask, 0)  # There is something already.
        with trio.fail_after(5):
            while len(heard) < 3:
                await trio.lowlevel.checkpoint()


async def test_waiting_has_an_end_and_so_has_the_number_of_those_who_wait(tmp_path: Path) -> None:
    async with telling(tmp_path) as (_, path):
        assert (await follow(path, 0, wait=0.05))["answer"]["events"] == []
        waiting = [await trio.open_unix_socket(path) for _ in range(FOLLOWERS)]
        for stream in waiting:
            await stream.send_all(encode({"request": "events", "after": 0, "wait": 50}))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert f"{FOLLOWERS} follow its events already" in (await follow(path, 0, wait=1))["error"]
        assert "answer" in await follow(path, 0), "who does not wait is answered"
        assert "answer" in (await trio.to_thread.run_sync(lambda: {"answer": ask(path, "status")}))
        for stream in waiting:  # They leave, and make room at once.
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await follow(path, 0, wait=0.05))["answer"]["events"] == []


async def test_a_follower_that_reads_nothing_disturbs_nobody(tmp_path: Path) -> None:
    async with telling(tmp_path) as (events, path), await trio.open_unix_socket(path) as mute:
        await mute.send_all(encode({"request": "events", "after": 0, "wait": 50}))
        for number in range(3 * KEPT):
            events.add(Kind.LOGIN, f"{number} {'x' * 400}")
        answer = (await follow(path, 3 * KEPT - 1))["answer"]
        assert [event["number"] for event in answer["events"]] == [3 * KEPT]


@pytest.mark.parametrize(
    "question", [{"after": "1"}, {"after": -1}, {"after": 0, "wait": 1e9}, {"after": 0, "wait": -1}, {"after": 0, "wait": "x"}]
)
async def test_a_question_about_events_that_makes_no_sense_is_refused(tmp_path: Path, question: dict[str, Any]) -> None:
    async with telling(tmp_path) as (_, path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(encode({"request": "events", **question}))
        assert "events are asked for with a number" in (await lines(stream, 1))[0]["error"]


async def test_a_daemon_tells_what_it_logged(tmp_path: Path) -> None:
    with restored_logging():
        remember()
        logging.getLogger("isblk.some.module").info("something happened")
        async with serving(tmp_path) as daemon:
            line = (await daemon.ask("log"))["lines"][-1]
    assert line.endswith("INFO isblk.some.module: something happened")
