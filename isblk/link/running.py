"""A plane for the length of a block, and with it whatever runs on it.

It is not in plane.py because that is part of the compiled form, and mypyc has no asynchronous generators (setup.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from isblk.link.plane import Plane


@asynccontextmanager
async def running_plane() -> AsyncIterator[Plane]:
    """A plane with its task, for the length of a block; an exception of the block comes out as itself, not in a group.

    A cancellation from outside ends the block, and the plane only after it: the logout on the way out still has to be sent.
    """
    plane = Plane()
    scope = trio.CancelScope()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await plane.run(task_status)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            scope.shield = True  # Not before: a start that is cancelled must end it.
            try:
                yield plane
            finally:
                scope.cancel()
    except BaseExceptionGroup as group:
        raise _single(group) from None
    finally:
        plane.close()


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group of groups, or the group when there are several."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
