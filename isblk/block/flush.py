"""Which FLUSH a SYNCHRONIZE CACHE serves: every one that arrived before it was sent, none that arrived after.

A write may be acknowledged between the two moments, and a FLUSH that arrives then promises that write; so it waits for the next
SYNCHRONIZE CACHE, together with all others that wait.
"""

from __future__ import annotations

from collections.abc import Callable

from isblk.block.request import Op, Request


class Flushes:
    """Collects FLUSHes; `send(request)` sends one SYNCHRONIZE CACHE and finishes the request it is given."""

    def __init__(self, send: Callable[[Request], None]) -> None:
        self._send = send
        self._served: list[Request] = []  # by the one on its way
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        """Finish `request` when everything acknowledged before this call is durable, or with the error that prevented it."""
        self._waiting.append(request)
        if not self._served:
            self._next()

    def _next(self) -> None:
        self._served, self._waiting = self._waiting, []
        self._send(Request(Op.FLUSH, done=self._synchronized))

    def _synchronized(self, sync: Request) -> None:
        served, self._served = self._served, []
        if self._waiting:
            self._next()
        for request in served:
            request.finish(sync.error)
