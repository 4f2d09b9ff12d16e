"""The words of sense codes: well formed, and the ones that iSCSI names are there."""

from __future__ import annotations

import pytest

from isblk.scsi.sense_text import CODES


@pytest.mark.parametrize("code", [(0x0C, 0x0C), (0x0C, 0x0D), (0x47, 0x05), (0x11, 0x13), (0x29, 0x07), (0x27, 0x07), (0x2A, 0x09)])
def test_the_codes_an_initiator_must_explain_have_words(code: tuple[int, int]) -> None:
    assert CODES[code]


def test_codes_are_bytes_and_words_are_one_line() -> None:
    for (asc, ascq), words in CODES.items():
        assert 0 <= asc <= 0xFF and 0 <= ascq <= 0xFF
        assert words == words.strip() and words.isprintable()


def test_no_two_codes_share_their_words() -> None:
    assert len(set(CODES.values())) == len(CODES)
