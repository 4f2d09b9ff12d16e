"""Storms: a message that comes again and again is shown some times, then counted, and the count is told.

A disk that fails a thousand requests a second, or a path that flaps, must neither fill the log nor drown what else there is to read. Of
each kind of message BURST pass in a window of WINDOW_SECONDS; at its end one line says how many more there were. Two messages are of one
kind when they differ in numbers alone. What tells of lost data (errors.DATA_LOSS) always passes, and so does what was asked for on
purpose: debugging, and the trace of PDUs.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

BURST = 10
WINDOW_SECONDS = 10.0
MOST_KINDS = 1000
"""Windows that are open at once; beyond that the oldest is closed early."""
TRACE = "isblk.trace"
"""The logger of --trace."""

_NUMBER = re.compile(r"\d+")
_KIND_LENGTH = 300
Later = Callable[[float, Callable[[], None]], None]


def _in_a_thread(seconds: float, function: Callable[[], None]) -> None:
    """A timer of its own, for a log has no loop to wait in; it lives only while a storm is on."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


class _Window:
    """What came of one kind since `begin`."""

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.shown = 0
        self.held = 0
        self.last: logging.LogRecord | None = None


class Calm(logging.Handler):
    """Hands records on to another handler, without their storms. `clock` is in seconds; `later` calls a function after some."""

    def __init__(self, inner: logging.Handler, clock: Callable[[], float] = time.monotonic, later: Later = _in_a_thread) -> None:
        super().__init__()
        self.inner = inner
        self._clock = clock
        self._later = later
        self._waiting = False
        self._windows: dict[tuple[str, int, str], _Window] = {}  # the oldest first

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `handle`, which holds the lock."""
        now = self._clock()
        self._end(now)
        if _always_shown(record):
            self.inner.handle(record)
            return
        kind = record.name, record.levelno, _NUMBER.sub("#", record.getMessage()[:_KIND_LENGTH])
        window = self._windows.setdefault(kind, _Window(now))
        if window.shown < BURST:
            window.shown += 1
            self.inner.handle(record)
            return
        window.held += 1
        window.last = record
        self._wait(window.begin + WINDOW_SECONDS - now)

    def close(self) -> None:
        """Tell what was held back, and close the other handler too."""
        with self.lock or threading.RLock():
            self._end(float("inf"))
        self.inner.close()
        super().close()

    def flush(self) -> None:
        """What was let through has to be out."""
        self.inner.flush()

    def _end(self, now: float) -> None:
        """Close the windows that are over, and the oldest when there are too many."""
        while self._windows:
            kind, window = next(iter(self._windows.items()))
            if now < window.begin + WINDOW_SECONDS and len(self._windows) <= MOST_KINDS:
                break
            del self._windows[kind]
            if window.last is not None:
                self.inner.handle(_summary(window.last, window.held))

    def _wait(self, seconds: float) -> None:
        if not self._waiting:
            self._waiting = True
            self._later(max(0.01, seconds), self._woken)

    def _woken(self) -> None:
        with self.lock or threading.RLock():
            self._waiting = False
            now = self._clock()
            self._end(now)
            first = next((window for window in self._windows.values() if window.held), None)
            if first is not None:
                self._wait(first.begin + WINDOW_SECONDS - now)


def _always_shown(record: logging.LogRecord) -> bool:
    return record.levelno <= logging.DEBUG or record.name == TRACE or bool(getattr(record, "data_loss", False))


def _summary(last: logging.LogRecord, held: int) -> logging.LogRecord:
    """A line in the place of those held back, with the fields of the last of them."""
    record = logging.makeLogRecord(last.__dict__)
    record.msg = "%s ... and %d more like it in %.0f s"
    record.args = (last.getMessage(), held - 1, WINDOW_SECONDS) if held > 1 else ()
    if held == 1:
        record.msg, record.args = last.msg, last.args
    return record
