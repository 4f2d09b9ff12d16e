"""Sessions that are there only while they are used: when the target is logged in to, and when it is logged out of again.

Theory of operation. One task (`run`) goes round: it waits until a request asks for a session, logs in, lets the devices (ondemand.py) go
on, and when nothing was asked of them for `idle` seconds, settles and logs out. Attaching is handed in, and is done again and again; each
time the disks are compared with what is known of them before anything is read or written. What must have happened before a session is
left is said in ondemand.py: to settle is to bring that about, and to have the kernel forget its pages, since others may write to the disk
from then on. What is asked meanwhile undoes it: whoever finds a page in the cache finds it while the session is there.

A login is tried again, with a growing pause, for as long as requests may wait without a path (policies.no_path); then all that wait are
told, and the next request begins anew. The first attempt has as long as logins take. Another disk than the one that is known is not tried
again: that is told at once, and for REFUSAL_SECONDS to all who ask.

Of a target that has never been seen no size is known, so the first login is tried without being asked, and again in the background until it
has succeeded once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import trio

from isblk.block.attach import Attached, Where
from isblk.block.known import Known
from isblk.block.ondemand import OnDemand
from isblk.block.pathset import PathSet, WrongUnit
from isblk.block.request import flush
from isblk.block.stack import Disk
from isblk.errors import IsblkError, LoginRefused, NotFound, RequestFailed, RequestInvalid, Unreachable, UsageError
from isblk.link.keeper import BackOff
from isblk.link.plane import Plane

_log = logging.getLogger(__name__)

REFUSAL_SECONDS = 2.0
"""How long it is believed that another disk is there: not each of many requests is worth a login."""
REPEAT_SECONDS = 60.0
"""How often at most the log says aloud that requests fail, and why."""
TICK_SECONDS = 1.0
"""How often at least it is looked whether anything was asked."""


class State(Enum):
    """Where the sessions are; the words are for status."""

    ASLEEP = "no session"
    WAKING = "logging in"
    AWAKE = "logged in"
    SETTLING = "flushing"
    LEAVING = "logging out"


class Event(Enum):
    """What moves it on."""

    ASKED = "a session is asked for"
    LOGGED_IN = "the disks are there"
    REFUSED = "they are not, and nobody waits any more"
    IDLE = "nothing was asked for a while"
    BUSY = "something was, or could not be flushed"
    SETTLED = "nothing is held that is not durable"
    LOGGED_OUT = "the sessions have ended"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.ASLEEP, Event.ASKED): State.WAKING,
    (State.WAKING, Event.LOGGED_IN): State.AWAKE,
    (State.WAKING, Event.REFUSED): State.ASLEEP,
    (State.AWAKE, Event.IDLE): State.SETTLING,
    (State.SETTLING, Event.BUSY): State.AWAKE,
    (State.SETTLING, Event.SETTLED): State.LEAVING,
    (State.LEAVING, Event.LOGGED_OUT): State.ASLEEP,
}
_FINAL = (WrongUnit, UsageError)
"""What trying again will not change."""
_BELIEVED = (LoginRefused, NotFound, UsageError)
"""What a target that has never been seen may say to the first login for there to be no file at all."""


async def _nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


@dataclass
class Hooks:
    """What is above: `forget` has the kernel drop the pages it caches; `remember` keeps what is known for the next start."""

    forget: Callable[[], Awaitable[None]] = _nothing
    remember: Callable[[Sequence[Known]], Awaitable[None]] = _nothing


@dataclass
class Sleeper:
    """The disks of one target as an Attachment. Times in seconds: `idle` (0: never log out), `patience` of those who wait.

    `attach` enters the sessions; `nothing` are the paths there are meanwhile.
    """

    where: Where
    attach: Callable[[Where], AbstractAsyncContextManager[Attached]]
    nothing: PathSet
    idle: float
    patience: float
    known: Sequence[Known] = ()
    back_off: BackOff = field(default_factory=BackOff)
    hooks: Hooks = field(default_factory=Hooks)

    def __post_init__(self) -> None:
        self.state = State.ASLEEP
        self.since = time.time()
        self.error: IsblkError | None = None
        self.logins = 0
        self.tried = trio.Event()
        self.devices = [self._device(one.number, one) for one in self.known]
        if not self.devices and not self.where.several:
            self.devices = [self._device(self.where.lun or 0, None)]
        self._attached: Attached | None = None
        self._asked = trio.Event()
        self._asked_at = math.inf
        self._hurry = trio.Event()
        self._attempt: trio.CancelScope | None = None
        self._refused_until = -math.inf
        self._failures = 0
        self._said: dict[str, float] = {}
        self._ends_at = math.inf
        self._ended: IsblkError | None = None

    def _device(self, number: int, known: Known | None) -> OnDemand:
        return OnDemand(number, known, self.wake)

    # ------------------------------------------------------------------ the Attachment

    @property
    def disks(self) -> list[Disk]:
        """The disks as front ends take them; always the same ones."""
        return [device.disk for device in self.devices]

    @property
    def paths(self) -> PathSet:
        """The paths there are now."""
        return self._attached.paths if self._attached is not None else self.nothing

    def hasten(self, seconds: float) -> None:
        """The end is near: no login is waited for any longer than that."""
        self._ends_at = trio.current_time() + seconds
        if self._attempt is not None:
            self._attempt.deadline = min(self._attempt.deadline, self._ends_at)
        if self._attached is not None:
            self._attached.hasten(seconds)

    @property
    def is_known(self) -> bool:
        """Whether every disk has been seen, ever."""
        return bool(self.devices) and all(device.known is not None for device in self.devices)

    def status(self) -> dict[str, Any]:
        """For `isblk status`."""
        return {
            "state": self.state.value,
            "since": self.since,
            "idle": self.idle,
            "logins": self.logins,
            "waiting": sum(device.waiting for device in self.devices),
            "seen": self.is_known,
            "error": str(self.error) if self.error is not None else None,
        }

    # ------------------------------------------------------------------ asking

    def wake(self) -> IsblkError | None:
        """A request finds no session: None when it may wait for one, else why it may not."""
        now = trio.current_time()
        if self._ended is not None:
            return self._ended
        if now < self._refused_until:
            return self._told(self.error)
        self._asked_at = min(self._asked_at, now)
        self._asked.set()
        self._hurry.set()
        return None

    async def learn(self) -> None:
        """Where a disk has never been seen: wait for one attempt to log in.

        Raises LoginRefused, NotFound, UsageError: the target answers, and there will be no file. One that is silent is no failure, but for
        a directory, which would be empty: Unreachable.
        """
        if self.is_known:
            return
        self._asked.set()
        await self.tried.wait()
        if isinstance(self.error, _BELIEVED):
            raise self.error
        if not self.devices:
            raise Unreachable(f"{self.error}; what is in the directory is not known before the target has been seen once")

    # ------------------------------------------------------------------ running

    async def run(self) -> None:
        """Until cancelled; what is logged in to is logged out of then."""
        try:
            while True:
                await self._reason()
                self._step(Event.ASKED)
                async with AsyncExitStack() as sessions:
                    attached = await self._log_in(sessions)
                    self.tried.set()
                    if attached is not None:
                        await self._live(attached)
                if self.state is State.LEAVING:
                    _log.info("%s has not been used for %g s: logged out", self.where.target_name, self.idle)
                    self._step(Event.LOGGED_OUT)
        finally:
            self._ended = RequestFailed("the disk is not served any more")
            self._give_up(self._ended)
            self.tried.set()

    def _step(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.since = time.time()

    async def _reason(self) -> None:
        """Return when a session is wanted: asked for, or to find out about what has never been seen."""
        pause = math.inf if self.is_known else self._delay(self._failures)
        with trio.move_on_after(pause):
            await self._asked.wait()

    def _delay(self, failures: int) -> float:
        delays = self.back_off.delays()
        return delays[min(failures, len(delays) - 1)]

    async def _log_in(self, sessions: AsyncExitStack) -> Attached | None:
        """The sessions, entered into the stack, and the devices bound to them; None when it was given up, and those who waited are told."""
        attempts = 0
        while True:
            error = await self._attempted(sessions, is_first=not attempts)
            if error is None:
                return self._attached
            await sessions.aclose()  # Where it was another disk that was there.
            self._say(error, attempts)
            attempts, self._failures, self.error = attempts + 1, self._failures + 1, error
            if isinstance(error, _FINAL) or trio.current_time() + self.back_off.first >= self._deadline():
                break
            await self._pause(self._delay(attempts - 1))
        if isinstance(self.error, _FINAL):
            self._refused_until = trio.current_time() + REFUSAL_SECONDS
        self._step(Event.REFUSED)
        waiting = sum(device.waiting for device in self.devices)
        if waiting:
            _log.log(self._level("failed"), "%s cannot be logged in to; requests that failed for it: %d", self.where.target_name, waiting)
        self._give_up(self._told(self.error))
        return None

    def _told(self, error: IsblkError | None) -> IsblkError:
        """What requests end with: whatever it was, to whoever reads a file it is EIO."""
        return RequestFailed(f"{self.where.target_name} cannot be logged in to: {error}")

    def _deadline(self) -> float:
        """Until when those wait who do; at once where nobody does."""
        return min(self._asked_at + self.patience if self._asked_at < math.inf else -math.inf, self._ends_at)

    async def _attempted(self, sessions: AsyncExitStack, is_first: bool) -> IsblkError | None:
        """One attempt; None when it has succeeded. The first is as long as logins may take."""
        deadline = self._ends_at if is_first else self._deadline()
        with trio.CancelScope(deadline=deadline) as self._attempt:
            try:
                attached = await sessions.enter_async_context(self.attach(self._where()))
                self._bind(attached)
            except IsblkError as error:
                return error
            else:
                return None
            finally:
                self._attempt = None
        return self.error or Unreachable(f"{self.where.target_name} did not answer in time")

    def _where(self) -> Where:
        """Where the disk is: the number it had, once that is known, even where it is the only one no more."""
        return self.where if self.where.several or not self.is_known else replace(self.where, lun=self.devices[0].disk.number)

    async def _pause(self, delay: float) -> None:
        """Before the next attempt: shorter when somebody asks, and not beyond what those wait who do."""
        self._hurry = trio.Event()
        with trio.move_on_at(self._deadline()):
            await trio.sleep(min(delay, self.back_off.first))
            with trio.move_on_after(delay - self.back_off.first):
                await self._hurry.wait()

    def _say(self, error: IsblkError, attempts: int) -> None:
        """Once for all attempts in a row, and not again and again what nobody waits for."""
        if isinstance(error, _FINAL):
            _log.log(self._level("refused"), "%s", error)
        elif not attempts and not self._failures:
            _log.warning("%s; the login is tried again when the disk is used%s", error, "" if self.is_known else ", and until then")
        else:
            _log.info("%s", error)

    def _level(self, what: str) -> int:
        """How loud that is said: in a storm of requests not each time."""
        now = trio.current_time()
        last = self._said.get(what, -math.inf)
        if now - last < REPEAT_SECONDS:
            return logging.INFO
        self._said[what] = now
        return logging.ERROR

    def _give_up(self, error: IsblkError) -> None:
        self._asked, self._asked_at = trio.Event(), math.inf
        for device in self.devices:
            device.give_up(error)

    # ------------------------------------------------------------------ while there are sessions

    def _bind(self, attached: Attached) -> None:
        """Let the devices use the disks. Raises WrongUnit or NotFound where none of them is what it was."""
        found = {disk.number: disk for disk in attached.disks}
        if not self.devices:
            self.devices = [self._device(number, None) for number in found]
        pairs = [(device, found.get(device.disk.number)) for device in self.devices]
        if not self.where.several:
            pairs = [(self.devices[0], attached.disks[0])]
        failures = [(device, error) for device, disk in pairs if (error := self._bound(device, disk)) is not None]
        if len(failures) == len(pairs):
            raise next((error for _, error in failures if not isinstance(error, _FINAL)), failures[0][1])
        for device, error in failures:
            _log.error("%s", error)
            device.refuse(self._told(error))
        self._asked, self._asked_at = trio.Event(), math.inf
        _log.log(logging.WARNING if self._failures else logging.INFO, "%s is logged in to", self.where.target_name)
        self._attached, self._failures, self.error = attached, 0, failures[0][1] if failures else None
        self.logins += 1

    def _bound(self, device: OnDemand, disk: Disk | None) -> IsblkError | None:
        """Why a device is not bound: then, if others are, it alone is refused while the sessions last."""
        try:
            if disk is None:
                raise NotFound(f"{self.where.target_name} has no disk any more at LUN {device.disk.number}")
            device.bind(disk)
        except IsblkError as error:
            return error
        return None

    async def _live(self, attached: Attached) -> None:
        """Until nothing is asked any more and nothing is held."""
        self._step(Event.LOGGED_IN)
        try:
            await self._note()
            while True:
                await self._quiet()
                self._step(Event.IDLE)
                if await self._settle():
                    break
                self._step(Event.BUSY)
            self._step(Event.SETTLED)
        finally:
            self._attached = None
            for device in self.devices:
                device.unbind()
                device.allow()
        await self._note()

    async def _note(self) -> None:
        """Have what is known kept where it has changed."""
        now = [device.known for device in self.devices if device.known is not None]
        if now != list(self.known):
            self.known = now
            await self.hooks.remember(now)

    def _activity(self) -> int:
        return sum(device.activity for device in self.devices)

    async def _quiet(self) -> None:
        """Return when nothing was asked for `idle` seconds."""
        if not self.idle:
            await trio.sleep_forever()
        tick = min(TICK_SECONDS, self.idle / 8)
        seen, since = self._activity(), trio.current_time()
        while trio.current_time() - since < self.idle:
            await trio.sleep(tick)
            now = self._activity()
            if now != seen or any(device.is_busy for device in self.devices):
                seen, since = now, trio.current_time()

    async def _settle(self) -> bool:
        """Have nothing cached above and everything durable below; False when that cannot be, or something was asked meanwhile.

        The kernel first: what it makes us write must be flushed as well. The last look and what follows it are one, without an await.
        """
        activity, flushes = self._activity(), 0
        await self.hooks.forget()
        for device in self.devices:
            if not device.is_dirty:
                continue
            try:
                await flush(device.disk.gate)
            except RequestInvalid:
                return False  # The gate is being closed: whoever does that flushes too.
            except IsblkError as error:
                _log.error("LUN %d keeps its session, for it could not be flushed: %s", device.disk.number, error)
                device.complain(error)
                return False
            flushes += 1
        return self._activity() == activity + flushes and all(device.is_clean for device in self.devices)


@asynccontextmanager
async def running(plane: Plane, sleeper: Sleeper) -> AsyncIterator[Sleeper]:
    """A sleeper at work for the length of a block, which begins when every disk is known, or has at least been tried.

    Raises LoginRefused, NotFound, UsageError of a target that has never been seen, Unreachable for a directory of one.
    """
    scope, ended = trio.CancelScope(), trio.Event()

    async def run() -> None:
        try:
            with scope:
                await sleeper.run()
        finally:
            ended.set()

    plane.start_soon(run)
    try:
        await sleeper.learn()
        yield sleeper
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()
