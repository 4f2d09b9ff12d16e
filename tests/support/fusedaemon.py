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

from isblk.block.mapping import Extent
from isblk.block.request import Geometry, Op, Request
from isblk.errors import IsblkError, RequestFailed
from isblk.export import fuse, fusekernel
from isblk.export.files import Details, Owner, Volume
from isblk.export.fuseoptions import Caching, Counters, Engine, MountOptions
from isblk.export.mountpoint import prepare, unmount
from isblk.link.running import running_plane
from isblk.scsi.data import Provisioning

VARIANTS = {
    "pyfuse3": ("pyfuse3", "write-through"),
    "direct": ("direct", "write-through"),
    "direct_io": ("direct", "direct_io"),
    "writeback": ("direct", "writeback"),
}
"""Engines with the ways they may cache; pyfuse3 knows one, which is to cache nothing."""
GRANULE = 16384
"""Bytes that a memory disk unmaps together."""
variant = "direct"
"""What a Plan that says nothing of it is mounted with; a fixture changes it."""

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
    """What to mount where. `sizes`: one disk as a file, or with `directory` a file per LUN; bytes from `fail_from` on fail with EIO.

    On SIGUSR2 every disk becomes `resize_to` bytes long.
    """

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
    engine: str | None = None
    caching: str | None = None
    can_trim: bool = False
    zero_unmaps: bool = False
    resize_to: int | None = None


class MemoryDisk:
    """A Device over a bytearray, finishing at once or `delay` seconds later, and counting what it was asked."""

    def __init__(self, size: int, plan: Plan) -> None:
        self.data = bytearray(size)
        self.geometry = Geometry(
            size,
            512,
            4096,
            read_only=plan.read_only_disk,
            write_cache=plan.write_cache,
            can_fua=plan.can_fua,
            can_trim=plan.can_trim,
            trim_reads_zero=plan.can_trim,
            zero_unmaps=plan.zero_unmaps,
        )
        self.mapped = bytearray(b"\1" * -(-size // GRANULE)) if plan.can_trim else bytearray()
        self.seen = {"FUA": 0, "largest": 0, "at_once": 0, "most_at_once": 0, **{op.name: 0 for op in Op}}
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
            self._map(request.offset, end)
        elif request.op is Op.ZERO:
            self.data[request.offset : end] = bytes(request.length)
            if self._plan.zero_unmaps:
                self._unmap(request.offset, end)
            else:
                self._map(request.offset, end)
        elif request.op is Op.TRIM:
            self._unmap(request.offset, end)
        request.finish()

    def _map(self, start: int, end: int) -> None:
        if self.mapped:
            for granule in range(start // GRANULE, -(-end // GRANULE)):
                self.mapped[granule] = 1

    def _unmap(self, start: int, end: int) -> None:
        """Whole granules only, as a logical unit does it; what is unmapped reads as zeroes."""
        for granule in range(-(-start // GRANULE), end // GRANULE):
            self.mapped[granule] = 0
            self.data[granule * GRANULE : (granule + 1) * GRANULE] = bytes(GRANULE)

    def resize(self, size: int) -> None:
        """Grow or shrink."""
        self.data = self.data[:size].ljust(size, b"\0")
        self.geometry = dataclasses.replace(self.geometry, size=size)

    async def lba_status(self, offset: int, length: int) -> list[Extent]:
        """What is mapped, granule by granule."""
        assert offset % 4096 == 0 and (offset + length) % 4096 in (0, self.geometry.size % 4096)
        self.seen["STATUS"] = self.seen.get("STATUS", 0) + 1
        await trio.lowlevel.checkpoint()
        found = []
        for granule in range(offset // GRANULE, -(-(offset + length) // GRANULE)):
            start, end = max(offset, granule * GRANULE), min(offset + length, (granule + 1) * GRANULE)
            found.append(Extent(start, end - start, Provisioning.MAPPED if self.mapped[granule] else Provisioning.DEALLOCATED))
        return found


async def run(plan: Plan) -> dict[str, Any]:
    """Serve until unmounted or told to stop."""
    disks = {lun: MemoryDisk(size, plan) for lun, size in plan.sizes.items()}
    owner = Owner(os.geteuid(), os.getegid(), time.time_ns())
    details = {lun: _details(lun, disk, plan) for lun, disk in disks.items()}
    if plan.directory:
        volume = Volume.of_directory(disks, owner, plan.read_only, details)
    else:
        volume = Volume.of_file(disks[0], owner, plan.read_only, details[0])
    point = prepare(plan.mountpoint, plan.directory, plan.allow_other)
    counters, stop = Counters(), trio.Event()
    options = MountOptions(plan.source, plan.read_only, plan.allow_other, Caching(plan.caching))
    async with running_plane() as plane, trio.open_nursery() as nursery:
        serve = fuse.serve if Engine(plan.engine) is Engine.PYFUSE3 else fusekernel.serve
        for disk in disks.values():
            disk.nursery = nursery
        async with trio.open_nursery() as serving:
            nursery.start_soon(_watch_signals, stop, serving.cancel_scope, plan, disks)
            await serving.start(serve, plane, volume, point, options, counters, stop)
            print("ready", flush=True)
        nursery.cancel_scope.cancel()
    return {"counters": dataclasses.asdict(counters), "disks": {lun: disk.seen for lun, disk in disks.items()}}


def _details(lun: int, disk: MemoryDisk, plan: Plan) -> Details:
    labels = {"target": plan.source.partition("/")[0], "lun": str(lun)}
    return Details(lambda: labels, disk.lba_status if plan.can_trim else None)


async def _watch_signals(stop: trio.Event, scope: trio.CancelScope, plan: Plan, disks: dict[int, MemoryDisk]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) as signals:
        async for number in signals:
            if number == signal.SIGTERM:
                stop.set()
            elif number == signal.SIGUSR2:
                for disk in disks.values():
                    disk.resize(plan.resize_to or 0)
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
    engine, caching = VARIANTS[variant]
    plan = dataclasses.replace(plan, engine=plan.engine or engine, caching=plan.caching or caching)
    command = [sys.executable, __file__, json.dumps(dataclasses.asdict(plan))]
    if user is not None:
        command = [sys.executable, "-c", AS_USER, user, "" if privileges else "no-new-privs", command[-1]]
    form = os.environ.get("PYTHONPATH") or str(REPOSITORY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([form, str(REPOSITORY / "tests")])}
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
