"""Doing the journal again on a logical unit that may have lost its cache: in order, and then a flush (SBC-3 4.15).

Nothing else of ours is on its way meanwhile; the fence sees to that, and decides what follows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from isblk.block.command import PathUnusable
from isblk.block.request import Op, Request, execute
from isblk.errors import IsblkError, PathLost, TaskAborted

if TYPE_CHECKING:
    from isblk.block.multipath import Multipath
    from isblk.block.path import Path

_log = logging.getLogger(__name__)

POWER_ONS = 5
"""How often the unit may announce a power-on while the journal is done again, which begins it anew each time."""


class Replayed(NamedTuple):
    """What came of it. `settled`: nothing has to be done again any more. `left`: a change sent over a path that was lost over it."""

    settled: bool
    left: Request | None = None


async def replay(device: Multipath, path: Path) -> Replayed:
    """Do what was acknowledged and not flushed once more over `path`. What the unit refuses is lost, and the next flush says so."""
    if device.policies.shared:
        if len(device.journal):
            device.lose_cache("the target may have lost its cache, and on a shared logical unit they cannot be written again")
        return Replayed(True)
    for _ in range(POWER_ONS):
        before = device.power_ons
        came = await _once(device, path)
        if not came.settled or device.power_ons == before:
            return came
    device.lose_cache("the logical unit is powered on again and again while they are written again")
    return Replayed(True)


async def _once(device: Multipath, path: Path) -> Replayed:
    unit, session, mark, before = path.unit, path.session, device.journal.mark, device.power_ons
    if unit is None:
        return Replayed(False)
    count, request = len(device.journal), Request(Op.FLUSH)
    try:
        for entry in device.journal:
            request = entry.request()
            await execute(unit, request)
        request = Request(Op.FLUSH)
        await execute(unit, request)
    except PathLost as error:
        device.lose(path, error, session)
        return Replayed(False, request if error.sent and request.op is not Op.FLUSH else None)
    except TaskAborted:
        return Replayed(device.power_ons != before)  # By a power-on, which is not the end of it: the caller begins anew.
    except PathUnusable as error:
        device.unusable(path, error, session)
        return Replayed(False)
    except IsblkError as error:
        device.lose_cache(f"writing them again after the target may have lost its cache failed: {error}")
        return Replayed(True)
    if device.power_ons == before:
        device.journal.settle(mark)
        if count:
            _log.warning("%s: %d unflushed writes were written again, since the target may have lost its cache", device.name, count)
    return Replayed(True)
