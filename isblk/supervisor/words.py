"""What a child says: its standard error, in a named pipe of the run directory that outlives the supervisor.

An ordinary pipe would break with the supervisor, and the next warning of the child would be lost or end it. This one is open in the child
for reading too, so it never breaks; nobody waits at it (O_NONBLOCK): when nobody reads, the first 64 KiB stay for the next supervisor, and
what comes after that is dropped.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from isblk.errors import UsageError

LONGEST = 4096
"""Bytes of a line; a longer one is cut."""
_PREFIX = "isblk: "


def path_of(directory: Path, where: str) -> Path:
    """The pipe of the export at `where`."""
    return directory / f"words-{hashlib.sha256(where.encode()).hexdigest()[:24]}"


class Words:
    """The reading end. `last` is the last sentence that a command says about itself: why it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = ""
        self.closed = False
        self._rest = b""
        try:
            _make(path)
            self.descriptor = _open(path)
        except OSError as error:
            raise UsageError(f"the pipe {path} for what a child says cannot be made: {error.strerror}") from None

    def for_child(self) -> int:
        """A descriptor to be its standard error; the caller closes it."""
        self.last, self._rest = "", b""
        return _open(self.path)

    def read(self) -> list[str]:
        """The lines that are there, without waiting; without the command's own name in front."""
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                break
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest[:LONGEST])
            self._rest = b""
        found = []
        for line in lines:
            text = line[:LONGEST].decode(errors="replace").rstrip()
            if text.startswith(_PREFIX):
                text = self.last = text.removeprefix(_PREFIX)
            if text:
                found.append(text)
        return found

    def close(self, remove: bool = False) -> None:
        """With `remove` the name goes too: nobody will say anything there any more."""
        os.close(self.descriptor)
        self.closed = True
        if remove:
            self.path.unlink(missing_ok=True)


def _make(path: Path) -> None:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(path.lstat().st_mode):
            path.unlink()
            os.mkfifo(path, 0o600)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
