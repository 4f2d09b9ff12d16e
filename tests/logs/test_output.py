"""Where a log goes, and in which shape: levels, standard error, files, the journal, syslog; what is remembered of it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from isblk.errors import UsageError
from isblk.logs import journald, output, recent
from isblk.logs.output import OneLine, level_of, remember, tell, to_daemon_log, to_stderr
from isblk.logs.storm import Calm
from support.logs import restored_logging

LOG = logging.getLogger("isblk.some.module")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The log as it was, the ear of conftest.py kept out, and neither journal nor syslog where they are."""
    monkeypatch.setattr(journald, "SOCKET", tmp_path / "no-journal")
    monkeypatch.setattr(journald.JournalHandler.__init__, "__defaults__", (tmp_path / "no-journal",))
    monkeypatch.setattr(output, "SYSLOG", tmp_path / "no-syslog")
    monkeypatch.setattr(output, "_fields", {})
    with restored_logging():
        yield


def say_all() -> None:
    for level in ("error", "warning", "info", "debug"):
        getattr(LOG, level)("%s", level)


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        ({}, logging.WARNING),
        ({"verbose": 1}, logging.INFO),
        ({"verbose": 2}, logging.DEBUG),
        ({"verbose": 5}, logging.DEBUG),
        ({"quiet": True}, logging.ERROR),
        ({"word": "info"}, logging.INFO),
        ({"word": "debug", "quiet": True}, logging.ERROR),
        ({"word": "error", "verbose": 1}, logging.INFO),
    ],
)
def test_the_level(arguments: dict[str, object], level: int) -> None:
    assert level_of(**arguments) == level  # type: ignore[arg-type]


def test_verbose_and_quiet_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="-v and -q"):
        level_of(1, True)


@pytest.mark.parametrize(("level", "shown"), [("error", 1), ("warning", 2), ("info", 3), ("debug", 4)])
def test_standard_error_gets_words(level: str, shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr(output.LEVELS[level])
    say_all()
    assert capsys.readouterr().err.splitlines() == [f"isblk: {text}" for text in ("error", "warning", "info", "debug")[:shown]]


def test_an_event_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr(logging.INFO)
    LOG.info("a name with\nisblk: a second line\x1b[31m in it")
    try:
        raise ZeroDivisionError("so")
    except ZeroDivisionError:
        LOG.exception("a bug")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "isblk: a name with | isblk: a second line\\x1b[31m in it"
    assert second.startswith("isblk: a bug | Traceback") and second.endswith("ZeroDivisionError: so")


def test_a_terminal_shows_a_traceback_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    to_stderr(logging.INFO)
    try:
        raise ZeroDivisionError("so")
    except ZeroDivisionError:
        LOG.exception("a bug")
    assert len(capsys.readouterr().err.splitlines()) > 2


def test_a_file_has_date_process_level_and_logger(tmp_path: Path) -> None:
    to_stderr(logging.INFO)
    to_daemon_log(tmp_path / "log")
    say_all()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3, "the level stays that of the command"
    assert f"isblk[{os.getpid()}] WARNING isblk.some.module: warning" in lines[1]


def test_a_file_that_logrotate_moves_is_made_anew(tmp_path: Path) -> None:
    to_daemon_log(tmp_path / "log")
    LOG.error("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    LOG.error("after")
    assert "before" in (tmp_path / "log.1").read_text() and "after" in (tmp_path / "log").read_text()


def test_a_storm_does_not_fill_the_file(tmp_path: Path) -> None:
    to_daemon_log(tmp_path / "log")
    for number in range(5000):
        LOG.warning("request %d failed", number)
    for handler in logging.getLogger().handlers[:]:
        handler.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 11 and "and 4989 more like it in 10 s" in lines[-1]


def test_without_a_file_journal_or_syslog_there_is_no_log_but_it_is_remembered() -> None:
    to_stderr(logging.WARNING)
    to_daemon_log(None)
    (calm,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, Calm)]
    assert isinstance(calm.inner, logging.NullHandler)
    say_all()
    assert [line.rpartition(": ")[2] for line in recent.lines()] == ["error", "warning", "info"]


def test_what_is_remembered_is_no_louder_on_standard_error_and_has_no_pdus(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr(logging.ERROR, trace=True)
    remember()
    remember()
    say_all()
    logging.getLogger("isblk.trace").info("-> NOP-Out")
    assert capsys.readouterr().err.splitlines() == ["isblk: error", "isblk: -> NOP-Out"]
    assert len(recent.lines()) == 3


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "journal"
    monkeypatch.setattr(journald.JournalHandler.__init__, "__defaults__", (path,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(os.fspath(path))
        found.settimeout(5)
        yield found


def test_a_daemon_logs_to_the_journal_where_there_is_one(journal: socket.socket) -> None:
    tell(target="iqn.2001-05.com.example:disks")
    to_daemon_log(None)
    LOG.warning("so")
    told = journal.recv(65536).splitlines()
    assert b"MESSAGE=so" in told and b"ISBLK_TARGET=iqn.2001-05.com.example:disks" in told


def test_a_unit_whose_standard_error_is_the_journal_speaks_to_it(journal: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journald, "hears", lambda: True)
    to_stderr(logging.INFO)
    LOG.info("so")
    assert b"PRIORITY=6" in journal.recv(65536).splitlines()


def test_where_the_socket_of_the_journal_is_out_of_reach_priorities_go_before_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journald, "hears", lambda: True)
    to_stderr(logging.INFO)
    say_all()
    assert capsys.readouterr().err.splitlines() == ["<3>error", "<4>warning", "<6>info"]


def test_a_daemon_logs_to_syslog_where_there_is_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SYSLOG", tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(os.fspath(tmp_path / "log"))
        syslog.settimeout(5)
        to_daemon_log(None)
        LOG.warning("so")
        assert syslog.recv(65536).startswith(f"<28>isblk[{os.getpid()}]: WARNING isblk.some.module: so".encode())
        for handler in logging.getLogger().handlers[:]:
            handler.close()


def test_a_line_has_no_newline_at_its_end() -> None:
    assert OneLine("%(message)s").format(logging.makeLogRecord({"msg": "text\n"})) == "text"
