"""`isblk up` as a user types it, where nothing has to be up: what it refuses, and what it says. (system/test_tables.py has the rest.)"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.processes import Processes, isblk

NAME = "iqn.2001-05.com.example:disks"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "isblktab"


def test_a_table_with_a_mistake_starts_nothing(processes: Processes, table: Path) -> None:
    table.write_text(f"{NAME} /a fuse portal=a\n{NAME} /b fuse portl=a\n")
    done = processes.run(isblk("up", "-f", table), code=2)
    assert done.stderr == f"isblk: {table}:2:39: there is no option 'portl': is portal meant?\n"
    assert not processes.strays()


def test_what_is_not_in_the_table_is_told_with_the_nearest(processes: Processes, table: Path) -> None:
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a\n")
    done = processes.run(isblk("up", "-f", table, "/srv/lun1"), code=3)
    assert done.stderr == f"isblk: {table} has no export at /srv/lun1; is /srv/lun0 meant?\n"


def test_a_table_without_exports_starts_no_supervisor(processes: Processes, table: Path) -> None:
    table.write_text("# nothing yet\n")
    done = processes.run(isblk("up", "-f", table))
    assert (done.stdout, done.stderr) == ("", f"isblk: {table} has no exports\n")
    assert not processes.strays()


def test_the_log_file_is_looked_at_before_anything_is_started(processes: Processes, table: Path) -> None:
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a,noauto\n")
    done = processes.run(isblk("up", "-f", table, "--log-file", "/no/such/directory/log"), code=2)
    assert "the log file /no/such/directory/log cannot be written" in done.stderr
    done = processes.run(isblk("up", "-f", table, "--foreground", "--log-file", "/tmp/log"), code=2)
    assert "--log-file is for a supervisor in the background" in done.stderr


def test_a_supervisor_in_the_foreground_is_the_only_one(processes: Processes, table: Path) -> None:
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a,noauto\n")
    first = processes.start(isblk("up", "-f", table, "--foreground", "-v"))
    first.wait_for("supervisor keeps")
    second = processes.run(isblk("up", "-f", table, "--foreground"), code=2)
    assert second.stderr == f"isblk: a supervisor runs already, process {first.pid}: `isblk reload` lets it follow the table\n"
    other = table.with_name("other")
    other.write_text(table.read_text())
    done = processes.run(isblk("up", "-f", other), code=2)
    assert f"the supervisor that runs, process {first.pid}, keeps {table}" in done.stderr
    assert processes.run(isblk("up", "-f", table)).stdout == ""
    assert first.stop() == 0


def test_a_supervisor_in_the_foreground_tells_a_service_manager_that_it_is_ready(processes: Processes, table: Path, tmp_path: Path) -> None:
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a,noauto\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        running = processes.start(isblk("up", "-f", table, "--foreground"), env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
        assert running.stop() == 0
