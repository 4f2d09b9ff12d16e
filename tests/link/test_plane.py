"""The plane: handlers called, batches merged, bursts bounded, and nobody hurt by a neighbour."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.link import plane as module
from isblk.link.plane import BURST_SECONDS, WRITABLE, Plane
from isblk.link.running import running_plane


class Ear:
    """A handler on one end of a socket pair; `speak` makes it readable."""

    def __init__(self, plane: Plane) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.heard: list[bytes] = []
        self.errors: list[Exception] = []
        self.events: list[int] = []
        self.then: Callable[[], None] = lambda: None
        self.on_broken: Callable[[], None] = lambda: None
        self.changed = trio.Event()
        plane.register(self.here.fileno(), self)

    def ready(self, events: int) -> None:
        self.events.append(events)
        try:
            self.heard.append(self.here.recv(100))
        except BlockingIOError:
            self.heard.append(b"nothing")
        self.note()
        self.then()

    def broken(self, error: Exception) -> None:
        self.errors.append(error)
        self.note()
        self.on_broken()

    def note(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def speak(self, data: bytes = b"x") -> None:
        self.there.send(data)

    def close(self) -> None:
        self.here.close()
        self.there.close()


@contextmanager
def ears(plane: Plane, count: int = 1) -> Iterator[list[Ear]]:
    made = [Ear(plane) for _ in range(count)]
    try:
        yield made
    finally:
        for ear in made:
            plane.unregister(ear.here.fileno())
            ear.close()


def raises(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


async def test_a_handler_is_called_when_its_descriptor_is_readable() -> None:
    async with running_plane() as plane:
        with ears(plane) as (ear,):
            ear.speak(b"hello")
            await ear.changed.wait()
            assert ear.heard == [b"hello"]


async def test_an_unregistered_descriptor_is_not_called_and_may_be_unregistered_again() -> None:
    async with running_plane() as plane:
        with ears(plane, 2) as (gone, other):
            plane.unregister(gone.here.fileno())
            plane.unregister(gone.here.fileno())
            gone.speak()
            other.speak()
            await other.changed.wait()
            assert gone.heard == []


async def test_a_handler_taken_away_by_another_of_the_same_poll_is_not_called() -> None:
    async with running_plane() as plane:
        with ears(plane, 2) as (one, two):
            one.then = lambda: plane.unregister(two.here.fileno())
            two.then = lambda: plane.unregister(one.here.fileno())
            one.speak()
            two.speak()
            plane._burst()
            assert len(one.heard) + len(two.heard) == 1


async def test_writability_is_told_only_while_it_is_watched() -> None:
    async with running_plane() as plane:
        with ears(plane) as (ear,):
            ear.then = lambda: plane.watch(ear.here.fileno(), reading=True, writing=False)
            plane.watch(ear.here.fileno(), reading=True, writing=True)
            await ear.changed.wait()
            await wait_all_tasks_blocked()
            assert ear.events == [WRITABLE]


async def test_a_handler_that_raises_ends_itself_and_nobody_else() -> None:
    async with running_plane() as plane:
        with ears(plane, 2) as (bad, good):
            bad.then = raises(RuntimeError("a bug"))
            bad.speak()
            good.speak()
            await good.changed.wait()
            assert [str(error) for error in bad.errors] == ["a bug"] and good.errors == []
            good.speak(b"again")
            await good.changed.wait()
            assert good.heard == [b"x", b"again"]


@pytest.mark.logs("ending a broken handler failed")
async def test_a_handler_that_cannot_even_end_is_logged_and_the_plane_goes_on() -> None:
    async with running_plane() as plane:
        with ears(plane, 2) as (bad, good):
            bad.then = raises(RuntimeError("a bug"))
            bad.on_broken = raises(RuntimeError("another"))
            bad.speak()
            await bad.changed.wait()
            good.speak()
            await good.changed.wait()
            assert good.heard == [b"x"]


# ---------------------------------------------------------------------------------------------------------------------------- batches


async def test_what_is_asked_for_at_the_end_of_a_batch_runs_once_all_handlers_of_the_poll_have_run() -> None:
    async with running_plane() as plane:
        with ears(plane, 3) as all_ears:
            order: list[str] = []

            def ready(ear: Ear) -> None:
                order.append("ready")
                plane.at_batch_end(ear, lambda: order.append("end"))

            for ear in all_ears:
                ear.then = partial(ready, ear)
                ear.speak()
            plane._burst()
            assert order == ["ready"] * 3 + ["end"] * 3


async def test_what_a_batch_end_asks_for_runs_in_the_same_poll() -> None:
    async with running_plane() as plane:
        with ears(plane) as (ear,):
            order: list[int] = []
            ear.then = lambda: plane.at_batch_end(ear, lambda: plane.at_batch_end(ear, lambda: order.append(plane.polls)))
            ear.speak()
            plane._burst()
            assert order == [1]


def test_outside_a_burst_a_batch_ends_at_once() -> None:
    plane = Plane()
    with ears(plane) as (ear,):
        order: list[str] = []
        plane.at_batch_end(ear, lambda: order.append("now"))
        plane.at_batch_end(ear, raises(RuntimeError("a bug")))
        assert order == ["now"] and [str(error) for error in ear.errors] == ["a bug"]
    plane.close()


async def test_a_batch_end_that_raises_ends_its_own_handler() -> None:
    async with running_plane() as plane:
        with ears(plane, 2) as (bad, good):
            order: list[str] = []
            bad.then = lambda: plane.at_batch_end(bad, raises(OSError("a cut cable")))
            good.then = lambda: plane.at_batch_end(good, lambda: order.append("good"))
            bad.speak()
            good.speak()
            plane._burst()
            assert order == ["good"] and len(bad.errors) == 1 and not good.errors


async def test_an_interrupted_burst_leaves_no_batch_open() -> None:
    plane = Plane()
    with ears(plane) as (ear,):
        ear.then = raises(KeyboardInterrupt())
        ear.speak()
        with pytest.raises(KeyboardInterrupt):
            plane._burst()
        order: list[str] = []
        plane.at_batch_end(ear, lambda: order.append("now"))
        assert order == ["now"], "what cleans up after an interrupt can still send"
    plane.close()


# ----------------------------------------------------------------------------------------------------------------------------- bursts


async def test_a_burst_ends_after_its_time_however_much_there_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    plane = Plane()
    with ears(plane) as (ear,):

        def busy() -> None:
            nonlocal now
            now += 0.001
            ear.speak()

        ear.then = busy
        ear.speak()
        plane._burst()
        assert abs(len(ear.heard) - BURST_SECONDS / 0.001) <= 1
    plane.close()


async def test_timers_run_although_a_descriptor_is_always_ready() -> None:
    async with running_plane() as plane:
        with ears(plane) as (ear,):
            ear.then = ear.speak
            ear.speak()
            fired = trio.Event()
            plane.call_later(0.001, fired.set)
            await fired.wait()
            assert plane.bursts >= 1 and plane.polls > plane.bursts


class CountingPoll:
    """An epoll that notes how long each poll was ready to wait."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.waits: list[float] = []

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.waits.append(timeout)
        events: list[tuple[int, int]] = self.inner.poll(timeout)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def sleeps(counting: CountingPoll) -> list[float]:
    """Without the looks before them."""
    return [each for each in counting.waits if each]


async def test_a_burst_waits_a_moment_for_what_comes_next_unless_somebody_is_impatient() -> None:
    plane = Plane()
    with ears(plane) as (ear,):
        counting = CountingPoll(plane._epoll)
        plane._epoll = counting  # type: ignore[assignment]
        ear.speak()
        plane._burst()
        assert sleeps(counting) == [module.PATIENCE_SECONDS]
        counting.waits.clear()
        with plane.impatient(), plane.impatient():
            ear.speak()
            plane._burst()
        assert counting.waits == [0.0, 0.0]
        counting.waits.clear()
        ear.speak()
        plane._burst()
        assert sleeps(counting) == [module.PATIENCE_SECONDS]
    plane.close()


async def test_a_burst_does_not_keep_a_task_waiting_that_could_run() -> None:
    """What a handler has done wakes whoever waits for it: a login, a question of control."""
    plane = Plane()
    with ears(plane) as (ear,):
        counting = CountingPoll(plane._epoll)
        plane._epoll = counting  # type: ignore[assignment]
        done = trio.Event()
        ear.then = done.set
        async with trio.open_nursery() as nursery:
            nursery.start_soon(done.wait)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(plane)  # as `run` does
            ear.speak()
            plane._burst()
            trio.lowlevel.remove_instrument(plane)
            assert counting.waits == [0.0]
    plane.close()


async def test_a_burst_waits_no_longer_than_to_the_next_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 10.0)
    plane = Plane()
    with ears(plane) as (ear,):
        counting = CountingPoll(plane._epoll)
        plane._epoll = counting  # type: ignore[assignment]
        with trio.move_on_after(0.003):  # noqa: ASYNC100 - its deadline is looked at, not waited for
            ear.speak()
            plane._burst()
        assert counting.waits[0] == 0.0 and max(counting.waits) <= 0.003
    plane.close()


def test_the_bound_that_timers_can_rely_on_is_short() -> None:
    assert BURST_SECONDS < 0.01


# ---------------------------------------------------------------------------------------------------------------------- trio's side


async def test_a_delayed_call_comes_by_the_clock_of_trio(autojump_clock: trio.testing.MockClock) -> None:
    async with running_plane() as plane:
        called: list[float] = []
        plane.call_later(30, lambda: called.append(trio.current_time()))
        start = trio.current_time()
        await trio.sleep(29)
        assert called == []
        await trio.sleep(2)
        assert called == [start + 30]


@pytest.mark.logs("a delayed call failed")
async def test_a_delayed_call_that_raises_is_logged(autojump_clock: trio.testing.MockClock) -> None:
    async with running_plane() as plane:
        plane.call_later(1, raises(RuntimeError("a bug")))
        await trio.sleep(2)


@pytest.mark.logs("a task beside the plane failed")
async def test_a_task_beside_the_plane_that_raises_does_not_end_the_plane() -> None:
    async def bad() -> None:
        raise RuntimeError("a bug")

    async with running_plane() as plane:
        with ears(plane) as (ear,):
            plane.start_soon(bad)
            await wait_all_tasks_blocked()
            ear.speak()
            await ear.changed.wait()
            assert ear.heard == [b"x"]


async def test_a_function_started_beside_the_plane_gets_its_arguments() -> None:
    got: list[int] = []

    async def function(*arguments: int) -> None:
        got.extend(arguments)

    async with running_plane() as plane:
        plane.start_soon(function, 1, 2)
        await wait_all_tasks_blocked()
    assert got == [1, 2]


def test_a_plane_that_does_not_run_starts_nothing() -> None:
    plane = Plane()
    with pytest.raises(AssertionError, match="not running"):
        plane.call_later(1, lambda: None)
    with pytest.raises(AssertionError, match="not running"):
        plane.start_soon(trio.sleep, 0)
    plane.close()


async def test_a_plane_that_has_ended_leaves_no_descriptor_and_no_delayed_call() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with running_plane() as plane:
        plane.call_later(1000, lambda: None)
        with ears(plane):
            await wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before
