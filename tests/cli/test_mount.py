"""`isblk mount`: its options, and what a signal does before and after the file is there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import Result

from isblk.cli.mount import _mount_options, interruptible
from isblk.errors import Interrupted, UsageError

Run = Callable[..., Result]


def test_mount_options_as_mount_takes_them() -> None:
    assert _mount_options(()) == set()
    assert _mount_options(("ro,allow_other", "ro")) == {"ro", "allow_other"}
    assert _mount_options(("rw,",)) == {"rw"}


@pytest.mark.parametrize(("words", "why"), [(("rp",), "unknown mount option 'rp'"), (("ro", "rw"), "contradict each other")])
def test_mount_options_that_cannot_be(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        _mount_options(words)


def test_usage_is_checked_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    run("mount", "-p", "127.0.0.1", "iqn.2026-11.test.isblk:x", tmp_path / "disk", "-o", "what", code=2)
    run("mount", "not-a-name", tmp_path / "disk", code=2)
    assert not (tmp_path / "disk").exists()


async def test_a_signal_before_the_file_is_there_cancels() -> None:
    async def main(_started: Callable[[], None]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    stop = trio.Event()
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        await interruptible(stop, lambda: None, main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_after_that_asks_for_the_end_and_waits_for_it(number: int) -> None:
    stop, seen = trio.Event(), []

    async def main(started: Callable[[], None]) -> None:
        started()
        os.kill(os.getpid(), number)
        await stop.wait()
        seen.append("stop")
        os.kill(os.getpid(), number)  # an impatient second one changes nothing
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        seen.append("written back")

    await interruptible(stop, lambda: seen.append("ready"), main)
    assert seen == ["ready", "stop", "written back"]


async def test_an_error_comes_out_as_itself() -> None:
    async def main(_started: Callable[[], None]) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        await interruptible(trio.Event(), lambda: None, main)


async def test_the_end_without_a_signal() -> None:
    async def main(started: Callable[[], None]) -> None:
        started()

    await interruptible(trio.Event(), lambda: None, main)
