"""One connection of the target: PDUs in, PDUs out (RFC 7143 11), from login to logout.

Theory of operation: the shell lands bytes in `receive_buffer`, says `received(n)`, and sends what `outgoing` returns until it is empty.
`deliver` looks up the opcode in `_HANDLERS`. What carries a CmdSN passes `_in_order`, which holds commands back until it is their turn; a
SCSI command then collects its data (tasks.py), runs on its unit in one go, and its answer is queued. Commands that become ready
while much output waits are run by `outgoing`, so that reads cannot fill the memory faster than the initiator drains them.

A violation by the initiator is a ProtocolError raised anywhere below `received`; it ends this connection, with a Reject where a header can
be quoted, and never leaves this module. `drop` ends it from the outside. In both cases the session ends with it: ErrorRecoveryLevel is 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.framer import Framer, frame
from isblk.iscsi.pdu import AsyncEvent, LogoutReason, RejectReason
from isblk.target import check, texts
from isblk.target.config import PortalConfig
from isblk.target.login import Login
from isblk.target.management import Request, TaskManager
from isblk.target.negotiate import Agreed
from isblk.target.outcome import Outcome
from isblk.target.sessions import DISCOVERY, Node, Session
from isblk.target.tasks import Burst, Task

OUTGOING_LIMIT = 32 << 20
"""Bytes of queued output above which commands wait."""
EXPECTED_LIMIT = 64 << 20
"""Bytes of Data-Out that one command may announce: more than any unit here takes (VPD B0), and no memory is spent on it."""
_NO_LUN = bytes(8)
_MASK = 0xFFFFFFFF
_IN_DISCOVERY = frozenset((pdu.NOP_OUT, pdu.TEXT, pdu.LOGOUT))


class Connection:
    """The target's end of one TCP connection. `wake` is set by the shell: something is to be sent, or the connection is over."""

    def __init__(self, node: Node, portal: PortalConfig, local_host: str = "127.0.0.1") -> None:
        self.session: Session | None = None
        self.agreed = Agreed()
        self.tasks: dict[int, Task] = {}
        self.closing = False
        self.dropped = False
        self.why = ""
        self.wake: Callable[[], None] = _do_nothing
        self.pings: dict[int, bytes | None] = {}
        self._node = node
        self._framer = Framer(self)
        self._login = Login(node, portal, self)
        self._local_host = local_host
        self._stat_sn = 0
        self._header_digest = False
        self._data_digest = False
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._ready: deque[Task] = deque()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._landing: bytearray | None = None
        self._placed = False
        self._current: bytes | memoryview | None = None
        self._next_ttt = 0
        self._text = texts.Exchange(self._new_ttt, node.config.offer.text_by_c_bit)
        self._manager = TaskManager(node, self)

    # The shell's four verbs

    def receive_buffer(self) -> memoryview:
        return self._framer.receive_buffer()

    def received(self, count: int) -> None:
        """`count` bytes landed; what came of them waits in `outgoing`."""
        try:
            self._framer.received(count)
        except ProtocolError as error:
            self._violated(error)

    def outgoing(self) -> list[bytes | memoryview]:
        """Buffers in wire order; call again after sending them, until the list is empty. Then, if `closing`, close."""
        while self._ready and self._out_bytes < OUTGOING_LIMIT:
            self._run(self._ready.popleft())
        out, self._out, self._out_bytes = self._out, [], 0
        return out

    def lost(self, reason: str = "the initiator closed the connection") -> None:
        """The connection is gone: its tasks end without an answer, and its session with it. May be called twice.

        What its units still work on may outlive it (config.Reinstatement).
        """
        if self.dropped:
            return
        self.dropped = True
        self.why = self.why or reason
        self.tasks = {itt: task for itt, task in self.tasks.items() if task.held and self._node.commands_outlive_connections}
        self._ready.clear()
        self._waiting.clear()
        self._manager.clear()
        self._out.clear()
        if self.session is not None:
            self._node.close_session(self.session, self)
            if self.tasks:
                self._node.depart(self.session, self)

    # The node's and the tests' verbs

    def drop(self, reason: str) -> None:
        """End the connection now, without a word to the initiator."""
        self.lost(reason)
        self.wake()

    def pump(self) -> None:
        self.wake()

    def ping(self, data: bytes = b"", lun: bytes = _NO_LUN) -> int:
        """Ask for a NOP-Out (11.19); its tag. `pings[tag]` is None until the answer's data is there."""
        ttt = self._new_ttt()
        self.pings[ttt] = None
        self._send(pdu.NOP_IN, pdu.FINAL, pdu.RESERVED_TAG, data=data, lun=lun, ttt=ttt, advance=False)
        self.wake()
        return ttt

    def send_async(
        self, event: int, vcode: int = 0, parameters: tuple[int, int, int] = (0, 0, 0), lun: bytes = _NO_LUN, data: bytes = b""
    ) -> None:
        """An Asynchronous Message (11.9); `data` with sense begins with its two bytes of length."""
        first, second, third = parameters
        words = (event << 24 | vcode << 16 | first, second << 16 | third, 0)
        self._send(pdu.ASYNC_MESSAGE, pdu.FINAL, pdu.RESERVED_TAG, data=data, lun=lun, words=words)
        self.wake()

    def request_logout(self, within: int) -> None:
        """Ask the initiator to log out within so many seconds (11.9.1, event 1)."""
        self.send_async(AsyncEvent.LOGOUT_REQUESTED, parameters=(0, 0, within))

    # Framer's sink

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        """Large write data lands in its task's buffer, immediate data in the buffer that its task will have."""
        opcode = bhs[0] & pdu.OPCODE_MASK
        if self.session is None or self.closing:
            return None
        if opcode == pdu.SCSI_COMMAND:
            (expected,) = pdu.LENGTHS.unpack_from(bhs, 20)
            if not length <= expected <= EXPECTED_LIMIT:
                return None
            self._landing = bytearray(expected)
            return memoryview(self._landing)[:length]
        if opcode != pdu.DATA_OUT:
            return None
        self._current = bytes(bhs)
        found = self._locate(bhs, length)
        if found is None:
            return None
        task, _, offset = found
        self._placed = True
        return memoryview(task.buffer)[offset : offset + length]

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        if self.closing or self.dropped:
            return
        if self._node.trace is not None:
            self._node.trace("<", pdu.describe(bhs))
        if self.session is None:
            self._take_login(bhs, data)
            return
        opcode = bhs[0] & pdu.OPCODE_MASK
        self._current = bhs
        if self.session.session_type == DISCOVERY and opcode not in _IN_DISCOVERY:
            raise ProtocolError("a discovery session carries Text, NOP and Logout alone (4.3)")
        handler = _HANDLERS.get(opcode)
        if handler is None:
            self._reject(bhs, RejectReason.COMMAND_NOT_SUPPORTED)
        else:
            handler(self, bhs, data)
        self._current = None
        self._placed = False
        self._landing = None

    def _take_login(self, bhs: memoryview, data: memoryview) -> None:
        login = self._login
        if bhs[0] & pdu.OPCODE_MASK == pdu.LOGIN:
            self._answer_login(login.request(bhs, data))
        elif not login.started:
            raise ProtocolError("the first PDU of a connection is no Login Request (6.3)")
        else:
            self._answer_login(login.refuse_foreign(bhs))

    def _resume_login(self) -> None:
        """An old session has come nearer to its end: what waited for it may be answered now."""
        if not self.dropped and not self.closing:
            self._answer_login(self._login.resume())
            self.wake()

    def _answer_login(self, response: tuple[bytes, bytes] | None) -> None:
        login = self._login
        if response is None:
            self._node.await_settling(self._resume_login)
            return
        self._emit(*response)
        if login.over:
            self.why = login.why
            self.closing = True
        elif login.session is not None:
            self._enter_full_feature(login.session)

    def _enter_full_feature(self, session: Session) -> None:
        """What was agreed takes effect behind the final Login Response (6.2, 13.1)."""
        self.session = session
        self.agreed = self._login.negotiation.agreed
        self._stat_sn = self._login.stat_sn
        self._framer.limit = self.agreed.target_max_recv_data_segment_length
        self._header_digest = self.agreed.header_digest == "CRC32C"
        self._data_digest = self.agreed.data_digest == "CRC32C"
        self._framer.enable_digests(self._header_digest, self._data_digest)

    # SCSI commands (11.3)

    def _scsi_command(self, bhs: memoryview, data: memoryview) -> None:
        opcode, flags, _, _, lun, itt, expected, cmd_sn, _, cdb = pdu.COMMAND.unpack(bhs)
        immediate = bool(opcode & pdu.IMMEDIATE)
        if not immediate and (cmd_sn in self._waiting or not self._live.in_window(cmd_sn)):
            return
        is_read, is_write = bool(flags & pdu.READ), bool(flags & pdu.WRITE)
        reason = self._objection(itt, is_read and is_write)
        if reason is not None:
            self._in_order(cmd_sn, immediate, partial(self._reject, bytes(bhs), reason))
            return
        if data and not is_write:
            raise ProtocolError("immediate data with a command that writes nothing (11.3.1)")
        task = Task(itt, lun, cdb, expected, is_read, is_write, immediate)
        if is_write:
            self._begin_write(task, data, more_follows=not flags & pdu.FINAL)
        self.tasks[itt] = task
        self._in_order(cmd_sn, immediate, partial(self._start, task))
        if isinstance(task.buffer, memoryview) and task.itt in self.tasks and self._landing is None:
            # Not run yet, so the borrowed view of the receive buffer must become our own.
            task.buffer = bytes(task.buffer)

    def _objection(self, itt: int, bidirectional: bool) -> RejectReason | None:
        if itt == pdu.RESERVED_TAG:
            raise ProtocolError("a SCSI Command with the reserved task tag (11.2.1.8)")
        if itt in self.tasks:
            return RejectReason.TASK_IN_PROGRESS
        # No unit here has a bidirectional command.
        return RejectReason.COMMAND_NOT_SUPPORTED if bidirectional else None

    def _begin_write(self, task: Task, data: memoryview, more_follows: bool) -> None:
        task.begin_data(len(data), more_follows, self.agreed)
        if task.expected > EXPECTED_LIMIT:
            task.failure = check.invalid_field().sense
        if task.failure:
            return
        if len(data) == task.expected:
            # All of it: the unit may read it where it is, for the time of this call.
            task.buffer = data
        elif self._landing is not None:
            task.buffer = self._landing
        else:
            task.buffer = bytearray(task.expected)
            task.buffer[: len(data)] = data

    def _in_order(self, cmd_sn: int, immediate: bool, act: Callable[[], None]) -> None:
        """Act when it is this command's turn (4.2.2.1). What lies outside the window, and what is here already, is ignored."""
        session = self._live
        if immediate:
            act()
            return
        if not session.in_window(cmd_sn) or cmd_sn in self._waiting:
            return
        self._waiting[cmd_sn] = act
        while (ready := self._waiting.pop(session.exp_cmd_sn, None)) is not None:
            session.exp_cmd_sn = (session.exp_cmd_sn + 1) & _MASK
            ready()

    def _start(self, task: Task) -> None:
        if self.tasks.get(task.itt) is not task:
            return
        task.started = True
        if not task.immediate:
            self._live.in_progress += 1
        self._advance(task)

    def _advance(self, task: Task) -> None:
        """The next step of a started task: fail, run, or ask for more data."""
        if task.failure:
            self._finish(task, Outcome(check.CHECK_CONDITION, task.failure))
        elif not task.complete:
            self._solicit(task)
        elif self._node.hold is not None and self._node.hold(task.lun, task.cdb):
            task.held = True
            self._node.held.append(partial(self._run, task))
        elif self._ready or self._out_bytes >= OUTGOING_LIMIT:
            self._ready.append(task)
        else:
            self._run(task)

    def _solicit(self, task: Task) -> None:
        """R2Ts up to MaxOutstandingR2T (11.8); their StatSN does not advance."""
        while (burst := task.solicit(self._next_ttt, self.agreed)) is not None:
            self._new_ttt()
            words = (task.r2t_sn - 1, burst.offset, burst.length)
            self._send(pdu.R2T, pdu.FINAL, task.itt, lun=task.lun, ttt=burst.ttt, words=words, advance=False)

    def _run(self, task: Task) -> None:
        if self.tasks.get(task.itt) is not task:
            return
        outcome = self._node.units.execute(task.lun, task.cdb, task.buffer, self._live.nexus)
        if self.dropped:
            self._end_departed(task)
        else:
            self._finish(task, outcome)

    def _end_departed(self, task: Task) -> None:
        """A task that outlived its connection has ended; there is nobody to tell."""
        del self.tasks[task.itt]
        if not self.tasks:
            self._node.settle(self)

    # Data-Out (11.7)

    def _locate(self, bhs: memoryview, length: int) -> tuple[Task, Burst | None, int] | None:
        """(task, burst, offset) of a Data-Out; None when its task is gone, which an abort makes normal."""
        words = pdu.INITIATOR.unpack(bhs)
        task = self.tasks.get(words[5])
        if task is None or not task.is_write or task.failure:
            return None
        ttt, data_sn, offset = words[6], words[10], words[11]
        return task, task.locate(None if ttt == pdu.RESERVED_TAG else ttt, data_sn, offset, length, self.agreed), offset

    def _data_out(self, bhs: memoryview, data: memoryview) -> None:
        found = self._locate(bhs, len(data))
        if found is None:
            return
        task, burst, offset = found
        if not self._placed:
            memoryview(task.buffer)[offset : offset + len(data)] = data
        task.take(burst, len(data), bool(bhs[1] & pdu.FINAL), self.agreed)
        if task.aborting:
            if not task.bursts:
                self.forget(task)
        elif task.started and not task.unsolicited:
            self._advance(task)

    # Data-In and status (11.4, 11.7)

    def _finish(self, task: Task, outcome: Outcome) -> None:
        del self.tasks[task.itt]
        if task.started and not task.immediate:
            self._live.in_progress -= 1
        data = outcome.data if task.is_read else b""
        good = outcome.status == check.GOOD
        residual = _residual(task, outcome)
        sent = self._send_data_in(task, data, residual, collapse=good and not outcome.sense and self._node.config.offer.collapsed_status)
        if sent < 0:
            return
        sense = len(outcome.sense).to_bytes(2, "big") + outcome.sense if outcome.sense else b""
        self._send(
            pdu.SCSI_RESPONSE,
            pdu.FINAL | _residual_flag(residual),
            task.itt,
            data=sense,
            third=outcome.status,
            words=(sent, 0, abs(residual)),
        )

    def _send_data_in(self, task: Task, data: bytes | bytearray | memoryview, residual: int, collapse: bool) -> int:
        """Queue the Data-In PDUs; their number, or -1 when the last one carried the status (phase collapse, 11.7.3)."""
        length = min(len(data), task.expected)
        if not length:
            return 0
        view = memoryview(data)
        step, burst = self.agreed.initiator_max_recv_data_segment_length, self.agreed.max_burst_length
        offset = count = 0
        while offset < length:
            # A sequence ends at MaxBurstLength (13.13), a PDU at the initiator's MaxRecvDataSegmentLength (13.12).
            end = min(offset + step, offset - offset % burst + burst, length)
            last = end == length
            flags = pdu.FINAL if last or end % burst == 0 else 0
            words = (count, offset, 0)
            if last and collapse:
                flags |= pdu.DATA_STATUS | _residual_flag(residual)
                words = (count, offset, abs(residual))
            self._send(pdu.DATA_IN, flags, task.itt, data=view[offset:end], ttt=pdu.RESERVED_TAG, words=words, advance=last and collapse)
            offset = end
            count += 1
        return -1 if collapse else count

    # Task management (11.5, 11.6), as management.py decides it

    def _task_management(self, bhs: memoryview, data: memoryview) -> None:
        _, function, _, _, lun, itt, ref_itt, cmd_sn, _, ref_cmd_sn, *_ = pdu.INITIATOR.unpack(bhs)
        request = Request(function & 0x7F, lun, itt, ref_itt, cmd_sn, ref_cmd_sn)
        self._in_order(cmd_sn, bool(bhs[0] & pdu.IMMEDIATE), partial(self._manager.perform, request))

    def answer_management(self, itt: int, response: int) -> None:
        self._send(pdu.TASK_MANAGEMENT_RESPONSE, pdu.FINAL, itt, second=response)

    def abort_tasks(self, lun: bytes | None) -> None:
        self._manager.abort_for_others(lun)

    def skip(self, cmd_sn: int) -> None:
        """A command that has not come must not run when it does: its place in the order is taken by nothing (11.6.1)."""
        self._in_order(cmd_sn, False, _do_nothing)

    def forget(self, task: Task) -> None:
        """Take a task away without an answer."""
        if self.tasks.get(task.itt) is not task:
            return
        if self.dropped:
            self._end_departed(task)
            return
        del self.tasks[task.itt]
        if task.started and not task.immediate:
            self._live.in_progress -= 1
        self._manager.gone(task)

    # NOP, Text, Logout, SNACK

    def _nop_out(self, bhs: memoryview, data: memoryview) -> None:
        """A ping is echoed up to the initiator's limit, an answer to ours is noted (11.18)."""
        _, _, _, _, lun, itt, ttt, cmd_sn, *_ = pdu.INITIATOR.unpack(bhs)
        if itt == pdu.RESERVED_TAG:
            if ttt in self.pings:
                self.pings[ttt] = bytes(data)
            return
        echo = bytes(data[: self.agreed.initiator_max_recv_data_segment_length])
        answer = partial(self._send, pdu.NOP_IN, pdu.FINAL, itt, data=echo, lun=lun, ttt=pdu.RESERVED_TAG)
        self._in_order(cmd_sn, bool(bhs[0] & pdu.IMMEDIATE), answer)

    def _text_request(self, bhs: memoryview, data: memoryview) -> None:
        _, flags, _, _, lun, itt, ttt, cmd_sn, *_ = pdu.INITIATOR.unpack(bhs)
        act = partial(self._take_text, flags, lun, itt, ttt, bytes(data))
        self._in_order(cmd_sn, bool(bhs[0] & pdu.IMMEDIATE), act)

    def _take_text(self, flags: int, lun: bytes, itt: int, ttt: int, data: bytes) -> None:
        """One turn of a text exchange; a final answer gives no tag and copies no LUN (11.11.4)."""
        reply, data, tag = self._text.take(ttt, data, bool(flags & pdu.CONTINUE), self._answer_text)
        final = tag == pdu.RESERVED_TAG
        self._send(pdu.TEXT_RESPONSE, reply, itt, data=data, lun=_NO_LUN if final else lun, ttt=tag)

    def _answer_text(self, pairs: list[tuple[str, str]]) -> list[bytes]:
        answers = texts.answer_text(self._node, self._live, self.agreed, pairs, self._local_host)
        offer = self._node.config.offer
        return texts.cut(answers, min(offer.text_chunk, self.agreed.initiator_max_recv_data_segment_length), offer.text_by_c_bit)

    def _logout(self, bhs: memoryview, data: memoryview) -> None:
        _, reason, _, _, _, itt, cid, cmd_sn, *_ = pdu.INITIATOR.unpack(bhs)
        self._in_order(cmd_sn, bool(bhs[0] & pdu.IMMEDIATE), partial(self._log_out, reason & 0x7F, itt, cid >> 16))

    def _log_out(self, reason: int, itt: int, cid: int) -> None:
        """Reasons and answers of 11.14.1 and 11.15.1; the connection closes once the answer is sent."""
        if reason == LogoutReason.REMOVE_FOR_RECOVERY:
            response = 2
        elif reason == LogoutReason.CLOSE_CONNECTION and cid != self._live.cid:
            response = 1
        elif reason > LogoutReason.REMOVE_FOR_RECOVERY:
            raise ProtocolError("a Logout Request with a reason that does not exist (11.14.1)")
        else:
            response = 0
            self.tasks.clear()
            self._ready.clear()
        times = self.agreed.default_time2wait << 16 | self.agreed.default_time2retain
        self._send(pdu.LOGOUT_RESPONSE, pdu.FINAL, itt, second=response, words=(0, times, 0))
        if response == 0:
            self.closing = True
            self.why = "the initiator logged out"

    def _snack(self, bhs: memoryview, data: memoryview) -> None:
        """At ErrorRecoveryLevel 0 nothing is sent again (11.16)."""
        self._reject(bhs, RejectReason.SNACK_REJECT, advance=False)

    def _second_login(self, bhs: memoryview, data: memoryview) -> None:
        raise ProtocolError("a Login Request in full feature phase (7.7)")

    # Sending

    def _reject(self, bhs: bytes | memoryview, reason: RejectReason, advance: bool = True) -> None:
        """Quote the header that is refused (11.17)."""
        self._send(pdu.REJECT, pdu.FINAL, pdu.RESERVED_TAG, data=bytes(bhs), second=reason, advance=advance)

    def _violated(self, error: ProtocolError) -> None:
        if self._current is not None and not self.closing:
            self._reject(self._current, RejectReason.PROTOCOL_ERROR)
        self._current = None
        self.why = self.why or str(error)
        self.closing = True

    def _new_ttt(self) -> int:
        """A Target Transfer Tag; the next one is known beforehand as `_next_ttt`."""
        ttt = self._next_ttt
        self._next_ttt = (ttt + 1) % pdu.RESERVED_TAG
        return ttt

    @property
    def _live(self) -> Session:
        if self.session is None:
            raise AssertionError("full feature phase without a session")
        return self.session

    def _send(
        self,
        opcode: int,
        flags: int,
        itt: int,
        data: bytes | memoryview = b"",
        second: int = 0,
        third: int = 0,
        lun: bytes = _NO_LUN,
        ttt: int = 0,
        words: tuple[int, int, int] = (0, 0, 0),
        advance: bool = True,
    ) -> None:
        """Queue one PDU with the numbering of this moment; StatSN advances with everything that is a status (4.2.2.2)."""
        session = self._live
        # A Data-In without status has no StatSN (11.7); R2T and NOP-In without a task show the next one.
        stat_sn = 0 if opcode == pdu.DATA_IN and not advance else self._stat_sn
        exp_cmd_sn = session.exp_cmd_sn
        self._emit(
            pdu.TARGET.pack(opcode, flags, second, third, len(data), lun, itt, ttt, stat_sn, exp_cmd_sn, session.max_cmd_sn, *words), data
        )
        if advance:
            self._stat_sn = (self._stat_sn + 1) & _MASK

    def _emit(self, bhs: bytes, data: bytes | memoryview = b"") -> None:
        if self._node.trace is not None:
            self._node.trace(">", pdu.describe(bhs))
        self._out += frame(bhs, data, self._header_digest, self._data_digest)
        self._out_bytes += pdu.BHS_LENGTH + len(data)

    def __repr__(self) -> str:
        state = "dropped" if self.dropped else "closing" if self.closing else repr(self.session or self._login)
        return f"<Connection {state}, {len(self.tasks)} tasks>"


_HANDLERS: dict[int, Callable[[Connection, memoryview, memoryview], None]] = {
    pdu.SCSI_COMMAND: Connection._scsi_command,
    pdu.DATA_OUT: Connection._data_out,
    pdu.NOP_OUT: Connection._nop_out,
    pdu.TASK_MANAGEMENT: Connection._task_management,
    pdu.TEXT: Connection._text_request,
    pdu.LOGOUT: Connection._logout,
    pdu.SNACK: Connection._snack,
    pdu.LOGIN: Connection._second_login,
}


def _residual(task: Task, outcome: Outcome) -> int:
    """Bytes that the device server moved, or would have, beyond what the initiator expected; below 0 what is missing (11.4.5.1)."""
    room = task.expected if task.is_read or task.is_write else 0
    if outcome.status == check.GOOD:
        return (len(outcome.data) or outcome.wanted) - room
    return -room if task.is_read else 0


def _residual_flag(residual: int) -> int:
    """O or U, in Data-In and SCSI Response the same bits (11.4.1, 11.7.1)."""
    if residual > 0:
        return pdu.RESPONSE_OVERFLOW
    return pdu.RESPONSE_UNDERFLOW if residual < 0 else 0


def _do_nothing() -> None:
    """For a place in the order that is taken by a command which must not run, and for a shell that needs no waking."""
