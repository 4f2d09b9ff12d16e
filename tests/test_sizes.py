"""Sizes for people: three digits and a unit."""

from __future__ import annotations

import pytest

from isblk.sizes import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (64 << 20, "64.0 MiB"), (3 << 39, "1.50 TiB"), (5 << 60, "5120 PiB")],
)
def test_a_size_has_three_digits_in_the_largest_unit_that_shows_them(size: int, text: str) -> None:
    assert size_text(size) == text
