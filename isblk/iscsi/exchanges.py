"""The requests of a session that are no SCSI commands: ping, task management, text, logout (RFC 7143 11.5, 11.10, 11.14, 11.18)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final

from isblk.errors import IsblkError, ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.serial import follows
from isblk.iscsi.task import Exchange, Kind, Task
from isblk.iscsi.wire import Wire

TEXT_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of one text answer believed: ten thousand targets with some portals each (reliability: parser limits)."""
TEXT_ANSWERS: Final = 4096
"""PDUs of one text answer."""
PING_ECHO: Final = 4096
"""Bytes of ping data echoed: the RFC asks for as much as the target takes, pings in the field carry none."""
UNSENT_PONGS: Final = 32
"""Ping answers queued while nothing can be sent; a peer that pings on without reading its answers is broken."""
FIRST_TAG: Final = 0xC0000000
"""Exchanges take their tags from here up, tasks from below: each table then knows by itself that a tag is free (11.2.1.8)."""

Done = Callable[[Exchange], None]


class Exchanges:
    """Open exchanges by tag. Every one is sent immediate, so that a closed command window cannot hold it up."""

    def __init__(self, wire: Wire, ping_limit: int) -> None:
        self._wire = wire
        self._open: dict[int, Exchange] = {}
        self._next_itt = FIRST_TAG
        self._ping_limit = min(PING_ECHO, ping_limit)
        self._pongs = 0

    # ------------------------------------------------------------------ asking

    def ping(self, done: Done) -> None:
        """NOP-Out that asks for an answer (11.18)."""
        self._ask(Exchange(Kind.PING, done), pdu.NOP_OUT, word20=pdu.RESERVED_TAG)

    def plug(self, cmd_sn: int) -> None:
        """A NOP-Out in the place of a command that the target rejected before it counted it (7.3)."""
        itt = self._begin(Exchange(Kind.PLUG, _ignore))
        self._wire.emit(pdu.NOP_OUT, pdu.FINAL, itt, word20=pdu.RESERVED_TAG, cmd_sn=cmd_sn)

    def manage(self, function: pdu.TaskManagement, done: Done, task: Task | None, lun: bytes) -> None:
        """A task management function on a task that has been sent, or on a logical unit (11.5)."""
        exchange = Exchange(Kind.TASK_MANAGEMENT, done, function=function, lun=lun, reference=task, cmd_sn=self._wire.window.cmd_sn)
        reference, ref_cmd_sn = (task.itt, task.cmd_sn) if task is not None else (pdu.RESERVED_TAG, 0)
        self._ask(exchange, pdu.TASK_MANAGEMENT, function, word20=reference, word32=ref_cmd_sn)

    def text(self, data: bytes, done: Done) -> None:
        """A Text Request of whole key=value pairs that fit one PDU (11.10)."""
        self._ask(Exchange(Kind.TEXT, done, text=bytearray()), pdu.TEXT, word20=pdu.RESERVED_TAG, data=data)

    def logout(self, done: Done, reason: pdu.LogoutReason) -> None:
        """Logout (11.14)."""
        self._ask(Exchange(Kind.LOGOUT, done), pdu.LOGOUT, reason)

    def _ask(self, exchange: Exchange, opcode: int, flags: int = 0, *, word20: int = 0, word32: int = 0, data: bytes = b"") -> None:
        itt = self._begin(exchange)
        emit = partial(self._wire.emit, flags=pdu.FINAL | flags, itt=itt, lun=exchange.lun, word20=word20, word32=word32, data=data)
        emit(opcode | pdu.IMMEDIATE)
        exchange.again = partial(emit, opcode)

    # ------------------------------------------------------------------ ending

    def sent(self) -> None:
        """Everything queued was handed over: ping answers may be queued again."""
        self._pongs = 0

    def fail(self, error: IsblkError) -> None:
        """End every exchange with this error."""
        open_ones = list(self._open.values())
        self._open.clear()
        with ExitStack() as rest:  # The others hear of it even when one's callback raises.
            for exchange in reversed(open_ones):
                exchange.error = error
                rest.callback(exchange.done, exchange)

    def reject(self, itt: int, reason: int, error: IsblkError) -> bool:
        """End the exchange whose PDU the target rejected; False if the tag is none of ours.

        One of too many immediate requests is sent once more as a non-immediate one when the window has room (11.17.1).
        """
        exchange, window = self._open.get(itt), self._wire.window
        if exchange is None:
            return False
        if reason == pdu.RejectReason.TOO_MANY_IMMEDIATE and exchange.again is not None and window.room > 0:
            again, exchange.again = exchange.again, None
            exchange.cmd_sn, exchange.numbered = window.take(), True
            again(cmd_sn=exchange.cmd_sn)
            return True
        del self._open[itt]
        if exchange.numbered and not follows(window.exp_cmd_sn, exchange.cmd_sn):
            self.plug(exchange.cmd_sn)
        exchange.error = error
        exchange.done(exchange)
        return True

    def _begin(self, exchange: Exchange) -> int:
        itt = self._next_itt
        while itt in self._open or itt == pdu.RESERVED_TAG:
            itt = itt + 1 if itt < pdu.RESERVED_TAG else FIRST_TAG
        self._next_itt = itt + 1
        exchange.itt = itt
        self._open[itt] = exchange
        return itt

    def _find(self, itt: int, *kinds: Kind) -> Exchange:
        exchange = self._open.get(itt)
        if exchange is None or exchange.kind not in kinds:
            raise ProtocolError(f"the target answered tag 0x{itt:x}, which was not asked that")
        return exchange

    def _end(self, itt: int, *kinds: Kind) -> Exchange:
        exchange = self._find(itt, *kinds)
        del self._open[itt]
        return exchange

    # ------------------------------------------------------------------ answers

    def nop_in(self, bhs: memoryview, data: memoryview) -> None:
        """NOP-In (11.19): a window update, an answer to our ping, or a ping to answer."""
        _, _, _, _, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, _, _, _ = pdu.HOT_TARGET.unpack(bhs)
        if itt != pdu.RESERVED_TAG:
            if self._wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
                exchange = self._end(itt, Kind.PING, Kind.PLUG)
                exchange.done(exchange)
            return
        self._wire.window.update(exp_cmd_sn, max_cmd_sn)
        if ttt != pdu.RESERVED_TAG:
            self._pong(bytes(bhs[8:16]), ttt, bytes(data[: self._ping_limit]))

    def _pong(self, lun: bytes, ttt: int, data: bytes) -> None:
        self._pongs += 1
        if self._pongs > UNSENT_PONGS:
            raise ProtocolError("the target pings without reading the answers")
        self._wire.emit(pdu.NOP_OUT | pdu.IMMEDIATE, pdu.FINAL, pdu.RESERVED_TAG, lun=lun, word20=ttt, data=data)

    def managed(self, bhs: memoryview) -> Exchange | None:
        """Task Management Function Response (11.6): the exchange, not yet told; None for a duplicate."""
        _, response, _, _, itt, _, stat_sn, exp_cmd_sn, max_cmd_sn, _, _, _ = pdu.HOT_TARGET.unpack(bhs)
        if not self._wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return None
        exchange = self._end(itt, Kind.TASK_MANAGEMENT)
        exchange.response = response
        return exchange

    def text_response(self, bhs: memoryview, data: memoryview) -> None:
        """Text Response (11.11): the answer may come in parts, by the C bit or by F=0 with a Target Transfer Tag (6.4)."""
        flags, _, _, _, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, _, _, _ = pdu.HOT_TARGET.unpack(bhs)
        if not self._wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        # It stays open until the answer is whole: whoever waits for an answer that breaks the protocol is told by `fail`.
        exchange = self._find(itt, Kind.TEXT)
        assert exchange.text is not None
        exchange.text += data
        exchange.answers += 1
        exchange.again = None
        if len(exchange.text) > TEXT_LIMIT or exchange.answers > TEXT_ANSWERS:
            raise ProtocolError(f"the target's text answer does not end: {len(exchange.text)} bytes in {exchange.answers} parts")
        if flags & pdu.FINAL and flags & pdu.CONTINUE:
            raise ProtocolError("a text response is final and to be continued at once")
        if flags & pdu.FINAL:
            del self._open[itt]
            exchange.done(exchange)
            return
        if ttt == pdu.RESERVED_TAG:
            raise ProtocolError("a text response is not final and has no Target Transfer Tag to ask for the rest")
        self._wire.emit(pdu.TEXT | pdu.IMMEDIATE, pdu.FINAL, itt, lun=bytes(bhs[8:16]), word20=ttt)

    def logout_response(self, bhs: memoryview, _data: memoryview) -> None:
        """Logout Response (11.15): the session is over, whatever it says."""
        _, response, _, _, itt, _, stat_sn, exp_cmd_sn, max_cmd_sn, _, times, _ = pdu.HOT_TARGET.unpack(bhs)
        if not self._wire.status(stat_sn, exp_cmd_sn, max_cmd_sn):
            return
        exchange = self._end(itt, Kind.LOGOUT)
        exchange.response = response
        exchange.time2wait, exchange.time2retain = times >> 16, times & 0xFFFF
        exchange.done(exchange)


def _ignore(_exchange: Exchange) -> None:
    """Nobody waits for this one."""
