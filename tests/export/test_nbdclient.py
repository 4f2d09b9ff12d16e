"""One client on the plane: phases, turns, back-pressure, disconnects; whatever it does, the next client is served."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isblk.export import nbdclient, nbdsession
from isblk.export.nbdclient import HANDSHAKE_SECONDS, _behind
from support import rawnbd as raw
from support.memorydevice import MemoryDevice
from support.nbdserving import SIZE, Serving, serving, until
from support.rawnbd import RawClient


async def still_serves(here: Serving) -> None:
    """A new client is served as if nothing had happened."""
    client = await here.client()
    assert (await client.do(raw.WRITE, 0, 4, 0, 1, b"well")).error == 0
    assert (await client.do(raw.READ, 0, 4)).data == b"well"
    await client.close()


async def test_a_conversation(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.client(raw.option(raw.STRUCTURED_REPLY))
        assert (await client.do(raw.WRITE, 5, 7, raw.FUA, 1, b"content")).error == 0
        assert (await client.do(raw.READ, 5, 7)).data == b"content"
        assert (await client.do(raw.READ, SIZE, 7)).error == raw.EINVAL
        (status,) = here.server.clients
        assert status.export == "0"
        assert status.negotiated == {"phase": "transmission", "replies": "structured", "allocation": False, "tls": "none"}
        assert status.counters["bytes_written"] == 7
        await client.send(raw.request(raw.DISC))
        assert await client.rest() == b""
        await here.server.drained()
        assert here.server.last_client_gone.is_set()


async def test_requests_behind_go_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.connect()
        await client.send(struct.pack(">I", 3) + raw.go() + raw.request(raw.FLUSH, cookie=7) + raw.request(raw.DISC))
        assert (await client.rest())[-16:] == struct.pack(">IIQ", 0x67446698, 0, 7)


async def test_everything_byte_by_byte(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.connect()
        for byte in struct.pack(">I", 3) + raw.go() + raw.request(raw.WRITE, 0, 3, 0, 1, b"abc") + raw.request(raw.DISC):
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert (await client.rest())[-16:] == struct.pack(">IIQ", 0x67446698, 0, 1)
        assert len(here.server.clients) == 0


async def test_many_requests_in_flight_are_answered_out_of_order(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, block_size=1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        client.replies.reads = dict.fromkeys(range(20), 512)
        await client.send(b"".join(raw.request(raw.READ, 512 * cookie, 512, 0, cookie) for cookie in range(20)))
        await until(lambda: len(device.pending) == 20)
        for _ in range(20):
            device.complete(-1)
        assert [answer.cookie for answer in await client.answers(20)] == list(range(19, -1, -1))


@pytest.mark.parametrize("length", [1, 4096, 100_000, SIZE])
async def test_large_and_small_transfers(tmp_path: Path, length: int) -> None:
    async with serving(tmp_path) as here:
        client = await here.client()
        data = os.urandom(length)
        async with trio.open_nursery() as nursery:  # more than the socket's buffers hold, both ways
            nursery.start_soon(client.send, b"".join(raw.request(raw.WRITE, 0, length, 0, cookie, data) for cookie in range(10)))
            assert [answer.error for answer in await client.answers(10)] == [0] * 10
        client.replies.reads = dict.fromkeys(range(10), length)
        await client.send(b"".join(raw.request(raw.READ, 0, length, 0, cookie) for cookie in range(10)))
        assert all(answer.data == data for answer in await client.answers(10))


# ------------------------------------------------------------------ clients that misbehave

RUBBISH = [
    b"GET / HTTP/1.1\r\n\r\n",
    bytes(4096),
    struct.pack(">I", 3) + bytes(16),
    struct.pack(">I", 3) + raw.option(raw.EXPORT_NAME, b"nothing there"),
    struct.pack(">I", 3) + raw.go() + bytes(28),
    struct.pack(">I", 3) + raw.go() + raw.extended(raw.READ, 0, 512),
    struct.pack(">I", 3) + raw.go() + raw.request(raw.WRITE, 0, 0xFFFFFFFF),
]


@pytest.mark.parametrize("sent", RUBBISH)
async def test_rubbish_ends_its_own_connection_only(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as here:
        other = await here.client()
        client = await here.connect()
        await client.send(sent)
        await client.rest()
        assert (await other.do(raw.FLUSH)).error == 0
        await still_serves(here)


SESSION = (
    struct.pack(">I", 3)
    + raw.option(raw.STRUCTURED_REPLY)
    + raw.go()
    + raw.request(raw.WRITE, 0, 20, 0, 1, b"twenty bytes of data")
    + raw.request(raw.READ, 0, 20, 0, 2)
    + raw.request(raw.FLUSH, cookie=3)
)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_cut_at_every_byte(tmp_path: Path, reset: bool) -> None:
    async with serving(tmp_path) as here:
        for cut in range(len(SESSION) + 1):
            client = await here.connect()
            await client.send(SESSION[:cut])
            if not reset:
                await client.stream.send_eof()
                await client.rest()
            await client.close()
        await here.server.drained()
        assert here.server.accepted == len(SESSION) + 1
        assert here.server.memory.used == 0
        await still_serves(here)


async def test_who_sends_no_more_still_gets_the_answers(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, block_size=1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        await client.send(raw.request(raw.FLUSH) * 300)
        await client.stream.send_eof()
        with trio.fail_after(10):
            answers = 0
            while answers < 300:
                await until(lambda: device.pending)
                device.complete()
                answers += 1
        assert len(await client.rest()) == 300 * 16


async def test_who_disconnects_with_requests_in_flight_leaves_nothing_behind(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, block_size=1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        await client.send(raw.request(raw.READ, 0, 4096) * 8 + raw.request(raw.WRITE, 0, 4, 0, 1, b"data"))
        await until(lambda: len(device.pending) == 9)
        await client.close()
        await here.server.drained()
        assert here.server.memory.used == 9 * 4096
        device.complete_all()
        assert here.server.memory.used == 0
        assert device.content[:4] == b"data"


async def test_disc_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, block_size=1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        await client.send(raw.request(raw.FLUSH, cookie=5) + raw.request(raw.DISC))
        await until(lambda: device.pending)
        assert len(here.server.clients) == 1
        device.complete()
        assert await client.rest() == struct.pack(">IIQ", 0x67446698, 0, 5)


async def test_a_client_that_never_reads_stops_itself_and_nobody_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        mute = await here.client()
        with trio.move_on_after(0.3):
            while True:
                await mute.send(raw.request(raw.READ, 0, 65536) * 100)
        (status,) = here.server.clients
        assert 0 < status.counters["open"] <= nbdsession.OPEN_LIMIT
        assert here.server.memory.used <= (nbdsession.OPEN_LIMIT + 1) * 65536
        polls = here.plane.polls
        await trio.sleep(0.05)
        assert here.plane.polls - polls < 20, "the plane spins for a client that does not read"
        await still_serves(here)
        await mute.close()
        await until(lambda: not here.server.memory.used)


async def test_a_parked_client_that_goes_away_does_not_spin_the_plane(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE, block_size=1, hold=True)
    async with serving(tmp_path, device) as here:
        client = await here.client()
        await client.send(raw.request(raw.FLUSH) * (nbdsession.OPEN_LIMIT + 50))
        await until(lambda: len(device.pending) == nbdsession.OPEN_LIMIT)
        await client.close()
        await here.server.drained()
        polls = here.plane.polls
        await trio.sleep(0.05)
        assert here.plane.polls - polls < 20
        device.complete_all()
        await still_serves_with(here, device)


async def still_serves_with(here: Serving, device: MemoryDevice) -> None:
    device.hold = False
    await still_serves(here)


async def test_a_greedy_client_leaves_turns_to_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        greedy, modest = await here.client(), await here.client()

        async def flood() -> None:
            while True:
                await greedy.send(raw.request(raw.FLUSH) * 2000)

        async def swallow() -> None:
            while True:
                await greedy.stream.receive_some(1 << 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            nursery.start_soon(swallow)
            for _ in range(50):
                with trio.fail_after(2):
                    assert (await modest.do(raw.FLUSH)).error == 0
            nursery.cancel_scope.cancel()


async def test_memory_comes_round_to_everybody(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        here.server.memory.budget = 300_000
        clients = [await here.client() for _ in range(6)]

        async def work(client: RawClient) -> None:
            client.replies.reads = dict.fromkeys(range(8), 262144)
            for _ in range(3):
                await client.send(b"".join(raw.request(raw.READ, 0, 262144, 0, cookie) for cookie in range(8)))
                assert len(await client.answers(8)) == 8

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(work, client)
        assert here.server.memory.used == 0


@pytest.mark.source_form("replaces a method")
async def test_memory_that_came_back_before_somebody_waits_for_it_is_not_waited_for(tmp_path: Path) -> None:
    """What the end of a batch sets off may give buffers back: between a client's looking for one and its asking to be told."""
    async with serving(tmp_path) as here:
        here.server.memory.budget = 4096
        client = await here.client()
        client.replies.reads = {7: 4096}
        taken = here.server.memory.take(4096)
        assert taken is not None
        gate = here.server.exports[0].gate

        def give_back() -> None:
            if here.server.memory.short:
                here.server.memory.give(taken)

        gate.kick = give_back  # type: ignore[method-assign]
        await client.send(raw.request(raw.READ, 0, 4096, 0, 7))
        with trio.fail_after(10):
            assert len(await client.answers(1)) == 1


@pytest.mark.logs("a bug: serving the NBD client")
async def test_a_bug_below_ends_the_client_and_is_logged(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.client()
        here.server.exports[0].gate = BrokenDevice(MemoryDevice(SIZE, block_size=1))
        broken = await here.client()
        await broken.send(raw.request(raw.READ, 0, 512))
        assert await broken.rest() == b""
        assert (await client.do(raw.FLUSH)).error == 0


class BrokenDevice:
    def __init__(self, device: MemoryDevice) -> None:
        self.geometry = device.geometry

    def submit(self, request: object) -> None:
        raise RuntimeError("a bug")

    def kick(self) -> None:
        """Nothing to do."""


async def test_who_takes_too_long_to_choose_is_sent_away(tmp_path: Path, autojump_clock: object) -> None:
    async with serving(tmp_path) as here:
        start = trio.current_time()
        slow, busy, quick = await here.connect(), await here.connect(), await here.client()
        await slow.hello()
        await busy.hello()
        await slow.send(raw.option(raw.GO, length=100) + b"and then nothing")
        assert await slow.rest() == b""
        assert HANDSHAKE_SECONDS <= trio.current_time() - start < HANDSHAKE_SECONDS + 3
        assert await busy.rest() == b""
        assert (await quick.do(raw.FLUSH)).error == 0, "a client that has chosen may be silent for ever"


async def test_during_the_handshake_a_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        client = await here.connect()
        await client.hello()
        with trio.move_on_after(0.2):
            for _ in range(900):
                await client.send(raw.option(raw.LIST))
        assert len(here.server.clients) <= 1
        await still_serves(here)


def test_what_is_left_of_buffers() -> None:
    buffers = [b"abc", memoryview(b"defg"), b"h"]
    for sent in range(9):
        assert b"".join(_behind(buffers, sent)) == b"abcdefgh"[sent:]
    assert _behind([], 0) == ()


async def test_sends_are_bounded_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdclient, "SENDS", 1)
    monkeypatch.setattr(nbdclient, "PIECES", 2)
    monkeypatch.setattr(nbdclient, "RECEIVES", 1)
    async with serving(tmp_path) as here:
        client = await here.client()
        client.replies.reads = dict.fromkeys(range(100), 4096)
        await client.send(b"".join(raw.request(raw.READ, 0, 4096, 0, cookie) for cookie in range(100)))
        assert len(await client.answers(100)) == 100


PARTS = st.one_of(st.binary(max_size=60), st.sampled_from([SESSION, *RUBBISH]), st.builds(raw.option, st.integers(0, 12)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([SESSION, *RUBBISH]), st.builds(raw.option, st.integers(0, 12))), max_size=6
    )
)
async def test_random_bytes_end_nothing_but_their_own_connection(tmp_path_factory: pytest.TempPathFactory, sent: list[bytes]) -> None:
    async with serving(tmp_path_factory.mktemp("nbd")) as here:
        other = await here.client()
        client = await here.connect()
        try:
            await client.send(b"".join(sent))
            await client.stream.send_eof()
        except (trio.BrokenResourceError, OSError):
            pass
        await client.rest()
        assert (await other.do(raw.WRITE, 0, 4, 0, 1, b"mine")).error == 0
        assert (await other.do(raw.READ, 0, 4)).data == b"mine"


async def test_the_address_of_a_unix_client_is_its_process(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        await here.client()
        assert here.server.clients[0].address == f"process {os.getpid()} of user {os.getuid()}"
