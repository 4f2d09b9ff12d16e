"""The last lines of a process, kept within bounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from isblk.logs import recent
from isblk.logs.recent import LINES, LONGEST, Recent
from support.logs import restored_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_logging():
        yield


def test_nothing_is_remembered_unless_it_was_set_up() -> None:
    logging.getLogger().handlers.clear()
    assert recent.lines() == []


def test_the_last_lines_are_kept_the_oldest_first_and_none_is_too_long() -> None:
    root = logging.getLogger()
    root.handlers[:] = [Recent()]
    root.setLevel(logging.DEBUG)
    log = logging.getLogger("isblk.some.module")
    log.debug("not worth it")
    for number in range(LINES + 5):
        log.info("line %d", number)
    log.info("x" * 2 * LONGEST)
    kept = recent.lines()
    assert len(kept) == LINES and kept[0] == "line 6" and kept[-1] == "x" * LONGEST
