"""One NBD server from login to logout with the protocol replaced: what is exported, what it tells of itself, and the order of the end."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import trio

from isblk import control, nbdserver
from isblk.block.request import trim, write
from isblk.config import Target
from isblk.errors import IsblkError, NotFound, UsageError
from isblk.export.nbd import ClientStatus, Export
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.sweeper import Timing
from isblk.listening import Listener, at_path
from isblk.nbdserver import NbdSpec, serve
from isblk.scsi.data import Provisioning
from support import schema
from support.targets import MIB, RunningTarget, disk, running_target

ACCESS = Access("iqn.2026-11.test.isblk:initiator", Isid.from_random(1), timing=Timing(login_timeout=5))
DATA = bytes(range(256)) * 16


class Server:
    """Stands in for export.nbd.NbdServer."""

    made: ClassVar[list[Server]] = []

    def __init__(self, plane: Any, exports: list[Export], tls: Any, read_only: bool, max_connections: int) -> None:
        self.exports, self.tls, self.read_only, self.max_connections = exports, tls, read_only, max_connections
        self.last_client_gone = trio.Event()
        self.accepted, self.refused = 3, 1
        self.memory = SimpleNamespace(used=4096, budget=1 << 20)
        self.listening: list[socket.socket] = []
        self.order: list[str] = []
        self.answered = trio.Event()
        self.answered.set()
        self.clients = [ClientStatus("unix", "0", {"tls": False}, {"reads": 3})]
        Server.made.append(self)

    def add_listener(self, sock: socket.socket) -> None:
        self.listening.append(sock)

    def close(self) -> None:
        self.order.append("close")

    def abort(self) -> None:
        self.order.append("abort")

    async def drained(self) -> None:
        self.order.append("draining")
        await self.answered.wait()
        self.order.append("drained")


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    monkeypatch.setattr(nbdserver, "NbdServer", Server)
    monkeypatch.setattr(Server, "made", [])
    return Server.made


def spec(target: RunningTarget, place: Path, lun: int | None = None, **settings: Any) -> NbdSpec:
    run = place / "run"
    run.mkdir(exist_ok=True)
    portal = Portal.parse(target.portal)
    return NbdSpec(Target(target.name, (portal,), settings.pop("in_url", None)), lun, run, isids=(Isid.from_random(1),), **settings)


@asynccontextmanager
async def serving(wanted: NbdSpec, listener: Listener) -> AsyncIterator[tuple[Server, trio.Event, trio.Event]]:
    """A server that is there: itself, what ends it, and what is set when it has ended."""
    stop, started, over = trio.Event(), trio.Event(), trio.Event()
    failure: IsblkError | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await serve(wanted, [listener], ACCESS, stop, started.set)
        except IsblkError as error:
            failure = error
        started.set()
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        if failure is None:
            yield Server.made[0], stop, over
            stop.set()
    if failure is not None:
        raise failure


async def left_alone(target: RunningTarget) -> None:
    with trio.fail_after(10):
        while target.sessions:
            await trio.lowlevel.checkpoint()


# ------------------------------------------------------------------------------------------------------------------ what is exported


@pytest.mark.logs("LUN 0 is no disk")
async def test_every_disk_is_an_export_named_by_number_and_wwid(tmp_path: Path) -> None:
    async with running_target([disk(0, device_type=0x0C), disk(3, size=MIB), disk(300, size=2 * MIB)]) as target:
        async with serving(spec(target, tmp_path), at_path(tmp_path / "s")) as (server, _, _):
            assert [(one.name, one.number, one.gate.geometry.size) for one in server.exports] == [("3", 3, MIB), ("300", 300, 2 * MIB)]
            first = server.exports[0]
            assert (
                first.wwid is not None and first.wwid.startswith("naa.") and first.description == f"LUN 3: ISBLK VIRTUAL-DISK {first.wwid}"
            )
            assert (server.read_only, server.tls, server.max_connections) == (False, None, 128)
        await left_alone(target)


@pytest.mark.parametrize(("lun", "in_url", "size"), [(1, None, 1), (None, 2, 2), (1, 2, 1)])
async def test_a_lun_is_chosen_by_option_before_url(lun: int | None, in_url: int | None, size: int, tmp_path: Path) -> None:
    async with running_target([disk(1, size=MIB), disk(2, size=2 * MIB)]) as target:
        wanted = spec(target, tmp_path, lun, in_url=in_url, read_only=True, max_connections=7)
        async with serving(wanted, at_path(tmp_path / "s")) as (server, _, _):
            assert [one.gate.geometry.size for one in server.exports] == [size * MIB]
            assert (server.read_only, server.max_connections) == (True, 7)


async def test_its_status_is_answered_over_the_control_socket(tmp_path: Path) -> None:
    async with running_target() as target:
        wanted = spec(target, tmp_path, read_only=True)
        async with serving(wanted, at_path(tmp_path / "s")):
            (found,) = await trio.to_thread.run_sync(control.daemons, wanted.run_directory)
            answer = await trio.to_thread.run_sync(control.ask, found.path, "status")
    schema.check(answer)
    where = str(tmp_path / "s")
    assert (answer["pid"], answer["kind"], answer["where"], answer["listens"]) == (os.getpid(), "nbd", where, [where])
    assert (answer["uris"], answer["tls"], answer["read_only"]) == ([f"nbd+unix:///?socket={where}"], False, True)
    (export,), (client,) = answer["exports"], answer["clients"]
    assert export["wwid"] == answer["devices"][0]["wwid"]
    assert {key: export[key] for key in ("name", "lun", "size", "read_only")} == {
        "name": "0",
        "lun": 0,
        "size": 16 * MIB,
        "read_only": True,
    }
    assert client == {"address": "unix", "export": "0", "negotiated": {"tls": False}, "counters": {"reads": 3}}
    assert answer["sessions"][0]["portal"] == target.portal


async def test_provisioning_is_asked_over_the_path_that_is_up(tmp_path: Path) -> None:
    async with running_target() as target, serving(spec(target, tmp_path), at_path(tmp_path / "s")) as (server, _, _):
        (export,) = server.exports
        assert export.lba_status is not None
        await write(export.gate, MIB, bytes(MIB))
        await trim(export.gate, 8 * MIB, MIB)
        extents = await export.lba_status(0, 16 * MIB)
        assert extents[0].offset == 0 and sum(one.length for one in extents) == 16 * MIB
        assert next(one.provisioning for one in extents if one.offset <= MIB < one.offset + one.length) is Provisioning.MAPPED
        assert next(one.provisioning for one in extents if one.offset <= 8 * MIB < one.offset + one.length) is Provisioning.DEALLOCATED


@pytest.mark.logs("path .* is up")
async def test_provisioning_counts_as_mapped_while_no_path_is_up(tmp_path: Path) -> None:
    async with running_target() as target, serving(spec(target, tmp_path), at_path(tmp_path / "s")) as (server, _, _):
        (export,) = server.exports
        assert export.lba_status is not None
        target.server.drop_all()
        (extent,) = await export.lba_status(512, 4096)
        assert (extent.offset, extent.length, extent.provisioning) == (512, 4096, Provisioning.MAPPED)
        await write(export.gate, 0, DATA)


# ----------------------------------------------------------------------------------------------------------------------------- the end


async def by_event(server: Server, stop: trio.Event, wanted: NbdSpec) -> None:
    stop.set()


async def by_control(server: Server, stop: trio.Event, wanted: NbdSpec) -> None:
    await trio.to_thread.run_sync(control.ask, control.socket_path(wanted.run_directory), "stop")


async def by_last_client(server: Server, stop: trio.Event, wanted: NbdSpec) -> None:
    server.last_client_gone.set()


@pytest.mark.parametrize("end", [by_event, by_control, by_last_client])
async def test_every_end_answers_writes_back_and_logs_out(
    end: Callable[[Server, trio.Event, NbdSpec], Awaitable[None]], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    async with running_target([disk(0, path=str(image))]) as target:
        wanted = spec(target, tmp_path, exit_on_last=True)
        async with serving(wanted, at_path(tmp_path / "s")) as (server, stop, over):
            await write(server.exports[0].gate, 0, DATA)
            server.answered = trio.Event()
            await end(server, stop, wanted)
            while "draining" not in server.order:
                await trio.lowlevel.checkpoint()
            assert server.order == ["close", "draining"] and "s" not in os.listdir(tmp_path)
            await write(server.exports[0].gate, len(DATA), DATA)  # of a client whose request was taken before
            server.answered.set()
            await over.wait()
            assert server.order[-1] == "drained"
        await left_alone(target)
        target.server.crash_cache()
        assert image.read_bytes()[: 2 * len(DATA)] == DATA * 2
        assert os.listdir(wanted.run_directory) == []


async def test_the_last_client_may_go_where_nothing_was_said_about_it(tmp_path: Path) -> None:
    async with running_target() as target, serving(spec(target, tmp_path), at_path(tmp_path / "s")) as (server, _, over):
        server.last_client_gone.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not over.is_set()


@pytest.mark.logs("1 NBD clients did not take their answers")
async def test_a_client_that_never_reads_does_not_keep_it_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdserver, "DRAIN_SECONDS", 0.05)
    async with running_target() as target:
        async with serving(spec(target, tmp_path), at_path(tmp_path / "s")) as (server, stop, over):
            server.answered = trio.Event()
            stop.set()
            await over.wait()
            assert server.order == ["close", "draining", "abort"]
        await left_alone(target)


# --------------------------------------------------------------------------------------------------------------- what goes wrong before


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with running_target() as target:
        listener = at_path(tmp_path / "s")
        with pytest.raises(NotFound, match="LUN 9"):
            await serve(spec(target, tmp_path, 9), [listener], ACCESS, trio.Event(), lambda: pytest.fail("it was reported as being there"))
        assert listener.sock.fileno() == -1 and os.listdir(tmp_path) == ["run"]
        await left_alone(target)


async def test_a_name_that_was_taken_meanwhile(tmp_path: Path) -> None:
    async with running_target() as target:
        listener, other = at_path(tmp_path / "s"), at_path(tmp_path / "s2")
        other.path = tmp_path / "s"
        other.publish()
        with pytest.raises(UsageError, match="a server listens at"):
            await serve(spec(target, tmp_path), [listener], ACCESS, trio.Event(), lambda: pytest.fail("it was reported as being there"))
        assert "s" in os.listdir(tmp_path)
        other.withdraw()
        other.sock.close()
        await left_alone(target)
