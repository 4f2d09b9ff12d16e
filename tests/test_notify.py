"""What a service manager hears: states, the text when it changes, and signs of life only while the plane turns."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from isblk import notify
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from support.waiting import eventually


class Manager:
    """A socket as systemd has it; `heard` is what has come, a datagram each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._heard: list[str] = []

    @property
    def heard(self) -> list[str]:
        while True:
            try:
                self._heard.append(self._connection.recv(4096).decode())
            except BlockingIOError:
                return self._heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as connection:
        connection.setblocking(False)
        name = str(tmp_path / "notify") if request.param == "path" else f"@isblk-test-{os.getpid()}"
        connection.bind(name.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield Manager(connection)


def test_lines_go_to_the_socket_in_one_datagram(manager: Manager) -> None:
    notify.send("READY=1", "STATUS=well")
    notify.ready()
    assert manager.heard == ["READY=1\nSTATUS=well", "READY=1"]


@pytest.mark.parametrize("name", ["", "/nowhere/at/all", "@nobody-listens-here", "vsock:2:1"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    notify.send("READY=1", environment={"NOTIFY_SOCKET": name} if name else {})


def test_a_manager_that_does_not_read_keeps_nobody_waiting(manager: Manager) -> None:
    for _ in range(5000):
        notify.send("STATUS=" + "x" * 200)
    assert len(manager.heard) < 5000


def test_a_daemon_that_leaves_its_terminal_is_nobodys_service() -> None:
    environment = {"NOTIFY_SOCKET": "/run/systemd/notify", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    notify.forget(environment)
    assert environment == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_sign_of_life_is_due_at_half_the_time(environment: dict[str, str], seconds: float | None) -> None:
    assert notify.watchdog_seconds(environment) == seconds


async def test_the_text_is_sent_when_it_changes_and_the_end_asks_for_time(manager: Manager, autojump_clock: MockClock) -> None:
    text, stop = "2 of 2 paths up", trio.Event()
    async with running_plane() as plane, trio.open_nursery() as nursery:
        nursery.start_soon(notify.keep, plane, lambda: text, stop)
        await trio.sleep(10)
        assert manager.heard == ["STATUS=2 of 2 paths up"]
        text = "1 of 2 paths up: gone"
        await trio.sleep(notify.LOOK_SECONDS * 1.5)
        assert manager.heard[1:] == ["STATUS=1 of 2 paths up: gone"]
        stop.set()
        await trio.sleep(notify.EXTEND_SECONDS * 1.25)
        assert manager.heard[2:] == ["STOPPING=1\nSTATUS=writing back and logging out", *["EXTEND_TIMEOUT_USEC=10000000"] * 3]
        nursery.cancel_scope.cancel()


async def test_signs_of_life_come_while_the_plane_turns(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with running_plane() as plane, trio.open_nursery() as nursery:
        nursery.start_soon(notify.keep, plane, lambda: "well", trio.Event())
        await eventually(lambda: manager.heard.count("WATCHDOG=1") >= 3)
        nursery.cancel_scope.cancel()
    assert not plane._handlers


async def test_a_plane_that_hangs_gives_no_sign_of_life(
    manager: Manager, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    plane = Plane()  # that nobody runs
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify.keep, plane, lambda: "well", trio.Event())
        await trio.sleep(10)
        assert manager.heard == ["STATUS=well"]
        nursery.cancel_scope.cancel()
    plane.close()


async def test_without_a_manager_nobody_is_kept_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with running_plane() as plane:
        await notify.keep(plane, lambda: pytest.fail("looked"), trio.Event())
        await wait_all_tasks_blocked()
        assert not plane._handlers
