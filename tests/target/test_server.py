from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from isblk.errors import UsageError
from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.text import decode_pairs, encode_pairs
from isblk.target.config import LunConfig, Offer, PortalConfig, TargetConfig
from isblk.target.core import Connection
from isblk.target.server import CLOSE_TIMEOUT, LOGIN_TIMEOUT, Server, running, serve
from support.rawinitiator import INITIATOR_NAME, ISID, read10, write10
from support.targets import MIB, RunningTarget, configuration, running_target

Pdu = tuple[int, int, int, list[int], bytes]


class Wire:
    """A bare initiator on a real socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.cmd_sn = 1

    async def send(self, bhs: bytes, data: bytes = b"") -> None:
        await self.stream.send_all(b"".join(frame(bhs, data)))

    async def receive(self) -> Pdu:
        """(opcode, flags, status, words from 16 on, data) of the next PDU."""
        opcode, flags, _, status, lengths, _, itt, *words = pdu.TARGET.unpack(await self.exactly(48))
        data = await self.exactly(pdu.padded(lengths & 0xFFFFFF))
        return opcode, flags, status, [itt, *words], data[: lengths & 0xFFFFFF]

    async def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self.stream.receive_some(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    async def log_in(self, name: str, isid: bytes = ISID) -> Pdu:
        text = encode_pairs(
            [
                ("InitiatorName", INITIATOR_NAME),
                ("TargetName", name),
                ("InitialR2T", "No"),
                ("MaxRecvDataSegmentLength", "1048576"),
                ("MaxBurstLength", "1048576"),
            ]
        )
        bhs = pdu.INITIATOR.pack(pdu.LOGIN | pdu.IMMEDIATE, 0x87, 0, len(text), isid + b"\0\0", 0, 0, self.cmd_sn, 0, 0, 0, 0, 0)
        await self.send(bhs, text)
        return await self.receive()

    async def command(self, cdb: bytes, read: int = 0, data: bytes = b"") -> None:
        flags = 0x80 | (pdu.READ if read else 0) | (pdu.WRITE if data else 0)
        bhs = pdu.COMMAND.pack(1, flags, 0, len(data), bytes(8), self.cmd_sn, read or len(data), self.cmd_sn, 0, cdb.ljust(16, b"\0"))
        self.cmd_sn += 1
        await self.send(bhs, data)

    async def closed(self) -> bool:
        """Whether the target ends the stream (after whatever it still says)."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
        return True


@asynccontextmanager
async def wire(target: RunningTarget, portal: int = 0) -> AsyncIterator[Wire]:
    host, port = target.node.addresses[portal]
    async with await trio.open_tcp_stream(host, port) as stream:
        yield Wire(stream)


async def eventually(condition: Callable[[], object]) -> None:
    """Let the target's tasks run until something holds."""
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


async def gone(target: RunningTarget) -> None:
    """Wait until the target has noticed that nobody is connected."""
    await eventually(lambda: not target.server.connections)


async def test_a_session_over_a_socket_from_login_to_the_end_of_the_stream() -> None:
    async with running_target() as target, wire(target) as initiator:
        opcode, flags, *_ = await initiator.log_in(target.name)
        assert (opcode, flags) == (pdu.LOGIN_RESPONSE, 0x87)
        assert target.sessions == 1
        await initiator.command(bytes(6))
        assert (await initiator.receive())[2] == 2
        await initiator.command(write10(3, 2), data=b"s" * 1024)
        assert (await initiator.receive())[2] == 0
        await initiator.command(read10(3, 2), read=1024)
        assert (await initiator.receive())[4] == b"s" * 1024
        await initiator.stream.aclose()
        await gone(target)
        assert target.sessions == 0


async def test_many_commands_at_once_and_large_data_both_ways() -> None:
    payload = os.urandom(4 * MIB)
    async with running_target() as target, wire(target) as initiator:
        await initiator.log_in(target.name)
        await initiator.command(bytes(6))
        await initiator.receive()
        target.unit().store.write(0, payload)
        received = {}
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                for index in range(4):
                    await initiator.command(read10(index * 2048, 2048), read=MIB)

            nursery.start_soon(ask)
            for _ in range(4):
                _, _, status, words, data = await initiator.receive()
                assert status == 0
                received[words[0]] = data
        assert b"".join(received[itt] for itt in sorted(received)) == payload


async def test_a_peer_that_does_not_read_stops_nobody_else() -> None:
    async with running_target() as target, wire(target) as deaf, wire(target) as other:
        await deaf.log_in(target.name)
        for _ in range(64):
            await deaf.command(read10(0, 2048), read=MIB)
        await other.log_in(target.name, isid=b"\x80\0\0\0\0\2")
        await other.command(bytes(6))
        assert (await other.receive())[0] == pdu.SCSI_RESPONSE
        target.server.drop_all()
        assert await other.closed()
        await gone(target)


async def test_several_portals_and_groups_of_one_identity() -> None:
    portals = (PortalConfig(port=0, tpgt=1), PortalConfig(port=0, tpgt=2), PortalConfig("::1", 0, tpgt=2))
    async with running_target(portals=portals) as target:
        assert len(set(target.portals)) == 3
        assert target.portals[2].startswith("[::1]:")
        tags = []
        for index in range(3):
            async with wire(target, index) as initiator:
                _, _, _, _, data = await initiator.log_in(target.name)
                tags.append(dict(decode_pairs(data))["TargetPortalGroupTag"])
        assert tags == ["1", "2", "2"]


async def test_a_refused_login_is_answered_and_then_closed() -> None:
    async with running_target() as target, wire(target) as initiator:
        _, _, _, words, _ = await initiator.log_in("iqn.2026-11.org.isblk:other")
        assert words[5] >> 16 == 0x0203
        assert await initiator.closed()
        await initiator.stream.aclose()
        await gone(target)


async def test_a_violation_is_told_before_the_connection_closes() -> None:
    async with running_target() as target, wire(target) as initiator:
        await initiator.log_in(target.name)
        await initiator.send(
            pdu.INITIATOR.pack(pdu.LOGIN, 0x87, 0, 0, bytes(8), 9, 0, 1, 0, 0, 0, 0, 0) + b"and more that nobody reads" * 100
        )
        assert (await initiator.receive())[0] == pdu.REJECT
        assert await initiator.closed()
        assert target.sessions == 0


async def test_reinstatement_closes_the_old_connection() -> None:
    async with running_target() as target, wire(target) as old, wire(target) as new:
        await old.log_in(target.name)
        await new.log_in(target.name)
        assert await old.closed()
        assert target.sessions == 1


async def test_held_commands_are_answered_when_released() -> None:
    async with running_target() as target, wire(target) as initiator:
        await initiator.log_in(target.name)
        target.node.hold = lambda lun, cdb: True
        await initiator.command(bytes(6))
        await eventually(lambda: target.node.held)
        assert target.server.release() == 1
        assert (await initiator.receive())[0] == pdu.SCSI_RESPONSE


async def test_a_crash_loses_what_was_not_synchronized_and_the_target_goes_on() -> None:
    async with running_target() as target:
        async with wire(target) as initiator:
            await initiator.log_in(target.name)
            await initiator.command(bytes(6))
            await initiator.command(write10(0, 1), data=b"v" * 512)
            await initiator.command(write10(1, 1, fua=True), data=b"d" * 512)
            for _ in range(3):
                await initiator.receive()
            target.server.crash_cache()
            assert await initiator.closed()
        async with wire(target) as initiator:
            await initiator.log_in(target.name)
            await initiator.command(bytes(6))
            await initiator.command(read10(0, 2), read=1024)
            await initiator.receive()
            assert (await initiator.receive())[4] == bytes(512) + b"d" * 512


async def test_who_does_not_log_in_in_time_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """No socket: the shell waits for the deadline alone, so virtual time can jump to it."""
    async with running_target() as target:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as theirs:
            ours, _ = listener.accept()
            before = trio.current_time()
            with trio.fail_after(LOGIN_TIMEOUT + CLOSE_TIMEOUT + 1):
                await target.server._serve(ours, target.server.config.portals[0])
            assert LOGIN_TIMEOUT <= trio.current_time() - before <= LOGIN_TIMEOUT + CLOSE_TIMEOUT
            assert theirs.recv(1) == b""


@pytest.mark.logs("a bug ended a connection")
async def test_a_bug_ends_its_own_connection_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_target() as target, wire(target) as one, wire(target) as other:
        await one.log_in(target.name)
        await other.log_in(target.name, isid=b"\x80\0\0\0\0\2")

        def bug(self: Connection, count: int) -> None:
            raise AssertionError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(Connection, "received", bug)
            await one.command(bytes(6))
            assert await one.closed()
        await other.command(bytes(6))
        assert (await other.receive())[0] == pdu.SCSI_RESPONSE
        assert target.sessions == 1


async def test_a_portal_in_use_or_elsewhere_is_refused_with_what_to_do() -> None:
    async with running_target() as target:
        port = int(target.portal.rpartition(":")[2])
        for portal in (PortalConfig(port=port), PortalConfig("192.0.2.1", 0), PortalConfig("no.such.host.invalid", 0)):
            with pytest.raises(UsageError, match="cannot listen on"):
                async with running(configuration(portals=(portal,))):
                    pytest.fail("it listens")


async def test_disks_are_written_back_when_the_target_stops(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    lun = LunConfig(0, path=str(path), size=MIB)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve, TargetConfig(portals=(PortalConfig(port=0),), luns=(lun,)))
        server.node.units.units[0].put(0, b"w" * 512, through=False)
        assert path.read_bytes()[:1] == b"\0"
        nursery.cancel_scope.cancel()
    assert path.read_bytes()[:512] == b"w" * 512


async def test_a_target_says_who_came_and_why_they_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "isblk.target"):
        async with running_target(offer=Offer()) as target:
            async with wire(target) as initiator:
                await initiator.log_in(target.name)
            await gone(target)
    assert any("the initiator closed the connection" in line for line in caplog.messages)
