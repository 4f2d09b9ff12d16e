"""The data plane: one nested epoll, plain handlers, bounded bursts inside one trio task.

Theory of operation. A trio task per socket costs a wake-up of about 20 us per batch; so one task waits until the plane's own epoll is
readable and then, for a bounded burst, polls it and calls plain functions. Measured, that is what lets Python keep up with C.

The contract:
* One thread. Handlers, and everything they call (the session, the devices, a request's `done`), are plain functions and never await.
* State of a session is touched by handlers, by other plain functions called between two checkpoints of trio, and by nobody else. No locks.
* A handler that raises ends what it stands for, by its own `broken(error)`, and never its neighbours or the plane.
* What should happen once per batch (one sendmsg for everything a batch caused) is asked for by `at_batch_end`, within a burst or outside
  it.
* A burst ends after BURST_SECONDS, when a task of trio can run, at trio's next deadline, or when nothing has come for PATIENCE_SECONDS:
  timers and tasks are late by no more than BURST_SECONDS and one handler's own bound, signals and control by PATIENCE_SECONDS more.
* A poll that would sleep first looks for a moment whether the next event is there already (busypoll.py).
* A front end that waits in trio's own loop (pyfuse3) must not be kept waiting by a poll: while `impatient` is held, polls do not block.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final, Protocol, cast

import trio

from isblk.link.busypoll import BusyPoll

BURST_SECONDS: Final = 0.005
"""How long a burst may keep trio from running."""
PATIENCE_SECONDS = 0.02  # not Final, which would compile it in: tests whose target runs in the plane's own thread shorten it
"""How long a poll within a burst waits for the next event at most. (A millisecond was measured to cost a third of the rate at depth 1: a
timer that near has to be programmed into the processor each time, which a virtual machine pays dearly.)"""

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP
WRITABLE: Final = select.EPOLLOUT

_log: Final = logging.getLogger(__name__)


class Handler(Protocol):
    """What a descriptor on the plane stands for."""

    def ready(self, events: int) -> None:
        """Events of epoll have come; bounded work, no await."""

    def broken(self, error: Exception) -> None:
        """`ready` or the batch's end raised: end what this stands for."""


class Plane:
    """The plane; `run` is its one task. (It serves trio as an instrument to hear, at no cost, when a task could run.)"""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._batch: list[tuple[Handler, Callable[[], None]]] = []
        self._early: list[tuple[Handler, Callable[[], None]]] = []
        self._in_burst = False
        self._is_wanted = False
        self._impatient = 0
        self._nursery: trio.Nursery | None = None
        self._busy = BusyPoll()
        self.bursts = 0
        self.polls = 0

    def register(self, descriptor: int, handler: Handler) -> None:
        """Call `handler.ready` when the descriptor is readable, until `unregister`."""
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, READABLE)

    def watch(self, descriptor: int, *, reading: bool, writing: bool) -> None:
        """Choose what the descriptor is watched for; writability only while a send is stuck, else the plane would spin."""
        self._epoll.modify(descriptor, (READABLE if reading else 0) | (WRITABLE if writing else 0))

    def unregister(self, descriptor: int) -> None:
        """Forget a descriptor; harmless when it is not there."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at_batch_end(self, handler: Handler, function: Callable[[], None], early: bool = False) -> None:
        """Call `function` once the handlers of this poll have run, or now when no burst is on; an exception goes to `handler.broken`.

        `early`: before all that are not. A target that has its commands works on them while the replies to a front end are copied.
        """
        if self._in_burst:
            if early:
                self._early.append((handler, function))
            else:
                self._batch.append((handler, function))
        else:
            self._guard(handler, function)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a plain function after some seconds, by trio's clock; dropped when the plane has ended by then."""
        if self._nursery is None:
            raise AssertionError("the plane is not running")
        self._nursery.start_soon(self._later, seconds, function)

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run an async function beside the plane: what a handler wants done that must await. Should it raise, that is logged."""
        if self._nursery is None:
            raise AssertionError("the plane is not running")
        self._nursery.start_soon(self._beside, function, *arguments)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """While held, polls do not block: a front end waits in trio's own loop."""
        self._impatient += 1
        try:
            yield
        finally:
            self._impatient -= 1

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            instrument = cast(trio.abc.Instrument, self)  # It need not be one (trio.abc.Instrument), and compiled it cannot.
            trio.lowlevel.add_instrument(instrument)
            task_status.started()
            try:
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._burst()
            finally:
                self._nursery = None
                trio.lowlevel.remove_instrument(instrument)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """A task of trio's can run: what a handler did has woken it, when this is heard within a burst."""
        self._is_wanted = True

    def close(self) -> None:
        """Release the epoll; after `run` has ended."""
        self._epoll.close()

    async def _beside(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        try:
            await function(*arguments)
        except Exception:
            _log.exception("a task beside the plane failed")

    async def _later(self, seconds: float, function: Callable[[], None]) -> None:
        await trio.sleep(seconds)
        try:
            function()
        except Exception:
            _log.exception("a delayed call failed")

    def _burst(self) -> None:
        """Poll and handle until nothing comes or the time is used up."""
        end = monotonic() + BURST_SECONDS
        longest: float | None = None
        self._is_wanted = False
        self._busy.burst()
        self.bursts += 1
        events = self._epoll.poll(0)
        while events:
            self.polls += 1
            self._in_burst = True
            try:
                for descriptor, mask in events:
                    self._handle(descriptor, mask)
                while self._early or self._batch:
                    batch, self._early, self._batch = self._early + self._batch, [], []
                    for handler, function in batch:
                        self._guard(handler, function)
            finally:  # Also on KeyboardInterrupt: what cleans up behind it must be able to send.
                self._in_burst = False
            if monotonic() >= end:
                return
            if self._impatient:
                events = self._epoll.poll(0)
                continue
            if self._is_wanted:
                return
            if longest is None:  # A deadline that comes nearer within the burst is a task's, which has to run for that.
                longest = min(PATIENCE_SECONDS, max(0.0, trio.lowlevel.current_statistics().seconds_to_next_deadline))
            events = self._busy.wait(self._epoll.poll, longest)

    def _handle(self, descriptor: int, mask: int) -> None:
        handler = self._handlers.get(descriptor)
        if handler is None:  # An earlier handler of the same poll has taken it away.
            return
        try:
            handler.ready(mask)
        except Exception as error:
            self._break(handler, error)

    def _guard(self, handler: Handler, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self._break(handler, error)

    def _break(self, handler: Handler, error: Exception) -> None:
        try:
            handler.broken(error)
        except Exception:
            _log.exception("ending a broken handler failed")
