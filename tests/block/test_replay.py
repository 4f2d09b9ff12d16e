"""Doing the journal again with sessions in memory, and a unit that loses power while its session lives."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from isblk.block.replay import POWER_ONS, TOGETHER, replay
from isblk.block.request import Op, Request
from isblk.errors import RequestFailed
from support.fakepaths import Rig, aborted, unusable


def journalled(nursery: trio.Nursery, **settings: Any) -> Rig:
    """Two writes that are acknowledged and not flushed, and a path that is down; the device would do them again."""
    rig = Rig(nursery, count=1, **settings)
    rig.up(0).hold = False
    rig.write(1, 1)
    rig.write(1, 2)
    rig.unit(0).hold = True
    return rig


def in_order(rig: Rig) -> list[tuple[str, int]]:
    return [(op, block) for _, op, block in rig.sent()[2:]]


@pytest.mark.logs("2 unflushed writes were written again")
async def test_everything_once_more_in_order_and_then_a_flush(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        rig.store.crash()
        rig.unit(0).hold = False
        assert await replay(rig.device, rig.device.paths[0]) == (True, [])
        assert in_order(rig) == [("WRITE", 1), ("WRITE", 1), ("FLUSH", 0)]
        assert len(rig.device.journal) == 0 and rig.store.durable[512] == 2


@pytest.mark.logs("written again")
async def test_what_does_not_overlap_goes_together(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0).hold = False
        for block, count in ((1, 2), (4, 1), (2, 1), (3, 1), (2, 3)):
            rig.submit(Op.WRITE, block, 7, count)
        rig.unit(0).hold = True
        nursery.start_soon(replay, rig.device, rig.device.paths[0])
        for together in ([1, 4], [2, 3], [2], [0]):
            await trio.sleep(0.1)
            assert [command.request.offset // 512 for command in rig.unit(0).pending] == together
            rig.unit(0).answer_all()
        await trio.sleep(0.1)
        assert len(rig.device.journal) == 0


@pytest.mark.logs(r"path .* is down")
async def test_of_several_errors_a_lost_path_weighs_most(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0).hold = False
        for block in range(TOGETHER + 1):
            rig.write(block, 7)
        unit = rig.unit(0)
        unit.hold = True
        ended: list[Any] = []

        async def replaying() -> None:
            ended.extend(await replay(rig.device, rig.device.paths[0]))

        nursery.start_soon(replaying)
        await trio.sleep(0.1)
        assert len(unit.pending) == TOGETHER
        unit.answer(0, aborted())
        rig.cut(0, sent=3)
        await trio.sleep(0.1)
        settled, left = ended
        assert not settled and [request.offset // 512 for request in left] == [1, 2, 3]
        rig.device.fence.replay_needed = False


@pytest.mark.logs(r"path .* is down")
async def test_what_is_left_on_a_lost_path_is_told(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        found: list[Request] = []

        async def replaying() -> None:
            settled, left = await replay(rig.device, rig.device.paths[0])
            assert not settled
            found.extend(left)

        nursery.start_soon(replaying)
        await trio.sleep(0.1)
        rig.cut(0)
        await trio.sleep(0.1)
        assert [(request.op.name, request.offset) for request in found] == [("WRITE", 512)]
        assert len(rig.device.journal) == 2
        rig.device.fence.replay_needed = False


@pytest.mark.parametrize("error", [aborted(), unusable()])
async def test_what_only_the_path_refuses_is_not_settled(autojump_clock: object, error: Exception) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        rig.unit(0).fail_next = [error]
        assert await replay(rig.device, rig.device.paths[0]) == (False, [])
        assert len(rig.device.journal) == 2


@pytest.mark.logs("2 acknowledged writes are lost")
async def test_what_the_unit_refuses_is_lost_and_the_next_flush_says_so(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        rig.unit(0).fail_next = [RequestFailed("medium error")]
        assert await replay(rig.device, rig.device.paths[0]) == (True, [])
        assert "medium error" in str(rig.flush().error)


@pytest.mark.logs("written again")
async def test_a_power_on_in_the_middle_begins_it_anew(autojump_clock: object) -> None:
    """What was done again before it is gone as well."""
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        nursery.start_soon(replay, rig.device, rig.device.paths[0])
        for turn in range(6):
            await trio.sleep(0.1)
            if turn == 2:  # between the second write and the flush
                rig.store.crash()
                rig.device.power_ons += 1
            rig.unit(0).answer()
        await trio.sleep(0.1)
        assert in_order(rig) == [("WRITE", 1), ("WRITE", 1), ("FLUSH", 0)] * 2
        assert len(rig.device.journal) == 0 and rig.store.durable[512] == 2


@pytest.mark.logs("are lost: .*again and again")
async def test_a_unit_that_never_stops_powering_on_is_a_loss_that_is_told(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        settled: list[bool] = []

        async def replaying() -> None:
            settled.append((await replay(rig.device, rig.device.paths[0])).settled)

        nursery.start_soon(replaying)
        for _ in range(3 * POWER_ONS):
            await trio.sleep(0.1)
            rig.device.power_ons += 1
            rig.unit(0).answer()
        await trio.sleep(0.1)
        assert settled == [True] and rig.device.cache_losses == 1


@pytest.mark.logs("written again")
async def test_a_power_on_of_a_living_session_does_again_what_its_cache_lost(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = journalled(nursery)
        held, flushing = rig.write(2, 3), rig.flush()
        rig.store.crash()
        rig.device.powered_on()
        await trio.sleep(0.1)
        assert len(rig.unit(0).pending) == 2 and not rig.read(3).finished, "what was on its way may have been done before it: awaited"
        rig.unit(0).answer()
        rig.unit(0).answer(error=aborted())  # as the unit ends a flush that a power-on has overtaken
        assert held.finished and not flushing.finished
        for _ in range(5):
            await trio.sleep(0.1)
            rig.unit(0).answer_all()
        assert (rig.store.durable[512], rig.store.durable[1024]) == (2, 3)
        assert flushing.finished and flushing.error is None and rig.device.cache_losses == 0


async def test_a_power_on_with_nothing_unflushed_is_no_event(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0)
        rig.device.powered_on()
        assert not rig.device.fence.active and not rig.device.stuck
