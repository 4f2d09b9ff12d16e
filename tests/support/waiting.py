"""Waiting for what gives no signal: a foreign process to listen, a mount to go away. The only place in tests/ that sleeps."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Ask until the answer is true and return it; AssertionError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.02)
    return answer


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections at this TCP port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def eventually(condition: Callable[[], object]) -> None:
    """Return once the answer is true, while trio's other tasks go on; the caller's deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for gives no signal
        await trio.sleep(0.002)
