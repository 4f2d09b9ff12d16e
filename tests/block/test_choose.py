from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.choose import (
    FAIL,
    IMMEDIATE,
    MANUAL,
    QUEUE,
    Access,
    Chooser,
    Failback,
    NoPathRetry,
    PathState,
    Policy,
    group,
    rank,
    transitioning,
)
from isblk.errors import UsageError


@dataclass
class Path:
    number: int
    state: PathState = PathState.UP
    access: Access = Access.OPTIMIZED
    preferred: bool = False
    in_flight: int = 0
    bytes_in_flight: int = 0
    service_rate: float = 0.0
    damped: bool = False


NON_OPTIMIZED, STANDBY = Access.NON_OPTIMIZED, Access.STANDBY


def numbers(paths: list[Path]) -> list[int]:
    return [path.number for path in paths]


@pytest.mark.parametrize(
    "paths, expected",
    [
        ([], []),
        ([Path(0), Path(1)], [0, 1]),
        ([Path(0, access=NON_OPTIMIZED), Path(1)], [1]),
        ([Path(0, access=NON_OPTIMIZED), Path(1, PathState.DOWN), Path(2, access=NON_OPTIMIZED)], [0, 2]),
        ([Path(0), Path(1, preferred=True), Path(2)], [1, 0, 2]),
        ([Path(0), Path(1, access=NON_OPTIMIZED, preferred=True)], [0]),
        ([Path(0, access=Access.LBA_DEPENDENT), Path(1, access=NON_OPTIMIZED)], [1]),
        ([Path(0, damped=True), Path(1, access=NON_OPTIMIZED)], [1]),
        ([Path(0, damped=True), Path(1)], [1]),
        ([Path(0, damped=True), Path(1, access=STANDBY), Path(2, damped=True, access=NON_OPTIMIZED)], [0]),
        ([Path(0, access=access) for access in (STANDBY, Access.UNAVAILABLE, Access.OFFLINE, Access.TRANSITIONING)], []),
        ([Path(0, state) for state in PathState if state is not PathState.UP], []),
    ],
)
def test_the_best_group_that_can_be_used(paths: list[Path], expected: list[int]) -> None:
    assert numbers(group(paths)) == expected


PATHS = st.lists(
    st.builds(
        Path,
        number=st.integers(0, 5),
        state=st.sampled_from(PathState),
        access=st.sampled_from(Access),
        preferred=st.booleans(),
        in_flight=st.integers(0, 3),
        bytes_in_flight=st.integers(0, 1 << 20),
        service_rate=st.sampled_from([0.0, 1e6, 1e9]),
        damped=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda path: path.number,
)


@given(PATHS)
def test_a_group_is_empty_only_when_nothing_is_usable_and_holds_nothing_worse_than_what_it_leaves_out(paths: list[Path]) -> None:
    chosen = group(paths)
    usable = [path for path in paths if rank(path) is not None]
    assert bool(chosen) == bool(usable)
    taken = {path.number for path in chosen}
    for path in usable:
        for mine in chosen:
            assert path.number in taken or (path.damped, path.access) > (mine.damped, mine.access)


@given(PATHS, st.sampled_from(Policy), st.sampled_from([IMMEDIATE, MANUAL, Failback(5)]), st.data())
def test_whatever_happens_a_usable_path_is_chosen_while_there_is_one(
    paths: list[Path], policy: Policy, failback: Failback, data: st.DataObject
) -> None:
    chooser = Chooser[Path](policy, failback)
    for now in range(data.draw(st.integers(1, 12))):
        if paths:
            path = data.draw(st.sampled_from(paths))
            path.state, path.access = data.draw(st.sampled_from(PathState)), data.draw(st.sampled_from(Access))
        chooser.changed()
        chooser.tick(float(now))
        best = group(paths)
        for _ in range(3):
            chosen = chooser.choose(paths, 4096)
            assert (chosen is None) == (not best)
            if chosen is not None:
                assert rank(chosen) is not None
                if failback is IMMEDIATE:
                    assert chosen in best


def test_only_a_group_in_transition_is_waited_for() -> None:
    assert transitioning([Path(0, access=STANDBY), Path(1, access=Access.TRANSITIONING)])
    assert not transitioning([Path(0, PathState.DOWN, Access.TRANSITIONING), Path(1, access=Access.UNAVAILABLE)])


def picks(chooser: Chooser[Path], paths: list[Path], count: int, length: int = 4096) -> list[int]:
    found = (chooser.choose(paths, length) for _ in range(count))
    return [path.number if path is not None else -1 for path in found]


def test_failover_keeps_to_one_path_until_it_is_gone_and_does_not_return_to_an_equal_one() -> None:
    paths = [Path(0), Path(1), Path(2)]
    chooser = Chooser[Path](Policy.FAILOVER)
    assert picks(chooser, paths, 3) == [0, 0, 0]
    paths[0].state = PathState.DOWN
    chooser.changed()
    assert picks(chooser, paths, 2) == [1, 1]
    paths[0].state = PathState.UP
    chooser.changed()
    assert picks(chooser, paths, 2) == [1, 1]


def test_failover_returns_to_the_preferred_path_among_equals() -> None:
    paths = [Path(0), Path(1, PathState.DOWN, preferred=True)]
    chooser = Chooser[Path](Policy.FAILOVER)
    assert picks(chooser, paths, 1) == [0]
    paths[1].state = PathState.UP
    chooser.changed()
    assert picks(chooser, paths, 1) == [1]


def fallen_back(policy: Policy, failback: Failback) -> tuple[Chooser[Path], list[Path]]:
    """A chooser on the non-optimized path 1, at the moment when the optimized path 0 has come back."""
    paths = [Path(0, PathState.DOWN), Path(1, access=NON_OPTIMIZED)]
    chooser = Chooser[Path](policy, failback)
    assert picks(chooser, paths, 1) == [1]
    paths[0].state = PathState.UP
    chooser.changed()
    return chooser, paths


@pytest.mark.parametrize("policy", Policy)
def test_failback_at_once_never_and_after_a_time(policy: Policy) -> None:
    chooser, paths = fallen_back(policy, IMMEDIATE)
    assert picks(chooser, paths, 1) == [0]
    assert chooser.tick(0.0) is None

    chooser, paths = fallen_back(policy, MANUAL)
    assert picks(chooser, paths, 1) == [1]
    assert chooser.tick(1e9) is None
    assert picks(chooser, paths, 1) == [1]

    chooser, paths = fallen_back(policy, Failback(30))
    assert picks(chooser, paths, 1) == [1]
    assert chooser.tick(1000.0) == 30
    assert chooser.tick(1029.0) == 1
    assert picks(chooser, paths, 1) == [1]
    assert chooser.tick(1030.0) is None
    assert picks(chooser, paths, 1) == [0]


def test_the_time_of_failback_starts_again_when_the_better_group_went_away() -> None:
    chooser, paths = fallen_back(Policy.FAILOVER, Failback(30))
    picks(chooser, paths, 1)
    chooser.tick(1000.0)
    for state in (PathState.DOWN, PathState.UP):
        paths[0].state = state
        chooser.changed()
        assert picks(chooser, paths, 1) == [1]
    assert chooser.tick(1031.0) == 30
    assert picks(chooser, paths, 1) == [1]


def test_a_group_that_is_gone_is_left_whatever_the_failback() -> None:
    chooser, paths = fallen_back(Policy.ROUND_ROBIN, MANUAL)
    assert picks(chooser, paths, 1) == [1]
    paths[1].state = PathState.FENCING
    chooser.changed()
    assert picks(chooser, paths, 1) == [0]


def test_a_path_that_the_target_demoted_is_left_at_once() -> None:
    paths = [Path(0), Path(1, access=NON_OPTIMIZED)]
    chooser = Chooser[Path](Policy.FAILOVER, MANUAL)
    assert picks(chooser, paths, 1) == [0]
    paths[0].access, paths[1].access = NON_OPTIMIZED, Access.OPTIMIZED
    chooser.changed()
    assert picks(chooser, paths, 1) == [1]


def test_nothing_changes_until_it_is_said() -> None:
    paths = [Path(0), Path(1)]
    chooser = Chooser[Path](Policy.FAILOVER)
    assert picks(chooser, paths, 1) == [0]
    paths[0].state = PathState.DOWN
    assert picks(chooser, paths, 1) == [0]


def test_with_nothing_left_there_is_no_path_and_the_first_to_come_back_is_taken() -> None:
    paths = [Path(0, PathState.DOWN), Path(1, PathState.DOWN)]
    chooser = Chooser[Path](Policy.QUEUE_LENGTH)
    assert picks(chooser, paths, 2) == [-1, -1]
    paths[1].state = PathState.UP
    chooser.changed()
    assert picks(chooser, paths, 2) == [1, 1]


@pytest.mark.parametrize("repeat, expected", [(1, [0, 1, 2, 0, 1, 2]), (2, [0, 0, 1, 1, 2, 2]), (4, [0, 0, 0, 0, 1, 1])])
def test_round_robin_gives_each_path_its_requests_in_turn(repeat: int, expected: list[int]) -> None:
    assert picks(Chooser[Path](Policy.ROUND_ROBIN, repeat=repeat), [Path(0), Path(1), Path(2)], 6) == expected


def test_the_shortest_queue_is_taken_and_equals_take_turns() -> None:
    paths = [Path(0, in_flight=2), Path(1), Path(2)]
    chooser = Chooser[Path](Policy.QUEUE_LENGTH)
    assert sorted(picks(chooser, paths, 2)) == [1, 2]
    for _ in range(7):
        path = chooser.choose(paths, 4096)
        assert path is not None
        path.in_flight += 1
    assert [path.in_flight for path in paths] == [3, 3, 3]


@pytest.mark.parametrize(
    "first, second, length, expected",
    [
        ((0, 100.0), (0, 50.0), 100, 0),
        ((300, 100.0), (0, 50.0), 100, 1),
        ((100, 100.0), (0, 50.0), 100, 0),
        ((101, 100.0), (0, 50.0), 100, 1),
        ((500, 100.0), (0, 0.0), 100, 1),
        ((100, 0.0), (0, 0.0), 100, 1),
    ],
)
def test_service_time_is_what_waits_and_what_comes_over_the_rate(
    first: tuple[int, float], second: tuple[int, float], length: int, expected: int
) -> None:
    paths = [Path(at, bytes_in_flight=each[0], service_rate=each[1]) for at, each in enumerate((first, second))]
    assert picks(Chooser[Path](Policy.SERVICE_TIME), paths, 1, length) == [expected]


def test_service_time_shares_in_proportion_to_the_rates() -> None:
    paths = [Path(0, service_rate=3e6), Path(1, service_rate=1e6)]
    chooser = Chooser[Path](Policy.SERVICE_TIME)
    for _ in range(400):
        path = chooser.choose(paths, 4096)
        assert path is not None
        path.bytes_in_flight += 4096
    assert abs(paths[0].bytes_in_flight / 4096 - 300) <= 2


def test_words_and_what_is_none() -> None:
    assert [Policy.parse(policy.value) for policy in Policy] == list(Policy)
    with pytest.raises(UsageError, match="did you mean round-robin"):
        Policy.parse("Round_Robin")
    with pytest.raises(UsageError, match="did you mean queue-length"):
        Policy.parse("queue-lenght")
    with pytest.raises(UsageError, match="there are failover, round-robin"):
        Policy.parse("zzz")


@pytest.mark.parametrize("text", ["immediate", "manual", "30", "1.5"])
def test_failback_is_written_as_it_is_read(text: str) -> None:
    assert str(Failback.parse(text)) == text
    assert Failback.parse("0") == IMMEDIATE


@pytest.mark.parametrize("text", ["fail", "queue", "60"])
def test_no_path_retry_is_written_as_it_is_read(text: str) -> None:
    assert str(NoPathRetry.parse(text)) == text
    assert (FAIL.seconds, QUEUE.seconds) == (0.0, math.inf)


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e9", "never", "5s", "٣", "99999999999"])
def test_what_is_neither_a_word_nor_seconds_is_a_usage_error(text: str) -> None:
    for parse in (Failback.parse, NoPathRetry.parse):
        with pytest.raises(UsageError, match="number of seconds"):
            parse(text)


def test_another_policy_holds_from_the_next_request_on() -> None:
    chooser, paths = Chooser[Path](), [Path(0), Path(1)]
    assert picks(chooser, paths, 3) == [0, 0, 0]
    chooser.follow(Policy.ROUND_ROBIN, MANUAL)
    assert sorted(set(picks(chooser, paths, 4))) == [0, 1]
    assert (chooser.policy, chooser.failback) == (Policy.ROUND_ROBIN, MANUAL)
    chooser.follow(Policy.FAILOVER, IMMEDIATE)
    assert len(set(picks(chooser, paths, 3))) == 1
