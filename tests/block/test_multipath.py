"""Multipath over sessions in memory: what is repeated, what waits, what is told; and any sequence of events against an oracle."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from isblk.block.choose import NoPathRetry, PathState, Policy
from isblk.block.policies import FencePolicy
from isblk.block.request import Op, Request
from isblk.errors import NoPath, PathLost, RequestFailed
from isblk.scsi.data import AccessState
from support.fakepaths import BLOCK, BLOCKS, FakeUnit, Rig, Store, aborted, unusable

failing_over = pytest.mark.logs(r"path .* is (up|down)")


async def test_a_request_goes_out_once_and_comes_back(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, hold=False)
        rig.up(0, 1)
        assert rig.write(3, 9).error is None and bytes(rig.read(3).data or b"")[:1] == b"\x09"
        assert rig.flush().finished and rig.store.durable[3 * BLOCK] == 9
        path = rig.device.paths[0]
        assert (path.requests, path.bytes, path.in_flight, path.bytes_in_flight) == (3, 2 * BLOCK, 0, 0)
        assert rig.device.paths[1].requests == 0, "failover uses one path"


@failing_over
async def test_reads_and_unsent_writes_are_repeated_at_once(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        reading, writing = rig.read(1), rig.write(2, 5)
        rig.cut(0, sent=1)
        assert rig.sent()[2:] == [(1, "READ", 1), (1, "WRITE", 2)] and not rig.device.fence.active
        rig.unit(1).answer_all()
        assert reading.error is None and writing.error is None and rig.device.failed_over == 2


@failing_over
async def test_the_hot_road_is_closed_at_once_for_what_overlaps(autojump_clock: object) -> None:
    """The next write in the same turn, with another path at hand, must already be held."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, policy=Policy.ROUND_ROBIN)
        rig.up(0, 1)
        first = rig.write(1, 5)
        lost = rig.sent()[0][0]
        rig.unit(lost).cut()
        newer = rig.write(1, 6)
        assert len(rig.sent("WRITE")) == 1 and rig.device.waiting == 2
        rig.up(lost)
        await trio.sleep(0.1)
        for path in rig.device.live:
            rig.unit(path.number).answer_all()
        assert first.finished and newer.finished


@failing_over
async def test_a_request_that_comes_back_late_does_not_end_the_session_of_now(autojump_clock: object) -> None:
    """A busy unit's retry may find its session gone long after the path has another one."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        old = rig.up(0)
        reading, writing = rig.read(1), rig.write(2, 5)
        late, old.pending = old.pending, []
        rig.cut(0)
        rig.up(0)
        late[0].request.finish(PathLost("gone since", sent=False))
        late[1].request.finish(PathLost("gone since"))
        assert [path.number for path in rig.device.live] == [0]
        await trio.sleep(0.1)
        assert reading.finished is False
        rig.unit(0).answer_all()
        await trio.sleep(0.1)
        rig.unit(0).answer_all()
        assert reading.finished and writing.finished and writing.error is None


@failing_over
async def test_without_a_path_requests_wait_then_fail_once_and_the_device_comes_back(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, no_path=NoPathRetry(10))
        hurries: list[float] = []
        rig.device.on_no_path = lambda: hurries.append(trio.current_time())
        rig.up(0)
        writing = rig.write(1, 7)
        rig.cut(0)
        reading, flushing = rig.read(1), rig.flush()
        assert rig.device.waiting == 3 and hurries
        rig.device.tick(trio.current_time() + 9.9)
        assert rig.finished == []
        rig.device.tick(trio.current_time() + 10)
        assert {type(request.error) for request in (writing, reading, flushing)} == {NoPath}
        assert isinstance(rig.read(1).error, RequestFailed), "and at once from now on"
        unit = rig.up(0)
        newer = rig.write(1, 8)
        assert unit.pending == [], "what was given up may still land"
        await trio.sleep(0.1)
        assert rig.store.resets == 1
        unit.answer_all()
        assert newer.error is None and rig.store.block(1) == 8 and len(rig.finished) == 5


async def test_no_usable_path_is_bounded_too(autojump_clock: object) -> None:
    """Sessions that live but carry nothing (all ports in standby)."""
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, no_path=NoPathRetry(10))
        rig.up(0, 1, access=AccessState.STANDBY)
        request = rig.read(1)
        rig.device.tick(trio.current_time() + 9)
        assert not request.finished and rig.device.stuck
        rig.device.tick(trio.current_time() + 11)
        assert isinstance(request.error, RequestFailed)
        rig.device.take_access(rig.device.paths[1], AccessState.OPTIMIZED, False)
        assert rig.sent() == [] and not rig.device.stuck
        rig.read(1)
        assert rig.sent() == [(1, "READ", 1)]
        rig.unit(1).answer_all()


async def test_a_port_group_in_transition_is_waited_for(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, no_path=NoPathRetry(0))
        rig.up(0, access=AccessState.TRANSITIONING)
        request = rig.read(1)
        rig.device.tick(trio.current_time() + 60)
        assert not request.finished
        rig.device.take_access(rig.device.paths[0], AccessState.NON_OPTIMIZED, False)
        rig.unit(0).answer_all()
        assert request.error is None


async def test_a_path_that_cannot_is_left_and_asked(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        asked: list[int] = []
        rig.device.on_access_changed = lambda path: asked.append(path.number)
        rig.up(0, 1)
        request = rig.write(1, 5)
        rig.unit(0).answer(error=unusable())
        assert asked == [0] and rig.device.paths[0].state is PathState.STANDBY
        rig.unit(1).answer_all()
        assert request.error is None and rig.store.resets == 0


@pytest.mark.parametrize("op", [Op.WRITE, Op.READ, Op.FLUSH])
async def test_aborted_requests_are_repeated_a_few_times(autojump_clock: object, op: Op) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        unit = rig.up(0)
        patient, unlucky = rig.submit(op, 1, 5), rig.submit(op, 2, 5)
        unit.answer(0, aborted())
        for _ in range(6):
            index = next(at for at, command in enumerate(unit.pending) if command.request.request is unlucky)  # type: ignore[attr-defined]
            unit.answer(index, aborted())
        unit.answer_all()
        assert patient.error is None and isinstance(unlucky.error, RequestFailed)
        assert rig.device._repeats == {}, "nothing is remembered of them"


async def test_a_final_error_is_told_and_fails_no_path(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        request = rig.read(1)
        rig.unit(0).answer(error=RequestFailed("medium error"))
        assert str(request.error) == "medium error" and len(rig.device.live) == 2 and len(rig.sent()) == 1


@failing_over
async def test_the_end_fails_what_waits_and_what_comes_back_later(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, shared=True)
        rig.up(0, 1)
        on_its_way, fenced = rig.write(9, 1), rig.write(1, 5)
        late = rig.unit(0).pending.pop(0)
        rig.cut(0)
        held = rig.flush()
        rig.device.end(RequestFailed("unmounted"))
        assert [str(request.error) for request in (fenced, held)] == ["unmounted"] * 2
        late.request.finish(PathLost("gone"))
        assert str(on_its_way.error) == "unmounted" and str(rig.read(1).error) == "unmounted"
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------------------------- flush


async def test_a_flush_covers_every_path_that_carried_something(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, policy=Policy.ROUND_ROBIN)
        rig.up(0, 1)
        for block in range(4):
            rig.write(block, 1)
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        request = rig.flush()
        assert sorted(rig.sent("FLUSH")) == [(0, "FLUSH", 0), (1, "FLUSH", 0)]
        rig.unit(0).answer_all()
        assert not request.finished
        later = rig.write(9, 1)
        rig.unit(1).answer_all()
        assert request.finished and len(rig.device.journal) in (0, 1)
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        assert later.finished and len(rig.device.journal) == 1, "a write acknowledged after the flush was sent is not covered"
        again = rig.flush()
        assert len(rig.sent("FLUSH")) == 3, "only the path that is dirty"
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        assert again.error is None


@failing_over
async def test_a_flush_goes_on_when_one_of_its_paths_is_lost(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, policy=Policy.ROUND_ROBIN)
        rig.up(0, 1)
        rig.write(0, 1)
        rig.write(1, 1)
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        request = rig.flush()
        rig.cut(0)
        assert not request.finished
        rig.unit(1).answer()
        assert not request.finished and len(rig.device.journal) == 2
        rig.unit(1).answer()
        assert request.error is None and len(rig.device.journal) == 0


@failing_over
async def test_what_a_unit_answers_to_a_flush_is_not_hidden_by_a_lost_path(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, policy=Policy.ROUND_ROBIN)
        rig.up(0, 1)
        rig.write(0, 1)
        rig.write(1, 1)
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        request = rig.flush()
        rig.unit(0).answer(error=RequestFailed("a write was lost"))
        rig.cut(1)
        assert str(request.error) == "a write was lost"


@failing_over
async def test_a_flush_whose_first_path_takes_the_second_with_it(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, policy=Policy.ROUND_ROBIN)
        rig.up(0, 1)
        rig.write(0, 1)
        rig.write(1, 1)
        rig.unit(0).answer_all()
        rig.unit(1).answer_all()
        unit = rig.unit(0)
        submit = unit.submit

        def losing(request: Request) -> None:
            rig.cut(1)
            submit(request)

        unit.submit = losing  # type: ignore[method-assign]
        request = rig.flush()
        unit.submit = submit  # type: ignore[method-assign]
        unit.answer_all()
        assert request.error is None


async def test_a_dirty_path_in_standby_is_not_asked_to_flush(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, hold=False)
        rig.up(0, 1)
        rig.write(1, 5)
        rig.device.take_access(rig.device.paths[0], AccessState.STANDBY, False)
        assert rig.flush().error is None and rig.sent("FLUSH") == [(1, "FLUSH", 0)]


async def test_the_journal_flushes_itself_and_stays_bounded(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        store = Store()
        rig = Rig(nursery, count=1, store=store, journal_limit=1 << 20)
        unit = rig.up(0)
        many = [rig.write(at % BLOCKS, 1, count=1) for at in range(3000)]
        for _ in range(3000):
            index = next((at for at, command in enumerate(unit.pending) if command.request.op is Op.WRITE), None)
            if index is None:
                break
            unit.answer(index)
        assert rig.sent("FLUSH") == [(0, "FLUSH", 0)], "one flush of its own, from half full on"
        more = rig.write(1, 1)
        assert not more.finished and [command.request.op for command in unit.pending] == [Op.FLUSH], "full: nothing more is taken"
        assert rig.read(1) and unit.pending[-1].request.op is Op.READ, "reads go on"
        unit.answer_all()
        assert more.finished and all(request.finished for request in many) and rig.device.journal.bytes < 1 << 19


async def test_the_hot_road_ends_when_the_journal_is_full_though_its_flush_is_slow(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, journal_limit=1 << 20)
        unit = rig.up(0)
        for at in range(3000):
            rig.write(at % BLOCKS, 1)
            index = next((at for at, command in enumerate(unit.pending) if command.request.op is Op.WRITE), None)
            if index is not None:
                unit.answer(index)
        assert rig.device.journal.bytes < (1 << 20) + 2 * 1024
        unit.answer_all()
        unit.answer_all()
        assert rig.device.waiting == 0


async def test_a_failed_flush_of_its_own_is_told_to_the_next_flush_once(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, journal_limit=1 << 20)
        unit = rig.up(0)
        while not rig.sent("FLUSH"):
            rig.write(1, 1)
            unit.answer(0)
        unit.answer(0, RequestFailed("no"))
        assert rig.sent("FLUSH") == [(0, "FLUSH", 0)]
        told = rig.flush()
        assert told.error is not None and getattr(told.error, "errno", 0) == errno.EIO
        after = rig.flush()
        unit.answer_all()
        assert after.error is None


@failing_over
@pytest.mark.logs("written again")
async def test_giving_up_keeps_the_journal(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, no_path=NoPathRetry(5), journal_limit=1 << 20)
        unit = rig.up(0)
        while not rig.sent("FLUSH"):
            rig.write(1, 1)
            unit.answer(0)
        rig.cut(0)
        rig.device.tick(trio.current_time() + 6)
        rig.store.crash()
        rig.up(0).hold = False
        await trio.sleep(1)
        assert rig.store.durable[BLOCK] == 1 and rig.flush().error is None, "nothing is lost, so nothing is told"


# ------------------------------------------------------------------------------------------------------------ the rest


async def test_resize(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        rig.up(0)
        rig.device.resize(replace(rig.device.geometry, size=1 << 30))
        assert rig.device.geometry.size == 1 << 30


@failing_over
async def test_failback_and_damping(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, hold=False)
        rig.up(0, access=AccessState.NON_OPTIMIZED)
        rig.up(1)
        rig.read(1)
        for _ in range(4):
            rig.cut(1)
            rig.up(1)
        rig.device.tick(trio.current_time())
        rig.read(2)
        rig.device.tick(trio.current_time() + 61)
        rig.read(3)
        assert [number for number, _, _ in rig.sent()] == [1, 0, 1]


@failing_over
async def test_thousands_of_waiting_requests_are_no_recursion(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, hold=False)
        rig.up(0)
        rig.cut(0)
        for at in range(5000):
            rig.submit((Op.READ, Op.WRITE, Op.FLUSH)[at % 3], 1, 1)
        rig.up(0)
        assert len(rig.finished) == 5000 and rig.device.waiting == 0


@failing_over
async def test_one_whose_end_raises_takes_no_other_with_it(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, hold=False)
        rig.up(0)
        rig.cut(0)

        def bad(request: Request) -> None:
            raise ValueError("a front end's bug")

        rig.device.submit(Request(Op.READ, 0, BLOCK, memoryview(bytearray(BLOCK)), done=bad))
        other = rig.read(1)
        with pytest.raises(ValueError, match="a front end's bug"):
            rig.up(0)
        rig.device.again()
        assert other.finished


# -------------------------------------------------------------------------------------------------- any sequence of events


@dataclass
class Change:
    """A write as the application knows it: when it was submitted and when it ended, by a counter of events."""

    value: int
    blocks: range
    began: int
    ended: int | None = None
    good: bool = False


@dataclass
class World:
    """The application, two paths, and the target, driven by numbers. The oracle: linearizability of each block."""

    rig: Rig
    lands_after_reinstatement: bool
    now: int = 0
    changes: list[Change] = field(default_factory=list)
    flushed_before: int = 0
    open: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values: dict[int, Change] = {0: Change(0, range(BLOCKS), -1, -1, True)}

    # what may be seen

    def check(self, block: int, value: int, before: int, where: str) -> None:
        """`value` must not be older than a write of the block that was acknowledged before `before`."""
        found = self.values[value]
        assert block in found.blocks, f"{where}: block {block} holds {value}, which was never written there"
        ended = found.ended if found.ended is not None else self.now
        for newer in self.changes:
            covers = newer.good and newer.ended is not None and newer.ended < before and block in newer.blocks
            assert not (covers and newer.began > ended), f"{where}: block {block} holds {value}, but {newer} is newer"

    # the application

    def write(self, block: int, count: int, fua: bool) -> None:
        value = len(self.values)
        if value > 250:
            return
        change = Change(value, range(block, min(block + count, 8)), self.now)
        self.values[value] = change
        self.changes.append(change)

        def done(request: Request) -> None:
            change.ended, change.good = self.now, request.error is None

        self._submit(Request(Op.WRITE, block * BLOCK, len(change.blocks) * BLOCK, _filled(value, len(change.blocks)), fua, done))

    def read(self, block: int) -> None:
        began, data = self.now, memoryview(bytearray(BLOCK))

        def done(request: Request) -> None:
            if request.error is None:
                self.check(block, data[0], began, "read")

        self._submit(Request(Op.READ, block * BLOCK, BLOCK, data, done=done))

    def flush(self) -> None:
        began = self.now

        def done(request: Request) -> None:
            if request.error is None:
                self.flushed_before = max(self.flushed_before, began)

        self._submit(Request(Op.FLUSH, done=done))

    def _submit(self, request: Request) -> None:
        self.open.append(request)
        self.rig.device.submit(request)
        self.rig.device.kick()

    # the target and the network

    def session(self, number: int) -> FakeUnit | None:
        unit = self.rig.device.paths[number].unit
        return unit if isinstance(unit, FakeUnit) else None

    def answer(self, number: int, which: int, only_do: bool) -> None:
        unit = self.session(number)
        if unit is not None and unit.pending:
            index = which % len(unit.pending)
            if only_do:
                unit.pending[index].land()
            else:
                unit.answer(index)

    def cut(self, number: int, which: int) -> None:
        unit = self.session(number)
        if unit is not None:
            done = max((at + 1 for at, command in enumerate(unit.pending) if command.applied), default=0)
            self.rig.cut(number, done + which % (len(unit.pending) - done + 1))

    def leave(self, number: int) -> None:
        """A logout request: nothing new, what is open ends at once or is cut off."""
        unit, path = self.session(number), self.rig.device.paths[number]
        if unit is not None:
            self.rig.device.lose(path, PathLost("asked for a logout", sent=False))
            path.keeper.connection = None
            for _ in range(len(unit.pending) // 2):
                unit.answer()
            unit.cut()

    def log_in(self, number: int) -> None:
        if self.session(number) is None:
            if not self.lands_after_reinstatement:
                self.end_session(number)
            self.rig.up(number)

    def end_session(self, number: int) -> None:
        """As LIO: what it had taken in is done or dropped before a login is answered."""
        for command in list(self.rig.store.stuck):
            if command.unit.number == number:
                self.rig.store.stuck.remove(command)
                if sum(command.data[:1]) % 2:
                    command.land()

    def crash(self) -> None:
        for number in range(2):
            self.cut(number, 0)
        store = self.rig.store
        store.crash()
        for block in range(8):
            self.check(block, store.durable[block * BLOCK], self.flushed_before, "after the crash")

    async def act(self, event: tuple[int, int, int]) -> None:
        kind, a, b = event
        self.now += 1
        stuck = self.rig.store.stuck
        if kind <= 2:
            self.write(a % 3, 1 + b % 2, fua=b == 7)
        elif kind == 3:
            self.read(a % 4)
        elif kind == 4:
            self.flush()
        elif kind <= 7:
            self.answer(a % 2, b, only_do=False)
        elif kind == 8:
            self.answer(a % 2, b, only_do=True)
        elif kind == 9:
            self.cut(a % 2, b)
        elif kind in (10, 11):
            self.log_in(a % 2)
        elif kind == 12 and stuck:
            stuck.pop(a % len(stuck)).land()
        elif kind == 13:
            await trio.sleep((0.01, 1, 6, 40)[a % 4])
        elif kind == 14:
            self.leave(a % 2)
        elif kind == 15 and b == 0:
            self.crash()
        elif kind == 16:
            self.rig.device.tick(trio.current_time())
        await wait_all_tasks_blocked()
        self.now += 1

    async def heal(self) -> None:
        """All paths come, the target answers everything: nothing may be left."""
        for turn in range(200):
            self.now += 1
            for number in range(2):
                self.log_in(number)
                unit = self.session(number)
                assert unit is not None
                unit.answer_all()
            await trio.sleep(1)
            if turn > 3 and all(request.finished for request in self.open) and not self.rig.device.fence.active:
                break
        assert all(request.finished for request in self.open), "a request was never finished"
        device = self.rig.device
        assert (device.waiting, device._repeats, device._frozen) == (0, {}, set()) and not any(path.in_flight for path in device.paths)
        self.rig.store.land_all()
        for block in range(8):
            self.check(block, self.rig.store.block(block), self.now, "at the end")


def _filled(value: int, blocks: int) -> memoryview:
    return memoryview(bytes([value]) * (blocks * BLOCK))


EVENTS = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 7), st.integers(0, 7)), max_size=60)


@failing_over
@pytest.mark.logs("written again")
@settings(max_examples=300)
@given(EVENTS, st.booleans(), st.sampled_from(list(Policy)), st.sampled_from([2.0, 120.0]))
@example([(0, 0, 0), (5, 0, 0), (15, 0, 0), (10, 0, 0), (13, 1, 0)], False, Policy.FAILOVER, 120.0)
@example([(0, 0, 0), (0, 1, 0), (14, 1, 0), (14, 0, 0), (15, 0, 0)], False, Policy.FAILOVER, 2.0)
@example([(0, 0, 0), (9, 0, 7), (0, 0, 0), (10, 0, 0), (12, 0, 0), (9, 1, 7), (10, 1, 0), (13, 3, 0)], True, Policy.ROUND_ROBIN, 120.0)
def test_any_sequence_of_events(events: list[tuple[int, int, int]], late: bool, policy: Policy, patience: float) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            rig = Rig(nursery, policy=policy, no_path=NoPathRetry(patience), fence=FencePolicy.STRICT)
            world = World(rig, lands_after_reinstatement=late)
            rig.up(0, 1)
            for event in events:
                await world.act(event)
            await world.heal()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_no_path_carries_more_than_the_queue_depth_that_was_set(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=2, policy=Policy.ROUND_ROBIN, queue_depth=2)
        units = [rig.up(0), rig.up(1)]
        requests = [rig.read(block) for block in range(10)]
        most = 0
        while not all(request.finished for request in requests):
            pending = [len(unit.pending) for unit in units]
            assert max(pending) <= 2 and sum(pending) + rig.device.waiting == sum(not request.finished for request in requests)
            most = max(most, sum(pending))
            next(unit for unit in units if unit.pending).answer()
            rig.device.tick(trio.current_time())
        assert most == 4, "both paths are used"


async def test_task_set_full_lowers_the_depth_of_the_path_until_time_has_gone_by(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1)
        unit = rig.up(0)
        path = rig.device.live[0]
        first = [rig.read(block) for block in range(8)]
        rig.device.full(path)
        assert path.depth == 6
        rig.read(8)
        assert len(unit.pending) == 8 and rig.device.waiting == 1, "no new one while eight are on their way"
        unit.answer_all()
        assert all(request.finished for request in first)
        assert rig.device.waiting == 0, "what came back has let it go"
        later = [rig.read(block) for block in range(10)]
        assert path.in_flight == 6 and rig.device.waiting == 4
        for _ in range(64):
            rig.device.tick(trio.current_time())
        assert path.depth is None, "in the end the limit is gone"
        while unit.pending:
            unit.answer_all()
        assert all(request.finished for request in later) and rig.device.waiting == 0
        nursery.cancel_scope.cancel()


async def test_other_policies_hold_from_the_next_request_on(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery)
        rig.up(0, 1)
        for block in range(4):
            rig.read(block)
        assert {path for path, _, _ in rig.sent()} == {0}
        rig.device.follow(replace(rig.device.policies, policy=Policy.ROUND_ROBIN))
        for block in range(4):
            rig.read(block)
        assert [path for path, _, _ in rig.sent()].count(1) == 2
        for number in (0, 1):
            rig.unit(number).answer_all()
        rig.device.follow(replace(rig.device.policies, policy=Policy.FAILOVER))
        for block in range(4):
            rig.read(block)
        assert len({path for path, _, _ in rig.sent()[8:]}) == 1
        for number in (0, 1):
            rig.unit(number).answer_all()


@failing_over
async def test_what_waits_for_a_path_waits_as_long_as_is_said_now(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, no_path=NoPathRetry(1000))
        rig.up(0)
        rig.cut(0)
        reading = rig.read(1)
        rig.device.tick(trio.current_time() + 20)
        assert not reading.finished
        rig.device.follow(replace(rig.device.policies, no_path=NoPathRetry(10)))
        rig.device.tick(trio.current_time() + 20)
        assert isinstance(reading.error, RequestFailed)
