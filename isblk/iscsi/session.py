"""The session in full feature phase: command window, tasks by tag, Data-In, R2T, reject, async (RFC 7143 4.2, 11).

Theory of operation. Plain calls, no clock, no socket. `submit` queues a task (it waits while the command window is closed); `outgoing`
hands over what must go on the wire, in order; the framer delivers PDUs here (`place`, `deliver`), and tasks finish by their `done`,
perhaps inside `deliver`. One connection a session, error recovery level 0: a gap in StatSN, DataSN or R2TSN, or any answer that
contradicts what was asked, is a ProtocolError, after which the owner calls `fail`. `fail` is sticky: every open task ends at once with
PathLost, and so does each one submitted later.

What is legal in which state is the table `_HANDLERS` at the end; an opcode that is not there is a protocol error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum
from typing import Final

from isblk.errors import IsblkError, PathLost, ProtocolError, RequestFailed, TaskAborted
from isblk.iscsi import pdu
from isblk.iscsi.dataout import DataOut
from isblk.iscsi.exchanges import FIRST_TAG, Done, Exchanges
from isblk.iscsi.login import LoginResult
from isblk.iscsi.serial import MASK, follows
from isblk.iscsi.task import AsyncMessage, Exchange, Kind, Task
from isblk.iscsi.wire import NO_LUN, Wire

_READ_FLAGS: Final = pdu.FINAL | pdu.READ | pdu.Attribute.SIMPLE
_NO_DATA_FLAGS: Final = pdu.FINAL | pdu.Attribute.SIMPLE
_WRITE_FLAGS: Final = pdu.WRITE | pdu.Attribute.SIMPLE
_RESIDUAL: Final = pdu.DATA_OVERFLOW | pdu.DATA_UNDERFLOW
_ABORTED: Final = (pdu.TaskManagementResponse.COMPLETE, pdu.TaskManagementResponse.TASK_DOES_NOT_EXIST)
_UNIT_WIDE: Final = (pdu.TaskManagement.ABORT_TASK_SET, pdu.TaskManagement.CLEAR_TASK_SET, pdu.TaskManagement.LOGICAL_UNIT_RESET)
_RESETS: Final = (pdu.TaskManagement.TARGET_WARM_RESET, pdu.TaskManagement.TARGET_COLD_RESET)

_pack_command: Final = pdu.COMMAND.pack
_unpack_target: Final = pdu.HOT_TARGET.unpack_from
_pack_hot: Final = pdu.HOT_COMMAND.pack
_unpack_hot: Final = pdu.HOT_ANSWER.unpack_from
_BHS_LENGTH: Final = pdu.BHS_LENGTH
# The first bytes of what is common, as numbers: a command before its lengths, an answer up to its status, which is GOOD.
_READ_HEAD: Final = pdu.SCSI_COMMAND << 56 | _READ_FLAGS << 48
_NO_DATA_HEAD: Final = pdu.SCSI_COMMAND << 56 | _NO_DATA_FLAGS << 48
_WRITE_HEAD: Final = pdu.SCSI_COMMAND << 56 | (_WRITE_FLAGS | pdu.FINAL) << 48
_WHOLE_DATA: Final = pdu.DATA_IN << 24 | (pdu.FINAL | pdu.DATA_STATUS) << 16
_GOOD: Final = pdu.SCSI_RESPONSE << 24 | pdu.FINAL << 16
_ALL: Final = slice(None)


class State(Enum):
    """States of a session that has logged in (a subset of 8.3: one connection, no cleanup for recovery)."""

    LOGGED_IN = "logged in"
    DRAINING = "draining"
    IN_LOGOUT = "logging out"
    ENDED = "ended"


class Session:
    """One session from the end of its login on. Callbacks may submit. `epoch` is the owner's coarse clock for deadlines."""

    def __init__(self, login: LoginResult, discovery: bool = False) -> None:
        self.login = login
        self.negotiated = login.negotiated
        self.state = State.LOGGED_IN
        self.error: IsblkError | None = None
        self.epoch = 0
        self.wire = Wire(login)
        self._kind = "discovery" if discovery else "normal"
        self._handlers = _HANDLERS[self._kind, self.state]
        self._exchanges = Exchanges(self.wire, self.negotiated.target_max_recv_data_segment_length)
        self._tasks: dict[int, Task] = {}
        self._waiting: deque[Task] = deque()
        self._lent: list[Task] = []
        self._handed = 0
        self._next_itt = 1
        self._on_async: Callable[[AsyncMessage], None] | None = None
        self._unheard: list[AsyncMessage] = []
        self._data_out = DataOut(self.negotiated)

    # ------------------------------------------------------------------ what the owner asks

    @property
    def open_tasks(self) -> int:
        """Tasks that were submitted and have not finished."""
        return len(self._tasks) + len(self._waiting) + len(self._lent)

    def tasks(self) -> list[Task]:
        """Every task that waits for an answer, the oldest first."""
        return [*self._tasks.values(), *self._waiting]

    def listen(self, on_async: Callable[[AsyncMessage], None]) -> None:
        """Hear of asynchronous messages, also of those that came in one piece with the login's last answer."""
        self._on_async = on_async
        unheard, self._unheard = self._unheard, []
        for message in unheard:
            on_async(message)

    def unfinished(self) -> list[Task]:
        """The same, and before them those whose answer is here and not yet told."""
        return [*self._lent, *self.tasks()]

    def submit(self, task: Task) -> None:
        """Queue a task; it is sent in order as soon as the command window allows (4.2.2.1)."""
        if self.state is not State.LOGGED_IN:
            text = str(self.error) if self.error is not None else "the session is logging out and takes no more commands"
            task.error = PathLost(text, sent=False)
            task.finished()
            return
        task.epoch = self.epoch
        if self._waiting or self.wire.window.room <= 0:
            self._waiting.append(task)
        else:
            self._send(task)

    def outgoing(self) -> list[bytes | memoryview]:
        """What must be sent now, in wire order: headers, and views of the tasks' own data. Ask again only when all of it was sent."""
        if self._lent:
            self._give_back()
        elif not self.wire.out:
            return []
        out, self.wire.out = self.wire.out, []
        self._exchanges.sent()
        return out

    @property
    def has_output(self) -> bool:
        """Whether `outgoing` should be asked: something is to be sent, or given back."""
        return bool(self.wire.out or self._lent)

    def _give_back(self) -> None:
        """Finish the writes that were answered with data still queued: what was handed over before is sent by now."""
        count = self._handed if self.wire.out else len(self._lent)
        self._handed = len(self._lent) - count
        with ExitStack() as rest:  # One by one: for what the end of one sets off, those behind it have not ended (`unfinished`).
            for _ in range(count):
                rest.callback(self._give_one_back)

    def _give_one_back(self) -> None:
        if self._lent:  # Else the callback of one before it has ended the session.
            self._lent.pop(0).finished()

    def _finish_early(self, task: Task) -> None:
        """An answer that need not have waited for all data: some may still be queued, and the memory of a write is lent until `done`.

        Answers behind it wait with it: what they mean may depend on what it said (a unit attention comes before all that it is about).
        """
        if task.write_from is not None or self._lent:
            self._lent.append(task)
        else:
            task.finished()

    def drain(self) -> None:
        """Take no more tasks; those that are open go on. The owner logs out when they have ended."""
        if self.state is State.LOGGED_IN:
            self._enter(State.DRAINING)

    def fail(self, error: IsblkError, unsent: Sequence[bytes | memoryview] = ()) -> None:
        """End the session: every open task and exchange finishes with PathLost, now; sticky.

        `unsent` is what `outgoing` handed over and the owner has not begun to send: commands in it were never given to the network.
        """
        if self.error is not None:
            return
        self.error = error if isinstance(error, PathLost) else PathLost(str(error))
        self._enter(State.ENDED)
        tasks, answered = self.tasks(), self._lent
        kept = self._never_sent([*unsent, *self.wire.out])
        self._tasks.clear()
        self._waiting.clear()
        self._lent, self._handed = [], 0
        self.wire.out = []
        never = PathLost(str(self.error), sent=False)
        for task in tasks:
            task.error = never if task in kept else self.error
        try:
            _finish([*answered, *tasks])
        finally:
            self._exchanges.fail(self.error)

    def _never_sent(self, unsent: Sequence[bytes | memoryview]) -> set[Task]:
        """Tasks whose command is still queued here or with the owner. Headers of commands are the only bytes objects of that size."""
        kept = set(self._waiting)
        for buffer in unsent:
            if type(buffer) is bytes and len(buffer) >= pdu.BHS_LENGTH and buffer[0] & pdu.OPCODE_MASK == pdu.SCSI_COMMAND:
                task = self._tasks.get(int.from_bytes(buffer[16:20], "big"))
                if task is not None:
                    kept.add(task)
        return kept

    def ping(self, done: Done) -> None:
        """Ask for a sign of life (11.18)."""
        if self._alive(Kind.PING, done):
            self._exchanges.ping(done)

    def manage(self, function: pdu.TaskManagement, done: Done, *, task: Task | None = None, lun: bytes = NO_LUN) -> None:
        """Task management: ABORT TASK of `task`, or a function on the logical unit `lun` (11.5). What it ends finishes before `done`."""
        if not self._alive(Kind.TASK_MANAGEMENT, done):
            return
        if task is not None and self._tasks.get(task.itt) is not task:
            self._abandon_unsent(task)
            done(Exchange(Kind.TASK_MANAGEMENT, done, function=function, response=pdu.TaskManagementResponse.COMPLETE))
            return
        self._exchanges.manage(function, done, task, task.lun if task is not None else lun)

    def text(self, data: bytes, done: Done) -> None:
        """A Text Request of whole key=value pairs; the parts of its answer are joined (11.10, 6.4)."""
        if self._alive(Kind.TEXT, done):
            self._exchanges.text(data, done)

    def logout(self, done: Done, reason: pdu.LogoutReason = pdu.LogoutReason.CLOSE_SESSION) -> None:
        """Log out (11.14). Nothing may be submitted afterwards; the owner drains first what it wants finished."""
        if self._alive(Kind.LOGOUT, done):
            self._enter(State.IN_LOGOUT)
            self._exchanges.logout(done, reason)

    def _enter(self, state: State) -> None:
        self.state = state
        self._handlers = _HANDLERS[self._kind, state]

    def _alive(self, kind: Kind, done: Done) -> bool:
        """Whether a new request may be sent; after a Logout none may (11.14)."""
        alive = self.state in (State.LOGGED_IN, State.DRAINING)
        if not alive:
            done(Exchange(kind, done, error=self.error or PathLost("the session is logging out")))
        return alive

    def _abandon_unsent(self, task: Task) -> None:
        if task in self._waiting:
            self._waiting.remove(task)
            task.error = TaskAborted("the command was abandoned before it was sent, because it took too long")
            task.finished()

    # ------------------------------------------------------------------ sending

    def _send(self, task: Task) -> None:
        """Hot. Number the task and queue its command; of a write also what may go unasked (11.3)."""
        itt = self._next_itt
        while itt in self._tasks:
            itt = (itt + 1) % FIRST_TAG
        self._next_itt = (itt + 1) % FIRST_TAG
        wire = self.wire
        window = wire.window
        cmd_sn = window.cmd_sn
        window.cmd_sn = (cmd_sn + 1) & MASK
        window.room -= 1
        task.itt = itt
        task.cmd_sn = cmd_sn
        self._tasks[itt] = task
        if task.write_from is not None:
            self._send_write(task, task.write_from)
            return
        length = task.length
        if wire.digests or wire.trace is not None or len(task.cdb) > 16:
            self._send_command(task, _READ_FLAGS if length else _NO_DATA_FLAGS, b"")
        else:
            head = _READ_HEAD if length else _NO_DATA_HEAD
            wire.out.append(_pack_hot(head, task.lun, itt, length, cmd_sn, wire.exp_stat_sn, task.cdb))

    def _send_write(self, task: Task, source: memoryview) -> None:
        """The command with its immediate data, then unsolicited Data-Out; F=0 promises exactly the latter (11.3.1, 4.2.5.2).

        Hot where all of it is immediate.
        """
        wire = self.wire
        length, cdb = task.length, task.cdb
        if length <= self._data_out.immediate_limit and not (wire.digests or wire.trace is not None or length & 3 or len(cdb) > 16):
            task.transferred = length
            wire.out.append(_pack_hot(_WRITE_HEAD | length, task.lun, task.itt, length, task.cmd_sn, wire.exp_stat_sn, cdb))
            wire.out.append(source)
            return
        immediate = self._data_out.immediate(task.length)
        unsolicited = self._data_out.unsolicited(task.length)
        self._send_command(task, _WRITE_FLAGS | (pdu.FINAL if unsolicited == immediate else 0), source[:immediate])
        if unsolicited > immediate:
            self._data_out.burst(task, pdu.RESERVED_TAG, immediate, unsolicited - immediate, self.wire.exp_stat_sn, self.wire.out)
        task.transferred = unsolicited

    def _send_command(self, task: Task, flags: int, data: bytes | memoryview) -> None:
        cdb, ahs, wire = task.cdb[:16], _extended_cdb(task.cdb[16:]), self.wire
        lengths = len(ahs) << 22 | len(data)
        bhs = _pack_command(pdu.SCSI_COMMAND, flags, 0, lengths, task.lun, task.itt, task.length, task.cmd_sn, wire.exp_stat_sn, cdb)
        wire.send(bhs + ahs, data)

    # ------------------------------------------------------------------ receiving: the framer's sink

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        """Where a large Data-In belongs: straight into the task's memory, after everything about it was checked."""
        if bhs[0] & pdu.OPCODE_MASK != pdu.DATA_IN or pdu.DATA_IN not in self._handlers:
            return None
        _, _, _, _, itt, _, _, _, _, data_sn, offset, _ = _unpack_target(bhs)
        return self._landing(itt, data_sn, offset, length)

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        """Act on one PDU of the target. Raises ProtocolError."""
        if self.wire.trace is not None:
            self.wire.trace("<-", pdu.describe(bhs))
        handler = self._handlers.get(bhs[0] & pdu.OPCODE_MASK)
        if handler is None:
            self._refuse(bhs[0] & pdu.OPCODE_MASK)
        else:
            handler(self, bhs, data)
        if self._waiting:
            self._send_waiting()

    def run(self, view: memoryview, start: int, end: int, limit: int) -> int:
        """Hot. What framer.Run is: takes each PDU that ends a task of ours as every task should end, and leaves the first other one.

        That is the whole data of a read with its status, or the answer to a write of which all was sent: one unpack, one copy. What is
        looked at here is all that `deliver` would look at; whatever is not as expected is left to it.
        """
        tasks, wire = self._tasks, self.wire
        if wire.trace is not None or self._handlers is not _FULL:
            return start
        window, exp_cmd_sn, max_cmd_sn = wire.window, -1, 0
        while end - start >= _BHS_LENGTH and not self._lent:
            head, length, itt, stat_sn, exp, most, place = _unpack_hot(view, start)
            task = tasks.get(itt)
            if task is None or stat_sn != wire.exp_stat_sn:
                break
            after = start + _BHS_LENGTH
            if head == _WHOLE_DATA:
                body, after, into = after, after + length, task.read_into
                if into is None or length != task.length or place or task.data_sn or length & 3 or length > limit or after > end:
                    break
                into[_ALL] = view[body:after]
                task.data_sn = 1
                task.transferred = length
            elif head != _GOOD or length or task.transferred != task.length:
                break
            wire.exp_stat_sn = (stat_sn + 1) & MASK
            exp_cmd_sn, max_cmd_sn = exp, most
            del tasks[itt]
            start = after
            task.finished()
            if self._handlers is not _FULL:  # Its callback has ended the session.
                break
        if exp_cmd_sn >= 0:  # Those of the last answer say all that those before it said.
            window.update(exp_cmd_sn, max_cmd_sn)
            if self._waiting:
                self._send_waiting()
        return start

    def _refuse(self, opcode: int) -> None:
        name = pdu.NAMES.get(opcode, f"opcode 0x{opcode:02x}")
        raise ProtocolError(f"the target sent a {name} PDU to a {self._kind} session that is {self.state.value}")

    def _send_waiting(self) -> None:
        while self._waiting and self.wire.window.room > 0 and self.state in (State.LOGGED_IN, State.DRAINING):
            self._send(self._waiting.popleft())

    def _landing(self, itt: int, data_sn: int, offset: int, length: int) -> memoryview:
        """The memory a Data-In goes to. Raises ProtocolError unless it is the one due next (11.7.5, 11.7.6)."""
        task = self._tasks.get(itt)
        if task is None or task.read_into is None:
            raise ProtocolError(f"the target sent Data-In for tag 0x{itt:x}, which reads nothing")
        if data_sn != task.data_sn or offset != task.transferred:
            raise ProtocolError(f"Data-In out of order: DataSN {data_sn} for {task.data_sn}, offset {offset} for {task.transferred}")
        if offset + length > task.length:
            raise ProtocolError(f"the target sent {offset + length} bytes to a command that asked for {task.length}")
        return task.read_into[offset : offset + length]

    def _data_in(self, bhs: memoryview, data: memoryview) -> None:
        """Hot. SCSI Data-In (11.7); with S it ends the task (phase collapse). The A bit means nothing at level 0 (11.7.2)."""
        flags, _, status, _, itt, _, stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual = _unpack_target(bhs)
        task = self._tasks.get(itt)
        length = len(data)
        if task is None or length != task.length or data_sn or offset or task.data_sn or task.read_into is None:
            into = self._landing(itt, data_sn, offset, length)
            task = self._tasks[itt]
        else:
            into = task.read_into
        if data.obj is not into.obj:  # Else `place` has let it land there.
            into[:] = data
        task.data_sn = data_sn + 1
        task.transferred = offset + length
        wire = self.wire
        if not flags & pdu.DATA_STATUS:
            wire.window.update(exp_cmd_sn, max_cmd_sn)
            return
        if not flags & pdu.FINAL:
            raise ProtocolError("Data-In carries a status without being final")
        if wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            task.status = status
            if task.transferred != task.length or flags & _RESIDUAL:
                _settle(task, flags, residual)
            del self._tasks[itt]
            if self._lent:
                self._finish_early(task)
            else:
                task.finished()

    def _scsi_response(self, bhs: memoryview, data: memoryview) -> None:
        """Hot. SCSI Response (11.4)."""
        flags, response, status, _, itt, _, stat_sn, exp_cmd_sn, max_cmd_sn, _, _, residual = _unpack_target(bhs)
        if not self.wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        task = self._tasks.get(itt)
        if task is None:
            raise ProtocolError(f"the target answered tag 0x{itt:x}, which was not asked")
        early = response or status or task.transferred != task.length
        if response:
            task.error = RequestFailed(f"the target failed a command by itself (iSCSI response 0x{response:02x})")
        else:
            task.status = status
            if data:
                task.sense = _sense(data)
            if task.transferred != task.length or flags & _RESIDUAL:
                _settle(task, flags, residual)
        del self._tasks[itt]
        if early or self._lent:
            self._finish_early(task)
        else:
            task.finished()

    def _r2t(self, bhs: memoryview, _data: memoryview) -> None:
        """Ready To Transfer (11.8): answered at once with exactly what it asks for. StatSN does not advance."""
        _, _, _, _, itt, ttt, _, exp_cmd_sn, max_cmd_sn, r2t_sn, offset, length = _unpack_target(bhs)
        self.wire.window.update(exp_cmd_sn, max_cmd_sn)
        task = self._tasks.get(itt)
        if task is None or task.write_from is None:
            raise ProtocolError(f"the target wants data for tag 0x{itt:x}, which writes nothing")
        if ttt == pdu.RESERVED_TAG or not 0 < length <= self.negotiated.max_burst_length:
            raise ProtocolError(f"the target wants a burst of {length} bytes where 1 to {self.negotiated.max_burst_length} were agreed")
        # In order and never twice (DataSequenceInOrder=Yes): that also bounds what R2Ts can make us queue.
        if r2t_sn != task.r2t_sn or offset != task.transferred or offset + length > task.length:
            due = f"R2TSN {task.r2t_sn} at {task.transferred} of {task.length}"
            raise ProtocolError(f"R2T out of order: R2TSN {r2t_sn} for bytes {offset}+{length}, where {due} was due")
        task.r2t_sn = r2t_sn + 1
        task.transferred = offset + length
        self._data_out.burst(task, ttt, offset, length, self.wire.exp_stat_sn, self.wire.out)

    def _nop_in(self, bhs: memoryview, data: memoryview) -> None:
        self._exchanges.nop_in(bhs, data)

    def _text_response(self, bhs: memoryview, data: memoryview) -> None:
        self._exchanges.text_response(bhs, data)

    def _logout_response(self, bhs: memoryview, data: memoryview) -> None:
        self._exchanges.logout_response(bhs, data)

    def _managed(self, bhs: memoryview, _data: memoryview) -> None:
        """Task Management Function Response (11.6): what the function ended finishes first, then whoever asked is told."""
        exchange = self._exchanges.managed(bhs)
        if exchange is None:
            return
        for task in self._ended_by(exchange):
            if self._tasks.pop(task.itt, None) is None:
                continue  # The callback of one before it has ended the session.
            task.error = TaskAborted("the command was aborted because it took too long")
            task.finished()
        exchange.done(exchange)

    def _ended_by(self, exchange: Exchange) -> list[Task]:
        if exchange.function == pdu.TaskManagement.ABORT_TASK:
            task = exchange.reference
            return [task] if task is not None and exchange.response in _ABORTED and self._tasks.get(task.itt) is task else []
        if exchange.response != pdu.TaskManagementResponse.COMPLETE:
            return []
        everywhere, here = exchange.function in _RESETS, exchange.function in _UNIT_WIDE
        covered = [task for task in self._tasks.values() if follows(exchange.cmd_sn, task.cmd_sn)]
        return [task for task in covered if everywhere or (here and task.lun == exchange.lun)]

    def _async_message(self, bhs: memoryview, data: memoryview) -> None:
        """Asynchronous Message (11.9): understood here, acted on by the owner."""
        _, _, _, _, _, _, stat_sn, exp_cmd_sn, max_cmd_sn, word36, word40, _ = _unpack_target(bhs)
        if not self.wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        event = word36 >> 24
        sense = _sense(data) if event == pdu.AsyncEvent.SCSI_EVENT else b""
        parameters = (word36 & 0xFFFF, word40 >> 16, word40 & 0xFFFF)
        message = AsyncMessage(event, word36 >> 16 & 0xFF, parameters, bytes(bhs[8:16]), sense)
        if self._on_async is None:
            self._unheard.append(message)
        else:
            self._on_async(message)

    def _reject(self, bhs: memoryview, data: memoryview) -> None:
        """Reject (11.17): the header it quotes says whose request failed; a CmdSN the target has not taken is plugged (7.3)."""
        _, reason, _, _, _, _, stat_sn, exp_cmd_sn, max_cmd_sn, _, _, _ = _unpack_target(bhs)
        if not self.wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        if len(data) < pdu.BHS_LENGTH:
            raise ProtocolError(f"the target rejected a PDU (reason 0x{reason:02x}) without quoting its header")
        quoted = pdu.INITIATOR.unpack(data[: pdu.BHS_LENGTH])
        opcode, itt = quoted[0] & pdu.OPCODE_MASK, quoted[5]
        error = RequestFailed(f"the target rejected a {pdu.NAMES.get(opcode, '?')} PDU (reason 0x{reason:02x})")
        task = self._tasks.get(itt)
        if self._exchanges.reject(itt, reason, error) or task is None or opcode == pdu.DATA_OUT:
            return  # A task whose Data-Out was rejected is answered with CHECK CONDITION of its own (7.3).
        del self._tasks[itt]
        if not follows(self.wire.window.exp_cmd_sn, task.cmd_sn):
            self._exchanges.plug(task.cmd_sn)
        task.error = error
        self._finish_early(task)

    def __repr__(self) -> str:
        counts = f"tasks={len(self._tasks)} waiting={len(self._waiting)}"
        return f"<Session {self.state.value} {counts} {self.wire.window!r} exp_stat_sn={self.wire.exp_stat_sn}>"


def _finish(tasks: Sequence[Task]) -> None:
    """Tell whoever waits for each of them, in order; the others hear of it even when one's callback raises."""
    with ExitStack() as rest:
        for task in reversed(tasks):
            rest.callback(task.finished)


def _settle(task: Task, flags: int, residual: int) -> None:
    """Residuals (11.4.5). What really moved is believed before what the target says of it: a short answer must not pass as a whole one."""
    if flags & _RESIDUAL == _RESIDUAL:
        raise ProtocolError("a response claims residual overflow and underflow at once")
    if flags & pdu.DATA_OVERFLOW:
        task.residual = -residual
    elif flags & pdu.DATA_UNDERFLOW:
        task.residual = residual
    if task.residual > task.length:
        raise ProtocolError(f"a residual of {residual} bytes for a transfer of {task.length}")
    missing = task.length - task.transferred
    if missing > max(task.residual, 0):
        task.residual = missing


def _sense(data: memoryview) -> bytes:
    """The sense bytes of a data segment: two bytes of length first, the segment perhaps shorter or padded (11.4.7)."""
    return bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])


def _extended_cdb(rest: bytes) -> bytes:
    """The additional header segment for CDB bytes beyond 16, in whole words; AHSLength counts a reserved byte (11.2.2.1, 11.2.2.4)."""
    if not rest:
        return b""
    ahs = (len(rest) + 1).to_bytes(2, "big") + b"\1\0" + rest
    return ahs.ljust(pdu.padded(len(ahs)), b"\0")


_Handler = Callable[[Session, memoryview, memoryview], None]
_COMMON: Final[dict[int, _Handler]] = {
    pdu.NOP_IN: Session._nop_in,
    pdu.ASYNC_MESSAGE: Session._async_message,
    pdu.REJECT: Session._reject,
    pdu.TEXT_RESPONSE: Session._text_response,
}
_FULL: Final[dict[int, _Handler]] = {
    **_COMMON,
    pdu.DATA_IN: Session._data_in,
    pdu.SCSI_RESPONSE: Session._scsi_response,
    pdu.R2T: Session._r2t,
    pdu.TASK_MANAGEMENT_RESPONSE: Session._managed,
}
_LOGOUT: Final[dict[int, _Handler]] = {pdu.LOGOUT_RESPONSE: Session._logout_response}
_HANDLERS: Final[dict[tuple[str, State], dict[int, _Handler]]] = {
    ("normal", State.LOGGED_IN): _FULL,
    ("normal", State.DRAINING): _FULL,
    ("normal", State.IN_LOGOUT): {**_FULL, **_LOGOUT},
    ("normal", State.ENDED): {},
    ("discovery", State.LOGGED_IN): _COMMON,
    ("discovery", State.DRAINING): _COMMON,
    ("discovery", State.IN_LOGOUT): {**_COMMON, **_LOGOUT},
    ("discovery", State.ENDED): {},
}
