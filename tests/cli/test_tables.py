"""Which entries of a table a command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from isblk.cli.tables import named
from isblk.errors import NotFound
from isblk.table.entry import parse

NAME = "iqn.2001-05.com.example:disks"
ENTRIES = parse("tab", f"{NAME} /mnt/a fuse\n{NAME} /mnt/b fuse\n{NAME} localhost:1 nbd\n").entries


def test_entries_are_named_by_where_they_are_in_the_order_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    found = named(ENTRIES, ["localhost:1", "mnt/b/", "/mnt/b"], "tab")
    assert [entry.where for entry in found] == ["/mnt/b", "localhost:1"]


def test_a_word_that_is_no_place_is_told_with_the_nearest() -> None:
    with pytest.raises(NotFound, match=r"^tab has no export at /mnt/aa; is /mnt/a meant\?$"):
        named(ENTRIES, ["/mnt/aa"], "tab")
    with pytest.raises(NotFound, match=r"; `isblk check` lists what it has$"):
        named(ENTRIES, ["/somewhere/else"], "tab")
