"""One supervisor for a run directory: a lock that ends with the process that holds it, of which the kernel tells who that is (fcntl(2))."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isblk.control import socket_path
from isblk.errors import UsageError

NAME = "supervisor.lock"
_FLOCK = struct.Struct("@hhqqi")
"""struct flock of fcntl(2): type, whence, start, length, process."""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Be the supervisor for the length of a block; the file stays, for to remove it would let two hold it. Raises UsageError."""
    descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"a supervisor runs already, process {_holder(descriptor)}: `isblk status` shows it") from None
        yield
    finally:
        os.close(descriptor)


def find(directory: Path) -> Path | None:
    """The control socket of the supervisor that runs; None when none does."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        pid = _holder(descriptor)
    finally:
        os.close(descriptor)
    return socket_path(directory, pid) if pid else None


def _holder(descriptor: int) -> int:
    """The process that would be in the way of the lock; 0 when none is."""
    answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return 0 if kind == fcntl.F_UNLCK else int(pid)
