"""Framing: a byte stream to PDUs and back; where the next bytes land, padding, AHS, digests, limits (RFC 7143 11.2, 13.1).

Theory of operation. The connection asks `receive_buffer` where the next bytes must land and says `received(n)` when they have. Small PDUs
are taken whole out of one read-ahead buffer, many per receive; views of it are lent to the sink only during `deliver`. A sink that knows a
shorter way for what is common (`Run`) is shown the buffer first and takes as many PDUs as it likes. When the data segment of a large PDU
has only begun, the sink is asked (`place`) for the memory it belongs to, and the rest lands there without a copy. After such a landing the
read-ahead shrinks, so that of a run of large Data-In PDUs only little passes through the buffer; it grows back when small PDUs fill it.

Every length is checked here before it is believed; the only exception that bytes can cause is ProtocolError (DigestError where a CRC is
wrong).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from crc32c import crc32c

from isblk.errors import DigestError, ProtocolError
from isblk.iscsi import pdu

READ_AHEAD: Final = 256 * 1024
"""Bytes of the read-ahead buffer: some sixty 4 KiB Data-In PDUs per receive."""
LITTLE_AHEAD: Final = 4096
"""Bytes of read-ahead while large data segments arrive one after another."""
PLACE_FROM: Final = 32 * 1024
"""A data segment of so many bytes that has not arrived whole is placed; below, waiting for the rest in the buffer is cheaper."""
AHS_LIMIT: Final = 256
"""Bytes of additional header segments believed: targets have no use for any (11.2.2)."""

_NOTHING: Final = memoryview(b"")
_PAD: Final = (b"", b"\0\0\0", b"\0\0", b"\0")


class Sink(Protocol):
    """Who takes the PDUs: the session, the login, or the embedded target."""

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        """Where the `length` bytes of this data segment belong: a writable view of exactly that size, or None to have them delivered."""

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        """One PDU: views valid during the call only; `data` is the view that `place` returned if it was placed."""


Run = Callable[[memoryview, int, int, int], int]
"""`run(view, start, end, limit)`: takes PDUs, one after another, out of view[start:end], which has neither digests nor anything checked, no
data segment longer than `limit` bytes; returns where the first one begins that it leaves to `deliver`."""


class Framer:
    """The receiving half for one connection; `max_data_segment_length` in bytes is what we declared to the peer."""

    __slots__ = (
        "_ahead",
        "_buffer",
        "_data_digest",
        "_end",
        "_filled",
        "_header",
        "_header_digest",
        "_landing",
        "_run",
        "_sink",
        "_start",
        "_switched",
        "_view",
        "limit",
    )

    def __init__(self, sink: Sink, max_data_segment_length: int = pdu.LOGIN_DATA_SEGMENT_LENGTH) -> None:
        self.limit = max_data_segment_length
        self._sink = sink
        self._run: Run | None = None
        self._header_digest = False
        self._data_digest = False
        self._buffer = bytearray(READ_AHEAD)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._ahead = READ_AHEAD
        self._landing: memoryview | None = None
        self._filled = 0
        self._header = _NOTHING
        self._switched = False

    def enable_digests(self, header: bool, data: bool) -> None:
        """Expect digests from the next PDU on: after the final login response (13.1). May be called within `deliver`."""
        self._header_digest = header
        self._data_digest = data
        self._switched = True

    def switch(self, sink: Sink, max_data_segment_length: int, run: Run | None = None) -> None:
        """Deliver to another sink from the next PDU on, with another limit in bytes. May be called within `deliver`, not within `run`."""
        self._sink = sink
        self._run = run
        self.limit = max_data_segment_length
        self._switched = True

    @property
    def pending(self) -> int:
        """Bytes received that make no whole PDU yet."""
        return self._end - self._start + self._filled + len(self._header)

    def receive_buffer(self) -> memoryview:
        """Where the next bytes must land; never empty."""
        if self._landing is not None and self._filled < len(self._landing):
            return self._landing[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif READ_AHEAD - self._end < READ_AHEAD // 2:
            self._compact()
        return self._view[self._end : self._end + self._ahead]

    def received(self, count: int) -> None:
        """`count` bytes landed in the buffer last returned; delivers every PDU that is whole now. Raises ProtocolError."""
        if self._landing is not None and self._filled < len(self._landing):
            self._filled += count
        else:
            if count == self._ahead:
                self._ahead = READ_AHEAD
            self._end += count
        if self._landing is not None and not self._finish_landing():
            return
        self._take()

    def _compact(self) -> None:
        pending = self._end - self._start
        self._view[:pending] = bytes(self._view[self._start : self._end])
        self._start = 0
        self._end = pending

    def _take(self) -> None:
        """Deliver every whole PDU in the buffer. Hot: without digests the sink's own `run` takes most of them."""
        view, sink, limit, run = self._view, self._sink, self.limit, self._run
        unpack = pdu.LENGTHS.unpack_from
        plain = not (self._header_digest or self._data_digest)
        while self._end - self._start >= pdu.BHS_LENGTH:
            if run is not None and plain:
                self._start = run(view, self._start, self._end, limit)
                if self._end - self._start < pdu.BHS_LENGTH:
                    return
            start = self._start
            (length,) = unpack(view, start + 4)
            if plain and length <= limit:
                body = start + pdu.BHS_LENGTH
                after = body + ((length + 3) & ~3)
                if after <= self._end:
                    self._start = after
                    sink.deliver(view[start:body], _NOTHING, view[body : body + length])
                    if self._switched:
                        break
                    continue
            if not self._take_general(start, length >> 24 << 2, length & 0xFFFFFF):
                return
            if self._switched:
                break
        if self._switched:
            self._switched = False
            self._take()

    def _take_general(self, start: int, ahs_length: int, data_length: int) -> bool:
        """The PDU at `start` with everything a PDU can have; False when more bytes are needed first."""
        if ahs_length > AHS_LIMIT:
            raise ProtocolError(f"the peer sent {ahs_length} bytes of additional headers, more than the {AHS_LIMIT} that are believed")
        if not self._header_digest:  # Else the digest comes first: a length that it does not vouch for must not be believed (7.8).
            self._check_length(data_length)
        body = start + pdu.BHS_LENGTH + ahs_length + (pdu.DIGEST_LENGTH if self._header_digest else 0)
        if body > self._end:
            return False
        self._check_header(start, ahs_length)
        self._check_length(data_length)
        trailer = self._trailer(data_length)
        if body + data_length + trailer > self._end:
            return self._begin_landing(start, body, data_length) if self._worth_placing(start, body, data_length + trailer) else False
        data = self._view[body : body + data_length]
        self._check_data(data, self._view[body + data_length : body + data_length + trailer])
        self._start = body + data_length + trailer
        header_end = start + pdu.BHS_LENGTH
        self._sink.deliver(self._view[start:header_end], self._view[header_end : header_end + ahs_length], data)
        return True

    def _trailer(self, data_length: int) -> int:
        """Bytes behind a data segment: padding, and the data digest, which an empty segment does not have (11.2.3)."""
        pad = -data_length & 3
        return pad + pdu.DIGEST_LENGTH if self._data_digest and data_length else pad

    def _worth_placing(self, start: int, body: int, length: int) -> bool:
        return length >= PLACE_FROM or body - start + length > READ_AHEAD // 2

    def _begin_landing(self, start: int, body: int, data_length: int) -> bool:
        """Let the rest of a data segment land where it belongs; what has arrived of it is copied there."""
        header = self._view[start : start + pdu.BHS_LENGTH]
        landing = self._sink.place(header, data_length)
        if landing is None:
            landing = memoryview(bytearray(data_length))
        if len(landing) != data_length:
            raise AssertionError("a sink placed a data segment in memory of another size")
        arrived = min(self._end - body, data_length)
        landing[:arrived] = self._view[body : body + arrived]
        ahs = bytes(self._view[start + pdu.BHS_LENGTH : body - (pdu.DIGEST_LENGTH if self._header_digest else 0)])
        self._header = memoryview(bytes(header) + ahs)
        self._landing, self._filled = landing, arrived
        self._start = body + arrived
        self._ahead = LITTLE_AHEAD
        return self._finish_landing()

    def _finish_landing(self) -> bool:
        """Deliver the landed PDU if its data and trailer are whole; False when more bytes are needed first."""
        landing = self._landing
        if landing is None or self._filled < len(landing):
            return False
        trailer = self._trailer(len(landing))
        if self._end - self._start < trailer:
            return False
        self._check_data(landing, self._view[self._start : self._start + trailer])
        self._start += trailer
        header = self._header
        self._landing, self._filled, self._header = None, 0, _NOTHING
        self._sink.deliver(header[: pdu.BHS_LENGTH], header[pdu.BHS_LENGTH :], landing)
        return True

    def _check_header(self, start: int, ahs_length: int) -> None:
        if not self._header_digest:
            return
        end = start + pdu.BHS_LENGTH + ahs_length
        if crc32c(self._view[start:end]) != int.from_bytes(self._view[end : end + 4], "little"):
            raise DigestError("the header digest of a PDU is wrong: the network or the peer damaged it, so the session ends")

    def _check_length(self, data_length: int) -> None:
        if data_length > self.limit:
            raise ProtocolError(f"the peer sent a data segment of {data_length} bytes, more than the {self.limit} that were agreed")

    def _check_data(self, data: memoryview, trailer: memoryview) -> None:
        if not self._data_digest or not data:
            return
        pad = len(trailer) - pdu.DIGEST_LENGTH
        if crc32c(trailer[:pad], crc32c(data)) != int.from_bytes(trailer[pad:], "little"):
            raise DigestError("the data digest of a PDU is wrong: the network or the peer damaged it, so the session ends")


def frame(bhs: bytes, data: bytes | memoryview = b"", header_digest: bool = False, data_digest: bool = False) -> list[bytes | memoryview]:
    """The buffers of one PDU in wire order: `bhs` (its length field is set; an AHS may follow in it), digests, `data`, padding."""
    buffers: list[bytes | memoryview] = [bhs]
    if header_digest:
        buffers.append(crc32c(bhs).to_bytes(4, "little"))
    if not data:
        return buffers
    buffers.append(data)
    pad = _PAD[len(data) & 3]
    if data_digest:
        buffers.append(pad + crc32c(pad, crc32c(data)).to_bytes(4, "little"))
    elif pad:
        buffers.append(pad)
    return buffers
