"""One block device from login to logout, with the kernel's NBD client replaced by one that keeps the sockets it is given."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk import blockdevice, control
from isblk.block.choose import FAIL, QUEUE, NoPathRetry
from isblk.block.request import Geometry
from isblk.blockdevice import LONGEST_TIMEOUT, DeviceSpec, default_timeout, logical_block, serve
from isblk.config import Target
from isblk.errors import IsblkError, NotFound, RequestFailed, UsageError
from isblk.export import nbddevice
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.sweeper import Timing
from support import schema
from support.nbdserving import until
from support.rawnbd import DISC, FLUSH, READ, TRIM, WRITE, RawClient, request
from support.targets import MIB, RunningTarget, disk, running_target

ACCESS = Access("iqn.2026-11.test.isblk:initiator", Isid.from_random(1), timing=Timing(login_timeout=5))
DATA = bytes(range(256)) * 16


class Kernel:
    """Its end of every connection is a client of the test's."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.connections: list[RawClient] = []
        self.failure: IsblkError | None = None

    def _take(self, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:  # as the kernel, which keeps a reference of its own
            sock = socket.socket(fileno=os.dup(descriptor))
            self.connections.append(RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(sock))))

    def connect(self, index: int | None, descriptors: Sequence[int], size: int, block_size: int, flags: int, **settings: Any) -> int:
        self.calls.append(("connect", index, len(descriptors), size, block_size, flags, settings))
        if self.failure is not None:
            raise self.failure
        self._take(descriptors)
        return 7 if index is None else index

    def reconnect(self, index: int, descriptors: Sequence[int], backend: str) -> None:
        self.calls.append(("reconnect", index, len(descriptors), backend))
        self._take(descriptors)

    def resize(self, index: int, size: int, backend: str) -> None:
        self.calls.append(("resize", index, size, backend))

    def disconnect(self, index: int) -> None:
        self.calls.append(("disconnect", index))
        trio.from_thread.run(self.goodbye)

    async def goodbye(self) -> None:
        """As the kernel does it: DISC on every connection, and then their end."""
        for connection in self.connections:
            await connection.send(request(DISC))
        await self.close()

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(nbddevice, "write_back", lambda index: found.calls.append(("write back", index)))
    monkeypatch.setattr(blockdevice, "TICK_SECONDS", 0.02)
    return found


def spec(target: RunningTarget, place: Path, index: int | None = 0, **settings: Any) -> DeviceSpec:
    run = place / "run"
    run.mkdir(exist_ok=True)
    where = Target(target.name, (Portal.parse(target.portal),), settings.pop("in_url", None))
    settings = {"lun": None, "connections": 2, "timeout": 300} | settings
    return DeviceSpec(where, index=index, run_directory=run, isids=(Isid.from_random(1),), **settings)


class Attached:
    """A device that is there: its path, what ends it, and what is set when it has ended."""

    def __init__(self) -> None:
        self.path = ""
        self.stop, self.started, self.ended = trio.Event(), trio.Event(), trio.Event()
        self.failure: IsblkError | None = None

    def say(self, path: str) -> None:
        self.path = path
        self.started.set()


@asynccontextmanager
async def attached(wanted: DeviceSpec, kernel: Kernel) -> AsyncIterator[Attached]:
    device = Attached()

    async def run() -> None:
        try:
            await serve(wanted, kernel, ACCESS, device.stop, device.say)
        except IsblkError as error:
            device.failure = error
        device.started.set()
        device.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await device.started.wait()
        if device.failure is None:
            yield device
            device.stop.set()
        await device.ended.wait()
        await kernel.close()
    if device.failure is not None:
        raise device.failure


async def left_alone(target: RunningTarget) -> None:
    with trio.fail_after(10):
        while target.sessions:
            await trio.lowlevel.checkpoint()


# ---------------------------------------------------------------------------------------------------------------------- what is there


async def test_the_kernel_is_told_what_the_disk_is(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB, block_size=4096)]) as target, attached(spec(target, tmp_path, 3), kernel) as device:
        assert device.path == "/dev/nbd3"
        ((_, index, connections, size, block_size, flags, settings),) = kernel.calls
        assert (index, connections, size, block_size) == (3, 2, MIB, 4096)
        assert flags == 0b1_0110_1101 and settings.pop("backend").startswith(f"isblk {target.name} naa.")
        assert settings == {"timeout": 300, "dead_connection_timeout": 30}


async def test_the_kernel_may_choose_the_device_and_read_only_is_read_only(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target() as target, attached(spec(target, tmp_path, None, read_only=True), kernel) as device:
        assert device.path == "/dev/nbd7"
        assert kernel.calls[0][5] == 0b1_0000_1111
        (connection, _) = kernel.connections
        assert (await connection.do(WRITE, 0, 512, data=bytes(512))).error == 1


async def test_requests_are_served_on_every_connection_without_a_handshake(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target, attached(spec(target, tmp_path), kernel):
        first, second = kernel.connections
        assert (await first.do(WRITE, 4096, 4096, data=DATA)).error == 0
        assert (await second.do(READ, 4096, 4096)).data == DATA
        assert (await second.do(FLUSH)).error == 0
        assert (await first.do(TRIM, 0, 4096)).error == 0
        assert (await first.do(READ, MIB, 512)).error == 22


async def test_status_tells_of_the_device_and_its_connections(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target:
        wanted = spec(target, tmp_path)
        async with attached(wanted, kernel):
            ask = control.socket_path(wanted.run_directory)
            found = await trio.to_thread.run_sync(control.ask, ask, "status")
            schema.check(found)
            assert (found["kind"], found["where"], found["read_only"]) == ("attach", "/dev/nbd0", False)
            shown = {"size": MIB, "block_size": 512, "connections": 2, "timeout": 300, "dead_connection_timeout": 30}
            assert found["block_device"] == {"path": "/dev/nbd0", **shown, "replaced_connections": 0}
            assert [client["address"] for client in found["clients"]] == ["kernel, connection 1", "kernel, connection 2"]
            assert found["exports"][0]["lun"] == 0 and len(found["sessions"]) == len(found["devices"]) == 1


# ---------------------------------------------------------------------------------------------------------------------------- the end


async def test_the_end_writes_back_disconnects_flushes_and_logs_out(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target:
        async with attached(spec(target, tmp_path), kernel) as device:
            assert (await kernel.connections[0].do(WRITE, 0, 4096, data=DATA)).error == 0
            device.stop.set()
            await device.ended.wait()
            assert [call[0] for call in kernel.calls] == ["connect", "write back", "disconnect"]
        await left_alone(target)
        target.server.crash_cache()
        assert bytes(target.unit().store.read(0, 4096)) == DATA


async def test_what_is_in_flight_when_the_kernel_lets_go_is_finished(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target:
        async with attached(spec(target, tmp_path), kernel) as device:
            target.node.hold = lambda lun, cdb: cdb[0] in (0x2A, 0x8A)
            await kernel.connections[1].send(request(WRITE, 0, 4096, data=DATA))
            await until(lambda: target.node.held)
            await kernel.goodbye()
            await trio.sleep(0.1)
            assert not device.ended.is_set()
            target.node.hold = None
            target.server.release()
            await device.ended.wait()
            assert [call[0] for call in kernel.calls] == ["connect"]
        assert bytes(target.unit().store.read(0, 4096)) == DATA


async def test_the_control_socket_ends_it(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target() as target:
        wanted = spec(target, tmp_path)
        async with attached(wanted, kernel) as device:
            await trio.to_thread.run_sync(control.ask, control.socket_path(wanted.run_directory), "stop")
            await device.ended.wait()
            assert kernel.called("disconnect") == [("disconnect", 0)]
        await left_alone(target)


async def test_what_could_not_be_written_back_is_told_after_the_end(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: int) -> None:
        raise RequestFailed(f"what was written to /dev/nbd{index} could not be written back: No space left on device")

    monkeypatch.setattr(nbddevice, "write_back", fail)
    async with running_target() as target:
        with pytest.raises(RequestFailed, match="/dev/nbd0 could not be written back"):
            async with attached(spec(target, tmp_path), kernel):
                pass
        assert kernel.called("disconnect")
        await left_alone(target)


@pytest.mark.logs(
    "could not be disconnected: gone", r"/dev/nbd0: writing back takes too long; .* open: \[0, 0\], in flight at the target: 0"
)
async def test_a_page_cache_that_takes_too_long_and_a_kernel_that_refuses(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_index: int) -> None:
        trio.from_thread.run(trio.sleep, 0.5)

    def refuse(_index: int) -> None:
        raise UsageError("gone")

    monkeypatch.setattr(nbddevice, "write_back", slow)
    monkeypatch.setattr(blockdevice, "WRITE_BACK_SECONDS", 0.05)
    monkeypatch.setattr(kernel, "disconnect", refuse)
    async with running_target() as target:
        with pytest.raises(RequestFailed, match=r"/dev/nbd0 was not written back within 0 s"):
            async with attached(spec(target, tmp_path), kernel):
                pass
        await left_alone(target)


async def test_a_device_that_cannot_be_leaves_no_session(tmp_path: Path, kernel: Kernel) -> None:
    kernel.failure = UsageError("/dev/nbd0 is in use")
    async with running_target() as target:
        with pytest.raises(UsageError, match="is in use"):
            async with attached(spec(target, tmp_path), kernel):
                pass
        await left_alone(target)
        with pytest.raises(NotFound):
            async with attached(spec(target, tmp_path, lun=9), kernel):
                pass
        await left_alone(target)


# --------------------------------------------------------------------------------------------------------------------- while it is there


@pytest.mark.logs("/dev/nbd0 lost 1 of its connections: the kernel gets new ones")
async def test_a_connection_that_was_lost_is_replaced(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target, attached(spec(target, tmp_path), kernel) as device:
        lost, _ = kernel.connections
        assert (await lost.do(WRITE, 0, 4096, data=DATA)).error == 0
        await lost.close()
        await until(lambda: len(kernel.connections) == 3)
        assert (await kernel.connections[2].do(READ, 0, 4096)).data == DATA
        ((_, index, count, backend),) = kernel.called("reconnect")
        assert (index, count, backend) == (0, 1, kernel.calls[0][6]["backend"])
        assert not device.ended.is_set()
        kernel.connections.remove(lost)


async def test_connections_that_the_kernel_has_no_use_for_are_not_replaced(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target() as target, attached(spec(target, tmp_path), kernel) as device:
        await kernel.connections[1].close()
        await trio.sleep(0.1)
        assert not kernel.called("reconnect") and not device.ended.is_set()
        await kernel.connections[0].close()  # The last one: the kernel has let go of the device.
        await device.ended.wait()
        assert not kernel.called("disconnect")


@pytest.mark.logs("UNIT ATTENTION 2A/09", "has grown from")
async def test_the_device_grows_with_the_disk(tmp_path: Path, kernel: Kernel) -> None:
    async with running_target([disk(0, size=MIB)]) as target, attached(spec(target, tmp_path), kernel):
        target.unit().resize(2 * MIB + 512)
        await kernel.connections[0].do(READ, 0, 512)
        await until(lambda: kernel.called("resize"))
        assert kernel.called("resize") == [("resize", 0, 2 * MIB + 512, kernel.calls[0][6]["backend"])]
        assert (await kernel.connections[0].do(READ, 2 * MIB, 512)).error == 0


@pytest.mark.logs("/dev/nbd0 was left behind by a daemon that died: it is served again")
async def test_a_device_whose_daemon_died_is_taken_over(tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_target([disk(0, size=MIB)]) as target:
        async with attached(spec(target, tmp_path), kernel):
            backend = kernel.calls[0][6]["backend"]
        kernel.calls.clear()
        kernel.connections.clear()
        monkeypatch.setattr(nbddevice, "owner", lambda _index: dead_process())
        monkeypatch.setattr(nbddevice, "backend", lambda _index: backend)
        async with attached(spec(target, tmp_path), kernel):
            assert kernel.calls == [("reconnect", 0, 2, backend), ("resize", 0, MIB, backend)]
            assert (await kernel.connections[0].do(READ, 0, 512)).error == 0


def dead_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_an_orphan_is_of_the_same_disk_and_its_daemon_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {0: dead_process(), 1: os.getpid(), 2: None, 3: 1}
    monkeypatch.setattr(nbddevice, "owner", owners.get)
    monkeypatch.setattr(nbddevice, "backend", lambda _index: "isblk x")
    assert [blockdevice.is_orphan(index, "isblk x") for index in owners] == [True, False, False, False]
    assert not blockdevice.is_orphan(0, "isblk another")


@pytest.mark.parametrize(("retry", "seconds"), [(FAIL, 300), (NoPathRetry(120), 420), (NoPathRetry(0.5), 301), (QUEUE, LONGEST_TIMEOUT)])
def test_the_kernel_waits_longer_than_requests_wait_for_a_path(retry: NoPathRetry, seconds: int) -> None:
    assert default_timeout(retry, 2) == seconds
    assert default_timeout(retry, 1, "5.4.0-100-generic") == default_timeout(retry, 1, "strange") == seconds
    assert default_timeout(retry, 1, "5.10.0-8-amd64") == default_timeout(retry, 1, "6.1") == 0
    assert seconds * 1000 < 1 << 31, "jiffies of a kernel that counts a thousand a second"


@pytest.mark.parametrize(("block", "logical"), [(1, 512), (512, 512), (4096, 4096), (65536, 4096)])
def test_a_block_is_the_luns_within_what_the_kernel_can(block: int, logical: int) -> None:
    assert logical_block(Geometry(MIB, block, block)) == logical
