"""Changing how the paths are used while a daemon serves: the request `change` of its control socket, which `isblk reload` makes.

    {"request": "change", "paths": {"policy": "round-robin", "failback": null, ...}}

has the options of a command as text, null where that is not given; options that are not among PATHS need another process. What is in
flight or waits is not touched: the next request is sent, and the next loss of all paths waited for, as is said now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from isblk.block.pathset import PathSet
from isblk.config import PathOptions, make_policies
from isblk.errors import UsageError

log = logging.getLogger(__name__)

PATHS = ("policy", "failback", "no-path-retry", "replacement-timeout", "fence")
"""Options that can be changed."""


def changes(paths: PathSet, longest: float | None = None) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """The requests, for ending.controlled. Nothing may wait as long as `longest` seconds, when somebody gives up then."""

    def change(message: dict[str, Any]) -> dict[str, Any]:
        words: dict[str, Any] = {name.replace("-", "_"): text for name, text in _words(message.get("paths")).items()}
        policies, _ = make_policies(PathOptions(**words), (), 15)
        if longest is not None and policies.no_path.seconds >= longest:
            raise UsageError(
                f"requests would wait for a path ({policies.no_path}) as long as the kernel waits for an answer ({longest:g} s)"
            )
        new = replace(paths.policies, policy=policies.policy, failback=policies.failback, no_path=policies.no_path, fence=policies.fence)
        if new != paths.policies:
            paths.follow(new)
            log.warning(
                "from now on: policy %s, failback %s, no-path-retry %s, fence %s",
                new.policy.value,
                new.failback,
                new.no_path,
                new.fence.value,
            )
        return {}

    return {"change": change}


def _words(given: Any) -> dict[str, str | None]:
    """What came over the socket: options that can be changed, each a text or null. Raises UsageError."""
    if not isinstance(given, dict) or not all(text is None or isinstance(text, str) for text in given.values()):
        raise UsageError("`paths` is an object of options, each a text or null")
    unknown = sorted(set(given) - set(PATHS))
    if unknown:
        raise UsageError(f"{unknown[0]} cannot be changed while it is served; what can is {', '.join(PATHS)}")
    return given
