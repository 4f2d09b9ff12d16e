"""The keeper of one export: starts its child or finds it, tries again when it fails, ends it, replaces it by one with other options.

Everything about an export happens in its own task; `up`, `down` and `change` only set its goal and wake it, and return at once: who asked
looks at the state (`status`), which they have changed already.
"""

from __future__ import annotations

import logging
import os
import time
from enum import Enum, auto
from pathlib import Path
from typing import Any

import trio

from isblk.control import STOP_DEADLINE
from isblk.errors import ExitCode, IsblkError, UsageError
from isblk.supervisor.child import Child, Differs, Ended, Hands
from isblk.supervisor.life import Life, State
from isblk.supervisor.plan import needs_restart
from isblk.supervisor.words import Words, path_of
from isblk.table.entry import Entry

log = logging.getLogger(__name__)

FOR_TERMINALS = "; Ctrl-C unmounts"
"""The end of what `isblk mount -f` says to whoever typed it."""


class Goal(Enum):
    """What an export is to be."""

    UP = auto()
    DOWN = auto()
    AGAIN = auto()
    """Down, and then up with the entry that the table has now."""


class Keeper:
    """One export of the table, kept as its goal says; `run` until it is `discarded` and down."""

    def __init__(self, entry: Entry, run: Path, hands: Hands) -> None:
        self.entry = entry
        self.life = Life(since=trio.current_time())
        self.goal = Goal.DOWN
        self.discarded = False
        self.changing = False
        self.child: Child | None = None
        self._next = entry
        self._hands = hands
        self._pipe = path_of(run, entry.where)
        self._words = Words(self._pipe)
        self._held: list[str] = []
        self._woken = trio.Event()
        self._nursery: trio.Nursery | None = None

    # ------------------------------------------------------------------ what it is told

    def up(self) -> None:
        """Be up; one that waits for its next attempt is tried at once."""
        if self.goal is Goal.DOWN:
            self.goal = Goal.AGAIN if self.life.state is State.STOPPING else Goal.UP
        self._wake()

    def down(self, force: bool) -> None:
        """Be down. The end begins at once; without `force` one that is in use stays up, and says so."""
        self.goal = Goal.DOWN
        self._end(force)

    def change(self, entry: Entry) -> None:
        """Have this entry from now on: told to the child where that can be, else the child is replaced."""
        if self.goal is Goal.DOWN or self.entry.command() == entry.command():
            is_patient = self.entry.retry == entry.retry
            self.entry = self._next = entry
            if not is_patient:  # How long to wait for the next attempt is another question now.
                self._wake()
        elif self.child is not None and self.life.state is State.UP and not needs_restart(self.entry, entry):
            self._tell(self.child, entry)
        else:
            self._replace(entry)

    def _replace(self, entry: Entry) -> None:
        self._next, self.goal = entry, Goal.AGAIN
        self._end(force=False)

    def _tell(self, child: Child, entry: Entry) -> None:
        self.changing = True
        assert self._nursery is not None
        self._nursery.start_soon(self._change_child, child, entry)

    async def _change_child(self, child: Child, entry: Entry) -> None:
        try:
            await child.change(entry)
            self.entry = self._next = entry
            log.info("%s has the options of the table now, without a new process", entry.where)
        except IsblkError as error:
            if self.child is child and self.goal is Goal.UP:
                log.info("%s cannot be changed while it is served (%s): it is started again", entry.where, error)
                self._replace(entry)
        finally:
            self.changing = False

    def status(self) -> dict[str, Any]:
        """For the control socket; times in seconds since the epoch."""
        ago = time.time() - trio.current_time()
        life, entry = self.life, self.entry
        return {
            "where": entry.where,
            "type": entry.kind,
            "target": entry.name,
            "line": entry.line,
            "state": life.state,
            "since": life.since + ago,
            "pid": None if self.child is None else self.child.pid,
            "changing": self.changing,
            "adopted": self.child is not None and self.child.is_adopted,
            "reason": life.reason,
            "exit_code": life.exit_code,
            "failures": life.failures,
            "restarts": life.restarts,
            "next_try": None if life.next_try is None else life.next_try + ago,
            "noauto": entry.noauto,
            "nofail": entry.nofail,
            "timeout": entry.patience,
            "retry": entry.retry,
        }

    # ------------------------------------------------------------------ what it does

    async def run(self) -> None:
        """Keep the export until it is discarded."""
        if self._words.closed:
            self._words = Words(self._pipe)
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._listen)
            while not (self.discarded and self.goal is Goal.DOWN):
                await (self._wait() if self.goal is Goal.DOWN else self._attempt())
            self._nursery.cancel_scope.cancel()
        self._nursery = None
        self._words.close(remove=True)

    async def _attempt(self) -> None:
        """One child from its beginning to its end, and the pause behind it."""
        self.goal, self.entry = Goal.UP, self._next
        self.life.start(trio.current_time())
        try:
            child = await self._hands.find(self.entry) or await self._start()
        except IsblkError as error:
            await self._failed(str(error), error.exit_code)
            return
        except OSError as error:
            await self._failed(f"no process could be started: {error.strerror}", ExitCode.IO_ERROR)
            return
        self.child = child
        self._say_of(child)
        try:
            ended = await self._watched(child)
        finally:
            self.child = None
            child.close()
            self._wake()
        self._held += self._words.read()
        await self._judge(ended)
        self._hear()

    async def _start(self) -> Child:
        output = self._words.for_child()
        try:
            return await self._hands.start(self.entry, output)
        finally:
            os.close(output)

    async def _watched(self, child: Child) -> Ended:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._await_ready, child)
            if self.goal is not Goal.UP:  # It was told to end while it was being started.
                self._end(force=False)
            ended = await child.ended()
            nursery.cancel_scope.cancel()
        return ended

    async def _await_ready(self, child: Child) -> None:
        await child.ready()
        if self.life.state is not State.STARTING:
            return
        took = trio.current_time() - self.life.since
        self.life.ready(trio.current_time())
        self._let_go(logging.INFO)
        log.info("%s is up after %.1f s (process %d)", self.entry.where, took, child.pid)
        if child.differs is Differs.IN_PLACE:
            self._tell(child, self.entry)
        elif child.differs is Differs.MORE and self.goal is Goal.UP:
            log.info("%s has other options than the table: it is started again", self.entry.where)
            self._replace(self.entry)

    async def _judge(self, ended: Ended) -> None:
        """What follows from a child's end: nothing when it was asked for, another attempt when it was not."""
        where, now = self.entry.where, trio.current_time()
        if self.goal is not Goal.UP:
            code = ExitCode.IO_ERROR if ended.lost else ExitCode.DONE
            self.life.end(ended.lost, code, now)
            (log.error if ended.lost else log.info)("%s is down%s", where, f": {ended.lost}" if ended.lost else "")
        elif ended.in_order:
            self.goal = Goal.DOWN
            self.life.end("ended in order, by somebody else", ExitCode.DONE, now)
            log.info("%s was ended in order by somebody else: it stays down until `isblk up %s`", where, where)
        else:
            reason = ended.lost or ended.reason or self._words.last or f"it ended with exit code {ended.code}"
            await self._failed(reason, ended.code if ended.code else ExitCode.IO_ERROR)

    async def _failed(self, reason: str, code: int) -> None:
        """Say why, and wait for the next attempt, or until somebody asks for it."""
        if self.goal is not Goal.UP:
            self.life.end("", ExitCode.DONE, trio.current_time())
            return
        was_up, now = self.life.state is State.UP, trio.current_time()
        pause = self.life.fail(reason, code, self.entry.retry, now)
        self._let_go(logging.WARNING, but=reason)
        what = "ended" if was_up else "could not be started"
        then = "it is not tried again" if pause is None else f"next try in {pause:g} s"
        log.warning("%s %s: %s; %s", self.entry.where, what, reason, then)
        with trio.move_on_at(float("inf") if pause is None else now + pause):
            await self._wait()

    # ------------------------------------------------------------------ the end of a child

    def _end(self, force: bool) -> None:
        """Let the child end, for the goal that was set; without one that is done at once."""
        if self.child is None:
            if self.life.state in (State.RETRYING, State.FAILED, State.DOWN):
                self.life.end("", ExitCode.DONE, trio.current_time())
            self._wake()
            return
        is_starting = self.life.state is State.STARTING
        self.life.stop(trio.current_time())
        assert self._nursery is not None
        self._nursery.start_soon(self._end_child, self.child, force or (is_starting and not self.child.is_adopted))

    async def _end_child(self, child: Child, force: bool) -> None:
        try:
            with trio.move_on_after(STOP_DEADLINE) as scope:
                await child.end(force)
                await self._gone(child)
            if scope.cancelled_caught:
                self._stay(child, f"it should end, but still runs after {STOP_DEADLINE:.0f} s", ExitCode.UNREACHABLE)
        except UsageError as error:
            self._stay(child, str(error), error.exit_code)

    async def _gone(self, child: Child) -> None:
        while self.child is child:
            await self._wait()

    def _stay(self, child: Child, reason: str, code: int) -> None:
        if self.child is not child or self.life.state is not State.STOPPING:
            return
        log.warning("%s stays up: %s", self.entry.where, reason)
        self.goal, self._next = Goal.UP, self.entry
        self.life.refuse(reason, code, trio.current_time())

    # ------------------------------------------------------------------ small things

    async def _wait(self) -> None:
        """Until something is asked for, or has changed."""
        await self._woken.wait()

    def _wake(self) -> None:
        self._woken.set()
        self._woken = trio.Event()

    def _say_of(self, child: Child) -> None:
        what = "is served already" if child.is_adopted else "is starting"
        log.info("%s %s (process %d)", self.entry.where, what, child.pid)

    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._words.descriptor)
            self._hear()

    def _hear(self) -> None:
        """Log what the child says. While it starts that is held back: the last sentence of one that fails is the reason, told with that."""
        self._held += self._words.read()
        if self.life.state is not State.STARTING:
            self._let_go(logging.WARNING)

    def _let_go(self, level: int, but: str = "") -> None:
        held, self._held = self._held, []
        for line in held:
            if line != but and not line.endswith(FOR_TERMINALS):
                log.log(level, "%s: %s", self.entry.where, line)
