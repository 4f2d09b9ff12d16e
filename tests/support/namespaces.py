"""A mount namespace of a test's own, with an /etc/fstab, an /sbin and a /run/mount of its own: the host sees nothing of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from support.processes import Processes, Started
from support.waiting import until

_SBIN = Path("/sbin").resolve()

# What is mounted over cannot be looked into any more, so the old /sbin is bound elsewhere first, and the new one has links there.
_SETUP = """
set -e
mount --make-rprivate /
mount --bind "$1" "$2/old"
for each in "$2"/old/*; do ln -s "$each" "$2/new/"; done
mount --bind "$2/new" "$1"
mount --bind "$2/fstab" /etc/fstab
mkdir -p /run/mount
mount -t tmpfs none /run/mount
echo ready
exec cat
"""


class Namespace:
    """Commands run in it by `run`; everything mounted below `home` there is unmounted when it ends."""

    def __init__(self, processes: Processes, home: Path) -> None:
        self.processes = processes
        self.home = home
        (home / "fstab").write_text("")
        self.sbin = home / "new"
        for name in ("old", "new"):
            (home / name).mkdir()
        command = ["unshare", "--mount", "sh", "-c", _SETUP, "sh", str(_SBIN), str(home)]
        self._holder = processes.start(command, stdin=subprocess.PIPE)
        self._holder.wait_for("ready")

    @property
    def path(self) -> str:
        """What names it for mount -N."""
        return f"/proc/{self._holder.pid}/ns/mnt"

    def fstab(self, *lines: str) -> None:
        """What its /etc/fstab says."""
        (self.home / "fstab").write_text("".join(f"{line}\n" for line in lines))

    def argv(self, *command: str | Path) -> list[str]:
        """A command line that runs there."""
        return ["nsenter", "-t", str(self._holder.pid), "--mount", "--", *map(str, command)]

    def run(self, *command: str | Path, code: int | None = 0, **options: Any) -> Started:
        """A command there, to its end."""
        return self.processes.run(self.argv(*command), code=code, seconds=30, **options)

    def mounted(self) -> list[str]:
        """Places below `home` where something is mounted there, the last first; not what this module has mounted."""
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()
        places = [line.split()[4] for line in lines]
        return [place for place in reversed(places) if place.startswith(f"{self.home}/") and place != f"{self.home}/old"]

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for place in self.mounted():
            subprocess.run(self.argv("umount", "-i", "-l", place), check=False, capture_output=True)
        assert self._holder.process.stdin is not None
        self._holder.process.stdin.close()
        until(lambda: self._holder.process.poll() is not None, "the namespace's holder to end")
