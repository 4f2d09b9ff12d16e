"""A target spoken by hand: literal PDUs built and read byte by byte, sharing neither Structs nor framing with isblk.

`login_result` is the one place that knows how a login result is made; `Script` talks to a session without any socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from crc32c import crc32c

from isblk.iscsi.framer import Framer
from isblk.iscsi.login import LoginResult, Negotiated
from isblk.iscsi.session import Session
from isblk.iscsi.task import Exchange, Task

NO_TAG = 0xFFFFFFFF
LUN_1 = bytes.fromhex("0001000000000000")
READ_CDB = bytes.fromhex("28000000000000000800")
WRITE_CDB = bytes.fromhex("2a000000000000000800")

_NEGOTIATED = Negotiated(
    header_digest=False,
    data_digest=False,
    max_recv_data_segment_length=262144,
    target_max_recv_data_segment_length=8192,
    initial_r2t=True,
    immediate_data=True,
    first_burst_length=65536,
    max_burst_length=262144,
    max_outstanding_r2t=1,
    default_time2wait=2,
    default_time2retain=0,
    error_recovery_level=0,
    max_connections=1,
    data_pdu_in_order=True,
    data_sequence_in_order=True,
    target_portal_group_tag=1,
)


def negotiated(**changes: Any) -> Negotiated:
    """What a login may have agreed on; keywords replace single values."""
    return replace(_NEGOTIATED, **changes)


def login_result(*, cmd_sn: int = 1, exp_stat_sn: int = 1, window: int = 32, **changes: Any) -> LoginResult:
    """A login that has succeeded, with room for `window` commands; further keywords change what was negotiated."""
    return LoginResult(
        negotiated=negotiated(**changes),
        tsih=1,
        cmd_sn=cmd_sn,
        exp_stat_sn=exp_stat_sn,
        exp_cmd_sn=cmd_sn,
        max_cmd_sn=(cmd_sn + window - 1) % 2**32,
        tpgt=1,
        target_alias=None,
        agreements=(),
    )


def digest(data: bytes) -> bytes:
    """A CRC32C as it goes on the wire (13.1)."""
    return crc32c(data).to_bytes(4, "little")


def words(*values: int) -> bytes:
    """32-bit words, big-endian."""
    return b"".join(value.to_bytes(4, "big") for value in values)


def pdu_bytes(bhs: bytes, data: bytes = b"", ahs: bytes = b"", digests: bool = False, pad: bytes = b"\0\0\0") -> bytes:
    """A whole PDU around a 48-byte header whose length fields are filled in here."""
    header = bhs[:4] + bytes([len(ahs) // 4]) + len(data).to_bytes(3, "big") + bhs[8:48] + ahs
    body = data + pad[: -len(data) % 4]
    if not digests:
        return header + body
    return header + digest(header) + (body + digest(body) if data else b"")


def target_bhs(
    opcode: int, flags: int = 0x80, second: int = 0, third: int = 0, *, lun: bytes = bytes(8), itt: int = 0, tail: bytes = b""
) -> bytes:
    """A target's header: `tail` is bytes 20 to 47."""
    return bytes([opcode, flags, second, third]) + bytes(4) + lun + words(itt) + tail.ljust(28, b"\0")


@dataclass(frozen=True)
class Sent:
    """A PDU that the initiator sent, taken apart."""

    bhs: bytes
    ahs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def immediate(self) -> bool:
        return bool(self.bhs[0] & 0x40)

    @property
    def flags(self) -> int:
        return self.bhs[1]

    @property
    def final(self) -> bool:
        return bool(self.bhs[1] & 0x80)

    @property
    def lun(self) -> bytes:
        return self.bhs[8:16]

    @property
    def itt(self) -> int:
        return self.word(16)

    @property
    def ttt(self) -> int:
        return self.word(20)

    @property
    def cmd_sn(self) -> int:
        return self.word(24)

    @property
    def exp_stat_sn(self) -> int:
        return self.word(28)

    def word(self, offset: int) -> int:
        """The 32-bit word at this byte of the header."""
        return int.from_bytes(self.bhs[offset : offset + 4], "big")


def taken_apart(stream: bytes, digests: bool = False) -> Iterator[Sent]:
    """Every PDU of a byte stream; digests and zero padding are asserted, and that nothing is left over."""
    at = 0
    while at < len(stream):
        header_end = at + 48 + stream[at + 4] * 4
        length = int.from_bytes(stream[at + 5 : at + 8], "big")
        header = stream[at:header_end]
        at = header_end
        if digests:
            assert stream[at : at + 4] == digest(header), "header digest"
            at += 4
        body = stream[at : at + length + -length % 4]
        assert len(body) == length + -length % 4, "the stream ends within a PDU"
        assert not any(body[length:]), "padding is zero"
        at += len(body)
        if digests and length:
            assert stream[at : at + 4] == digest(body), "data digest"
            at += 4
        yield Sent(header[:48], header[48:], body[:length])


def feed(framer: Framer, stream: bytes, chunk: int = 1 << 30) -> None:
    """Let bytes land where the framer wants them, at most `chunk` at a time."""
    at = 0
    while at < len(stream):
        buffer = framer.receive_buffer()
        count = min(len(buffer), chunk, len(stream) - at)
        assert count, "the framer offers no room"
        buffer[:count] = stream[at : at + count]
        framer.received(count)
        at += count


class Script:
    """A session and the target's words to it. StatSN, ExpCmdSN and MaxCmdSN are kept here, and may be set to anything.

    `runs`: the framer shows the session its buffer first (framer.Run), as it does in use.
    """

    runs = True

    def __init__(self, *, discovery: bool = False, window: int = 32, cmd_sn: int = 1, stat_sn: int = 1, **changes: Any) -> None:
        login = login_result(cmd_sn=cmd_sn, exp_stat_sn=stat_sn, window=window, **changes)
        self.session = Session(login, discovery)
        self.framer = Framer(self.session, login.negotiated.max_recv_data_segment_length)
        self.framer.switch(self.session, self.framer.limit, self.session.run if self.runs else None)
        self.digests = login.negotiated.header_digest
        self.framer.enable_digests(login.negotiated.header_digest, login.negotiated.data_digest)
        self.stat_sn = stat_sn
        self.exp_cmd_sn = cmd_sn
        self.max_cmd_sn = login.max_cmd_sn
        self.finished: list[Task] = []
        self.answers: list[Exchange] = []

    # What the initiator does

    def read(self, length: int, into: memoryview | None = None, cdb: bytes = READ_CDB, lun: bytes = LUN_1) -> Task:
        task = Task(lun, cdb, memoryview(bytearray(length)) if into is None else into, None, self.finished.append)
        self.session.submit(task)
        return task

    def write(self, data: bytes | memoryview, cdb: bytes = WRITE_CDB, lun: bytes = LUN_1) -> Task:
        task = Task(lun, cdb, None, memoryview(data), self.finished.append)
        self.session.submit(task)
        return task

    def command(self, cdb: bytes = bytes(6), lun: bytes = LUN_1) -> Task:
        task = Task(lun, cdb, None, None, self.finished.append)
        self.session.submit(task)
        return task

    def said(self) -> list[Sent]:
        """What the session has sent since the last call."""
        stream = b"".join(bytes(buffer) for buffer in self.session.outgoing())
        return list(taken_apart(stream, self.digests))

    # What the target does

    def hear(self, *pdus: bytes, chunk: int = 1 << 30) -> None:
        feed(self.framer, b"".join(pdus), chunk)

    def numbers(self, advance: bool) -> bytes:
        stat_sn = self.stat_sn
        if advance:
            self.stat_sn = (stat_sn + 1) % 2**32
        return words(stat_sn, self.exp_cmd_sn, self.max_cmd_sn)

    def _pdu(
        self, opcode: int, flags: int, itt: int, rest: bytes = b"", *, data: bytes = b"", advance: bool = True, **header: Any
    ) -> bytes:
        ttt = header.pop("ttt", 0)
        tail = words(ttt) + self.numbers(advance) + rest
        return pdu_bytes(target_bhs(opcode, flags, itt=itt, tail=tail, **header), data, digests=self.digests)

    def data_in(
        self,
        itt: int,
        data: bytes,
        *,
        data_sn: int = 0,
        offset: int = 0,
        final: bool = False,
        status: int | None = None,
        flags: int = 0,
        residual: int = 0,
    ) -> bytes:
        """Data-In (11.7); with `status` it ends the task and StatSN advances."""
        flags |= 0x80 if final or status is not None else 0
        flags |= 0x01 if status is not None else 0
        rest = words(data_sn, offset, residual)
        return self._pdu(0x25, flags, itt, rest, data=data, ttt=NO_TAG, third=status or 0, advance=status is not None)

    def response(self, itt: int, status: int = 0, *, response: int = 0, sense: bytes = b"", flags: int = 0, residual: int = 0) -> bytes:
        """SCSI Response (11.4); `sense` is the whole data segment."""
        return self._pdu(0x21, 0x80 | flags, itt, words(0, 0, residual), data=sense, second=response, third=status)

    def r2t(self, itt: int, offset: int, length: int, *, ttt: int = 0x77, r2t_sn: int = 0) -> bytes:
        """Ready To Transfer (11.8)."""
        return self._pdu(0x31, 0x80, itt, words(r2t_sn, offset, length), ttt=ttt, advance=False)

    def nop_in(self, itt: int = NO_TAG, ttt: int = NO_TAG, *, data: bytes = b"", lun: bytes = bytes(8)) -> bytes:
        """NOP-In (11.19): an update, a ping (ttt), or the answer to one (itt)."""
        return self._pdu(0x20, 0x80, itt, data=data, lun=lun, ttt=ttt, advance=itt != NO_TAG)

    def managed(self, itt: int, response: int = 0) -> bytes:
        """Task Management Function Response (11.6)."""
        return self._pdu(0x22, 0x80, itt, second=response)

    def text(self, itt: int, data: bytes, *, ttt: int = NO_TAG, flags: int = 0x80, lun: bytes = bytes(8)) -> bytes:
        """Text Response (11.11)."""
        return self._pdu(0x24, flags, itt, data=data, ttt=ttt, lun=lun)

    def logged_out(self, itt: int, response: int = 0, *, time2wait: int = 0, time2retain: int = 0) -> bytes:
        """Logout Response (11.15)."""
        return self._pdu(0x26, 0x80, itt, words(0, time2wait << 16 | time2retain), second=response)

    def asynchronous(
        self, event: int, *, vendor: int = 0, parameters: tuple[int, int, int] = (0, 0, 0), data: bytes = b"", lun: bytes = bytes(8)
    ) -> bytes:
        """Asynchronous Message (11.9)."""
        first, second, third = parameters
        return self._pdu(0x32, 0x80, NO_TAG, words(event << 24 | vendor << 16 | first, second << 16 | third), data=data, lun=lun)

    def reject(self, reason: int, quoted: bytes) -> bytes:
        """Reject (11.17)."""
        return self._pdu(0x3F, 0x80, NO_TAG, data=quoted, second=reason)
