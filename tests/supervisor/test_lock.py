"""One supervisor for a run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from isblk.supervisor.lock import NAME, find, held
from support.processes import Processes

HOLD = """
import sys
from pathlib import Path
from isblk.errors import UsageError
from isblk.supervisor.lock import held
try:
    with held(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except UsageError as error:
    print(error)
"""


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    (tmp_path / NAME).touch()
    assert find(tmp_path) is None


def test_who_holds_it_is_found_by_its_control_socket_until_it_ends(processes: Processes, tmp_path: Path) -> None:
    holder = processes.start([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE)
    holder.wait_for("held")
    assert find(tmp_path) == tmp_path / f"{holder.pid}.sock"
    second = processes.run([sys.executable, "-c", HOLD, str(tmp_path)])
    assert second.stdout == f"a supervisor runs already, process {holder.pid}: `isblk status` shows it\n"
    assert find(tmp_path) == tmp_path / f"{holder.pid}.sock"
    holder.process.kill()
    holder.wait()
    assert holder.process.stdin is not None
    holder.process.stdin.close()
    assert find(tmp_path) is None


def test_it_is_let_go_at_the_end_of_the_block_and_no_child_has_it(processes: Processes, tmp_path: Path) -> None:
    with held(tmp_path):
        child = processes.start(["cat"], stdin=subprocess.PIPE)
    processes.run([sys.executable, "-c", HOLD, str(tmp_path)])
    assert child.process.poll() is None
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert os.path.exists(tmp_path / NAME)
