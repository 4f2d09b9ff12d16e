"""The data of a write on its way out: immediate, unsolicited and solicited, cut to the target's limits (RFC 7143 4.2.5.2, 11.7).

Data-Out PDUs are queued as headers and views of the caller's own memory, so that a 1 MiB write in 8 KiB pieces costs one `sendmsg` and no
copy of payload. Headers are put together from their two ends: packing each whole was measured at twice as much.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.login import Negotiated
from isblk.iscsi.task import Task

_RESERVED_LUN: Final = bytes(8)
_RUN: Final = 256
"""PDUs whose headers' ends are kept, for each of a few offsets."""
_TAIL_AT: Final = 36
_pack: Final = pdu.INITIATOR.pack
_pack_tail: Final = Struct(">III").pack
"""DataSN, Buffer Offset, 0: from _TAIL_AT on, all that differs between the headers of a burst but for its last (11.7)."""


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
        segment, data_sn, end = self._segment, 0, offset + length
        if self._plain:
            head = _pack(pdu.DATA_OUT, 0, 0, segment, lun, task.itt, ttt, 0, exp_stat_sn, 0, 0, 0, 0)[:_TAIL_AT]
            while offset + segment < end:
                count = min((end - offset - 1) // segment, _RUN)
                for tail in _tails(data_sn, offset, segment, count):
                    out.append(head + tail)
                    out.append(source[offset : offset + segment])
                    offset += segment
                data_sn += count
        while offset < end:
            size = min(segment, end - offset)
            flags = pdu.FINAL if offset + size == end else 0
            bhs = _pack(pdu.DATA_OUT, flags, 0, size, lun, task.itt, ttt, 0, exp_stat_sn, 0, data_sn, offset, 0)
            out.extend(frame(bhs, source[offset : offset + size], self._header_digest, self._data_digest))
            data_sn += 1
            offset += size


@lru_cache(maxsize=32)
def _tails(data_sn: int, offset: int, segment: int, count: int) -> list[bytes]:
    """The ends of `count` headers in a row. A burst begins at one of few offsets, so they are seldom made."""
    return [_pack_tail(data_sn + number, offset + number * segment, 0) for number in range(count)]
