"""What every PDU of a session carries and where it goes: CmdSN, StatSN, digests, and the queue of what must be sent (RFC 7143 4.2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.login import LoginResult
from isblk.iscsi.serial import MASK, CommandWindow, follows

NO_LUN: Final = bytes(8)


class Wire:
    """The numbers and the output queue that the tasks and the exchanges of one session share; the hot path reads its fields directly."""

    __slots__ = ("data_digest", "digests", "exp_stat_sn", "header_digest", "out", "trace", "window")

    def __init__(self, login: LoginResult) -> None:
        self.window = CommandWindow(login.cmd_sn, login.exp_cmd_sn, login.max_cmd_sn)
        self.exp_stat_sn = login.exp_stat_sn
        self.header_digest = login.negotiated.header_digest
        self.data_digest = login.negotiated.data_digest
        self.digests = self.header_digest or self.data_digest
        self.out: list[bytes | memoryview] = []
        self.trace: Callable[[str, str], None] | None = None

    def send(self, bhs: bytes, data: bytes | memoryview = b"") -> None:
        """Queue one whole PDU; `bhs` carries its lengths and any additional header."""
        if self.digests or data:
            self.out.extend(frame(bhs, data, self.header_digest, self.data_digest))
        else:
            self.out.append(bhs)
        if self.trace is not None:
            self.trace("->", pdu.describe(bhs[: pdu.BHS_LENGTH]))

    def emit(
        self,
        opcode: int,
        flags: int,
        itt: int,
        *,
        lun: bytes = NO_LUN,
        word20: int = 0,
        word32: int = 0,
        data: bytes = b"",
        cmd_sn: int | None = None,
    ) -> None:
        """Queue a PDU that is no SCSI command; immediate ones carry CmdSN without using it up (4.2.2.1)."""
        number = self.window.cmd_sn if cmd_sn is None else cmd_sn
        self.send(pdu.INITIATOR.pack(opcode, flags, 0, len(data), lun, itt, word20, number, self.exp_stat_sn, word32, 0, 0, 0), data)

    def status(self, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bool:
        """Count a PDU that carries StatSN; False for a duplicate, which is dropped. Raises ProtocolError for a gap (4.2.2.2, 7.9)."""
        self.window.update(exp_cmd_sn, max_cmd_sn)
        if stat_sn == self.exp_stat_sn:
            self.exp_stat_sn = (stat_sn + 1) & MASK
            return True
        if follows(stat_sn, self.exp_stat_sn):
            raise ProtocolError(f"a status was lost: StatSN {stat_sn} came where {self.exp_stat_sn} was due")
        return False
