"""Deadlines by counted sweeps: how soon silence is noticed, and each rung of the ladder for a task that does not end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from isblk.errors import IsblkError, PathLost, TaskAborted
from isblk.iscsi.names import Portal
from isblk.link.sweeper import SWEEP_SECONDS, Sweeper, Timing
from support.scripts import LUN_1, Script, Sent

ABORT, RESET = 1, 5


class Rig:
    """A sweeper over a session whose target is a script."""

    def __init__(self, may_reset: bool = True, window: int = 32, **timing: float) -> None:
        self.script = Script(window=window)
        self.lost: IsblkError | None = None
        self.swept = SimpleNamespace(
            session=self.script.session, portal=Portal("192.0.2.1", 3260), timing=Timing(**timing), may_reset=may_reset, fail=self.fail
        )
        self.sweeper = Sweeper(cast(Any, self.swept))

    def fail(self, error: IsblkError) -> None:
        self.lost = self.lost or error
        self.script.session.fail(error)

    def sweep(self, seconds: float, talking: bool = False) -> list[Sent]:
        """Let time pass; what was sent meanwhile."""
        sent: list[Sent] = []
        for _ in range(round(seconds / SWEEP_SECONDS)):
            if talking:
                self.sweeper.heard()
            self.sweeper.sweep()
            sent += self.script.said()
        return sent

    def until_lost(self) -> float:
        seconds = 0.0
        while self.lost is None:
            assert seconds < 1000
            self.sweep(SWEEP_SECONDS)
            seconds += SWEEP_SECONDS
        return seconds


@pytest.mark.parametrize(("interval", "timeout"), [(5, 5), (1, 1), (1, 2), (30, 1)])
def test_silence_is_noticed_in_time(interval: float, timeout: float) -> None:
    rig = Rig(noop_interval=interval, noop_timeout=timeout)
    assert interval + timeout <= rig.until_lost() <= interval + timeout + 2 * SWEEP_SECONDS
    assert isinstance(rig.lost, PathLost) and "silent" in str(rig.lost)


def test_pings_are_immediate_and_answers_keep_the_session() -> None:
    rig = Rig(noop_interval=1, noop_timeout=1, task_timeout=1000)
    script = rig.script
    while script.session.wire.window.room:  # A full window: a ping needs no room in it.
        script.command()
    script.said()
    for _ in range(20):
        sent = rig.sweep(1)
        assert [ping.opcode for ping in sent] == [0] and sent[0].immediate
        script.hear(script.nop_in(sent[0].itt))
        rig.sweeper.heard()
    assert rig.lost is None


def test_no_pings_while_something_is_heard_or_when_they_are_off() -> None:
    assert Rig(noop_interval=1, noop_timeout=1).sweep(60, talking=True) == []
    assert Rig(noop_interval=0, noop_timeout=1).sweep(60) == []


def test_one_ping_at_a_time() -> None:
    assert len(Rig(noop_interval=1, noop_timeout=30).sweep(25)) == 1


def test_hastened() -> None:
    rig = Rig(noop_interval=60, noop_timeout=60)
    rig.sweeper.hasten()
    assert rig.until_lost() <= 3 + 2 * SWEEP_SECONDS


def rungs(sent: list[Sent]) -> list[int]:
    return [each.flags & 0x7F for each in sent if each.opcode == 2]


def test_an_abort_that_succeeds_ends_the_task_alone() -> None:
    rig = Rig(noop_interval=0, task_timeout=10)
    late = rig.script.command()
    assert rungs(rig.sweep(9)) == []
    young = rig.script.command()
    (abort,) = [each for each in rig.sweep(1.5) if each.opcode == 2]
    assert abort.flags & 0x7F == ABORT
    rig.script.hear(rig.script.managed(abort.itt, 0))
    assert isinstance(late.error, TaskAborted) and young.error is None and rig.lost is None
    rig.script.hear(rig.script.response(young.itt))
    assert rungs(rig.sweep(60)) == []


@pytest.mark.parametrize("answer", [5, 255, None])
def test_the_second_rung_is_a_reset_of_the_unit(answer: int | None) -> None:
    rig = Rig(noop_interval=0, task_timeout=10, abort_timeout=15, reset_timeout=30)
    late, other = rig.script.command(), rig.script.read(8)
    aborts = [each for each in rig.sweep(10.5) if each.opcode == 2]
    assert rungs(aborts) == [ABORT, ABORT]
    if answer is not None:
        for abort in aborts:
            rig.script.hear(rig.script.managed(abort.itt, answer))
    (reset,) = [each for each in [*rig.script.said(), *rig.sweep(15.5)] if each.opcode == 2]
    assert (reset.flags & 0x7F, reset.lun) == (RESET, LUN_1)
    rig.script.hear(rig.script.managed(reset.itt, 0))
    assert isinstance(late.error, TaskAborted) and isinstance(other.error, TaskAborted) and rig.lost is None
    assert rungs(rig.sweep(100)) == [] and rig.lost is None


@pytest.mark.parametrize("answer", [5, None])
def test_the_last_rung_drops_the_session(answer: int | None) -> None:
    rig = Rig(noop_interval=0, task_timeout=10, abort_timeout=15, reset_timeout=30)
    late = rig.script.command()
    sent = rig.sweep(26)
    assert rungs(sent) == [ABORT, RESET]
    if answer is None:
        assert 28 <= rig.until_lost() <= 31 and "did not reset" in str(rig.lost)
    else:
        rig.script.hear(rig.script.managed(sent[-1].itt, answer))
        assert "nor reset" in str(rig.lost)
    assert isinstance(late.error, PathLost)


def test_without_leave_to_reset_the_session_is_dropped() -> None:
    rig = Rig(may_reset=False, noop_interval=0, task_timeout=10, abort_timeout=15)
    rig.script.command()
    assert 25 <= rig.until_lost() <= 25 + 2 * SWEEP_SECONDS
    assert rungs(rig.script.said()) == [] and "did not abort" in str(rig.lost)


def test_an_unanswered_abort_of_a_task_that_ended_after_all_is_no_matter() -> None:
    rig = Rig(noop_interval=0, task_timeout=10, abort_timeout=15)
    late = rig.script.command()
    rig.sweep(11)
    rig.script.hear(rig.script.response(late.itt))
    assert late.error is None and rungs(rig.sweep(60)) == [] and rig.lost is None


def test_a_task_that_was_never_sent_is_abandoned_without_a_rung() -> None:
    rig = Rig(noop_interval=0, task_timeout=10, window=0)
    task = rig.script.command()
    assert rig.sweep(11) == [] and isinstance(task.error, TaskAborted) and rig.lost is None
