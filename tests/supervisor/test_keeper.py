"""One export kept: attempts and pauses, an end that was asked for and one that was not, what is found, what is changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from isblk.control import STOP_DEADLINE
from isblk.errors import LoginRefused, UsageError
from isblk.supervisor.child import Differs
from isblk.supervisor.keeper import Keeper
from isblk.supervisor.life import FIRST_PAUSE, State
from isblk.table.entry import Entry, parse
from support.fakechildren import FakeChild, FakeHands

NAME = "iqn.2001-05.com.example:disks"
KILLED = r"/srv/a ended: it was killed by SIGKILL; next try in 0.5 s"
pytestmark = pytest.mark.usefixtures("autojump_clock")


def entry(options: str = "defaults") -> Entry:
    (found,) = parse("/etc/isblk/isblktab", f"{NAME} /srv/a fuse {options}").entries
    return found


@asynccontextmanager
async def kept(tmp_path: Path, hands: FakeHands, options: str = "defaults") -> AsyncIterator[Keeper]:
    """A keeper that runs, and is discarded at the end."""
    keeper = Keeper(entry(options), tmp_path, hands)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        yield keeper
        keeper.discarded = True
        keeper.down(force=True)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def up(keeper: Keeper, hands: FakeHands) -> FakeChild:
    """Let it be up; its child."""
    keeper.up()
    await settled()
    child = hands.started[-1]
    child.is_ready.set()
    await settled()
    assert keeper.life.state is State.UP
    return child


async def test_nothing_is_started_that_is_not_wanted_and_nothing_is_left(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        assert keeper.status()["state"] == "down"
    assert not hands.started
    assert not os.listdir(tmp_path)


async def test_it_is_started_and_ended_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        assert (keeper.life.state, keeper.status()["pid"]) == (State.STARTING, 100)
        child = await up(keeper, hands)
        keeper.down(force=False)
        assert keeper.life.state is State.STOPPING
        await settled()
        assert (keeper.life.state, keeper.life.exit_code, keeper.status()["pid"]) == (State.DOWN, 0, None)
        assert (child.asked, child.closed) == ([False], True)
    assert [record.getMessage() for record in caplog.records] == [
        "/srv/a is starting (process 100)",
        "/srv/a is up after 0.0 s (process 100)",
        "/srv/a is down",
    ]


@pytest.mark.logs(KILLED)
async def test_one_that_is_killed_is_started_again(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.dies()
        await settled()
        assert keeper.status()["state"] == "retrying"
        assert keeper.status()["reason"] == "it was killed by SIGKILL"
        assert keeper.life.next_try == keeper.life.since + FIRST_PAUSE
        assert keeper.status()["next_try"] == pytest.approx(time.time() + FIRST_PAUSE, abs=5)
        await trio.sleep(FIRST_PAUSE)
        await settled()
        hands.started[1].is_ready.set()
        await settled()
        assert (keeper.life.state, keeper.life.restarts, keeper.life.reason) == (State.UP, 1, "")


@pytest.mark.logs(r"no answer; next try in 0.5 s", r"no answer; next try in 1 s", r"no answer; next try in 1.5 s")
async def test_one_that_cannot_be_started_is_tried_at_longer_and_longer_intervals(tmp_path: Path) -> None:
    hands = FakeHands()
    hands.says = ["isblk: no answer"]
    async with kept(tmp_path, hands, "retry=1.5") as keeper:
        keeper.up()
        begin = trio.current_time()
        times = []
        for number in range(4):
            child = await hands.child(number)
            times.append(trio.current_time() - begin)
            child.dies(5, "")
            await settled()
            assert (keeper.life.reason, keeper.life.exit_code) == ("no answer", 5)
    assert times == pytest.approx([0, 0.5, 1.5, 3.0], abs=0.1)


@pytest.mark.logs(r"/srv/a could not be started: no answer; next try", r"/srv/a: a warning on the way")
async def test_the_sentence_that_ends_a_command_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hands = FakeHands()
    hands.says = ["isblk: a warning on the way", "isblk: no answer"]
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        (await hands.child(0)).dies(5, "")
        await settled()
    assert caplog.text.count("no answer") == 1


@pytest.mark.logs(r"/srv/a could not be started: it ended with exit code 1; it is not tried again")
async def test_with_one_attempt_it_waits_to_be_asked(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands, "retry=never") as keeper:
        keeper.up()
        (await hands.child(0)).dies(1, "")
        await trio.sleep(80000)
        assert (keeper.life.state, keeper.life.exit_code, len(hands.started)) == (State.FAILED, 1, 1)
        await up(keeper, hands)
        assert len(hands.started) == 2


@pytest.mark.logs(
    r"could not be started: Nope; next try", r"could not be started: no process could be started: Cannot allocate memory; next try"
)
async def test_a_process_that_cannot_be_made_is_a_failed_attempt(tmp_path: Path) -> None:
    hands = FakeHands()
    hands.fails = LoginRefused("Nope")
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        assert (keeper.life.state, keeper.life.exit_code) == (State.RETRYING, 4)
        hands.fails = OSError(12, "Cannot allocate memory")
        await trio.sleep(FIRST_PAUSE)
        await settled()
        assert (keeper.life.state, keeper.life.exit_code) == (State.RETRYING, 6)


@pytest.mark.logs(KILLED)
async def test_who_asks_for_it_does_not_wait_for_the_next_attempt(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        (await up(keeper, hands)).dies()
        await settled()
        before = trio.current_time()
        await up(keeper, hands)
        assert trio.current_time() == before


@pytest.mark.logs(KILLED)
async def test_the_end_of_one_that_waits_for_its_next_attempt_comes_at_once(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        (await up(keeper, hands)).dies()
        await settled()
        keeper.down(force=False)
        assert keeper.life.state is State.DOWN
        await trio.sleep(100)
        assert len(hands.started) == 1


async def test_one_that_somebody_else_ended_in_order_stays_down(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        (await up(keeper, hands)).dies(0, "")
        await trio.sleep(100)
        assert (keeper.life.state, keeper.life.reason) == (State.DOWN, "ended in order, by somebody else")
        assert len(hands.started) == 1
        await up(keeper, hands)


@pytest.mark.logs(r"/srv/a stays up: it is in use")
async def test_one_that_is_in_use_stays_up_unless_forced(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.busy = "it is in use"
        keeper.down(force=False)
        await settled()
        assert (keeper.life.state, keeper.life.reason, keeper.life.exit_code) == (State.UP, "it is in use", 2)
        keeper.down(force=True)
        await settled()
        assert (keeper.life.state, child.asked) == (State.DOWN, [False, True])


@pytest.mark.logs(r"/srv/a stays up: it should end, but still runs after 60 s")
async def test_one_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.obeys = False
        keeper.down(force=True)
        await trio.sleep(STOP_DEADLINE + 1)
        assert (keeper.life.state, keeper.life.exit_code) == (State.UP, 5)
        child.obeys = True


@pytest.mark.logs(r"/srv/a is down: written data may be lost")
async def test_data_that_was_lost_at_the_end_is_told(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.obeys = False
        keeper.down(force=False)
        await settled()
        child.dies(6, "", "written data may be lost")
        await settled()
        assert (keeper.life.state, keeper.life.exit_code, keeper.life.reason) == (State.DOWN, 6, "written data may be lost")


async def test_one_that_is_starting_is_ended_without_asking_who_uses_it(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        keeper.down(force=False)
        await settled()
        assert hands.started[0].asked == [True]
        assert keeper.life.state is State.DOWN


async def test_an_end_that_is_asked_for_before_there_is_a_child_comes_with_it(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await trio.lowlevel.checkpoint()
        keeper.down(force=False)
        await settled()
        assert keeper.life.state is State.DOWN
        assert all(child.over.is_set() for child in hands.started)


async def test_one_that_is_wanted_again_while_it_ends_is_started_behind_that(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.obeys = False
        keeper.down(force=False)
        await settled()
        keeper.up()
        assert keeper.life.state is State.STOPPING
        child.over.set()
        await settled()
        assert (keeper.life.state, len(hands.started)) == (State.STARTING, 2)


async def test_what_another_supervisor_left_is_found_and_not_started_twice(tmp_path: Path) -> None:
    hands = FakeHands()
    child = hands.left["/srv/a"] = FakeChild(entry(), 77, is_adopted=True)
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        child.is_ready.set()
        await settled()
        assert not hands.started
        assert (keeper.status()["pid"], keeper.status()["adopted"], keeper.status()["state"]) == (77, True, "up")
        keeper.down(force=False)
        await settled()
        assert child.asked == [False]


async def test_what_was_left_with_other_options_is_started_again_with_those_of_the_table(tmp_path: Path) -> None:
    hands = FakeHands()
    child = hands.left["/srv/a"] = FakeChild(entry(), 77, is_adopted=True, differs=Differs.MORE)
    child.is_ready.set()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        assert child.asked == [False]
        assert (keeper.life.state, keeper.status()["pid"]) == (State.STARTING, 100)


async def test_other_options_mean_another_process_and_the_tables_own_do_not(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        keeper.change(entry("nofail,retry=5,timeout=6"))
        await settled()
        assert (keeper.life.state, child.asked) == (State.UP, [])
        assert (keeper.status()["nofail"], keeper.status()["retry"], keeper.status()["timeout"]) == (True, 5, 6)
        keeper.change(entry("ro"))
        await settled()
        assert child.asked == [False]
        assert hands.started[1].entry == entry("ro")
        assert keeper.life.state is State.STARTING


async def test_what_a_daemon_can_be_told_needs_no_new_process(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        keeper.change(entry("policy=round-robin"))
        assert keeper.status()["changing"]
        await settled()
        assert (child.changes, child.asked) == ([entry("policy=round-robin")], [])
        assert (keeper.entry, keeper.status()["changing"], keeper.life.state) == (entry("policy=round-robin"), False, State.UP)
        child.refuses = UsageError("it cannot")
        keeper.change(entry("policy=queue-length"))
        await settled()
        assert child.asked == [False]
        assert hands.started[1].entry == entry("policy=queue-length")


async def test_one_that_is_not_up_yet_is_started_again_with_what_it_could_be_told(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        await settled()
        keeper.change(entry("policy=round-robin"))
        await settled()
        assert [child.asked for child in hands.started] == [[True], []]
        assert hands.started[1].entry == entry("policy=round-robin")


async def test_what_is_found_is_told_what_it_can_be_told(tmp_path: Path) -> None:
    hands = FakeHands()
    child = hands.left["/srv/a"] = FakeChild(entry(), 77, is_adopted=True, differs=Differs.IN_PLACE)
    child.is_ready.set()
    async with kept(tmp_path, hands, "policy=round-robin") as keeper:
        keeper.up()
        await settled()
        assert (child.changes, child.asked) == ([entry("policy=round-robin")], [])


@pytest.mark.logs(r"/srv/a stays up: it is in use")
async def test_one_that_is_in_use_keeps_its_old_options(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        child = await up(keeper, hands)
        child.busy = "it is in use"
        keeper.change(entry("ro"))
        await settled()
        assert (keeper.entry, keeper.life.state, keeper.life.exit_code) == (entry(), State.UP, 2)


@pytest.mark.logs(r"next try in 0.5 s", r"next try in 1 s", r"next try in 2 s", r"next try in 4 s", r"next try in 8 s", "next try in 16 s")
async def test_a_shorter_pause_counts_at_once(tmp_path: Path) -> None:
    hands = FakeHands()
    async with kept(tmp_path, hands) as keeper:
        keeper.up()
        for number in range(6):
            (await hands.child(number)).dies(5, "gone")
            await settled()
        before = trio.current_time()
        keeper.change(entry("nofail"))
        await settled()
        assert len(hands.started) == 6
        keeper.change(entry("nofail,retry=1"))
        await hands.child(6)
        assert trio.current_time() - before < 1


@pytest.mark.logs(r"^WARNING isblk.supervisor.keeper: /srv/a: a path is gone$")
async def test_what_a_child_says_is_logged_with_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hands = FakeHands()
    hands.says = ["isblk: /srv/a is mounted; Ctrl-C unmounts"]
    async with kept(tmp_path, hands) as keeper:
        await up(keeper, hands)
        output = keeper._words.for_child()
        os.write(output, b"isblk: a path is gone\n")
        os.close(output)
        await settled()
        await trio.sleep(1)
    assert "Ctrl-C" not in caplog.text
