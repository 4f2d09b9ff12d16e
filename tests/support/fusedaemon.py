"""A FUSE mount of memory disks in a process of its own, so that a test can touch the files without waiting for itself.

Run as a program with one JSON argument (Plan); it prints "ready" when mounted and, at its end, its counters and what the disks saw as JSON.
SIGTERM ends it as the daemon ends: by serve's `stop`; SIGUSR1 by cancellation, as a bug elsewhere in the daemon would.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from isblk.block.request import Geometry, Op, Request
from isblk.errors import IsblkError, RequestFailed
from isblk.export.files import Owner, Volume
from isblk.export.fuse import Counters, MountOptions, serve
from isblk.export.mountpoint import prepare, unmount

REPOSITORY = Path(__file__).resolve().parents[2]

AS_USER = """
import ctypes, encodings.idna, importlib, os, pkgutil, pwd, stringprep, sys, isblk
for found in pkgutil.walk_packages(isblk.__path__, "isblk."):
    importlib.import_module(found.name)
from support import fusedaemon
user = pwd.getpwnam(sys.argv[1])
if sys.argv[2]:
    assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
os.setgroups([]), os.setresgid(*[user.pw_gid] * 3), os.setresuid(*[user.pw_uid] * 3)
sys.argv[1:] = [sys.argv[3]]
fusedaemon.main()
"""
"""The daemon of an ordinary user; everything is imported first, since the checkout may lie where only root can read."""


@dataclass(frozen=True)
class Plan:
    """What to mount where. `sizes`: one disk as a file, or with `directory` a file per LUN; bytes from `fail_from` on fail with EIO."""

    mountpoint: str
    sizes: dict[int, int]
    directory: bool = False
    read_only: bool = False
    read_only_disk: bool = False
    allow_other: bool = False
    write_cache: bool = True
    can_fua: bool = True
    fail_from: int | None = None
    delay: float = 0.0
    source: str = "iqn.2026-11.test:disk/0"


class MemoryDisk:
    """A Device over a bytearray, finishing at once or `delay` seconds later, and counting what it was asked."""

    def __init__(self, size: int, plan: Plan) -> None:
        self.data = bytearray(size)
        self.geometry = Geometry(size, 512, 4096, read_only=plan.read_only_disk, write_cache=plan.write_cache, can_fua=plan.can_fua)
        self.seen = {"READ": 0, "WRITE": 0, "FLUSH": 0, "FUA": 0, "largest": 0, "at_once": 0, "most_at_once": 0}
        self.nursery: trio.Nursery | None = None
        self._plan = plan

    def submit(self, request: Request) -> None:
        """Carry out now, or start a task that does it later."""
        self.seen[request.op.name] += 1
        self.seen["FUA"] += request.fua
        self.seen["largest"] = max(self.seen["largest"], request.length)
        self.seen["at_once"] += 1
        self.seen["most_at_once"] = max(self.seen["most_at_once"], self.seen["at_once"])
        if self._plan.delay and self.nursery is not None:
            self.nursery.start_soon(self._later, request)
        else:
            self._finish(request)

    def kick(self) -> None:
        """Nothing is held back."""

    async def _later(self, request: Request) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._plan.delay)
        self._finish(request)

    def _finish(self, request: Request) -> None:
        self.seen["at_once"] -= 1
        end = request.offset + request.length
        if self._plan.fail_from is not None and end > self._plan.fail_from:
            request.finish(RequestFailed("a medium error", errno.EIO))
            return
        assert end <= len(self.data), "a request beyond the end"
        if request.op is Op.READ:
            assert request.data is not None
            request.data[:] = self.data[request.offset : end]
        elif request.op is Op.WRITE:
            assert request.data is not None
            self.data[request.offset : end] = request.data
        request.finish()


async def run(plan: Plan) -> dict[str, Any]:
    """Serve until unmounted or told to stop."""
    disks = {lun: MemoryDisk(size, plan) for lun, size in plan.sizes.items()}
    owner = Owner(os.geteuid(), os.getegid(), time.time_ns())
    if plan.directory:
        volume = Volume.of_directory(disks, owner, plan.read_only)
    else:
        volume = Volume.of_file(disks[0], owner, plan.read_only)
    point = prepare(plan.mountpoint, plan.directory, plan.allow_other)
    counters, stop = Counters(), trio.Event()
    options = MountOptions(plan.source, plan.read_only, plan.allow_other)
    async with trio.open_nursery() as nursery:
        for disk in disks.values():
            disk.nursery = nursery
        async with trio.open_nursery() as serving:
            nursery.start_soon(_watch_signals, stop, serving.cancel_scope)
            await serving.start(serve, volume, point, options, counters, stop)
            print("ready", flush=True)
        nursery.cancel_scope.cancel()
    return {"counters": dataclasses.asdict(counters), "disks": {lun: disk.seen for lun, disk in disks.items()}}


async def _watch_signals(stop: trio.Event, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
        async for number in signals:
            if number == signal.SIGTERM:
                stop.set()
            else:
                scope.cancel()


def main() -> None:
    """Exit 0 with the counters on standard output, or the exit code of the error with its sentence on standard error."""
    fields = json.loads(sys.argv[1])
    fields["sizes"] = {int(lun): size for lun, size in fields["sizes"].items()}
    failures: list[IsblkError] = []
    try:
        print(json.dumps(trio.run(run, Plan(**fields))))
    except* IsblkError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, IsblkError)
        failures.append(error)
    for failure in failures:
        print(failure, file=sys.stderr)
        sys.exit(int(failure.exit_code))


@dataclass
class Mounted:
    """A running daemon; `finish` waits for its end and returns what it printed then."""

    path: Path
    process: subprocess.Popen[str]
    ended: dict[str, Any] = field(default_factory=dict)

    def finish(self) -> dict[str, Any]:
        """Wait until the daemon has ended by itself (after an unmount or SIGTERM): its counters and what the disks saw."""
        out, words = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, words
        assert words == "", words
        self.ended = json.loads(out)
        return self.ended

    def unmount(self) -> dict[str, Any]:
        """Unmount and `finish`."""
        unmount(self.path)
        return self.finish()


def start(plan: Plan, user: str | None = None, privileges: bool = True) -> subprocess.Popen[str]:
    """The daemon as a process, perhaps as another user, who without `privileges` may use no set-user-id program."""
    command = [sys.executable, __file__, json.dumps(dataclasses.asdict(plan))]
    if user is not None:
        command = [sys.executable, "-c", AS_USER, user, "" if privileges else "no-new-privs", command[-1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd="/")


@contextmanager
def mounted(plan: Plan, user: str | None = None) -> Iterator[Mounted]:
    """A mount for the length of a test; whatever happens, nothing stays mounted and no process stays behind."""
    process = start(plan, user)
    result = Mounted(Path(plan.mountpoint), process)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line == "ready\n", process.stderr.read()
        yield result
    finally:
        with suppress(IsblkError):
            unmount(result.path, lazy=True)
        if process.poll() is None:
            process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
