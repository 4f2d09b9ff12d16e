from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError, UsageError
from isblk.iscsi import chap

SECRET = b"twelve bytes and more"

# Computed with md5sum, sha1sum, sha256sum and openssl over byte 0x17, "0123456789ab", bytes 00 01 02 03.
VECTORS = {
    5: "35896220d24a83c79cdb1f2934d8d817",
    6: "6b624910205f25cd74b438393d61bd55b88c3b68",
    7: "ef496b3884e9fe30ab1ed4a441157d3134bcd79df193fe873e7c01a7914d7b04",
    8: "8c4b860e54e92a137cbe73f24f044f94cdde9910df3c8622fd2a52d39cb5d20c",
}


@pytest.mark.parametrize(("algorithm", "expected"), VECTORS.items())
def test_responses_are_the_literal_digests(algorithm: int, expected: str) -> None:
    assert chap.response(algorithm, 0x17, b"0123456789ab", bytes(range(4))).hex() == expected


def test_a_response_is_verified_by_secret_identifier_and_challenge() -> None:
    received = chap.response(7, 1, SECRET, b"challenge")
    assert chap.verified(received, 7, 1, SECRET, b"challenge")
    assert not chap.verified(received, 7, 2, SECRET, b"challenge")
    assert not chap.verified(received, 7, 1, SECRET + b"x", b"challenge")
    assert not chap.verified(received, 7, 1, SECRET, b"other")
    assert not chap.verified(received, 6, 1, SECRET, b"challenge")
    assert not chap.verified(received[:-1], 7, 1, SECRET, b"challenge")


def test_strongest_first_and_md5_among_them() -> None:
    assert tuple(map(int, chap.STRONGEST_FIRST)) == (8, 7, 6, 5)


def test_secret_is_in_no_repr() -> None:
    credentials = chap.Credentials("alice", SECRET)
    assert "alice" in repr(credentials)
    assert "twelve" not in repr(credentials)
    assert "twelve" not in str(credentials)


@pytest.mark.parametrize("secret", [b"", b"elevenbytes", b"x" * 1025])
def test_secrets_below_96_bits_and_absurd_ones_are_refused(secret: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        chap.Credentials("alice", secret)
    if secret:
        assert secret.decode() not in str(caught.value)


def test_secret_of_96_bits_is_accepted() -> None:
    assert chap.Credentials("alice", b"x" * 12).secret == b"x" * 12


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 256, "\ud800"])
def test_names_that_cannot_be_sent_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        chap.Credentials(name, SECRET)


def test_equal_secrets_and_mutual_alone_are_refused() -> None:
    initiator, target = chap.Credentials("i", SECRET), chap.Credentials("t", SECRET + b"2")
    chap.check_directions(initiator, target)
    chap.check_directions(initiator, None)
    chap.check_directions(None, None)
    with pytest.raises(UsageError, match="differ"):
        chap.check_directions(initiator, chap.Credentials("t", SECRET))
    with pytest.raises(UsageError, match="mutual"):
        chap.check_directions(None, target)


@given(st.binary(min_size=1, max_size=1024))
def test_binary_values_round_trip_in_hex_and_base64(data: bytes) -> None:
    assert chap.decode_binary(chap.encode_binary(data)) == data
    assert chap.decode_binary("0X" + data.hex().upper()) == data
    assert chap.decode_binary("0b" + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0x",
        "0b",
        "0x1",
        "0x123",
        "0xgg",
        "0x 1",
        "0x12 34",
        "12",
        "0b=",
        "0bA",
        "0bAA",
        "0bAB==",
        "0bAA=",
        "0bAA==AA==",
        "0bAA==\n",
        "0b-_==",
        "0x12\n",
        "0x" + "00" * 1025,
        "0b" + base64.b64encode(bytes(1025)).decode(),
        "0x٣٣",
    ],
)
def test_binary_values_are_strict_and_bounded(value: str) -> None:
    with pytest.raises(ProtocolError):
        chap.decode_binary(value)


@given(st.text(max_size=40))
def test_random_text_raises_only_protocol_error(value: str) -> None:
    for prefix in ("", "0x", "0b"):
        try:
            data = chap.decode_binary(prefix + value)
        except ProtocolError:
            continue
        assert 1 <= len(data) <= 1024


def test_challenges_are_long_random_and_found_when_reflected() -> None:
    initiator, target = chap.Challenges(), chap.Challenges()
    ours = [initiator.issue() for _ in range(100)]
    assert len(set(ours)) == 100
    assert all(len(challenge) >= 16 for challenge in ours)
    assert all(map(initiator.reflected, ours))
    assert not target.reflected(ours[0])
    assert not initiator.reflected(target.issue())
    assert ours[0].hex() not in repr(initiator)


def test_challenges_are_never_repeated_even_by_a_bad_source(monkeypatch: pytest.MonkeyPatch) -> None:
    source = iter([b"a" * 32, b"a" * 32, b"b" * 32])
    monkeypatch.setattr(chap.secrets, "token_bytes", lambda length: next(source))
    challenges = chap.Challenges()
    assert [challenges.issue(), challenges.issue()] == [b"a" * 32, b"b" * 32]


def test_challenges_remember_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chap, "_REMEMBERED", 3)
    challenges = chap.Challenges()
    sent = [challenges.issue() for _ in range(5)]
    assert [challenges.reflected(one) for one in sent] == [False, False, True, True, True]


def test_machine_without_md5_offers_the_others_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.new

    def without_md5(name: str, **options: bool) -> object:
        if name == "md5":
            raise ValueError("[digital envelope routines] unsupported")
        return real(name, **options)

    monkeypatch.setattr(chap.hashlib, "new", without_md5)
    assert chap.available(chap.STRONGEST_FIRST) == (8, 7, 6)
    with pytest.raises(UsageError, match="FIPS"):
        chap.response(5, 0, SECRET, b"c")
    with pytest.raises(UsageError, match="FIPS"):
        chap.available(chap.MD5_ALONE)


def test_unknown_algorithm_numbers_are_left_out() -> None:
    assert chap.available((99, 7, 5)) == (7, 5)


def test_identifiers_are_one_byte() -> None:
    assert all(0 <= chap.new_identifier() <= 255 for _ in range(50))
