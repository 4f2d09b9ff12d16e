"""The life of an export: its states, which event leads from which to which, and the pauses between two attempts. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long, up to the table's retry=."""
LONG_ENOUGH = 60.0
"""Seconds that an export has to be up for its next failure to be the first of a new series."""


class State(StrEnum):
    """What an export is doing."""

    DOWN = "down"
    STARTING = "starting"
    UP = "up"
    RETRYING = "retrying"
    FAILED = "failed"
    STOPPING = "stopping"


class Event(Enum):
    """What can happen to it."""

    START = auto()
    READY = auto()
    FAIL = auto()
    GIVE_UP = auto()
    STOP = auto()
    REFUSE = auto()
    END = auto()


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.DOWN, Event.START): State.STARTING,
    (State.DOWN, Event.END): State.DOWN,
    (State.RETRYING, Event.START): State.STARTING,
    (State.RETRYING, Event.END): State.DOWN,
    (State.FAILED, Event.START): State.STARTING,
    (State.FAILED, Event.END): State.DOWN,
    (State.STARTING, Event.READY): State.UP,
    (State.STARTING, Event.FAIL): State.RETRYING,
    (State.STARTING, Event.GIVE_UP): State.FAILED,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.STARTING, Event.END): State.DOWN,
    (State.UP, Event.FAIL): State.RETRYING,
    (State.UP, Event.GIVE_UP): State.FAILED,
    (State.UP, Event.STOP): State.STOPPING,
    (State.UP, Event.END): State.DOWN,
    (State.STOPPING, Event.REFUSE): State.UP,
    (State.STOPPING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.END): State.DOWN,
}
"""A pair that is missing cannot happen."""


@dataclass
class Life:
    """Where an export stands. Times are seconds of the caller's clock; `reason` and `exit_code` say why it is not up, or was not before.

    `failures`: in a row; `restarts`: how often it was started again since the supervisor came.
    """

    state: State = State.DOWN
    since: float = 0.0
    reason: str = ""
    exit_code: int = 0
    failures: int = 0
    restarts: int = 0
    next_try: float | None = None
    _up_since: float | None = field(default=None, repr=False)

    def start(self, now: float) -> None:
        """An attempt begins."""
        self.restarts += self.state is State.RETRYING
        self._to(Event.START, now)

    def ready(self, now: float) -> None:
        """It can be used. What was wrong before is told no more."""
        self._to(Event.READY, now)
        self._up_since, self.reason, self.exit_code = now, "", 0

    def fail(self, reason: str, exit_code: int, longest: float | None, now: float) -> float | None:
        """It ended, or could not be started; returns the seconds to wait before the next attempt, None when there will be none.

        `longest` is the longest pause; None: there is only one attempt.
        """
        if self._up_since is not None and now - self._up_since >= LONG_ENOUGH:
            self.failures = 0
        self.failures += 1
        pause = None if longest is None else min(longest, FIRST_PAUSE * 2 ** min(self.failures - 1, 30))
        self._to(Event.GIVE_UP if pause is None else Event.FAIL, now)
        self.reason, self.exit_code = reason, exit_code
        self.next_try = None if pause is None else now + pause
        return pause

    def stop(self, now: float) -> None:
        """Its end was asked for."""
        self._to(Event.STOP, now)

    def refuse(self, reason: str, exit_code: int, now: float) -> None:
        """It is up still, since it is in use or did not end in time."""
        self._to(Event.REFUSE, now)
        self.reason, self.exit_code = reason, exit_code

    def end(self, reason: str, exit_code: int, now: float) -> None:
        """It is down, as it was asked to be; `reason` with an exit code other than 0 says what was lost on the way."""
        self._to(Event.END, now)
        self.reason, self.exit_code, self.failures = reason, exit_code, 0

    def _to(self, event: Event, now: float) -> None:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise AssertionError(f"{event.name} cannot happen to what is {self.state}")
        if state is not self.state:
            self.state, self.since = state, now
        self.next_try = None
        if state is not State.UP:
            self._up_since = None
