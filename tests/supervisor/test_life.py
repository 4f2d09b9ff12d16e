"""The states of an export and the pauses between its attempts."""

from __future__ import annotations

import pytest

from isblk.supervisor.life import FIRST_PAUSE, LONG_ENOUGH, TRANSITIONS, Event, Life, State


def test_an_export_that_comes_up_and_is_ended() -> None:
    life = Life()
    for step, state in ((life.start, State.STARTING), (life.ready, State.UP), (life.stop, State.STOPPING)):
        step(5)
        assert life.state is state
    life.end("", 0, 6)
    assert (life.state, life.since, life.reason) == (State.DOWN, 6, "")


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_long_time_up() -> None:
    life, now, pauses = Life(), 0.0, []
    for _ in range(9):
        life.start(now)
        pause = life.fail("it is so", 5, 60, now)
        assert pause is not None
        assert life.next_try == now + pause
        pauses.append(pause)
        now += pause
    assert pauses == [FIRST_PAUSE, 1, 2, 4, 8, 16, 32, 60, 60]
    assert (life.state, life.reason, life.exit_code, life.failures) == (State.RETRYING, "it is so", 5, 9)
    life.start(now)
    life.ready(now)
    assert (life.reason, life.exit_code, life.restarts, life.next_try) == ("", 0, 9, None)
    assert life.fail("it is so", 5, 60, now + LONG_ENOUGH - 1) == 60
    life.start(now)
    life.ready(now)
    assert life.fail("it is so", 5, 60, now + LONG_ENOUGH) == FIRST_PAUSE


def test_after_ever_so_many_failures_the_pause_is_still_a_number() -> None:
    life = Life(failures=5000)
    life.start(0)
    assert life.fail("it is so", 5, 60, 0) == 60


def test_with_one_attempt_a_failure_is_the_end_of_it() -> None:
    life = Life()
    life.start(0)
    assert life.fail("it is so", 4, None, 1) is None
    assert (life.state, life.next_try) == (State.FAILED, None)
    life.start(2)
    assert life.restarts == 0


def test_what_refuses_to_end_is_up_and_says_why() -> None:
    life = Life()
    life.start(0)
    life.ready(1)
    life.stop(2)
    life.refuse("it is in use", 2, 3)
    assert (life.state, life.reason, life.exit_code) == (State.UP, "it is in use", 2)


def test_data_that_was_lost_on_the_way_down_is_told() -> None:
    life = Life()
    life.start(0)
    life.ready(1)
    life.stop(2)
    life.end("written data may be lost", 6, 3)
    assert (life.state, life.reason, life.exit_code) == (State.DOWN, "written data may be lost", 6)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_is_not_in_the_table_cannot_happen(state: State, event: Event) -> None:
    life = Life(state=state)
    steps = {
        Event.START: lambda: life.start(1),
        Event.READY: lambda: life.ready(1),
        Event.FAIL: lambda: life.fail("", 5, 1, 1),
        Event.GIVE_UP: lambda: life.fail("", 5, None, 1),
        Event.STOP: lambda: life.stop(1),
        Event.REFUSE: lambda: life.refuse("", 2, 1),
        Event.END: lambda: life.end("", 0, 1),
    }
    if (state, event) in TRANSITIONS:
        steps[event]()
        assert life.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match="cannot happen"):
            steps[event]()


def test_every_state_can_be_reached_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())
