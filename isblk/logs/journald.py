"""The journal of systemd, by its native protocol: one datagram an event, with fields to search for (systemd.journal-fields(7)).

    journalctl -t isblk ISBLK_TARGET=iqn.2001-05.com.example:disks -p warning

systemd-python needs a compiler and systemd's headers where isblk is installed, for what are forty lines here; the protocol is documented
and frozen (systemd.io/JOURNAL_NATIVE_PROTOCOL). Messages are kept short enough for a datagram, so no memory file is ever handed over.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
STREAM_VARIABLE = "JOURNAL_STREAM"
"""Device and inode of what systemd connected the standard output and error of a unit to (systemd.exec(5))."""
IDENTIFIER = "isblk"
LONGEST_VALUE = 32768
"""Bytes of a field: several of these still fit a datagram (net.core.wmem_default)."""
FIELDS = ("target", "where", "portal", "lun")
"""Attributes of a record, given by `extra`, that become fields ISBLK_TARGET and so on."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def hears(descriptor: int = 2, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to this descriptor goes to the journal."""
    device, _, inode = environment.get(STREAM_VARIABLE, "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


class JournalHandler(logging.Handler):
    """Sends records to the journal. Raises OSError where there is none; when it has gone later, what is logged is lost."""

    def __init__(self, fields: Mapping[str, object], path: Path = SOCKET) -> None:
        super().__init__()
        self._fields = fields
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(self._path)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)  # a journal that has stopped must not stop the I/O

    def emit(self, record: logging.LogRecord) -> None:
        """One event; connects again when the journal was restarted."""
        try:
            self._send(encode(self._described(record)))
        except OSError:
            return
        except Exception:
            self.handleError(record)

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            raise
        except OSError:
            self._socket.connect(self._path)
            self._socket.send(datagram)

    def close(self) -> None:
        """Harmless when it is closed."""
        with suppress(OSError):
            self._socket.close()
        super().close()

    def _described(self, record: logging.LogRecord) -> dict[str, object]:
        described: dict[str, object] = {
            "MESSAGE": self.format(record),
            "PRIORITY": priority(record.levelno),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "ISBLK_LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }
        for name in FIELDS:
            value = getattr(record, name, self._fields.get(name))
            if value is not None:
                described[f"ISBLK_{name.upper()}"] = value
        return described


def encode(fields: Mapping[str, object]) -> bytes:
    """A datagram: NAME=value for values of one line, else the name, the value's length and the value."""
    pieces = []
    for name, value in fields.items():
        data = str(value).encode(errors="backslashreplace")[:LONGEST_VALUE]
        if b"\n" in data:
            pieces.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            pieces.append(name.encode() + b"=" + data + b"\n")
    return b"".join(pieces)
