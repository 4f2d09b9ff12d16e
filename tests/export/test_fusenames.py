"""fusenames.py: names, attributes, directories and extended attributes as the kernel asks for them."""

from __future__ import annotations

import errno
import os
import stat
import struct

import pytest

from isblk.export.files import Details
from isblk.export.fusewire import Opcode, SetattrFlag
from support.fusehost import OWNER, FuseHost
from support.memorydevice import MemoryDevice

MIB = 1 << 20
GETATTR = bytes(16)
LABELS = {"target": "iqn.2026-11.test:disk", "lun": "3", "wwid": "naa.5", "paths": "127.0.0.1:3260 up"}


def directory(**options: bool) -> FuseHost:
    return FuseHost(disks={0: MemoryDevice(MIB), 3: MemoryDevice(2 * MIB)}, **options)


def mode_and_size(attr: bytes) -> tuple[int, int]:
    return struct.unpack_from("=I", attr, 60)[0], struct.unpack_from("=Q", attr, 8)[0]


def test_the_file_itself_has_its_attributes_in_both_forms() -> None:
    host = FuseHost(MemoryDevice(MIB))
    assert mode_and_size(host.ask(Opcode.GETATTR, GETATTR).body[16:]) == (stat.S_IFREG | 0o600, MIB)
    statx = host.ask(Opcode.STATX, bytes(24)).body
    assert struct.unpack_from("=H", statx, 32 + 28) == (stat.S_IFREG | 0o600,)
    assert struct.unpack_from("=qI", statx, 32 + 80) == (OWNER.mounted_ns // 10**9, 0), "the time of birth"


def test_a_size_that_changed_is_answered_at_once() -> None:
    device = MemoryDevice(MIB)
    host = FuseHost(device)
    device.resize(2 * MIB)
    assert mode_and_size(host.ask(Opcode.GETATTR, GETATTR).body[16:])[1] == 2 * MIB


def test_a_name_is_found_or_not() -> None:
    host = directory()
    reply = host.ask(Opcode.LOOKUP, b"lun3\0")
    assert struct.unpack_from("=Q", reply.body) == (3,) and mode_and_size(reply.body[40:]) == (stat.S_IFREG | 0o600, 2 * MIB)
    assert host.ask(Opcode.LOOKUP, b"lun1\0").error == errno.ENOENT
    assert host.ask(Opcode.LOOKUP, b"lun0\0", node=2).error == errno.ENOTDIR
    assert host.session.counters.errors == 1, "asking for a name is no failure worth counting"


def test_an_inode_that_is_not_there_has_no_attributes() -> None:
    assert directory().ask(Opcode.GETATTR, GETATTR, node=9).error == errno.ENOENT


def names(body: bytes, plus: bool) -> list[bytes]:
    found = []
    while body:
        body = body[128:] if plus else body
        length = struct.unpack_from("=I", body, 16)[0]
        found.append(body[24 : 24 + length])
        body = body[-(-(24 + length) // 8) * 8 :]
    return found


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_directory_is_listed_and_gone_on_with(opcode: Opcode) -> None:
    host = directory()
    assert host.ask(Opcode.OPENDIR, bytes(8)).error == 0

    def listed(offset: int, size: int = 4096) -> list[bytes]:
        body = host.ask(opcode, struct.pack("=QQIIQII", 1, offset, size, 0, 0, 0, 0)).body
        return names(body, opcode == Opcode.READDIRPLUS)

    assert listed(0) == [b"lun0", b"lun3"]
    assert listed(2) == [b"lun3"]
    assert listed(3) == []
    assert listed(0, 170) == ([b"lun0"] if opcode == Opcode.READDIRPLUS else [b"lun0", b"lun3"])
    assert host.ask(Opcode.RELEASEDIR, bytes(24)).error == 0
    assert host.ask(Opcode.FSYNCDIR, bytes(16)).error == 0


def test_a_file_is_no_directory() -> None:
    host = FuseHost(MemoryDevice())
    assert host.ask(Opcode.OPENDIR, bytes(8)).error == errno.ENOTDIR
    assert host.ask(Opcode.READDIR, struct.pack("=QQIIQII", 1, 0, 4096, 0, 0, 0, 0)).error == errno.ENOTDIR


def test_mode_and_owner_stay_and_times_do_not_matter() -> None:
    host = FuseHost(MemoryDevice())
    assert host.setattr(1 << 4 | 1 << 5).error == 0
    assert host.setattr(SetattrFlag.MODE, mode=0o100600).error == 0
    assert host.setattr(SetattrFlag.UID | SetattrFlag.GID, uid=1000, gid=100).error == 0
    assert host.setattr(SetattrFlag.MODE, mode=0o100644).error == errno.EPERM
    assert host.setattr(SetattrFlag.UID, uid=0).error == errno.EPERM
    assert host.setattr(SetattrFlag.GID, gid=0).error == errno.EPERM


def test_the_space_is_used_up() -> None:
    blocks, free, available, files = struct.unpack_from("=QQQQ", directory().ask(Opcode.STATFS).body)
    assert (blocks, free, available, files) == (768, 0, 0, 2)


def test_access_knows_a_write_protection() -> None:
    host = directory(read_only=True)
    assert host.ask(Opcode.ACCESS, struct.pack("=II", os.R_OK, 0), node=2).error == 0
    assert host.ask(Opcode.ACCESS, struct.pack("=II", os.W_OK, 0), node=2).error == errno.EROFS
    assert host.ask(Opcode.ACCESS, struct.pack("=II", os.R_OK, 0), node=9).error == errno.ENOENT


def test_extended_attributes_tell_which_disk_it_is() -> None:
    host = FuseHost(MemoryDevice(), details=Details(lambda: LABELS))

    def get(name: bytes, size: int = 256) -> tuple[int, bytes]:
        reply = host.ask(Opcode.GETXATTR, struct.pack("=II", size, 0) + name + b"\0")
        return reply.error, reply.body

    assert get(b"user.isblk.target") == (0, b"iqn.2026-11.test:disk")
    assert get(b"user.isblk.paths") == (0, b"127.0.0.1:3260 up")
    assert get(b"user.isblk.target", 0) == (0, struct.pack("=II", 21, 0))
    assert get(b"user.isblk.target", 20) == (errno.ERANGE, b"")
    for unknown in (b"security.capability", b"user.isblk.secret", b"system.posix_acl_access"):
        assert get(unknown) == (errno.ENODATA, b"")
    listed = b"user.isblk.target\0user.isblk.lun\0user.isblk.wwid\0user.isblk.paths\0"
    assert host.ask(Opcode.LISTXATTR, struct.pack("=II", 256, 0)).body == listed
    assert host.ask(Opcode.LISTXATTR, struct.pack("=II", 0, 0)).body == struct.pack("=II", len(listed), 0)
    assert host.ask(Opcode.LISTXATTR, struct.pack("=II", 5, 0)).error == errno.ERANGE


def test_a_directory_has_no_extended_attributes() -> None:
    host = FuseHost(disks={0: MemoryDevice()}, details=Details(lambda: LABELS))
    assert host.ask(Opcode.LISTXATTR, struct.pack("=II", 256, 0)).body == b""
    assert host.ask(Opcode.LISTXATTR, struct.pack("=II", 256, 0), node=2).body.startswith(b"user.isblk.target\0")
