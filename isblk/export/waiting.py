"""A block Request on which one trio task sleeps: what pyfuse3's engine, which has a task for each request, waits with.

It has a module of its own because it is part of the compiled form, where what inherits from Request has to be compiled as well (setup.py).
"""

from __future__ import annotations

import trio

from isblk.block.request import Op, Request


class Waiting(Request):
    """Reschedules `task`, if there is one by then, when it finishes."""

    __slots__ = ("task",)

    def __init__(self, op: Op, offset: int = 0, length: int = 0, data: memoryview | None = None, fua: bool = False) -> None:
        super().__init__(op, offset, length, data, fua, _wake)
        self.task: trio.lowlevel.Task | None = None

    def keep(self) -> tuple[bytes | memoryview, object]:
        """Not a copy: pyfuse3 makes an object of its own of each write."""
        assert self.data is not None and self.data.readonly
        return self.data, None


def _wake(request: Request) -> None:
    assert isinstance(request, Waiting)
    if request.task is not None:
        trio.lowlevel.reschedule(request.task)
