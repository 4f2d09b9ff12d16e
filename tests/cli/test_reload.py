"""`isblk reload` where nothing has to be up. (system/test_tables.py has the rest.)"""

from __future__ import annotations

import json
from pathlib import Path

from support.processes import Processes, isblk

NAME = "iqn.2001-05.com.example:disks"


def test_without_a_supervisor_there_is_nothing_to_reload(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a\n")
    done = processes.run(isblk("reload", "-f", table), code=2)
    assert done.stderr == "isblk: no supervisor runs: `isblk up` starts one\n"


def test_it_says_what_it_did_with_each_export(processes: Processes, tmp_path: Path) -> None:
    table = tmp_path / "isblktab"
    table.write_text(f"{NAME} /srv/lun0 fuse portal=a,noauto\n{NAME} /srv/lun1 fuse portal=a,noauto\n")
    running = processes.start(isblk("up", "-f", table, "--foreground", "-v"))
    running.wait_for("supervisor keeps")
    table.write_text(f"{NAME} /srv/lun1 fuse portal=a,noauto\n")
    done = processes.run(isblk("reload", "-f", table))
    assert done.stdout.splitlines() == ["stopped   /srv/lun0", "down      /srv/lun1"]
    done = processes.run(isblk("reload", "-f", table, "--json"))
    plan = {"stop": [], "restart": [], "start": [], "change": [], "keep": [], "leave_down": ["/srv/lun1"]}
    assert json.loads(done.stdout) == {"version": 1, **plan}
    table.write_text("rubbish\n")
    assert f"{table}:1:9: WHERE is missing" in processes.run(isblk("reload", "-f", table), code=2).stderr
    assert running.stop() == 0
