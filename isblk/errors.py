"""Every failure isblk can report: one tree, each class with its errno (for requests) and its exit code (for commands)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import IntEnum

DATA_LOSS: Mapping[str, object] = {"data_loss": True}
"""`extra` of a log line that tells of lost data, or may: however often it comes, it is never held back (logs/storm.py)."""


class ExitCode(IntEnum):
    """What a command's exit says; documented in isblk(1) and relied on by scripts."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    IO_ERROR = 6
    INTERRUPTED = 130


class IsblkError(Exception):
    """An expected failure. Its text is one sentence: what failed, where, what to do next; it never holds a secret.

    `kind` is the word under which it is counted (isblk-status(1), isblk-metrics(1)).
    """

    exit_code: ExitCode = ExitCode.IO_ERROR
    errno: int = errno.EIO
    kind: str = "other"


class UsageError(IsblkError):
    """The caller asked for something that cannot be: a bad name, option, configuration or mountpoint."""

    kind = "usage"
    exit_code = ExitCode.USAGE
    errno = errno.EINVAL


class NotFound(IsblkError):
    """The target or the logical unit is not there."""

    kind = "not-found"
    exit_code = ExitCode.NOT_FOUND
    errno = errno.ENXIO


class LoginRefused(IsblkError):
    """The target answered the login and said no, or failed to prove who it is."""

    kind = "refused"
    exit_code = ExitCode.REFUSED
    errno = errno.EACCES


class Unreachable(IsblkError):
    """No answer: the portal refuses connections, stays silent, or its name does not resolve."""

    kind = "unreachable"
    exit_code = ExitCode.UNREACHABLE
    errno = errno.EHOSTUNREACH


class ProtocolError(IsblkError):
    """The peer broke RFC 7143 (or SPC, SBC, NBD): the only exception network bytes can cause in a decoder."""

    errno = errno.EIO
    kind = "protocol"


class DigestError(ProtocolError):
    """A CRC32C digest does not match what arrived (RFC 7143 13.1)."""

    kind = "digest"


class PathLost(IsblkError):
    """The session that carried a request ended before its answer came; whether the target did it is unknown.

    `sent` False: no byte of the request was given to the network, so the target cannot have done it, nor do it later.
    """

    errno = errno.EIO
    kind = "lost"

    def __init__(self, message: str, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class RequestFailed(IsblkError):
    """The logical unit answered a request with a failure; `errno` says which."""

    kind = "failed"

    def __init__(self, message: str, error_number: int = errno.EIO) -> None:
        super().__init__(message)
        self.errno = error_number


class TaskAborted(RequestFailed):
    """Task management ended a command: the target will not do it any more, so it may be repeated."""

    kind = "aborted"


class NoPath(RequestFailed):
    """There was no path for longer than requests may wait."""

    kind = "no-path"


class RequestInvalid(IsblkError):
    """A request that the device can never do: out of range, not aligned, read-only, or not supported."""

    kind = "invalid"

    def __init__(self, message: str, error_number: int = errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = error_number


class Interrupted(IsblkError):
    """A signal asked a command to stop; everything it had opened has been closed."""

    exit_code = ExitCode.INTERRUPTED
    errno = errno.EINTR


def kind_of(error: Exception) -> str:
    """The word under which a failure is counted; what is no IsblkError is a bug."""
    return error.kind if isinstance(error, IsblkError) else "bug"
