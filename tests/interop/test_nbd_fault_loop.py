"""The fault loop over NBD: a scripted session, cut at every byte of either direction; what was acknowledged and flushed is the oracle.

A run is a client that ends at byte n. Behind it the server must serve a client that was there all along, and a new one; hold no memory;
have done each whole request or not, and none that came in part; and have every change that it acknowledged, on the medium where a flush or
FUA said so.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from isblk.block.gate import Gate
from isblk.export.nbd import Export, NbdServer
from isblk.link.running import running_plane
from support import rawnbd as raw
from support.memorydevice import MemoryDevice
from support.nbdserving import until
from support.rawnbd import RawClient

SIZE = 4096
MAGICS = (b"\x67\x44\x66\x98", b"\x66\x8e\x33\xef", b"\x6e\x8a\x27\x8c")
"""Of an answer to a request, in each of the three forms."""
OPS = {raw.READ: "READ", raw.WRITE: "WRITE", raw.FLUSH: "FLUSH", raw.TRIM: "TRIM", raw.WRITE_ZEROES: "WRITE"}
"""What reaches the device: zeroes that must stay allocated are written."""
OLD, NEW = b"old." * 16, b"new." * 16
REPLIES = {"simple": (), "structured": (raw.STRUCTURED_REPLY,), "extended": (raw.EXTENDED_HEADERS,)}


@dataclass(frozen=True)
class Step:
    """One request, what it does to the disk, and whether its answer promises that everything acknowledged before is on the medium."""

    command: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: bytes = b""
    flushes: bool = False

    def change(self, content: bytearray) -> None:
        if self.command in (raw.WRITE, raw.TRIM, raw.WRITE_ZEROES):
            content[self.offset : self.offset + self.length] = self.data or bytes(self.length)

    def make_durable(self, content: bytearray, durable: bytearray) -> None:
        if self.flushes:
            durable[:] = content
        elif self.flags & raw.FUA:
            durable[self.offset : self.offset + self.length] = content[self.offset : self.offset + self.length]


STEPS = (
    Step(raw.WRITE, 0, 64, data=OLD),
    Step(raw.FLUSH, flushes=True),
    Step(raw.WRITE, 100, 64, raw.FUA, OLD),
    Step(raw.WRITE, 0, 64, data=NEW),
    Step(raw.READ, 0, 96),
    Step(raw.TRIM, 100, 32),
    Step(raw.WRITE_ZEROES, 200, 32, raw.NO_HOLE),
    Step(raw.FLUSH, flushes=True),
    Step(raw.WRITE, 130, 64, data=NEW),
    Step(raw.TRIM, 0, 16, raw.FUA, flushes=True),  # FUA of a TRIM is a flush behind it
    Step(raw.READ, 128, 64),
)


def states() -> list[tuple[bytes, bytes]]:
    """What the disk has, and what its medium has, after so many steps."""
    content, durable = bytearray(SIZE), bytearray(SIZE)
    found = [(bytes(content), bytes(durable))]
    for step in STEPS:
        step.change(content)
        step.make_durable(content, durable)
        found.append((bytes(content), bytes(durable)))
    return found


STATES = states()


class Script:
    """The session as bytes: `pieces` of the client (greeting, options, requests, DISC), and how many of them are requests."""

    def __init__(self, replies: str) -> None:
        self.extended = replies == "extended"
        options = [raw.option(raw.LIST), *(raw.option(each) for each in REPLIES[replies])]
        if replies != "simple":
            options.append(raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation"))
        self.before = [struct.pack(">I", 3), *options, raw.go()]
        make = raw.extended if self.extended else raw.request
        self.requests = [self._request(make, cookie, step) for cookie, step in enumerate(STEPS, 1)]
        self.pieces = [*self.before, *self.requests, make(raw.DISC)]
        self.up = b"".join(self.pieces)
        self.reads = {cookie: step.length for cookie, step in enumerate(STEPS, 1) if step.command == raw.READ}

    def _request(self, make: object, cookie: int, step: Step) -> bytes:
        flags = step.flags | (raw.PAYLOAD_LEN if self.extended and step.command == raw.WRITE else 0)
        assert callable(make)
        made = make(step.command, step.offset, step.length, flags, cookie, step.data)
        assert isinstance(made, bytes)
        return made

    def whole(self, sent: int) -> int:
        """How many requests are whole in the first `sent` bytes."""
        at, count = len(b"".join(self.before)), 0
        for request in self.requests:
            at += len(request)
            count += at <= sent
        return count

    def answers(self, said: bytes) -> list[int]:
        """Where in what the server says each answer ends; each must be a success, in order, for the device finishes at once."""
        begin = min(found for magic in MAGICS if (found := said.find(magic)) >= 0)
        replies, ends = raw.Replies(self.reads), [begin]
        for at in range(begin, len(said)):
            for answer in replies.feed(said[at : at + 1]):
                step = STEPS[len(ends) - 1]
                assert (answer.cookie, answer.error) == (len(ends), 0)
                assert step.command != raw.READ or answer.data == STATES[answer.cookie][0][step.offset : step.offset + step.length]
                ends.append(at + 1)
        assert len(ends) == len(STEPS) + 1 and ends[-1] == len(said)
        return ends


class Lab:
    """A server over a device of its own, and a client that is there all along."""

    def __init__(self, server: NbdServer, device: MemoryDevice, gate: Gate) -> None:
        self.server, self.device, self.gate = server, device, gate
        self.gone = trio.Event()
        server.on_gone = lambda _client: self.gone.set()
        self.witness = RawClient(self.connect())

    def connect(self) -> trio.SocketStream:
        ours, theirs = socket.socketpair()
        self.gone = trio.Event()
        self.server.accept(ours, "test")
        return trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

    def reset(self) -> None:
        self.device.content[:] = bytes(SIZE)
        self.device.durable = bytes(SIZE)

    async def judge(self, acknowledged: int, sent: int) -> None:
        """Everything that must hold when a client that sent and received so many has gone."""
        await self.gone.wait()
        assert len(self.server.clients) == 1
        assert self.server.memory.used == self.gate.in_flight == 0
        allowed = STATES[acknowledged : sent + 1]
        assert bytes(self.device.content) in [content for content, _ in allowed]
        assert self.device.durable in [durable for _, durable in allowed]
        assert (await self.witness.do(raw.READ, 0, 64)).data == self.device.content[:64]


@asynccontextmanager
async def lab() -> AsyncIterator[Lab]:
    device = MemoryDevice(SIZE, block_size=1)
    gate = Gate(device)
    async with running_plane() as plane:
        server = NbdServer(plane, [Export("0", "disk", gate, 0)])
        here = Lab(server, device, gate)
        try:
            await here.witness.begin()
            yield here
            newcomer = RawClient(here.connect())
            await newcomer.begin()
            assert (await newcomer.do(raw.WRITE, 0, 4, data=b"well")).error == 0
            await newcomer.close()
        finally:
            await here.witness.close()
            server.abort()


async def rest(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes."""
    received = bytearray()
    try:
        while data := await stream.receive_some(65536):
            received += data
    except trio.BrokenResourceError:
        pass
    return bytes(received)


async def whole_session(here: Lab, script: Script) -> bytes:
    """What the server says to all of it, up to its close."""
    stream = here.connect()
    await stream.send_all(script.up)
    said = await rest(stream)
    await stream.aclose()
    return said


@pytest.mark.parametrize(("replies", "half_close"), [*((each, True) for each in REPLIES), ("structured", False)])
async def test_what_the_client_sends_is_cut_at_every_byte(replies: str, half_close: bool) -> None:
    """All at once, as a client with many requests in flight. Who closes only its sending side gets every answer; who goes away, none."""
    script = Script(replies)
    async with lab() as here:
        said = await whole_session(here, script)
        ends = script.answers(said)
        await here.judge(len(STEPS), len(STEPS))
        for cut in range(len(script.up)):
            here.reset()
            stream, sent = here.connect(), script.whole(cut)
            await stream.send_all(script.up[:cut])
            if half_close:
                await stream.send_eof()
                told = await rest(stream)
                assert said.startswith(told), f"cut at {cut}"
                assert len(told) == ends[sent] if sent else len(told) <= ends[0], f"cut at {cut}"
            await stream.aclose()
            await here.judge(sent if half_close else 0, sent)


@pytest.mark.parametrize("replies", REPLIES)
async def test_what_the_server_sends_is_cut_at_every_byte(replies: str) -> None:
    """The client sends each request when the answer to the one before is there, and goes away at byte n of what it receives."""
    script = Script(replies)
    async with lab() as here:
        said = await whole_session(here, script)
        ends = script.answers(said)
        for cut in range(len(said)):
            here.reset()
            stream, received, sent = here.connect(), b"", 0
            await stream.send_all(b"".join(script.before))
            while len(received) < cut:
                if len(received) == ends[sent]:
                    await stream.send_all(script.requests[sent])
                    sent += 1
                received += await stream.receive_some(min(cut, ends[sent]) - len(received))
            assert received == said[:cut]
            await stream.aclose()
            await here.judge(max(sent - (cut < ends[sent]), 0), sent)


@pytest.mark.parametrize("replies", ["simple", "extended"])
async def test_a_cut_while_the_device_is_still_at_work(replies: str) -> None:
    """The answers come when nobody is there any more: what reached the device is what was whole, and it keeps its memory until then."""
    script = Script(replies)
    async with lab() as here:
        here.device.hold = True
        for cut in range(len(script.up)):
            here.device.requests.clear()
            stream, sent = here.connect(), script.whole(cut)
            await stream.send_all(script.up[:cut])
            await until(lambda sent=sent: len(here.device.pending) == sent)
            await stream.aclose()
            await here.gone.wait()
            assert [seen.op.name for seen in here.device.requests] == [OPS[step.command] for step in STEPS[:sent]]
            assert bool(here.server.memory.used) is any(step.command in (raw.READ, raw.WRITE) for step in STEPS[:sent])
            here.device.complete_all()
            assert here.server.memory.used == here.gate.in_flight == 0
        here.device.hold = False
        assert (await here.witness.do(raw.READ, 0, 4)).error == 0


async def test_a_cut_in_the_middle_of_a_large_answer() -> None:
    """The server is stuck in the middle of sending when the client goes away, having read every n-th byte of 256 KiB."""
    device = MemoryDevice(1 << 18, block_size=1)
    async with running_plane() as plane:
        server = NbdServer(plane, [Export("0", "disk", Gate(device), 0)])
        for cut in range(0, (1 << 18) + 16, 4099):
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            server.accept(ours, "test")
            client = RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
            await client.begin()
            await client.send(raw.request(raw.READ, 0, 1 << 18) + raw.request(raw.WRITE, 0, 4, data=b"done"))
            await client.take(cut)
            await client.close()
            await until(lambda: not server.clients)
            assert server.memory.used == 0
        assert device.content[:4] == b"done"
        server.abort()
