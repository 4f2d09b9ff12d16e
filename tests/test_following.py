"""Following events across daemons: real control servers in threads, daemons that come, go, hang up, and talk rubbish."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk import control, controlserver, following
from isblk.block.events import Events, Kind
from isblk.following import Follower, past
from support.waiting import until


class Served:
    """A control server in a thread; events are added on its own loop."""

    def __init__(self, token: trio.lowlevel.TrioToken, events: Events, path: Path) -> None:
        self._token = token
        self._events = events
        self.path = path

    def add(self, kind: Kind, text: str, **about: Any) -> None:
        trio.from_thread.run_sync(partial(self._events.add, kind, text, **about), trio_token=self._token)


@contextmanager
def served(directory: Path, pid: int | None = None, kept: int = 1000, where: str = "/mnt/disk") -> Iterator[Served]:
    """A daemon that listens under the name of process `pid` (this one's)."""
    events, ready, found = Events(kept), threading.Event(), list[Served]()
    events.about = {"kind": "mount", "where": where, "target": "iqn.x"}
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            path = await nursery.start(controlserver.serve, directory, dict, lambda: None, controlserver.NO_MORE, events)
            if pid is not None:
                path = path.rename(control.socket_path(directory, pid))
            token = trio.lowlevel.current_trio_token()
            found.append(Served(token, events, path))
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        stop[0]()
        thread.join(10)
        found[0].path.unlink(missing_ok=True)


@contextmanager
def followed(directory: Path, known: dict[int, int] | None = None) -> Iterator[Callable[[int], list[dict[str, Any]]]]:
    """`events(n)`: the next n events."""
    follower = Follower(directory, known or {})

    def events(count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found.extend(follower.poll())
            return len(found) >= count

        until(enough, f"{count} events")
        return found

    try:
        yield events
    finally:
        follower.close()


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody whose process id a daemon can have."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as one:
        try:
            yield one
        finally:
            one.kill()


def test_the_past_of_all_by_time_with_whose_it_is(tmp_path: Path) -> None:
    with process() as other, served(tmp_path, other.pid, where="/mnt/other") as two, served(tmp_path) as one:
        one.add(Kind.LOGIN, "first", path="10.0.0.5:3260")
        two.add(Kind.LOGIN, "second")
        one.add(Kind.PATH_DOWN, "third", lun=1)
        found, known, failures = past(tmp_path)
    assert [(event["text"], event["where"], event["daemon"]) for event in found] == [
        ("first", "/mnt/disk", "mount"),
        ("second", "/mnt/other", "mount"),
        ("third", "/mnt/disk", "mount"),
    ]
    assert known == {os.getpid(): 2, other.pid: 1} and not failures


def test_a_past_longer_than_an_answer_is_read_whole(tmp_path: Path) -> None:
    with served(tmp_path) as one:
        for number in range(2 * controlserver.EVENTS_AT_ONCE + 3):
            one.add(Kind.LOGIN, str(number))
        found, known, _ = past(tmp_path)
    assert [event["text"] for event in found] == [str(number) for number in range(2 * controlserver.EVENTS_AT_ONCE + 3)]
    assert known == {os.getpid(): len(found)}


def test_new_events_are_heard_and_nothing_twice(tmp_path: Path) -> None:
    with served(tmp_path) as one:
        one.add(Kind.LOGIN, "known already")
        _, known, _ = past(tmp_path)
        with followed(tmp_path, known) as events:
            one.add(Kind.PATH_DOWN, "new", lun=1)
            (event,) = events(1)
            assert (event["text"], event["number"], event["where"], event["pid"]) == ("new", 2, "/mnt/disk", os.getpid())
            for number in range(500):
                one.add(Kind.LOGIN, str(number))
            assert [event["text"] for event in events(500)] == [str(number) for number in range(500)]


def test_a_daemon_that_starts_later_is_heard_from_its_first_event_on(tmp_path: Path) -> None:
    with followed(tmp_path) as events, served(tmp_path) as one:
        one.add(Kind.STARTED, "it is there")
        assert [event["text"] for event in events(1)] == ["it is there"]


def test_what_was_forgotten_before_it_was_read_is_counted(tmp_path: Path) -> None:
    with served(tmp_path, kept=5) as one:
        follower = Follower(tmp_path, {})
        one.add(Kind.LOGIN, "seen")
        until(follower.poll, "the first")
        for number in range(20):
            one.add(Kind.LOGIN, str(number))
        found: list[dict[str, Any]] = []
        until(lambda: found.extend(follower.poll()) or any(event.get("text") == "19" for event in found), "the last")
        follower.close()
    lost = sum(int(event["text"].split()[0]) for event in found if event["kind"] == "forgotten")
    assert lost + sum(event["kind"] == "login" for event in found) == 20


@pytest.mark.parametrize(("note", "kind"), [(None, "stopped"), ("written data may be lost: LUN 0", "write-back-failed")])
def test_the_end_of_a_daemon_is_told_with_what_it_left_behind(tmp_path: Path, note: str | None, kind: str) -> None:
    with process() as other, followed(tmp_path) as events:
        with served(tmp_path, other.pid) as one:
            one.add(Kind.STOPPING, "the end was asked for")
            events(1)
        if note is not None:
            control.failure_note(tmp_path, other.pid).write_text(note)
        other.kill()
        other.wait()
        (event,) = events(1)
        assert (event["kind"], event["pid"], event["where"]) == (kind, other.pid, "/mnt/disk")
        assert note is None or note in event["text"]


def test_a_connection_that_breaks_is_made_again_without_anything_twice(tmp_path: Path) -> None:
    with served(tmp_path) as one:
        follower = Follower(tmp_path, {})
        one.add(Kind.LOGIN, "first")
        until(follower.poll, "the first")
        (connection,) = follower._followed.values()
        connection.connection.shutdown(socket.SHUT_RDWR)
        one.add(Kind.LOGIN, "second")
        found: list[dict[str, Any]] = []
        until(lambda: found.extend(follower.poll()) or found, "the second")
        follower.close()
    assert [event["text"] for event in found] == ["second"]


def test_one_follower_too_many_asks_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlserver, "FOLLOWERS", 0)
    monkeypatch.setattr(following, "ASK_AGAIN", 0.05)
    with served(tmp_path) as one, followed(tmp_path) as events:
        one.add(Kind.LOGIN, "first")
        assert events(1)[0]["text"] == "first"
        one.add(Kind.LOGIN, "second")
        assert events(1)[0]["text"] == "second"


@pytest.mark.parametrize(
    "answer", [b"rubbish\n", b'{"isblk":1,"answer":{"events":3}}\n', b'{"isblk":1,"answer":{"events":[{}],"last":1}}\n', b"x" * 100_000]
)
def test_rubbish_ends_a_connection_and_not_the_follower(tmp_path: Path, answer: bytes) -> None:
    with served(tmp_path) as one, process() as other, socket.socket(socket.AF_UNIX) as liar:
        liar.bind(str(control.socket_path(tmp_path, other.pid)))
        liar.listen()
        thread = threading.Thread(target=_lie, args=(liar, answer), daemon=True)
        thread.start()
        with followed(tmp_path) as events:
            for number in range(3):
                one.add(Kind.LOGIN, str(number))
                assert events(1)[0]["text"] == str(number)
        liar.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _lie(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
        except OSError:
            return


def test_a_daemon_that_is_stopped_keeps_nobody_waiting(tmp_path: Path) -> None:
    with served(tmp_path) as one, process() as other, socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(control.socket_path(tmp_path, other.pid)))
        mute.listen()
        with followed(tmp_path) as events:
            began = time.monotonic()
            one.add(Kind.LOGIN, "heard")
            assert events(1)[0]["text"] == "heard" and time.monotonic() - began < 5


def test_a_directory_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert past(tmp_path / "absent") == ([], {}, [])
    with followed(tmp_path / "absent") as events:
        assert events(0) == []
