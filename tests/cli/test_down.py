"""`isblk down` where there is little to end. (system/test_tables.py has the rest.)"""

from __future__ import annotations

import json
from pathlib import Path

from support.processes import Processes, isblk

NAME = "iqn.2001-05.com.example:disks"


def test_without_a_supervisor_there_is_nothing_to_end(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a\n")
    done = processes.run(isblk("down", "-f", table))
    assert (done.stdout, done.stderr) == ("", "isblk: no supervisor runs, and nothing that one has left\n")
    assert "there is no table here" in processes.run(isblk("down", "-f", tmp_path / "absent"), code=2).stderr


def test_the_supervisor_ends_when_everything_is_down_and_what_is_not_there_is_told(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a,noauto\n")
    running = processes.start(isblk("up", "-f", table, "--foreground", "-v"))
    running.wait_for("supervisor keeps")
    refused = processes.run(isblk("down", "-f", table, "/srv/lun1"), code=3)
    assert refused.stderr == "isblk: the supervisor has no export at /srv/lun1; is /srv/lun0 meant?\n"
    assert processes.run(isblk("down", "-f", table, "/srv/lun0")).stdout.split() == ["WHERE", "STATE", "/srv/lun0", "down"]
    assert running.process.poll() is None
    done = processes.run(isblk("down", "-f", table, "--json"))
    assert [export["state"] for export in json.loads(done.stdout)["exports"]] == ["down"]
    assert running.wait() == 0
