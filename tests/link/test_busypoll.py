"""Waiting without sleeping: it finds what is there, costs little where nothing is, and stops where others need the processor."""

from __future__ import annotations

from isblk.link.busypoll import CROWD, PENALTY, REST, SPIN_SECONDS, BusyPoll, Events, involuntary_switches

HERE: Events = [(5, 1)]


class World:
    """A clock that goes on by a tenth of a spin at each look; an event comes `after` seconds of looking, or when it is slept for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.switched = 0
        self.after = SPIN_SECONDS / 2
        self.looks = 0
        self.sleeps: list[float] = []
        self.began = 0.0
        self.busy = BusyPoll(lambda: self.now, lambda: self.switched)

    def poll(self, seconds: float) -> Events:
        if seconds:
            self.sleeps.append(seconds)
            return HERE
        self.looks += 1
        self.now += SPIN_SECONDS / 10
        return HERE if self.now - self.began >= self.after else []

    def wait(self, seconds: float = 0.02) -> Events:
        self.began = self.now
        return self.busy.wait(self.poll, seconds)


def test_what_comes_within_a_spin_is_found_without_sleeping() -> None:
    world = World()
    for _ in range(10):
        assert world.wait() == HERE
    assert not world.sleeps
    assert world.looks >= 10


def test_what_takes_longer_is_slept_for_and_failures_make_looks_rare() -> None:
    world = World()
    world.after = 1.0
    for _ in range(2000):
        assert world.wait() == HERE
    assert len(world.sleeps) == 2000
    looked = world.looks / 11  # a spin is ten looks and the one that ends it
    assert looked < 8 + 2000 / PENALTY + 1, "each failure doubles the waits until the next look, up to a bound"


def test_it_comes_back_when_the_target_has_become_quick_again() -> None:
    world = World()
    world.after = 1.0
    for _ in range(2000):
        world.wait()
    world.after, world.sleeps = 0.0, []
    for _ in range(PENALTY + 100):
        world.wait()
    assert len(world.sleeps) <= PENALTY


def test_nothing_is_spun_where_others_need_the_processor() -> None:
    world = World()
    world.switched += CROWD + 1
    world.busy.burst()
    for _ in range(REST):
        world.looks = 0
        assert world.wait() == HERE
        assert not world.looks
        world.busy.burst()
    assert len(world.sleeps) == REST
    world.wait()
    assert world.looks


def test_a_few_switches_are_no_crowd() -> None:
    world = World()
    world.switched += CROWD
    world.busy.burst()
    world.wait()
    assert world.looks


def test_a_wait_that_must_not_last_does_not_spin() -> None:
    world = World()
    world.busy.wait(world.poll, SPIN_SECONDS / 5)
    assert not world.looks
    assert world.sleeps == [SPIN_SECONDS / 5]


def test_the_switches_of_this_thread_are_counted() -> None:
    assert 0 <= involuntary_switches() <= involuntary_switches()
