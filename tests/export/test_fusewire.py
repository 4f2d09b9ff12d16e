"""fusewire.py: literal bytes of the kernel's structures both ways, each length refused but the right one, and rubbish."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.export import fusewire as wire
from isblk.export.fusewire import Attr, Init, InitFlag, Opcode, OpenFlag

ATTR = Attr(
    inode=2, mode=0o100600, size=0x10000, blocks=128, links=1, uid=1000, gid=100, time_ns=1_700_000_000_000_000_007, block_size=4096
)
ATTR_BYTES = bytes.fromhex(
    "0200000000000000 0000010000000000 8000000000000000"  # ino, size, blocks
    "00f1536500000000 00f1536500000000 00f1536500000000"  # atime, mtime, ctime
    "07000000 07000000 07000000 80810000 01000000 e8030000 64000000 00000000 00100000 00000000"
)
HEADER = "50000000 0f000000 0a00000000000000 0100000000000000 e8030000 64000000 39300000 0000 0000"
READ = bytes.fromhex(HEADER + "0500000000000000 0010000000000000 00200000 00000000 0000000000000000 00800000 00000000")


def test_a_header_and_a_read_are_taken_apart() -> None:
    assert wire.decode_header(READ, 80) == (80, Opcode.READ, 10, 1, 1000, 100, 12345)
    assert wire.TRANSFER.unpack(READ) == (80, 15, 10, 1, 5, 4096, 8192, 0, 0o100000)


@pytest.mark.parametrize("received", [0, 16, 39, 79, 81, 1 << 20])
def test_a_header_that_disagrees_with_what_came_is_refused(received: int) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_header(READ, received)


BODIES: list[tuple[Callable[[bytes], object], str, object]] = [
    (wire.decode_getattr, "01000000 00000000 0500000000000000", None),
    (wire.decode_statx, "00000000 00000000 0500000000000000 00000000 ff0f0000", None),
    (
        wire.decode_setattr,
        "08010000 00000000 0500000000000000 0000010000000000 0000000000000000"
        "0100000000000000 0200000000000000 0300000000000000 04000000 05000000 06000000"
        "80810000 00000000 e8030000 64000000 00000000",
        (0x108, 5, 65536, 0o100600, 1000, 100),
    ),
    (wire.decode_open, "02800000 00000000", 0o100002),
    (wire.decode_release, "0500000000000000 02800000 00000000 0000000000000000", 5),
    (wire.decode_fsync, "0500000000000000 01000000 00000000", 5),
    (wire.decode_access, "02000000 00000000", 2),
    (wire.decode_listxattr, "00010000 00000000", 256),
    (wire.decode_readdir, "0100000000000000 0300000000000000 00100000 00000000 0000000000000000 00000000 00000000", (1, 3, 4096)),
    (
        wire.decode_fallocate,
        "0500000000000000 0010000000000000 0020000000000000 03000000 00000000",
        (5, 4096, 8192, 3),
    ),
    (wire.decode_lseek, "0500000000000000 0010000000000000 04000000 00000000", (5, 4096, 4)),
    (
        wire.decode_copy,
        "0500000000000000 0010000000000000 0300000000000000 0600000000000000 0020000000000000 0000100000000000 0000000000000000",
        (5, 4096, 3, 6, 8192, 1 << 20, 0),
    ),
    (wire.decode_ioctl, "0500000000000000 00000000 72120880 0000000000000000 00000000 08000000", (5, 0, wire.BLKGETSIZE64, 8)),
]


@pytest.mark.parametrize("decode, text, meaning", BODIES)
def test_a_body_is_taken_apart_and_every_other_length_refused(decode: Callable[[bytes], object], text: str, meaning: object) -> None:
    body = bytes.fromhex(text)
    assert decode(body) == meaning
    for length in [*range(len(body)), len(body) + 1, len(body) + 8]:
        with pytest.raises(ProtocolError):
            decode(body[:length].ljust(length, b"\0"))


@pytest.mark.parametrize("body", [b"", b"\0", b"lun0", b"lu\0n0\0", b"lun0\0\0", b"../x\0", b"x" * 1025 + b"\0"])
def test_what_is_no_name_is_refused(body: bytes) -> None:
    assert wire.decode_name(b"lun0\0") == b"lun0"
    with pytest.raises(ProtocolError):
        wire.decode_name(body)


def test_an_extended_attribute_is_asked_by_size_and_name() -> None:
    assert wire.decode_getxattr(bytes.fromhex("10000000 00000000") + b"user.x\0") == (16, b"user.x")
    for body in (b"", bytes(7), bytes(8), bytes(8) + b"user.x"):
        with pytest.raises(ProtocolError):
            wire.decode_getxattr(body)


DECODERS = [each for each, _, _ in BODIES] + [wire.decode_name, wire.decode_getxattr, wire.decode_init]


@given(st.sampled_from(DECODERS), st.binary(max_size=120))
def test_random_bytes_raise_nothing_but_protocol_errors(decode: Callable[[bytes], object], body: bytes) -> None:
    try:
        decode(body)
    except ProtocolError:
        pass


@given(st.binary(max_size=100), st.integers(0, 1 << 32))
def test_random_headers_raise_nothing_but_protocol_errors(head: bytes, received: int) -> None:
    try:
        wire.decode_header(head, received)
    except ProtocolError:
        pass


# --------------------------------------------------------------------------------------------------------------------------- INIT


def test_init_of_every_length_that_exists_is_read() -> None:
    short = bytes.fromhex("07000000 1f000000 00000200 fbfd0340")
    assert wire.decode_init(short) == (7, 31, 131072, 0x4003FDFB)
    long = short + bytes.fromhex("10000000") + bytes(44)
    assert wire.decode_init(long).flags == 0x10_4003FDFB
    assert wire.decode_init(long + bytes(64)).flags == 0x10_4003FDFB
    for length in range(16):
        with pytest.raises(ProtocolError):
            wire.decode_init(short[:length])


@pytest.mark.parametrize(
    "offered, minor",
    [((6, 99), None), ((7, 30), None), ((7, 31), 31), ((7, 38), 38), ((7, 45), 45), ((7, 99), 45), ((8, 1), 45)],
)
def test_the_version_is_the_older_of_both_and_not_older_than_7_31(offered: tuple[int, int], minor: int | None) -> None:
    agreed = wire.negotiate(Init(*offered, 131072, 0), InitFlag.ASYNC_READ)
    assert (None if agreed is None else agreed.minor) == minor


def test_only_what_both_want_is_agreed_on() -> None:
    wanted = InitFlag.ASYNC_READ | InitFlag.MAX_PAGES | InitFlag.DIRECT_IO_ALLOW_MMAP
    offered = Init(7, 40, 4096, int(InitFlag.MAX_PAGES | InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.BIG_WRITES) | 1 << 50)
    agreed = wire.negotiate(offered, wanted)
    assert agreed == (40, 4096, InitFlag.MAX_PAGES | InitFlag.DIRECT_IO_ALLOW_MMAP)
    assert wire.init_reply(agreed, 64) == bytes.fromhex(
        "07000000 28000000 00100000 00004000 4000 3000 00001000 01000000 0001 0000 10000000" + "00" * 28
    )


# ------------------------------------------------------------------------------------------------------------------------ replies


def test_replies_are_the_bytes_of_the_header_file() -> None:
    assert wire.ok(10) == bytes.fromhex("10000000 00000000 0a00000000000000")
    assert wire.ok(10, b"data") == bytes.fromhex("14000000 00000000 0a00000000000000") + b"data"
    assert wire.error(10, 5) == bytes.fromhex("10000000 fbffffff 0a00000000000000")
    assert wire.WRITTEN.pack(24, 0, 10, 4096, 0) == bytes.fromhex("18000000 00000000 0a00000000000000 00100000 00000000")
    assert wire.open_reply(7, OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES) == bytes.fromhex("0700000000000000 41000000 00000000")
    assert wire.offset_reply(258) == bytes.fromhex("0201000000000000")
    assert wire.copied_reply(258) == bytes.fromhex("02010000 00000000")
    assert wire.ioctl_reply(b"12345678") == bytes(16) + b"12345678"
    assert wire.statfs_reply(4096, 7, 2)[:24] == bytes.fromhex("0700000000000000") + bytes(16)
    assert wire.statfs_reply(4096, 7, 2)[24:52] == bytes.fromhex("0200000000000000 0000000000000000 00100000 ff000000 00100000")
    assert wire.inval_inode(2) == bytes.fromhex("28000000 02000000 0000000000000000 0200000000000000 ffffffffffffffff 0000000000000000")
    assert wire.inval_pages(2) == bytes.fromhex("28000000 02000000 0000000000000000 0200000000000000 0000000000000000 0000000000000000")


def test_attributes_in_each_of_their_frames() -> None:
    assert ATTR.pack() == ATTR_BYTES
    assert wire.attr_reply(ATTR, 1.5) == bytes.fromhex("0100000000000000 0065cd1d 00000000") + ATTR_BYTES
    entry = bytes.fromhex("0200000000000000 0000000000000000 0100000000000000 0100000000000000 0065cd1d 0065cd1d") + ATTR_BYTES
    assert wire.entry_reply(ATTR, 1.5) == entry
    statx = wire.statx_reply(ATTR, 1.5)
    assert statx[:32] == bytes.fromhex("0100000000000000 0065cd1d 00000000") + bytes(16)
    time = bytes.fromhex("00f1536500000000 07000000 00000000")
    assert statx[32:] == (
        bytes.fromhex("ff0f0000 00100000 0000000000000000 01000000 e8030000 64000000 8081 0000 0200000000000000 0000010000000000")
        + bytes.fromhex("8000000000000000 0000000000000000")
        + time * 4
        + bytes(16 + 112)
    )


def test_xattrs_are_measured_or_given_or_do_not_fit() -> None:
    assert wire.xattr_reply(b"value", 0) == bytes.fromhex("05000000 00000000")
    assert wire.xattr_reply(b"value", 5) == b"value"
    assert wire.xattr_reply(b"value", 4) is None


def test_directory_entries_are_padded_and_cut_between_two_of_them() -> None:
    entries = [(b"lun0", ATTR, 2), (b"lun12345", ATTR, 3)]
    one = bytes.fromhex("0200000000000000 0200000000000000 04000000 08000000") + b"lun0\0\0\0\0"
    two = bytes.fromhex("0200000000000000 0300000000000000 08000000 08000000") + b"lun12345"
    assert wire.directory(entries, 4096) == one + two
    assert wire.directory(entries, len(one + two) - 1) == one
    assert wire.directory(entries, 31) == b""
    assert wire.directory(entries, 4096, plus_seconds=1.5) == wire.entry_reply(ATTR, 1.5) + one + wire.entry_reply(ATTR, 1.5) + two


def test_numbers_are_those_of_the_header_file() -> None:
    """Of what this machine's linux/fuse.h knows; what came after it is tested by the kernel."""
    text = Path("/usr/include/linux/fuse.h").read_text()
    codes = {name: int(number) for name, number in re.findall(r"^\s+FUSE_(\w+)\s*=\s*(\d+),", text, re.MULTILINE)}
    known = [opcode for opcode in Opcode if opcode.name in codes]
    assert len(known) >= len(Opcode) - 2
    assert {opcode.name: int(opcode) for opcode in known} == {opcode.name: codes[opcode.name] for opcode in known}
    flags = {name: int(shift) for name, shift in re.findall(r"^#define FUSE_(\w+)\s+\(1(?:ULL)? << (\d+)\)", text, re.MULTILINE)}
    assert {flag.name: int(flag) for flag in InitFlag if flag.name in flags} == {
        flag.name: 1 << flags[str(flag.name)] for flag in InitFlag if flag.name in flags
    }


def test_structures_are_as_long_as_the_compiler_makes_them(tmp_path: Path) -> None:
    pairs = {
        "in_header": wire.HEADER,
        "out_header": wire.OUT,
        "attr": wire._ATTR,
        "attr_out": struct.Struct(f"{wire._ATTR_HEAD.size + wire._ATTR.size}x"),
        "entry_out": struct.Struct(f"{wire._ENTRY_HEAD.size + wire._ATTR.size}x"),
        "init_in": wire._INIT_IN_EXT,
        "init_out": wire._INIT_OUT,
        "setattr_in": wire._SETATTR_IN,
        "open_in": wire._OPEN_IN,
        "open_out": wire._OPEN_OUT,
        "release_in": wire._RELEASE_IN,
        "flush_in": wire._RELEASE_IN,
        "fsync_in": wire._FSYNC_IN,
        "access_in": wire._OPEN_IN,
        "getxattr_in": wire._GETXATTR_IN,
        "getxattr_out": wire._XATTR_OUT,
        "read_in": wire._READDIR_IN,
        "write_in": wire._READDIR_IN,
        "write_out": wire._COPIED_OUT,
        "kstatfs": wire._STATFS_OUT,
        "fallocate_in": wire._FALLOCATE_IN,
        "lseek_in": wire._LSEEK_IN,
        "lseek_out": wire._OFFSET_OUT,
        "copy_file_range_in": wire._COPY_IN,
        "ioctl_in": wire._IOCTL_IN,
        "ioctl_out": wire._IOCTL_OUT,
        "dirent": wire._DIRENT,
    }
    checks = "".join(f'_Static_assert(sizeof(struct fuse_{name}) == {layout.size}, "{name}");\n' for name, layout in pairs.items())
    (tmp_path / "sizes.c").write_text(f"#include <linux/fuse.h>\n{checks}")
    done = subprocess.run(["gcc", "-fsyntax-only", "sizes.c"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
