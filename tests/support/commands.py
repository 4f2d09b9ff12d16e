"""isblk's commands as a user types them, in subprocesses, against one target."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from support.processes import Processes, Started, isblk
from support.targets import TargetProcess
from support.waiting import until

AS_NOBODY = """
import ctypes, difflib, encodings.idna, importlib, os, pkgutil, pwd, stringprep, sys, tabulate, isblk
for found in pkgutil.walk_packages(isblk.__path__, "isblk."):
    importlib.import_module(found.name)
user = pwd.getpwnam("nobody")
os.setgroups([]), os.setresgid(*[user.pw_gid] * 3), os.setresuid(*[user.pw_uid] * 3)
sys.argv[0] = "isblk"
from isblk.cli import main
main()
"""
"""The command of an ordinary user; everything is imported first, since the interpreter may lie in root's home."""


class Commands:
    """Runs commands with a time limit; `target` is where the short forms go."""

    def __init__(self, processes: Processes, target: TargetProcess) -> None:
        self.processes = processes
        self.target = target
        self.mount_options: list[str] = []

    def run(self, *arguments: str | Path, code: int = 0, **options: Any) -> Started:
        """`isblk ARGUMENTS` to its end, which must be `code`."""
        return self.processes.run(isblk(*arguments), code=code, seconds=30, **options)

    def refused(self, *arguments: str | Path, code: int, **options: Any) -> str:
        """`isblk ARGUMENTS`, which must end with `code` and exactly one line on standard error; that line without 'isblk: '."""
        ended = self.run(*arguments, code=code, **options)
        lines = ended.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("isblk: "), f"not one sentence: {ended.stderr}"
        assert not ended.stdout
        return lines[0].removeprefix("isblk: ")

    @property
    def there(self) -> list[str]:
        """The arguments that name the target."""
        return ["-p", self.target.portal, self.target.name]

    def mount(self, place: Path, *options: str, **more: Any) -> Path:
        """Mount the target at `place`, with `mount_options` too, and return it."""
        self.run("mount", *self.there, place, *self.mount_options, *options, **more)
        return place

    def umount(self, place: Path) -> None:
        """`isblk umount`."""
        self.run("umount", place)

    def status(self) -> list[dict[str, Any]]:
        """The mounts that `isblk status --json` lists."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return list(answer["mounts"])

    def gone(self, pid: int) -> None:
        """Return when the daemon `pid` has ended and the target has no session left."""
        until(lambda: ended(pid), f"the daemon {pid} to end")
        until(lambda: self.target.ask("sessions") == 0, "the session to end")

    def as_nobody(self, *arguments: str | Path, code: int = 0) -> Started:
        """`isblk ARGUMENTS` by the user nobody, who keeps its state in the test's home."""
        home = self.processes.home / "nobody"
        if not home.exists():
            home.mkdir()
            os.chown(home, 65534, 65534)
            for above in (home.parent, home.parent.parent, home.parent.parent.parent):
                above.chmod(above.stat().st_mode | 0o011)
        env = {
            "HOME": str(home),
            "ISBLK_STATE_DIR": "",
            "ISBLK_RUN_DIR": "",
            "XDG_STATE_HOME": str(home / "s"),
            "XDG_RUNTIME_DIR": str(home / "r"),
        }
        return self.processes.run([sys.executable, "-c", AS_NOBODY, *map(str, arguments)], code=code, seconds=30, env=env)


def ended(pid: int) -> bool:
    """Whether a process has ended; its corpse may wait for a parent that is slow to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


def put(place: Path, offset: int, data: bytes, sync: bool = False) -> None:
    """Write into a file of a mount, as dd conv=notrunc would."""
    with place.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), data, offset) == len(data)
        if sync:
            os.fsync(file.fileno())


def get(place: Path, offset: int, length: int) -> bytes:
    """Read from a file."""
    with place.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)
