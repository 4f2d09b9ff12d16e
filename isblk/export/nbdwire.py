"""The alphabet of NBD: magics, flags, options, commands, errors, and how replies look in their three forms (NBD protocol, Values).

Extended headers are the specification's experimental extension of that name, as qemu and libnbd speak it: a request of 32 bytes with a
64-bit length, every reply a chunk of 32 bytes that repeats the offset of the request, and extents of 64 bits.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from isblk.block.request import Provisioned

NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

STRING_LIMIT: Final = 4096
"""Bytes of the longest string: export names, queries, messages."""
MAX_PAYLOAD: Final = 32 << 20
"""Bytes of the largest READ or WRITE served: what every client may assume (Size constraints)."""
ALLOCATION: Final = b"base:allocation"
ALLOCATION_ID: Final = 1
"""The identifier of the one metadata context there is."""
EXTENTS_LIMIT: Final = 1 << 20
"""Extents of one reply at most (NBD_REPLY_TYPE_BLOCK_STATUS)."""

GREETING: Final = Struct(">QQH")
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">QII")
OPTION_REPLY: Final = Struct(">QIII")
EXPORT_REPLY: Final = Struct(">QH")
INFO_EXPORT: Final = Struct(">HQH")
INFO_BLOCK_SIZE: Final = Struct(">HIII")
SHORT: Final = Struct(">H")
LONG: Final = Struct(">I")

REQUEST: Final = Struct(">QQQI")
"""magic, flags and type as one number (request_head), cookie, offset, length"""
EXTENDED_REQUEST: Final = Struct(">QQQQ")
SIMPLE_REPLY: Final = Struct(">IIQ")
"""magic, error, cookie"""
CHUNK: Final = Struct(">IHHQI")
"""magic, flags, type, cookie, length"""
DATA_CHUNK: Final = Struct(">IHHQIQ")
"""the same, and the offset of the data"""
EXTENDED_CHUNK: Final = Struct(">IHHQQQ")
"""magic, flags, type, cookie, offset of the request, length"""
EXTENDED_DATA_CHUNK: Final = Struct(">IHHQQQQ")
CHUNK_ERROR: Final = Struct(">IH")
"""error, length of the message"""
READ_ROOM: Final = EXTENDED_DATA_CHUNK.size
"""Bytes that the longest header of a READ's reply takes."""


class HandshakeFlag(IntFlag):
    """What the server says first; the client's flags have the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """What a client may ask during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """Answers to options; errors have bit 31."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


class Info(IntEnum):
    """Aspects of an export in the answer to INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Requests of the transmission phase."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Flags of a request."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16
    PAYLOAD_LEN = 32


class ChunkType(IntEnum):
    """What a chunk of a structured reply holds; errors have bit 15."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


DONE: Final = 1
"""NBD_REPLY_FLAG_DONE: the last chunk of a reply."""


class Error(IntEnum):
    """The only error numbers there are on the wire."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class State(IntFlag):
    """Status of an extent in base:allocation."""

    HOLE = 1
    ZERO = 2


_ERRORS: Final = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.ENOMEM: Error.ENOMEM,
    errno.EINVAL: Error.EINVAL,
    errno.EOPNOTSUPP: Error.EINVAL,  # ENOTSUP is for FAST_ZERO alone (Error values)
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}


def wire_error(error: BaseException) -> Error:
    """What a client is told of a failure; whatever has no number of its own on the wire is EIO."""
    number = getattr(error, "errno", None)
    return _ERRORS.get(number, Error.EIO) if isinstance(number, int) else Error.EIO


def cut_text(text: str, limit: int = STRING_LIMIT) -> bytes:
    """UTF-8 of at most `limit` bytes, without NUL, cut between two characters."""
    return text.replace("\0", " ").encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode()


def request_head(magic: int, flags: int, command: int) -> int:
    """The first eight bytes of a request as a number: what is common is told by one comparison."""
    return magic << 32 | flags << 16 | command


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One reply to an option, in whole."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def allocation(found: Sequence[Provisioned], offset: int, length: int, reads_zero: bool, one: bool) -> list[tuple[int, int]]:
    """Extents from `offset` on as base:allocation has them, at most `length` bytes; never empty, for what is unknown is allocated.

    An anchored block is no hole: writing to it cannot fail for want of space. `reads_zero`: what is not mapped reads as zeroes.
    """
    zero = State.ZERO if reads_zero else State(0)
    states = {1: State.HOLE | zero, 2: zero}
    extents: list[tuple[int, int]] = []
    at, end = offset, offset + length
    for each in found:
        until = min(each.offset + each.length, end)
        if not each.offset <= at < until:
            continue
        state = int(states.get(each.provisioning, State(0)))
        if extents and extents[-1][1] == state:
            extents[-1] = (extents[-1][0] + until - at, state)
        elif len(extents) == (1 if one else EXTENTS_LIMIT):
            break
        else:
            extents.append((until - at, state))
        at = until
    return extents or [(length, 0)]


class Replies:
    """One form of replies: how long a READ's header is and how it is packed, and the replies without data.

    A class and not a Protocol: compiled, what it is called for each request is then found without looking.
    """

    name: ClassVar[str]
    read_header: ClassVar[int]
    request: ClassVar[Struct]
    request_magic: ClassVar[int]

    def pack_read(self, buffer: memoryview, at: int, cookie: int, offset: int, length: int) -> None:
        """Put the header of a READ's reply into `buffer` at `at`; `length` bytes of data follow it."""
        raise NotImplementedError

    def done(self, cookie: int, offset: int) -> bytes:
        """Success without data."""
        raise NotImplementedError

    def error(self, cookie: int, offset: int, error: int, message: str) -> bytes:
        """Failure of any request."""
        raise NotImplementedError

    def status(self, cookie: int, offset: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """The one chunk of a BLOCK_STATUS: extents as (length in bytes, State)."""
        raise NotImplementedError


class SimpleReplies(Replies):
    """Simple replies: an error number and nothing else."""

    name = "simple"
    read_header = SIMPLE_REPLY.size
    request = REQUEST
    request_magic = REQUEST_MAGIC

    def pack_read(self, buffer: memoryview, at: int, cookie: int, offset: int, length: int) -> None:
        """16 bytes."""
        SIMPLE_REPLY.pack_into(buffer, at, SIMPLE_REPLY_MAGIC, 0, cookie)

    def done(self, cookie: int, offset: int) -> bytes:
        """Error 0."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, offset: int, error: int, message: str) -> bytes:
        """There is no room for the message."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)

    def status(self, cookie: int, offset: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Cannot be said: BLOCK_STATUS needs structured replies."""
        raise AssertionError("a block status was accepted without structured replies")


class StructuredReplies(Replies):
    """Structured replies: READ and errors in chunks; a plain success stays a simple reply, which is shorter and allowed."""

    name = "structured"
    read_header = DATA_CHUNK.size
    request = REQUEST
    request_magic = REQUEST_MAGIC

    def pack_read(self, buffer: memoryview, at: int, cookie: int, offset: int, length: int) -> None:
        """One chunk for the whole, so DF is always obeyed."""
        DATA_CHUNK.pack_into(buffer, at, STRUCTURED_REPLY_MAGIC, DONE, ChunkType.OFFSET_DATA, cookie, length + 8, offset)

    def done(self, cookie: int, offset: int) -> bytes:
        """A simple reply."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, offset: int, error: int, message: str) -> bytes:
        """An error chunk with the message."""
        text = cut_text(message)
        head = CHUNK.pack(STRUCTURED_REPLY_MAGIC, DONE, ChunkType.ERROR, cookie, CHUNK_ERROR.size + len(text))
        return head + CHUNK_ERROR.pack(error, len(text)) + text

    def status(self, cookie: int, offset: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Context identifier, then (length, flags) of 32 bits each."""
        body = LONG.pack(ALLOCATION_ID) + b"".join(_EXTENT.pack(length, flags) for length, flags in extents)
        return CHUNK.pack(STRUCTURED_REPLY_MAGIC, DONE, ChunkType.BLOCK_STATUS, cookie, len(body)) + body


class ExtendedReplies(Replies):
    """Chunks with extended headers, for everything."""

    name = "extended"
    read_header = EXTENDED_DATA_CHUNK.size
    request = EXTENDED_REQUEST
    request_magic = EXTENDED_REQUEST_MAGIC

    def pack_read(self, buffer: memoryview, at: int, cookie: int, offset: int, length: int) -> None:
        """One chunk for the whole."""
        EXTENDED_DATA_CHUNK.pack_into(buffer, at, EXTENDED_REPLY_MAGIC, DONE, ChunkType.OFFSET_DATA, cookie, offset, length + 8, offset)

    def done(self, cookie: int, offset: int) -> bytes:
        """A chunk of type NONE."""
        return EXTENDED_CHUNK.pack(EXTENDED_REPLY_MAGIC, DONE, ChunkType.NONE, cookie, offset, 0)

    def error(self, cookie: int, offset: int, error: int, message: str) -> bytes:
        """An error chunk with the message."""
        text = cut_text(message)
        head = EXTENDED_CHUNK.pack(EXTENDED_REPLY_MAGIC, DONE, ChunkType.ERROR, cookie, offset, CHUNK_ERROR.size + len(text))
        return head + CHUNK_ERROR.pack(error, len(text)) + text

    def status(self, cookie: int, offset: int, extents: Sequence[tuple[int, int]]) -> bytes:
        """Context identifier, number of extents, then (length, flags) of 64 bits each."""
        body = _STATUS_EXT.pack(ALLOCATION_ID, len(extents)) + b"".join(_EXTENT_EXT.pack(length, flags) for length, flags in extents)
        return EXTENDED_CHUNK.pack(EXTENDED_REPLY_MAGIC, DONE, ChunkType.BLOCK_STATUS_EXT, cookie, offset, len(body)) + body


_EXTENT: Final = Struct(">II")
_EXTENT_EXT: Final = Struct(">QQ")
_STATUS_EXT: Final = Struct(">II")

SIMPLE: Final = SimpleReplies()
STRUCTURED: Final = StructuredReplies()
EXTENDED: Final = ExtendedReplies()
