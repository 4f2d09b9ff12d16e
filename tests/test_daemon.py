"""One mount from login to logout with the front end replaced: what is shown, the order of the end, and what may go wrong at each step."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk import control, daemon
from isblk.block.choose import NoPathRetry
from isblk.block.policies import Policies
from isblk.block.request import Device, read, write
from isblk.config import Target
from isblk.daemon import MountSpec, mount
from isblk.errors import IsblkError, LoginRefused, NotFound, RequestFailed, Unreachable, UsageError
from isblk.export import mountpoint as mountpoints
from isblk.export.files import ROOT, Volume
from isblk.export.fuseoptions import Counters, Engine, MountOptions
from isblk.export.mountpoint import Mountpoint
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.plane import Plane
from isblk.link.sweeper import Timing
from isblk.target.config import LunConfig, PortalConfig
from support import schema
from support.targets import MIB, RunningTarget, disk, running_target

INITIATOR = "iqn.2026-11.test.isblk:initiator"
DATA = bytes(range(256)) * 4


class FrontEnd:
    """Stands in for an engine's serve: runs until it is unmounted or told to stop, and lets the test use the devices."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.options: MountOptions | None = None
        self.unmounted = trio.Event()
        self.refusal: IsblkError | None = None

    async def serve(
        self,
        plane: Plane,
        volume: Volume,
        mountpoint: Mountpoint,
        options: MountOptions,
        counters: Counters | None = None,
        stop: trio.Event | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.volume, self.options = volume, options
        task_status.started()
        async with trio.open_nursery() as nursery:
            for event in (stop, self.unmounted):
                assert event is not None
                nursery.start_soon(self._until, event, nursery.cancel_scope)

    async def _until(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    @property
    def devices(self) -> list[Device]:
        assert self.volume is not None
        return list(self.volume.devices.values())


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    front = FrontEnd()
    monkeypatch.setattr(daemon, "_engine", lambda _engine: front.serve)
    monkeypatch.setattr(mountpoints, "check_machine", lambda allow_other: None)
    return front


def spec(target: RunningTarget, place: Path, lun: int | None = None, **settings: Any) -> MountSpec:
    run = place.parent / "run"
    run.mkdir(exist_ok=True)
    in_url = settings.pop("in_url", None)
    portals = tuple(Portal.parse(portal) for portal in target.portals)
    isids = tuple(Isid.from_random(1, number) for number in range(len(portals)))
    return MountSpec(Target(target.name, portals, in_url), lun, str(place), run, isids=isids, **settings)


ACCESS = Access(INITIATOR, Isid.from_random(1), timing=Timing(login_timeout=5))


@asynccontextmanager
async def mounted(wanted: MountSpec, access: Access = ACCESS) -> AsyncIterator[trio.Event]:
    """A mount that is there, for the length of a block; setting the event ends it."""
    stop, started = trio.Event(), trio.Event()
    failure: IsblkError | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await mount(wanted, access, stop, started.set)
        except IsblkError as error:
            failure = error
        started.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await started.wait()
        if failure is None:
            yield stop
    if failure is not None:
        raise failure


async def fails(wanted: MountSpec, kind: type[IsblkError], match: str, target: RunningTarget, access: Access = ACCESS) -> None:
    """A mount that must not get as far as being there, and must leave nothing."""
    before = set(Path(wanted.mountpoint).parent.iterdir())
    with pytest.raises(kind, match=match) as caught:
        await mount(wanted, access, trio.Event(), lambda: pytest.fail("it was reported as being there"))
    assert "\n" not in str(caught.value)
    assert set(Path(wanted.mountpoint).parent.iterdir()) == before, "neither a mountpoint nor anything else is left"
    assert list(wanted.run_directory.iterdir()) == []
    await left_alone(target)


async def left_alone(target: RunningTarget) -> None:
    with trio.fail_after(10):
        while target.sessions:
            await trio.lowlevel.checkpoint()


# --------------------------------------------------------------------------------------------------------------------- what is shown


async def test_one_disk_is_a_file(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target([disk(3)]) as target:
        async with mounted(spec(target, tmp_path / "disk")) as stop:
            assert front_end.volume is not None and not front_end.volume.is_directory
            assert front_end.options == MountOptions(f"{target.name}/3")
            assert [device.geometry.size for device in front_end.devices] == [16 * MIB]
            assert (tmp_path / "disk").is_file()
            stop.set()
        await left_alone(target)
        assert not (tmp_path / "disk").exists()


@pytest.mark.logs("LUN 0 is no disk.*it is left out")
async def test_a_directory_shows_every_disk(front_end: FrontEnd, tmp_path: Path) -> None:
    (tmp_path / "luns").mkdir()
    async with running_target([disk(0, device_type=0x0C), disk(1), disk(7, size=MIB)]) as target:
        async with mounted(spec(target, tmp_path / "luns", read_only=True, allow_other=True)) as stop:
            assert front_end.volume is not None and front_end.volume.is_directory and front_end.volume.read_only
            assert [name for name, _, _ in front_end.volume.entries(0)] == [b"lun1", b"lun7"]
            assert front_end.options == MountOptions(target.name, read_only=True, allow_other=True)
            stop.set()
        assert (tmp_path / "luns").is_dir(), "a directory that was there stays"


@pytest.mark.parametrize(("lun", "in_url", "size"), [(1, None, 1), (None, 2, 2), (1, 2, 1)])
async def test_a_lun_is_chosen_by_option_before_url(
    lun: int | None, in_url: int | None, size: int, front_end: FrontEnd, tmp_path: Path
) -> None:
    luns = [disk(1, size=MIB), disk(2, size=2 * MIB)]
    async with running_target(luns) as target, mounted(spec(target, tmp_path / "disk", lun, in_url=in_url)) as stop:
        assert [device.geometry.size for device in front_end.devices] == [size * MIB]
        stop.set()


async def test_its_status_is_answered_over_the_control_socket(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target:
        wanted = spec(target, tmp_path / "disk")
        async with mounted(wanted) as stop:
            await write(front_end.devices[0], 0, DATA)
            (found,) = await trio.to_thread.run_sync(control.daemons, wanted.run_directory)
            answer = await trio.to_thread.run_sync(control.ask, found.path, "status")
            stop.set()
    schema.check(answer)
    assert (answer["pid"], answer["kind"], answer["where"], answer["target"]) == (os.getpid(), "mount", str(tmp_path / "disk"), target.name)
    assert (answer["engine"], answer["caching"]) == ("direct", "write-through")
    assert (answer["read_only"], len(answer["sessions"]), len(answer["devices"])) == (False, 1, 1)
    assert answer["devices"][0]["counters"]["write_bytes"] == len(DATA)
    assert answer["sessions"][0]["portal"] == target.portal
    assert not found.path.exists()


# ----------------------------------------------------------------------------------------------------------------------------- the end


async def unmount(front_end: FrontEnd, wanted: MountSpec, stop: trio.Event) -> None:
    front_end.unmounted.set()


async def stop_event(front_end: FrontEnd, wanted: MountSpec, stop: trio.Event) -> None:
    stop.set()


async def ask_to_stop(front_end: FrontEnd, wanted: MountSpec, stop: trio.Event) -> None:
    await trio.to_thread.run_sync(control.ask, control.socket_path(wanted.run_directory), "stop")


@pytest.mark.parametrize("end", [unmount, stop_event, ask_to_stop])
async def test_every_end_writes_back_and_logs_out(
    end: Callable[[FrontEnd, MountSpec, trio.Event], Awaitable[None]], front_end: FrontEnd, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    async with running_target([disk(0, path=str(image))]) as target:
        wanted = spec(target, tmp_path / "disk")
        async with mounted(wanted) as stop:
            await write(front_end.devices[0], 0, DATA)
            assert image.read_bytes()[: len(DATA)] == bytes(len(DATA)), "the target's cache is volatile"
            await end(front_end, wanted, stop)
        await left_alone(target)
        target.server.crash_cache()
        assert image.read_bytes()[: len(DATA)] == DATA
        assert not (tmp_path / "disk").exists() and list(wanted.run_directory.iterdir()) == []


async def test_a_cancelled_mount_writes_back_and_logs_out(front_end: FrontEnd, tmp_path: Path) -> None:
    image = tmp_path / "image"
    async with running_target([disk(0, path=str(image))]) as target:
        with trio.CancelScope() as scope:
            async with mounted(spec(target, tmp_path / "disk")):
                await write(front_end.devices[0], 0, DATA)
                scope.cancel()
        assert scope.cancelled_caught
        await left_alone(target)
        target.server.crash_cache()
        assert image.read_bytes()[: len(DATA)] == DATA
        assert not (tmp_path / "disk").exists()


async def test_what_is_in_flight_ends_before_the_cache_is_synchronized(front_end: FrontEnd, tmp_path: Path) -> None:
    order: list[str] = []
    async with running_target() as target, mounted(spec(target, tmp_path / "disk")) as stop, trio.open_nursery() as nursery:
        target.node.hold = lambda lun, cdb: cdb[0] in (0x2A, 0x8A)

        async def late() -> None:
            await write(front_end.devices[0], 0, DATA)
            order.append("written")

        nursery.start_soon(late)
        while not target.node.held:
            await trio.lowlevel.checkpoint()
        target.node.trace = lambda direction, text: order.append(" ".join(text.split()[:2])) if direction == "<" else None
        stop.set()
        await trio.testing.wait_all_tasks_blocked()
        assert order == [], "neither synchronized nor logged out while a write is under way"
        target.node.hold = None
        target.node.release()
    assert order[0] == "written" and [text.split()[0] for text in order[1:]] == ["SCSI", "Logout"]


async def serve_until(gone: trio.Event, luns: list[LunConfig], task_status: trio.TaskStatus[RunningTarget]) -> None:
    """A target that goes away for good when it is told to, whatever is logged in."""
    async with running_target(luns) as target:
        task_status.started(target)
        await gone.wait()


@pytest.mark.logs("path .* is down: .*0 of 1 paths left")
async def test_data_that_could_not_be_written_back_is_named(front_end: FrontEnd, tmp_path: Path) -> None:
    gone = trio.Event()

    async def write_and_lose_the_target(nursery: trio.Nursery) -> None:
        target: RunningTarget = await nursery.start(serve_until, gone, [disk(5)])
        async with mounted(spec(target, tmp_path / "disk")) as stop:
            await write(front_end.devices[0], 0, DATA)
            gone.set()
            stop.set()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(10), pytest.raises(RequestFailed, match=r"written data may be lost: .*LUN 5 \(") as caught:
            await write_and_lose_the_target(nursery)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "disk").exists()


@pytest.mark.logs("path .* is down: .*0 of 1 paths left")
async def test_a_target_that_is_gone_when_nothing_is_to_be_written_back_is_no_loss(front_end: FrontEnd, tmp_path: Path) -> None:
    gone = trio.Event()
    async with trio.open_nursery() as nursery:
        target: RunningTarget = await nursery.start(serve_until, gone, [disk()])
        wanted = spec(target, tmp_path / "disk")
        async with mounted(wanted) as stop:
            await read(front_end.devices[0], 0, 512)
            gone.set()
            while (await paths_of(wanted)) != ["down"]:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(set_soon, stop)
            with pytest.raises(RequestFailed, match="no path"):
                await read(front_end.devices[0], 0, 512)


async def set_soon(event: trio.Event) -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    event.set()


@pytest.mark.logs("path .* is down", "path .* is up", "were written again, since the target may have lost its cache")
async def test_a_target_that_lost_power_gets_what_it_lost_again(front_end: FrontEnd, tmp_path: Path) -> None:
    image = tmp_path / "image"
    async with running_target([disk(0, path=str(image))]) as target:
        async with mounted(spec(target, tmp_path / "disk")) as stop:
            await write(front_end.devices[0], 0, DATA)
            target.server.crash_cache()
            assert image.read_bytes()[: len(DATA)] == bytes(len(DATA))
            buffer = await read(front_end.devices[0], 0, len(DATA))
            assert bytes(buffer) == DATA
            stop.set()
        await left_alone(target)
        target.server.crash_cache()
        assert image.read_bytes()[: len(DATA)] == DATA


@pytest.mark.logs("path .* is down", "path .* is up")
async def test_a_dropped_session_comes_back_and_nobody_notices(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target, mounted(spec(target, tmp_path / "disk")) as stop:
        await read(front_end.devices[0], 0, 512)
        target.server.drop_all()
        await read(front_end.devices[0], 0, 512)
        stop.set()


async def paths_of(wanted: MountSpec) -> list[str]:
    """The states of the paths of the only device, as the control socket tells them."""
    answer = await trio.to_thread.run_sync(control.ask, control.socket_path(wanted.run_directory), "status")
    return [path["state"] for path in answer["devices"][0]["paths"]]


@pytest.mark.logs("path .* is down: .*1 of 2 paths left")
async def test_the_other_path_carries_on(front_end: FrontEnd, tmp_path: Path) -> None:
    two = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))
    async with running_target(portals=two) as target:
        wanted = spec(target, tmp_path / "disk")
        async with mounted(wanted) as stop:
            while (await paths_of(wanted)) != ["up", "up"]:
                await trio.lowlevel.checkpoint()
            await write(front_end.devices[0], 0, DATA)
            (first,) = [one for one in target.server.connections if one.session is not None and one.session.nexus.tpgt == 1]
            first.drop("cut")
            assert bytes(await read(front_end.devices[0], 0, len(DATA))) == DATA
            stop.set()
        await left_alone(target)


# --------------------------------------------------------------------------------------------------------------- what goes wrong before


async def test_several_disks_and_a_file(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target([disk(1), disk(4)]) as target:
        await fails(spec(target, tmp_path / "disk"), UsageError, r"several disks \(LUN 1, 4\)", target)


async def test_a_lun_that_is_not_there(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target:
        await fails(spec(target, tmp_path / "disk", 9), NotFound, "LUN 9", target)


async def test_a_target_that_is_not_there(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target:
        there = spec(target, tmp_path / "disk")
        other = replace(there, target=replace(there.target, name=target.name + "2"))
        with pytest.raises(NotFound, match="no such target"):
            await mount(other, ACCESS, trio.Event(), lambda: None)
        assert not (tmp_path / "disk").exists()


async def test_a_mountpoint_without_its_directory(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target:
        wanted = replace(spec(target, tmp_path / "disk"), mountpoint=str(tmp_path / "no" / "disk"))
        with pytest.raises(UsageError, match="make that directory first"):
            await mount(wanted, ACCESS, trio.Event(), lambda: None)
        await left_alone(target)


async def test_a_directory_and_one_disk(front_end: FrontEnd, tmp_path: Path) -> None:
    (tmp_path / "luns").mkdir()
    async with running_target([disk(1), disk(4)]) as target, mounted(spec(target, tmp_path / "luns", 4)) as stop:
        assert front_end.volume is not None
        assert [name for name, _, _ in front_end.volume.entries(0)] == [b"lun4"], "one disk chosen is the one shown"
        stop.set()


async def test_a_front_end_that_refuses(front_end: FrontEnd, tmp_path: Path) -> None:
    front_end.refusal = UsageError("the kernel does not want this")
    async with running_target() as target:
        await fails(spec(target, tmp_path / "disk"), UsageError, "^the kernel does not want this$", target)


async def test_a_control_socket_that_cannot_be_made(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target:
        wanted = replace(spec(target, tmp_path / "disk"), run_directory=tmp_path / "absent")
        with pytest.raises(UsageError, match="control socket"):
            await mount(wanted, ACCESS, trio.Event(), lambda: None)
        assert not (tmp_path / "disk").exists()
        await left_alone(target)


async def test_a_login_that_is_refused(front_end: FrontEnd, tmp_path: Path) -> None:
    from isblk.iscsi.chap import Credentials

    async with running_target(credentials=Credentials("me", b"a secret of twenty two")) as target:
        await fails(spec(target, tmp_path / "disk"), LoginRefused, "wants authentication", target)


def test_an_engine_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    for name in ("isblk.export.fuse", "isblk.export.operations"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("isblk.export.fuse", raising=False)
    with pytest.raises(UsageError, match=r"pip install .isblk\[pyfuse3\]."):
        daemon._engine(Engine.PYFUSE3)
    assert callable(daemon._engine(Engine.DIRECT)), "which does without"


async def test_a_disk_is_labelled_and_tells_its_holes(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target([disk(3)]) as target, mounted(spec(target, tmp_path / "disk")) as stop:
        assert front_end.volume is not None
        details = front_end.volume.details(ROOT)
        labels = details.labels()
        assert (labels["target"], labels["lun"], labels["paths"]) == (target.name, "3", f"{target.portal} up")
        assert labels["wwid"].startswith("naa.")
        assert details.lba_status is not None
        (extent,) = await details.lba_status(0, MIB)
        assert (extent.offset, extent.length, extent.provisioning) == (0, MIB, 1)
        stop.set()


# ------------------------------------------------------------------------------------------------------------------------- automount


async def status_of(wanted: MountSpec) -> dict[str, Any]:
    return await trio.to_thread.run_sync(control.ask, control.socket_path(wanted.run_directory), "status")


async def test_every_mount_remembers_and_an_automount_needs_no_more_to_begin(front_end: FrontEnd, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running_target([disk(3)]) as target:
        async with mounted(spec(target, tmp_path / "disk", state_directory=state)) as stop:
            stop.set()
        await left_alone(target)
        wanted = spec(target, tmp_path / "disk", state_directory=state, automount=300)
        async with mounted(wanted) as stop:
            assert front_end.options == MountOptions(f"{target.name}/3") and target.sessions == 0
            assert front_end.devices[0].geometry.size == 16 * MIB
            answer = await status_of(wanted)
            schema.check(answer)
            assert (answer["automount"]["state"], answer["sessions"], answer["devices"][0]["paths"]) == ("no session", [], [])
            assert answer["devices"][0]["wwid"] and answer["devices"][0]["block_size"] == 512
            await write(front_end.devices[0], 1, DATA)
            answer = await status_of(wanted)
            assert (answer["automount"]["state"], len(answer["sessions"]), target.sessions) == ("logged in", 1, 1)
            assert [path["state"] for path in answer["devices"][0]["paths"]] == ["up"]
            stop.set()
        await left_alone(target)
        assert target.unit(3).store.durable(1, len(DATA)) == DATA


async def test_an_automount_ends_without_ever_having_asked(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target() as target, mounted(spec(target, tmp_path / "disk", state_directory=tmp_path / "state")) as stop:
        stop.set()
    with trio.fail_after(2):
        async with mounted(spec(target, tmp_path / "disk", state_directory=tmp_path / "state", automount=300)) as stop:
            stop.set()
    assert not (tmp_path / "disk").exists()


async def test_an_automount_forgets_pages_and_shows_what_it_is_when_it_idles(front_end: FrontEnd, tmp_path: Path) -> None:
    forgotten: list[int] = []

    async def forget() -> None:
        await trio.lowlevel.checkpoint()
        forgotten.append(target.sessions)

    async with running_target([disk(0, thin=True)]) as target:
        async with mounted(spec(target, tmp_path / "disk", automount=0.1)) as stop:
            volume = front_end.volume
            assert volume is not None and target.sessions == 1, "nothing is remembered without a place for it"
            volume.forget_pages = forget
            await left_alone(target)
            assert forgotten == [1], "while it was still logged in"
            details = volume.details(ROOT)
            assert details.labels() == {"target": target.name, "lun": "0", "wwid": details.labels()["wwid"]}
            assert details.lba_status is not None
            assert [extent.length for extent in await details.lba_status(0, 16 * MIB)] == [16 * MIB], "a question logs in too"
            assert "paths" in details.labels()
            stop.set()
        await left_alone(target)


@pytest.mark.logs("cannot be reached")
async def test_an_automount_of_what_was_never_seen_shows_no_lun(front_end: FrontEnd, tmp_path: Path) -> None:
    async with running_target([disk(3)]) as target:
        wanted = spec(target, tmp_path / "disk", automount=300, policies=Policies(no_path=NoPathRetry(0)))
    async with mounted(wanted) as stop:
        assert front_end.options == MountOptions(target.name) and front_end.devices[0].geometry.size == 0
        stop.set()
    with pytest.raises(Unreachable, match="what is in the directory is not known"):
        await mount(replace(wanted, mountpoint=str(tmp_path)), ACCESS, trio.Event(), lambda: pytest.fail("it is not there"))
