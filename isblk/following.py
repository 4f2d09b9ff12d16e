"""Following the events of every daemon of a run directory, those that start later included: what `isblk events -f` reads.

Theory of operation. Each daemon is asked on a connection of its own for what came after the last number known, and answers when there is
something (a long poll, controlserver.py). One `select` waits for all of them; now and then the directory is looked at for sockets of new
daemons. A daemon that already has as many followers as it bears is asked once a second instead. Whether one that hung up has ended is told
by its process; what it could not write back it leaves in a note (cli/service.py).

Plain sockets and no trio, as control.py: it has to start at once, and there is nothing else to do meanwhile.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from isblk import control
from isblk.errors import IsblkError, ProtocolError

POLL = 50.0
"""Seconds that a daemon is asked to wait for something to tell; less than it allows."""
SCAN_SECONDS = 0.5
"""How often new daemons are looked for."""
ASK_AGAIN = 1.0
"""How often one is asked that lets nobody wait."""
CONNECT_SECONDS = 0.5
"""How long a connection may take: a daemon that is stopped has a backlog, which fills up."""

Event = dict[str, Any]


class _Followed:
    """One daemon: its connection, and the number of the last event that was read."""

    def __init__(self, daemon: control.Daemon, last: int) -> None:
        self.daemon = daemon
        self.last = last
        self.about: dict[str, Any] = {"pid": daemon.pid}
        self.again_at: float | None = None
        self._wait = POLL
        self._line = bytearray()
        self._first = True
        self.process = _Process(daemon.pid)
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.connection.settimeout(CONNECT_SECONDS)
            with control.address(daemon.path) as name:
                self.connection.connect(name)
            self.ask()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up, and look after its process no more."""
        self.connection.close()
        self.process.close()

    def ask(self) -> None:
        """What came after? Raises OSError."""
        self.again_at = None
        self.connection.settimeout(CONNECT_SECONDS)
        self.connection.sendall(control.encode({"request": "events", "after": self.last, "wait": self._wait}))

    def read(self) -> Iterator[Event]:
        """What has come of an answer; then the next question. Raises OSError when the daemon has hung up, ProtocolError for rubbish."""
        part = self.connection.recv(65536)
        if not part:
            raise ConnectionResetError
        self._line += part
        if len(self._line) > control.MESSAGE_LIMIT:
            raise ProtocolError(f"the daemon {self.daemon.pid} says more than can be")
        if not self._line.endswith(b"\n"):
            return
        line, self._line = bytes(self._line), bytearray()
        message = control.decode(line)
        if "answer" in message:
            yield from self._take(message["answer"])
            if self._wait:
                self.ask()
                return
        self._wait, self.again_at = 0.0, time.monotonic() + ASK_AGAIN

    def _take(self, answer: Any) -> Iterator[Event]:
        if not isinstance(answer, dict) or not isinstance(answer.get("events"), list) or not isinstance(answer.get("last"), int):
            raise ProtocolError(f"the daemon {self.daemon.pid} answers a question about events with something else")
        self.about = about(self.daemon, answer)
        if answer.get("forgotten") and not self._first:
            told = f"{answer['forgotten']} events were forgotten before they were read"
            yield {"time": time.time(), "kind": "forgotten", "level": "warning", "text": told, **self.about}
        self._first = False
        for event in answer["events"]:
            self.last = event["number"]
            yield {**event, **self.about}
        if not answer["events"]:
            self.last = answer["last"]


def about(daemon: control.Daemon, answer: dict[str, Any]) -> dict[str, Any]:
    """Whose the events of an answer are: `pid`, `daemon` (its kind), `where`, `target`."""
    found = {"daemon": answer.get("kind"), "where": answer.get("where"), "target": answer.get("target")}
    return {"pid": daemon.pid, **{name: value for name, value in found.items() if value is not None}}


def past(directory: Path) -> tuple[list[Event], dict[int, int], list[IsblkError]]:
    """What every daemon remembers, by time; the last number of each by its process id; and who did not answer."""
    events: list[Event] = []
    last: dict[int, int] = {}
    answers, failures = control.ask_all(directory, "events", after=0)
    for daemon, answer in answers:
        while True:
            whose = about(daemon, answer)
            events += [{**event, **whose} for event in answer["events"]]
            last[daemon.pid] = answer["events"][-1]["number"] if answer["events"] else answer["last"]
            if not answer["events"] or last[daemon.pid] >= answer["last"]:
                break
            try:
                answer = control.ask(daemon.path, "events", after=last[daemon.pid])
            except IsblkError as error:
                failures.append(error)
                break
    return sorted(events, key=lambda event: event["time"]), last, failures


class Follower:
    """Those that run in `directory` now and later. `known`: the last number that was read of each, by process id."""

    def __init__(self, directory: Path, known: dict[int, int]) -> None:
        self._directory = directory
        self._known = dict(known)
        self._followed: dict[int, _Followed] = {}
        self._leaving: dict[int, _Followed] = {}
        self._next_scan = 0.0

    def close(self) -> None:
        """Hang up."""
        for followed in (*self._followed.values(), *self._leaving.values()):
            followed.close()
        self._followed.clear()
        self._leaving.clear()

    def poll(self) -> list[Event]:
        """What has happened, waited for at most SCAN_SECONDS."""
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + SCAN_SECONDS
            self._scan()
        self._ask_again(now)
        found = self._ended()
        waiting = [followed.connection for followed in self._followed.values()]
        ready, _, _ = select.select(waiting, [], [], 0 if found else max(0.0, self._next_scan - time.monotonic()))
        for followed in list(self._followed.values()):
            if followed.connection in ready:
                found += self._read(followed)
        return found

    def _scan(self) -> None:
        """Sockets that are new. (Not `control.daemons`, which connects to each to see whether it lives: they would all be woken for it.)"""
        for path in self._directory.glob("*.sock"):
            if not path.stem.isdecimal() or (pid := int(path.stem)) in self._followed:
                continue
            with suppress(OSError):  # It is stopped, too busy, another's, or a dead one's: another time.
                self._followed[pid] = _Followed(control.Daemon(path, pid), self._known.get(pid, 0))
                if pid in self._leaving:  # It had only hung up.
                    self._leaving.pop(pid).close()

    def _read(self, followed: _Followed) -> list[Event]:
        found: list[Event] = []
        try:
            found.extend(followed.read())
        except (OSError, ProtocolError, KeyError, TypeError):  # It has ended, or is no isblk: its process tells which.
            self._hang_up(followed)
        return found

    def _ask_again(self, now: float) -> None:
        for followed in list(self._followed.values()):
            if followed.again_at is not None and now >= followed.again_at:
                try:
                    followed.ask()
                except OSError:
                    self._hang_up(followed)

    def _hang_up(self, followed: _Followed) -> None:
        followed.connection.close()
        del self._followed[followed.daemon.pid]
        self._known[followed.daemon.pid] = followed.last
        self._leaving[followed.daemon.pid] = followed

    def _ended(self) -> list[Event]:
        """Of those that hung up, who has really ended; one that serves its socket still is connected to again."""
        found: list[Event] = []
        for pid, followed in list(self._leaving.items()):
            if followed.process.has_ended:
                self._known.pop(pid, None)
                found.append({"time": time.time(), **_last_word(followed.daemon), **followed.about})
                del self._leaving[pid]
                followed.close()
        return found


class _Process:
    """Whether a process has ended, known by a pidfd: its number may soon be another's, and its corpse may lie for long."""

    def __init__(self, pid: int) -> None:
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except (OSError, ValueError):
            self._descriptor = None

    @property
    def has_ended(self) -> bool:
        """True also of one that never was."""
        return self._descriptor is None or bool(select.select([self._descriptor], [], [], 0)[0])

    def close(self) -> None:
        """Once."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _last_word(daemon: control.Daemon) -> Event:
    """How it ended, by what it left behind."""
    try:
        text = control.failure_note(daemon.path.parent, daemon.pid).read_text()
    except OSError:
        return {"kind": "stopped", "level": "info", "text": f"the daemon {daemon.pid} has ended"}
    return {"kind": "write-back-failed", "level": "error", "text": f"the daemon {daemon.pid} has ended: {text}"}
