"""What happened to a daemon's disks, paths and clients, as records: a bounded ring in memory with a number for each (isblk-events(1)).

The log is for reading, this is for following: each event has a kind that programs can rely on, and a number, so that whoever asks "what
came after 41?" (the control socket's `events` request) knows whether something was lost in between. Nothing here waits and nothing can
fail, for those that add events are on the data path's edge: a reader that is slow, or gone, misses what the ring has forgotten by then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

KEPT = 1000
"""Events that a daemon remembers."""
TEXT_LIMIT = 500
"""Characters of one event's text: what a target says of itself can be long."""


class Level(Enum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Kind(Enum):
    """What can happen; the words are what isblk-events(1) documents."""

    STARTED = "started"
    STOPPING = "stopping"
    LOGIN = "login"
    LOGIN_FAILED = "login-failed"
    LOGOUT = "logout"
    SESSION_LOST = "session-lost"
    WRONG_UNIT = "wrong-unit"
    PATH_UP = "path-up"
    PATH_STANDBY = "path-standby"
    PATH_FENCING = "path-fencing"
    PATH_DOWN = "path-down"
    FAILOVER = "failover"
    FAILBACK = "failback"
    FENCING = "fencing"
    FENCED = "fenced"
    NO_PATH = "no-path"
    GAVE_UP = "gave-up"
    POWER_ON = "power-on"
    REPLAYED = "replayed"
    WRITE_BACK_FAILED = "write-back-failed"
    RESIZED = "resized"
    CLIENT_CAME = "client-came"
    CLIENT_WENT = "client-went"


_LEVELS = {
    Kind.LOGIN_FAILED: Level.WARNING,
    Kind.SESSION_LOST: Level.WARNING,
    Kind.WRONG_UNIT: Level.ERROR,
    Kind.PATH_DOWN: Level.WARNING,
    Kind.FAILOVER: Level.WARNING,
    Kind.NO_PATH: Level.WARNING,
    Kind.GAVE_UP: Level.ERROR,
    Kind.POWER_ON: Level.WARNING,
    Kind.WRITE_BACK_FAILED: Level.ERROR,
}


class Events:
    """The ring. `last` is the number of the latest event, 0 before the first; `about` says whose they are (kind, where, target)."""

    def __init__(self, kept: int = KEPT) -> None:
        self.last = 0
        self.about: dict[str, Any] = {}
        self.on_event: Callable[[], None] | None = None
        self._kept: deque[dict[str, Any]] = deque(maxlen=kept)

    def add(self, kind: Kind, text: str, **about: Any) -> None:
        """It happened now. `text` is a line for people; `about` what JSON can hold: lun, path (a portal), client and the like."""
        self.last += 1
        level = _LEVELS.get(kind, Level.INFO).value
        text = text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT - 3]}..."
        self._kept.append({"number": self.last, "time": time.time(), "kind": kind.value, "level": level, "text": text, **about})
        if self.on_event is not None:
            self.on_event()

    def after(self, number: int, most: int) -> tuple[list[dict[str, Any]], int]:
        """The events behind a number, the oldest first, at most so many; and how many between are forgotten. A number that is too high
        is another daemon's, which had the same process id: then everything is new."""
        if number > self.last or number < 0:
            number = 0
        oldest = self.last - len(self._kept)
        skipped = max(0, number - oldest)
        found = [event for at, event in enumerate(self._kept) if skipped <= at < skipped + most]
        return found, max(0, oldest - number)


class Silent(Events):
    """For devices that no daemon has: nothing is remembered."""

    def add(self, kind: Kind, text: str, **about: Any) -> None:
        """It goes nowhere."""


NOBODY = Silent()
"""Who is told where nobody asks."""
