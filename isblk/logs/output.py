"""Where the log of this process goes: standard error in words, the journal with fields, a file or syslog; one line an event everywhere.

A command in the foreground logs to standard error, and to the journal by its own protocol when that is where standard error ends (a unit of
systemd). A daemon that has left its terminal logs to its --log-file, else to the journal, else to syslog, else nowhere.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from isblk.errors import UsageError
from isblk.logs import journald
from isblk.logs.recent import Recent
from isblk.logs.storm import TRACE, Calm

SYSLOG = Path("/dev/log")
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
"""Words of --log-level."""
DEFAULT_LEVEL = "warning"

_WORDS = "isblk: %(message)s"
_FULL = "%(levelname)s %(name)s: %(message)s"
_DATED = f"%(asctime)s {_FULL}"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_fields: dict[str, object] = {}


def level_of(verbose: int = 0, quiet: bool = False, word: str | None = None) -> int:
    """The level that -v, -q and --log-level (or the setting) mean together; what is said of this run comes before what lasts.

    Raises UsageError for -v with -q.
    """
    if verbose and quiet:
        raise UsageError("-v and -q contradict each other: give one of them")
    if quiet:
        return logging.ERROR
    if verbose:
        return logging.INFO if verbose == 1 else logging.DEBUG
    return LEVELS[word or DEFAULT_LEVEL]


def to_stderr(level: int, trace: bool = False) -> None:
    """Log to standard error, or to the journal when that is behind it; every PDU with `trace`, whatever the level."""
    _use(_of_stderr(), level, trace)


def to_daemon_log(path: Path | None) -> None:
    """Log to `path`, else to the journal, else to syslog, else nowhere; the level stays, and the last lines are remembered."""
    _use(_of_daemon(path), _level(), logging.getLogger(TRACE).level == logging.INFO)
    remember()


def remember() -> None:
    """Remember the last lines: what a daemon is asked for, also one that stays in the foreground. Twice is once."""
    root = logging.getLogger()
    if not any(isinstance(handler, Recent) for handler in root.handlers):
        recent = Recent()
        recent.setFormatter(OneLine(_DATED))
        recent.addFilter(lambda record: record.name != TRACE)
        root.addHandler(recent)
        root.setLevel(min(root.level, recent.level))


def tell(**fields: object) -> None:
    """What all events of this process are about, as fields of the journal: target, where."""
    _fields.update(fields)


class OneLine(logging.Formatter):
    """An event is one line, traceback included, and nothing in it can pass for another: control characters are written as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        return _CONTROL.sub(_escape, super().format(record).rstrip("\n").replace("\n", " | "))


class Prefixed(OneLine):
    """The same with the priority in front, as the journal takes it from a stream: <4> (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        return f"<{journald.priority(record.levelno)}>{super().format(record)}"


class _Wanted(logging.Filter):
    """Lets pass what is of the level that was asked for, and every PDU: the loggers themselves let more through, to be remembered."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self.level or record.name == TRACE


def _use(handler: logging.Handler, level: int, trace: bool) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    calm = Calm(handler)
    calm.addFilter(_Wanted(level))
    root.addHandler(calm)
    root.setLevel(level)
    logging.getLogger(TRACE).setLevel(logging.INFO if trace else logging.WARNING)


def _level() -> int:
    """The level that `to_stderr` was told; without that what logging starts with."""
    for handler in logging.getLogger().handlers:
        for wanted in handler.filters:
            if isinstance(wanted, _Wanted):
                return wanted.level
    return logging.getLogger().level


def _of_stderr() -> logging.Handler:
    handler: logging.Handler
    if journald.hears():
        with suppress(OSError):
            return journald.JournalHandler(_fields)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Prefixed("%(message)s"))
        return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_WORDS) if sys.stderr.isatty() else OneLine(_WORDS))
    return handler


def _of_daemon(path: Path | None) -> logging.Handler:
    handler: logging.Handler
    if path is not None:
        handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")  # logrotate may move it
        handler.setFormatter(OneLine(f"%(asctime)s isblk[{os.getpid()}] {_FULL}"))
        return handler
    with suppress(OSError):
        return journald.JournalHandler(_fields)
    if SYSLOG.exists():
        with suppress(OSError):
            handler = logging.handlers.SysLogHandler(os.fspath(SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
            handler.setFormatter(OneLine(f"isblk[{os.getpid()}]: {_FULL}"))
            return handler
    return logging.NullHandler()


def _escape(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"
