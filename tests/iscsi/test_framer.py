"""The framer against literal bytes: whole, in pieces, cut, damaged, absurd; and where the bytes of large segments land."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isblk.errors import DigestError, ProtocolError
from isblk.iscsi import framer as framer_module
from isblk.iscsi.framer import AHS_LIMIT, LITTLE_AHEAD, PLACE_FROM, READ_AHEAD, Framer, frame
from support.scripts import digest, feed, pdu_bytes

BHS = bytes([0x25, 0x80]) + bytes(14) + bytes(range(32))
AHS = bytes.fromhex("0005010011223344")
LARGE = 100_001
BOTH = [(False, False), (True, False), (False, True), (True, True)]
both_digests = pytest.mark.parametrize("header_digest, data_digest", BOTH)


class Recorder:
    """A sink that keeps copies of what it is given, and memory for what is placed."""

    def __init__(self, places: bool = True) -> None:
        self.seen: list[tuple[bytes, bytes, bytes]] = []
        self.placed: list[memoryview] = []
        self.in_place: list[bool] = []
        self.then: Callable[[], None] = lambda: None
        self._places = places

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        if not self._places:
            return None
        self.placed.append(memoryview(bytearray(length)))
        return self.placed[-1]

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        assert len(bhs) == 48
        self.seen.append((bytes(bhs), bytes(ahs), bytes(data)))
        self.in_place.append(any(data.obj is memory.obj for memory in self.placed))
        self.then()


def build(data: bytes = b"", ahs: bytes = b"", header_digest: bool = False, data_digest: bool = False, pad: bytes = b"\0\0\0") -> bytes:
    """One PDU as its peer would send it."""
    header = BHS[:4] + bytes([len(ahs) // 4]) + len(data).to_bytes(3, "big") + BHS[8:] + ahs
    body = data + pad[: -len(data) % 4]
    return header + (digest(header) if header_digest else b"") + body + (digest(body) if data_digest and data else b"")


def told(data: bytes = b"", ahs: bytes = b"") -> tuple[bytes, bytes, bytes]:
    return (build(data, ahs)[:48], ahs, data)


def framed(limit: int = 1 << 20, header_digest: bool = False, data_digest: bool = False, places: bool = True) -> tuple[Framer, Recorder]:
    sink = Recorder(places)
    framer = Framer(sink, limit)
    framer.enable_digests(header_digest, data_digest)
    return framer, sink


SEGMENTS = [b"", b"a", b"ab", b"abc", b"abcd", bytes(range(256)) * 20]


# ------------------------------------------------------------------------------------------------------------------ whole and in pieces


@both_digests
@pytest.mark.parametrize("chunk", [1, 3, 48, 49, 1000, 1 << 20])
@pytest.mark.parametrize("ahs", [b"", AHS])
def test_a_stream_is_the_same_pdus_however_it_is_cut(header_digest: bool, data_digest: bool, chunk: int, ahs: bytes) -> None:
    framer, sink = framed(header_digest=header_digest, data_digest=data_digest)
    feed(framer, b"".join(build(data, ahs, header_digest, data_digest) for data in SEGMENTS), chunk)
    assert sink.seen == [told(data, ahs) for data in SEGMENTS]
    assert framer.pending == 0


@both_digests
def test_a_pdu_cut_at_each_length_is_delivered_with_its_last_byte_only(header_digest: bool, data_digest: bool) -> None:
    stream = build(b"hello", AHS, header_digest, data_digest)
    for cut in range(len(stream)):
        framer, sink = framed(header_digest=header_digest, data_digest=data_digest)
        feed(framer, stream[:cut])
        assert not sink.seen and framer.pending == cut
        feed(framer, stream[cut:])
        assert sink.seen == [told(b"hello", AHS)]


def test_rubbish_behind_a_pdu_does_not_touch_it() -> None:
    framer, sink = framed()
    with pytest.raises(ProtocolError):
        feed(framer, build(b"data") + b"\xff" * 60)
    assert sink.seen == [told(b"data")]


def test_padding_that_is_not_zero_is_accepted() -> None:
    framer, sink = framed(data_digest=True)
    feed(framer, build(b"abcde", data_digest=True, pad=b"\xff\xfe\xfd"))
    assert sink.seen == [told(b"abcde")]


@both_digests
@pytest.mark.parametrize("chunk", [4096, 77_777, 1 << 20])
@pytest.mark.parametrize("length", [PLACE_FROM - 1, PLACE_FROM, LARGE, READ_AHEAD + 5])
def test_large_segments_arrive_whole_in_any_pieces(header_digest: bool, data_digest: bool, chunk: int, length: int) -> None:
    data = (bytes(range(251)) * (length // 251 + 1))[:length]
    framer, sink = framed(header_digest=header_digest, data_digest=data_digest)
    small = build(b"x", b"", header_digest, data_digest)
    feed(framer, (small + build(data, AHS, header_digest, data_digest) + small) * 3, chunk)
    assert sink.seen == [told(b"x"), told(data, AHS), told(b"x")] * 3


@both_digests
def test_a_large_pdu_cut_around_its_end_waits_for_padding_and_digest(header_digest: bool, data_digest: bool) -> None:
    stream = build(bytes(LARGE), b"", header_digest, data_digest)
    for missing in range(1, 9):
        framer, sink = framed(header_digest=header_digest, data_digest=data_digest)
        feed(framer, stream[:60])
        feed(framer, stream[60:-missing])
        assert not sink.seen
        feed(framer, stream[-missing:])
        assert sink.seen == [told(bytes(LARGE))] and framer.pending == 0


# ----------------------------------------------------------------------------------------------------------------- where bytes land


def test_a_large_segment_lands_in_the_sinks_own_memory() -> None:
    framer, sink = framed()
    data = bytes(range(256)) * 1000
    stream = build(data)
    feed(framer, stream[:1000])
    buffer = framer.receive_buffer()
    assert buffer.obj is sink.placed[0].obj and len(buffer) == len(data) - (1000 - 48)
    feed(framer, stream[1000:])
    assert sink.in_place == [True] and bytes(sink.placed[0]) == data


def test_only_what_arrived_before_the_place_was_known_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    framer, sink = framed()
    stream = build(bytes(256 * 1024))
    feed(framer, stream[:5000])
    received_in_place = 0
    at = 5000
    while at < len(stream):
        buffer = framer.receive_buffer()
        count = min(len(buffer), len(stream) - at)
        received_in_place += count if buffer.obj is sink.placed[0].obj else 0
        framer.received(count)
        at += count
    assert received_in_place == 256 * 1024 - (5000 - 48)


def test_a_small_segment_is_not_placed() -> None:
    framer, sink = framed()
    feed(framer, build(bytes(PLACE_FROM - 4)), 1000)
    assert not sink.placed and len(sink.seen) == 1


def test_a_large_segment_that_arrived_whole_is_delivered_from_the_read_ahead() -> None:
    framer, sink = framed()
    feed(framer, build(bytes(LARGE)))
    assert not sink.placed and sink.in_place == [False]


def test_a_segment_that_the_sink_does_not_place_is_delivered_all_the_same() -> None:
    framer, sink = framed(places=False)
    feed(framer, build(bytes(LARGE)), 10_000)
    assert sink.seen == [told(bytes(LARGE))]


def test_a_sink_that_places_in_memory_of_another_size_has_a_bug() -> None:
    framer, sink = framed()
    sink.place = lambda bhs, length: memoryview(bytearray(length - 1))  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="another size"):
        feed(framer, build(bytes(LARGE)), 1000)


def test_the_read_ahead_shrinks_behind_a_landing_and_grows_back_when_small_pdus_fill_it() -> None:
    framer, sink = framed()
    assert len(framer.receive_buffer()) == READ_AHEAD
    feed(framer, build(bytes(LARGE)), 50_000)
    assert len(framer.receive_buffer()) == LITTLE_AHEAD
    feed(framer, build(b"x" * 200) * 17, LITTLE_AHEAD)
    assert len(framer.receive_buffer()) > READ_AHEAD // 2
    assert len(sink.seen) == 18


def test_of_a_run_of_large_segments_little_passes_through_the_buffer() -> None:
    framer, sink = framed()
    stream = build(bytes(256 * 1024)) * 8
    at = through = 0
    while at < len(stream):
        buffer = framer.receive_buffer()
        count = min(len(buffer), len(stream) - at)
        through += count if not any(buffer.obj is memory.obj for memory in sink.placed) else 0
        buffer[:count] = stream[at : at + count]
        framer.received(count)
        at += count
    assert len(sink.seen) == 8
    assert through <= READ_AHEAD + 8 * LITTLE_AHEAD


def test_the_receive_buffer_is_never_empty_and_memory_stays_bounded() -> None:
    framer, _ = framed()
    stream = build(bytes(PLACE_FROM - 4)) * 40
    at = 0
    while at < len(stream):
        buffer = framer.receive_buffer()
        assert 0 < len(buffer) <= READ_AHEAD
        count = min(len(buffer), 30_011, len(stream) - at)
        buffer[:count] = stream[at : at + count]
        framer.received(count)
        at += count
        assert framer.pending <= PLACE_FROM + 48


# -------------------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("length", [5, LARGE])
@both_digests
def test_every_damaged_bit_that_a_digest_covers_is_noticed(header_digest: bool, data_digest: bool, length: int, chunk: int) -> None:
    if length == LARGE and chunk == 1:
        chunk = 4096
    stream = build(bytes(length), AHS, header_digest, data_digest)
    header = range(8, 60) if header_digest else range(0)
    body_start = 56 + (4 if header_digest else 0)
    body = (*range(body_start, body_start + 8), len(stream) - 1) if data_digest else ()
    for at in (*header, *body):
        framer, sink = framed(header_digest=header_digest, data_digest=data_digest)
        damaged = bytearray(stream)
        damaged[at] ^= 0x10
        with pytest.raises(DigestError):
            feed(framer, bytes(damaged), chunk)
        assert not sink.seen


def test_a_length_that_the_header_digest_does_not_vouch_for_is_not_believed() -> None:
    framer, sink = framed(header_digest=True)
    stream = bytearray(build(b"abcd", header_digest=True))
    stream[5] = 0xFF
    with pytest.raises(DigestError):
        feed(framer, bytes(stream))
    assert not sink.placed


def test_an_empty_segment_has_no_data_digest() -> None:
    framer, sink = framed(data_digest=True)
    feed(framer, build() + build(b"1234", data_digest=True))
    assert sink.seen == [told(), told(b"1234")]


@pytest.mark.parametrize("length", [8193, 0xFFFFFF])
def test_a_segment_longer_than_we_declared_is_refused_before_any_memory_is_taken(length: int) -> None:
    framer, sink = framed(limit=8192)
    with pytest.raises(ProtocolError, match=f"{length} bytes, more than the 8192"):
        feed(framer, BHS[:5] + length.to_bytes(3, "big") + BHS[8:])
    assert not sink.placed and not sink.seen


def test_a_segment_of_exactly_the_limit_is_accepted() -> None:
    framer, sink = framed(limit=8192)
    feed(framer, build(bytes(8192)))
    assert len(sink.seen) == 1


def test_more_additional_headers_than_anybody_needs_are_refused() -> None:
    framer, _ = framed()
    with pytest.raises(ProtocolError, match="additional headers"):
        feed(framer, BHS[:4] + bytes([AHS_LIMIT // 4 + 1]) + bytes(3) + BHS[8:])


def test_additional_headers_up_to_the_limit_are_delivered() -> None:
    framer, sink = framed()
    feed(framer, build(b"d", bytes(AHS_LIMIT)), 100)
    assert sink.seen == [told(b"d", bytes(AHS_LIMIT))]


class Unwilling(Recorder):
    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        pass


@given(st.binary(max_size=400), st.sampled_from(BOTH), st.integers(1, 500))
def test_random_bytes_raise_protocol_errors_only(stream: bytes, digests: tuple[bool, bool], chunk: int) -> None:
    framer = Framer(Unwilling(), 65536)
    framer.enable_digests(*digests)
    try:
        feed(framer, stream, chunk)
    except ProtocolError:
        pass


pieces = st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 5)), min_size=1, max_size=6)


@settings(max_examples=40)
@given(pieces, st.sampled_from(BOTH), st.lists(st.integers(1, 60_000), min_size=1, max_size=8))
def test_any_pdus_in_any_chunks_come_out_as_they_went_in(
    parts: list[tuple[int, int]], digests: tuple[bool, bool], chunks: list[int]
) -> None:
    framer, sink = framed(1 << 17, *digests)
    stream = memoryview(b"".join(build(bytes([length % 251]) * length, bytes(words * 4), *digests) for length, words in parts))
    at = turn = 0
    while at < len(stream):
        buffer = framer.receive_buffer()
        count = min(len(buffer), chunks[turn % len(chunks)], len(stream) - at)
        buffer[:count] = stream[at : at + count]
        framer.received(count)
        at, turn = at + count, turn + 1
    assert sink.seen == [told(bytes([length % 251]) * length, bytes(words * 4)) for length, words in parts]


# --------------------------------------------------------------------------------------------------------- changes within delivery


def test_digests_begin_with_the_pdu_behind_the_one_that_enabled_them() -> None:
    framer, sink = framed()
    sink.then = lambda: framer.enable_digests(True, True)
    feed(framer, build(b"login") + build(b"full feature", b"", True, True))
    assert sink.seen == [told(b"login"), told(b"full feature")]


def test_another_sink_and_limit_hold_from_the_next_pdu_on() -> None:
    first, second = Recorder(), Recorder()
    framer = Framer(first, 16)
    first.then = lambda: framer.switch(second, 1000)
    feed(framer, build(b"login") + build(bytes(1000)) + build(b"more"))
    assert first.seen == [told(b"login")]
    assert second.seen == [told(bytes(1000)), told(b"more")]


def test_a_lower_limit_holds_from_the_next_pdu_on() -> None:
    first, second = Recorder(), Recorder()
    framer = Framer(first, 1000)
    first.then = lambda: framer.switch(second, 16)
    with pytest.raises(ProtocolError):
        feed(framer, build(bytes(1000)) + build(bytes(17)))
    assert len(first.seen) == 1 and not second.seen


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_switch_within_the_delivery_of_a_placed_segment_holds_too(chunk: int) -> None:
    first, second = Recorder(), Recorder()
    framer = Framer(first, LARGE)

    def switch() -> None:
        framer.switch(second, 100)
        framer.enable_digests(True, True)

    first.then = switch
    feed(framer, build(bytes(LARGE)), 4096)
    feed(framer, build(b"x", b"", True, True) * 3, chunk)
    assert first.in_place == [True] and second.seen == [told(b"x")] * 3


def test_several_switches_in_one_receive_follow_each_other() -> None:
    framer, sink = framed()
    sink.then = lambda: framer.switch(sink, 100)
    feed(framer, build() * 50)
    assert len(sink.seen) == 50


# --------------------------------------------------------------------------------------------------------------------- the sending side


@both_digests
@pytest.mark.parametrize("data", SEGMENTS)
def test_a_framed_pdu_is_the_bytes_its_peer_expects(header_digest: bool, data_digest: bool, data: bytes) -> None:
    header = build(data)[:48]
    assert b"".join(frame(header, data, header_digest, data_digest)) == build(data, b"", header_digest, data_digest)


def test_payload_is_passed_through_and_never_copied() -> None:
    data = memoryview(bytearray(4097))
    for digests in BOTH:
        assert any(piece is data for piece in frame(BHS, data, *digests))


@pytest.mark.parametrize(
    "block, crc",
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
        (bytes.fromhex("01c00000" + "00" * 12 + "14000000000004000000001400000018280000000000000002000000" + "00" * 4), "563a96d9"),
    ],
)
def test_digests_are_those_of_the_rfc(block: bytes, crc: str) -> None:
    *_, trailer = frame(BHS, block, data_digest=True)
    assert bytes(trailer).hex() == crc


def test_a_header_digest_covers_the_additional_header() -> None:
    header = build(b"", AHS)
    assert b"".join(frame(header, b"", header_digest=True)) == header + digest(header)


def test_what_was_delivered_is_not_held_by_the_framer() -> None:
    framer, sink = framed()
    feed(framer, build(bytes(LARGE)), 4096)
    memory = sink.placed.pop().obj
    gc.collect()
    assert not [holder for holder in gc.get_referrers(memory) if isinstance(holder, memoryview | Framer)]


def test_the_limits_of_the_module_fit_each_other() -> None:
    assert framer_module.PLACE_FROM + AHS_LIMIT + 56 < READ_AHEAD // 2, "what is not placed must fit behind a compaction"


def test_the_other_builder_of_the_tests_agrees() -> None:
    assert pdu_bytes(BHS, b"abc", AHS, True) == build(b"abc", AHS, True, True)


def test_an_answer_in_another_protocol_is_refused_at_its_first_48_bytes() -> None:
    """An HTTP server announces nonsense and then waits: without a header digest nothing more has to come to know it."""
    framer = Framer(Recorder(), 8192)
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n"[:48]
    framer.receive_buffer()[:48] = answer
    with pytest.raises(ProtocolError):
        framer.received(48)
