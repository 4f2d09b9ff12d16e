"""What a service manager is told (sd_notify(3)): ready, how it is, that it lives, that it ends and still works on that.

Theory of operation. NOTIFY_SOCKET names a datagram socket; where it is not set, nothing here does anything. (python3-systemd would be a
library in C for these lines.) A daemon that leaves its terminal takes the variable out of its environment (detach.py): nobody waits for it.

The watchdog is to end a daemon that hangs, and none whose target does not answer: requests wait for a path, and a restart would lose them.
So a sign of life is sent when a task of trio has woken the plane and a handler of the plane has run for it: signals, timers and control
turn then, and so does what carries every request. It takes the same way as data do, by an eventfd(2) in the plane's own epoll; a timer that
sends it by itself would go on while the plane hangs.

At the end STOPPING is said, and then every few seconds that a little more time is needed, for as long as trio and the end itself go on.
How long an end takes is bounded by ending.py; a manager that hears nothing any more kills.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress

import trio

from isblk.link.plane import Plane

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
LOOK_SECONDS = 1.0
"""How often the text is looked at; it is sent when it has changed."""
EXTEND_SECONDS = 10.0
"""What is asked for at the end, twice in that time."""


def send(*lines: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the manager, if there is one, VARIABLE=VALUE lines. What it does not take is lost: it is no reason to end."""
    name = environment.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        connection.sendto("\n".join(lines).encode(errors="replace"), address)


def ready() -> None:
    """It serves from now on."""
    send("READY=1")


def forget(environment: MutableMapping[str, str] = os.environ) -> None:
    """Be nobody's service: what is started from here, and this process, tell nobody anything."""
    for variable in VARIABLES:
        environment.pop(variable, None)


def watchdog_seconds(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often a sign of life is due: twice in the time after which the manager takes us for dead. None: it does not watch us."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdecimal() or not int(text) or pid != str(os.getpid()):
        return None
    return int(text) / 2_000_000


async def keep(plane: Plane, text: Callable[[], str], stop: trio.Event) -> None:
    """Tell the manager how it is, and that the plane turns, until `stop`; from then on, until cancelled, that the end needs its time."""
    if "NOTIFY_SOCKET" not in os.environ:
        return
    seconds = watchdog_seconds()
    async with trio.open_nursery() as nursery:
        if seconds is not None:
            nursery.start_soon(_watch, plane, seconds)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_at, stop, scope)
            await _report(text)
        send("STOPPING=1", "STATUS=writing back and logging out")
        while True:
            send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_SECONDS * 1e6)}")
            await trio.sleep(EXTEND_SECONDS / 2)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _report(text: Callable[[], str]) -> None:
    said = ""
    while True:
        now = text()
        if now != said:
            said = now
            send(f"STATUS={now}")
        await trio.sleep(LOOK_SECONDS)


class _Life:
    """On the plane: what its eventfd wakes is the sign of life."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def ready(self, events: int) -> None:
        """The plane has come by."""
        os.eventfd_read(self._descriptor)
        send("WATCHDOG=1")

    def broken(self, error: Exception) -> None:
        """Nothing to end; without signs of life the manager does."""


@contextmanager
def _on(plane: Plane) -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    plane.register(descriptor, _Life(descriptor))
    try:
        yield descriptor
    finally:
        plane.unregister(descriptor)
        os.close(descriptor)


async def _watch(plane: Plane, seconds: float) -> None:
    with _on(plane) as descriptor:
        while True:
            os.eventfd_write(descriptor, 1)
            await trio.sleep(seconds)
