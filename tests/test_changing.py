"""How the paths are used is changed while a daemon serves, over its control socket."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isblk.block.choose import MANUAL, NoPathRetry, Policy
from isblk.block.policies import FencePolicy, Policies
from isblk.changing import PATHS, changes
from isblk.errors import UsageError
from isblk.table.options import IN_PLACE


class FakePaths:
    """As much of a PathSet as is told."""

    def __init__(self) -> None:
        self.policies = Policies(shared=True, network_wait=7)
        self.told: list[Policies] = []

    def follow(self, policies: Policies) -> None:
        self.policies = policies
        self.told.append(policies)


def change(paths: FakePaths, words: Any, longest: float | None = None) -> None:
    assert changes(paths, longest)["change"]({"request": "change", "paths": words}) == {}  # type: ignore[arg-type]


@pytest.mark.logs("from now on: policy round-robin, failback manual, no-path-retry queue, fence fast")
def test_what_is_said_holds_and_the_rest_stays() -> None:
    paths = FakePaths()
    change(paths, {"policy": "round-robin", "failback": "manual", "no-path-retry": "queue", "replacement-timeout": None, "fence": "fast"})
    assert paths.told == [Policies(Policy.ROUND_ROBIN, MANUAL, NoPathRetry(math.inf), FencePolicy.FAST, shared=True, network_wait=7)]


@pytest.mark.logs("policy queue-length", "policy failover")
def test_what_is_not_said_is_what_is_built_in() -> None:
    paths = FakePaths()
    change(paths, {"policy": "queue-length", "replacement-timeout": "5"})
    change(paths, {"policy": None})
    assert paths.policies == Policies(shared=True, network_wait=7)


def test_what_is_so_already_is_not_told_again() -> None:
    paths = FakePaths()
    change(paths, {"policy": "failover", "no-path-retry": "120"})
    assert not paths.told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (None, "`paths` is an object of options, each a text or null"),
        ({"policy": 5}, "`paths` is an object of options, each a text or null"),
        ({"shared": "yes"}, "shared cannot be changed while it is served; what can is policy, failback"),
        ({"policy": "robin"}, "'robin' is no policy"),
        ({"no-path-retry": "5", "replacement-timeout": "6"}, "contradict each other"),
        ({"no-path-retry": "420"}, "as long as the kernel waits"),
        ({"no-path-retry": "queue"}, r"requests would wait for a path \(queue\) as long as the kernel waits for an answer \(420 s\)"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(words: Any, sentence: str) -> None:
    paths = FakePaths()
    with pytest.raises(UsageError, match=sentence):
        change(paths, words, longest=420)
    assert not paths.told


def test_the_table_knows_what_can_be_changed() -> None:
    assert IN_PLACE == PATHS
