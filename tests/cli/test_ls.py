"""`isblk ls`: every logical unit, disks or not, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from isblk.cli.ls import HEADINGS
from support.targets import TargetProcess

Run = Callable[..., Result]


def test_units_that_are_no_disks_are_listed_too(run: Run, target: TargetProcess) -> None:
    heading, *rows = run("ls", "-p", target.portal, target.name).stdout.splitlines()
    assert tuple(heading.split()) == HEADINGS
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["0", "1", "2"]
    assert cells[1][1:5] == ["disk", "16.0", "MiB", "512"] and cells[2][1:5] == ["disk", "8.00", "MiB", "4096"]
    assert "disk" not in cells[0][1] and "-" in cells[0]
    assert cells[1][-1].startswith("naa.")


def test_json_has_sizes_in_bytes_and_why_a_unit_cannot_be_used(run: Run, target: TargetProcess) -> None:
    units = json.loads(run("ls", target.url()[: -len("/0")], "--json").stdout)
    assert [(unit["lun"], unit["size"], unit["block_size"], unit["read_only"]) for unit in units] == [
        (0, 0, 0, False),
        (1, 16 << 20, 512, False),
        (2, 8 << 20, 4096, True),
    ]
    assert [unit["usable"] for unit in units] == [False, True, True]
    assert "no disk" in units[0]["why_not"] and units[1]["why_not"] is None
    assert units[1]["write_cache"] and units[1]["serial"] and units[1]["vendor"] == "ISBLK"


def test_a_url_with_a_lun_shows_that_one(run: Run, target: TargetProcess) -> None:
    (only,) = json.loads(run("ls", target.url(2), "--json").stdout)
    assert only["lun"] == 2
    assert "no LUN 9" in run("ls", target.url(9), code=3).stderr
