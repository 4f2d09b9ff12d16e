from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.iscsi import text

KEYS = st.from_regex(r"[A-Z][A-Za-z0-9.\-+@_]{0,62}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0,", exclude_categories=("Cs",)), max_size=60)


def test_every_pair_ends_with_nul_the_last_too() -> None:
    assert text.encode_pairs([("HeaderDigest", "CRC32C,None"), ("MaxConnections", "1")]) == b"HeaderDigest=CRC32C,None\0MaxConnections=1\0"


def test_literal_text_decodes_in_order_with_repeats() -> None:
    data = b"TargetName=iqn.a\0TargetAddress=[::1]:3260,1\0TargetName=iqn.b\0"
    assert text.decode_pairs(data) == [("TargetName", "iqn.a"), ("TargetAddress", "[::1]:3260,1"), ("TargetName", "iqn.b")]


def test_value_may_be_empty_and_contain_equals() -> None:
    assert text.decode_pairs(b"TargetAlias=\0X-a.b=c=d\0") == [("TargetAlias", ""), ("X-a.b", "c=d")]


def test_no_text_is_no_pairs_and_counted_padding_is_let_pass() -> None:
    assert text.decode_pairs(b"") == []
    assert text.decode_pairs(b"\0\0") == []
    assert text.decode_pairs(b"A=1\0\0\0") == [("A", "1")]


@pytest.mark.parametrize("key", ["X#NodeArchitecture", "iSCSIProtocolLevel"])
def test_keys_of_the_rfcs_that_break_the_key_syntax_are_accepted(key: str) -> None:
    assert text.decode_pairs(text.encode_pairs([(key, "1")])) == [(key, "1")]


def test_value_that_is_not_utf8_is_escaped_not_fatal() -> None:
    assert text.decode_pairs(b"TargetAlias=caf\xe9\0") == [("TargetAlias", "caf\\xe9")]


@pytest.mark.parametrize(
    "data",
    [
        b"A=1",
        b"A\0",
        b"=1\0",
        b"1A=1\0",
        b"A b=1\0",
        b"A=1\0\0B=2\0",
        b"\0A=1\0",
        b"\xc3\x84=1\0",
        b"A" * 64 + b"=1\0",
        b"A=" + b"x" * 256 + b"\0",
        b"A=1," + b"x" * 256 + b"\0",
        b"CHAP_C=" + b"x" * 2051 + b"\0",
    ],
)
def test_malformed_text_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        text.decode_pairs(data)


def test_limits_are_exact() -> None:
    assert text.decode_pairs(b"A" * 63 + b"=" + b"x" * 255 + b"\0") == [("A" * 63, "x" * 255)]
    assert text.decode_pairs(b"A=" + b"x" * 255 + b"," + b"y" * 255 + b"\0") == [("A", "x" * 255 + "," + "y" * 255)]
    assert text.decode_pairs(b"CHAP_R=" + b"0" * 2050 + b"\0") == [("CHAP_R", "0" * 2050)]


@pytest.mark.parametrize("pair", [("1lower", "1"), ("A=B", "1"), ("", "1"), ("A", "x\0y"), ("A", "x" * 256)])
def test_what_cannot_be_sent_is_the_callers_error(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        text.encode_pairs([pair])


@given(st.lists(st.tuples(KEYS, VALUES), max_size=8))
def test_pairs_round_trip(pairs: list[tuple[str, str]]) -> None:
    assert text.decode_pairs(text.encode_pairs(pairs)) == pairs


@given(st.binary(max_size=400))
def test_random_bytes_raise_only_protocol_error(data: bytes) -> None:
    try:
        pairs = text.decode_pairs(data)
    except ProtocolError:
        return
    for _key, value in pairs:
        value.encode()


def test_a_key_declared_twice_is_refused_in_a_negotiation() -> None:
    assert text.unique_pairs([("A", "1"), ("B", "2")]) == {"A": "1", "B": "2"}
    with pytest.raises(ProtocolError, match="A twice"):
        text.unique_pairs([("A", "1"), ("A", "1")])


def test_text_is_split_into_segments_and_nothing_is_one_empty_segment() -> None:
    assert text.split_text(b"abcdef", 4) == [b"abcd", b"ef"]
    assert text.split_text(b"abcd", 4) == [b"abcd"]
    assert text.split_text(b"") == [b""]


@given(st.lists(st.tuples(KEYS, VALUES), max_size=8), st.integers(1, 50))
def test_assembler_joins_any_chunking(pairs: list[tuple[str, str]], size: int) -> None:
    *chunks, last = text.split_text(text.encode_pairs(pairs), size)
    assembler = text.TextAssembler(max_pdus=10**6)
    for chunk in chunks:
        assert assembler.add(memoryview(chunk), more=True) is None
    assert assembler.add(last, more=False) == pairs


def test_assembler_bounds_bytes_and_pdus_over_its_whole_life() -> None:
    assembler = text.TextAssembler(max_length=10, max_pdus=3)
    assert assembler.add(b"A=1\0", more=False) == [("A", "1")]
    assert assembler.add(b"B=", more=True) is None
    with pytest.raises(ProtocolError, match="does not end"):
        assembler.add(b"12345", more=True)
    endless = text.TextAssembler(max_pdus=3)
    for _ in range(3):
        endless.add(b"", more=True)
    with pytest.raises(ProtocolError, match="does not end"):
        endless.add(b"", more=True)
    assert "4 PDUs" in repr(endless)


def test_text_cut_in_a_pair_is_refused_at_the_end() -> None:
    assembler = text.TextAssembler()
    assembler.add(b"A=1\0B=", more=True)
    with pytest.raises(ProtocolError):
        assembler.add(b"2", more=False)


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("42", 42), ("0x1F", 31), ("0Xff", 255), ("18446744073709551615", 2**64 - 1)])
def test_numbers(value: str, number: int) -> None:
    assert text.parse_number(value) == number


@pytest.mark.parametrize("value", ["", "00", "01", "-1", "+1", " 1", "1 ", "1_0", "0x", "0xg", "1.0", "\u0663", "1\n", str(2**64)])
def test_numbers_are_strict(value: str) -> None:
    with pytest.raises(ProtocolError):
        text.parse_number(value)


def test_numbers_are_range_checked() -> None:
    assert text.parse_number("512", 512, 1024) == 512
    for value in ("511", "1025"):
        with pytest.raises(ProtocolError, match="not within 512 to 1024"):
            text.parse_number(value, 512, 1024)


def test_ranges() -> None:
    assert text.parse_range("1~0x10") == (1, 16)
    for value in ("1", "2~1", "~1", "1~", "1~2~3"):
        with pytest.raises(ProtocolError):
            text.parse_range(value)


def test_booleans_are_exactly_yes_and_no() -> None:
    assert text.parse_boolean("Yes")
    assert not text.parse_boolean("No")
    assert text.format_boolean(True) == "Yes"
    assert text.format_boolean(False) == "No"
    for value in ("yes", "YES", "", "True", "1"):
        with pytest.raises(ProtocolError):
            text.parse_boolean(value)


def test_lists() -> None:
    assert text.parse_list("CRC32C,None") == ["CRC32C", "None"]
    assert text.format_list(["CRC32C", "None"]) == "CRC32C,None"
    for value in ("", "a,", ",a", "a,,b"):
        with pytest.raises(ProtocolError):
            text.parse_list(value)


def test_quoted_text_of_a_peer_cannot_drive_a_terminal() -> None:
    assert text.quoted("\x1b[2J\u202eabc") == "'\\x1b[2J\\u202eabc'"
    assert len(text.quoted("x" * 10000)) < 100
