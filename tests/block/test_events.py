"""The ring of events: numbers, what is forgotten, and what the layers above the sessions tell."""

from __future__ import annotations

import json
import time

import pytest
import trio

from isblk.block.choose import NoPathRetry, Policy
from isblk.block.events import KEPT, NOBODY, TEXT_LIMIT, Events, Kind
from isblk.scsi.data import AccessState
from support.fakepaths import Rig


def kinds(events: Events) -> list[str]:
    return [event["kind"] for event in events.after(0, KEPT)[0]]


def test_an_event_has_a_number_a_time_a_kind_and_a_level() -> None:
    events = Events()
    before = time.time()
    events.add(Kind.PATH_DOWN, "path 10.0.0.5:3260 is down", lun=3, path="10.0.0.5:3260")
    ((event,), forgotten) = events.after(0, 10)
    assert (event["number"], event["kind"], event["level"], event["lun"], forgotten) == (1, "path-down", "warning", 3, 0)
    assert before <= event["time"] <= time.time()
    assert json.loads(json.dumps(event)) == event


def test_what_came_after_a_number_in_portions() -> None:
    events = Events()
    for number in range(1, 8):
        events.add(Kind.LOGIN, str(number))
    assert [event["text"] for event in events.after(3, 2)[0]] == ["4", "5"]
    assert [event["number"] for event in events.after(5, 10)[0]] == [6, 7]
    assert events.after(7, 10) == ([], 0)


def test_what_the_ring_has_forgotten_is_counted() -> None:
    events = Events(kept=3)
    for number in range(1, 8):
        events.add(Kind.LOGIN, str(number))
    assert [([event["number"] for event in found], lost) for found, lost in (events.after(after, 9) for after in (0, 2, 4, 6))] == [
        ([5, 6, 7], 4),
        ([5, 6, 7], 2),
        ([5, 6, 7], 0),
        ([7], 0),
    ]


def test_a_number_that_never_was_is_another_daemons() -> None:
    events = Events()
    events.add(Kind.LOGIN, "ours")
    assert [event["text"] for event in events.after(500, 10)[0]] == ["ours"]


def test_a_long_text_is_cut_and_nobody_remembers_nothing() -> None:
    events = Events()
    events.add(Kind.LOGIN, "x" * 10_000)
    (event,) = events.after(0, 1)[0]
    assert len(event["text"]) == TEXT_LIMIT and event["text"].endswith("...")
    NOBODY.add(Kind.LOGIN, "nothing")
    assert NOBODY.last == 0


@pytest.mark.logs("path .* is down", "path .* is up")
async def test_a_device_tells_of_failover_fence_and_failback(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, events = Rig(nursery), Events()
        rig.device.events = events
        rig.up(0, access=AccessState.OPTIMIZED)
        rig.up(1, access=AccessState.NON_OPTIMIZED)
        rig.write(3, 7)
        rig.cut(0)
        await trio.sleep(0.01)
        assert kinds(events) == ["failover", "fencing"], "while nobody can say that the first write will not land"
        (failover, fencing), _ = events.after(0, 9)
        assert (failover["before"], failover["after"]) == (["10.0.0.1:3260"], ["10.0.0.1:3261"])
        assert (fencing["path"], fencing["writes"], fencing["lun"]) == ("10.0.0.1:3260", 1, 0)
        rig.up(0)
        await trio.sleep(1)
        assert sorted(kinds(events)[2:]) == ["failback", "fenced"]
        assert rig.device.switches == 2
        nursery.cancel_scope.cancel()


@pytest.mark.logs("path .* is down", "path .* is up")
async def test_a_device_without_a_path_says_so_once_and_when_it_gives_up(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, events = Rig(nursery, count=1, no_path=NoPathRetry(5)), Events()
        rig.device.events = events
        rig.device.tick(trio.current_time())
        assert not kinds(events), "before there was ever a path nobody has lost one"
        rig.up(0)
        rig.cut(0)
        request = rig.read(0)
        for _ in range(30):
            rig.device.tick(trio.current_time())
            await trio.sleep(0.25)
        assert kinds(events) == ["no-path", "gave-up"]
        assert "requests wait 5 s" in events.after(0, 1)[0][0]["text"]
        assert request.error is not None
        rig.up(0)
        rig.device.powered_on()
        assert kinds(events)[2:] == ["power-on"], "the same path as before is no failover"
        nursery.cancel_scope.cancel()


@pytest.mark.logs("path .* is down", "path .* is up")
async def test_paths_that_share_the_work_come_and_go_without_a_failover(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig, events = Rig(nursery, count=3, policy=Policy.ROUND_ROBIN), Events()
        rig.device.events = events
        for number in range(3):
            rig.up(number)
        rig.cut(0)
        rig.up(0)
        assert kinds(events) == [] and rig.device.switches == 0
        rig.cut(1)
        rig.cut(2)
        assert rig.device.switches == 0, "one of those that carried requests is left"
        nursery.cancel_scope.cancel()


@pytest.mark.logs("path .* is down")
async def test_retries_and_latencies_of_a_path_outlive_its_sessions(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, count=1, hold=False)
        rig.up(0)
        path = rig.device.paths[0]
        for block in range(20):
            rig.read(block)
        assert path.latency.as_dict()["requests"] == path.requests == 20
        rig.unit(0).retries = 3
        rig.cut(0)
        assert path.retries == 3 and path.latency.samples == 20
        nursery.cancel_scope.cancel()
