"""Text for people."""

from __future__ import annotations

import pytest

from isblk.cli.text import size_text, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (4096, "4.00 KiB"),
        (64 << 20, "64.0 MiB"),
        (100 << 20, "100 MiB"),
        (1000 << 20, "1000 MiB"),
        (3 << 39, "1.50 TiB"),
        (5 << 50, "5.00 PiB"),
        (5 << 62, "20480 PiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_table_aligns_columns_and_changes_no_cell() -> None:
    text = table(("LUN", "SERIAL"), [(0, "0123"), (16384, "1e5"), ("-", "a b")])
    assert [line.rstrip() for line in text.split("\n")] == ["LUN    SERIAL", "0      0123", "16384  1e5", "-      a b"]


def test_a_table_without_rows_is_its_headings() -> None:
    assert table(("LUN", "TYPE"), []).split() == ["LUN", "TYPE"]
