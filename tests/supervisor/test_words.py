"""The pipe that a child speaks into: it outlives whoever reads it, and nobody waits at it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from isblk.errors import UsageError
from isblk.supervisor.words import LONGEST, Words, path_of


def test_lines_are_read_whole_and_the_last_sentence_is_kept(tmp_path: Path) -> None:
    words = Words(path_of(tmp_path, "/srv/lun0"))
    child = words.for_child()
    os.write(child, b"isblk: one\nTraceback: two\nisblk: thr")
    assert words.read() == ["one", "Traceback: two"]
    os.write(child, b"ee\n\n")
    assert words.read() == ["three"]
    assert (words.read(), words.last) == ([], "three")
    os.close(words.for_child())
    assert words.last == ""
    os.close(child)
    words.close()


def test_it_outlives_its_reader_and_goes_on_with_the_next(tmp_path: Path) -> None:
    words = Words(tmp_path / "words")
    child = words.for_child()
    words.close()
    os.write(child, b"isblk: nobody listens\n")
    after = Words(tmp_path / "words")
    assert after.read() == ["nobody listens"]
    os.close(child)
    after.close(remove=True)
    assert not list(tmp_path.iterdir())


def fill(descriptor: int) -> None:
    while True:
        os.write(descriptor, b"x" * 4096)


def test_a_child_that_nobody_listens_to_does_not_wait(tmp_path: Path) -> None:
    words = Words(tmp_path / "words")
    child = words.for_child()
    with pytest.raises(BlockingIOError):
        fill(child)
    assert [len(line) for line in words.read()] == [LONGEST]
    os.close(child)
    words.close()


def test_bytes_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    words = Words(tmp_path / "words")
    child = words.for_child()
    os.write(child, b"isblk: \xff\n")
    assert words.read() == ["\ufffd"]
    os.close(child)
    words.close()


def test_the_pipe_is_the_users_own_and_what_is_in_its_way_is_replaced(tmp_path: Path) -> None:
    path = path_of(tmp_path, "/srv/lun0")
    path.write_text("rubbish")
    words = Words(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    words.close()
    assert path_of(tmp_path, "/srv/lun1") != path


def test_without_a_place_for_it_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the pipe .* cannot be made: No such file or directory"):
        Words(tmp_path / "absent" / "words")
