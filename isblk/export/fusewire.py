"""The kernel's FUSE protocol as bytes: requests taken apart, replies built, versions 7.31 to 7.45 (/usr/include/linux/fuse.h).

Structures are in the machine's byte order and without gaps. A request is a header of 40 bytes and a body whose length follows from its
opcode; a reply is a header of 16 bytes and whatever the opcode says. The kernel decides on the length it is sent by the minor version that
both agreed on in INIT, so a body of another length is not a newer protocol but a broken one: ProtocolError, and nothing else, comes out.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

from isblk.errors import ProtocolError

MAJOR: Final = 7
OLDEST_MINOR: Final = 31
"""Linux 5.4: max_pages, 64-byte INIT replies and everything else used here without a second form."""
NEWEST_MINOR: Final = 45
MAX_WRITE: Final = 1 << 20
"""Bytes of data in one READ or WRITE; the kernel counts it in pages (max_pages)."""
MAX_NAME: Final = 1024
PAGE: Final = 4096


class Opcode(IntEnum):
    """fuse_opcode: those that may come for one file or a flat directory; others are answered ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    LSEEK = 46
    COPY_FILE_RANGE = 47
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag(IntFlag):
    """INIT flags, those of `flags2` from bit 32 on."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class OpenFlag(IntFlag):
    """FOPEN flags of an OPEN reply."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    PARALLEL_DIRECT_WRITES = 1 << 6


class SetattrFlag(IntFlag):
    """FATTR flags: which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    FH = 1 << 6


class FallocateMode(IntFlag):
    """FALLOC_FL flags (fallocate(2))."""

    KEEP_SIZE = 1
    PUNCH_HOLE = 2
    ZERO_RANGE = 16


BLKGETSIZE64: Final = 0x80081272
"""_IOR(0x12, 114, size_t) of linux/fs.h."""
NOTIFY_INVAL_INODE: Final = 2
KEEPS_NO_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests that the kernel waits for no answer to; an answer would be an error (INTERRUPT: none is needed)."""

HEADER: Final = Struct("=IIQQIIIHH")  # fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
TRANSFER: Final = Struct("=IIQQ16xQQII8xI4x")
"""Header and fuse_read_in or fuse_write_in in one: len, opcode, unique, nodeid; fh, offset, size, read_flags or write_flags, flags."""
HEAD_LENGTH: Final = TRANSFER.size
"""Bytes ahead of a WRITE's payload, which READ has as well."""
OUT: Final = Struct("=IiQ")
"""fuse_out_header: len, error, unique."""
OUT_LENGTH: Final = OUT.size
WRITTEN: Final = Struct("=IiQII")
"""The reply to a WRITE: header, bytes written, padding."""

_INIT_IN: Final = Struct("=IIII")
_INIT_IN_EXT: Final = Struct("=IIIII44x")
_INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")
_GETATTR_IN: Final = Struct("=IIQ")
_SETATTR_IN: Final = Struct("=IIQQ8x24x12xI4xII4x")
_OPEN_IN: Final = Struct("=II")
_RELEASE_IN: Final = Struct("=QIIQ")
_FSYNC_IN: Final = Struct("=QII")
_GETXATTR_IN: Final = Struct("=II")
_READDIR_IN: Final = Struct("=QQIIQII")
_FALLOCATE_IN: Final = Struct("=QQQII")
_LSEEK_IN: Final = Struct("=QQII")
_COPY_IN: Final = Struct("=QQQQQQQ")
_IOCTL_IN: Final = Struct("=QIIQII")
_STATX_IN: Final = Struct("=IIQII")
_ATTR: Final = Struct("=QQQQQQIIIIIIIIII")
_ATTR_HEAD: Final = Struct("=QII")
_ENTRY_HEAD: Final = Struct("=QQQQII")
_OPEN_OUT: Final = Struct("=QIi")
_STATFS_OUT: Final = Struct("=QQQQQIII28x")
_XATTR_OUT: Final = Struct("=II")
_DIRENT: Final = Struct("=QQII")
_OFFSET_OUT: Final = Struct("=Q")
_COPIED_OUT: Final = Struct("=II")
_IOCTL_OUT: Final = Struct("=iIII")
_STATX_OUT: Final = Struct("=QII16xIIQIIIHxxQQQQ" + "qIi" * 4 + "16x112x")
_INVAL_INODE: Final = Struct("=IiQQqq")
STATX_BASIC_AND_BIRTH: Final = 0xFFF


class Header(NamedTuple):
    """fuse_in_header without what is of no use: `unique` names the request, `node` is the inode, `pid` the asking thread."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


class Init(NamedTuple):
    """What the kernel offers; `max_readahead` in bytes, `flags` with those of flags2 above bit 32."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Agreed(NamedTuple):
    """What INIT is answered with."""

    minor: int
    max_readahead: int
    flags: InitFlag


class Setattr(NamedTuple):
    """A SETATTR; fields count where `valid` says so. Times are not kept here."""

    valid: int
    fh: int
    size: int
    mode: int
    uid: int
    gid: int


class Readdir(NamedTuple):
    """A READDIR or READDIRPLUS: entries behind cookie `offset`, at most `size` bytes of them."""

    fh: int
    offset: int
    size: int


class Fallocate(NamedTuple):
    """A FALLOCATE, in bytes."""

    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    """An LSEEK; `whence` as lseek(2) has it."""

    fh: int
    offset: int
    whence: int


class Copy(NamedTuple):
    """A COPY_FILE_RANGE, in bytes; the source's inode is the header's."""

    fh_in: int
    offset_in: int
    node_out: int
    fh_out: int
    offset_out: int
    length: int
    flags: int


class Ioctl(NamedTuple):
    """An IOCTL whose argument the kernel has looked at: `out_size` bytes may come back."""

    fh: int
    flags: int
    command: int
    out_size: int


class Attr(NamedTuple):
    """fuse_attr: sizes in bytes, `blocks` of 512, one time (in ns since 1970) for all."""

    inode: int
    mode: int
    size: int
    blocks: int
    links: int
    uid: int
    gid: int
    time_ns: int
    block_size: int

    def pack(self) -> bytes:
        """88 bytes."""
        seconds, nanoseconds = divmod(self.time_ns, 1_000_000_000)
        times = (seconds,) * 3 + (nanoseconds,) * 3
        numbers = (self.mode, self.links, self.uid, self.gid, 0, self.block_size, 0)
        return _ATTR.pack(self.inode, self.size, self.blocks, *times, *numbers)


# ----------------------------------------------------------------------------------------------------------------------- requests


def _take(layout: Struct, body: bytes, what: str) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise ProtocolError(f"the kernel sent a {what} of {len(body)} bytes where {layout.size} were due")
    return layout.unpack(body)


def decode_header(head: bytes | memoryview, received: int) -> Header:
    """The header of a request of which `received` bytes came; its own length must agree."""
    if received < HEADER.size or len(head) < HEADER.size:
        raise ProtocolError(f"the kernel sent {received} bytes, less than a header")
    length, opcode, unique, node, uid, gid, pid, _, _ = HEADER.unpack_from(head)
    if length != received:
        raise ProtocolError(f"the kernel sent {received} bytes and says that it is {length}")
    return Header(length, opcode, unique, node, uid, gid, pid)


def decode_init(body: bytes) -> Init:
    """INIT of any version, so that one which is too old can be refused in words: 16 bytes, 64 with flags2, more in time to come."""
    if len(body) < _INIT_IN.size:
        raise ProtocolError(f"the kernel sent an INIT of {len(body)} bytes")
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(body)
    if flags & InitFlag.INIT_EXT and len(body) >= _INIT_IN_EXT.size:
        flags |= _INIT_IN_EXT.unpack_from(body)[4] << 32
    return Init(major, minor, max_readahead, flags)


def decode_name(body: bytes) -> bytes:
    """The name of a LOOKUP: not empty, ended by its only NUL, and no path."""
    name, end = body[:-1], body[-1:]
    if end != b"\0" or not name or len(name) > MAX_NAME or b"\0" in name or b"/" in name:
        raise ProtocolError("the kernel asked for what is no name")
    return name


def decode_getattr(body: bytes) -> None:
    """GETATTR asks nothing but its inode."""
    _take(_GETATTR_IN, body, "GETATTR")


def decode_statx(body: bytes) -> None:
    """STATX likewise: everything that is known is answered, which statx(2) allows."""
    _take(_STATX_IN, body, "STATX")


def decode_setattr(body: bytes) -> Setattr:
    """SETATTR."""
    valid, _, fh, size, mode, uid, gid = _take(_SETATTR_IN, body, "SETATTR")
    return Setattr(valid, fh, size, mode, uid, gid)


def decode_open(body: bytes) -> int:
    """The flags of an OPEN or OPENDIR, as open(2) has them."""
    return _take(_OPEN_IN, body, "OPEN")[0]


def decode_release(body: bytes) -> int:
    """The handle that a RELEASE, RELEASEDIR or FLUSH is about."""
    return _take(_RELEASE_IN, body, "RELEASE")[0]


def decode_fsync(body: bytes) -> int:
    """The handle that an FSYNC or FSYNCDIR is about; data alone or all of it is the same for a disk."""
    return _take(_FSYNC_IN, body, "FSYNC")[0]


def decode_access(body: bytes) -> int:
    """The mask of an ACCESS."""
    return _take(_OPEN_IN, body, "ACCESS")[0]


def decode_listxattr(body: bytes) -> int:
    """How many bytes a LISTXATTR takes; 0 asks how many there are."""
    return _take(_GETXATTR_IN, body, "LISTXATTR")[0]


def decode_getxattr(body: bytes) -> tuple[int, bytes]:
    """How many bytes a GETXATTR takes, and the name it asks for."""
    size = _take(_GETXATTR_IN, body[: _GETXATTR_IN.size], "GETXATTR")[0]
    return size, decode_name(body[_GETXATTR_IN.size :])


def decode_readdir(body: bytes) -> Readdir:
    """READDIR and READDIRPLUS."""
    fh, offset, size, *_ = _take(_READDIR_IN, body, "READDIR")
    return Readdir(fh, offset, min(size, MAX_WRITE))


def decode_fallocate(body: bytes) -> Fallocate:
    """FALLOCATE."""
    fh, offset, length, mode, _ = _take(_FALLOCATE_IN, body, "FALLOCATE")
    return Fallocate(fh, offset, length, mode)


def decode_lseek(body: bytes) -> Lseek:
    """LSEEK."""
    fh, offset, whence, _ = _take(_LSEEK_IN, body, "LSEEK")
    return Lseek(fh, offset, whence)


def decode_copy(body: bytes) -> Copy:
    """COPY_FILE_RANGE, the 64-bit form too."""
    return Copy(*_take(_COPY_IN, body, "COPY_FILE_RANGE"))


def decode_ioctl(body: bytes) -> Ioctl:
    """IOCTL; what the caller passed in behind the structure is of no use here."""
    fh, flags, command, _, in_size, out_size = _take(_IOCTL_IN, body[: _IOCTL_IN.size], "IOCTL")
    if len(body) != _IOCTL_IN.size + in_size:
        raise ProtocolError(f"the kernel sent an IOCTL of {len(body)} bytes with {in_size} bytes of input")
    return Ioctl(fh, flags, command, out_size)


# ------------------------------------------------------------------------------------------------------------------------ replies


def negotiate(offered: Init, wanted: InitFlag) -> Agreed | None:
    """What to answer to an INIT; None when the kernel is older than 7.31. A newer major version asks again once it has our 7."""
    if offered.major < MAJOR or (offered.major == MAJOR and offered.minor < OLDEST_MINOR):
        return None
    minor = NEWEST_MINOR if offered.major > MAJOR else min(offered.minor, NEWEST_MINOR)
    return Agreed(minor, offered.max_readahead, wanted & InitFlag(offered.flags & int(wanted)))


def ok(unique: int, body: bytes = b"") -> bytes:
    """Success."""
    return OUT.pack(OUT_LENGTH + len(body), 0, unique) + body


def error(unique: int, number: int) -> bytes:
    """Failure with an errno."""
    return OUT.pack(OUT_LENGTH, -number, unique)


def init_reply(agreed: Agreed, background: int) -> bytes:
    """The body for INIT; `background` asynchronous requests at once, congested from three quarters of them on."""
    flags = int(agreed.flags)
    limits = (background, background * 3 // 4, MAX_WRITE, 1, MAX_WRITE // PAGE, 0)
    return _INIT_OUT.pack(MAJOR, agreed.minor, agreed.max_readahead, flags & 0xFFFFFFFF, *limits, flags >> 32)


def attr_reply(attr: Attr, seconds: float) -> bytes:
    """The body for GETATTR and SETATTR; the kernel may believe it for so long."""
    return _ATTR_HEAD.pack(*_seconds(seconds), 0) + attr.pack()


def entry_reply(attr: Attr, seconds: float) -> bytes:
    """The body for LOOKUP, and of each entry of READDIRPLUS."""
    whole, rest = _seconds(seconds)
    return _ENTRY_HEAD.pack(attr.inode, 0, whole, whole, rest, rest) + attr.pack()


def statx_reply(attr: Attr, seconds: float) -> bytes:
    """The body for STATX: the same, and the time of birth."""
    time = (*divmod(attr.time_ns, 1_000_000_000), 0)
    head = (*_seconds(seconds), 0, STATX_BASIC_AND_BIRTH, attr.block_size, 0)
    return _STATX_OUT.pack(*head, attr.links, attr.uid, attr.gid, attr.mode, attr.inode, attr.size, attr.blocks, 0, *time * 4)


def open_reply(fh: int, flags: OpenFlag) -> bytes:
    """The body for OPEN and OPENDIR."""
    return _OPEN_OUT.pack(fh, int(flags), 0)


def statfs_reply(block_size: int, blocks: int, files: int) -> bytes:
    """The body for STATFS: full."""
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, block_size, 255, block_size)


def xattr_reply(value: bytes, size: int) -> bytes | None:
    """The body for GETXATTR and LISTXATTR: the value, or with `size` 0 its length; None when it does not fit (ERANGE)."""
    if not size:
        return _XATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else None


def directory(entries: Iterable[tuple[bytes, Attr, int]], size: int, plus_seconds: float | None = None) -> bytes:
    """The body for READDIR, or READDIRPLUS where `plus_seconds` is given: entries (name, attributes, cookie) as far as they fit."""
    answer = b""
    for name, attr, cookie in entries:
        entry = b"" if plus_seconds is None else entry_reply(attr, plus_seconds)
        entry += _DIRENT.pack(attr.inode, cookie, len(name), attr.mode >> 12) + name
        entry += bytes(-len(entry) % 8)
        if len(answer) + len(entry) > size:
            break
        answer += entry
    return answer


def offset_reply(number: int) -> bytes:
    """The body for LSEEK and for COPY_FILE_RANGE_64: 64 bits."""
    return _OFFSET_OUT.pack(number)


def copied_reply(count: int) -> bytes:
    """The body for COPY_FILE_RANGE."""
    return _COPIED_OUT.pack(count, 0)


def ioctl_reply(data: bytes) -> bytes:
    """The body for an IOCTL that worked and has `data` for the caller."""
    return _IOCTL_OUT.pack(0, 0, 0, 0) + data


def inval_inode(node: int) -> bytes:
    """The notice that attributes of an inode are not what they were; an offset below 0 leaves its pages alone."""
    return _INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, node, -1, 0)


def inval_pages(node: int) -> bytes:
    """The notice that nothing cached of an inode is what it was. It waits for pages that are being read or written."""
    return _INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, node, 0, 0)


def _seconds(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, round((seconds - whole) * 1_000_000_000)
