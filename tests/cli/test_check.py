"""`isblk check` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from support.processes import Processes, isblk

NAME = "iqn.2001-05.com.example:disks"


def test_what_is_right_is_listed(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /a fuse portal=a,nofail\n{NAME} /b nbd portal=a,noauto\n{NAME} /c fuse portal=a,automount,timeout=5,nofail\n")
    done = processes.run(isblk("check", "-f", table))
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["WHERE", "TYPE", "TARGET", "STARTED", "UP", "WAITS"],
        ["/a", "fuse", NAME, "by", "up", "no,", "may", "fail"],
        ["/b", "nbd", NAME, "by", "name", "90", "s"],
        ["/c", "fuse", NAME, "on", "first", "use", "5", "s,", "may", "fail"],
    ]
    assert not done.stderr


def test_what_is_wrong_is_told_with_its_place_and_the_exit_code(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /a fuse portl=a\n{NAME} b fuse portal=a\n")
    done = processes.run(isblk("check", "--table", table), code=2)
    assert done.stderr.splitlines() == [
        f"{table}:1:39: there is no option 'portl': is portal meant?",
        f"{table}:2:31: WHERE is 'b', but must be an absolute path, such as /b",
    ]
    assert not done.stdout


def test_json_has_the_entries_and_the_problems(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /a fuse portal=a,retry=5\n{NAME} /b fuse portl=a\n")
    done = processes.run(isblk("check", "-f", table, "--json"), code=2)
    found = json.loads(done.stdout)
    assert (found["version"], found["table"]) == (1, str(table))
    assert found["entries"] == [
        {
            "line": 1,
            "where": "/a",
            "type": "fuse",
            "target": NAME,
            "noauto": False,
            "nofail": False,
            "automount": False,
            "timeout": 90.0,
            "retry": 5.0,
            "command": ["isblk", "mount", "--foreground", "--portal=a", "--", NAME, "/a"],
        }
    ]
    assert [(problem["kind"], problem["line"], problem["column"]) for problem in found["problems"]] == [("unknown-option", 2, 39)]


def test_an_empty_table_says_so_and_one_that_is_not_there_is_an_error(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    assert "there is no table here" in processes.run(isblk("check", "-f", table), code=2).stderr
    table.write_text("# nothing yet\n")
    assert processes.run(isblk("check", "-f", table)).stderr == f"isblk: {table} has no exports\n"
