"""Doing the journal again on a logical unit that may have lost its cache: in order, and then a flush (SBC-3 4.15).

Nothing else of ours is on its way meanwhile; the fence sees to that, and decides what follows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import trio

from isblk.block.command import PathUnusable
from isblk.block.events import Kind
from isblk.block.journal import Entry
from isblk.block.request import Device, Op, Request
from isblk.errors import IsblkError, PathLost, TaskAborted

if TYPE_CHECKING:
    from isblk.block.multipath import Multipath
    from isblk.block.path import Path

_log = logging.getLogger(__name__)

TOGETHER = 32
"""Changes on their way at once: one after the other, a journal of many small writes would take its number of round trips."""
POWER_ONS = 5
"""How often the unit may announce a power-on while the journal is done again, which begins it anew each time."""


class Replayed(NamedTuple):
    """What came of it. `settled`: nothing has to be done again any more. `left`: changes sent over a path that was lost over it."""

    settled: bool
    left: list[Request]


async def replay(device: Multipath, path: Path) -> Replayed:
    """Do what was acknowledged and not flushed once more over `path`. What the unit refuses is lost, and the next flush says so."""
    if device.policies.shared:
        if len(device.journal):
            device.lose_cache("the target may have lost its cache, and on a shared logical unit they cannot be written again")
        return Replayed(True, [])
    for _ in range(POWER_ONS):
        before = device.power_ons
        came = await _once(device, path)
        if not came.settled or device.power_ons == before:
            return came
    device.lose_cache("the logical unit is powered on again and again while they are written again")
    return Replayed(True, [])


async def _once(device: Multipath, path: Path) -> Replayed:
    unit, session, mark, before = path.unit, path.session, device.journal.mark, device.power_ons
    if unit is None:
        return Replayed(False, [])
    count, requests = len(device.journal), list[Request]()
    try:
        for requests in _batches(device.journal):
            await _execute(unit, requests)
        requests = []
        await _execute(unit, [Request(Op.FLUSH)])
    except PathLost as error:
        device.lose(path, error, session)
        return Replayed(False, [each for each in requests if isinstance(each.error, PathLost) and each.error.sent])
    except TaskAborted:
        return Replayed(device.power_ons != before, [])  # By a power-on, which is not the end of it: the caller begins anew.
    except PathUnusable as error:
        device.unusable(path, error, session)
        return Replayed(False, [])
    except IsblkError as error:
        device.lose_cache(f"writing them again after the target may have lost its cache failed: {error}")
        return Replayed(True, [])
    if device.power_ons == before:
        device.journal.settle(mark)
        if count:
            told = f"{count} unflushed writes were written again, since the target may have lost its cache"
            _log.warning("%s: %s", device.name, told)
            device.tell(Kind.REPLAYED, told, writes=count)
    return Replayed(True, [])


def _batches(entries: Iterable[Entry]) -> Iterator[list[Request]]:
    """The journal as new requests, in order; those of one list overlap nowhere, so that they may be on their way together."""
    batch: list[Request] = []
    for entry in entries:
        start, end = entry.offset, entry.offset + entry.length
        if len(batch) >= TOGETHER or any(each.offset < end and start < each.offset + each.length for each in batch):
            yield batch
            batch = []
        batch.append(entry.request())
    if batch:
        yield batch


async def _execute(unit: Device, requests: list[Request]) -> None:
    """Wait for all of them; then raise the error that weighs most, if there is one."""
    finished, open_ones = trio.Event(), len(requests)

    def done(_request: Request) -> None:
        nonlocal open_ones
        open_ones -= 1
        if not open_ones:
            finished.set()

    for request in requests:
        request.done = done
        unit.submit(request)
    unit.kick()
    await finished.wait()
    errors = [request.error for request in requests if request.error is not None]
    for kind in (PathLost, TaskAborted, PathUnusable, Exception):
        for error in errors:
            if isinstance(error, kind):
                raise error
