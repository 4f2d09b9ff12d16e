"""One connection on the plane against a peer in the same trio run: bytes in any pieces, silence, deadlines, logouts and sudden ends."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from isblk.errors import PathLost, RequestFailed
from isblk.iscsi.names import Portal
from isblk.iscsi.pdu import TaskManagement
from isblk.iscsi.task import Task
from isblk.link.connection import PIECES, RECEIVES, SENDS, Connection, Timing
from isblk.link.plane import WRITABLE, Plane
from isblk.link.running import running_plane
from support.scripts import LUN_1, NO_TAG, READ_CDB, WRITE_CDB, Script, Sent, taken_apart

CALM = Timing(noop_interval=0, task_timeout=1000)
UNSOLICITED: dict[str, Any] = {"initial_r2t": False, "immediate_data": False, "first_burst_length": 1 << 24}


class Peer:
    """The target's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = trio.socket.from_stdlib_socket(sock)
        self.rest = b""

    async def say(self, *pdus: bytes) -> None:
        data = b"".join(pdus)
        while data:
            data = data[await self.socket.send(data) :]

    async def hear(self, count: int = 1) -> list[Sent]:
        """The next `count` PDUs of the initiator."""
        heard: list[Sent] = []
        while len(heard) < count:
            whole = self._whole()
            if whole:
                heard += taken_apart(self.rest[:whole])
                self.rest = self.rest[whole:]
                continue
            data = await self.socket.recv(1 << 20)
            assert data, "the initiator closed the connection"
            self.rest += data
        return heard

    async def one(self) -> Sent:
        (sent,) = await self.hear()
        return sent

    def _whole(self) -> int:
        """Bytes of the first PDU, 0 while it is not whole."""
        if len(self.rest) < 48:
            return 0
        length = 48 + self.rest[4] * 4 + (int.from_bytes(self.rest[5:8], "big") + 3 & ~3)
        return length if length <= len(self.rest) else 0

    async def ended(self) -> bool:
        """Whether the initiator has closed: an end or a reset."""
        try:
            return await self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Link:
    """A connection, the script that knows its numbers, and the peer."""

    def __init__(
        self, plane: Plane, script: Script, timing: Timing, pair: tuple[socket.socket, socket.socket], wrap: Callable[[Any], Any]
    ) -> None:
        self.plane = plane
        self.script = script
        here, there = pair
        here.setblocking(False)
        there.setblocking(False)
        self.peer = Peer(there)
        self.connection = Connection(plane, wrap(here), script.framer, script.session, Portal("192.0.2.1", 3260), timing)

    def submit(self, task: Task) -> Task:
        self.connection.submit(task)
        self.connection.kick()
        return task


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


@asynccontextmanager
async def linked(
    timing: Timing = CALM,
    *,
    tcp: bool = False,
    watch: bool = False,
    wrap: Callable[[Any], Any] = lambda sock: sock,
    plane: Plane | None = None,
    **changes: Any,
) -> AsyncIterator[Link]:
    """A connection over a socket pair, or over TCP on the loopback; whatever the test leaves open is closed."""
    if plane is None:
        async with running_plane() as own, linked(timing, tcp=tcp, watch=watch, wrap=wrap, plane=own, **changes) as link:
            yield link
        return
    link = Link(plane, Script(**changes), timing, tcp_pair() if tcp else socket.socketpair(), wrap)
    if watch:
        plane.start_soon(link.connection.watch)
    try:
        yield link
    finally:
        link.connection.fail(PathLost("the test is over"))
        link.peer.socket.close()


async def in_background(function: Callable[[], Any], nursery: trio.Nursery) -> Callable[[], Any]:
    """Start a coroutine function; the answer gives its result once it has ended."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await function())

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return lambda: results[0]


# ------------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_read_brings_the_data(tcp: bool) -> None:
    async with linked(tcp=tcp) as link:
        async with trio.open_nursery() as nursery:
            result = await in_background(lambda: link.connection.execute(LUN_1, READ_CDB, 1000), nursery)
            command = await link.peer.one()
            await link.peer.say(link.script.data_in(command.itt, bytes(range(250)) * 4, status=0))
        assert (result().status, result().data, result().residual) == (0, bytes(range(250)) * 4, 0)


async def test_a_short_read_is_cut_to_what_came() -> None:
    async with linked() as link:
        async with trio.open_nursery() as nursery:
            result = await in_background(lambda: link.connection.execute(LUN_1, READ_CDB, 1000), nursery)
            itt = (await link.peer.one()).itt
            await link.peer.say(link.script.data_in(itt, b"abcd", status=0, flags=2, residual=996))
        assert (result().data, result().residual) == (b"abcd", 996)


async def test_a_write_carries_its_data_and_a_status_comes_back() -> None:
    async with linked() as link:
        async with trio.open_nursery() as nursery:
            result = await in_background(lambda: link.connection.execute(LUN_1, WRITE_CDB, write=b"abcde"), nursery)
            command = await link.peer.one()
            assert command.data == b"abcde"
            await link.peer.say(link.script.response(command.itt, 2, sense=b"\0\4abcd", flags=0))
        assert (result().status, result().sense, result().data) == (2, b"abcd", b"")


async def test_a_command_that_the_target_fails_itself_raises() -> None:
    async with linked() as link, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(RequestFailed):
                await link.connection.execute(LUN_1, READ_CDB, 8)

        nursery.start_soon(ask)
        await link.peer.say(link.script.response((await link.peer.one()).itt, response=1))


async def test_a_cancelled_wait_leaves_the_command_and_its_memory_alone() -> None:
    async with linked() as link:
        with trio.move_on_after(0):
            await link.connection.execute(LUN_1, READ_CDB, 8)
        command = await link.peer.one()
        assert link.script.session.open_tasks == 1
        await link.peer.say(link.script.data_in(command.itt, b"12345678", status=0), link.script.nop_in(ttt=1))
        assert (await link.peer.one()).ttt == 1
        assert link.script.session.open_tasks == 0


async def test_a_text_answer_in_parts_becomes_pairs() -> None:
    async with linked(discovery=True) as link:
        async with trio.open_nursery() as nursery:
            result = await in_background(lambda: link.connection.text([("SendTargets", "All")]), nursery)
            request = await link.peer.one()
            assert request.data == b"SendTargets=All\0"
            await link.peer.say(link.script.text(request.itt, b"TargetName=iqn.x\0Target", ttt=5, flags=0x40))
            assert (await link.peer.one()).ttt == 5
            await link.peer.say(link.script.text(request.itt, b"Address=192.0.2.1:3260,1\0"))
        assert result() == [("TargetName", "iqn.x"), ("TargetAddress", "192.0.2.1:3260,1")]


async def test_a_text_answer_that_breaks_the_protocol_ends_the_wait() -> None:
    async with linked(discovery=True) as link, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(PathLost, match=r"192\.0\.2\.1.*broke the protocol"):
                await link.connection.text([("SendTargets", "All")])

        nursery.start_soon(ask)
        await link.peer.say(link.script.text((await link.peer.one()).itt, b"x", flags=0))


async def test_a_ping_and_a_management_function_are_waited_for() -> None:
    async with linked() as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.connection.ping)
            await link.peer.say(link.script.nop_in((await link.peer.one()).itt))
        async with trio.open_nursery() as nursery:
            result = await in_background(lambda: link.connection.manage(TaskManagement.LOGICAL_UNIT_RESET, lun=LUN_1), nursery)
            await link.peer.say(link.script.managed((await link.peer.one()).itt, 5))
        assert result() == 5


# ------------------------------------------------------------------------------------------------------------------- sudden ends


async def ending(link: Link, how: Callable[[], Any], text: str) -> None:
    """Everything open ends with PathLost when the peer does this; nothing is left behind."""
    told: list[Task] = []
    tasks = [link.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8)), done=told.append)) for _ in range(3)]
    await link.peer.hear(3)
    answer = how()
    if answer is not None:
        await link.peer.say(answer)
    await link.connection.closed.wait()
    assert told == tasks and all(isinstance(task.error, PathLost) for task in tasks)
    assert text in str(link.connection.error)
    late = link.submit(Task(LUN_1, READ_CDB, done=told.append))
    assert isinstance(late.error, PathLost)
    link.connection.fail(PathLost("again"))
    assert text in str(link.connection.error)


async def test_a_peer_that_closes_ends_everything() -> None:
    async with linked() as link:
        await ending(link, lambda: link.peer.socket.close(), "192.0.2.1:3260 closed the connection")


async def test_a_reset_ends_everything() -> None:
    async with linked(tcp=True) as link:
        await ending(link, link.peer.reset, "broke: Connection reset by peer")


async def test_a_protocol_error_ends_everything_and_resets_the_connection() -> None:
    async with linked(tcp=True) as link:
        await ending(link, lambda: b"\xff" * 48, "broke the protocol")
        assert await link.peer.ended()


async def test_a_damaged_digest_ends_everything() -> None:
    async with linked(header_digest=True, data_digest=True) as link:
        task = link.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8))))
        stream = bytearray(link.script.data_in(task.itt, b"12345678", status=0))
        stream[-1] ^= 1
        await link.peer.say(bytes(stream))
        await link.connection.closed.wait()
        assert isinstance(task.error, PathLost) and "data digest" in str(task.error)
        assert link.connection.fault == "digest", "counted as what it was"


@pytest.mark.logs("ending a broken handler failed")
async def test_a_bug_in_a_callback_ends_its_own_connection_only() -> None:
    def bug(_task: Task) -> None:
        raise RuntimeError("a bug above")

    async with running_plane() as plane, linked(plane=plane) as bad, linked(plane=plane) as good:
        task = bad.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8)), done=bug))
        other = bad.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8))))
        await bad.peer.say(bad.script.data_in(task.itt, b"12345678", status=0))
        await bad.connection.closed.wait()
        assert isinstance(other.error, PathLost) and "please report" in str(other.error)
        assert not good.connection.closed.is_set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(good.connection.ping)
            await good.peer.say(good.script.nop_in((await good.peer.one()).itt))


async def test_a_callback_may_end_the_connection() -> None:
    async with linked() as link:
        task = link.submit(Task(LUN_1, bytes(6), done=lambda _task: link.connection.fail(PathLost("enough"))))
        other = link.submit(Task(LUN_1, bytes(6)))
        await link.peer.say(link.script.response(task.itt), link.script.response(other.itt))
        await link.connection.closed.wait()
        assert str(link.connection.error) == "enough" and isinstance(other.error, PathLost)


async def test_a_false_alarm_is_no_matter() -> None:
    async with linked() as link:
        link.connection.ready(select.EPOLLIN)
        assert not link.connection.closed.is_set() and link.connection.traffic.receives == 0


async def test_a_partial_large_answer_and_then_the_end_leaves_no_memory_pinned() -> None:
    async with linked() as link:
        memory = bytearray(100_000)
        link.submit(Task(LUN_1, READ_CDB, memoryview(memory)))
        itt = (await link.peer.one()).itt
        await link.peer.say(link.script.data_in(itt, bytes(100_000), status=0)[:60_000])
        link.peer.socket.close()
        await link.connection.closed.wait()
        assert link.script.session.open_tasks == 0


async def test_a_connection_that_has_ended_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with linked(watch=True) as link:
        link.submit(Task(LUN_1, bytes(6)))
    assert len(os.listdir("/proc/self/fd")) == before


# -------------------------------------------------------------------------------------------------silence and deadlines (no time passes)

NOOP = Timing(noop_interval=5, noop_timeout=5, task_timeout=1000)


async def test_after_silence_the_peer_is_pinged_and_an_answer_keeps_the_connection(autojump_clock: MockClock) -> None:
    async with linked(NOOP, watch=True) as link:
        start = trio.current_time()
        for turn in range(1, 4):
            ping = await link.peer.one()
            assert (ping.opcode, ping.ttt) == (0, NO_TAG)
            assert 5 * turn <= trio.current_time() - start <= 7 * turn
            await link.peer.say(link.script.nop_in(ping.itt))
        assert not link.connection.closed.is_set()


async def test_a_peer_that_stays_silent_is_given_up(autojump_clock: MockClock) -> None:
    async with linked(NOOP, watch=True) as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        start = trio.current_time()
        await link.connection.closed.wait()
        assert trio.current_time() - start == 10
        assert "has been silent for 10 s" in str(task.error)


async def test_any_word_of_the_peer_counts_as_life(autojump_clock: MockClock) -> None:
    async with linked(NOOP, watch=True) as link:
        for _ in range(20):
            await trio.sleep(4)
            await link.peer.say(link.script.nop_in())
        assert not link.connection.closed.is_set()
        assert link.connection.traffic.sends == 0, "who is heard is not pinged"


async def test_pings_can_be_turned_off(autojump_clock: MockClock) -> None:
    async with linked(CALM, watch=True) as link:
        await trio.sleep(500)
        assert not link.connection.closed.is_set() and link.connection.traffic.sends == 0


SLOW = Timing(noop_interval=0, task_timeout=60, abort_timeout=15)


async def test_a_command_that_takes_too_long_is_aborted_and_the_connection_stays(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        start = trio.current_time()
        task = link.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8))))
        command, abort = await link.peer.hear(2)
        assert (abort.opcode, abort.flags, abort.word(20), trio.current_time() - start) == (2, 0x81, command.itt, 60)
        await link.peer.say(link.script.managed(abort.itt))
        await trio.sleep(100)
        assert isinstance(task.error, RequestFailed) and not link.connection.closed.is_set()


async def test_a_younger_command_is_left_alone(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        old = link.submit(Task(LUN_1, bytes(6)))
        await trio.sleep(30)
        young = link.submit(Task(LUN_1, bytes(6)))
        *_, abort = await link.peer.hear(3)
        assert abort.word(20) == old.itt
        await link.peer.say(link.script.managed(abort.itt), link.script.response(young.itt))
        await trio.sleep(100)
        assert young.error is None and not link.connection.closed.is_set()


async def test_an_abort_that_is_not_answered_ends_the_connection(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        start = trio.current_time()
        task = link.submit(Task(LUN_1, bytes(6)))
        await link.connection.closed.wait()
        assert 75 <= trio.current_time() - start <= 75.5
        assert isinstance(task.error, PathLost) and "did not abort a command that takes too long (no answer in 15 s)" in str(task.error)


@pytest.mark.parametrize("code", [5, 255])
async def test_a_refused_abort_ends_the_connection(code: int, autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        _, abort = await link.peer.hear(2)
        await link.peer.say(link.script.managed(abort.itt, code))
        await link.connection.closed.wait()
        assert isinstance(task.error, PathLost) and f"(response {code})" in str(task.error)


async def test_an_abort_refused_because_the_answer_overtook_it_is_no_matter(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        _, abort = await link.peer.hear(2)
        await link.peer.say(link.script.response(task.itt), link.script.managed(abort.itt, 255))
        await trio.sleep(100)
        assert task.error is None and not link.connection.closed.is_set()


async def test_a_rejected_abort_ends_the_connection(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True) as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        _, abort = await link.peer.hear(2)
        await link.peer.say(link.script.reject(0x04, abort.bhs))
        await link.connection.closed.wait()
        assert isinstance(task.error, PathLost)


async def test_a_command_that_the_window_never_let_out_is_abandoned_in_time(autojump_clock: MockClock) -> None:
    async with linked(SLOW, watch=True, window=0) as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        await trio.sleep(70)
        assert isinstance(task.error, RequestFailed) and not link.connection.closed.is_set()
        assert link.connection.traffic.sends == 0


@pytest.mark.logs("ending a broken handler failed")
async def test_a_bug_in_a_callback_of_an_abandoned_command_ends_the_connection_and_not_its_keep_alive_alone(
    autojump_clock: MockClock,
) -> None:
    def bug(_task: Task) -> None:
        raise RuntimeError("a bug above")

    async with linked(SLOW, watch=True, window=0) as link:
        link.submit(Task(LUN_1, bytes(6), done=bug))
        await link.connection.closed.wait()
        assert "please report" in str(link.connection.error)


async def test_a_delayed_call_comes_through_the_connection(autojump_clock: MockClock) -> None:
    async with linked() as link:
        called = trio.Event()
        link.connection.call_later(3, called.set)
        start = trio.current_time()
        await called.wait()
        assert trio.current_time() - start == 3


# ------------------------------------------------------------------------------------------------------------------------- logouts


async def test_a_logout_is_answered_and_leaves_no_error(autojump_clock: MockClock) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.connection.logout)
        request = await link.peer.one()
        assert request.opcode == 6
        await link.peer.say(link.script.logged_out(request.itt))
        await link.connection.closed.wait()
        assert link.connection.error is None and await link.peer.ended()
        await link.connection.logout()


async def test_a_target_that_closes_right_behind_its_logout_response_is_no_failure() -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.connection.logout)
        await link.peer.say(link.script.logged_out((await link.peer.one()).itt))
        link.peer.socket.close()
        await link.connection.closed.wait()
        assert link.connection.error is None


async def test_a_logout_that_is_not_answered_ends_in_time(autojump_clock: MockClock) -> None:
    async with linked() as link:
        start = trio.current_time()
        waiting = link.submit(Task(LUN_1, bytes(6)))
        await link.connection.logout()
        assert trio.current_time() - start == 15
        assert "did not answer the logout within 15 s" in str(link.connection.error) and isinstance(waiting.error, PathLost)


async def test_a_rejected_logout_closes_the_connection(autojump_clock: MockClock) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.connection.logout)
        await link.peer.say(link.script.reject(0x04, (await link.peer.one()).bhs))
        await link.connection.closed.wait()
        assert "did not take the logout" in str(link.connection.error)


async def test_a_peer_that_closes_instead_of_answering_a_logout_does_not_make_it_raise() -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.connection.logout)
        await link.peer.one()
        link.peer.socket.close()
        await link.connection.closed.wait()
        assert "closed the connection" in str(link.connection.error)


async def test_two_who_log_out_at_once_send_one_logout_and_both_return(autojump_clock: MockClock) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.connection.logout)
        nursery.start_soon(link.connection.logout)
        request = await link.peer.one()
        await link.peer.say(link.script.logged_out(request.itt))
        await link.connection.closed.wait()
        assert link.connection.error is None and link.peer.rest == b""


async def test_a_logout_is_finished_even_when_its_block_is_cancelled(autojump_clock: MockClock) -> None:
    async with linked() as link, trio.open_nursery() as nursery:

        async def leave() -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                await link.connection.logout()

        nursery.start_soon(leave)
        await link.peer.say(link.script.logged_out((await link.peer.one()).itt))
        await link.connection.closed.wait()
        assert link.connection.error is None


@pytest.mark.parametrize("event", [1, 4])
async def test_a_target_that_asks_for_a_logout_gets_one_however_often_it_asks(event: int, autojump_clock: MockClock) -> None:
    async with linked() as link:
        await link.peer.say(*(link.script.asynchronous(event, parameters=(0, 0, 3)) for _ in range(50)))
        request = await link.peer.one()
        assert request.opcode == 6
        await link.peer.say(link.script.logged_out(request.itt))
        await link.connection.closed.wait()
        await wait_all_tasks_blocked()
        assert "asked for a logout" in str(link.connection.error)
        assert len(link.connection.events) <= 16 and await link.peer.ended()


@pytest.mark.parametrize("event", [2, 3])
async def test_a_target_that_announces_a_drop_is_left_at_once(event: int) -> None:
    async with linked() as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        await link.peer.say(link.script.asynchronous(event))
        await link.connection.closed.wait()
        assert isinstance(task.error, PathLost) and "announced" in str(task.error)


@pytest.mark.parametrize("event", [0, 5, 255])
async def test_other_async_messages_are_kept_and_change_nothing(event: int) -> None:
    async with linked() as link:
        await link.peer.say(link.script.asynchronous(event), link.script.nop_in(ttt=1))
        await link.peer.one()
        assert [message.event for message in link.connection.events] == [event] and not link.connection.closed.is_set()


# ------------------------------------------------------------------------------------------------------------ sends in pieces, and bounds


class Stingy:
    """A socket whose kernel takes only so many bytes of each send, as told; 0 is a send that would block."""

    def __init__(self, sock: socket.socket, takes: Iterable[int]) -> None:
        self.sock = sock
        self.takes = iter(takes)
        self.sent = bytearray()
        self.largest = 0

    def sendmsg(self, buffers: list[bytes | memoryview]) -> int:
        self.largest = max(self.largest, len(buffers))
        take = next(self.takes, 1 << 30)
        if not take:
            raise BlockingIOError
        data = b"".join(bytes(buffer) for buffer in buffers)[:take]
        self.sent += data
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def sent_through(takes: Iterable[int], data: bytes, **changes: Any) -> tuple[bytes, Stingy]:
    """What a kernel that takes only so much was given in all."""
    plane = Plane()
    here, there = socket.socketpair()
    here.setblocking(False)
    script = Script(**{**UNSOLICITED, **changes})
    stingy = Stingy(here, takes)
    connection = Connection(plane, stingy, script.framer, script.session, Portal("192.0.2.1", 3260), CALM)  # type: ignore[arg-type]
    try:
        script.write(data)
        connection.kick()
        for _ in range(10_000):
            if not connection._stuck:
                break
            connection.ready(WRITABLE)
        assert not connection._stuck, "the queue never drained"
    finally:
        connection.fail(PathLost("the test is over"))
        there.close()
        plane.close()
    return bytes(stingy.sent), stingy


def whole(data: bytes, **changes: Any) -> bytes:
    script = Script(**{**UNSOLICITED, **changes})
    script.write(data)
    return b"".join(bytes(buffer) for buffer in script.session.outgoing())


DATA = bytes(range(251)) * 100


@pytest.mark.parametrize("first", [1, 47, 48, 49, 96, 96 + 8192, 96 + 8192 + 48, 97 + 8192])
def test_a_send_that_ends_anywhere_even_between_two_buffers_goes_on_there(first: int) -> None:
    assert sent_through([first, 0], DATA)[0] == whole(DATA)


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.integers(0, 200), st.integers(0, 30_000), st.sampled_from([48, 512, 560, 8192])), max_size=60),
    st.sampled_from([512, 513, 8192]),
)
def test_however_the_kernel_takes_it_every_byte_goes_out_once_and_in_order(takes: list[int], segment: int) -> None:
    changes = {"target_max_recv_data_segment_length": segment}
    assert sent_through(takes, DATA, **changes)[0] == whole(DATA, **changes)


def test_a_write_answered_early_whose_callback_writes_again_loses_and_repeats_nothing() -> None:
    plane = Plane()
    here, there = socket.socketpair()
    here.setblocking(False)
    script = Script(**UNSOLICITED)
    stingy = Stingy(here, [5000, 0, 48, 3000, 0, 1, 0])
    connection = Connection(plane, stingy, script.framer, script.session, Portal("192.0.2.1", 3260), CALM)  # type: ignore[arg-type]
    done: list[bytes] = []

    def again(task: Task) -> None:
        done.append(bytes(stingy.sent))
        connection.submit(Task(LUN_1, WRITE_CDB, None, memoryview(DATA[:9999])))
        connection.kick()

    first = Task(LUN_1, WRITE_CDB, None, memoryview(DATA), again)
    connection.submit(first)
    connection.kick()
    there.send(script.response(first.itt, 2))
    connection.ready(select.EPOLLIN)
    assert connection._stuck and not done, "its data is still on the way, so its memory is still lent"
    while connection._stuck:
        connection.ready(WRITABLE)
    writes = list(taken_apart(bytes(stingy.sent)))
    assert [len(done), len(done[0])] == [1, len(whole(DATA))], "done came once, and only behind the last byte"
    assert b"".join(sent.data for sent in writes) == DATA + DATA[:9999]
    assert [sent.opcode for sent in writes] == [1, 5, 5, 5, 5, 1, 5, 5]
    connection.fail(PathLost("the test is over"))
    there.close()
    plane.close()


def test_more_buffers_than_one_send_may_have_go_out_in_several() -> None:
    data = bytes(range(256)) * 2 * (PIECES + 10)
    stream, stingy = sent_through([], data, target_max_recv_data_segment_length=512)
    assert stream == whole(data, target_max_recv_data_segment_length=512) and stingy.largest == PIECES


async def test_a_large_write_through_a_narrow_socket_arrives_intact_while_answers_come_in() -> None:
    def narrow(sock: socket.socket) -> socket.socket:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        return sock

    data = os.urandom(300_001)
    async with linked(wrap=narrow, **UNSOLICITED) as link:
        link.submit(Task(LUN_1, WRITE_CDB, None, memoryview(data)))
        link.submit(Task(LUN_1, READ_CDB, memoryview(bytearray(8))))
        assert link.connection._stuck
        command = await link.peer.one()
        await link.peer.say(link.script.nop_in(ttt=9))
        outs = await link.peer.hear(-(-len(data) // 8192))
        assert command.word(20) == len(data) and b"".join(out.data for out in outs) == data
        read, pong = await link.peer.hear(2)
        assert (read.opcode, pong.ttt) == (1, 9)
        await link.peer.say(link.script.nop_in(ttt=10))
        assert (await link.peer.one()).ttt == 10 and not link.connection._stuck


async def test_what_several_callbacks_of_one_batch_kick_goes_out_with_one_send() -> None:
    async with linked() as link:
        again: list[Task] = []

        def more(_task: Task) -> None:
            again.append(Task(LUN_1, bytes(6)))
            link.submit(again[-1])

        tasks = [Task(LUN_1, bytes(6), done=more) for _ in range(5)]
        for task in tasks:
            link.connection.submit(task)
        link.connection.kick()
        await link.peer.hear(5)
        assert link.connection.traffic.sends == 1
        await link.peer.say(*(link.script.response(task.itt) for task in tasks))
        await link.peer.hear(5)
        assert len(again) == 5 and link.connection.traffic.sends == 2


class Greedy:
    """A socket that always has more to receive and never takes more than one byte of a send."""

    def __init__(self, sock: socket.socket, pdu: bytes) -> None:
        self.sock = sock
        self.stream = pdu * 6000
        self.at = 0

    def recv_into(self, buffer: memoryview) -> int:
        buffer[:] = self.stream[self.at : self.at + len(buffer)]
        self.at = (self.at + len(buffer)) % 48
        return len(buffer)

    def sendmsg(self, buffers: list[bytes | memoryview]) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def test_one_turn_receives_and_sends_so_often_and_no_more() -> None:
    plane = Plane()
    here, there = socket.socketpair()
    script = Script()
    sock: Any = Greedy(here, script.nop_in())
    connection = Connection(plane, sock, script.framer, script.session, Portal("192.0.2.1", 3260), CALM)
    connection.ready(select.EPOLLIN)
    assert connection.traffic.receives == RECEIVES
    connection.submit(Task(LUN_1, bytes(6)))
    connection.kick()
    assert connection.traffic.sends == SENDS and connection._stuck
    connection.fail(PathLost("the test is over"))
    there.close()
    plane.close()


def test_a_connection_watches_for_room_only_while_a_send_is_stuck() -> None:
    plane = Plane()
    watched: list[bool] = []
    here, there = socket.socketpair()
    script = Script()
    sock: Any = Stingy(here, [10, 0, 10, 0])
    connection = Connection(plane, sock, script.framer, script.session, Portal("192.0.2.1", 3260), CALM)
    kernel: Any = SimpleNamespace(modify=lambda _, events: watched.append(bool(events & WRITABLE)), close=plane._epoll.close)
    kernel.unregister = plane._epoll.unregister
    plane._epoll = kernel
    connection.submit(Task(LUN_1, bytes(6)))
    connection.kick()
    connection.kick()
    assert watched == [True]
    connection.ready(WRITABLE)
    assert watched == [True]
    connection.ready(WRITABLE)
    assert watched == [True, False]
    connection.fail(PathLost("the test is over"))
    there.close()
    plane.close()


async def test_what_the_login_left_to_say_goes_out_with_the_connection() -> None:
    script = Script()
    script.hear(script.nop_in(ttt=7))
    here, there = socket.socketpair()
    here.setblocking(False)
    async with running_plane() as plane:
        connection = Connection(plane, here, script.framer, script.session, Portal("192.0.2.1", 3260), CALM)
        (pong,) = taken_apart(there.recv(1000))
        assert pong.ttt == 7
        connection.fail(PathLost("the test is over"))
    there.close()


async def test_a_connection_tells_what_it_is() -> None:
    async with linked() as link:
        assert repr(link.connection).startswith("<Connection 192.0.2.1:3260 <Session logged in")
        assert repr(link.connection).endswith("open>")
        assert link.connection.negotiated is link.script.session.negotiated


# ------------------------------------------------------------------------------------------------------- asked to leave


async def test_a_requested_logout_lets_open_tasks_end_and_takes_no_more(autojump_clock: MockClock) -> None:
    async with linked() as link:
        told: list[str] = []
        link.connection.on_leaving = lambda: told.append("leaving")
        task = link.submit(Task(LUN_1, bytes(6)))
        await link.peer.one()
        for _ in range(3):
            await link.peer.say(link.script.asynchronous(1, parameters=(0, 0, 10)))
        await trio.sleep(0.1)
        assert told == ["leaving"]
        late = link.submit(Task(LUN_1, bytes(6)))
        assert isinstance(late.error, PathLost) and not late.error.sent
        await trio.sleep(1)
        assert task.error is None and not link.connection.closed.is_set() and told == ["leaving"]
        await link.peer.say(link.script.response(task.itt))
        logout = await link.peer.one()
        assert logout.opcode == 0x06
        await link.peer.say(link.script.logged_out(logout.itt, time2wait=7))
        await link.connection.closed.wait()
        assert link.connection.time2wait == 7


async def test_a_requested_logout_does_not_wait_longer_than_the_target(autojump_clock: MockClock) -> None:
    async with linked() as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        await link.peer.one()
        start = trio.current_time()
        await link.peer.say(link.script.asynchronous(1, parameters=(0, 0, 5)))
        logout = await link.peer.one()
        assert 4 <= trio.current_time() - start < 5
        await link.peer.say(link.script.logged_out(logout.itt))
        await link.connection.closed.wait()
        assert isinstance(task.error, PathLost) and task.error.sent


@pytest.mark.parametrize("event", [2, 3])
async def test_an_announced_drop_says_how_long_to_wait(event: int, autojump_clock: MockClock) -> None:
    async with linked() as link:
        task = link.submit(Task(LUN_1, bytes(6)))
        await link.peer.one()
        await link.peer.say(link.script.asynchronous(event, parameters=(0, 9, 20)))
        await link.connection.closed.wait()
        assert link.connection.time2wait == 9 and isinstance(task.error, PathLost)


async def test_what_the_kernel_never_took_was_not_sent(autojump_clock: MockClock) -> None:
    """The socket is full: commands behind that are known never to have left."""
    async with linked(**UNSOLICITED) as link:
        tasks = [link.submit(Task(LUN_1, WRITE_CDB, None, memoryview(bytes(1 << 22)))) for _ in range(8)]
        link.connection.fail(PathLost("cut"))
        sent = [isinstance(task.error, PathLost) and task.error.sent for task in tasks]
        assert sent[0] and not sent[-1] and sent == sorted(sent, reverse=True)
