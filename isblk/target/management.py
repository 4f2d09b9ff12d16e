"""Task management: which tasks a function takes away, and when it is answered (RFC 7143 4.2.3, 11.5, 11.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from isblk.iscsi.pdu import TaskManagement, TaskManagementResponse
from isblk.target.sessions import Link, Node, Session, serial_less
from isblk.target.tasks import Task

_COMMANDS_CLEARED = (0x2F, 0x00)
"""COMMANDS CLEARED BY ANOTHER INITIATOR (SPC-4 annex F)."""


class Request(NamedTuple):
    """The fields of a Task Management Function Request."""

    function: int
    lun: bytes
    itt: int
    ref_itt: int
    cmd_sn: int
    ref_cmd_sn: int


class Holder(Link, Protocol):
    """The connection as task management sees it."""

    session: Session | None
    tasks: dict[int, Task]
    dropped: bool

    def answer_management(self, itt: int, response: int) -> None: ...
    def forget(self, task: Task) -> None: ...
    def skip(self, cmd_sn: int) -> None: ...


class TaskManager:
    """Task management of one connection. An answer that waits for Data-Out still under way is in `_draining`."""

    def __init__(self, node: Node, holder: Holder) -> None:
        self._node = node
        self._holder = holder
        self._draining: list[tuple[set[int], Callable[[], None]]] = []

    def perform(self, request: Request) -> None:
        """Act, and answer now or when every affected task has ended."""
        action = _FUNCTIONS.get(request.function)
        refused = request.function == TaskManagement.LOGICAL_UNIT_RESET and not self._node.config.lun_reset
        if action is None or refused:
            self._answer(request, TaskManagementResponse.NOT_SUPPORTED)
        else:
            action(self, request)

    def gone(self, task: Task) -> None:
        """A task has been forgotten: what waited for it alone is answered."""
        for waiting, done in list(self._draining):
            waiting.discard(task.itt)
            if not waiting:
                self._draining = [each for each in self._draining if each[1] is not done]
                done()

    def clear(self) -> None:
        self._draining.clear()

    def abort_for_others(self, lun: bytes | None) -> None:
        """Another session's function reaches this one's tasks; its nexus hears of it by unit attention (SAM-5 5.14)."""
        session = self._holder.session
        cleared = self._affected(lun)
        self._abort_set(lun)
        for task in cleared:
            unit = self._node.units.find(task.lun)
            if unit is not None and session is not None and not self._holder.dropped:
                unit.attention(*_COMMANDS_CLEARED, session.nexus)

    def _abort_task(self, request: Request) -> None:
        """The three cases of 11.6.1."""
        task = self._holder.tasks.get(request.ref_itt)
        session = self._holder.session
        if task is not None:
            self._holder.forget(task)
            self._answer(request, TaskManagementResponse.COMPLETE)
        elif session is not None and session.in_window(request.ref_cmd_sn) and serial_less(request.ref_cmd_sn, request.cmd_sn):
            self._holder.skip(request.ref_cmd_sn)
            self._answer(request, TaskManagementResponse.COMPLETE)
        else:
            self._answer(request, TaskManagementResponse.TASK_DOES_NOT_EXIST)

    def _task_set(self, request: Request) -> None:
        """ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET: answered once all R2Ts of the affected tasks are (4.2.3.3)."""
        unit = self._node.units.find(request.lun)
        if unit is None:
            self._answer(request, TaskManagementResponse.LUN_DOES_NOT_EXIST)
            return
        if request.function != TaskManagement.ABORT_TASK_SET:
            self._node.abort_elsewhere(request.lun, self._holder)

        def done() -> None:
            if request.function == TaskManagement.LOGICAL_UNIT_RESET:
                unit.reset()
            self._answer(request, TaskManagementResponse.COMPLETE)

        waiting = self._abort_set(request.lun)
        if waiting:
            self._draining.append((waiting, done))
        else:
            done()

    def _target_reset(self, request: Request) -> None:
        """Warm: every unit. Cold: every connection of the target closes as well, this one without an answer (11.6.1)."""
        for task in self._affected(None):
            self._holder.forget(task)
        self._node.abort_elsewhere(None, self._holder)
        for unit in self._node.units.units.values():
            unit.reset()
        if request.function == TaskManagement.TARGET_COLD_RESET:
            self._node.drop_all("the target was reset")
        else:
            self._answer(request, TaskManagementResponse.COMPLETE)

    def _reassign(self, request: Request) -> None:
        self._answer(request, TaskManagementResponse.REASSIGNMENT_NOT_SUPPORTED)

    def _affected(self, lun: bytes | None) -> list[Task]:
        return [task for task in self._holder.tasks.values() if lun in (None, task.lun)]

    def _abort_set(self, lun: bytes | None) -> set[int]:
        """Forget the tasks on a LUN (None: all); the tags of those that still wait for data that was asked for."""
        waiting = set()
        for task in self._affected(lun):
            if task.bursts:
                task.aborting = True
                waiting.add(task.itt)
            else:
                self._holder.forget(task)
        return waiting

    def _answer(self, request: Request, response: TaskManagementResponse) -> None:
        self._holder.answer_management(request.itt, response)

    def __repr__(self) -> str:
        return f"<TaskManager {len(self._draining)} answers wait>"


_FUNCTIONS: dict[int, Callable[[TaskManager, Request], None]] = {
    TaskManagement.ABORT_TASK: TaskManager._abort_task,
    TaskManagement.ABORT_TASK_SET: TaskManager._task_set,
    TaskManagement.CLEAR_TASK_SET: TaskManager._task_set,
    TaskManagement.LOGICAL_UNIT_RESET: TaskManager._task_set,
    TaskManagement.TARGET_WARM_RESET: TaskManager._target_reset,
    TaskManagement.TARGET_COLD_RESET: TaskManager._target_reset,
    TaskManagement.TASK_REASSIGN: TaskManager._reassign,
}
