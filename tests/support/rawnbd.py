"""The client's side of NBD as literal bytes, written independently of isblk/export: builders, a reader of replies, a client on trio."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import trio

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
EXPORT_NAME, ABORT, LIST = 1, 2, 3
STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = range(5, 12)
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN = range(0x80000001, 0x80000008)
ERR_TOO_BIG, ERR_EXT_HEADER_REQD = 0x80000009, 0x8000000A
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def go(name: bytes = b"", *infos: int, kind: int = GO) -> bytes:
    return option(kind, string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta(kind: int, name: bytes, *queries: bytes) -> bytes:
    return option(kind, string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def request(command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 1, data: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data


def extended(command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 1, data: bytes = b"") -> bytes:
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length) + data


def option_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, type, data) of each reply; the bytes must be whole replies."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


@dataclass
class Answer:
    """One reply of the transmission phase."""

    cookie: int
    error: int = 0
    data: bytes = b""
    message: str = ""
    extents: list[tuple[int, int]] = field(default_factory=list)
    offset: int = 0


class Replies:
    """Splits what a server sent into answers; `reads` gives the length that each simple reply to a READ has, by cookie."""

    def __init__(self, reads: dict[int, int] | None = None) -> None:
        self.reads = reads or {}
        self._buffer = b""

    def feed(self, data: bytes) -> list[Answer]:
        self._buffer += data
        answers = []
        while (answer := self._next()) is not None:
            answers.append(answer)
        return answers

    @property
    def rest(self) -> bytes:
        return self._buffer

    def _next(self) -> Answer | None:
        if len(self._buffer) < 16:
            return None
        magic = int.from_bytes(self._buffer[:4], "big")
        if magic == 0x67446698:
            return self._simple()
        assert magic in (0x668E33EF, 0x6E8A278C), f"{magic:#x} is no reply"
        layout = ">IHHQI" if magic == 0x668E33EF else ">IHHQQQ"
        size = struct.calcsize(layout)
        if len(self._buffer) < size:
            return None
        _, flags, kind, cookie, *more = struct.unpack_from(layout, self._buffer)
        if len(self._buffer) < size + more[-1]:
            return None
        body, self._buffer = self._buffer[size : size + more[-1]], self._buffer[size + more[-1] :]
        assert flags == 1, "each reply is one chunk here"
        answer = Answer(cookie, offset=more[0] if len(more) > 1 else 0)
        _BODIES[kind](answer, body)
        return answer

    def _simple(self) -> Answer | None:
        _, error, cookie = struct.unpack_from(">IIQ", self._buffer)
        length = self.reads.get(cookie, 0) if not error else 0
        if len(self._buffer) < 16 + length:
            return None
        data, self._buffer = self._buffer[16 : 16 + length], self._buffer[16 + length :]
        return Answer(cookie, error, data)


def _none(answer: Answer, body: bytes) -> None:
    assert not body


def _data(answer: Answer, body: bytes) -> None:
    answer.offset, answer.data = int.from_bytes(body[:8], "big"), body[8:]


def _error(answer: Answer, body: bytes) -> None:
    answer.error, length = struct.unpack_from(">IH", body)
    assert answer.error and length == len(body) - 6
    answer.message = body[6:].decode()


def _status(answer: Answer, body: bytes) -> None:
    assert body[:4] == b"\0\0\0\1"
    answer.extents = list(struct.iter_unpack(">II", body[4:]))


def _status_ext(answer: Answer, body: bytes) -> None:
    assert struct.unpack_from(">II", body) == (1, (len(body) - 8) // 16)
    answer.extents = list(struct.iter_unpack(">QQ", body[8:]))


_BODIES = {0: _none, 1: _data, 5: _status, 6: _status_ext, 0x8001: _error}


class RawClient:
    """A client on a trio stream, that does what a test tells it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.replies = Replies()
        self._received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._received) < count:
            data = await self.stream.receive_some(65536)
            assert data, f"the server closed, {len(self._received)} of {count} bytes came"
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        try:
            while data := await self.stream.receive_some(65536):
                self._received += data
        except trio.BrokenResourceError:
            pass
        taken, self._received = self._received, b""
        return taken

    async def hello(self, flags: int = 3) -> None:
        assert await self.take(18) == GREETING
        await self.send(struct.pack(">I", flags))

    async def ask(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Send one option and return its replies, up to the final one."""
        await self.send(data)
        found = []
        while True:
            head = await self.take(20)
            body = await self.take(int.from_bytes(head[16:], "big"))
            found += option_replies(head + body)
            if found[-1][1] == ACK or found[-1][1] >> 31:
                return found

    async def begin(self, name: bytes = b"", *options: bytes) -> None:
        """Handshake up to transmission."""
        await self.hello()
        for each in options:
            assert (await self.ask(each))[-1][1] == ACK
        assert (await self.ask(go(name)))[-1][1] == ACK

    async def answers(self, count: int) -> list[Answer]:
        """The next answers, in the order they come."""
        found = self.replies.feed(self._received)
        self._received = b""
        while len(found) < count:
            data = await self.stream.receive_some(1 << 20)
            assert data, f"the server closed after {len(found)} of {count} answers"
            found += self.replies.feed(data)
        assert len(found) == count
        return found

    async def do(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, cookie: int = 1, data: bytes = b"") -> Answer:
        """One request with a simple or structured reply."""
        self.replies.reads[cookie] = length if command == READ else 0
        await self.send(request(command, offset, length, flags, cookie, data))
        return (await self.answers(1))[0]

    async def close(self) -> None:
        await self.stream.aclose()
