"""One path: its states as status shows them, flapping, its rate, what it still has to flush."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from isblk.block.choose import PathState
from isblk.block.path import FLAP_SECONDS, FLAPS, Path, port_group
from isblk.errors import PathLost, RequestFailed
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import Phase
from isblk.scsi.data import AccessState
from isblk.scsi.inquiry import Association, Designator, DesignatorType


def path(phase: Phase = Phase.UP, reason: str = "") -> Path:
    access = SimpleNamespace(isid=Isid.from_random(1))
    keeper = SimpleNamespace(portal=Portal("192.0.2.1", 3260), portal_group=3, access=access, logins=2, phase=phase, reason=reason)
    return Path(0, cast(Any, keeper))


def test_status_is_plain_and_whole() -> None:
    one = path()
    one.unit = cast(Any, SimpleNamespace(retries=2))
    one.retries = 1
    one.become(PathState.UP)
    one.in_flight, one.bytes = 2, 4096
    found = one.status()
    assert json.loads(json.dumps(found)) == found
    expected = {
        "portal": "192.0.2.1:3260",
        "portal_group": 3,
        "state": "up",
        "reason": None,
        "access": "optimized",
        "in_flight": 2,
        "bytes": 4096,
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(("phase", "state"), [(Phase.DOWN, "down"), (Phase.WRONG, "wrong unit")])
def test_why_a_path_stays_down(phase: Phase, state: str) -> None:
    one = path(phase, "another logical unit")
    one.become(PathState.DOWN, "reset by peer")
    assert (one.status()["state"], one.status()["reason"]) == (state, "another logical unit")


def test_since_is_when_the_state_began() -> None:
    one = path()
    one.become(PathState.UP)
    began = one.since
    one.become(PathState.UP)
    assert one.since == began


def test_flapping() -> None:
    one = path()
    for at in range(FLAPS):
        assert not one.flaps(at)
        one.count_loss(at)
    assert one.flaps(FLAPS) and not one.flaps(FLAP_SECONDS + 1) and one.losses == FLAPS


def test_the_rate_is_a_mean_that_forgets() -> None:
    one = path()
    one.finished(1000, 0)
    assert one.service_rate == 0
    one.finished(1000, 1)
    one.finished(2000, 1)
    assert one.service_rate == pytest.approx(1100)


def test_dirty_until_a_flush_has_covered_it() -> None:
    one = path()
    one.acknowledged = 2
    one.synchronized = 1
    assert one.dirty
    one.synchronized = 2
    assert not one.dirty


@pytest.mark.parametrize("access", list(AccessState))
def test_what_carries(access: AccessState) -> None:
    one = path()
    one.access = access
    assert not one.carries, "without a session nothing does"
    one.unit = cast(Any, object())
    one.become(PathState.FENCING)
    assert one.carries is (access in (AccessState.OPTIMIZED, AccessState.NON_OPTIMIZED, AccessState.LBA_DEPENDENT))
    one.become(PathState.STANDBY)
    assert not one.carries


def test_the_port_group_of_a_description() -> None:
    def found(*designators: Designator) -> Any:
        return SimpleNamespace(designators=designators)

    def designator(association: Association, kind: int, value: bytes) -> Designator:
        return cast(Designator, SimpleNamespace(association=association, type=kind, value=value))

    group = designator(Association.TARGET_PORT, DesignatorType.TARGET_PORT_GROUP, bytes([0, 0, 1, 2]))
    other = designator(Association.LOGICAL_UNIT, DesignatorType.TARGET_PORT_GROUP, bytes([0, 0, 9, 9]))
    assert (port_group(found(other, group)), port_group(found(other)), port_group(found())) == (0x102, None, None)


def test_a_depth_that_was_set_is_where_it_begins_and_where_it_ends() -> None:
    path = Path(0, cast(Any, None), 8)
    path.in_flight = 7
    assert path.depth == 8 and not path.is_full
    path.in_flight = 8
    assert path.is_full
    path.lower_depth()
    assert path.depth == 6
    for _ in range(100):
        path.raise_depth()
    assert path.depth == 8


def test_the_depth_of_a_full_path_goes_down_by_a_quarter_and_up_by_an_eighth() -> None:
    path = Path(0, cast(Any, None))
    path.in_flight = 32
    path.lower_depth()
    assert path.depth == 24 and path.is_full
    path.in_flight = 23
    assert not path.is_full
    path.raise_depth()
    assert path.depth == 27
    path.in_flight = 1
    path.lower_depth()
    assert path.depth == 1
    for _ in range(100):
        path.raise_depth()
    assert path.depth is None and not path.is_full


def test_what_was_timed_stands_for_every_request_that_was_counted() -> None:
    path, timed = Path(0, cast(Any, None)), 0
    for _ in range(10_000):
        path.requests += 1
        if not path.requests % path.every:
            path.finished(4096, 0.001, path.sample())
            timed += 1
    told = path.latency.as_dict()
    assert timed == told["samples"] < 1000 and 9000 < told["requests"] <= 10_000
    assert list(told["buckets"]) == ["1000"] and told["seconds"] == pytest.approx(told["requests"] / 1000)
    for _ in range(12):
        path.tick()
    assert path.every == 1


def test_one_that_is_timed_for_the_rate_alone_is_not_in_the_histogram() -> None:
    path = Path(0, cast(Any, None))
    path.finished(4096, 0.001)
    assert path.service_rate and not path.latency.samples


def test_errors_are_counted_by_kind() -> None:
    path = Path(0, cast(Any, None))
    for error in (PathLost("it is gone"), RequestFailed("the medium is bad"), PathLost("gone again")):
        path.failed(error)
    assert (path.errors, path.error_kinds, path.last_error) == (3, {"lost": 2, "failed": 1}, "gone again")
