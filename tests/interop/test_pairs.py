"""The initiator's core against the target's core, no sockets: every agreement, bytes in any pieces, content against a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isblk.errors import PathLost, RequestFailed
from isblk.iscsi.framer import Framer, frame
from isblk.iscsi.login import LoginConversation, LoginSettings
from isblk.iscsi.pdu import TaskManagement
from isblk.iscsi.session import Session
from isblk.iscsi.task import AsyncMessage, Exchange, Task
from isblk.iscsi.text import decode_pairs
from isblk.target.config import LunConfig, Offer, PortalConfig, TargetConfig
from isblk.target.core import Connection
from isblk.target.sessions import Node

BLOCK = 512
REGIONS, REGION_BLOCKS = 6, 24
SIZE = REGIONS * REGION_BLOCKS * BLOCK
LUN_0 = bytes(8)
WHOLE = 1 << 30
WRAP = 0xFFFFFFFD

Chunks = Callable[[], int]

SIZES = {
    "small segments": Offer(
        max_recv_data_segment_length=512, first_burst_length=2048, max_burst_length=4096, max_outstanding_r2t=4, window=4
    ),
    "segment larger than the first burst": Offer(max_recv_data_segment_length=8192, first_burst_length=512, max_burst_length=8192),
    "small bursts": Offer(max_recv_data_segment_length=4096, first_burst_length=512, max_burst_length=512, max_outstanding_r2t=8),
    "no block fits": Offer(
        max_recv_data_segment_length=777, first_burst_length=1001, max_burst_length=1999, max_outstanding_r2t=3, window=2
    ),
    "nothing declared": Offer(max_recv_data_segment_length=None, max_outstanding_r2t=1, window=1, collapsed_status=False),
    "roomy": Offer(),
}
DIGESTS = ["none", "crc32c"]


class Start:
    """The login, and the session that follows it on the same framer."""

    def __init__(self, ask: LoginSettings) -> None:
        self.conversation = LoginConversation(ask)
        self.framer = Framer(self)
        self.discovery = ask.discovery
        self.session: Session | None = None
        self.out: list[bytes | memoryview] = frame(*self.conversation.start())

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        return None

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        for request in self.conversation.answer(bhs, data):
            self.out += frame(*request)
        result = self.conversation.result
        if result is not None:
            self.session = Session(result, self.discovery)
            self.framer.switch(self.session, result.negotiated.max_recv_data_segment_length, self.session.run)
            self.framer.enable_digests(result.negotiated.header_digest, result.negotiated.data_digest)

    def outgoing(self) -> list[bytes | memoryview]:
        if self.out:
            out, self.out = self.out, []
            return out
        return self.session.outgoing() if self.session is not None else []


class Pair:
    """An initiator that has logged in to a target with one disk; `chunks` says how many bytes the next receive gets."""

    def __init__(self, offer: Offer, chunks: Chunks = lambda: WHOLE, **ask: Any) -> None:
        lun = LunConfig(0, size=SIZE, fresh_attention=None)
        config = TargetConfig(portals=(PortalConfig(port=3260),), luns=(lun,), offer=offer)
        self.node = Node(config)
        self.node.addresses = [("192.0.2.1", 3260)]
        self.target = Connection(self.node, config.portals[0])
        self.chunks = chunks
        ask = {"initiator_name": "iqn.2026-11.org.example:host", "isid": bytes.fromhex("80123456789a"), "target_name": config.name, **ask}
        self.start = Start(LoginSettings(**ask))
        self.finished: list[Task] = []
        self.answers: list[Exchange] = []
        self.settle()
        assert self.start.session is not None, self.target.why
        self.session = self.start.session

    def settle(self) -> None:
        """Carry bytes both ways until nobody has anything to say."""
        while True:
            there = b"".join(bytes(buffer) for buffer in self.start.outgoing())
            self._pour(there, self.target.receive_buffer, self.target.received)
            back = b"".join(bytes(buffer) for buffer in self.target.outgoing())
            self._pour(back, self.start.framer.receive_buffer, self.start.framer.received)
            if not there and not back:
                return

    def _pour(self, stream: bytes, receive_buffer: Callable[[], memoryview], received: Callable[[int], None]) -> None:
        at = 0
        while at < len(stream):
            buffer = receive_buffer()
            count = min(len(buffer), self.chunks(), len(stream) - at)
            buffer[:count] = stream[at : at + count]
            received(count)
            at += count

    def healthy(self) -> bool:
        return not self.target.closing and not self.target.dropped and not self.target.why and self.session.error is None

    def submit(self, cdb: bytes, read: int = 0, write: bytes | None = None) -> Task:
        task = Task(
            LUN_0,
            cdb,
            memoryview(bytearray(read)) if read else None,
            memoryview(write) if write is not None else None,
            self.finished.append,
        )
        self.session.submit(task)
        return task

    def write(self, block: int, data: bytes) -> Task:
        return self.submit(b"\x2a\0" + block.to_bytes(4, "big") + b"\0" + (len(data) // BLOCK).to_bytes(2, "big") + b"\0", write=data)

    def read(self, block: int, count: int) -> Task:
        return self.submit(b"\x28\0" + block.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0", read=count * BLOCK)

    def stored(self) -> bytes:
        self.settle()
        return bytes(self.node.units.units[0].store.read(0, SIZE))


@pytest.fixture
def open_pair() -> Iterator[Callable[..., Pair]]:
    """Makes pairs and closes their disks."""
    made: list[Pair] = []

    def make(*arguments: Any, **keywords: Any) -> Pair:
        made.append(Pair(*arguments, **keywords))
        return made[-1]

    yield make
    for pair in made:
        pair.node.units.close()


def patterned(length: int, seed: int = 0) -> bytes:
    return bytes((seed + index * 7 + index // 251) % 256 for index in range(length))


def good(task: Task) -> bool:
    return (task.error, task.status, task.residual, task.transferred) == (None, 0, 0, task.length)


def came(task: Task) -> bytes:
    return bytes(task.read_into or b"")


# --------------------------------------------------------------------------------------------------------------- every combination


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("initial_r2t, immediate_data", list(product([True, False], repeat=2)))
@pytest.mark.parametrize("header_digest, data_digest", list(product(DIGESTS, repeat=2)))
def test_what_is_written_is_read_back_under_every_agreement(
    sizes: str, initial_r2t: bool, immediate_data: bool, header_digest: str, data_digest: str, open_pair: Callable[..., Pair]
) -> None:
    offer = replace(SIZES[sizes], initial_r2t=initial_r2t, immediate_data=immediate_data, initial_stat_sn=WRAP)
    segment = 262144 if sizes == "roomy" else 1024
    pair = open_pair(offer, header_digest=header_digest, data_digest=data_digest, cmd_sn=WRAP, max_recv_data_segment_length=segment)
    agreed = pair.session.negotiated
    assert (agreed.initial_r2t, agreed.immediate_data) == (initial_r2t, immediate_data)
    assert (agreed.header_digest, agreed.data_digest) == (header_digest == "crc32c", data_digest == "crc32c")
    pieces = [(0, 1), (1, 2), (3, 4), (7, 17), (24, 40)]
    writes = [pair.write(block, patterned(count * BLOCK, block)) for block, count in pieces]
    pair.settle()
    assert all(good(task) for task in writes) and pair.healthy()
    reads = [pair.read(block, count) for block, count in pieces]
    pair.settle()
    assert all(good(task) for task in reads) and pair.healthy()
    assert [came(task) for task in reads] == [patterned(count * BLOCK, block) for block, count in pieces]
    assert len(pair.finished) == 10 and pair.session.open_tasks == 0


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("initial_r2t, immediate_data", list(product([True, False], repeat=2)))
@pytest.mark.parametrize("chunk", [1, 7, 49])
def test_the_cores_agree_byte_by_byte(
    digest: str, initial_r2t: bool, immediate_data: bool, chunk: int, open_pair: Callable[..., Pair]
) -> None:
    offer = replace(SIZES["small segments"], initial_r2t=initial_r2t, immediate_data=immediate_data)
    pair = open_pair(offer, lambda: chunk, header_digest=digest, data_digest=digest, max_recv_data_segment_length=512)
    data = patterned(5 * BLOCK)
    write = pair.write(2, data)
    pair.settle()
    read = pair.read(2, 5)
    pair.settle()
    assert good(write) and good(read) and came(read) == data and pair.healthy()


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("chunk", [4000, 65536, WHOLE])
def test_large_segments_land_in_place_on_both_sides(digest: str, chunk: int, open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer(initial_r2t=True, immediate_data=False), lambda: chunk, header_digest=digest, data_digest=digest)
    data = patterned(SIZE)
    write = pair.write(0, data)
    pair.settle()
    read = pair.read(0, SIZE // BLOCK)
    pair.settle()
    assert good(write) and good(read) and came(read) == data == pair.stored()


# ------------------------------------------------------------------------------------------------------------------ against a model

operations = st.tuples(st.booleans(), st.integers(0, REGION_BLOCKS - 1), st.integers(1, REGION_BLOCKS), st.integers(0, 255))
batches = st.lists(st.lists(operations, min_size=1, max_size=REGIONS), min_size=1, max_size=4)
agreements = st.fixed_dictionaries(
    {
        "max_recv_data_segment_length": st.sampled_from([512, 513, 1000, 4096, 65536, None]),
        "first_burst_length": st.integers(512, 6000),
        "max_burst_length": st.integers(512, 9000),
        "initial_r2t": st.booleans(),
        "immediate_data": st.booleans(),
        "max_outstanding_r2t": st.integers(1, 5),
        "window": st.integers(1, 5),
        "collapsed_status": st.booleans(),
        "initial_stat_sn": st.sampled_from([1, WRAP]),
    }
)


@settings(max_examples=100)
@given(
    batches,
    agreements,
    st.sampled_from(DIGESTS),
    st.sampled_from(DIGESTS),
    st.sampled_from([512, 777, 4096, 262144]),
    st.lists(st.sampled_from([1, 40, 48, 100, 512, 3000, WHOLE]), min_size=1, max_size=6),
)
def test_a_disk_behind_the_pair_is_a_bytearray(
    rounds: list[list[tuple[bool, int, int, int]]], offer: dict[str, Any], header: str, data: str, segment: int, sizes: list[int]
) -> None:
    turn = 0

    def chunks() -> int:
        nonlocal turn
        turn += 1
        return sizes[turn % len(sizes)] if any(size > 100 for size in sizes) else 100

    pair = Pair(Offer(**offer), chunks, header_digest=header, data_digest=data, cmd_sn=WRAP, max_recv_data_segment_length=segment)
    model = bytearray(SIZE)
    for each in rounds:
        # One operation a region: what is in flight together does not overlap, so its order does not matter.
        expected: list[tuple[Task, bytes]] = []
        for region, (writes, start, count, seed) in enumerate(each):
            count = min(count, REGION_BLOCKS - start)
            block = region * REGION_BLOCKS + start
            where = slice(block * BLOCK, (block + count) * BLOCK)
            if writes:
                content = patterned(count * BLOCK, seed)
                expected.append((pair.write(block, content), content))
                model[where] = content
            else:
                expected.append((pair.read(block, count), bytes(model[where])))
        pair.settle()
        for task, content in expected:
            assert good(task), (task.error, task.status, task.sense.hex(), task.residual)
            assert bytes(task.read_into or task.write_from or b"") == content
    assert pair.stored() == model and pair.healthy()
    pair.node.units.close()


# ------------------------------------------------------------------------------------------------------------ statuses and residuals


def test_a_command_past_the_end_brings_sense_and_the_session_goes_on(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(SIZES["small segments"])
    write = pair.write(SIZE // BLOCK, bytes(8 * BLOCK))
    read = pair.read(SIZE // BLOCK, 1)
    pair.settle()
    assert (write.status, write.sense[2] & 15, write.sense[12]) == (2, 5, 0x21)
    assert (read.status, read.residual) == (2, BLOCK)
    assert pair.healthy() and pair.session.open_tasks == 0


def test_a_unit_that_has_less_or_more_to_say_than_was_expected_shows_in_the_residual(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer())
    one_block = b"\x28\0" + bytes(6) + b"\1\0"
    short = pair.submit(one_block, read=2 * BLOCK)
    long = pair.submit(b"\x28\0" + bytes(6) + b"\2\0", read=BLOCK)
    pair.settle()
    assert (short.transferred, short.residual) == (BLOCK, BLOCK)
    assert (long.transferred, long.residual) == (BLOCK, -BLOCK)
    assert pair.healthy()


# ---------------------------------------------------------------------------------------------------------- everything but commands


def test_pings_go_both_ways(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(SIZES["no block fits"])
    pair.session.ping(pair.answers.append)
    tag = pair.target.ping(b"are you there", LUN_0)
    pair.settle()
    assert pair.answers[0].error is None and pair.target.pings[tag] == b"are you there"


@pytest.mark.parametrize("by_c_bit", [False, True])
def test_a_long_text_answer_arrives_whole(by_c_bit: bool, open_pair: Callable[..., Pair]) -> None:
    offer = Offer(text_chunk=20, text_by_c_bit=by_c_bit, login_chunk=64, initial_stat_sn=WRAP)
    pair = open_pair(offer, lambda: 5, session_type="Discovery", target_name=None)
    pair.session.text(b"SendTargets=All\0", pair.answers.append)
    pair.settle()
    assert pair.answers[0].text is not None and pair.answers[0].answers >= 2
    assert decode_pairs(bytes(pair.answers[0].text)) == [("TargetName", pair.node.config.name), ("TargetAddress", "192.0.2.1:3260,1")]


def test_a_held_command_is_aborted_and_the_next_one_runs(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(SIZES["small segments"])
    pair.node.hold = lambda _lun, cdb: cdb[0] == 0x28
    held = pair.read(0, 1)
    pair.settle()
    assert not held.error and pair.session.open_tasks == 1
    pair.session.manage(TaskManagement.ABORT_TASK, pair.answers.append, task=held)
    pair.settle()
    assert isinstance(held.error, RequestFailed) and pair.answers[0].response == 0
    pair.node.hold = None
    read = pair.read(0, 1)
    pair.settle()
    assert good(read) and pair.healthy()


def test_a_reset_of_the_unit_ends_what_came_before_it(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(SIZES["small segments"])
    pair.node.hold = lambda _lun, _cdb: True
    held = [pair.read(0, 1), pair.write(4, bytes(BLOCK)), pair.read(1, 1)]
    pair.settle()
    pair.session.manage(TaskManagement.LOGICAL_UNIT_RESET, pair.answers.append, lun=LUN_0)
    pair.node.hold = None
    behind = pair.read(2, 1)
    pair.settle()
    assert all(isinstance(task.error, RequestFailed) for task in held) and pair.answers[0].response == 0
    assert behind in pair.finished and behind.error is None and pair.healthy()


def test_more_commands_than_the_window_lets_out_all_finish(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer(window=4), cmd_sn=WRAP)
    tasks = [pair.write(block, patterned(BLOCK, block)) for block in range(60)]
    assert pair.session.wire.window.room == 0
    pair.settle()
    assert all(good(task) for task in tasks) and pair.finished == tasks
    assert pair.stored()[: 60 * BLOCK] == b"".join(patterned(BLOCK, block) for block in range(60))


def test_held_commands_close_the_window_and_their_end_opens_it(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer(window=2))
    pair.node.hold = lambda _lun, _cdb: True
    tasks = [pair.read(block, 1) for block in range(5)]
    pair.settle()
    assert len(pair.node.held) == 2 and not pair.finished
    pair.node.hold = None
    pair.node.release()
    pair.settle()
    assert [good(task) for task in tasks] == [True] * 5


def test_an_async_message_is_understood(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer())
    heard: list[AsyncMessage] = []
    pair.session.listen(heard.append)
    pair.target.request_logout(7)
    pair.settle()
    assert heard == [AsyncMessage(1, 0, (0, 0, 7), LUN_0, b"")]


def test_a_logout_ends_both_sides(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(Offer())
    pair.session.logout(pair.answers.append)
    pair.settle()
    assert (pair.answers[0].error, pair.answers[0].response) == (None, 0)
    assert pair.target.closing
    pair.target.lost()
    assert not pair.node.sessions


def test_a_connection_that_is_lost_in_the_middle_of_writes_ends_every_one_of_them(open_pair: Callable[..., Pair]) -> None:
    pair = open_pair(SIZES["small bursts"])
    tasks = [pair.write(region * REGION_BLOCKS, bytes(REGION_BLOCKS * BLOCK)) for region in range(REGIONS)]
    pair._pour(b"".join(bytes(buffer) for buffer in pair.start.outgoing())[:5000], pair.target.receive_buffer, pair.target.received)
    pair.target.lost()
    pair.session.fail(PathLost("cut"))
    assert sorted(map(id, pair.finished)) == sorted(map(id, tasks))
    assert all(isinstance(task.error, PathLost) for task in tasks) and not pair.node.sessions
