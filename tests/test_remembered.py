"""What is remembered of disks: kept whole and private, added to by several, and never believed when it makes no sense."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isblk.block.known import Known
from isblk.block.request import Geometry
from isblk.remembered import recall, remember

NAME = "iqn.2026-11.test.isblk:disks"
GEOMETRY = Geometry(64 << 20, 512, 4096, read_only=True, can_trim=True, trim_granularity=65536, rotational=True)


def known(number: int, **settings: Any) -> Known:
    return Known(number, GEOMETRY, "VENDOR", "PRODUCT", f"S{number}", f"naa.{number}", **settings)


def test_what_was_found_is_found_again(tmp_path: Path) -> None:
    assert recall(tmp_path, NAME, 3) == []
    remember(tmp_path, NAME, [known(3)], 3)
    assert recall(tmp_path, NAME, 3) == [known(3)]
    assert recall(tmp_path, NAME, None) == [] == recall(tmp_path, NAME, None, True), "whether it is the only one was not asked"
    assert recall(tmp_path, NAME, 4) == [] == recall(tmp_path, "iqn.2026-11.test.isblk:other", 3)
    remember(tmp_path, NAME, [replace(known(3), wwid=None)], 3)
    assert recall(tmp_path, NAME, 3)[0].wwid is None, "the latest login is what counts"


def test_the_only_disk_and_all_of_them(tmp_path: Path) -> None:
    remember(tmp_path, NAME, [known(7)], None)
    assert recall(tmp_path, NAME, None) == [known(7)] == recall(tmp_path, NAME, 7)
    remember(tmp_path, NAME, [known(7), known(1 << 63)], None, True)
    assert recall(tmp_path, NAME, None, True) == [known(7), known(1 << 63)]
    assert recall(tmp_path, NAME, None) == [], "one has to be chosen now"
    remember(tmp_path, NAME, [known(7)], None, True)
    assert recall(tmp_path, NAME, None) == recall(tmp_path, NAME, None, True) == [known(7)]


def test_it_is_private_and_whole(tmp_path: Path) -> None:
    os.umask(os.umask(0))
    remember(tmp_path, NAME, [known(3)], 3)
    (path,) = (tmp_path / "disks").glob("*.json")
    assert path.name == f"{NAME}.json"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    found = json.loads(path.read_text())
    assert (found["version"], found["target"], found["luns"]["3"]["geometry"]["size"]) == (1, NAME, 64 << 20)
    before = path.stat().st_ino
    remember(tmp_path, NAME, [known(3)], 3)
    assert path.stat().st_ino != before, "replaced, not overwritten"
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, "lock"]


def test_several_mounts_add_to_it_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(remember, tmp_path, NAME, [known(number)], number) for number in range(24)]:
            done.result()
    assert [recall(tmp_path, NAME, number) for number in range(24)] == [[known(number)] for number in range(24)]


def test_a_name_that_is_no_file_name_stays_where_it_belongs(tmp_path: Path) -> None:
    remember(tmp_path, "iqn.2026-11.test:../../up", [known(0)], 0)
    assert recall(tmp_path, "iqn.2026-11.test:../../up", 0) == [known(0)]
    assert [one.name for one in tmp_path.iterdir()] == ["disks"]


def spoilt(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The file with one thing wrong, in every way."""
    lun = found["luns"]["3"]
    geometry = lun["geometry"]

    def with_lun(**changes: Any) -> dict[str, Any]:
        return {**found, "luns": {"3": {**lun, **changes}}}

    return [
        {},
        {**found, "version": 2},
        {**found, "luns": [lun]},
        {**found, "luns": {"three": lun}},
        {**found, "luns": {"-3": lun}},
        {**found, "only": "3"},
        {**found, "all": [True]},
        {**found, "all": 3},
        with_lun(vendor=None),
        with_lun(wwid=3),
        with_lun(geometry=None),
        with_lun(geometry={**geometry, "size": -1}),
        with_lun(geometry={**geometry, "size": 1.5}),
        with_lun(geometry={**geometry, "size": True}),
        with_lun(geometry={**geometry, "block_size": 0}),
        with_lun(geometry={**geometry, "block_size": 513}),
        with_lun(geometry={**geometry, "colour": 1}),
        with_lun(geometry={"size": 1}),
    ]


@pytest.mark.logs("tells nothing .*count as never seen")
def test_what_makes_no_sense_is_as_good_as_never_seen(tmp_path: Path) -> None:
    remember(tmp_path, NAME, [known(3)], 3)
    (path,) = (tmp_path / "disks").glob("*.json")
    good = json.loads(path.read_text())
    for text in ("", "[", "3", "null", '"' * 9, "\udcff", *map(json.dumps, spoilt(good))):
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert recall(tmp_path, NAME, 3) == [], text
    remember(tmp_path, NAME, [known(3)], 3)
    assert recall(tmp_path, NAME, 3) == [known(3)]


@pytest.mark.logs("cannot be remembered in .*/file")
def test_a_place_that_cannot_be_written_costs_no_more_than_a_word(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file", NAME, [known(3)], 3)
