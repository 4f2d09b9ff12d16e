"""Leaving the terminal: `mount` returns when the file is there, and the daemon lives on (daemon(7), the SysV steps that still matter).

Theory of operation: the command forks twice, before trio starts and before there is any thread, since neither survives a fork. The first
child becomes a session leader and exits at once; the second, which can never get a controlling terminal again, does the work. A pipe leads
from it to the command: one line of JSON says "ready" or what failed, with the exit code; the end of the pipe without a line says that the
process died. The standard descriptors of the daemon are /dev/null from the start, or the shell's `$(isblk mount ...)` would wait for it
for ever; so the pipe is its only voice until it is ready, and the log from then on.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from isblk import notify
from isblk.errors import DATA_LOSS, ExitCode, IsblkError, UsageError
from isblk.logs.output import to_daemon_log

log = logging.getLogger(__name__)

READY_DEADLINE = 120.0
"""Seconds for the daemon to be ready: more than its own deadlines (login, discovery, mounting) add up to, so it reports those itself."""

END_DEADLINE = 10.0
"""Seconds for a daemon that was told to end, because it was late or the command was interrupted, to do so before it is killed."""

MESSAGE_LIMIT = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """What became of the daemon: `exit_code` 0 means that it is ready and lives, and `message` is what it has to tell; else why not."""

    exit_code: int
    message: str = ""


class Report:
    """The daemon's end of the pipe. Only the first word counts; those after it go nowhere."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def ready(self, message: str = "") -> None:
        """The file is there: the command may return. `message` is for it."""
        self._say(Outcome(ExitCode.DONE, message))

    def failed(self, message: str, exit_code: int) -> None:
        """The daemon will end without having become ready."""
        self._say(Outcome(exit_code, message))

    def _say(self, outcome: Outcome) -> None:
        if self._descriptor is None:
            return
        line = json.dumps({"exit_code": int(outcome.exit_code), "message": outcome.message[: MESSAGE_LIMIT // 8]}).encode() + b"\n"
        with suppress(BrokenPipeError):  # the command was killed: nobody listens, and the daemon goes on
            os.write(self._descriptor, line)
        os.close(self._descriptor)
        self._descriptor = None


def run_detached(work: Callable[[Report], int], *, log_file: Path | None = None, deadline: float = READY_DEADLINE) -> Outcome:
    """Run `work` in a daemon; return in the command when it has called `report.ready()`, has failed, or was silent for `deadline` seconds.

    `work` returns the daemon's exit code. An IsblkError that leaves it becomes the outcome; any other exception is a bug, and its traceback
    the message. In the daemon this function does not return. Raises UsageError when `log_file` cannot be written.
    """
    log_file = None if log_file is None else log_file.absolute()
    if log_file is not None:
        check_log_file(log_file)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()  # both close-on-exec (PEP 446), so no helper process keeps the command waiting
    child = os.fork()
    if child == 0:
        os.close(reader)
        _leave(work, Report(writer), log_file)
    os.close(writer)
    try:
        return _await_word(reader, child, deadline)
    finally:
        os.close(reader)


def check_log_file(path: Path) -> None:
    """Raise UsageError unless `path` can be appended to (it is made, 0600)."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise UsageError(f"the log file {path} cannot be written: {error.strerror}; name another with --log-file") from None


def _leave(work: Callable[[Report], int], report: Report, log_file: Path | None) -> NoReturn:
    """In the first child. Whatever happens, no code of the command runs in it: every way out is os._exit."""
    code = int(ExitCode.BUG)
    try:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        _silence()
        notify.forget()
        to_daemon_log(log_file)
        code = _work(work, report)
    except BaseException:  # the last line of defence: an exception must not climb into the command's copy of its own frames
        report.failed(traceback.format_exc(), ExitCode.BUG)
    finally:
        logging.shutdown()
        os._exit(code)


def _work(work: Callable[[Report], int], report: Report) -> int:
    try:
        code = work(report)
        report.failed("the daemon ended before it was ready", code or ExitCode.BUG)
        return code
    except IsblkError as error:
        log.error("%s", error, extra=DATA_LOSS)  # it may say so
        report.failed(str(error), error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        report.failed("interrupted", ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except Exception:
        log.critical("a bug ended the daemon", exc_info=True)
        report.failed(traceback.format_exc().rstrip(), ExitCode.BUG)
        return ExitCode.BUG


def _silence() -> None:
    """Standard input, output and error to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def _await_word(reader: int, group: int, deadline: float) -> Outcome:
    try:
        os.waitpid(group, 0)  # the first child, which only forks
        line = _read_line(reader, time.monotonic() + deadline)
    except KeyboardInterrupt:
        _end(reader, group)
        return Outcome(ExitCode.INTERRUPTED, "interrupted; the daemon was told to end")
    if line is None:
        _end(reader, group)
        return Outcome(ExitCode.UNREACHABLE, f"the daemon was not ready within {deadline:.0f} s and was told to end; its log says more")
    try:
        word = json.loads(line)
        return Outcome(word["exit_code"], word["message"])
    except (ValueError, KeyError, TypeError):
        return Outcome(ExitCode.BUG, "the daemon died before it was ready, without a word; its log and dmesg may say more")


def _read_line(reader: int, end: float) -> bytes | None:
    """What came until the end of the pipe or of a line; None when the deadline was first."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            return None
        part = os.read(reader, MESSAGE_LIMIT)
        if not part:
            break
        line += part
    return line


def _end(reader: int, group: int) -> None:
    """End the daemon: in order, which the pipe's end shows, or else by force. Its process group is the first child's process id."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    with suppress(ProcessLookupError):
        if _read_line(reader, time.monotonic() + END_DEADLINE) is None:
            os.killpg(group, signal.SIGKILL)
