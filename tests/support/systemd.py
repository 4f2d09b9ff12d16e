"""A systemd of a test's own, as process 1 of namespaces with a root of its own: units run for real, and nothing of the host is touched.

Its root is an overlay over the host's, whose changes are kept in memory; /run, /tmp and /var/lib/isblk are its own, /sys and /proc/sys
read-only, and of /dev it has what is named here. The test's directory is the only place where it can leave something. The network is the
host's, where the target is. It takes itself to be in a container, and so leaves clock, swap, loop devices and the like alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from support.processes import Processes, Started, isblk
from support.waiting import until

PROGRAM = Path("/lib/systemd/systemd")
SHARE = Path("/srv/test")
"""Where the test's directory is in there."""
_CGROUPS = Path("/sys/fs/cgroup/systemd")  # of version 1, which needs no controller for this; elsewhere version 2 at /sys/fs/cgroup

_SETUP = r"""
set -e
work=$1 share=$2 version=$3 target=$4 isblk=$5
mount --make-rprivate /
mount -t tmpfs none "$work"
mkdir "$work/up" "$work/work" "$work/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$work/up",workdir="$work/work" "$work/root"
cd "$work/root"
mkdir -p srv/test var/lib/isblk old
mount -t proc proc proc
mount --bind /proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount --bind /sys sys && mount -o remount,bind,ro sys
mount -t tmpfs tmpfs sys/fs/cgroup
if [ "$version" = 2 ]; then mount -t cgroup2 cgroup2 sys/fs/cgroup; else
    mkdir sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd; fi
for each in run tmp dev var/lib/isblk; do mount -t tmpfs tmpfs "$each"; done
mkdir dev/shm dev/pts run/lock
for each in null zero full random urandom tty fuse loop-control; do touch "dev/$each" && mount --bind "/dev/$each" "dev/$each"; done
for each in $(seq 0 63); do mknod "dev/loop$each" b 7 "$each"; done
mount --bind "$share" srv/test
pivot_root . old
cd /
umount -l /old
mkdir -p /etc/systemd/system
for each in tmpfiles-setup tmpfiles-setup-dev tmpfiles-clean update-utmp random-seed machine-id-commit timesyncd networkd-wait-online; do
    ln -sf /dev/null "/etc/systemd/system/systemd-$each.service"; done
cp -r /srv/test/etc/. /etc/
"$isblk" install-helper --systemd >/dev/null
export container=lxc
exec /lib/systemd/systemd --system --unit="$target" --log-target=console --log-level=info --show-status=no
"""


class Systemd:
    """What is below `home`/etc when it starts is copied into its /etc. `home` is SHARE in there."""

    def __init__(self, processes: Processes, home: Path, target: str) -> None:
        self.processes = processes
        self.home = home
        (home / "etc").mkdir(exist_ok=True)
        self._work = home.with_name(f"{home.name}.work")
        self._work.mkdir()
        is_first = _CGROUPS.is_dir()
        name = f"isblk-test-{os.getpid()}"
        self._cgroups = [each / name for each in _CGROUPS.parent.iterdir() if each.is_dir()] if is_first else [_CGROUPS.parent / name]
        # Into a group of its own in each hierarchy: what systemd makes there is below it.
        enter = 'for each in $0; do mkdir -p "$each" && echo $$ >"$each/cgroup.procs"; done 2>/dev/null'
        script = f"{enter}; exec unshare --pid --fork --mount --uts --ipc --cgroup --kill-child sh -c '{_SETUP}' sh \"$@\""
        argv = [
            "sh",
            "-c",
            script,
            " ".join(map(str, self._cgroups)),
            str(self._work),
            str(home),
            "1" if is_first else "2",
            target,
            isblk()[0],
        ]
        environment = {"ISBLK_STATE_DIR": "", "ISBLK_RUN_DIR": "", "PYTHONPATH": ""}
        self._holder = processes.start(argv, env=environment)
        until(lambda: self.pid, "process 1")

    @property
    def pid(self) -> int:
        """Process 1, as it is called outside; 0 while there is none."""
        with suppress(OSError):
            found = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
            return int(found[0]) if found else 0
        return 0

    def run(self, *command: str | Path, code: int | None = 0, **options: Any) -> Started:
        """A command in there, to its end."""
        return self.processes.run(self._argv(*command), code=code, seconds=60, **options)

    def _argv(self, *command: str | Path) -> list[str]:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd")
        return ["nsenter", "-t", str(self.pid), *spaces, "--", *map(str, command)]

    def start(self, *command: str | Path) -> Started:
        """A command in there, that goes on."""
        return self.processes.start(self._argv(*command))

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        said = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in said.splitlines())

    def started(self) -> None:
        """Return when every job of the boot has ended."""
        until(self._is_started, "the boot to end", 60)

    def _is_started(self) -> bool:
        assert self._holder.process.poll() is None, f"systemd ended: {self.console}"
        return self._answers() and not self.run("systemctl", "list-jobs", "--no-legend").stdout.strip()

    def _answers(self) -> bool:
        return self.run("systemctl", "is-system-running", code=None).stdout.strip() in ("running", "degraded")

    def shut_down(self) -> str:
        """As for a power-off: every unit is stopped in its order. Returns what systemd said on its console."""
        os.kill(self.pid, signal.SIGRTMIN + 4)
        self._holder.wait(90)
        return self.console

    @property
    def console(self) -> str:
        """What it has said."""
        return self._holder.stdout + self._holder.stderr

    def _abort_mounts(self) -> None:
        """A file system on a disk whose daemon is killed first would wait for it for ever, in the kernel, when the namespace goes."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        for number in [line.split()[2].partition(":")[2] for line in lines if " - fuse.isblk " in line]:
            self.run("sh", "-c", f"echo 1 >/sys/fs/fuse/connections/{number}/abort", code=None)

    def __enter__(self) -> Systemd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._holder.process.poll() is None:
            self._abort_mounts()
            self._holder.process.kill()
            self._holder.wait()
        until(lambda: all(map(_removed, self._cgroups)), "the control groups to be empty")


def _removed(group: Path) -> bool:
    """Whether a control group is gone, with all that is below it; a process that is ending keeps it."""
    below = [path for path in group.rglob("*") if path.is_dir()]
    for path in (*sorted(below, reverse=True), group):
        with suppress(OSError):
            path.rmdir()
    return not group.exists()


def can_run() -> bool:
    """Whether this machine lets a process make namespaces and mount in them, and has control groups that can be changed."""
    probe = ["unshare", "--pid", "--fork", "--mount", "--cgroup", "sh", "-c", "mount -t tmpfs none /mnt"]
    return PROGRAM.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0
