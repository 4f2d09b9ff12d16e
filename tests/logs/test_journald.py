"""The native protocol of the journal, against a socket that plays the journal: fields, priorities, a journal that goes and comes back."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from isblk.logs.journald import LONGEST_VALUE, JournalHandler, encode, hears, priority


def decode(datagram: bytes) -> dict[str, str]:
    """The fields of a datagram, read as the journal reads it."""
    fields = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", datagram)
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


class Journal:
    """A socket where the journal would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(os.fspath(self.path))
        self.socket.settimeout(5)

    def restart(self) -> None:
        self.socket.close()
        self.path.unlink()
        self.open()

    def read(self) -> dict[str, str]:
        return decode(self.socket.recv(1 << 20))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "socket")
    yield found
    found.socket.close()


def record(text: str, *args: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    return logging.getLogger("isblk.block.x").makeRecord("isblk.block.x", level, "/x.py", 7, text, args, None, "lose", extra)


def test_an_event_has_its_fields(journal: Journal) -> None:
    handler = JournalHandler({"target": "iqn.2001-05.com.example:disks", "where": "/mnt/x"}, journal.path)
    handler.handle(record("path %s is down", "10.0.0.5:3260", portal="10.0.0.5:3260", lun="3"))
    handler.close()
    assert journal.read() == {
        "MESSAGE": "path 10.0.0.5:3260 is down",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "isblk",
        "ISBLK_LOGGER": "isblk.block.x",
        "ISBLK_TARGET": "iqn.2001-05.com.example:disks",
        "ISBLK_WHERE": "/mnt/x",
        "ISBLK_PORTAL": "10.0.0.5:3260",
        "ISBLK_LUN": "3",
        "CODE_FILE": "/x.py",
        "CODE_LINE": "7",
        "CODE_FUNC": "lose",
    }


def test_what_is_not_known_is_no_field(journal: Journal) -> None:
    handler = JournalHandler({}, journal.path)
    handler.handle(record("so"))
    handler.close()
    assert not [name for name in journal.read() if name in ("ISBLK_TARGET", "ISBLK_WHERE", "ISBLK_PORTAL", "ISBLK_LUN")]


def test_values_of_several_lines_and_forged_fields_stay_one_value(journal: Journal) -> None:
    handler = JournalHandler({}, journal.path)
    handler.handle(record("first\nPRIORITY=0\nlast"))
    handler.close()
    told = journal.read()
    assert told["MESSAGE"] == "first\nPRIORITY=0\nlast" and told["PRIORITY"] == "4"


def test_a_value_is_cut_to_what_a_datagram_holds() -> None:
    assert decode(encode({"MESSAGE": "x" * 10**6}))["MESSAGE"] == "x" * LONGEST_VALUE
    assert decode(encode({"A": "\udc80", "B": 3})) == {"A": "\\udc80", "B": "3"}


@pytest.mark.parametrize(
    ("level", "number"), [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)]
)
def test_priorities_are_those_of_syslog(level: int, number: int) -> None:
    assert priority(level) == number


def test_a_journal_that_was_restarted_is_found_again_and_one_that_is_gone_harms_nobody(journal: Journal) -> None:
    handler = JournalHandler({}, journal.path)
    journal.restart()
    handler.handle(record("after"))
    assert journal.read()["MESSAGE"] == "after"
    journal.socket.close()
    handler.handle(record("lost"))
    journal.restart()
    handler.handle(record("there again"))
    assert journal.read()["MESSAGE"] == "there again"
    handler.close()


def test_a_journal_that_does_not_read_holds_nobody_up(journal: Journal) -> None:
    handler = JournalHandler({}, journal.path)
    for _ in range(2000):
        handler.handle(record("x" * 1000))
    handler.close()


def test_without_a_journal_there_is_no_handler(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        JournalHandler({}, tmp_path / "none")


def test_the_journal_hears_what_systemd_says_it_does(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as file:
        found = os.fstat(file.fileno())
        assert hears(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not hears(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not hears(file.fileno(), {})
        assert not hears(file.fileno(), {"JOURNAL_STREAM": "rubbish"})
    assert not hears(file_number_of_none(), {"JOURNAL_STREAM": "1:2"})


def file_number_of_none() -> int:
    """A descriptor that is not open."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor
