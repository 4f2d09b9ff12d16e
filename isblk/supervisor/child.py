"""A child: the process that serves one export, started here, or found again by its control socket after its supervisor died.

It leads a session of its own: no terminal's end reaches it, and it outlives its supervisor. Which export a daemon is can be read from its
command line: it is that of the table's entry, or (with other options) one that has the same place.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol

import trio

from isblk import control
from isblk.errors import ExitCode, IsblkError, UsageError
from isblk.export import mountpoint, nbddevice
from isblk.settings import load as load_settings
from isblk.table.check import configured
from isblk.table.entry import Entry
from isblk.table.options import COMMANDS, Kind

POLL = 0.05
"""Seconds between two looks at whether a child that is starting can be used: its control socket gives no signal."""
LOOK_DEADLINE = 5.0
"""Seconds for a look at a mountpoint, which hangs when its daemon is stopped."""
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM")
"""What systemd said to the supervisor alone."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code` None: by a signal, or nobody can tell. `lost`: its note about data that was not written back."""

    code: int | None
    reason: str = ""
    lost: str = ""

    @property
    def in_order(self) -> bool:
        """Everything was written back and logged out."""
        return self.code == 0 and not self.lost


class Differs(Enum):
    """How the options of a child that was found are not those of the table."""

    NOT = auto()
    IN_PLACE = auto()
    """In what can be changed while it serves."""
    MORE = auto()
    """A supervisor started it, with others."""
    UNKNOWN = auto()
    """Somebody started it by hand: it is taken as it is."""


class Child(Protocol):
    """What the keeper of an export needs of its child."""

    pid: int
    is_adopted: bool
    differs: Differs

    async def ready(self) -> None:
        """Return when the export can be used; waits for ever where that never comes."""

    async def ended(self) -> Ended:
        """Return when the process has ended."""

    async def end(self, force: bool) -> None:
        """Ask it to end; returns at once, or raises UsageError: the export is in use, which `force` does not mind."""

    async def change(self, entry: Entry) -> None:
        """Have the options of `entry` that can change while it serves. Raises IsblkError when it cannot."""

    def close(self) -> None:
        """Let go of what is kept to watch it; it goes on."""


class Process:
    """A child that is a process of this machine. `process` None: it was found, so that nobody is told its exit code."""

    def __init__(
        self, entry: Entry, run: Path, pid: int, process: subprocess.Popen[bytes] | None = None, differs: Differs = Differs.NOT
    ) -> None:
        self.entry = entry
        self.pid = pid
        self.is_adopted = process is None
        self.differs = differs
        self._run = run
        self._process = process
        self._descriptor = os.pidfd_open(pid)

    async def ready(self) -> None:
        """See Child."""
        path = control.socket_path(self._run, self.pid)
        while not (path.exists() and await trio.to_thread.run_sync(self._is_ready, path)):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(POLL)

    async def ended(self) -> Ended:
        """See Child. Of a found one the code is told by what it left: a note of its failure, or the socket that it did not remove."""
        await trio.lowlevel.wait_readable(self._descriptor)
        lost = self._take_note()
        if self._process is None:
            was_killed = control.socket_path(self._run, self.pid).exists()
            return Ended(
                None if was_killed else int(ExitCode.IO_ERROR if lost else ExitCode.DONE), "it was killed" if was_killed else "", lost
            )
        code = self._process.wait()
        if code < 0:
            with suppress(ValueError):
                return Ended(None, f"it was killed by {signal.Signals(-code).name}", lost)
            return Ended(None, f"it was killed by signal {-code}", lost)
        return Ended(code, "", lost)

    async def end(self, force: bool) -> None:
        """See Child. A mount is unmounted, which fails while it is used; everything else, and a mount by force, gets SIGTERM."""
        if self.entry.kind is Kind.FUSE and not force:
            with suppress(_NotMounted):
                await trio.to_thread.run_sync(_unmount, self.entry.where, abandon_on_cancel=True)
                return
        if self.entry.kind is Kind.ATTACH and not force:
            await trio.to_thread.run_sync(_check_unused, self.entry.where, abandon_on_cancel=True)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    async def change(self, entry: Entry) -> None:
        """See Child. What the table leaves open is what the configuration says now."""
        await trio.to_thread.run_sync(self._change, entry)

    def _change(self, entry: Entry) -> None:
        effective = configured(entry, load_settings())
        words = {name: effective.text(name) for name in entry.in_place}
        control.ask(control.socket_path(self._run, self.pid), "change", paths=words)

    def close(self) -> None:
        """See Child."""
        os.close(self._descriptor)

    def _is_ready(self, path: Path) -> bool:
        try:
            status = control.ask(path, "status")
        except IsblkError:
            return False  # It ends just now, or it is stopped; the socket will tell.
        where = str(status.get("where"))
        if self.entry.kind is Kind.FUSE:
            return mountpoint.is_mounted(Path(where))
        return not where.startswith("/") or Path(where).exists()

    def _take_note(self) -> str:
        note = control.failure_note(self._run, self.pid)
        try:
            text = note.read_text(errors="replace")
            note.unlink()
        except OSError:
            return ""
        return text


class Hands(Protocol):
    """How a keeper comes by a child."""

    async def find(self, entry: Entry) -> Child | None:
        """The child that serves the export already."""

    async def start(self, entry: Entry, output: int) -> Child:
        """A new one, whose words go to the descriptor. Raises OSError, IsblkError."""


class Processes:
    """Children that are processes, whose control sockets are in `run`."""

    def __init__(self, run: Path) -> None:
        self._run = run

    async def find(self, entry: Entry) -> Child | None:
        """See Hands."""
        pid, differs = await trio.to_thread.run_sync(serving, entry, self._run)
        with suppress(ProcessLookupError):
            return Process(entry, self._run, pid, differs=differs) if pid else None
        return None

    async def start(self, entry: Entry, output: int) -> Child:
        """See Hands. What a mount left whose daemon was killed is taken away first."""
        if entry.kind is Kind.FUSE:
            with trio.move_on_after(LOOK_DEADLINE):
                await trio.to_thread.run_sync(mountpoint.clear_dead, entry.where, abandon_on_cancel=True)
        environment = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once, and trio's own would end the child with this task
            [sys.executable, "-P", "-m", "isblk", *entry.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what `isblk nbd` and `attach` print is WHERE, or follows from it
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
            umask=0o077,
        )
        return Process(entry, self._run, process.pid, process)


class _NotMounted(Exception):
    """There is nothing to unmount."""


def _unmount(where: str) -> None:
    """Raises UsageError when it is in use."""
    try:
        mountpoint.unmount(where)
    except UsageError as error:
        if "nothing is mounted" in str(error):
            raise _NotMounted from None
        raise


def _check_unused(where: str) -> None:
    index = nbddevice.parse(where)
    users = [] if index is None else nbddevice.users(index)
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise UsageError(f"{where} is {users[0]}{more}: end that first, or force it and lose what is not written back")


def serving(entry: Entry, run: Path) -> tuple[int, Differs]:
    """The daemon that serves an entry's place, and how its options differ from the entry's; 0 where none does."""
    wanted, fixed = entry.command(), entry.command(entry.in_place)
    for daemon in control.daemons(run):
        words = _command_of(daemon.pid)
        if words[-len(wanted) :] == wanted:
            return daemon.pid, Differs.NOT
        rest = [word for word in words if not word.startswith(tuple(f"--{name}=" for name in entry.in_place))]
        if rest[-len(fixed) :] == fixed:
            return daemon.pid, Differs.IN_PLACE
        is_ours = any(words[at : at + 2] == wanted[:2] for at in range(len(words)))
        if (entry.where in words or not is_ours) and _serves(entry, daemon):
            return daemon.pid, Differs.MORE if is_ours else Differs.UNKNOWN
    return 0, Differs.NOT


def _serves(entry: Entry, daemon: control.Daemon) -> bool:
    """Whether a daemon with other options is at an entry's place, by asking it."""
    try:
        status: dict[str, Any] = control.ask(daemon.path, "status")
    except IsblkError:
        return False
    places = {status.get("where"), *status.get("listens", ())}
    real = os.path.join(os.path.realpath(os.path.dirname(entry.where)), os.path.basename(entry.where)) if entry.is_path else entry.where
    is_such = (status.get("kind"), status.get("target")) == (COMMANDS[entry.kind], entry.name)
    return is_such and bool(places & {entry.where, real})


def _command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
