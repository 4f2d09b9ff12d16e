"""What a command that serves disks runs: when a signal cancels and when it asks for the end, and failures that nobody sees are kept."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import trio

from isblk.cli import service as cli
from isblk.cli.service import Service, detach, interruptible
from isblk.config import LoginOptions, Target
from isblk.control import failure_note
from isblk.detach import Outcome
from isblk.errors import Interrupted, IsblkError, RequestFailed, UsageError
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.sweeper import Timing

NAME = "iqn.2026-11.test.isblk:x"
OPTIONS = {"initiator_name": "iqn.2026-11.test.isblk:service", "trace": False, "pcap": None, "all_portals": False}


def served(tmp_path: Path, serve: cli.Serve) -> Service:
    (tmp_path / "run").mkdir()
    target = Target(NAME, (Portal("h", 3260), Portal("h", 3261)))
    return Service(target, tmp_path / "run", LoginOptions(), Timing(noop_interval=3), OPTIONS, serve)


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISBLK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ISBLK_RUN_DIR", str(tmp_path / "run"))


def test_it_serves_with_an_isid_for_each_portal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(gc, "freeze", lambda: seen.append("frozen"))

    async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        seen.extend((target, isids, access, stop.is_set()))
        started()

    assert served(tmp_path, serve)(lambda: seen.append("ready")) == 0
    target, isids, access, stopped, *then = seen
    assert then == ["frozen", "ready"]
    assert (target.name, len(set(isids)), access.time2wait, access.timing.noop_interval, stopped) == (NAME, 2, 0, 3, False)


@pytest.mark.parametrize("first", [True, False])
def test_only_a_failure_that_comes_after_it_was_ready_is_left_as_a_note(tmp_path: Path, first: bool) -> None:
    async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        if first:
            started()
        raise RequestFailed("written data may be lost")

    with pytest.raises(IsblkError, match="may be lost"):
        served(tmp_path, serve)(lambda: None)
    note = failure_note(tmp_path / "run", os.getpid())
    assert note.exists() is first and (not first or note.read_text() == "written data may be lost")


def test_the_command_ends_as_its_daemon_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        raise AssertionError("not in this process")

    service = served(tmp_path, serve)
    monkeypatch.setattr(cli, "run_detached", lambda work, log_file: Outcome(0, "what it says"))
    assert detach(service, None) == "what it says"
    monkeypatch.setattr(cli, "run_detached", lambda work, log_file: Outcome(5, "nobody is there"))
    with pytest.raises(SystemExit) as ended:
        detach(service, None)
    assert ended.value.code == 5 and capsys.readouterr().err == "isblk: nobody is there\n"
    assert click.get_current_context(silent=True) is None


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


def test_what_the_daemon_has_to_tell_is_asked_when_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        told.append("/dev/nbd7")
        started()

    class Report:
        def ready(self, message: str) -> None:
            told.append(f"ready: {message}")

    def run_detached(work: Callable[[Any], int], log_file: None) -> Outcome:
        work(Report())
        return Outcome(0)

    monkeypatch.setattr(cli, "run_detached", run_detached)
    detach(served(tmp_path, serve), None, lambda: told[0])
    assert told == ["/dev/nbd7", "ready: /dev/nbd7"]
