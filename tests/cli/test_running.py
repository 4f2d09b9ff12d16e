"""Running a command: errors as one sentence with the exit code, signals, what is logged."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
import trio

from isblk.cli.running import errors_as_sentences, fail, run, trace_pdu
from isblk.errors import ExitCode, IsblkError, LoginRefused, NotFound, RequestFailed, Unreachable, UsageError
from isblk.logs.output import to_stderr
from support.logs import restored_logging


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError, 2), (NotFound, 3), (LoginRefused, 4), (Unreachable, 5), (RequestFailed, 6), (IsblkError, 6)]
)
def test_each_failure_ends_in_one_sentence_with_its_code(error: type[IsblkError], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        raise error("the thing is so; do that")

    with pytest.raises(SystemExit) as exit_of:
        run(main)
    assert exit_of.value.code == code
    assert capsys.readouterr() == ("", "isblk: the thing is so; do that\n")


def test_a_bug_shows_its_trace_and_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of, errors_as_sentences():
        raise ZeroDivisionError
    assert exit_of.value.code == ExitCode.BUG
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and said.endswith("isblk: this is a bug in isblk; please report it with the lines above\n")


def test_a_bug_in_a_coroutine_too(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as exit_of:
        run(main)
    assert exit_of.value.code == ExitCode.BUG
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_what_was_open_is_closed(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    async def main() -> None:
        try:
            await trio.lowlevel.checkpoint()
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            closed.append(True)

    with pytest.raises(SystemExit) as exit_of:
        run(main)
    assert exit_of.value.code == ExitCode.INTERRUPTED and closed
    assert capsys.readouterr().err == f"isblk: interrupted by {number.name}\n"


def test_a_signal_is_how_a_server_ends() -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    run(main, until_signal=True)


def test_a_keyboard_interrupt_outside_trio(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of, errors_as_sentences():
        raise KeyboardInterrupt
    assert exit_of.value.code == 130
    assert capsys.readouterr().err == "isblk: interrupted\n"


def test_fail_never_returns() -> None:
    with pytest.raises(SystemExit) as exit_of:
        fail("no", 6)
    assert exit_of.value.code == 6


def test_a_pdu_is_a_line_of_its_own_logger(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr(logging.WARNING)
    trace_pdu("->", "NOP-Out")
    assert capsys.readouterr().err == ""
    to_stderr(logging.WARNING, trace=True)
    trace_pdu("->", "NOP-Out")
    assert capsys.readouterr().err == "isblk: -> NOP-Out\n"
