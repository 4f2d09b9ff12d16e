"""A request carried out as several: pieces in order, a few at a time, one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from isblk.block.request import Request
from isblk.errors import PathLost

WINDOW: Final = 4
"""Pieces on their way at once: enough to keep a link busy with large ones, few enough to leave the command window to others."""


def pieces(request: Request, most: int) -> Iterator[Request]:
    """Consecutive parts of a request, each at most `most` bytes, with views of its data."""
    for at in range(0, request.length, most):
        length = min(most, request.length - at)
        data = None if request.data is None else request.data[at : at + length]
        yield Request(request.op, request.offset + at, length, data, request.fua)


class Series:
    """Submits `parts` of `request`; finishes it after the last, or after the first error once what was on its way has come back.

    Parts may finish within `submit`; the loop in `start` then goes on instead of a deeper one.
    """

    __slots__ = ("_error", "_exhausted", "_filling", "_kick", "_parts", "_request", "_running", "_submit")

    def __init__(self, request: Request, parts: Iterator[Request], submit: Callable[[Request], None], kick: Callable[[], None]) -> None:
        self._request = request
        self._parts = parts
        self._submit = submit
        self._kick = kick
        self._running = 0
        self._exhausted = False
        self._filling = False
        self._error: Exception | None = None

    def start(self) -> None:
        """Submit as many parts as may be on their way."""
        self._filling = True
        while self._running < WINDOW and self._error is None and not self._exhausted:
            part = next(self._parts, None)
            if part is None:
                self._exhausted = True
            else:
                self._running += 1
                part.done = self._done
                self._submit(part)
        self._filling = False
        if not self._running and (self._exhausted or self._error is not None):
            self._request.finish(self._error)

    def _done(self, part: Request) -> None:
        self._running -= 1
        # A part that was sent over a path that is lost may still be done: that outweighs every other error (block/fence.py).
        if self._error is None or (isinstance(part.error, PathLost) and part.error.sent):
            self._error = part.error or self._error
        if not self._filling:
            self.start()
            self._kick()
