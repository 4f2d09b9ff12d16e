"""The handshake, as literal bytes: every option right, malformed, truncated, too long, at the wrong time, and byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.export import nbdwire as wire
from isblk.export.nbdhandshake import MOST_OPTIONS, OPTION_LIMIT, Agreed, Handshake, Offer, Phase, Tls
from isblk.export.nbdwire import TransmissionFlag
from support import rawnbd as raw

SIZE = 1 << 30
PLAIN = struct.pack(">I", 3)


class Shelf:
    """Two exports; "0" is the default one, and has a second name."""

    def __init__(self) -> None:
        self.size = SIZE

    def offers(self) -> Sequence[Offer]:
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
        return [Offer("0", "first disk", self.size, flags), Offer("1", "", SIZE, flags, 512, 65536)]

    def find(self, name: str) -> Offer | None:
        first, second = self.offers()
        return {"": first, "0": first, "naa.6001": first, "1": second}.get(name)


def talk(*sent: bytes, tls: Tls = Tls.NONE) -> tuple[Handshake, list[tuple[int, int, bytes]]]:
    """A handshake that has got these bytes, and the replies to its options."""
    handshake = Handshake(Shelf(), tls)
    handshake.receive(b"".join(sent))
    out = b"".join(handshake.outgoing())
    assert out[:18] == raw.GREETING
    return handshake, raw.option_replies(out[18:])


def kinds(replies: list[tuple[int, int, bytes]]) -> list[int]:
    return [kind for _, kind, _ in replies]


def test_the_greeting_is_the_fixed_newstyle_one() -> None:
    assert b"".join(Handshake(Shelf()).outgoing()).hex() == "4e42444d4147494349484156454f50540003"


# ------------------------------------------------------------------ options that are right


def test_go_tells_size_flags_and_block_sizes_and_enters_transmission() -> None:
    handshake, replies = talk(PLAIN, raw.go())
    assert [(number, kind) for number, kind, _ in replies] == [(7, 3), (7, 3), (7, 1)]
    assert replies[0][2].hex() == "000000000000400000000005"
    assert replies[1][2].hex() == "0003000000010000100002000000"
    assert handshake.phase is Phase.TRANSMISSION
    assert handshake.agreed == Agreed("0", wire.SIMPLE, False, False)
    assert handshake.rest == b""


def test_info_tells_what_is_asked_for_and_the_handshake_goes_on() -> None:
    handshake, replies = talk(PLAIN, raw.go(b"naa.6001", 1, 2, 3, 99, kind=raw.INFO))
    assert [data for _, kind, data in replies if kind == raw.REP_INFO][1:3] == [b"\0\x010", b"\0\x02first disk"]
    assert kinds(replies) == [3, 3, 3, 3, 1]
    assert handshake.phase is Phase.OPTION


def test_go_and_info_say_the_same() -> None:
    _, info = talk(PLAIN, raw.go(b"1", 1, 3, kind=raw.INFO))
    _, go = talk(PLAIN, raw.go(b"1", 1, 3))
    assert [reply[1:] for reply in info] == [reply[1:] for reply in go]


def test_a_resize_is_seen_by_who_asks_after_it() -> None:
    shelf = Shelf()
    handshake = Handshake(shelf)
    handshake.receive(PLAIN + raw.go(kind=raw.INFO))
    handshake.outgoing()
    shelf.size = 4096
    handshake.receive(raw.go())
    assert raw.option_replies(b"".join(handshake.outgoing()))[0][2].hex() == "000000000000000010000005"


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124), (0, 124), (2, 0)])
def test_export_name_serves_old_clients(flags: int, zeroes: int) -> None:
    handshake = Handshake(Shelf())
    handshake.receive(struct.pack(">I", flags) + raw.option(raw.EXPORT_NAME, b"1"))
    assert b"".join(handshake.outgoing())[18:] == struct.pack(">QH", SIZE, 5) + bytes(zeroes)
    assert handshake.phase is Phase.TRANSMISSION
    assert handshake.agreed == Agreed("1", wire.SIMPLE, False, False)


def test_one_that_was_held_elsewhere_says_nothing_and_is_agreed_on_simple_replies() -> None:
    handshake = Handshake.elsewhere(Shelf(), "disk")
    assert handshake.outgoing() == [] and handshake.rest == b""
    assert handshake.phase is Phase.TRANSMISSION
    assert handshake.agreed == Agreed("disk", wire.SIMPLE, allocation=False, tls=False)


def test_list_names_each_export_once_with_its_description() -> None:
    _, replies = talk(PLAIN, raw.option(raw.LIST))
    assert replies == [(3, 2, b"\0\0\0\x010first disk"), (3, 2, b"\0\0\0\x011"), (3, 1, b"")]


def test_abort_is_acknowledged_and_ends_even_with_data() -> None:
    for data in (b"", b"why not", bytes(OPTION_LIMIT + 1)):
        handshake, replies = talk(PLAIN, raw.option(raw.ABORT, data))
        assert replies == [(2, 1, b"")]
        assert handshake.phase is Phase.ENDED


def test_structured_replies_bring_df() -> None:
    handshake, replies = talk(PLAIN, raw.option(raw.STRUCTURED_REPLY), raw.go())
    assert replies[0] == (8, 1, b"")
    assert replies[1][2][-2:] == b"\x00\x85"
    assert handshake.agreed == Agreed("0", wire.STRUCTURED, False, False)


def test_extended_headers_include_structured_replies() -> None:
    handshake, replies = talk(PLAIN, raw.option(raw.EXTENDED_HEADERS), raw.option(raw.STRUCTURED_REPLY), raw.go())
    assert kinds(replies)[:2] == [raw.ACK, raw.ERR_EXT_HEADER_REQD]
    assert handshake.agreed == Agreed("0", wire.EXTENDED, False, False)
    handshake, _ = talk(PLAIN, raw.option(raw.STRUCTURED_REPLY), raw.option(raw.EXTENDED_HEADERS), raw.go())
    assert handshake.agreed == Agreed("0", wire.EXTENDED, False, False)


STRUCTURED = raw.option(raw.STRUCTURED_REPLY)


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"base:allocation",), (b"x-other:thing", b"base:allocation")])
def test_contexts_are_listed(queries: tuple[bytes, ...]) -> None:
    _, replies = talk(PLAIN, STRUCTURED, raw.meta(raw.LIST_META_CONTEXT, b"", *queries))
    assert replies[1:] == [(9, 4, bytes(4) + b"base:allocation"), (9, 1, b"")]


@pytest.mark.parametrize("queries", [(b"qemu:allocation-depth",), (b"base:unheard-of",), (b"nonsense",), (b"",), (b"\xff",)])
def test_queries_that_match_nothing_are_no_error(queries: tuple[bytes, ...]) -> None:
    for kind in (raw.LIST_META_CONTEXT, raw.SET_META_CONTEXT):
        _, replies = talk(PLAIN, STRUCTURED, raw.meta(kind, b"", *queries))
        assert replies[1:] == [(kind, 1, b"")]


def test_a_context_is_selected_for_one_export() -> None:
    select = raw.meta(raw.SET_META_CONTEXT, b"naa.6001", b"base:", b"base:allocation", b"base:allocation")
    handshake, replies = talk(PLAIN, STRUCTURED, select, raw.go())
    assert replies[1:3] == [(10, 4, b"\0\0\0\1base:allocation"), (10, 1, b"")]
    assert handshake.agreed == Agreed("0", wire.STRUCTURED, True, False), "the same export by another name"
    handshake, _ = talk(PLAIN, STRUCTURED, select, raw.go(b"1"))
    assert handshake.agreed == Agreed("1", wire.STRUCTURED, False, False)


@pytest.mark.parametrize(
    "second",
    [
        raw.meta(raw.SET_META_CONTEXT, b""),
        raw.meta(raw.SET_META_CONTEXT, b"", b"base:"),
        raw.meta(raw.SET_META_CONTEXT, b"nothing there", b"base:allocation"),
        raw.option(raw.SET_META_CONTEXT, b"\0"),
    ],
)
def test_selecting_again_replaces_also_when_it_fails(second: bytes) -> None:
    handshake, _ = talk(PLAIN, STRUCTURED, raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation"), second, raw.go())
    assert handshake.agreed == Agreed("0", wire.STRUCTURED, False, False)


def test_what_follows_go_is_kept_for_the_transmission() -> None:
    handshake, _ = talk(PLAIN, raw.go(), b"already a request")
    assert handshake.rest == b"already a request"


# ------------------------------------------------------------------ options that are wrong


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (raw.option(raw.LIST, b"x"), raw.ERR_INVALID),
        (raw.option(raw.STRUCTURED_REPLY, b"x"), raw.ERR_INVALID),
        (raw.option(raw.EXTENDED_HEADERS, b"x"), raw.ERR_INVALID),
        (raw.option(raw.STARTTLS), raw.ERR_POLICY),
        (raw.option(4), raw.ERR_UNSUP),
        (raw.option(12, b"something"), raw.ERR_UNSUP),
        (raw.option(0xFFFFFFFF), raw.ERR_UNSUP),
        (raw.option(77, bytes(OPTION_LIMIT + 1)), raw.ERR_UNSUP),
        (raw.option(raw.GO, bytes(OPTION_LIMIT + 1)), raw.ERR_TOO_BIG),
        (raw.option(raw.LIST, bytes(OPTION_LIMIT + 1)), raw.ERR_TOO_BIG),
        (raw.option(raw.GO), raw.ERR_INVALID),
        (raw.option(raw.GO, b"\0\0\0\0"), raw.ERR_INVALID),
        (raw.option(raw.GO, b"\0\0\0\0\0\0\0"), raw.ERR_INVALID),
        (raw.option(raw.GO, b"\0\0\0\x020\0\0"), raw.ERR_INVALID),
        (raw.option(raw.GO, b"\xff\xff\xff\xff0\0\0"), raw.ERR_INVALID),
        (raw.option(raw.GO, b"\0\0\0\x010\xff\xff\0\1"), raw.ERR_INVALID),
        (raw.go(b"2"), raw.ERR_UNKNOWN),
        (raw.go(b"\xff\xfe"), raw.ERR_INVALID),
        (raw.go(b"0\0"), raw.ERR_INVALID),
        (raw.go(b"n" * 4096), raw.ERR_UNKNOWN),
        (raw.go(b"n" * 4097), raw.ERR_INVALID),
        (raw.go(b"2", kind=raw.INFO), raw.ERR_UNKNOWN),
        (raw.meta(raw.LIST_META_CONTEXT, b""), raw.ERR_INVALID),
        (raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation"), raw.ERR_INVALID),
    ],
)
def test_a_wrong_option_is_answered_and_the_next_one_is_served(sent: bytes, kind: int) -> None:
    handshake, replies = talk(PLAIN, sent, raw.go(b"1"))
    assert replies[0][1] == kind
    assert replies[0][2].decode(), "an error has words"
    assert kinds(replies)[1:] == [3, 3, 1]
    assert handshake.agreed == Agreed("1", wire.SIMPLE, False, False)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", raw.ERR_INVALID),
        (b"\0\0\0\0", raw.ERR_INVALID),
        (b"\0\0\0\0\0\0\0\1", raw.ERR_INVALID),
        (b"\0\0\0\0\xff\xff\xff\xff", raw.ERR_INVALID),
        (b"\0\0\0\0\0\0\0\1\0\0\0\6base:", raw.ERR_INVALID),
        (b"\0\0\0\0\0\0\0\1\0\0\0\5base:x", raw.ERR_INVALID),
        (b"\0\0\0\x017\0\0\0\0", raw.ERR_UNKNOWN),
    ],
)
@pytest.mark.parametrize("number", [raw.LIST_META_CONTEXT, raw.SET_META_CONTEXT])
def test_a_wrong_metadata_query_is_answered(number: int, data: bytes, kind: int) -> None:
    _, replies = talk(PLAIN, STRUCTURED, raw.option(number, data))
    assert kinds(replies) == [raw.ACK, kind]


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", 4),
        struct.pack(">I", 0x80000003),
        PLAIN + b"IHAVEOPX" + bytes(8),
        PLAIN + raw.option(raw.EXPORT_NAME, b"7"),
        PLAIN + raw.option(raw.EXPORT_NAME, b"\xff"),
        PLAIN + raw.option(raw.EXPORT_NAME, length=4097),
        PLAIN + raw.option(raw.EXPORT_NAME, length=0xFFFFFFFF),
        struct.pack(">I", 0) + raw.option(raw.LIST),
        struct.pack(">I", 2) + raw.go(),
        PLAIN + raw.option(99) * (MOST_OPTIONS + 1),
    ],
)
def test_what_cannot_be_answered_ends_the_session(sent: bytes) -> None:
    with pytest.raises(ProtocolError):
        talk(sent)


def test_a_stated_length_allocates_nothing() -> None:
    handshake = Handshake(Shelf())
    handshake.receive(PLAIN + raw.option(raw.GO, length=0xFFFFFFFF))
    for _ in range(64):
        handshake.receive(bytes(OPTION_LIMIT))
    assert len(handshake._buffer) <= OPTION_LIMIT
    assert handshake.phase is Phase.SKIP


def test_a_server_that_is_closing_says_so() -> None:
    handshake = Handshake(Shelf())
    handshake.closing = True
    handshake.receive(PLAIN + raw.option(raw.LIST) + raw.go() + raw.option(raw.ABORT))
    assert kinds(raw.option_replies(b"".join(handshake.outgoing())[18:])) == [raw.ERR_SHUTDOWN, raw.ERR_SHUTDOWN, raw.ACK]


# ------------------------------------------------------------------ TLS

EVERYTHING_ELSE = [
    raw.option(raw.LIST),
    raw.go(),
    raw.go(kind=raw.INFO),
    STRUCTURED,
    raw.option(raw.EXTENDED_HEADERS),
    raw.meta(raw.LIST_META_CONTEXT, b""),
    raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation"),
    raw.option(4),
    raw.option(99, b"data"),
    raw.option(raw.GO, bytes(OPTION_LIMIT + 1)),
]


@pytest.mark.parametrize("sent", EVERYTHING_ELSE)
def test_required_means_required(sent: bytes) -> None:
    handshake, replies = talk(PLAIN, sent, tls=Tls.REQUIRED)
    assert kinds(replies) == [raw.ERR_TLS_REQD]
    assert handshake.phase is Phase.OPTION


def test_required_tls_still_lets_a_client_abort() -> None:
    _, replies = talk(PLAIN, raw.option(raw.ABORT), tls=Tls.REQUIRED)
    assert kinds(replies) == [raw.ACK]


def test_export_name_before_required_tls_ends_the_session() -> None:
    with pytest.raises(ProtocolError, match="TLS"):
        talk(PLAIN, raw.option(raw.EXPORT_NAME, b"0"), tls=Tls.REQUIRED)


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_after_the_upgrade_all_is_served_and_starttls_is_not(tls: Tls) -> None:
    handshake, replies = talk(PLAIN, raw.option(raw.STARTTLS), tls=tls)
    assert kinds(replies) == [raw.ACK]
    assert handshake.phase is Phase.STARTTLS
    handshake.secured()
    handshake.receive(raw.option(raw.STARTTLS) + raw.option(raw.LIST) + raw.go())
    assert kinds(raw.option_replies(b"".join(handshake.outgoing()))) == [raw.ERR_INVALID, 2, 2, 1, 3, 3, 1]
    assert handshake.agreed == Agreed("0", wire.SIMPLE, False, True)


def test_starttls_with_data_is_invalid() -> None:
    handshake, replies = talk(PLAIN, raw.option(raw.STARTTLS, b"x"), tls=Tls.OFFERED)
    assert kinds(replies) == [raw.ERR_INVALID]
    assert handshake.phase is Phase.OPTION


def test_offered_tls_is_a_choice() -> None:
    handshake, _ = talk(PLAIN, raw.go(), tls=Tls.OFFERED)
    assert handshake.agreed == Agreed("0", wire.SIMPLE, False, False)


@pytest.mark.parametrize("before", [STRUCTURED, raw.option(raw.EXTENDED_HEADERS)])
def test_what_was_negotiated_before_tls_is_forgotten(before: bytes) -> None:
    select = raw.meta(raw.SET_META_CONTEXT, b"", b"base:allocation")
    handshake, _ = talk(PLAIN, before, select, raw.option(raw.STARTTLS), tls=Tls.OFFERED)
    handshake.secured()
    handshake.receive(raw.go())
    assert handshake.agreed == Agreed("0", wire.SIMPLE, False, True)


@pytest.mark.parametrize("behind", [b"\x16", raw.option(raw.LIST), raw.go()])
def test_plain_data_behind_starttls_is_an_injection(behind: bytes) -> None:
    with pytest.raises(ProtocolError, match="injection"):
        talk(PLAIN, raw.option(raw.STARTTLS), behind, tls=Tls.REQUIRED)
    handshake, _ = talk(PLAIN, raw.option(raw.STARTTLS), tls=Tls.REQUIRED)
    with pytest.raises(ProtocolError):
        handshake.receive(behind)


def test_data_behind_abort_is_refused() -> None:
    handshake, _ = talk(PLAIN, raw.option(raw.ABORT))
    with pytest.raises(ProtocolError):
        handshake.receive(b"x")


def test_tls_out_of_the_blue_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Handshake(Shelf()).secured()


# ------------------------------------------------------------------ any bytes, in any pieces

CONVERSATION = PLAIN + b"".join(EVERYTHING_ELSE[:1] + EVERYTHING_ELSE[3:]) + raw.go(b"1", 0, 1, 2, 3) + b"behind"


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@given(st.lists(st.integers(1, 4000)))
def test_pieces_make_no_difference(sizes: list[int]) -> None:
    whole, replies = talk(CONVERSATION)
    handshake = Handshake(Shelf())
    rest = b""
    for piece in pieces(CONVERSATION, sizes):
        if handshake.phase is Phase.TRANSMISSION:
            rest += piece
        else:
            handshake.receive(piece)
    assert raw.option_replies(b"".join(handshake.outgoing())[18:]) == replies
    assert handshake.agreed == whole.agreed
    assert handshake.rest + rest == b"behind"


def test_byte_by_byte_makes_no_difference() -> None:
    _, replies = talk(CONVERSATION)
    handshake = Handshake(Shelf())
    for byte in CONVERSATION[:-6]:
        handshake.receive(bytes([byte]))
    assert raw.option_replies(b"".join(handshake.outgoing())[18:]) == replies


OPTIONS = st.one_of(
    st.builds(raw.option, st.integers(0, 13), st.binary(max_size=40)),
    st.builds(raw.go, st.sampled_from([b"", b"0", b"1", b"2", b"\xff"])),
    st.builds(raw.option, st.integers(0, 13), st.binary(max_size=40), st.integers(0, 100)),
    st.binary(max_size=30),
)


@given(st.sampled_from([PLAIN, b"", struct.pack(">I", 0)]), st.lists(OPTIONS, max_size=8), st.sampled_from(list(Tls)))
def test_any_bytes_end_in_an_answer_or_a_protocol_error(start: bytes, options: list[bytes], tls: Tls) -> None:
    handshake = Handshake(Shelf(), tls)
    try:
        for sent in [start, *options]:
            handshake.receive(sent)
            if handshake.phase is Phase.TRANSMISSION:
                break
    except ProtocolError:
        return
    raw.option_replies(b"".join(handshake.outgoing())[18:]) if handshake.phase is not Phase.TRANSMISSION else None
    assert tls is not Tls.REQUIRED or handshake.phase is not Phase.TRANSMISSION
