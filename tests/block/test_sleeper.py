"""When a target is logged in to and when it is logged out of again, in virtual time: waiting, giving up, idling, settling, refusing."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from isblk.block import sleeper
from isblk.block.attach import Attached, Where
from isblk.block.gate import Gate
from isblk.block.known import Known, described
from isblk.block.request import flush, read, write
from isblk.block.sleeper import TRANSITIONS, Hooks, Sleeper, State
from isblk.block.stack import Disk
from isblk.errors import IsblkError, LoginRefused, NotFound, RequestFailed, Unreachable
from isblk.link.keeper import BackOff
from support.memorydevice import MemoryDevice, broken
from support.waiting import eventually

MIB = 1 << 20
NAME = "iqn.2026-11.test.isblk:target"
pytestmark = pytest.mark.usefixtures("autojump_clock")


class Target:
    """A target with disks in memory. `error` is what a login says; each takes `delay` seconds."""

    def __init__(self, *devices: MemoryDevice) -> None:
        self.devices = dict(enumerate(devices or (MemoryDevice(),)))
        self.wwids = {number: f"naa.{number}" for number in self.devices}
        self.error: IsblkError | None = None
        self.delay = 0.1
        self.asked: list[Where] = []
        self.at: list[float] = []
        self.sessions = 0
        self.most = 0
        self.hastened: list[float] = []

    @asynccontextmanager
    async def attach(self, where: Where) -> AsyncIterator[Attached]:
        """As attach.attached."""
        self.asked.append(where)
        self.at.append(trio.current_time())
        await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        self.sessions += 1
        self.most = max(self.most, self.sessions)
        try:
            yield Attached(self.disks(where), cast(Any, SimpleNamespace(keepers=[], devices={})))
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
            self.sessions -= 1

    def disks(self, where: Where | None = None) -> list[Disk]:
        """What a login finds."""
        numbers = list(self.devices) if where is None or where.several else [where.lun or 0]
        return [Disk(n, described(n, wwid=self.wwids[n]), self.devices[n], Gate(self.devices[n])) for n in numbers]

    def known(self) -> list[Known]:
        """What is remembered of it."""
        return [Known.of(disk) for disk in self.disks()]


class Above:
    """What is above: notes what it is asked, and may let something happen."""

    def __init__(self) -> None:
        self.forgets = 0
        self.remembered: list[Sequence[Known]] = []
        self.meanwhile: Any = None

    async def forget(self) -> None:
        self.forgets += 1
        await trio.lowlevel.checkpoint()
        if self.meanwhile is not None:
            await self.meanwhile()

    async def remember(self, found: Sequence[Known]) -> None:
        await trio.lowlevel.checkpoint()
        self.remembered.append(found)


def asleep(target: Target, above: Above | None = None, *, seen: bool = True, several: bool = False, **settings: Any) -> Sleeper:
    above = above or Above()
    settings = {"idle": 10, "patience": 30, "back_off": BackOff(0.25, 4, 10, 0), **settings}
    known = target.known() if seen else []
    hooks = Hooks(above.forget, above.remember)
    nothing: Any = SimpleNamespace(keepers=[], devices={})
    return Sleeper(Where(NAME, (), (), None, several), target.attach, nothing, known=known, hooks=hooks, **settings)


@asynccontextmanager
async def running(one: Sleeper) -> AsyncIterator[Gate]:
    """At work for the length of the block; the gate of its first disk. What raises beside it is a group no more."""
    failure: IsblkError | None = None
    async with trio.open_nursery() as nursery:
        plane: Any = SimpleNamespace(start_soon=partial(nursery.start_soon, _beside))
        try:
            async with sleeper.running(plane, one):
                yield one.disks[0].gate
        except IsblkError as error:
            failure = error
    if failure is not None:
        raise failure


async def _beside(function: Any) -> None:
    try:
        await function()
    except AssertionError as error:
        logging.getLogger("plane").error("%s", error)


async def begins(one: Sleeper) -> None:
    """One that cannot begin."""
    async with running(one):
        pytest.fail("it must not get here")


async def test_nobody_is_asked_until_it_is_used_and_nobody_is_kept_when_it_is_not() -> None:
    target, above = Target(), Above()
    one = asleep(target, above)
    async with running(one) as gate:
        await trio.sleep(1000)
        assert gate.geometry.size == MIB and not target.asked and one.status()["state"] == "no session"
        for turn in range(3):
            await write(gate, 5, b"x" * (turn + 1))
            assert (target.sessions, one.status()["state"], one.logins) == (1, "logged in", turn + 1)
            await trio.sleep(9)
            assert await read(gate, 5, turn + 1) == b"x" * (turn + 1)
            await trio.sleep(9)
            assert target.sessions == 1, "it was used meanwhile"
            await trio.sleep(4)
            assert (target.sessions, one.status()["state"]) == (0, "no session")
            assert above.forgets == turn + 1
            assert target.devices[0].durable[5 : 6 + turn] == b"x" * (turn + 1)
    assert above.remembered == [], "what is known already is not written again"
    assert target.most == 1


async def test_it_ends_at_once_without_a_session_and_in_order_with_one() -> None:
    target = Target()
    async with running(asleep(target)):
        began = trio.current_time()
    assert trio.current_time() == began and not target.asked
    one = asleep(target)
    async with running(one) as gate:
        await read(gate, 0, 512)
        assert one.paths is not one.nothing
    assert target.sessions == 0 and one.paths is one.nothing
    with pytest.raises(RequestFailed, match="not served any more"):
        await read(gate, 0, 512)


async def test_never_means_never() -> None:
    target = Target()
    async with running(asleep(target, idle=0)) as gate:
        await read(gate, 0, 512)
        await trio.sleep(80000)
        assert target.sessions == 1


async def test_a_request_under_way_is_no_idleness() -> None:
    target = Target(MemoryDevice(delay=100))
    async with running(asleep(target)) as gate:
        await read(gate, 0, 512)
        assert target.sessions == 1 and trio.current_time() > 100
        await trio.sleep(13)
        assert target.sessions == 0


async def test_whoever_uses_the_session_itself_keeps_it() -> None:
    target = Target()
    one = asleep(target)
    async with running(one):
        async with one.devices[0].used() as below:
            assert below is target.devices[0]
            await trio.sleep(100)
            assert target.sessions == 1
        await trio.sleep(13)
        assert target.sessions == 0


# ------------------------------------------------------------------------------------------------------------ waiting, giving up


@pytest.mark.logs("nobody answers; the login is tried again when the disk is used$", "is logged in to")
async def test_requests_wait_for_a_target_that_comes_later() -> None:
    target = Target()
    target.error = Unreachable("nobody answers")
    one = asleep(target)
    async with running(one) as gate, trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(read, gate, 0, 512)
        await trio.sleep(20)
        assert one.status()["waiting"] == 1 and one.status()["state"] == "logging in" and "nobody answers" in one.status()["error"]
        pauses = [after - before for before, after in zip(target.at, target.at[1:], strict=False)]
        assert pauses[:5] == pytest.approx([0.35, 0.6, 1.1, 2.1, 4.1]), "the pause grows"
        target.error = None
        nursery.start_soon(read, gate, 512, 512)
        await trio.sleep(0.5)
        assert gate.in_flight == 0, "another request hurries it"
    assert trio.current_time() - began < 23 and one.error is None


@pytest.mark.logs("nobody answers", f"{NAME} cannot be logged in to; requests that failed for it: 2", "failed for it: 1", "is logged in to")
@pytest.mark.parametrize(("patience", "attempts"), [(30, 11), (0, 1)])
async def test_who_waits_in_vain_is_told_and_the_next_one_tries_again(patience: float, attempts: int) -> None:
    target = Target()
    target.error = Unreachable("nobody answers")
    one = asleep(target, patience=patience)
    failed: list[float] = []

    async def reading() -> None:
        with pytest.raises(RequestFailed, match=f"{NAME} cannot be logged in to: nobody answers") as caught:
            await read(gate, 0, 512)
        assert caught.value.errno == 5
        failed.append(trio.current_time() - began)

    async with running(one) as gate:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading)
            nursery.start_soon(reading)
        assert failed[0] == failed[1] == pytest.approx(max(patience, 0.1), abs=0.3)
        assert abs(len(target.asked) - attempts) <= 2 and one.state is State.ASLEEP
        await trio.sleep(1000)
        before = len(target.asked)
        began = trio.current_time()
        await reading()
        assert failed[2] == pytest.approx(failed[0], abs=0.3) and len(target.asked) > before
        target.error = None
        assert await read(gate, 0, 512)


@pytest.mark.logs("did not answer in time", "failed for it: 1")
async def test_the_end_bounds_a_login_that_is_waited_for() -> None:
    target = Target()
    target.delay = 1000
    one = asleep(target)
    async with running(one) as gate:

        async def reading() -> None:
            with pytest.raises(RequestFailed, match="cannot be logged in to"):
                await read(gate, 0, 512)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading)
            await trio.sleep(5)
            one.hasten(4)
            began = trio.current_time()
        assert trio.current_time() - began == pytest.approx(4)


async def test_the_end_hastens_the_sessions_that_are_there() -> None:
    target, hastened = Target(), []
    one = asleep(target)
    async with running(one) as gate:
        await read(gate, 0, 512)
        keeper = SimpleNamespace(connection=SimpleNamespace(hasten=lambda: hastened.append(True)))
        cast(Any, one.paths).keepers.append(keeper)
        one.hasten(4)
    assert hastened == [True]


# ---------------------------------------------------------------------------------------------------------------------- settling


@pytest.mark.logs("LUN 0 keeps its session, for it could not be flushed: the test wants this to fail")
async def test_a_flush_that_fails_keeps_the_session_and_is_told() -> None:
    memory = MemoryDevice()
    target = Target(memory)
    async with running(asleep(target)) as gate:
        await write(gate, 0, b"data")
        memory.fail_next = [broken()]
        await trio.sleep(14)
        assert target.sessions == 1 and not memory.fail_next
        with pytest.raises(RequestFailed):
            await flush(gate)
        await trio.sleep(14)
        assert target.sessions == 0 and memory.durable[:4] == b"data", "the next time it succeeds"


async def test_what_is_asked_while_it_settles_keeps_the_session() -> None:
    target, above = Target(), Above()
    async with running(asleep(target, above)) as gate:

        async def reading() -> None:
            await read(gate, 0, 512)
            above.meanwhile = None

        await read(gate, 0, 512)
        above.meanwhile = reading
        await trio.sleep(14)
        assert target.sessions == 1 and above.forgets == 1, "the page that was read may be in the cache now"
        await trio.sleep(10)
        assert target.sessions == 0 and above.forgets == 2


async def test_what_the_kernel_writes_when_it_forgets_is_flushed_too() -> None:
    target, above = Target(), Above()
    async with running(asleep(target, above)) as gate:

        async def writing() -> None:
            await write(gate, 0, b"laundered")
            above.meanwhile = None

        await read(gate, 0, 512)
        above.meanwhile = writing
        await trio.sleep(30)
        assert target.sessions == 0 and target.devices[0].durable[:9] == b"laundered"


async def test_what_is_asked_while_it_logs_out_waits_for_the_next_login() -> None:
    target, above = Target(), Above()
    one = asleep(target, above)
    async with running(one) as gate:
        await read(gate, 0, 512)
        await eventually(lambda: one.state is State.LEAVING)
        assert await read(gate, 0, 512)
        assert (one.logins, target.most) == (2, 1), "one after the other"


async def test_a_gate_that_is_being_closed_is_no_failed_flush() -> None:
    target, above = Target(), Above()
    one = asleep(target, above)
    async with running(one) as gate:

        async def closing() -> None:
            gate.close()

        await write(gate, 0, b"data")
        above.meanwhile = closing
        await trio.sleep(14)
        await flush(one.devices[0])
        assert target.devices[0].durable[:4] == b"data"


# --------------------------------------------------------------------------------------------------------------------- identity, size


@pytest.mark.logs("LUN 0 is another logical unit", "failed for it: 1", "is logged in to")
async def test_another_disk_is_refused_and_not_asked_for_by_each_request(caplog: pytest.LogCaptureFixture) -> None:
    target = Target()
    one = asleep(target)
    target.wwids[0] = "naa.another"
    target.devices[0].content[:7] = b"foreign"
    async with running(one) as gate:
        for _ in range(5):
            with pytest.raises(RequestFailed, match="LUN 0 is another logical unit") as caught:
                await write(gate, 0, b"ours")
            assert caught.value.errno == 5
        assert len(target.asked) == 1
        assert not target.devices[0].requests
        caplog.clear()
        await trio.sleep(3)
        with pytest.raises(RequestFailed):
            await write(gate, 0, b"ours")
        assert len(target.asked) == 2 and not [one for one in caplog.records if one.levelno > logging.INFO], "said a moment ago"
        await trio.sleep(3)
        assert target.sessions == 0
        target.wwids[0] = "naa.0"
        await write(gate, 0, b"ours")


@pytest.mark.logs("LUN 0 has grown from")
async def test_another_size_shows_and_is_remembered() -> None:
    target, above = Target(), Above()
    one = asleep(target, above)
    async with running(one) as gate:
        target.devices[0].resize(2 * MIB)
        await read(gate, 0, 512)
        assert gate.geometry.size == 2 * MIB
        target.devices[0].resize(3 * MIB)
        await trio.sleep(14)
        assert (target.sessions, gate.geometry.size) == (0, 3 * MIB)
    assert [[disk.geometry.size for disk in found] for found in above.remembered] == [[2 * MIB], [3 * MIB]]


async def test_the_number_that_was_seen_is_asked_for_even_when_it_is_the_only_one_no_more() -> None:
    target = Target(MemoryDevice(), MemoryDevice())
    one = asleep(target, seen=False)
    one.where = replace(one.where, lun=1)
    async with running(one) as gate:
        one.where = replace(one.where, lun=None)
        await trio.sleep(14)
        await read(gate, 0, 512)
        assert [where.lun for where in target.asked] == [1, 1]


# ------------------------------------------------------------------------------------------------------------------- never seen before


async def test_what_was_never_seen_is_looked_at_once() -> None:
    target, above = Target(), Above()
    async with running(asleep(target, above, seen=False)) as gate:
        assert gate.geometry.size == MIB and target.sessions == 1
        await trio.sleep(14)
        assert target.sessions == 0 and above.remembered == [target.known()]


@pytest.mark.logs("nobody answers; the login is tried again when the disk is used, and until then", "is logged in to")
async def test_what_was_never_seen_and_does_not_answer_is_tried_until_it_does() -> None:
    target, above = Target(), Above()
    target.error = Unreachable("nobody answers")
    one = asleep(target, above, seen=False)
    async with running(one) as gate:
        assert gate.geometry.size == 0 and not one.status()["seen"]
        await trio.sleep(20)
        assert 5 < len(target.asked) < 12, "without being asked, with a pause that grows"
        target.error = None
        await trio.sleep(5)
        assert gate.geometry.size == MIB and one.status()["seen"]
        await trio.sleep(20)
        assert target.sessions == 0


@pytest.mark.logs("nobody answers", "failed for it: 1", "is logged in to")
async def test_whoever_opens_what_was_never_seen_waits_for_it() -> None:
    target = Target()
    target.error = Unreachable("nobody answers")
    one = asleep(target, seen=False)
    async with running(one):
        began = trio.current_time()
        with pytest.raises(RequestFailed, match="nobody answers"):
            await one.devices[0].ready()
        assert trio.current_time() - began == pytest.approx(30, abs=0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.devices[0].ready)
            await trio.sleep(1)
            target.error = None
        assert one.is_known


@pytest.mark.logs("it says no|there is none")
@pytest.mark.parametrize("error", [LoginRefused("it says no"), NotFound("there is none")])
async def test_a_target_that_was_never_seen_and_says_no_is_believed(error: IsblkError) -> None:
    target = Target()
    target.error = error
    with pytest.raises(type(error)):
        await begins(asleep(target, seen=False))
    assert target.sessions == 0


# ---------------------------------------------------------------------------------------------------------------------------- several


@pytest.mark.logs("nobody answers")
async def test_a_directory_that_was_never_seen_cannot_be_shown() -> None:
    target = Target(MemoryDevice(), MemoryDevice())
    target.error = Unreachable("nobody answers")
    with pytest.raises(Unreachable, match="nobody answers; what is in the directory is not known"):
        await begins(asleep(target, seen=False, several=True))
    target.error = None
    one = asleep(target, seen=False, several=True)
    async with running(one):
        assert [disk.number for disk in one.disks] == [0, 1]


@pytest.mark.logs("has no disk any more at LUN 1", "LUN 2 is another logical unit")
async def test_what_is_wrong_with_one_disk_is_no_matter_of_the_others() -> None:
    target = Target(MemoryDevice(), MemoryDevice(), MemoryDevice())
    one = asleep(target, several=True)
    del target.devices[1]
    target.wwids[2] = "naa.another"
    async with running(one) as gate:
        assert await read(gate, 0, 512)
        for disk, why in zip(one.disks[1:], ("no disk any more", "another logical unit"), strict=True):
            with pytest.raises(RequestFailed, match=why):
                await read(disk.gate, 0, 512)
        await trio.sleep(14)
        assert target.sessions == 0
        target.devices[1], target.wwids[2] = MemoryDevice(), "naa.2"
        for disk in one.disks:
            await read(disk.gate, 0, 512)


@pytest.mark.logs("has no disk any more at LUN 0", "failed for it: 1")
async def test_when_all_disks_are_gone_it_is_tried_again_with_one_session_at_a_time() -> None:
    target = Target(MemoryDevice())
    one = asleep(target, several=True)
    target.devices = {7: MemoryDevice()}
    target.wwids[7] = "naa.7"
    async with running(one) as gate:
        with pytest.raises(RequestFailed, match="no disk any more"):
            await read(gate, 0, 512)
        await trio.sleep(1)
        assert (target.sessions, target.most) == (0, 1)


def test_every_state_is_entered_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(TRANSITIONS.values()) == set(State)
    assert {event for _, event in TRANSITIONS} == set(sleeper.Event)


@pytest.mark.logs("plane: a bug")
async def test_a_failure_inside_leaves_nobody_waiting() -> None:
    target, above = Target(), Above()

    async def fail() -> None:
        raise AssertionError("a bug")

    async with running(asleep(target, above)) as gate:
        await read(gate, 0, 512)
        above.meanwhile = fail
        await trio.sleep(100)
        assert target.sessions == 0
        with pytest.raises(RequestFailed, match="not served any more"):
            await read(gate, 0, 512)
