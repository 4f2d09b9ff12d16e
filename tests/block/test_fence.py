"""The fence with sessions in memory: nothing that was sent is repeated before it is certain not to land, and nothing waits for ever."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.block.fence import is_alone
from isblk.block.policies import FencePolicy
from isblk.block.request import Op
from isblk.errors import PathLost, RequestFailed
from support.fakepaths import FakeUnit, Rig, Store, aborted, unusable

failing_over = pytest.mark.logs(r"path .* is (up|down)")


async def settled() -> None:
    await wait_all_tasks_blocked()


@failing_over
async def test_a_write_that_was_sent_waits_for_reinstatement_and_reset(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        old = rig.write(1, 7)
        rig.cut(0)
        await trio.sleep(3)
        assert (rig.sent("WRITE"), old.finished, rig.store.resets) == ([(0, "WRITE", 1)], False, 0)
        rig.reinstate(0)
        await trio.sleep(0.1)
        assert (rig.store.resets, rig.sent("WRITE")) == (1, [(0, "WRITE", 1), (1, "WRITE", 1)])
        assert rig.store.stuck == [] and not old.finished
        rig.unit(1).answer_all()
        assert old.finished and old.error is None and rig.store.block(1) == 7
        assert not rig.device.fence.active and rig.device.fence.fences == 1


@failing_over
async def test_what_overlaps_waits_and_what_does_not_goes_on_at_once(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        rig.submit(Op.WRITE, 4, 1, count=4)
        rig.cut(0)
        overlapping = [rig.write(7, 2), rig.submit(Op.TRIM, 0, count=5), rig.submit(Op.ZERO, 5)]
        free = [rig.write(3, 3), rig.write(8, 4), rig.submit(Op.TRIM, 0, count=4)]
        reading, flushing = rig.read(5), rig.flush()
        assert [item[1:] for item in rig.sent()[1:]] == [("WRITE", 3), ("WRITE", 8), ("TRIM", 0), ("READ", 5)]
        rig.unit(1).answer_all()
        assert all(request.finished for request in free) and reading.finished
        assert not any(request.finished for request in overlapping) and not flushing.finished
        rig.reinstate(0)
        await trio.sleep(0.1)
        assert rig.sent("WRITE")[3:5] == [(1, "WRITE", 4), (1, "WRITE", 7)], "the older one first"
        rig.unit(1).answer_all()
        assert all(request.finished and request.error is None for request in rig.finished)
        assert rig.store.durable == rig.store.content


@failing_over
async def test_a_shared_unit_is_never_reset_but_given_time(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, shared=True, settle_wait=5)
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        rig.reinstate(0)
        await trio.sleep(4.9)
        assert len(rig.sent("WRITE")) == 1
        await trio.sleep(0.2)
        assert (len(rig.sent("WRITE")), rig.store.resets) == (2, 0)
        rig.unit(1).answer_all()


@failing_over
async def test_a_session_that_cannot_be_ended_is_given_the_time_to_be_noticed(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, shared=True, fence_wait=45, settle_wait=5)
        rig.up(0, 1)
        rig.write(1, 7)
        await trio.sleep(100)
        rig.cut(0)
        await trio.sleep(44.9)
        assert len(rig.sent("WRITE")) == 1
        await trio.sleep(0.2)
        assert len(rig.sent("WRITE")) == 2
        rig.unit(1).answer_all()


@failing_over
async def test_what_a_session_sent_that_cannot_be_ended_gets_time_to_arrive_before_the_reset(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, network_wait=5, fence_wait=45)
        rig.up(0, 1)
        rig.write(1, 7)
        await trio.sleep(100)
        rig.cut(0)
        await trio.sleep(4.9)
        assert (len(rig.sent("WRITE")), rig.store.resets) == (1, 0)
        await trio.sleep(0.2)
        assert (len(rig.sent("WRITE")), rig.store.resets) == (2, 1)
        rig.unit(1).answer_all()


@failing_over
async def test_fast_repeats_at_once(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, fence=FencePolicy.FAST)
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        await settled()
        assert (rig.sent("WRITE"), rig.store.resets) == ([(0, "WRITE", 1), (1, "WRITE", 1)], 0)
        rig.unit(1).answer_all()


@failing_over
@pytest.mark.parametrize("response", [5, 255, None])
async def test_a_reset_that_is_refused_or_not_answered_is_replaced_by_waiting(autojump_clock: object, response: int | None) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, settle_wait=5)
        rig.store.reset_response = response
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        rig.reinstate(0)
        late = 30 if response is None else 0
        await trio.sleep(late + 2)
        other = rig.write(9, 1)
        assert rig.sent("WRITE")[1:] == [(1, "WRITE", 9)], "what overlaps nothing does not wait for the settling"
        await trio.sleep(4)
        assert rig.sent("WRITE")[2:] == [(1, "WRITE", 1)]
        rig.unit(1).answer_all()
        assert other.finished


@failing_over
async def test_registered_keys_forbid_the_reset(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, settle_wait=5)
        rig.store.keys = (0xABCD,)
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        rig.reinstate(0)
        await trio.sleep(6)
        assert (len(rig.sent("WRITE")), rig.store.resets) == (2, 0)
        rig.unit(1).answer_all()


async def test_who_else_uses_the_unit() -> None:
    unit = FakeUnit(Store(), 0, hold=False)
    link = cast(Any, unit)
    assert await is_alone(link, unit.lun)
    unit.store.keys = (1, 2)
    assert not await is_alone(link, unit.lun)
    unit.store.knows_keys = False
    assert await is_alone(link, unit.lun)


@failing_over
async def test_our_own_requests_are_awaited_before_a_reset(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        ours = rig.write(9, 1)
        rig.reinstate(0)
        await trio.sleep(1)
        held = rig.write(10, 1)
        assert rig.store.resets == 0 and len(rig.sent("WRITE")) == 2, "nothing new while the unit becomes quiet"
        rig.unit(1).answer_all()
        assert ours.finished and not held.finished
        await trio.sleep(0.1)
        assert rig.store.resets == 1
        rig.unit(1).answer_all()
        assert held.finished


@failing_over
async def test_a_session_that_keeps_requests_is_dropped_and_fenced_too(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        first = rig.write(1, 7)
        rig.cut(0)
        second = rig.write(9, 8)
        rig.reinstate(0)
        await trio.sleep(6)
        assert rig.device.live == [] and rig.device.fence.waiting == 2 and rig.store.resets == 0
        rig.up(1)
        await trio.sleep(0.1)
        assert rig.store.resets == 1
        rig.unit(1).answer_all()
        assert first.finished and second.finished and (rig.store.block(1), rig.store.block(9)) == (7, 8)


@failing_over
async def test_the_path_of_the_reset_is_lost_over_it(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.reset_takes = 10
        rig.up(0, 1)
        old = rig.write(1, 7)
        rig.cut(0)
        rig.reinstate(0)
        await trio.sleep(1)
        assert rig.store.resets == 1
        rig.cut(1)
        await trio.sleep(20)
        assert rig.sent("WRITE") == [(0, "WRITE", 1)]
        rig.up(0)
        await trio.sleep(20)
        assert rig.store.resets == 2
        rig.unit(0).answer_all()
        assert old.finished and old.error is None


@failing_over
async def test_a_reset_over_a_path_whose_loss_nobody_else_has_heard_of_is_no_refusal(autojump_clock: object) -> None:
    """The request for the reset hears of the loss before the path's keeper does: then there is nothing to settle, but another path."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, settle_wait=5)
        rig.reset_takes = 1
        rig.up(0, 1)
        rig.write(1, 7)
        rig.cut(0)
        rig.reinstate(0)
        await trio.sleep(0.5)
        rig.unit(1).cut()
        await trio.sleep(1)
        assert rig.device.live == []
        rig.up(0)
        await trio.sleep(1.5)
        assert rig.store.resets == 2 and rig.sent("WRITE")[1:] == [(0, "WRITE", 1)]
        rig.unit(0).answer_all()


@failing_over
async def test_the_sessions_of_two_losses_are_told_apart(autojump_clock: object) -> None:
    """The same path is lost twice: the reinstatement of the first session says nothing about the second."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0)
        rig.write(1, 7)
        rig.cut(0)
        rig.reset_takes = 5
        rig.up(0)
        await trio.sleep(0.1)
        rig.cut(0)
        rig.up(0, reinstate=False)
        rig.write(1, 8)
        await trio.sleep(30)
        rig.unit(0).answer_all()
        await trio.sleep(30)
        rig.unit(0).answer_all()
        assert rig.store.block(1) == 8


@failing_over
async def test_given_up_writes_fail_once_and_their_bytes_stay_closed(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, shared=True, fence_wait=45)
        rig.up(0, 1)
        old = rig.write(1, 7)
        rig.cut(0)
        rig.device.give_up(RequestFailed("no longer"))
        assert isinstance(old.error, RequestFailed)
        newer = rig.write(1, 8)
        await trio.sleep(40)
        assert not newer.finished and len(rig.sent("WRITE")) == 1
        rig.store.land_all()
        await trio.sleep(10)
        rig.unit(1).answer_all()
        assert newer.finished and rig.store.block(1) == 8 and len(rig.sent("WRITE")) == 2, "the old one is not repeated"


@failing_over
@pytest.mark.logs("written again")
async def test_replay_in_order_before_anything_else(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        unit = rig.up(0)
        rig.write(1, 1)
        rig.write(1, 2)
        rig.submit(Op.TRIM, 5)
        rig.write(2, 3, fua=True)
        unit.answer_all()
        waiting = rig.write(1, 9)
        rig.cut(0)
        rig.store.crash()
        unit = rig.up(0)
        reading = rig.read(1)
        await trio.sleep(0.1)
        for together in [("WRITE", 1)], [("WRITE", 1), ("TRIM", 5), ("WRITE", 2)], [("FLUSH", 0)]:
            assert [(command.request.op.name, command.request.offset // 512) for command in unit.pending] == together
            unit.answer_all()
            await trio.sleep(0.1)
        assert [(command.request.op.name) for command in unit.pending] == ["WRITE", "READ"]
        unit.answer_all()
        assert waiting.finished and reading.finished and len(rig.device.journal) == 1


@failing_over
@pytest.mark.logs("written again")
async def test_the_journal_does_not_wait_for_the_ladder(autojump_clock: object) -> None:
    """The last path is silent and its portal with it: its write has to be waited for, but not everything else."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, network_wait=5)
        rig.up(0)
        rig.write(1, 1)
        rig.unit(0).answer_all()
        unfenced = rig.write(1, 2, count=2)
        rig.cut(0)
        unit = rig.up(1)
        unit.hold = False
        free, beneath, flushing = rig.read(5), rig.read(2), rig.flush()
        await trio.sleep(0.1)
        assert rig.sent()[2:] == [(1, "WRITE", 1), (1, "FLUSH", 0), (1, "READ", 5)] and free.finished
        assert not beneath.finished, "it might see the state before the journal behind one that was seen already"
        assert not flushing.finished and not unfenced.finished
        await trio.sleep(5)
        assert unfenced.finished and beneath.finished and flushing.finished and rig.store.resets == 1
        assert rig.store.block(1) == 2 and rig.store.durable[512] == 2


@failing_over
@pytest.mark.logs("written again")
async def test_a_durable_write_is_not_undone_by_replaying_an_older_one(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, hold=False)
        rig.up(0)
        rig.write(1, 1)
        rig.write(1, 2, fua=True)
        rig.cut(0)
        rig.store.crash()
        rig.up(0)
        await trio.sleep(0.1)
        assert rig.store.block(1) == 2


@failing_over
@pytest.mark.logs("written again")
async def test_what_a_replay_left_on_its_way_is_fenced_too(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        rig.write(1, 1)
        rig.unit(0).answer_all()
        rig.cut(1)
        rig.cut(0)
        rig.up(1)
        await trio.sleep(0.1)
        assert len(rig.unit(1).pending) == 1
        rig.cut(1)
        rig.up(0)
        newer = rig.write(1, 2)
        await trio.sleep(0.1)
        assert rig.unit(0).pending == [] and rig.device.fence.active, "the replay of before may still land"
        rig.reinstate(1)
        for _ in range(4):
            await trio.sleep(0.1)
            rig.unit(0).answer_all()
        rig.store.land_all()
        assert newer.finished and rig.store.block(1) == 2


@pytest.mark.logs("written again")
async def test_a_replay_waits_for_a_session_that_is_being_left(autojump_clock: object) -> None:
    """A draining session still does newer writes: an old one must not be done again over them."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0)
        draining = rig.unit(0)
        rig.write(1, 1)
        draining.answer_all()
        newer = rig.write(1, 2)
        rig.device.lose(rig.device.paths[0], PathLost("asked for a logout", sent=False))
        rig.up(1)
        await trio.sleep(1)
        assert rig.unit(1).pending == []
        draining.answer_all()
        assert newer.finished
        for _ in range(4):
            await trio.sleep(0.1)
            rig.unit(1).answer_all()
        assert rig.store.block(1) == 2


@failing_over
@pytest.mark.logs("are lost")
async def test_a_shared_unit_is_not_replayed_but_the_next_flush_fails_once(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, hold=False, shared=True)
        rig.up(0)
        rig.write(1, 1)
        rig.cut(0)
        rig.up(0)
        await trio.sleep(0.1)
        assert rig.flush().error is not None
        assert rig.flush().error is None and rig.device.cache_losses == 1


@failing_over
@pytest.mark.logs("are lost")
async def test_a_replay_that_is_refused_is_a_loss_that_is_told(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0).hold = False
        rig.write(1, 1)
        rig.cut(0)
        unit = rig.up(0)
        await trio.sleep(0.1)
        unit.answer(error=RequestFailed("medium error"))
        await trio.sleep(0.1)
        failed = rig.flush()
        assert failed.error is not None and "acknowledged writes are lost" in str(failed.error)


@failing_over
@pytest.mark.logs("written again")
@pytest.mark.parametrize("error", [aborted(), unusable()])
async def test_a_replay_that_only_the_path_refuses_is_tried_again(autojump_clock: object, error: Exception) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=2)
        rig.up(0).hold = False
        rig.write(1, 1)
        rig.cut(0)
        rig.up(0)
        await trio.sleep(0.1)
        rig.unit(0).answer(error=error)
        rig.up(1)
        for _ in range(4):
            await trio.sleep(0.1)
            rig.unit(0).answer_all()
            rig.unit(1).answer_all()
        assert rig.device.cache_losses == 0 and len(rig.device.journal) == 0 and rig.store.durable[512] == 1
