"""The alphabet of NBD: replies in their three forms as literal bytes, errors, texts, extents."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import PathLost, RequestFailed, RequestInvalid
from isblk.export import nbdwire as wire
from isblk.export.nbdwire import Error, allocation, cut_text, option_reply, wire_error

COOKIE, OFFSET = 0x0102030405060708, 0x1112131415161718
C, AT = "0102030405060708", "1112131415161718"


def read_header(replies: wire.Replies, length: int) -> str:
    buffer = memoryview(bytearray(48))
    replies.pack_read(buffer, 48 - replies.read_header, COOKIE, OFFSET, length)
    return bytes(buffer[48 - replies.read_header :]).hex()


def test_a_read_is_answered_in_each_form() -> None:
    assert read_header(wire.SIMPLE, 512) == "6744669800000000" + C
    assert read_header(wire.STRUCTURED, 512) == "668e33ef00010001" + C + "00000208" + AT
    assert read_header(wire.EXTENDED, 512) == "6e8a278c00010001" + C + AT + "0000000000000208" + AT


def test_a_success_without_data_is_answered_in_each_form() -> None:
    assert wire.SIMPLE.done(COOKIE, OFFSET).hex() == "6744669800000000" + C
    assert wire.STRUCTURED.done(COOKIE, OFFSET).hex() == "6744669800000000" + C
    assert wire.EXTENDED.done(COOKIE, OFFSET).hex() == "6e8a278c00010000" + C + AT + "0000000000000000"


def test_an_error_is_answered_in_each_form() -> None:
    assert wire.SIMPLE.error(COOKIE, OFFSET, 28, "full").hex() == "674466980000001c" + C
    assert wire.STRUCTURED.error(COOKIE, OFFSET, 28, "full").hex() == "668e33ef00018001" + C + "0000000a0000001c000466756c6c"
    error = wire.EXTENDED.error(COOKIE, OFFSET, 28, "full").hex()
    assert error == "6e8a278c00018001" + C + AT + "000000000000000a0000001c000466756c6c"


def test_a_block_status_is_answered_in_both_forms_that_can() -> None:
    extents = [(0x1000, 3), (0x2000, 0)]
    status = wire.STRUCTURED.status(COOKIE, OFFSET, extents).hex()
    assert status == "668e33ef00010005" + C + "000000140000000100001000000000030000200000000000"
    status = wire.EXTENDED.status(COOKIE, OFFSET, extents).hex()
    long = "0000000000001000000000000000000300000000000020000000000000000000"
    assert status == "6e8a278c00010006" + C + AT + "00000000000000280000000100000002" + long


def test_a_simple_reply_has_no_block_status() -> None:
    with pytest.raises(AssertionError):
        wire.SIMPLE.status(1, 0, [(1, 0)])


def test_an_option_is_answered() -> None:
    assert option_reply(7, 0x80000006, b"no").hex() == "0003e889045565a90000000780000006000000026e6f"


def test_a_message_is_cut_to_what_a_string_may_have() -> None:
    error = wire.STRUCTURED.error(1, 0, 5, "x" * 5000)
    assert len(error) == 20 + 6 + 4096
    assert cut_text("a\0b") == b"a b"
    assert cut_text("ä" * 3, 5) == "ää".encode()
    assert cut_text("\ud800") == b"?"


@given(st.text(), st.integers(0, 40))
def test_a_cut_text_is_always_utf_8_within_its_limit(text: str, limit: int) -> None:
    cut = cut_text(text, limit)
    assert len(cut) <= limit
    assert b"\0" not in cut
    cut.decode()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RequestFailed("", errno.EIO), Error.EIO),
        (PathLost(""), Error.EIO),
        (RequestInvalid("", errno.EROFS), Error.EPERM),
        (RequestInvalid("", errno.EACCES), Error.EPERM),
        (RequestInvalid("", errno.EINVAL), Error.EINVAL),
        (RequestInvalid("", errno.ENOSPC), Error.ENOSPC),
        (RequestInvalid("", errno.EDQUOT), Error.ENOSPC),
        (RequestInvalid("", errno.EFBIG), Error.ENOSPC),
        (RequestInvalid("", errno.EOPNOTSUPP), Error.EINVAL),
        (RequestInvalid("", errno.ESHUTDOWN), Error.ESHUTDOWN),
        (RequestInvalid("", errno.ENODEV), Error.EIO),
        (ValueError("no number"), Error.EIO),
    ],
)
def test_an_error_has_one_of_the_numbers_there_are(error: Exception, told: Error) -> None:
    assert wire_error(error) is told


@dataclass
class Found:
    offset: int
    length: int
    provisioning: int


def test_allocation_is_clipped_merged_and_told() -> None:
    found = [Found(0, 1000, 0), Found(1000, 500, 1), Found(1500, 500, 2), Found(2000, 100, 0), Found(2100, 100, 7), Found(2200, 800, 1)]
    assert allocation(found, 100, 2500, True, False) == [(900, 0), (500, 3), (500, 2), (200, 0), (400, 3)]
    assert allocation(found, 100, 2500, False, False) == [(900, 0), (500, 1), (700, 0), (400, 1)]
    assert allocation(found, 100, 2500, True, True) == [(900, 0)]
    assert allocation(found, 1200, 10, True, True) == [(10, 3)]


def test_what_is_not_known_is_allocated() -> None:
    assert allocation([], 5, 7, True, False) == [(7, 0)]
    assert allocation([Found(100, 10, 1)], 5, 7, True, False) == [(7, 0)]
    assert allocation([Found(0, 6, 1), Found(8, 90, 1)], 5, 7, True, False) == [(1, 3)], "behind a gap nothing is claimed"


extents = st.lists(st.tuples(st.integers(0, 200), st.integers(-5, 200), st.integers(0, 5)).map(lambda each: Found(*each)))


@given(extents, st.integers(0, 300), st.integers(1, 300), st.booleans(), st.booleans())
def test_whatever_a_target_says_the_answer_is_lawful(found: list[Found], offset: int, length: int, zero: bool, one: bool) -> None:
    told = allocation(found, offset, length, zero, one)
    assert told
    assert all(size > 0 and 0 <= state <= 3 for size, state in told)
    assert sum(size for size, _ in told) <= length
    assert not one or len(told) == 1
