"""The relay that fails to order (support/faultline.py), over plain sockets: what the tests of failover believe of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.faultline import Fault, Relay, Way

DATA = bytes(range(256)) * 8
CUT = 700


class Peer:
    """A target that echoes; `got` is what came on each connection, `ended` how it ended ('' while it has not)."""

    def __init__(self) -> None:
        self.got: list[bytearray] = []
        self.ended: list[str] = []
        self._changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        number = len(self.got)
        self.got.append(bytearray())
        self.ended.append("")
        try:
            async with stream:
                while data := await stream.receive_some(65536):
                    self.got[number] += data
                    self._change()
                    await stream.send_all(data)
            self.ended[number] = "end"
        except trio.BrokenResourceError:
            self.ended[number] = "reset"
        self._change()

    async def has(self, count: int, number: int = 0) -> bytes:
        """What came on a connection, once it is so many bytes."""
        while len(self.got) <= number or len(self.got[number]) < count:
            await self._changed.wait()
        return bytes(self.got[number])

    async def end(self, number: int = 0) -> str:
        while len(self.got) <= number or not self.ended[number]:
            await self._changed.wait()
        return self.ended[number]

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, Peer]]:
    peer = Peer()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, peer.serve, [listener])
        async with Relay(listener.socket.getsockname()[1]).running() as relay:
            yield relay, peer
        nursery.cancel_scope.cancel()


async def connected(relay: Relay) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(relay.portal.rpartition(":")[2]))


async def read(stream: trio.SocketStream, count: int) -> bytes:
    """`count` bytes, or fewer where the stream ends first."""
    data = b""
    while len(data) < count and (more := await stream.receive_some(count - len(data))):
        data += more
    return data


async def until_reset(stream: trio.SocketStream) -> bytes:
    """What comes before the stream is reset; AssertionError if it ends well."""
    data = b""
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        return data
    raise AssertionError(f"the stream ended well, after {len(data)} bytes")


async def is_quiet(stream: trio.SocketStream) -> bool:
    """Whether nothing comes, not even an end, while everything that could move has moved."""
    with trio.move_on_after(0.1):
        await stream.receive_some(1)
        return False
    return True


async def test_what_nothing_happens_to_passes_and_is_counted() -> None:
    async with relayed() as (relay, peer):
        for number in range(2):
            async with await connected(relay) as client:
                await client.send_all(DATA)
                assert await read(client, len(DATA)) == DATA
                await client.send_eof()
                assert await client.receive_some(1) == b""
            assert await peer.end(number) == "end"
        assert relay.counts == [2 * len(DATA), 2 * len(DATA)]


@pytest.mark.parametrize("way", Way)
async def test_a_reset_at_a_byte_lets_the_bytes_before_it_pass_and_reaches_both_ends(way: Way) -> None:
    async with relayed() as (relay, peer):
        relay.arm(way, CUT, Fault.RESET)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            got = await until_reset(client)
            assert await peer.end() == "reset"
        passed = bytes(peer.got[0]) if way is Way.TO_TARGET else got
        assert passed == DATA[:CUT]
        assert relay.fired.is_set()


@pytest.mark.parametrize("way", Way)
async def test_one_bit_of_the_byte_is_turned_over(way: Way) -> None:
    async with relayed() as (relay, _):
        relay.arm(way, CUT, Fault.CORRUPT)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            got = await read(client, len(DATA))
        assert [at for at, byte in enumerate(got) if byte != DATA[at]] == [CUT]
        assert (got[CUT] ^ DATA[CUT]).bit_count() == 1


async def test_a_half_close_ends_one_way_at_the_byte_and_leaves_the_other_open() -> None:
    async with relayed() as (relay, peer):
        relay.arm(Way.TO_INITIATOR, CUT, Fault.HALF_CLOSE)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            assert await read(client, len(DATA)) == DATA[:CUT]
            await client.send_all(DATA)
            assert await peer.has(2 * len(DATA)) == 2 * DATA


async def test_after_a_reset_of_the_client_alone_the_target_hears_nothing_until_the_rest_is_delivered() -> None:
    async with relayed() as (relay, peer):
        relay.arm(Way.TO_TARGET, CUT, Fault.CLIENT_RESET)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            await until_reset(client)
        assert await peer.has(CUT) == DATA[:CUT]
        async with await connected(relay) as again:
            await again.send_all(DATA)
            assert await read(again, len(DATA)) == DATA
        assert (bytes(peer.got[0]), peer.ended[0]) == (DATA[:CUT], "")
        relay.heal()
        assert await peer.has(len(DATA)) == DATA


@pytest.mark.parametrize("fault", [Fault.BLACK_HOLE, Fault.STALL])
@pytest.mark.parametrize("way", Way)
async def test_what_is_kept_is_delivered_when_the_network_heals(fault: Fault, way: Way) -> None:
    async with relayed() as (relay, peer):
        relay.arm(way, CUT, fault)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            await relay.fired.wait()
            if way is Way.TO_TARGET:
                assert await peer.has(CUT) == DATA[:CUT]
                got = b"" if fault is Fault.BLACK_HOLE else await read(client, CUT)
            else:
                got = await read(client, CUT)
            assert await is_quiet(client)
            relay.heal()
            assert got + await read(client, len(DATA) - len(got)) == DATA


async def test_a_black_hole_swallows_new_connections_as_well() -> None:
    async with relayed() as (relay, _):
        relay.black_hole()
        async with await connected(relay) as client:
            await client.send_all(b"hello")
            assert await is_quiet(client)
            relay.heal()
            assert await read(client, 5) == b"hello"


async def test_refused_portals_come_back_at_the_same_port() -> None:
    async with relayed() as (relay, _), await connected(relay) as before:
        relay.refuse()
        with pytest.raises(OSError):
            await connected(relay)
        await before.send_all(b"on")
        assert await read(before, 2) == b"on"
        await relay.accept()
        async with await connected(relay) as after:
            await after.send_all(b"again")
            assert await read(after, 5) == b"again"


async def test_a_fault_that_is_not_reached_does_not_happen() -> None:
    async with relayed() as (relay, _):
        relay.arm(Way.TO_TARGET, len(DATA), Fault.RESET)
        async with await connected(relay) as client:
            await client.send_all(DATA)
            assert await read(client, len(DATA)) == DATA
            assert not relay.fired.is_set()
            relay.disarm()
            await client.send_all(DATA)
            assert await read(client, len(DATA)) == DATA
