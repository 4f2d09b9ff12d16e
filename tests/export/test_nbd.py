"""The server: exports and their names, many clients, limits, memory, allocation, the end."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from isblk.block.request import Geometry
from isblk.errors import RequestFailed
from isblk.export import nbd
from isblk.export.nbd import STALL_SECONDS, Export, NbdServer, preferred_block, transmission_flags
from isblk.export.nbdwire import TransmissionFlag as Flag
from isblk.link.running import running_plane
from support import rawnbd as raw
from support.memorydevice import MemoryDevice
from support.nbdserving import SIZE, exports_of, serving, settled, until

STRUCTURED = raw.option(raw.STRUCTURED_REPLY)
SELECT = raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation")


# ------------------------------------------------------------------ exports


async def test_an_export_is_found_by_name_number_and_wwid(tmp_path: Path) -> None:
    devices = [MemoryDevice(SIZE, 1), MemoryDevice(2 * SIZE, 1)]
    exports = exports_of(*devices)
    exports[1] = replace(exports[1], name="data", number=17, wwid="naa.6001405abc")
    async with serving(tmp_path, exports=exports) as here:
        for name, size in [(b"", SIZE), (b"0", SIZE), (b"data", 2 * SIZE), (b"17", 2 * SIZE), (b"naa.6001405abc", 2 * SIZE)]:
            client = await here.connect()
            await client.hello()
            info, *_ = await client.ask(raw.go(name))
            assert struct.unpack(">HQH", info[2])[1] == size
            assert (await client.do(raw.READ, size - 1, 1)).data == b"\0"
        client = await here.connect()
        await client.hello()
        assert [data[4:] for _, kind, data in await client.ask(raw.option(raw.LIST)) if kind == raw.SERVER] == [b"0disk 0", b"datadisk 1"]
        assert (await client.ask(raw.go(b"None")))[-1][1] == raw.ERR_UNKNOWN


def test_the_flags_tell_what_the_disk_can() -> None:
    able = Geometry(SIZE, 1, 4096, can_trim=True, can_zero=True)
    always = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE
    changes = Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO
    assert transmission_flags(able, read_only=False, rotational=False) == always | changes | Flag.SEND_TRIM
    assert transmission_flags(replace(able, can_trim=False), read_only=False, rotational=True) == always | changes | Flag.ROTATIONAL
    assert transmission_flags(able, read_only=True, rotational=False) == always | Flag.READ_ONLY


@pytest.mark.parametrize(
    ("physical", "optimal", "preferred"),
    [(512, 0, 4096), (8192, 0, 8192), (512, 65536, 65536), (512, 65535, 4096), (4096, 4 << 20, 4096), (16384, 8192, 16384)],
)
def test_the_preferred_block_is_the_optimal_transfer_or_the_physical_block(physical: int, optimal: int, preferred: int) -> None:
    assert preferred_block(Geometry(SIZE, 1, physical, optimal_transfer=optimal)) == preferred


@pytest.mark.parametrize("by_device", [False, True])
async def test_a_read_only_export_says_so_and_keeps_its_word(tmp_path: Path, by_device: bool) -> None:
    async with serving(tmp_path, MemoryDevice(SIZE, 1, read_only=by_device), read_only=not by_device) as here:
        client = await here.connect()
        await client.hello()
        info, *_ = await client.ask(raw.go())
        assert struct.unpack(">HQH", info[2])[2] & Flag.READ_ONLY
        assert (await client.do(raw.WRITE, 0, 4, 0, 1, b"data")).error == raw.EPERM


async def test_a_resize_is_seen_by_the_next_client_and_obeyed_for_all(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, 1)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        device.resize(2 * SIZE)
        assert (await client.do(raw.READ, SIZE, 10)).data == bytes(10)
        other = await here.connect()
        await other.hello()
        assert struct.unpack(">HQH", (await other.ask(raw.go()))[0][2])[1] == 2 * SIZE


# ------------------------------------------------------------------ many clients


async def test_a_flush_of_one_connection_covers_the_others(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, 1)
    async with serving(tmp_path, device) as here:
        one, other = await here.client(), await here.client()
        assert (await one.do(raw.WRITE, 0, 4, 0, 1, b"data")).error == 0
        assert (await other.do(raw.FLUSH)).error == 0
        assert device.durable[:4] == b"data"


async def test_many_connections_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:

        async def work(number: int) -> None:
            client = await here.client()
            data = bytes([number]) * 1000
            for _ in range(20):
                assert (await client.do(raw.WRITE, 1000 * number, 1000, 0, 1, data)).error == 0
                assert (await client.do(raw.READ, 1000 * number, 1000)).data == data
            await client.send(raw.request(raw.DISC))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(work, number)
        await here.server.drained()
        assert here.server.accepted == 60
        assert here.server.memory.used == 0


async def test_more_than_the_limit_are_turned_away(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=3) as here:
        clients = [await here.client() for _ in range(3)]
        refused = await here.connect()
        assert await refused.rest() == b""
        assert here.server.refused == 1
        assert (await clients[0].do(raw.FLUSH)).error == 0
        await clients[0].close()
        await until(lambda: len(here.server.clients) == 2)
        await here.client()


async def test_a_client_that_is_adopted_needs_no_handshake_and_who_goes_is_told(tmp_path: Path) -> None:
    device, gone = MemoryDevice(SIZE, 1), []
    async with serving(tmp_path, device, max_connections=1) as here:
        here.server.on_gone = lambda client: gone.append((client.address, client.said_goodbye))
        clients = []
        for number in range(3):  # more than the limit: whoever adopts a client has made it
            ours, theirs = socket.socketpair()
            here.server.adopt(ours, f"adopted {number}")
            clients.append(raw.RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(theirs))))
            here.streams.append(clients[-1].stream)
        assert (await clients[1].do(raw.WRITE, 0, 3, data=b"abc")).error == 0
        assert (await clients[0].do(raw.READ, 0, 3)).data == b"abc"
        first = here.server.clients[0]
        assert (first.address, first.export, first.negotiated["replies"]) == ("adopted 0", "0", "simple")
        await clients[0].send(raw.request(raw.DISC))
        await clients[1].close()
        await until(lambda: len(gone) == 2)
        assert sorted(gone) == [("adopted 0", True), ("adopted 1", False)]
        assert (await clients[2].do(raw.READ, 0, 3)).data == b"abc"


async def test_the_last_client_that_had_an_export_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        curious = await here.connect()
        await curious.hello()
        await curious.close()
        await here.server.drained()
        assert not here.server.last_client_gone.is_set(), "who only looked does not end the server"
        one, other = await here.client(), await here.client()
        await one.close()
        await until(lambda: len(here.server.clients) == 1)
        assert not here.server.last_client_gone.is_set()
        await other.close()
        await here.server.last_client_gone.wait()


async def test_a_client_over_tcp(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        listener = socket.create_server(("127.0.0.1", 0))
        here.server.add_listener(listener)
        stream = await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1])
        here.streams.append(stream)
        client = raw.RawClient(stream)
        await client.begin()
        assert (await client.do(raw.READ, 0, 4096)).data == bytes(4096)
        assert here.server.clients[0].address.startswith("127.0.0.1:")


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("how", ["never reads", "never sends"])
async def test_who_sits_on_memory_that_others_wait_for_is_sent_away(tmp_path: Path, autojump_clock: object, how: str) -> None:
    async with serving(tmp_path) as here:
        here.server.memory.budget = 1 << 20
        sitter, waiter = await here.client(), await here.client()
        if how == "never reads":
            await sitter.send(raw.request(raw.READ, 0, SIZE) * 8)  # more than the kernel takes
        else:
            await sitter.send(raw.request(raw.WRITE, 0, SIZE) + b"some")
        await until(lambda: here.server.memory.used == SIZE)
        await trio.sleep(2 * STALL_SECONDS)
        assert len(here.server.clients) == 2, "nobody else wants the memory"
        start = trio.current_time()
        waiter.replies.reads[1] = 4096
        await waiter.send(raw.request(raw.READ, 0, 4096))
        assert (await waiter.answers(1))[0].data == bytes(4096)
        assert STALL_SECONDS - 2 <= trio.current_time() - start <= STALL_SECONDS + 3
        assert len(here.server.clients) == 1


async def test_a_slow_device_is_no_reason_to_send_anybody_away(tmp_path: Path, autojump_clock: object) -> None:
    device = MemoryDevice(SIZE, 1, delay=5 * STALL_SECONDS)
    async with serving(tmp_path, device) as here:
        here.server.memory.budget = 1 << 20
        first, second = await here.client(), await here.client()
        first.replies.reads[1] = second.replies.reads[1] = SIZE
        await first.send(raw.request(raw.READ, 0, SIZE))
        await until(lambda: here.server.memory.used)
        await second.send(raw.request(raw.READ, 0, SIZE))
        assert len(await first.answers(1)) == len(await second.answers(1)) == 1


# ------------------------------------------------------------------ allocation


@dataclass
class Found:
    offset: int
    length: int
    provisioning: int


async def test_block_status_asks_in_whole_blocks_and_answers_what_was_asked(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    async def lba_status(offset: int, length: int) -> Sequence[Found]:
        asked.append((offset, length))
        await trio.lowlevel.checkpoint()
        return [Found(offset, 4096, 1), Found(offset + 4096, length - 4096, 0)]

    device = MemoryDevice(SIZE, 1)
    device.geometry = replace(device.geometry, physical_block_size=4096)
    async with serving(tmp_path, exports=exports_of(device, lba_status=lba_status)) as here:
        client = await here.client(STRUCTURED, SELECT)
        assert (await client.do(raw.BLOCK_STATUS, 100, 8000)).extents == [(3996, 3), (4004, 0)]
        assert (await client.do(raw.BLOCK_STATUS, 100, 8000, raw.REQ_ONE)).extents == [(3996, 3)]
        assert (await client.do(raw.BLOCK_STATUS, SIZE - 1, 1)).extents == [(1, 3)]
        assert asked == [(0, 8192), (0, 8192), (SIZE - 4096, 4096)]
        assert (await client.do(raw.BLOCK_STATUS, SIZE - 1, 2)).error == raw.EINVAL


async def test_without_knowledge_all_is_allocated(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.client(STRUCTURED, SELECT)
        assert (await client.do(raw.BLOCK_STATUS, 5, 1000)).extents == [(1000, 0)]


@pytest.mark.logs("finding out what is allocated failed")
async def test_a_question_that_fails_is_answered(tmp_path: Path) -> None:
    failures: list[Exception] = [RequestFailed("the unit is sick", errno.EIO), KeyError("a bug")]

    async def lba_status(offset: int, length: int) -> Sequence[Found]:
        await trio.lowlevel.checkpoint()
        raise failures.pop(0)

    async with serving(tmp_path, exports=exports_of(MemoryDevice(SIZE, 1), lba_status=lba_status)) as here:
        client = await here.client(STRUCTURED, SELECT)
        answer = await client.do(raw.BLOCK_STATUS, 0, 1000)
        assert (answer.error, answer.message) == (raw.EIO, "the unit is sick")
        assert (await client.do(raw.BLOCK_STATUS, 0, 1000)).error == raw.EIO
        assert (await client.do(raw.FLUSH)).error == 0


async def test_who_leaves_while_a_question_is_out_disturbs_nobody(tmp_path: Path) -> None:
    gate = trio.Event()
    asked: list[int] = []

    async def lba_status(offset: int, length: int) -> Sequence[Found]:
        asked.append(offset)
        await gate.wait()
        return []

    async with serving(tmp_path, exports=exports_of(MemoryDevice(SIZE, 1), lba_status=lba_status)) as here:
        client = await here.client(STRUCTURED, SELECT)
        await client.send(b"".join(raw.request(raw.BLOCK_STATUS, 0, 512, 0, cookie) for cookie in range(20)))
        await until(lambda: len(asked) == nbd.STATUS_QUESTIONS)
        await client.close()
        await here.server.drained()
        gate.set()
        await settled()
        assert len(asked) == nbd.STATUS_QUESTIONS, "what nobody waits for is not asked"
        assert (await (await here.client()).do(raw.FLUSH)).error == 0


# ------------------------------------------------------------------ the end


async def test_closing_answers_what_is_in_flight_and_takes_nothing_more(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, 1, hold=True)
    async with serving(tmp_path, device) as here:
        busy, idle, choosing = await here.client(), await here.client(), await here.connect()
        await choosing.hello()
        await busy.send(raw.request(raw.WRITE, 0, 4, 0, 9, b"data"))
        await until(lambda: device.pending)
        here.server.close()
        assert await idle.rest() == b""
        assert await choosing.rest() == b""
        with pytest.raises(OSError):
            await here.connect()
        assert len(here.server.clients) == 1
        device.complete()
        assert await busy.rest() == struct.pack(">IIQ", 0x67446698, 0, 9)
        await here.server.drained()
        here.server.close()


async def test_abort_waits_for_nobody(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, 1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        await client.send(raw.request(raw.READ, 0, 4))
        await until(lambda: device.pending)
        here.server.abort()
        assert await client.rest() == b""
        await here.server.drained()
        device.complete()
        assert here.server.memory.used == 0


async def test_a_server_without_exports_is_a_bug() -> None:
    async with running_plane() as plane:
        with pytest.raises(AssertionError):
            NbdServer(plane, [])


@pytest.mark.logs("cannot accept an NBD client: Too many open files")
async def test_without_descriptors_accepting_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "ACCEPT_PAUSE", 0.01)
    async with serving(tmp_path) as here:
        (listener,) = here.server._listeners
        listening = listener._socket
        listener._socket = NoDescriptors(listening)  # type: ignore[assignment]
        client = await here.connect()
        await until(lambda: listener._socket.failures)  # type: ignore[attr-defined]
        listener._socket = listening
        await client.begin()
        assert (await client.do(raw.FLUSH)).error == 0


class NoDescriptors:
    def __init__(self, sock: socket.socket) -> None:
        self.failures = 0
        self._sock = sock

    def accept(self) -> None:
        self.failures += 1
        raise OSError(errno.EMFILE, "Too many open files")

    def close(self) -> None:
        self._sock.close()


def test_an_export_is_described() -> None:
    offer = Export("5", "words", MemoryDevice(SIZE, 1), 5, rotational=True).offer(True)  # type: ignore[arg-type]
    assert (offer.name, offer.description, offer.size, offer.minimum_block, offer.preferred_block) == ("5", "words", SIZE, 1, 4096)
    assert offer.flags & Flag.ROTATIONAL and offer.flags & Flag.READ_ONLY


async def test_who_uses_an_export_and_who_has_gone_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    async with serving(tmp_path, MemoryDevice(SIZE, 1)) as here:
        here.server.on_opened = lambda client, export: told.append(("opened", export))
        here.server.on_gone = lambda client: told.append(("gone", client.why))
        client = await here.connect()
        await client.hello()
        assert not told, "no export is chosen yet"
        await client.ask(raw.go(b""))
        assert told == [("opened", "0")]
        await client.send(raw.request(raw.DISC))
        await until(lambda: len(told) == 2)
    assert told[1] == ("gone", "it is done")
