"""What every daemon that serves disks has in common: a control socket while it serves, and an end in order that comes within seconds.

The order of the end is the promise, whatever asked for it: the front end takes no more requests, queued ones finish, SYNCHRONIZE CACHE,
Logout. What could not be written back is an error that names the disks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from isblk import controlserver, notify
from isblk.block.attach import Attachment
from isblk.block.events import Events, Kind
from isblk.block.request import flush
from isblk.block.stack import Disk
from isblk.errors import IsblkError, RequestFailed
from isblk.link.plane import Plane
from isblk.scsi.lun_number import lun_text
from isblk.status import in_one_line

PATIENCE_SECONDS = 4.0
"""How long, once the end was asked for, requests wait for a path when there is none: the 2 s that RFC 7143 13.15 has a lost session wait,
and a login."""
FENCE_PATIENCE_SECONDS = 4.0
"""How long they wait for a fence then."""


@asynccontextmanager
async def written_back(plane: Plane, attachment: Attachment, stop: trio.Event) -> AsyncIterator[None]:
    """A block that uses the disks; from `stop` on nothing in it waits long, and behind it everything is written back. A service manager
    is told how the paths are, and what happens (notify.py).

    Raises RequestFailed, naming each disk whose data may be lost.
    """
    plane.start_soon(_bound_the_end, attachment, stop)
    plane.start_soon(notify.keep, plane, lambda: in_one_line(attachment.paths.keepers), stop)
    try:
        yield
    finally:
        stop.set()
        with trio.CancelScope(shield=True):
            await write_back(attachment.disks)


@asynccontextmanager
async def controlled(
    directory: Path,
    status: Callable[[], dict[str, Any]],
    stop: trio.Event,
    more: Mapping[str, controlserver.Request] = controlserver.NO_MORE,
    events: Events | None = None,
) -> AsyncIterator[None]:
    """A block with a control socket in `directory`; asked to stop, it sets `stop`. An IsblkError of the block comes out as itself.

    `more` are the requests that this daemon knows beside status and stop; `events` are told of the beginning and the end, and who follows
    them is told too. Raises UsageError when the socket cannot be made.
    """
    events = Events() if events is None else events
    failure: IsblkError | None = None
    async with trio.open_nursery() as nursery:
        # An exception that crosses a nursery comes out in a group: kept until it has closed.
        try:
            await nursery.start(controlserver.serve, directory, status, stop.set, more, events)
            told = status()
            events.about = {name: told[name] for name in ("kind", "where", "target") if name in told}
            events.add(Kind.STARTED, f"{told.get('where', 'the daemon')} is there")
            nursery.start_soon(_tell_the_end, stop, events)
            yield
        except* IsblkError as group:
            failure = next(error for error in _leaves(group) if isinstance(error, IsblkError))
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _tell_the_end(stop: trio.Event, events: Events) -> None:
    await stop.wait()
    events.add(Kind.STOPPING, "the end was asked for: what is queued is written back")


async def write_back(disks: list[Disk]) -> None:
    """Let queued requests finish, then SYNCHRONIZE CACHE. Raises RequestFailed, naming each disk whose data may be lost."""
    lost: list[str] = []
    for disk in disks:
        disk.gate.close()
        await disk.gate.drained()
        try:
            await flush(disk.device)
        except IsblkError as error:
            if not disk.gate.unflushed:
                continue  # Every write that was acknowledged had been flushed before.
            lost.append(f"LUN {lun_text(disk.description.lun)} ({error})")
    if lost:
        raise RequestFailed(f"written data may be lost: the write cache could not be synchronized on {', '.join(lost)}")


async def _bound_the_end(attachment: Attachment, stop: trio.Event) -> None:
    """From `stop` on, nothing waits for a path that does not come, and a silent one is found out soon: the end comes within seconds.

    A target that answers is given the time it needs: a large write cache may take long to synchronize.
    """
    await stop.wait()
    attachment.hasten(PATIENCE_SECONDS)
    while True:
        stuck = [device for device in attachment.paths.devices.values() if device.stuck]
        # A fence that is being put up needs a login and a reset, no more; waiting for a target to notice a loss is too long for an end.
        await trio.sleep(PATIENCE_SECONDS if any(not device.live for device in stuck) else FENCE_PATIENCE_SECONDS if stuck else 0.25)
        for device in stuck:
            if device.stuck:
                device.end(RequestFailed(f"{device.name} has no path whose writes are certain, and the end was asked for"))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
