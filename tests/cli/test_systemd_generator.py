"""`isblk systemd-generator`: as systemd calls it, with a table that is right, wrong in part, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]
LINE = "iqn.2001-05.com.example:disks {} fuse portal=10.0.0.5,{}\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "isblktab"


def wanted(normal: Path) -> list[str]:
    return sorted(path.name for path in normal.glob("remote-fs.target.*/*"))


def test_it_writes_units_and_says_nothing(run: Run, table: Path, tmp_path: Path) -> None:
    table.write_text(LINE.format("/mnt/a", "nofail") + LINE.format("/mnt/b", "lun=1") + LINE.format("/mnt/c", "noauto"))
    directories = [tmp_path / name for name in ("normal", "early", "late")]
    assert run("systemd-generator", "-f", table, *directories).output == ""
    assert wanted(directories[0]) == ["isblk@mnt-a.service", "isblk@mnt-b.service"]
    assert f"serve -f {table} %f" in (directories[0] / "isblk@.service").read_text()
    assert not directories[1].exists() and not directories[2].exists()


def test_a_line_that_is_wrong_is_told_and_does_not_take_the_others_along(run: Run, table: Path, tmp_path: Path) -> None:
    table.write_text(LINE.format("/mnt/a", "nofial") + LINE.format("/mnt/b", "user=me,secret-file=/not/there/yet"))
    said = run("systemd-generator", "-f", table, tmp_path / "normal").stderr
    assert said == f"isblk: {table}:1:59: there is no option 'nofial': is nofail meant?\n"
    assert wanted(tmp_path / "normal") == ["isblk@mnt-b.service"]


def test_without_a_table_there_is_the_template(run: Run, table: Path, tmp_path: Path) -> None:
    assert run("systemd-generator", "-f", table, tmp_path / "normal").output == ""
    assert sorted(path.name for path in (tmp_path / "normal").iterdir()) == ["isblk@.service", "isblk@.socket"]


def test_a_table_that_others_can_change_is_told(run: Run, table: Path, tmp_path: Path) -> None:
    table.write_text(LINE.format("/mnt/a", "lun=0"))
    table.chmod(0o666)
    assert "others can change this table" in run("systemd-generator", "-f", table, tmp_path / "normal").stderr
    assert not wanted(tmp_path / "normal")


def test_a_directory_that_cannot_be_written_is_an_error(run: Run, table: Path) -> None:
    table.write_text("")
    assert "units cannot be written" in run("systemd-generator", "-f", table, table / "below", code=2).stderr
