"""The transmission phase without sockets: commands right and wrong, in any pieces, against a model; limits; what the device is asked."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isblk.block.gate import Gate
from isblk.block.request import Op
from isblk.errors import PathLost, ProtocolError, RequestFailed
from isblk.export import nbdsession, nbdwire
from isblk.export.nbdmemory import Memory
from isblk.export.nbdsession import DRAIN_LIMIT, OPEN_LIMIT, READ_AHEAD, TURN, Session
from support import rawnbd as raw
from support.memorydevice import MemoryDevice, Seen, broken
from support.rawnbd import Answer, Replies

SIZE = 1 << 20
MIB = 1 << 20


class Peer:
    """A session over a device in memory, fed as a socket would."""

    def __init__(
        self,
        device: MemoryDevice | None = None,
        replies: nbdwire.Replies = nbdwire.SIMPLE,
        *,
        read_only: bool = False,
        allocation: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self.device = device or MemoryDevice(SIZE, block_size=1)
        self.gate = Gate(self.device)
        self.memory = memory or Memory(1 << 30)
        self.session = Session(self.gate, self.memory, self, replies, read_only=read_only, allocation=allocation)
        self.told = 0
        self.asked: list[tuple[int, int, int, bool]] = []
        self.replies = Replies()

    def output(self) -> None:
        self.told += 1

    def block_status(self, cookie: int, offset: int, length: int, one: bool) -> None:
        self.asked.append((cookie, offset, length, one))

    def feed(self, data: bytes, most: int = 1 << 30) -> None:
        """As many bytes as there are, in receives of at most `most`; turns that end go on, as the plane sees to."""
        while data:
            buffer = self.session.receive_buffer()
            assert len(buffer), "a receive buffer is never empty"
            count = min(len(buffer), len(data), most)
            buffer[:count] = data[:count]
            data = data[count:]
            self.session.received(count)
            while self.session.more:
                self.session.take()
            assert not self.session.parked or not data, "parked, and yet there is more"

    def answers(self) -> list[Answer]:
        """What has been answered, as if the socket took it all."""
        found: list[Answer] = []
        while out := self.session.outgoing():
            found += self.replies.feed(b"".join(out))
            self.session.sent()
        assert not self.replies.rest
        return found

    def do(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Answer:
        self.replies.reads[1] = length if command == raw.READ else 0
        build = raw.extended if self.session._replies is nbdwire.EXTENDED else raw.request
        self.feed(build(command, offset, length, flags, 1, data))
        (answer,) = self.answers()
        assert answer.cookie == 1
        return answer


FORMS = pytest.mark.parametrize("form", [nbdwire.SIMPLE, nbdwire.STRUCTURED, nbdwire.EXTENDED], ids=lambda form: form.name)


def payload(form: nbdwire.Replies) -> int:
    """The flag that a WRITE needs."""
    return raw.PAYLOAD_LEN if form is nbdwire.EXTENDED else 0


# ------------------------------------------------------------------ commands


@FORMS
def test_what_was_written_is_read(form: nbdwire.Replies) -> None:
    peer = Peer(replies=form)
    data = bytes(range(256)) * 16
    assert peer.do(raw.WRITE, 777, len(data), payload(form), data).error == 0
    answer = peer.do(raw.READ, 777, len(data))
    assert (answer.error, answer.data) == (0, data)
    assert answer.offset == (0 if form is nbdwire.SIMPLE else 777)
    assert peer.device.requests == [Seen(Op.WRITE, 777, 4096, False), Seen(Op.READ, 777, 4096, False)]
    assert peer.memory.used == peer.session.held == peer.session.open == peer.session.in_flight == 0


@FORMS
@pytest.mark.parametrize("length", [1, 511, 32767, 32768, READ_AHEAD, MIB])
def test_transfers_of_every_size_land_whole(form: nbdwire.Replies, length: int) -> None:
    peer = Peer(replies=form)
    data = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    build = raw.extended if form is nbdwire.EXTENDED else raw.request
    peer.feed(build(raw.WRITE, 0, length, payload(form), 1, data), most=5000)
    assert [answer.error for answer in peer.answers()] == [0]
    assert peer.do(raw.READ, 0, length).data == data


def test_each_change_carries_its_fua() -> None:
    peer = Peer()
    assert peer.do(raw.WRITE, 0, 4, raw.FUA, b"abcd").error == 0
    assert peer.do(raw.WRITE_ZEROES, 4, 4, raw.FUA).error == 0
    assert peer.do(raw.TRIM, 8, 4, raw.FUA).error == 0
    assert peer.device.requests == [
        Seen(Op.WRITE, 0, 4, True),
        Seen(Op.ZERO, 4, 4, True),
        Seen(Op.TRIM, 8, 4, False),
        Seen(Op.FLUSH, 0, 0, False),
    ]


def test_a_trim_with_fua_is_answered_behind_the_flush_or_with_its_error() -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True), nbdwire.EXTENDED)
    for cookie in (1, 2):
        peer.feed(raw.extended(raw.TRIM, 4096, 512, raw.FUA, cookie))
    peer.device.complete(0, broken())
    (answer,) = peer.answers()
    assert (answer.cookie, answer.error, answer.offset) == (1, raw.EIO, 4096)
    kicks = peer.device.kicks
    peer.device.complete(0)
    assert not peer.answers()
    assert peer.device.kicks == kicks + 1, "the flush must not wait for the next batch"
    peer.device.complete(0)
    (answer,) = peer.answers()
    assert (answer.cookie, answer.error, answer.offset) == (2, 0, 4096)


@pytest.mark.parametrize("command", [raw.READ, raw.FLUSH, raw.CACHE])
def test_fua_is_accepted_where_it_means_nothing(command: int) -> None:
    length = 0 if command == raw.FLUSH else 512
    assert Peer().do(command, 0, length, raw.FUA).error == 0


def test_flush_goes_to_the_device() -> None:
    peer = Peer()
    peer.do(raw.WRITE, 0, 4, 0, b"abcd")
    assert peer.do(raw.FLUSH).error == 0
    assert peer.device.durable[:4] == b"abcd"


def test_cache_moves_no_data() -> None:
    peer = Peer()
    assert peer.do(raw.CACHE, 0, SIZE).error == 0
    assert peer.do(raw.CACHE, 1, SIZE).error == raw.EINVAL
    assert not peer.device.requests


def test_zeroes_may_become_a_hole_but_not_when_that_is_refused() -> None:
    peer = Peer(MemoryDevice(3 * MIB, block_size=1))
    peer.device.content[:] = b"x" * (3 * MIB)
    assert peer.do(raw.WRITE_ZEROES, 1, 2 * MIB + 5, raw.NO_HOLE | raw.FUA).error == 0
    assert [seen.op for seen in peer.device.requests] == [Op.WRITE] * 3
    assert all(seen.fua for seen in peer.device.requests)
    assert bytes(peer.device.content) == b"x" + bytes(2 * MIB + 5) + b"x" * (MIB - 6)
    peer.do(raw.WRITE_ZEROES, 0, 3 * MIB)
    assert peer.device.requests[-1] == Seen(Op.ZERO, 0, 3 * MIB, False)
    peer.device.geometry = replace(peer.device.geometry, trim_reads_zero=False)
    peer.do(raw.WRITE_ZEROES, 0, 3 * MIB, raw.NO_HOLE)
    assert peer.device.requests[-1] == Seen(Op.ZERO, 0, 3 * MIB, False), "which cannot deallocate then"


def test_zeroes_that_must_be_allocated_are_written_one_after_the_other_and_stop_at_an_error() -> None:
    peer = Peer(MemoryDevice(4 * MIB, block_size=1, hold=True))
    peer.feed(raw.request(raw.WRITE_ZEROES, 0, 4 * MIB, raw.NO_HOLE))
    for _ in range(2):
        assert len(peer.device.pending) == 1
        peer.device.complete()
    assert not peer.answers()
    peer.device.complete(0, broken(errno.ENOSPC))
    assert [answer.error for answer in peer.answers()] == [raw.ENOSPC]
    assert not peer.device.pending
    assert peer.session.in_flight == 0


def test_fast_zero_is_for_what_is_known_to_be_fast() -> None:
    peer = Peer()
    assert peer.do(raw.WRITE_ZEROES, 0, 512, raw.FAST_ZERO).error == 0
    assert peer.do(raw.WRITE_ZEROES, 0, 512, raw.FAST_ZERO | raw.NO_HOLE).error == raw.ENOTSUP
    peer.device.geometry = replace(peer.device.geometry, trim_reads_zero=False)
    assert peer.do(raw.WRITE_ZEROES, 0, 512, raw.FAST_ZERO).error == raw.ENOTSUP
    assert peer.do(raw.WRITE_ZEROES, 0, 512).error == 0


@pytest.mark.parametrize("form", [nbdwire.STRUCTURED, nbdwire.EXTENDED], ids=lambda form: form.name)
def test_block_status_is_asked_beside_and_answered_later(form: nbdwire.Replies) -> None:
    peer = Peer(replies=form, allocation=True)
    build = raw.extended if form is nbdwire.EXTENDED else raw.request
    peer.feed(build(raw.BLOCK_STATUS, 512, 1024, raw.REQ_ONE, 9))
    assert peer.asked == [(9, 512, 1024, True)]
    assert not peer.answers()
    assert not peer.session.idle
    peer.session.answer_status(9, 512, [(1000, 3), (24, 0)])
    (answer,) = peer.answers()
    assert answer.extents == [(1000, 3), (24, 0)]
    peer.feed(build(raw.BLOCK_STATUS, 0, 1024, 0, 10))
    peer.session.answer_error(10, 0, PathLost("the target is away"))
    (answer,) = peer.answers()
    assert (answer.error, answer.message) == (raw.EIO, "the target is away")


def test_disc_is_not_answered_and_nothing_behind_it_is_looked_at() -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True))
    peer.feed(raw.request(raw.FLUSH) + raw.request(raw.DISC) + b"rubbish" * 9)
    assert peer.session.disconnecting
    assert not peer.session.idle
    peer.device.complete()
    assert len(peer.answers()) == 1
    assert peer.session.idle


# ------------------------------------------------------------------ refusals

END = SIZE - 512
BIG = 1 << 63

BAD = [
    (raw.READ, SIZE, 1, 0, raw.EINVAL),
    (raw.READ, END, 513, 0, raw.EINVAL),
    (raw.READ, (1 << 64) - 1, 2, 0, raw.EINVAL),
    (raw.READ, BIG, 512, 0, raw.EINVAL),
    (raw.READ, 0, 0, 0, raw.EINVAL),
    (raw.READ, 0, (32 << 20) + 1, 0, raw.EINVAL),
    (raw.READ, 0, 512, raw.NO_HOLE, raw.EINVAL),
    (raw.READ, 0, 512, raw.DF, raw.EINVAL),
    (raw.READ, 0, 512, 0x8000, raw.EINVAL),
    (raw.READ, 0, 512, raw.PAYLOAD_LEN, raw.EINVAL),
    (raw.FLUSH, 1, 0, 0, raw.EINVAL),
    (raw.FLUSH, 0, 1, 0, raw.EINVAL),
    (raw.FLUSH, 0, 0, raw.DF, raw.EINVAL),
    (raw.TRIM, END, 513, 0, raw.EINVAL),
    (raw.TRIM, 0, 0, 0, raw.EINVAL),
    (raw.TRIM, 0, 512, raw.NO_HOLE, raw.EINVAL),
    (raw.CACHE, SIZE, 512, 0, raw.EINVAL),
    (raw.CACHE, 0, 512, raw.DF, raw.EINVAL),
    (raw.WRITE_ZEROES, END, 513, 0, raw.ENOSPC),
    (raw.WRITE_ZEROES, (1 << 64) - 512, 512, 0, raw.ENOSPC),
    (raw.WRITE_ZEROES, 0, 0, 0, raw.EINVAL),
    (raw.WRITE_ZEROES, 0, 512, raw.DF, raw.EINVAL),
    (raw.BLOCK_STATUS, 0, 512, 0, raw.EINVAL),
    (8, 0, 512, 0, raw.EINVAL),
    (0xFFFF, 0, 512, 0, raw.EINVAL),
]


@FORMS
@pytest.mark.parametrize(("command", "offset", "length", "flags", "error"), BAD)
def test_a_bad_request_is_answered_and_the_next_one_served(
    form: nbdwire.Replies, command: int, offset: int, length: int, flags: int, error: int
) -> None:
    if form is not nbdwire.SIMPLE and flags == raw.DF and command == raw.READ:
        error = 0
    if form is not nbdwire.SIMPLE and command == raw.READ and length > 32 << 20:
        error = raw.EOVERFLOW
    peer = Peer(replies=form)
    data = bytes(length) if form is nbdwire.EXTENDED and flags & raw.PAYLOAD_LEN else b""
    answer = peer.do(command, offset, length, flags, data)
    assert answer.error == error
    assert bool(answer.message) == (error != 0 and form is not nbdwire.SIMPLE)
    assert form is not nbdwire.EXTENDED or answer.offset == offset
    assert peer.do(raw.READ, 0, 512).error == 0
    assert peer.memory.used == 0


@FORMS
@pytest.mark.parametrize(
    ("offset", "length", "flags", "error"),
    [
        (SIZE, 512, 0, raw.ENOSPC),
        (END, 513, 0, raw.ENOSPC),
        ((1 << 64) - 1, 100_000, 0, raw.ENOSPC),
        (0, 0, 0, raw.EINVAL),
        (0, 512, raw.NO_HOLE, raw.EINVAL),
        (0, 200_000, 0x100, raw.EINVAL),
        (0, (32 << 20) + 1, 0, raw.EINVAL),
    ],
)
def test_a_bad_write_is_read_to_its_end_and_answered(form: nbdwire.Replies, offset: int, length: int, flags: int, error: int) -> None:
    peer = Peer(replies=form)
    assert peer.do(raw.WRITE, offset, length, flags | payload(form), bytes(length)).error == error
    assert peer.do(raw.READ, 0, 512).error == 0
    assert Op.WRITE not in [seen.op for seen in peer.device.requests]
    assert peer.memory.used == 0


@pytest.mark.parametrize("form", [nbdwire.SIMPLE, nbdwire.STRUCTURED])
def test_the_flag_of_extended_headers_means_nothing_without_them(form: nbdwire.Replies) -> None:
    peer = Peer(replies=form)
    assert peer.do(raw.WRITE, 0, 512, raw.PAYLOAD_LEN, bytes(512)).error == raw.EINVAL
    assert peer.do(raw.READ, 0, 512).error == 0 and Op.WRITE not in [seen.op for seen in peer.device.requests]


def test_the_answer_to_a_bad_write_waits_for_its_data() -> None:
    peer = Peer(read_only=True)
    peer.feed(raw.request(raw.WRITE, 0, 10, 0, 1, b"12345"))
    assert not peer.answers()
    assert peer.session.pending
    peer.feed(b"67890" + raw.request(raw.FLUSH, cookie=2))
    assert [(answer.cookie, answer.error) for answer in peer.answers()] == [(1, raw.EPERM), (2, 0)]


@pytest.mark.parametrize("by_device", [False, True])
@pytest.mark.parametrize("command", [raw.WRITE, raw.TRIM, raw.WRITE_ZEROES])
def test_a_read_only_export_is_read_only(by_device: bool, command: int) -> None:
    peer = Peer(MemoryDevice(SIZE, 1, read_only=by_device), read_only=not by_device)
    assert peer.do(command, 0, 512, 0, bytes(512) if command == raw.WRITE else b"").error == raw.EPERM
    assert peer.do(raw.READ, 0, 512).error == 0
    assert [seen.op for seen in peer.device.requests] == [Op.READ]


def test_requests_that_are_not_whole_blocks_are_refused() -> None:
    peer = Peer(MemoryDevice(SIZE, block_size=512))
    assert peer.do(raw.READ, 256, 512).error == raw.EINVAL
    assert peer.do(raw.READ, 0, 100).error == raw.EINVAL
    assert peer.do(raw.WRITE, 0, 100, 0, bytes(100)).error == raw.EINVAL
    assert peer.do(raw.READ, 512, 512).error == 0


def test_a_device_that_cannot_trim_is_not_asked_to() -> None:
    peer = Peer()
    peer.device.geometry = replace(peer.device.geometry, can_trim=False)
    assert peer.do(raw.TRIM, 0, 512).error == raw.EINVAL


@FORMS
@pytest.mark.parametrize(("number", "told"), [(errno.EIO, raw.EIO), (errno.ENOSPC, raw.ENOSPC), (errno.EROFS, raw.EPERM)])
def test_the_errors_of_the_device_are_told(form: nbdwire.Replies, number: int, told: int) -> None:
    for command in (raw.READ, raw.WRITE, raw.FLUSH, raw.TRIM, raw.WRITE_ZEROES):
        peer = Peer(replies=form)
        peer.device.fail_next.append(broken(number))
        length, flags = (0, 0) if command == raw.FLUSH else (512, payload(form) if command == raw.WRITE else 0)
        answer = peer.do(command, 0, length, flags, bytes(512) if command == raw.WRITE else b"")
        assert answer.error == told
        assert answer.message == ("" if form is nbdwire.SIMPLE else "the test wants this to fail")
        assert peer.session.counters.errors == 1
        assert peer.memory.used == 0


def test_a_bug_below_shows_no_insides() -> None:
    peer = Peer(replies=nbdwire.STRUCTURED)
    peer.device.fail_next.append(KeyError("internals"))
    answer = peer.do(raw.READ, 0, 512)
    assert (answer.error, answer.message) == (raw.EIO, "the server failed")


def test_lost_writes_are_told_once_by_the_next_flush() -> None:
    losses = 0
    device = MemoryDevice(SIZE, 1)
    peer = Peer(device)
    peer.gate = Gate(device, lambda: losses)
    peer.session = Session(peer.gate, peer.memory, peer, nbdwire.SIMPLE)
    assert peer.do(raw.FLUSH).error == 0
    losses = 1
    assert [peer.do(raw.FLUSH).error for _ in range(2)] == [raw.EIO, 0]
    losses = 2
    device.fail_next.append(RequestFailed("lost"))
    assert [peer.do(raw.FLUSH).error for _ in range(2)] == [raw.EIO, 0]


def test_a_server_that_is_closing_takes_nothing_more() -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True))
    peer.feed(raw.request(raw.WRITE, 0, 4, 0, 1, b"abcd"))
    peer.session.closing = True
    peer.feed(raw.request(raw.READ, 0, 4, 0, 2) + raw.request(raw.WRITE, 0, 4, 0, 3, b"efgh") + raw.request(raw.FLUSH, cookie=4))
    peer.device.complete()
    assert [(each.cookie, each.error) for each in peer.answers()] == [(2, raw.ESHUTDOWN), (3, raw.ESHUTDOWN), (4, raw.ESHUTDOWN), (1, 0)]


# ------------------------------------------------------------------ what ends a session


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        (nbdwire.SIMPLE, bytes(28)),
        (nbdwire.SIMPLE, raw.extended(raw.READ, 0, 1)),
        (nbdwire.EXTENDED, raw.request(raw.READ, 0, 1) + bytes(8)),
        (nbdwire.EXTENDED, raw.extended(raw.WRITE, 0, 4)),
        (nbdwire.SIMPLE, raw.request(raw.WRITE, 0, DRAIN_LIMIT + 1)),
        (nbdwire.EXTENDED, raw.extended(raw.WRITE, 0, 1 << 63, raw.PAYLOAD_LEN)),
        (nbdwire.EXTENDED, raw.extended(raw.READ, 0, 1 << 63, raw.PAYLOAD_LEN)),
    ],
)
def test_bytes_without_a_meaning_end_the_session(form: nbdwire.Replies, sent: bytes) -> None:
    with pytest.raises(ProtocolError):
        Peer(replies=form).feed(sent)


def test_lengths_of_64_bits_are_believed_only_where_they_move_nothing() -> None:
    peer = Peer(replies=nbdwire.EXTENDED)
    assert peer.do(raw.WRITE_ZEROES, 0, 1 << 63).error == raw.ENOSPC
    assert peer.do(raw.READ, 0, (1 << 64) - 1).error == raw.EOVERFLOW
    assert peer.do(raw.TRIM, (1 << 64) - 1, (1 << 64) - 1).error == raw.EINVAL


def test_large_zeroes_and_trims_need_extended_headers_only_for_their_length() -> None:
    device = MemoryDevice(SIZE, 1, hold=True)
    device.geometry = replace(device.geometry, size=1 << 50)
    peer = Peer(device, nbdwire.EXTENDED)
    peer.feed(raw.extended(raw.WRITE_ZEROES, 0, 1 << 49) + raw.extended(raw.TRIM, 1 << 49, 1 << 49))
    assert device.requests == [Seen(Op.ZERO, 0, 1 << 49, False), Seen(Op.TRIM, 1 << 49, 1 << 49, False)]


# ------------------------------------------------------------------ order, limits, the end


def test_answers_come_in_the_order_of_the_device() -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True))
    peer.replies.reads = dict.fromkeys(range(5), 512)
    peer.feed(b"".join(raw.request(raw.READ, 512 * cookie, 512, 0, cookie) for cookie in range(5)))
    for index in (4, 0, 2, 0, 0):
        peer.device.complete(index)
    assert peer.told == 1, "one batch, one send"
    assert [answer.cookie for answer in peer.answers()] == [4, 0, 3, 1, 2]


def test_a_client_that_takes_no_replies_stops_itself() -> None:
    peer = Peer()
    burst = raw.request(raw.FLUSH) * (2 * OPEN_LIMIT)
    buffer = peer.session.receive_buffer()
    buffer[: len(burst)] = burst
    peer.session.received(len(burst))
    while peer.session.more:
        peer.session.take()
    assert peer.session.parked
    assert not peer.session.short
    assert peer.session.open == OPEN_LIMIT
    out = peer.session.outgoing()
    assert len(out) == OPEN_LIMIT
    peer.session.take()
    assert peer.session.parked, "asked for is not yet sent"
    peer.session.sent()
    peer.session.take()
    while peer.session.more:
        peer.session.take()
    assert len(peer.answers()) == OPEN_LIMIT
    assert peer.session.idle


def test_a_turn_is_bounded() -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True))
    burst = raw.request(raw.READ, 0, 512) * (TURN + 1)
    buffer = peer.session.receive_buffer()
    buffer[: len(burst)] = burst
    peer.session.received(len(burst))
    assert (peer.session.more, peer.session.in_flight) == (True, TURN)
    peer.session.take()
    assert (peer.session.more, peer.session.in_flight) == (False, TURN + 1)


@pytest.mark.parametrize("command", [raw.READ, raw.WRITE])
@pytest.mark.parametrize("length", [4096, 262144])
def test_without_memory_a_request_waits(command: int, length: int) -> None:
    memory = Memory(300_000)
    taken = memory.take(262144)
    assert taken is not None
    other = memory.take(65536 - 27000) or memory.take(4096)
    assert other is not None
    memory.budget = memory.used
    peer = Peer(memory=memory)
    peer.replies.reads[1] = length if command == raw.READ else 0
    sent = raw.request(command, 0, length, 0, 1, bytes(1000) if command == raw.WRITE and length > 4096 else b"")
    sent += bytes(4096) if command == raw.WRITE and length == 4096 else b""
    peer.feed(sent)
    assert peer.session.parked and peer.session.short
    assert peer.session.open == 0
    memory.give(taken)
    peer.session.take()
    assert not peer.session.parked
    if peer.session.landing:
        peer.feed(bytes(length - 1000))
    assert [answer.error for answer in peer.answers()] == [0]
    memory.give(other)
    assert memory.used == 0


@pytest.mark.source_form("replaces a constant that is compiled in")
def test_a_client_holds_only_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdsession, "HELD_LIMIT", 100_000)
    peer = Peer(MemoryDevice(SIZE, 1, hold=True))
    peer.feed(raw.request(raw.READ, 0, 65536) * 2)
    assert not peer.session.parked
    peer.feed(raw.request(raw.READ, 0, 65536))
    assert peer.session.parked
    assert peer.session.in_flight == 2


@pytest.mark.parametrize("completed_first", [False, True])
def test_when_the_client_has_gone_every_buffer_comes_back(completed_first: bool) -> None:
    peer = Peer(MemoryDevice(SIZE, 1, hold=True), nbdwire.STRUCTURED)
    peer.feed(raw.request(raw.READ, 0, 512) * 3 + raw.request(raw.WRITE, 0, 4, 0, 1, b"abcd"))
    peer.feed(raw.request(raw.WRITE, 0, 100_000, 0, 1, b"part"))
    assert peer.session.landing
    if completed_first:
        peer.device.complete(0)
        peer.session.outgoing()
        peer.device.complete(0)
    peer.session.end()
    peer.session.end()
    assert peer.memory.used == 4096 * len(peer.device.pending)
    peer.device.complete_all()
    assert peer.memory.used == peer.session.held == peer.session.in_flight == 0
    assert not peer.session.outgoing()
    assert peer.device.content[:4] == b"abcd", "what was taken is done, whether or not somebody hears of it"
    peer.session.answer_status(1, 0, [(1, 0)])
    assert not peer.session.outgoing()


def test_zeroing_stops_when_the_client_has_gone() -> None:
    peer = Peer(MemoryDevice(4 * MIB, 1, hold=True))
    peer.feed(raw.request(raw.WRITE_ZEROES, 0, 4 * MIB, raw.NO_HOLE))
    peer.session.end()
    peer.device.complete()
    assert not peer.device.pending


def test_everything_is_counted() -> None:
    peer = Peer()
    peer.do(raw.READ, 0, 100)
    peer.do(raw.WRITE, 0, 50, 0, bytes(50))
    peer.do(raw.FLUSH)
    peer.do(raw.READ, SIZE, 1)
    assert peer.session.counters.as_dict() == {
        "block_status": 0, "bytes_read": 100, "bytes_written": 50, "errors": 1, "others": 1, "reads": 1, "writes": 1,
    }  # fmt: skip


# ------------------------------------------------------------------ any requests, in any pieces, against a model

SMALL = 5000
steps = st.tuples(
    st.integers(0, 9),
    st.one_of(st.integers(0, SMALL + 100), st.sampled_from([SMALL - 1, (1 << 64) - 1])),
    st.one_of(st.integers(0, 3000), st.integers(30_000, 80_000)),
    st.sampled_from([0, 0, 0, raw.FUA, raw.NO_HOLE, raw.DF, raw.REQ_ONE, raw.FAST_ZERO, 64]),
)


def expected(model: bytearray, command: int, offset: int, length: int, flags: int, simple: bool, data: bytes) -> tuple[int, bytes]:
    """What the specification says of one request; applied to `model`."""
    allowed = {0: 1 if simple else 5, 1: 1, 3: 1, 4: 1, 5: 1, 6: 19, 7: 9}.get(command)
    if allowed is None or flags & ~allowed:
        return raw.EINVAL, b""
    if command == raw.FLUSH:
        return (raw.EINVAL if offset or length else 0), b""
    if not length:
        return raw.EINVAL, b""
    if offset + length > len(model):
        return (raw.ENOSPC if command in (raw.WRITE, raw.WRITE_ZEROES) else raw.EINVAL), b""
    where = slice(offset, offset + length)
    if command == raw.READ:
        return 0, bytes(model[where])
    if command == raw.BLOCK_STATUS:
        return raw.EINVAL, b""
    if command != raw.CACHE:
        model[where] = data if command == raw.WRITE else bytes(length)
    return 0, b""


@settings(max_examples=150)
@given(st.lists(steps, max_size=30), st.integers(1, 40_000), st.booleans())
def test_any_requests_in_any_pieces_are_answered_as_the_model_says(todo: list[tuple[int, int, int, int]], piece: int, simple: bool) -> None:
    peer = Peer(MemoryDevice(SMALL, block_size=1), nbdwire.SIMPLE if simple else nbdwire.STRUCTURED)
    model, sent, wanted = bytearray(SMALL), [], []
    for cookie, (command, offset, length, flags) in enumerate(todo):
        if command == raw.DISC:
            continue
        data = bytes([cookie + 1]) * length if command == raw.WRITE else b""
        peer.replies.reads[cookie] = length if command == raw.READ else 0
        sent.append(raw.request(command, offset, length, flags, cookie, data))
        error, read = expected(model, command, offset, length, flags, simple, data)
        wanted.append((cookie, error, read))
    peer.feed(b"".join(sent), piece)
    assert [(answer.cookie, answer.error, answer.data) for answer in peer.answers()] == wanted
    assert peer.device.content == model
    assert peer.memory.used == 0


@given(st.lists(st.one_of(st.binary(max_size=100), st.builds(raw.request, st.integers(0, 9), st.integers(0, 99), st.integers(0, 99)))))
def test_any_bytes_are_answered_or_end_the_session(sent: list[bytes]) -> None:
    peer = Peer()
    try:
        peer.feed(b"".join(sent))
    except ProtocolError:
        pass
    peer.session.outgoing()
    peer.session.end()
    assert peer.memory.used == 0
