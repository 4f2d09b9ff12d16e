"""A SCSI task at the target: what of its data has come, and which bursts to ask for next (RFC 7143 4.2.5.2, 11.3, 11.7, 11.8)."""

from __future__ import annotations

from isblk.errors import ProtocolError
from isblk.target.check import Key, fixed_sense
from isblk.target.negotiate import Agreed

UNEXPECTED_DATA = fixed_sense(Key.ABORTED_COMMAND, 0x0C, 0x0C)
"""Unexpected unsolicited data (11.4.7.2)."""
INCORRECT_AMOUNT = fixed_sense(Key.ABORTED_COMMAND, 0x0C, 0x0D)
"""Incorrect amount of data (11.4.7.2)."""


class Burst:
    """What one R2T asked for: `length` bytes at `offset`; how much has come, and the DataSN that comes next."""

    __slots__ = ("data_sn", "length", "offset", "received", "ttt")

    def __init__(self, ttt: int, offset: int, length: int) -> None:
        self.ttt = ttt
        self.offset = offset
        self.length = length
        self.received = 0
        self.data_sn = 0


class Task:
    """One SCSI command from its arrival to its status. `expected` is the Expected Data Transfer Length in bytes."""

    __slots__ = (
        "aborting",
        "buffer",
        "bursts",
        "cdb",
        "expected",
        "failure",
        "held",
        "immediate",
        "is_read",
        "is_write",
        "itt",
        "lun",
        "next_offset",
        "r2t_sn",
        "received",
        "started",
        "unsolicited",
        "unsolicited_sn",
    )

    def __init__(self, itt: int, lun: bytes, cdb: bytes, expected: int, is_read: bool, is_write: bool, immediate: bool) -> None:
        self.itt = itt
        self.lun = lun
        self.cdb = cdb
        self.expected = expected
        self.is_read = is_read
        self.is_write = is_write
        self.immediate = immediate
        self.started = False
        self.aborting = False
        self.held = False
        self.buffer: bytes | bytearray | memoryview = b""
        self.failure = b""
        self.received = 0
        self.unsolicited = False
        self.unsolicited_sn = 0
        self.bursts: dict[int, Burst] = {}
        self.r2t_sn = 0
        self.next_offset = 0

    @property
    def complete(self) -> bool:
        """Whether every byte of Data-Out is here and none is under way."""
        return not self.is_write or (self.received >= self.expected and not self.unsolicited and not self.bursts)

    def begin_data(self, immediate_length: int, more_follows: bool, agreed: Agreed) -> None:
        """Judge the immediate data and what the F bit of the command announces (11.3.1, 13.10, 13.11, 13.14)."""
        self.received = self.next_offset = immediate_length
        self.unsolicited = more_follows
        if (immediate_length and not agreed.immediate_data) or (more_follows and agreed.initial_r2t):
            self.failure = UNEXPECTED_DATA
        elif immediate_length > min(self.expected, agreed.first_burst_length):
            self.failure = INCORRECT_AMOUNT

    def locate(self, ttt: int | None, data_sn: int, offset: int, length: int, agreed: Agreed) -> Burst | None:
        """Check one Data-Out before its data is believed: the burst it belongs to, None for unsolicited data. Raises ProtocolError."""
        if ttt is None:
            self._check_unsolicited(data_sn, offset, length, agreed)
            return None
        burst = self.bursts.get(ttt)
        if burst is None:
            raise ProtocolError(f"Data-Out for Target Transfer Tag {ttt:#x}, which is not outstanding (11.7.4)")
        if agreed.data_sequence_in_order and burst is not next(iter(self.bursts.values())):
            raise ProtocolError("Data-Out for a later R2T before an earlier one was answered (13.19)")
        if data_sn != burst.data_sn:
            raise ProtocolError(f"Data-Out with DataSN {data_sn} where {burst.data_sn} comes next (11.7.5)")
        if agreed.data_pdu_in_order and offset != burst.offset + burst.received:
            raise ProtocolError(f"Data-Out at {offset} where {burst.offset + burst.received} comes next (11.7.6, 13.18)")
        if offset < burst.offset or offset + length > burst.offset + burst.length or burst.received + length > burst.length:
            raise ProtocolError("Data-Out outside what its R2T asked for (11.8.4)")
        return burst

    def _check_unsolicited(self, data_sn: int, offset: int, length: int, agreed: Agreed) -> None:
        if not self.unsolicited:
            raise ProtocolError("unsolicited Data-Out that the command did not announce (11.3.1)")
        if data_sn != self.unsolicited_sn:
            raise ProtocolError(f"unsolicited Data-Out with DataSN {data_sn} where {self.unsolicited_sn} comes next (11.7.5)")
        if agreed.data_pdu_in_order and offset != self.received:
            raise ProtocolError(f"unsolicited Data-Out at {offset} where {self.received} comes next (11.7.6)")
        if max(offset, self.received) + length > min(self.expected, agreed.first_burst_length):
            raise ProtocolError("more unsolicited data than FirstBurstLength or the expected length (13.14)")

    def take(self, burst: Burst | None, length: int, final: bool, agreed: Agreed) -> None:
        """Count one Data-Out that `locate` has passed. Raises ProtocolError where F comes at the wrong place (11.7.1)."""
        self.received += length
        if burst is None:
            self.unsolicited_sn += 1
            self.next_offset = self.received
            if final:
                self.unsolicited = False
                if self.received < min(self.expected, agreed.first_burst_length):
                    self.failure = self.failure or INCORRECT_AMOUNT
            return
        burst.data_sn += 1
        burst.received += length
        # An initiator whose task is being aborted should end its bursts early (11.5.1).
        if final != (burst.received == burst.length) and not (final and self.aborting):
            raise ProtocolError("the F bit of Data-Out does not stand where its R2T ends (11.7.1)")
        if final:
            del self.bursts[burst.ttt]

    def solicit(self, ttt: int, agreed: Agreed) -> Burst | None:
        """The next burst to ask for under the tag `ttt`, or None: enough are outstanding, or everything has been asked for."""
        if self.unsolicited or self.aborting or len(self.bursts) >= agreed.max_outstanding_r2t or self.next_offset >= self.expected:
            return None
        burst = Burst(ttt, self.next_offset, min(agreed.max_burst_length, self.expected - self.next_offset))
        self.next_offset += burst.length
        self.bursts[ttt] = burst
        self.r2t_sn += 1
        return burst

    def __repr__(self) -> str:
        return f"<Task {self.itt:#x} cdb {self.cdb.hex()} {self.received}/{self.expected} bytes{' aborting' if self.aborting else ''}>"
