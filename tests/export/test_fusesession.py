"""fusesession.py without a kernel: requests and their replies, memory and its bounds, durability, handles, what is refused."""

from __future__ import annotations

import errno
import os
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.gate import Gate
from isblk.block.request import Geometry, Op
from isblk.errors import PathLost, ProtocolError
from isblk.export import fusewire as wire
from isblk.export.files import Details
from isblk.export.fusememory import Landing, Slots
from isblk.export.fuseoptions import Caching
from isblk.export.fusesession import OPEN_LIMIT
from isblk.export.fusewire import InitFlag, Opcode, OpenFlag, SetattrFlag
from support.fusehost import FuseHost
from support.memorydevice import MemoryDevice, Seen, broken

MIB = 1 << 20
OFFERED = struct.pack("=IIIII44x", 7, 45, 131072, 0xFFFFFFFF, 0xFFFFFFFF)


def last(host: FuseHost, unique: int) -> tuple[int, bytes]:
    reply = host.replies.pop()
    assert reply.unique == unique
    return reply.error, reply.body


def written(count: int) -> bytes:
    return struct.pack("=II", count, 0)


# ------------------------------------------------------------------------------------------------------------------------- INIT


def test_init_agrees_and_tells_that_the_file_is_there() -> None:
    host = FuseHost(MemoryDevice())
    reply = host.ask(Opcode.INIT, OFFERED, node=0)
    major, minor, _, flags, background, congested, max_write, _, max_pages, _, flags2 = struct.unpack("=IIIIHHIIHHI", reply.body[:36])
    assert (major, minor, background, congested, max_write, max_pages) == (7, 45, 64, 48, MIB, 256)
    agreed = InitFlag(flags | flags2 << 32)
    assert host.is_initialized and agreed & InitFlag.ASYNC_DIO and agreed & InitFlag.DIRECT_IO_ALLOW_MMAP
    assert not flags & 1 << 3, "with FUSE_ATOMIC_O_TRUNC a file is empty for a moment"
    assert not agreed & InitFlag.WRITEBACK_CACHE


def test_a_write_back_cache_is_asked_for_only_when_it_is_wanted() -> None:
    host = FuseHost(MemoryDevice(), caching=Caching.WRITEBACK)
    host.ask(Opcode.INIT, OFFERED, node=0)
    assert host.session.agreed is not None and host.session.agreed.flags & InitFlag.WRITEBACK_CACHE


def test_a_kernel_that_is_too_old_is_refused_in_words() -> None:
    host = FuseHost(MemoryDevice())
    assert host.ask(Opcode.INIT, struct.pack("=IIII", 7, 30, 0, 0), node=0).error == errno.EPROTO
    assert "7.30" in str(host.session.refused) and host.is_initialized


def test_a_kernel_of_a_later_major_version_asks_again() -> None:
    host = FuseHost(MemoryDevice())
    assert host.ask(Opcode.INIT, struct.pack("=IIII", 8, 1, 0, 0), node=0).body[:8] == struct.pack("=II", 7, 45)
    assert not host.is_initialized
    host.ask(Opcode.INIT, OFFERED, node=0)
    assert host.is_initialized


# ------------------------------------------------------------------------------------------------------------------------- data


def test_what_is_written_is_read() -> None:
    host = FuseHost(MemoryDevice(MIB, block_size=1))
    data = os.urandom(5000)
    assert last(host, host.write(4093, data)) == (0, written(5000))
    assert last(host, host.read(4093, 5000)) == (0, data)
    counters = host.session.counters
    assert (counters.reads, counters.writes, counters.bytes_read, counters.bytes_written, counters.in_flight) == (1, 1, 5000, 5000, 0)


def test_many_requests_are_one_batch() -> None:
    device = MemoryDevice(hold=True)
    host = FuseHost(device)
    buffers = host.session.buffers()
    for number in range(5):
        assert buffers is not None
        wire.TRANSFER.pack_into(buffers[0], 0, 80, Opcode.READ, 2 * number + 2, 1, 0, number * 4096, 4096, 0, 0)
        host.session.received(80)
    assert device.kicks == 0
    host.session.kick()
    assert device.kicks == 1 and len(device.pending) == 5
    device.complete_all()
    assert [reply.unique for reply in host.replies] == [2, 4, 6, 8, 10]


def test_a_payload_stays_where_it_landed_until_the_device_has_it() -> None:
    device = MemoryDevice(4 * MIB, hold=True)
    host = FuseHost(device)
    payloads = [bytes([number]) * length for number, length in enumerate([512, 4096, MIB, 65536, 512, MIB], start=1)]
    offsets = [0, 4096, MIB, 8192, 512, 2 * MIB]
    for offset, payload in zip(offsets, payloads, strict=True):
        host.write(offset, payload)
    device.complete_all()
    assert all(not reply.error for reply in host.replies)
    for offset, payload in zip(offsets, payloads, strict=True):
        assert device.content[offset : offset + len(payload)] == payload


def test_the_end_of_the_disk_cuts_and_ends() -> None:
    host = FuseHost(MemoryDevice(4096 + 512))
    assert last(host, host.write(4096, b"x" * 1024)) == (0, written(512))
    assert last(host, host.read(4096, 1024)) == (0, b"x" * 512)
    assert last(host, host.write(4608, b"x" * 512)) == (errno.ENOSPC, b"")
    assert last(host, host.read(4608, 512)) == (0, b"")
    assert last(host, host.write(0, b"")) == (0, written(0))


def test_a_disk_that_grows_is_used_to_its_new_end_and_told() -> None:
    device = MemoryDevice(4096)
    host = FuseHost(device)
    device.resize(16384)
    assert last(host, host.read(8192, 4096)) == (0, bytes(4096))
    assert host.session.refresh() == [], "the read has taken it up"
    device.resize(32768)
    assert host.session.refresh() == [1]
    assert host.session.refresh() == []
    device.resize(4096)
    assert host.session.refresh() == [1]
    assert last(host, host.read(8192, 4096)) == (0, b"")


def test_errors_leave_with_their_errno() -> None:
    device = MemoryDevice()
    host = FuseHost(device)
    device.fail_next = [broken(errno.EIO), broken(errno.ENOSPC), PathLost("gone")]
    assert last(host, host.read(0, 512)) == (errno.EIO, b"")
    assert last(host, host.write(0, bytes(512))) == (errno.ENOSPC, b"")
    assert last(host, host.read(0, 512)) == (errno.EIO, b"")
    assert host.session.counters.errors == 3
    assert last(host, host.read(0, 512)) == (0, bytes(512))


@pytest.mark.logs("a bug")
def test_an_error_that_is_none_of_isblks_is_answered_and_logged() -> None:
    device = MemoryDevice()
    host = FuseHost(device)
    device.fail_next = [ValueError("a bug")]
    assert last(host, host.read(0, 512)) == (errno.EIO, b"")


def test_requests_for_nothing_that_is_there_are_refused() -> None:
    host = FuseHost(disks={0: MemoryDevice()})
    assert last(host, host.read(0, 512, node=9)) == (errno.EIO, b"")
    assert last(host, host.write(0, bytes(512), node=1)) == (errno.EIO, b"")
    assert last(host, host.read(0, MIB + 1, node=2)) == (errno.EIO, b"")


def test_several_disks_are_kicked_when_they_were_given_something() -> None:
    one, two = MemoryDevice(), MemoryDevice()
    host = FuseHost(disks={0: one, 1: two})
    host.write(0, b"x" * 512, node=3)
    assert (one.kicks, two.kicks) == (0, 1)
    assert two.content[:512] == b"x" * 512


# ----------------------------------------------------------------------------------------------------------------- back-pressure


def test_a_read_without_memory_waits_and_nothing_more_is_taken() -> None:
    device = MemoryDevice(4 * MIB, hold=True)
    host = FuseHost(device, slots=Slots(budget=2 * MIB))
    for number in range(3):
        host.read(number * MIB, MIB)
    assert len(device.pending) == 2
    assert host.session.buffers() is None and host.session.blocked
    assert not host.session.idle
    device.complete()
    assert host.rooms >= 1
    assert host.session.buffers() is not None
    assert len(device.pending) == 2
    device.complete_all()
    assert [len(reply.body) for reply in host.replies] == [MIB] * 3 and host.session.idle


def test_writes_without_memory_are_not_read_from_the_kernel() -> None:
    device = MemoryDevice(16 * MIB, hold=True)
    host = FuseHost(device, landing=Landing(chunks=2))
    host.write(0, bytes(MIB))
    host.write(MIB, bytes(MIB))
    assert host.session.buffers() is None
    device.complete()
    assert host.rooms == 1 and host.session.buffers() is not None


def test_open_requests_are_bounded() -> None:
    device = MemoryDevice(hold=True)
    host = FuseHost(device)
    fh, _ = host.open()
    for _ in range(OPEN_LIMIT):
        host.fsync(fh)
    assert host.session.buffers() is None
    device.complete()
    assert host.rooms and host.session.buffers() is not None


@given(st.lists(st.tuples(st.sampled_from("rwc"), st.integers(0, 7), st.sampled_from([512, 4096, 70_000, MIB])), max_size=60))
def test_no_order_of_completion_mixes_up_memory(steps: list[tuple[str, int, int]]) -> None:
    device = MemoryDevice(8 * MIB, block_size=1, hold=True)
    host = FuseHost(device, slots=Slots(2 * MIB), landing=Landing(chunks=2))
    expected: dict[int, bytes] = {}
    for number, (kind, where, length) in enumerate(steps):
        if kind == "c" or host.session.buffers() is None:
            if device.pending:
                device.complete(where % len(device.pending))
        elif kind == "r":
            host.read(where * MIB, length)
        elif all(seen.offset != where * MIB for seen in device.pending):
            data = bytes([number + 1]) * length
            expected[where] = data
            host.write(where * MIB, data)
    while not host.session.idle:
        host.session.buffers()
        device.complete_all()
    for where, data in expected.items():
        assert device.content[where * MIB : where * MIB + len(data)] == data


def test_a_reads_memory_is_used_again_only_when_its_reply_has_gone() -> None:
    device = MemoryDevice(4 * MIB)
    host = FuseHost(device, slots=Slots(budget=MIB))
    host.lends = True
    host.read(0, MIB)
    host.read(MIB, MIB)
    assert len(device.requests) == 1 and host.session.buffers() is None
    host.session.answered()
    assert host.rooms and host.session.buffers() is not None
    assert len(device.requests) == 2


# -------------------------------------------------------------------------------------------------------------------- durability


@pytest.mark.parametrize(
    "caching, flags, fua",
    [
        (Caching.WRITE_THROUGH, 0, False),
        (Caching.WRITE_THROUGH, os.O_DIRECT, False),
        (Caching.WRITE_THROUGH, os.O_DSYNC, False),  # the kernel sends FSYNC
        (Caching.WRITE_THROUGH, os.O_DSYNC | os.O_DIRECT, True),
        (Caching.WRITE_THROUGH, os.O_SYNC | os.O_DIRECT, True),
        (Caching.NONE, 0, False),
        (Caching.NONE, os.O_DSYNC, True),
        (Caching.NONE, os.O_SYNC | os.O_DIRECT, True),
        (Caching.WRITEBACK, os.O_DSYNC | os.O_DIRECT, True),
    ],
)
def test_a_synchronous_write_has_fua_where_no_fsync_follows(caching: Caching, flags: int, fua: bool) -> None:
    device = MemoryDevice()
    host = FuseHost(device, caching=caching)
    assert last(host, host.write(0, b"x" * 512, flags)) == (0, written(512))
    assert device.requests == [Seen(Op.WRITE, 0, 512, fua)]


def test_a_device_without_fua_is_flushed_behind_the_write() -> None:
    device = MemoryDevice(hold=True)
    device.geometry = Geometry(MIB, 512, 512, write_cache=True)
    host = FuseHost(device, caching=Caching.NONE)
    unique = host.write(0, b"x" * 512, os.O_DSYNC)
    device.complete()
    assert host.replies == [] and device.requests[-1].op is Op.FLUSH
    device.complete(error=broken())
    assert last(host, unique) == (errno.EIO, b"")
    unique = host.write(0, b"x" * 512, os.O_DSYNC)
    device.complete(error=broken(errno.ENOSPC))
    assert last(host, unique) == (errno.ENOSPC, b""), "no flush behind a write that failed"
    unique = host.write(0, b"x" * 512, os.O_DSYNC)
    device.complete_all()
    assert last(host, unique) == (0, written(512))


def test_fsync_is_a_flush_and_tells_its_error() -> None:
    device = MemoryDevice()
    host = FuseHost(device)
    fh, _ = host.open()
    assert last(host, host.fsync(fh)) == (0, b"")
    device.fail_next = [broken()]
    assert last(host, host.fsync(fh)) == (errno.EIO, b"")
    assert [seen.op for seen in device.requests] == [Op.FLUSH, Op.FLUSH]
    assert host.ask(Opcode.FSYNC, struct.pack("=QII", 999, 0, 0)).error == errno.EBADF


def test_a_loss_is_told_once_to_each_handle_that_was_open() -> None:
    lost = 0
    host = FuseHost(Gate(MemoryDevice(), lambda: lost))
    one, _ = host.open()
    two, _ = host.open()
    lost = 1
    three, _ = host.open()
    assert [last(host, host.fsync(fh))[0] for fh in (one, two, three, one, two)] == [errno.EIO, errno.EIO, 0, 0, 0]


# ----------------------------------------------------------------------------------------------------------------- open and close


@pytest.mark.parametrize(
    "caching, expected",
    [
        (Caching.WRITE_THROUGH, OpenFlag(0)),
        (Caching.NONE, OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES),
        (Caching.WRITEBACK, OpenFlag.KEEP_CACHE),
    ],
)
def test_each_way_of_caching_has_its_open_flags(caching: Caching, expected: OpenFlag) -> None:
    assert FuseHost(MemoryDevice(), caching=caching).open()[1] == expected


def test_a_read_only_disk_is_not_opened_for_writing() -> None:
    host = FuseHost(MemoryDevice(read_only=True))
    assert host.ask(Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0)).error == errno.EROFS
    host.open(os.O_RDONLY)


def test_a_released_handle_is_forgotten() -> None:
    host = FuseHost(MemoryDevice())
    fh, _ = host.open()
    assert host.ask(Opcode.RELEASE, struct.pack("=QIIQ", fh, 2, 0, 0)).error == 0
    assert host.ask(Opcode.FSYNC, struct.pack("=QII", fh, 0, 0)).error == errno.EBADF


def test_size_0_is_taken_from_who_has_just_opened_with_truncation_and_from_nobody_else() -> None:
    host = FuseHost(MemoryDevice(MIB))
    assert host.setattr(SetattrFlag.SIZE, pid=5).error == errno.EINVAL
    fh, _ = host.open(os.O_WRONLY, pid=5)
    reply = host.setattr(SetattrFlag.SIZE, pid=5)
    assert reply.error == 0 and struct.unpack("=Q", reply.body[24:32]) == (MIB,)
    assert host.setattr(SetattrFlag.SIZE, pid=6).error == errno.EINVAL
    assert host.setattr(SetattrFlag.SIZE | SetattrFlag.FH, fh=fh, pid=5).error == errno.EINVAL
    assert host.setattr(SetattrFlag.SIZE, size=512, pid=5).error == errno.EINVAL
    assert host.setattr(SetattrFlag.SIZE, size=MIB, pid=6).error == 0
    host.ask(Opcode.RELEASE, struct.pack("=QIIQ", fh, 1, 0, 0))
    host.open(os.O_RDONLY, pid=5)
    assert host.setattr(SetattrFlag.SIZE, pid=5).error == errno.EINVAL


# -------------------------------------------------------------------------------------------------------------------- all the rest


@pytest.mark.parametrize("opcode", [5, 8, 12, 21, 31, 35, 40, 49, 50, 60, 4096])
def test_what_is_not_known_is_answered_enosys(opcode: int) -> None:
    assert FuseHost(MemoryDevice()).ask(opcode, bytes(64)).error == errno.ENOSYS


@pytest.mark.parametrize("opcode, body", [(Opcode.FLUSH, bytes(24)), (Opcode.INTERRUPT, bytes(8))])
def test_what_is_not_wanted_is_answered_enosys(opcode: Opcode, body: bytes) -> None:
    assert FuseHost(MemoryDevice()).ask(opcode, body).error == errno.ENOSYS


def test_a_forget_is_not_answered_and_a_destroy_is() -> None:
    host = FuseHost(MemoryDevice())
    host.send(Opcode.FORGET, bytes(8))
    host.send(Opcode.BATCH_FORGET, bytes(200))
    assert host.replies == []
    assert host.ask(Opcode.DESTROY).error == 0


@pytest.mark.logs("makes no sense")
def test_a_body_of_the_wrong_length_is_answered_and_logged() -> None:
    assert FuseHost(MemoryDevice()).ask(Opcode.GETATTR, bytes(8)).error == errno.EIO


def test_what_is_no_request_at_all_is_a_protocol_error() -> None:
    host = FuseHost(MemoryDevice())
    with pytest.raises(ProtocolError):
        host.land(bytes(16))
    with pytest.raises(ProtocolError):
        host.land(struct.pack("=IIQQIIIHH", 999, 3, 2, 1, 0, 0, 0, 0, 0))


def test_the_size_of_a_disk_is_asked_as_of_a_block_device() -> None:
    host = FuseHost(MemoryDevice(MIB))
    body = struct.pack("=QIIQII", 1, 0, wire.BLKGETSIZE64, 0, 0, 8)
    assert host.ask(Opcode.IOCTL, body).body == bytes(16) + struct.pack("=Q", MIB)
    assert host.ask(Opcode.IOCTL, struct.pack("=QIIQII", 1, 0, 0x5401, 0, 0, 36)).error == errno.ENOTTY
    assert host.ask(Opcode.IOCTL, struct.pack("=QIIQII", 1, 0, wire.BLKGETSIZE64, 0, 0, 4)).error == errno.ENOTTY


async def test_what_takes_several_steps_is_answered_when_it_is_done() -> None:
    device = MemoryDevice(MIB)
    host = FuseHost(device)
    fh, _ = host.open()
    unique = host.send(Opcode.FALLOCATE, struct.pack("=QQQII", fh, 4096, 8192, 3, 0))
    assert not host.session.idle and host.session.counters.in_flight == 1
    assert await host.carry_out() == (0, unique, b"")
    assert host.session.idle and host.rooms
    assert device.requests == [Seen(Op.TRIM, 4096, 8192, False), Seen(Op.ZERO, 4096, 8192, False)]
    unique = host.send(Opcode.FALLOCATE, struct.pack("=QQQII", fh, 4096, 8192, 0, 0))
    assert await host.carry_out() == (errno.EOPNOTSUPP, unique, b"")
    for opcode, size in ((Opcode.COPY_FILE_RANGE, 8), (Opcode.COPY_FILE_RANGE_64, 8)):
        host.send(opcode, struct.pack("=QQQQQQQ", fh, 0, 1, fh, 65536, 4096, 0))
        reply = await host.carry_out()
        assert (reply.error, int.from_bytes(reply.body, "little"), len(reply.body)) == (0, 4096, size)
    host.send(Opcode.LSEEK, struct.pack("=QQII", fh, 4096, os.SEEK_HOLE, 0))
    assert (await host.carry_out()).body == struct.pack("=Q", MIB)


@pytest.mark.logs("a bug")
async def test_a_bug_in_one_of_several_steps_is_answered() -> None:
    device = MemoryDevice(MIB)
    host = FuseHost(device)
    fh, _ = host.open()
    device.fail_next = [ValueError("a bug")]
    host.send(Opcode.FALLOCATE, struct.pack("=QQQII", fh, 4096, 8192, 16, 0))
    assert (await host.carry_out()).error == errno.EIO and host.session.idle


def test_holes_are_not_told_while_the_kernel_holds_writes_back() -> None:
    host = FuseHost(MemoryDevice(MIB), caching=Caching.WRITEBACK)
    fh, _ = host.open()
    assert host.ask(Opcode.LSEEK, struct.pack("=QQII", fh, 0, os.SEEK_HOLE, 0)).error == errno.ENOSYS


async def test_an_open_waits_for_a_disk_whose_size_is_not_known() -> None:
    disk, comes = MemoryDevice(0), [False, True]

    async def ready() -> None:
        await trio.lowlevel.checkpoint()
        if not comes.pop(0):
            raise broken(errno.EIO)
        disk.resize(MIB)

    host = FuseHost(disk, details=Details(ready=ready))
    for expected in (errno.EIO, 0):
        unique = host.send(Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0))
        assert not host.replies and not host.session.idle
        reply = await host.carry_out()
        assert (reply.error, reply.unique) == (expected, unique) and host.session.idle
    assert host.resizes == 1, "the kernel is told of the size first"
    host.open()
    assert not comes
