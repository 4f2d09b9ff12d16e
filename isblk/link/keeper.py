"""Keeps a session to one portal alive: back off, log in again with its ISID, follow what the target asks (RFC 7143 6.3.5, 7.15).

Theory of operation. A keeper is one path slot: a portal and an ISID that never changes. Whenever its connection ends, it logs in again with
TSIH 0 and that ISID, which makes the target end the old session and its tasks first (session reinstatement). Its owner is told `reinstated`
when that has happened: until then a write that was sent may still be done. When the portal itself does not answer, the same reinstatement
is tried through a sibling, another portal of the same portal group: the ISID and the group make the nexus, the address is no part of it.

A connection is used when the owner has looked at it (`prepare`): another logical unit may be behind the same number by now.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import trio

from isblk.errors import IsblkError, PathLost
from isblk.iscsi.names import Portal
from isblk.link.connection import Connection
from isblk.link.opening import Access, log_in
from isblk.link.plane import Plane

HASTE_SECONDS = 0.5
"""How long a portal that was lost may keep us from asking another to end its session; its later attempts have the whole login timeout."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackOff:
    """Seconds between attempts: `first`, then doubled up to `most`, each with some jitter; a session that lived `stable` starts anew."""

    first: float = 0.25
    most: float = 15.0
    stable: float = 10.0
    jitter: float = 0.2

    def delays(self) -> Sequence[float]:
        """The whole ladder without jitter; its last step repeats."""
        steps = [self.first]
        while steps[-1] < self.most:
            steps.append(min(self.most, steps[-1] * 2))
        return steps


class Phase(Enum):
    """Where a keeper is."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    WRONG = "wrong unit"
    ENDED = "ended"


class Owner(Protocol):
    """Who is told. `prepare` may await and refuse; the others are plain functions."""

    async def prepare(self, keeper: Keeper, connection: Connection) -> None:
        """Look at a new connection before it is used; an IsblkError refuses it."""

    def up(self, keeper: Keeper, connection: Connection) -> None:
        """The connection may be used."""

    def leaving(self, keeper: Keeper) -> None:
        """The target wants it to end soon: nothing new should be sent there."""

    def down(self, keeper: Keeper, error: IsblkError) -> None:
        """The connection has ended."""

    def reinstated(self, keeper: Keeper) -> None:
        """The target has ended the sessions this slot had before, and their tasks."""

    def refused(self, keeper: Keeper, error: IsblkError) -> None:
        """A login has failed, or `prepare` has; not told again while the reason stays the same."""

    def siblings(self, keeper: Keeper) -> Sequence[Portal]:
        """Other portals of the keeper's portal group."""


class Keeper:
    """One path slot. `phase`, `since` (seconds since 1970) and `reason` are for status; `ends` counts sessions by what ended them."""

    def __init__(
        self, plane: Plane, portal: Portal, target_name: str, access: Access, owner: Owner, back_off: BackOff | None = None
    ) -> None:
        self.portal = portal
        self.access = access
        self.phase = Phase.CONNECTING
        self.since = time.time()
        self.reason = ""
        self.connection: Connection | None = None
        self.portal_group = portal.tpgt
        self.logins = 0
        self.failures = 0
        self.ends: Counter[str] = Counter()
        self._plane = plane
        self._target_name = target_name
        self._owner = owner
        self._back_off = back_off or BackOff()
        self._step = 0
        self._unended: set[int | None] = set()
        self._wait = 0.0
        self._hurry = trio.Event()

    async def run(self) -> None:
        """Keep the session until cancelled; logs out then."""
        try:
            while True:
                connection = await self._reach()
                try:
                    await self._use(connection)
                finally:
                    await self._end(connection)
        finally:
            self._become(Phase.ENDED, "")

    async def take_over(self, connection: Connection) -> None:
        """Keep a session that is logged in and looked at already, then as `run`."""
        self._logged_in(connection)
        try:
            try:
                await self._live(connection)
            finally:
                await self._end(connection)
            await self.run()
        finally:
            self._become(Phase.ENDED, "")

    def hurry(self) -> None:
        """Try again now instead of at the end of the pause: somebody waits."""
        self._hurry.set()

    def _become(self, phase: Phase, reason: str) -> None:
        if phase is not self.phase or reason != self.reason:
            self.phase, self.reason, self.since = phase, reason, time.time()

    def _refused(self, phase: Phase, error: IsblkError) -> None:
        is_news = (phase, str(error)) != (self.phase, self.reason)
        self._become(phase, str(error))
        if is_news:
            self._owner.refused(self, error)

    async def _reach(self) -> Connection:
        """Log in, however long it takes."""
        access = self._hasty() if self._unended and self._owner.siblings(self) else self.access
        while True:
            await self._pause()
            try:
                connection = await log_in(self._plane, [self.portal], self._target_name, access)
            except IsblkError as error:
                self.failures += 1
                self._step += 1
                self._refused(Phase.DOWN, error)
                _log.info("%s", error, extra={"portal": self.portal})
                access = self.access
                await self._reinstate_elsewhere()
            else:
                self._logged_in(connection)
                return connection

    def _hasty(self) -> Access:
        """For the first attempt where writes may wait for the old session's end and another portal could end it: not long."""
        timing = self.access.timing
        return replace(self.access, timing=replace(timing, login_timeout=min(timing.login_timeout, HASTE_SECONDS)))

    async def _pause(self) -> None:
        """The back-off, and DefaultTime2Wait after a connection that ended (13.15)."""
        await trio.sleep(self._wait)
        self._wait = 0.0
        if not self._step:
            return
        delays = self._back_off.delays()
        delay = delays[min(self._step, len(delays)) - 1] * (1 + random.uniform(-1, 1) * self._back_off.jitter)
        # However many wait, and however often: never without a pause, and not for a unit that is the wrong one.
        least = delay if self.phase is Phase.WRONG else min(delay, self._back_off.first)
        await trio.sleep(least)
        with trio.move_on_after(delay - least):
            await self._hurry.wait()
        # Only now: the last path's own loss asks for haste before its pause begins, and that counts.
        self._hurry = trio.Event()

    def _logged_in(self, connection: Connection) -> None:
        self.logins += 1
        self.portal_group = connection.session.login.tpgt
        if connection.moved_to is not None:
            _log.info("%s has moved for good to %s", self.portal, connection.moved_to)
            self.portal = replace(connection.moved_to, tpgt=None)
        self.connection = connection
        connection.on_leaving = lambda: self._owner.leaving(self)
        self._plane.start_soon(connection.watch)
        self._ended_in(self.portal_group)

    def _ended_in(self, portal_group: int | None) -> None:
        """A login has ended the old session in its portal group; one in another group lives on, for its nexus is another (6.3.5)."""
        self._unended.discard(portal_group)
        if not self._unended:
            self._owner.reinstated(self)

    async def _use(self, connection: Connection) -> None:
        try:
            await self._owner.prepare(self, connection)
        except PathLost as error:
            self._step += 1
            self._refused(Phase.DOWN, error)
            return
        except IsblkError as error:
            self._step = len(self._back_off.delays())
            if self.phase is not Phase.WRONG:
                _log.error("%s is not used: %s", self.portal, error, extra={"portal": self.portal})
            self._refused(Phase.WRONG, error)
            return
        await self._live(connection)

    async def _live(self, connection: Connection) -> None:
        began = trio.current_time()
        self._become(Phase.UP, "")
        self._owner.up(self, connection)
        await connection.closed.wait()
        # One that does not live long is not tried at once again: a flapping path would keep everybody busy.
        self._step = 0 if trio.current_time() - began >= self._back_off.stable else self._step + 1

    async def _end(self, connection: Connection) -> None:
        """However it came to an end: log out where that is still possible, tell the owner, remember what is not yet reinstated."""
        was_up = self.phase is Phase.UP
        with trio.CancelScope(shield=True):
            await connection.logout()
        self.connection = None
        error = connection.error
        if error is not None:
            self._unended.add(connection.session.login.tpgt)
            self.ends[connection.fault or error.kind] += 1
        self._wait = connection.time2wait
        if was_up:
            told = error or PathLost(f"the session to {self.portal} was logged out", sent=False)
            self._become(Phase.DOWN, str(told))
            self._owner.down(self, told)

    async def _reinstate_elsewhere(self) -> None:
        """End the old session through another portal of its group: a login with its ISID is enough (6.3.5)."""
        if not self._unended:
            return
        for portal in self._owner.siblings(self):
            try:
                connection = await log_in(self._plane, [portal], self._target_name, self.access)
            except IsblkError as error:
                _log.info("%s cannot be asked to end the session of %s: %s", portal, self.portal, error)
                continue
            group = connection.session.login.tpgt
            if group is not None and group in self._unended:
                _log.info("%s has ended the session of %s", portal, self.portal)
                self._ended_in(group)
            with trio.CancelScope(shield=True):
                await connection.logout()
            if not self._unended:
                return

    def __repr__(self) -> str:
        return f"<Keeper {self.portal} {self.phase.value} {self.reason}>"
