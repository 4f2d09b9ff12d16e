"""The end that every daemon has: written back whatever ended the block, bounded when no path comes, and told what may be lost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk import control
from isblk.block.attach import Attached, Where, attached
from isblk.block.events import Events
from isblk.block.policies import Policies
from isblk.block.request import read, write
from isblk.ending import PATIENCE_SECONDS, controlled, write_back, written_back
from isblk.errors import RequestFailed, RequestInvalid, UsageError
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from support.targets import RunningTarget, disk, running_target

DATA = bytes(range(256)) * 4


@asynccontextmanager
async def attachment(target: RunningTarget) -> AsyncIterator[tuple[Plane, Attached]]:
    isid = Isid.from_random(3)
    where = Where(target.name, (Portal.parse(target.portal),), (isid,))
    async with running_plane() as plane, attached(plane, where, Access("iqn.2026-11.test.isblk:ending", isid), Policies()) as found:
        yield plane, found


@pytest.mark.parametrize("failing", [False, True])
async def test_a_block_is_written_back_however_it_ends(failing: bool, tmp_path: Path) -> None:
    image, stop = tmp_path / "image", trio.Event()
    async with running_target([disk(0, path=str(image))]) as target:
        async with attachment(target) as (plane, found):
            try:
                async with written_back(plane, found, stop):
                    await write(found.disks[0].gate, 0, DATA)
                    if failing:
                        raise UsageError("the front end does not want to")
            except UsageError:
                assert failing
            assert stop.is_set()
            with pytest.raises(RequestInvalid, match="takes no more requests"):
                await read(found.disks[0].gate, 0, 512)
        target.server.crash_cache()
        assert image.read_bytes()[: len(DATA)] == DATA


@pytest.mark.logs("path .* is down")
async def test_the_end_waits_a_while_for_a_path_and_names_what_is_lost() -> None:
    gone = trio.Event()

    async def serve(task_status: trio.TaskStatus[RunningTarget]) -> None:
        async with running_target([disk(5)]) as target:
            task_status.started(target)
            await gone.wait()

    async with trio.open_nursery() as nursery:
        target: RunningTarget = await nursery.start(serve)
        async with attachment(target) as (plane, found):
            began = trio.current_time()
            with pytest.raises(RequestFailed, match=r"may be lost: .* LUN 5 \("):
                await lose(plane, found, gone)
            assert trio.current_time() - began < PATIENCE_SECONDS + 5


async def lose(plane: Plane, found: Attached, gone: trio.Event) -> None:
    async with written_back(plane, found, trio.Event()):
        await write(found.disks[0].gate, 0, DATA)
        gone.set()
        while found.disks[0].device.live:  # type: ignore[attr-defined]
            await trio.lowlevel.checkpoint()


async def test_nothing_written_is_nothing_lost() -> None:
    async with running_target() as target, attachment(target) as (_, found):
        await read(found.disks[0].gate, 0, 512)
        await write_back(found.disks)


# ------------------------------------------------------------------------------------------------------------------ the control socket


async def test_a_block_answers_and_is_asked_to_stop(tmp_path: Path) -> None:
    stop = trio.Event()
    async with controlled(tmp_path, lambda: {"kind": "test"}, stop):
        (daemon,) = await trio.to_thread.run_sync(control.daemons, tmp_path)
        assert (await trio.to_thread.run_sync(control.ask, daemon.path, "status"))["kind"] == "test"
        assert not stop.is_set()
        await trio.to_thread.run_sync(control.ask, daemon.path, "stop")
        await stop.wait()
    assert os.listdir(tmp_path) == []


async def test_a_daemon_may_know_more_requests(tmp_path: Path) -> None:
    async with controlled(tmp_path, dict, trio.Event(), {"echo": lambda message: {"said": message["word"]}}):
        path = control.socket_path(tmp_path)
        answer = await trio.to_thread.run_sync(partial(control.ask, path, "echo", word="hello"))
        assert answer["said"] == "hello"
        with pytest.raises(UsageError, match="there are status, stop, log, echo, and events"):
            await trio.to_thread.run_sync(control.ask, path, "no")


@pytest.mark.parametrize("grouped", [False, True])
async def test_its_error_comes_out_as_itself(tmp_path: Path, grouped: bool) -> None:
    error: Any = UsageError("it cannot be")
    with pytest.raises(UsageError, match=r"^it cannot be$"):
        async with controlled(tmp_path, dict, trio.Event()):
            raise ExceptionGroup("of a nursery", [ExceptionGroup("of another", [error])]) if grouped else error
    assert os.listdir(tmp_path) == []


async def test_a_control_socket_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="control socket"):
        async with controlled(tmp_path / "absent", dict, trio.Event()):
            raise AssertionError("the block must not begin")


async def test_events_tell_of_the_beginning_and_the_end_and_whose_they_are(tmp_path: Path) -> None:
    stop, events = trio.Event(), Events()
    status = {"kind": "mount", "where": "/mnt/disk", "target": "iqn.x", "devices": []}
    async with controlled(tmp_path, lambda: status, stop, events=events):
        path = control.socket_path(tmp_path)
        answer = await trio.to_thread.run_sync(lambda: control.ask(path, "events"))
        assert [event["kind"] for event in answer["events"]] == ["started"]
        assert (answer["kind"], answer["where"], answer["target"], "devices" in answer) == ("mount", "/mnt/disk", "iqn.x", False)
        stop.set()
        with trio.fail_after(5):
            while events.last < 2:
                await trio.lowlevel.checkpoint()
    assert [event["kind"] for event in events.after(0, 9)[0]] == ["started", "stopping"]
