"""The paths of a target: what a new session must be before it is used, who is asked when, and what units announce."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.block import pathset
from isblk.block.choose import PathState
from isblk.block.multipath import Multipath
from isblk.block.path import Path
from isblk.block.pathset import PathSet, WrongUnit
from isblk.block.policies import Policies
from isblk.block.probe import Description, probe
from isblk.block.request import Op, Request
from isblk.errors import IsblkError, PathLost, Unreachable
from isblk.iscsi.names import Portal
from isblk.iscsi.task import Task
from isblk.link.keeper import Phase
from isblk.scsi.data import AccessState
from isblk.scsi.sense import Attention
from support.fakelink import Answer, FakeDisk, FakeLink, attention

LUN = bytes(8)
NAA = bytes([0x01, 0x03, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7])


def identified(naa: bytes = NAA, blocks: int = 2048) -> FakeDisk:
    disk = FakeDisk(blocks)
    disk.pages[0x83] = naa
    return disk


class Session(FakeLink):
    """A connection to disks in memory."""

    def __init__(self, disk: FakeDisk) -> None:
        super().__init__(disk)
        self.may_reset = False
        self.pings = 0
        self.left: list[str] = []
        self.scripted: list[Answer] = []  # for the next commands of this session alone
        self.dead = False

    def answer(self, index: int = 0, scripted: Answer | None = None) -> Task:
        return super().answer(index, scripted or (self.scripted.pop(0) if self.scripted else None))

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()
        self.pings += 1
        if self.dead:
            raise PathLost("silent")

    def leave(self, why: str, seconds: float) -> None:
        self.left.append(why)


class Slot(SimpleNamespace):
    """A keeper; each is its own key."""

    __hash__ = object.__hash__


class Rig:
    """A PathSet with keepers that a test moves."""

    def __init__(self, nursery: trio.Nursery, count: int = 2, **policies: Any) -> None:
        self.paths = PathSet(cast(Any, SimpleNamespace(start_soon=nursery.start_soon)), Policies(**policies))
        self.hurries = 0
        for number in range(count):
            keeper = Slot(
                portal=Portal(f"192.0.2.{number}", 3260), portal_group=1, phase=Phase.DOWN, connection=None, reason="", hurry=self._hurry
            )
            self.paths.add_keeper(cast(Any, keeper))

    def _hurry(self) -> None:
        self.hurries += 1

    async def device(self, disk: FakeDisk) -> Multipath:
        return self.paths.add_device(await probe(FakeLink(disk), LUN))

    def keeper(self, number: int) -> Any:
        return self.paths.keepers[number]

    def path(self, number: int) -> Path:
        return self.paths.devices[LUN].paths[number]

    async def up(self, number: int, disk: FakeDisk) -> Session:
        session = Session(disk)
        keeper = self.keeper(number)
        keeper.connection = session
        await self.paths.prepare(keeper, cast(Any, session))
        keeper.phase = Phase.UP
        self.paths.up(keeper, cast(Any, session))
        return session

    def down(self, number: int, error: IsblkError | None = None) -> None:
        keeper = self.keeper(number)
        keeper.phase, keeper.connection = Phase.DOWN, None
        self.paths.down(keeper, error or PathLost("cut"))


async def test_two_sessions_to_one_unit_are_two_paths(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        first, second = await rig.up(0, disk), await rig.up(1, disk)
        assert [path.state for path in device.live] == [PathState.UP] * 2
        assert first.may_reset and second.may_reset, "nobody has registered a key"
        assert rig.paths.siblings(rig.keeper(0)) == [Portal("192.0.2.1", 3260)]
        rig.keeper(1).portal_group = 2
        assert rig.paths.siblings(rig.keeper(0)) == []
        rig.keeper(0).portal_group = rig.keeper(1).portal_group = None
        assert rig.paths.siblings(rig.keeper(0)) == [], "unknown groups are not the same group"


def other_unit() -> FakeDisk:
    return identified(NAA[:-1] + b"\xff")


def other_serial() -> FakeDisk:
    disk = identified()
    disk.pages[0x80] = b"SERIAL02"
    return disk


def other_blocks() -> FakeDisk:
    disk = FakeDisk(256, 4096)
    disk.pages[0x83] = NAA
    return disk


def no_disk() -> FakeDisk:
    disk = identified()
    disk.device_type = 0x0C
    return disk


@pytest.mark.parametrize("make", [other_unit, other_serial, other_blocks, no_disk, lambda: identified(blocks=1024)])
async def test_another_unit_is_refused_and_never_touched(autojump_clock: object, make: Any) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        wrong = make()
        before = bytes(wrong.content)
        session = Session(wrong)
        with pytest.raises(WrongUnit):
            await rig.paths.prepare(rig.keeper(1), cast(Any, session))
        assert len(device.live) == 1 and not {0x28, 0x88, 0x2A, 0x8A} & set(session.opcodes) and bytes(wrong.content) == before


async def test_without_an_identifier_there_are_no_two_paths() -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), FakeDisk()
        await rig.device(disk)
        with pytest.raises(WrongUnit, match="use one portal"):
            await rig.paths.prepare(rig.keeper(0), cast(Any, Session(disk)))


async def test_without_an_identifier_one_path_is_well() -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery, 1), FakeDisk()
        await rig.device(disk)
        await rig.up(0, disk)


@pytest.mark.logs("has grown from")
async def test_a_unit_that_grew_while_the_path_was_away(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        disk.blocks = 4096
        await rig.up(1, disk)
        assert device.geometry.size == 4096 * 512 and len(device.live) == 2


@pytest.mark.logs("has shrunk from")
async def test_a_poll_notices_a_shrink(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery, 1, poll_interval=10), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        nursery.start_soon(rig.paths.tick)
        disk.blocks = 1024
        await trio.sleep(11)
        assert device.geometry.size == 1024 * 512
        nursery.cancel_scope.cancel()


def acknowledge(device: Multipath) -> None:
    """One write that is not flushed."""
    request = Request(Op.WRITE, 0, 512, memoryview(bytes(512)))
    device.submit(request)
    device.kick()
    assert request.finished and request.error is None and len(device.journal) == 1


@pytest.mark.logs("path .* is (up|down)", "written again")
async def test_a_session_that_died_unnoticed_counts_as_lost(autojump_clock: object) -> None:
    """The target has restarted: the path that comes back first must not be read before the journal is done again."""
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        unnoticed = await rig.up(1, disk)
        acknowledge(device)
        rig.down(0)
        disk.content[:] = disk.durable
        unnoticed.dead = True
        rig.paths.reinstated(rig.keeper(0))
        session = await rig.up(0, disk)
        assert unnoticed.pings == 1 and [path.number for path in device.live] == [0]
        assert device.fence.replay_needed and rig.path(0).state is PathState.FENCING
        await trio.sleep(1)
        assert not device.fence.active and session.opcodes[-2:] == [0x2A, 0x35]


@pytest.mark.logs("path .* is (up|down)")
async def test_a_session_that_lived_through_is_enough(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        alive = await rig.up(1, disk)
        acknowledge(device)
        rig.down(0)
        await rig.up(0, disk)
        assert alive.pings == 1 and not device.fence.active and len(device.live) == 2


@pytest.mark.logs("path .* is (up|down)", "29/01", "written again")
async def test_a_unit_that_lost_power_behind_a_session_that_lived_through_is_asked(autojump_clock: object) -> None:
    """The idle session would have announced it with its next command, which may be long after the other was believed."""
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        alive = await rig.up(1, disk)
        acknowledge(device)
        rig.down(0)
        disk.content[:] = disk.durable
        rig.paths.reinstated(rig.keeper(0))
        alive.scripted = [attention(0x29, 0x01)]
        await rig.up(0, disk)
        await trio.sleep(1)
        assert device.power_ons == 1 and not device.fence.active and len(device.live) == 2
        assert disk.durable == disk.content and len(device.journal) == 0


async def test_a_path_that_is_left(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery, 1), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        rig.paths.leaving(rig.keeper(0))
        assert device.live == [] and rig.hurries > 0
        assert rig.path(0).ended < rig.path(0).session, "it may still do things"
        rig.paths.reinstated(rig.keeper(0))
        assert rig.path(0).ended == rig.path(0).session


async def test_the_access_state_is_read_once_at_a_time_until_the_path_carries(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        await rig.up(0, disk)
        answers = [AccessState.STANDBY, AccessState.TRANSITIONING, AccessState.OPTIMIZED]
        asked: list[float] = []

        async def access(connection: object, found: Description) -> tuple[AccessState, bool]:
            await trio.lowlevel.checkpoint()
            asked.append(trio.current_time())
            return (answers.pop(0) if answers else AccessState.OPTIMIZED), False

        monkeypatch.setattr(rig.paths, "_access", access)
        for _ in range(100):
            rig.paths.spawn_access(device, rig.path(0))
        await wait_all_tasks_blocked()
        assert len(asked) == 1 and rig.path(0).state is PathState.STANDBY
        await trio.sleep(30)
        assert rig.path(0).state is PathState.UP and len(asked) == 3 and rig.paths._asked == {}


async def test_what_units_announce(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        disk.write_cache = False
        device = await rig.device(disk)
        session = await rig.up(0, disk)
        told: list[str] = []
        monkeypatch.setattr(rig.paths, "spawn_refresh", lambda device: told.append("size"))
        monkeypatch.setattr(rig.paths, "spawn_access", lambda device, path: told.append("access"))
        unit = rig.path(0).unit
        assert unit is not None and unit.on_attention is not None and not device.geometry.write_cache
        for kind in Attention:
            unit.on_attention(kind)
        assert sorted(told) == ["access", "size"] and len(session.left) == 2
        assert device.geometry.write_cache, "a mode that may have changed is believed to be the worse one"


def test_times() -> None:
    assert pathset.TICK_SECONDS < pathset.TRANSITION_SECONDS <= pathset.STANDBY_SECONDS


@pytest.mark.logs("path .* is down", "path .* is up", "has grown")
async def test_what_happens_to_sessions_paths_and_sizes_is_told(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, disk = Rig(nursery), identified()
        device = await rig.device(disk)
        session = await rig.up(0, disk)
        rig.down(0, PathLost("logged out", sent=False))
        session = await rig.up(0, disk)
        disk.blocks *= 2
        await rig.paths.refresh(device)
        rig.down(0)
        keeper = rig.keeper(0)
        rig.paths.refused(keeper, Unreachable("it cannot be reached"))
        keeper.phase = Phase.WRONG
        rig.paths.refused(keeper, WrongUnit("it is another unit"))
        nursery.cancel_scope.cancel()
    events = rig.paths.events.after(0, 99)[0]
    assert [event["kind"] for event in events] == [
        *("login", "path-up", "logout", "path-down", "no-path"),
        *("login", "path-up", "resized", "session-lost", "path-down", "no-path", "login-failed", "wrong-unit"),
    ]
    assert {event.get("path") for event in events if event["kind"] not in ("no-path", "resized")} == {"192.0.2.0:3260"}
    (resized,) = [event for event in events if event["kind"] == "resized"]
    assert (resized["lun"], resized["after"]) == (0, 2 * resized["before"])
    assert [event["error"] for event in events[-2:]] == ["unreachable", "not-found"]
    assert session.left == []


async def test_time_goes_by_for_the_gates_too(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        ticks: list[float] = []
        rig.paths.gates.append(cast(Any, SimpleNamespace(tick=lambda: ticks.append(trio.current_time()))))
        nursery.start_soon(rig.paths.tick)
        await trio.sleep(1.1)
        nursery.cancel_scope.cancel()
    assert len(ticks) == 4


async def test_policies_are_those_of_every_device_that_is_there_or_comes(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, fence_wait=7)
        device = await rig.device(identified())
        new = Policies(shared=True, fence_wait=7)
        rig.paths.follow(new)
        assert rig.paths.policies is device.policies is new
        nursery.cancel_scope.cancel()
