"""Children that are no processes: what a keeper and a supervisor are tested with, each step of theirs decided by the test."""

from __future__ import annotations

import os

import trio

from isblk.errors import IsblkError, UsageError
from isblk.supervisor.child import Child, Differs, Ended
from isblk.table.entry import Entry
from support.waiting import eventually


class FakeChild:
    """A child that is ready and ends when the test says so. `busy`: it refuses to end without force, with this sentence."""

    def __init__(self, entry: Entry, pid: int, is_adopted: bool = False, differs: Differs = Differs.NOT) -> None:
        self.entry = entry
        self.pid = pid
        self.is_adopted = is_adopted
        self.differs = differs
        self.busy = ""
        self.obeys = True
        self.asked: list[bool] = []
        self.changes: list[Entry] = []
        self.refuses: IsblkError | None = None
        self.closed = False
        self.is_ready = trio.Event()
        self.over = trio.Event()
        self.how = Ended(0)

    async def ready(self) -> None:
        await self.is_ready.wait()

    async def ended(self) -> Ended:
        await self.over.wait()
        return self.how

    async def end(self, force: bool) -> None:
        self.asked.append(force)
        if self.busy and not force:
            raise UsageError(self.busy)
        if self.obeys:
            self.over.set()

    async def change(self, entry: Entry) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses is not None:
            raise self.refuses
        self.changes.append(entry)

    def close(self) -> None:
        self.closed = True

    def dies(self, code: int | None = None, reason: str = "it was killed by SIGKILL", lost: str = "") -> None:
        """End without being asked."""
        self.how = Ended(code, reason, lost)
        self.over.set()


class FakeHands:
    """Starts fake children and remembers them; what is in `left` by its place is found there already."""

    def __init__(self) -> None:
        self.started: list[FakeChild] = []
        self.left: dict[str, FakeChild] = {}
        self.says: list[str] = []
        self.fails: Exception | None = None
        self.at_once = False

    async def find(self, entry: Entry) -> Child | None:
        await trio.lowlevel.checkpoint()
        return self.left.pop(entry.where, None)

    async def start(self, entry: Entry, output: int) -> Child:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        for line in self.says:
            os.write(output, f"{line}\n".encode())
        child = FakeChild(entry, 100 + len(self.started))
        self.started.append(child)
        if self.at_once:
            child.is_ready.set()
        return child

    async def child(self, number: int) -> FakeChild:
        """The one that is started as number so and so, when it is."""
        await eventually(lambda: len(self.started) > number)
        return self.started[number]
