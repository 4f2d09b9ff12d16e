"""The data of a write on its way out: immediate, unsolicited and solicited, cut to the target's limits (RFC 7143 4.2.5.2, 11.7).

Data-Out PDUs are queued as one block of headers and views of the caller's own memory, so that a 1 MiB write in 8 KiB pieces costs one
`sendmsg` and no copy of payload. (A header object each was measured at half the speed.)
"""

from __future__ import annotations

from typing import Final

from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.login import Negotiated
from isblk.iscsi.task import Task

_RESERVED_LUN: Final = bytes(8)


class DataOut:
    """How this session sends write data: lengths in bytes, fixed when the login ended. A write of `immediate_limit` goes in its command."""

    __slots__ = ("_data_digest", "_first_burst", "_header_digest", "_plain", "_segment", "_solicited_only", "immediate_limit")

    def __init__(self, negotiated: Negotiated) -> None:
        self._header_digest = negotiated.header_digest
        self._data_digest = negotiated.data_digest
        self._segment = negotiated.target_max_recv_data_segment_length
        self._first_burst = negotiated.first_burst_length
        self._solicited_only = negotiated.initial_r2t
        self.immediate_limit = min(self._segment, self._first_burst) if negotiated.immediate_data else 0
        self._plain = not (self._header_digest or self._data_digest) and self._segment % 4 == 0

    def immediate(self, length: int) -> int:
        """How many bytes of a write of `length` travel in the command itself (13.11, 13.12)."""
        return min(length, self.immediate_limit)

    def unsolicited(self, length: int) -> int:
        """How many bytes may be sent before any R2T, immediate data included (13.10, 13.14)."""
        return self.immediate(length) if self._solicited_only else min(length, self._first_burst)

    def burst(self, task: Task, ttt: int, offset: int, length: int, exp_stat_sn: int, out: list[bytes | memoryview]) -> None:
        """Queue the Data-Out PDUs of one sequence: `length` bytes of the task's data at `offset`; DataSN begins at 0 (11.7.5)."""
        source = task.write_from
        if source is None:
            raise AssertionError("a burst of a task that has nothing to write")
        # The LUN field is reserved unless a Target Transfer Tag is given (11.7.4).
        lun = _RESERVED_LUN if ttt == pdu.RESERVED_TAG else task.lun
        count = -(-length // self._segment)
        headers = memoryview(bytearray(count * pdu.BHS_LENGTH))
        pack_into = pdu.INITIATOR.pack_into
        end = offset + length
        for data_sn in range(count):
            size = min(self._segment, end - offset)
            flags = pdu.FINAL if offset + size == end else 0
            at = data_sn * pdu.BHS_LENGTH
            pack_into(headers, at, pdu.DATA_OUT, flags, 0, size, lun, task.itt, ttt, 0, exp_stat_sn, 0, data_sn, offset, 0)
            header = headers[at : at + pdu.BHS_LENGTH]
            piece = source[offset : offset + size]
            if self._plain and not size & 3:
                out.append(header)
                out.append(piece)
            else:
                out.extend(frame(bytes(header), piece, self._header_digest, self._data_digest))
            offset += size
