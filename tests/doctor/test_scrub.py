"""Secrets are taken out, in whatever spelling; what is none stays."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.doctor.scrub import HIDDEN, SHORTEST, Scrubber

SECRET = b'pass "word"/\xe4+ 1234'
PLAIN = SECRET.decode("latin-1")


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET.decode(errors="backslashreplace"),
        SECRET.decode(errors="surrogateescape"),
        json.dumps(SECRET.decode(errors="backslashreplace")),
        repr(SECRET),
        SECRET.hex(),
        "0x" + SECRET.hex().upper(),
        base64.b64encode(SECRET).decode(),
        quote(SECRET),
        quote(SECRET, safe=""),
    ],
)
def test_a_known_secret_is_taken_out_in_every_spelling(spelling: str) -> None:
    text = Scrubber([SECRET]).text(f"before {spelling} behind")
    assert HIDDEN in text and text.startswith("before ") and text.endswith(" behind")
    assert "1234" not in text and SECRET.hex()[:16] not in text.lower()


@given(st.text(min_size=SHORTEST, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_whatever_a_secret_is_it_is_not_there(secret: str, before: str, behind: str) -> None:
    scrubber = Scrubber([secret.encode(errors="surrogatepass")])
    assert secret not in scrubber.text(before + secret + behind).replace(HIDDEN, "\0") or secret in HIDDEN


def test_one_secret_within_another() -> None:
    text = Scrubber([b"abcd", b"abcdefgh", b"xyz"]).text("abcdefgh abcd xyz")
    assert text == f"{HIDDEN} {HIDDEN} xyz", "what is too short is looked for nowhere"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("iscsi://me%hunter2@10.0.0.5/iqn.x:y", f"iscsi://me:{HIDDEN}@10.0.0.5/iqn.x:y"),
        ("http://me:hunter2@proxy:8080/", f"http://me:{HIDDEN}@proxy:8080/"),
        ("password = hunter2", f"password = {HIDDEN}"),
        ('{"secret": "hunter2", "user": "me"}', f'{{"secret": {HIDDEN}, "user": "me"}}'),
        ("$ISBLK_SECRET=hunter2", f"$ISBLK_SECRET={HIDDEN}"),
        ("CHAP_N=me CHAP_R=0x1234abcd CHAP_C=0b12==", f"CHAP_N=me CHAP_R={HIDDEN} CHAP_C={HIDDEN}"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_though_nobody_knew_it(text: str, left: str) -> None:
    assert Scrubber([]).text(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "secret-file  /etc/isblk/secret  default",
        "iscsi://me@10.0.0.5:3260/iqn.x:y/0",
        "check the secret of the target on both sides",
        "10.0.0.5:3260 lets us in: portal group 1",
        "mail me: a@b.example",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert Scrubber([b"hunter2-hunter2"]).text(text) == text


def test_bytes_keep_their_length() -> None:
    assert Scrubber([b"hunter2"]).data(b"xx hunter2 yy 68756e74657232") == b"xx ******* yy **************"


def test_nothing_shows_what_it_knows() -> None:
    assert "hunter2" not in repr(Scrubber([b"hunter2"]))
