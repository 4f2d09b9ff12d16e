"""All exports of a table: what the supervisor is asked over its control socket, its signals, and the table read again.

Requests beside `status` and `stop` (control.py); each begins what it asks for, and the states in `status` say what has become of it:

    up      {"where": [...] or null}                 read the table; start those named, or all without noauto, that are not up
    down    {"where": [...] or null, "force": bool}  end them; what is in use stays up unless forced
    reload  {}                                       read the table; answers what it starts, stops, restarts, changes, keeps (plan.py)

A table with a problem is answered with its first one, and everything stays as it is. SIGHUP is a reload; SIGTERM, SIGINT and `stop` end all
by force and then the supervisor. One that is killed leaves the exports to the next.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import trio

from isblk import controlserver
from isblk.errors import ExitCode, IsblkError, NotFound, UsageError
from isblk.supervisor.child import Hands
from isblk.supervisor.keeper import Goal, Keeper
from isblk.supervisor.plan import compare
from isblk.table.entry import Entry, Table

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps the exports of the table at `path`; `load` reads it (table/check.py). Control sockets are in `run_directory`."""

    def __init__(self, path: Path, run_directory: Path, hands: Hands, load: Callable[[Path], Table]) -> None:
        self.path = path
        self.keepers: dict[str, Keeper] = {}
        self.ended = trio.Event()
        self._run_directory = run_directory
        self._hands = hands
        self._load = load
        self._since = time.time()
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._keeping = 0

    async def run(self, where: Sequence[str] | None, ready: Callable[[], None]) -> int:
        """Start what the table says (or the places in `where`), and keep it up until the end was asked for; the worst exit code.

        `ready` is called when it can be asked. Raises IsblkError when it cannot begin.
        """
        table, failure = self._load(self.path), None
        async with trio.open_nursery() as self._nursery:
            try:
                await self._nursery.start(self._hear_signals)
                await self._nursery.start(controlserver.serve, self._run_directory, self.status, self.stop, self._requests())
                self._begin(table, where)
                log.info("supervisor keeps %s, %d exports", self.path, len(self.keepers))
                ready()
                await self.ended.wait()
            except IsblkError as error:  # Kept until the nursery has closed: one that crosses it comes out in a group.
                failure = error
            self._nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return worst(keeper.life.exit_code for keeper in self.keepers.values())

    def stop(self) -> None:
        """End everything by force, and then this."""
        log.info("the end of all exports was asked for")
        self._stopping = True
        for keeper in reversed(self.keepers.values()):
            keeper.discarded = True
            keeper.down(force=True)
        self._end_if_done()

    def status(self) -> dict[str, Any]:
        """The answer of the control socket."""
        return {
            "kind": "supervisor",
            "table": str(self.path),
            "since": self._since,
            "exports": [keeper.status() for keeper in self.keepers.values()],
        }

    # ------------------------------------------------------------------ requests

    def _requests(self) -> dict[str, controlserver.Request]:
        return {"up": self._up, "down": self._down, "reload": self._reload}

    def _up(self, message: dict[str, Any]) -> dict[str, Any]:
        self._refuse_when_ending()
        return {"where": self._begin(self._load(self.path), message.get("where"))}

    def _begin(self, table: Table, where: Sequence[str] | None) -> list[str]:
        """Start what is down; what runs already has its entry from before until a reload."""
        _check(where, [entry.where for entry in table.entries], self.path)
        wanted = [entry for entry in table.entries if (entry.where in where if where is not None else not entry.noauto)]
        for entry in table.entries:
            keeper = self.keepers.get(entry.where)
            if keeper is None or keeper.goal is Goal.DOWN:
                self._have(entry)
        for entry in wanted:
            self.keepers[entry.where].up()
        self._sort(table)
        return [entry.where for entry in wanted]

    def _down(self, message: dict[str, Any]) -> dict[str, Any]:
        where: Sequence[str] | None = message.get("where")
        _check(where, self.keepers, self.path)
        wanted = [keeper for place, keeper in self.keepers.items() if where is None or place in where]
        for keeper in reversed(wanted):
            keeper.down(force=bool(message.get("force")))
        return {"where": [keeper.entry.where for keeper in wanted]}

    def _reload(self, _message: dict[str, Any]) -> dict[str, Any]:
        self._refuse_when_ending()
        table = self._load(self.path)
        before = {where: (keeper.entry, keeper.goal is not Goal.DOWN) for where, keeper in self.keepers.items()}
        plan = compare(before, table.entries)
        for entry in plan.stop:
            self.keepers[entry.where].discarded = True
            self.keepers[entry.where].down(force=False)
        for entry in (*plan.restart, *plan.change, *plan.keep, *plan.leave_down, *plan.start):
            self._have(entry)
        for entry in plan.start:
            self.keepers[entry.where].up()
        self._sort(table)
        lists = plan.to_json()
        log.info("%s was read again: %s", self.path, ", ".join(f"{len(places)} {name}" for name, places in lists.items()))
        return lists

    def _have(self, entry: Entry) -> None:
        """A keeper with this entry."""
        keeper = self.keepers.get(entry.where)
        if keeper is None:
            keeper = self.keepers[entry.where] = Keeper(entry, self._run_directory, self._hands)
            assert self._nursery is not None
            self._keeping += 1
            self._nursery.start_soon(self._keep, keeper)
        else:
            keeper.discarded = False
            keeper.change(entry)

    def _sort(self, table: Table) -> None:
        """In the order of the table, what it no longer has behind."""
        order = [entry.where for entry in table.entries]
        self.keepers = {where: self.keepers[where] for where in (*order, *(set(self.keepers) - set(order))) if where in self.keepers}

    async def _keep(self, keeper: Keeper) -> None:
        """Keep an export until it is gone from the table, and take it from the list then; at the end they stay, for their exit codes."""
        while True:
            await keeper.run()
            if keeper.discarded:  # Else a reload has brought it back at the last moment.
                break
        self._keeping -= 1
        if not self._stopping:
            del self.keepers[keeper.entry.where]
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._stopping and not self._keeping:
            self.ended.set()

    def _refuse_when_ending(self) -> None:
        if self._stopping:
            raise UsageError("it is ending: wait until it has, and start anew with `isblk up`")

    async def _hear_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number != signal.SIGHUP:
                    self.stop()
                    continue
                try:
                    self._reload({})
                except IsblkError as error:
                    log.error("the table is not used as it is now: %s", error)


def worst(codes: Iterable[int]) -> int:
    """The exit code that says most: a bug, else the highest."""
    found = list(codes)
    return int(ExitCode.BUG) if ExitCode.BUG in found else max(found, default=0)


def _check(where: Sequence[str] | None, known: Iterable[str], path: Path) -> None:
    """What came over the socket: a list of places there are, or nothing. Raises UsageError, NotFound."""
    if where is None:
        return
    if not isinstance(where, list) or not all(isinstance(one, str) for one in where):
        raise UsageError("`where` is a list of places, or null for all")
    missing = [one for one in where if one not in known]
    if missing:
        raise NotFound(f"{path} has no export at {missing[0]}")
