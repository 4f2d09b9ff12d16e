"""What this machine can do: FUSE, loop devices, the kernel's NBD client, open files, the clock. Looks, and changes nothing."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from isblk.doctor.findings import Report

FEWEST_FILES = 1024
EARLIEST = 1_760_000_000.0
"""Seconds since 1970 that every clock has passed: this isblk is younger."""
LATEST = 4_100_000_000.0
TIME_ERROR = 5
"""What adjtimex(2) returns while nothing disciplines the clock."""


@dataclass(frozen=True)
class Machine:
    """Where to look."""

    fuse: Path = Path("/dev/fuse")
    fuse_conf: Path = Path("/etc/fuse.conf")
    loop: Path = Path("/dev/loop-control")
    nbd: Path = Path("/sys/module/nbd")
    uid: int = -1

    @property
    def is_root(self) -> bool:
        """Whether the user may do anything."""
        return (os.geteuid() if self.uid < 0 else self.uid) == 0


def look(report: Report, machine: Machine | None = None) -> None:
    """Say what can be done here."""
    machine = machine or Machine()
    _fuse(report, machine)
    if machine.loop.exists():
        report.say("loop-ready")
    else:
        report.say("loop-missing", device=machine.loop)
    _nbd(report, machine)
    _files(report, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _clock(report, time.time(), _clock_state())


def _fuse(report: Report, machine: Machine) -> None:
    helper = shutil.which("fusermount3")
    if not machine.fuse.exists():
        report.say("fuse-missing", device=machine.fuse)
    elif not machine.is_root and helper is None:
        report.say("fusermount-missing")
    elif not os.access(machine.fuse, os.R_OK | os.W_OK):
        report.say("fuse-closed", device=machine.fuse)
    else:
        report.say("fuse-ready", means=", ".join(filter(None, (str(machine.fuse), helper, "root" if machine.is_root else None))))
        if not machine.is_root and not _allows_others(machine.fuse_conf):
            report.say("others-shut-out", file=machine.fuse_conf)


def _allows_others(path: Path) -> bool:
    try:
        return any(line.strip() == "user_allow_other" for line in path.read_text(errors="replace").splitlines())
    except OSError:
        return False


def _nbd(report: Report, machine: Machine) -> None:
    if not machine.nbd.exists():
        report.say("nbd-missing")
    else:
        report.say("nbd-ready" if machine.is_root else "nbd-for-root")


def _files(report: Report, limit: int) -> None:
    if 0 <= limit < FEWEST_FILES:
        report.say("files-few", limit=limit)
    else:
        report.say("files-enough", limit="any number of" if limit < 0 else limit)


def _clock(report: Report, now: float, state: int) -> None:
    if not EARLIEST < now < LATEST:
        report.say("clock-wrong", time=time.strftime("%Y-%m-%d %H:%M", time.gmtime(now)))
    else:
        report.say("clock-free" if state == TIME_ERROR else "clock-right")


def _clock_state() -> int:
    """adjtimex(2) with nothing to set."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))
    except AttributeError:
        return -1
