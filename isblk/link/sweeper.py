"""The deadlines of one connection: silence, and tasks that do not end; one sweeper, not a timer each (RFC 7143 7.11, 10.3, 11.5, 11.18).

The ladder for a task that takes too long is open-iscsi's: ABORT TASK, then LOGICAL UNIT RESET where the unit is ours alone, then the
session is dropped. Each rung has its own deadline, and a rung that is refused is as good as one that failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from isblk.errors import IsblkError, PathLost
from isblk.iscsi import pdu
from isblk.iscsi.names import Portal
from isblk.iscsi.session import Session
from isblk.iscsi.task import Exchange, Task

SWEEP_SECONDS: Final = 0.25
"""How often deadlines are looked at; detection is late by at most two of these."""

_GONE: Final = (pdu.TaskManagementResponse.COMPLETE, pdu.TaskManagementResponse.TASK_DOES_NOT_EXIST)


@dataclass(frozen=True)
class Timing:
    """Deadlines in seconds; the defaults are those administrators know from open-iscsi. `noop_interval` 0 sends no pings."""

    login_timeout: float = 15
    logout_timeout: float = 15
    noop_interval: float = 5
    noop_timeout: float = 5
    task_timeout: float = 60
    abort_timeout: float = 15
    reset_timeout: float = 30


class Swept(Protocol):
    """What the sweeper needs of its connection."""

    session: Session
    portal: Portal
    timing: Timing
    may_reset: bool

    def fail(self, error: IsblkError) -> None:
        """End the connection."""


class Sweeper:
    """Counts the session's epochs and acts on what is late. `heard` is told by the receive path."""

    def __init__(self, connection: Swept) -> None:
        self._connection = connection
        self._session = connection.session
        self._timing = connection.timing
        self._heard = 0
        self._pinged: int | None = None
        self._aborting: dict[Task, int] = {}
        self._resetting: dict[bytes, int] = {}

    def heard(self) -> None:
        """Bytes have come."""
        self._heard = self._session.epoch

    def hasten(self) -> None:
        """Ping after a second of silence, and wait two for the answer, from now on."""
        self._timing = replace(self._timing, noop_interval=1, noop_timeout=2)

    def sweep(self) -> None:
        """One turn; call it every SWEEP_SECONDS."""
        self._session.epoch += 1
        self._sweep_silence()
        self._sweep_rungs()
        self._sweep_tasks()

    def _age(self, epoch: int) -> float:
        return (self._session.epoch - epoch) * SWEEP_SECONDS

    def _sweep_silence(self) -> None:
        """A NOP-Out when nothing was heard for `noop_interval`; the end when nothing was heard for `noop_timeout` after it."""
        if self._pinged is not None:
            if self._heard >= self._pinged:
                self._pinged = None
            elif self._age(self._pinged) >= self._timing.noop_timeout:
                self._lose(f"has been silent for {self._age(self._heard):g} s, pings included")
        elif self._timing.noop_interval and self._age(self._heard) >= self._timing.noop_interval:
            self._pinged = self._session.epoch
            self._session.ping(_ignore)

    def _sweep_tasks(self) -> None:
        for task in self._session.tasks():
            if self._age(task.epoch) < self._timing.task_timeout:
                break
            if task not in self._aborting:
                self._aborting[task] = self._session.epoch
                self._session.manage(pdu.TaskManagement.ABORT_TASK, partial(self._aborted, task), task=task)

    def _sweep_rungs(self) -> None:
        """The next rung for an abort that is not answered, and the end for a reset that is not."""
        late = [task for task, since in self._aborting.items() if self._age(since) >= self._timing.abort_timeout]
        open_tasks = set(self._session.tasks()) if late else ()
        for task in late:
            if task not in open_tasks:  # It has ended after all; that nobody says so of its abort is no matter.
                del self._aborting[task]
            else:
                self._next_rung(task, f"no answer in {self._timing.abort_timeout:g} s")
        if any(self._age(since) >= self._timing.reset_timeout for since in self._resetting.values()):
            self._lose(f"did not reset a logical unit in {self._timing.reset_timeout:g} s")

    def _aborted(self, task: Task, exchange: Exchange) -> None:
        if (exchange.error is None and exchange.response in _GONE) or task not in self._session.tasks():
            self._aborting.pop(task, None)
        elif not isinstance(exchange.error, PathLost):
            self._next_rung(task, str(exchange.error or f"response {exchange.response}"))

    def _next_rung(self, task: Task, why: str) -> None:
        if not self._connection.may_reset:
            self._lose(f"did not abort a command that takes too long ({why})")
        elif task.lun not in self._resetting:
            self._resetting[task.lun] = self._session.epoch
            self._session.manage(pdu.TaskManagement.LOGICAL_UNIT_RESET, partial(self._reset, task.lun), lun=task.lun)

    def _reset(self, lun: bytes, exchange: Exchange) -> None:
        """Everything on the unit has ended with the reset, or the session does."""
        self._resetting.pop(lun, None)
        for task in [task for task in self._aborting if task.lun == lun]:
            del self._aborting[task]
        if isinstance(exchange.error, PathLost):
            return
        if exchange.error is not None or exchange.response != pdu.TaskManagementResponse.COMPLETE:
            self._lose(f"neither aborted a command that takes too long nor reset its logical unit ({exchange.error or exchange.response})")

    def _lose(self, why: str) -> None:
        self._connection.fail(PathLost(f"{self._connection.portal} {why}"))


def _ignore(_exchange: Exchange) -> None:
    """The answer is heard by the receive path already."""
