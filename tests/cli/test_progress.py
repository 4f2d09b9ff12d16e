"""The bar: what a terminal is shown, and that nothing else is shown anything."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from isblk.cli.progress import CLEAR, progress
from support.waiting import until


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard error is a terminal for the length of a block; yields its other end, which does not block."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with open(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        yield ours
    os.close(ours)


def read(other_end: int) -> str:
    """What a terminal shows, until the bar has gone: what is written there arrives a little later."""
    shown = bytearray()

    def has_gone() -> bool:
        with suppress(BlockingIOError):
            shown.extend(os.read(other_end, 65536))
        return shown.endswith(CLEAR.encode())

    until(has_gone, "the bar to go")
    return shown.decode()


def test_a_terminal_sees_a_bar_that_grows_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as other_end:
        with progress("reading") as update:
            update(0.5, "312 MB/s")
            update(0.6, "not so soon")
            update(2.0, "what there is")
        shown = read(other_end)
    assert "reading" in shown and "############------------" in shown and "312 MB/s" in shown
    assert "not so soon" not in shown
    assert "#" * 24 in shown and "what there is" in shown


def test_the_bar_goes_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as other_end:
        with pytest.raises(ZeroDivisionError), progress("reading"):
            raise ZeroDivisionError
        assert "reading" in read(other_end)


def test_what_is_not_for_people_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as other_end:
        with progress("reading", shown=False) as update:
            update(0.5, "so")
        with pytest.raises(BlockingIOError):
            os.read(other_end, 1)


def test_a_pipe_sees_none(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading") as update:
        update(0.5, "so")
    assert capsys.readouterr() == ("", "")
