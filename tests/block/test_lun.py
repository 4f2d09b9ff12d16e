"""A logical unit as a Device: what commands each request becomes, and what the disk behind holds afterwards."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.command import PathUnusable
from isblk.block.lun import ALONE, LARGEST_TRANSFER, LogicalUnit
from isblk.block.mapping import Extent
from isblk.block.probe import ATTENTION_LIMIT, probe
from isblk.block.request import Op, Request, flush, read, trim, write, zero
from isblk.errors import PathLost, RequestFailed, RequestInvalid, TaskAborted, UsageError
from isblk.scsi.data import Provisioning
from isblk.scsi.sense import Attention
from support.fakelink import UNKNOWN_FIELD, FakeDisk, FakeLink, attention, check

LUN = bytes(8)
READ_10, READ_16, WRITE_10, WRITE_16, SYNC_10, SYNC_16, UNMAP, WRITE_SAME, MODE_SENSE = 0x28, 0x88, 0x2A, 0x8A, 0x35, 0x91, 0x42, 0x93, 0x1A
UNMAP_PAGE = bytes.fromhex("00 80 02 00")
WRITE_SAME_PAGE = bytes.fromhex("00 40 02 00")
ZEROING_PAGE = bytes.fromhex("00 c4 02 00")


def limits(*, transfer: int = 0, unmap: int = 0, granularity: int = 0, alignment: int = 0, same: int = 0) -> bytes:
    valid = 0x80000000 if alignment else 0
    return struct.pack(">BBHIIIIIIIQ", 0, 0, 0, transfer, 0, 0, unmap, 1, granularity, valid | alignment, same)


async def unit_of(disk: FakeDisk) -> tuple[LogicalUnit, FakeLink]:
    link = FakeLink(disk)
    unit = LogicalUnit(link, await probe(link, LUN))
    link.sent.clear()
    return unit, link


def extent(cdb: bytes) -> tuple[int, int]:
    """LBA and blocks of a 10- or 16-byte CDB."""
    lba, blocks = struct.unpack_from(">QI", cdb, 2) if len(cdb) == 16 else struct.unpack_from(">IxH", cdb, 2)
    return lba, blocks


def submit(unit: LogicalUnit, op: Op, offset: int = 0, length: int = 0, fua: bool = False) -> Request:
    data = memoryview(bytearray(b"w" * length)) if op in (Op.READ, Op.WRITE) else None
    request = Request(op, offset, length, data, fua)
    unit.submit(request)
    return request


async def test_a_transfer_that_fits_is_one_command_with_the_callers_own_memory() -> None:
    unit, link = await unit_of(FakeDisk())
    link.hold = True
    reading = submit(unit, Op.READ, 1024, 4096)
    writing = submit(unit, Op.WRITE, 512, 512)
    assert [task.cdb.hex() for task in link.queue] == ["28000000000200000800", "2a000000000100000100"]
    assert link.queue[0].read_into is reading.data and link.queue[1].write_from is writing.data
    link.hold = False
    unit.kick()
    assert reading.finished and writing.finished


async def test_what_is_written_is_read() -> None:
    unit, _link = await unit_of(FakeDisk(block_size=4096))
    await write(unit, 8192, b"isblk" * 4096)
    assert await read(unit, 8192, 5 * 4096) == b"isblk" * 4096
    assert await read(unit, 0, 4096) == bytes(4096)


async def test_blocks_beyond_32_bits_are_reached() -> None:
    disk = FakeDisk(content=False)
    disk.blocks = 1 << 33
    disk.commands[READ_16] = lambda cdb, data: (0, b"", cdb[2:10] * 64)
    unit, link = await unit_of(disk)
    assert (await read(unit, 5 << 40, 512))[:8] == (5 << 31).to_bytes(8, "big")
    disk.commands[SYNC_16] = lambda cdb, data: (0, b"", b"")
    await flush(unit)
    assert link.opcodes == [READ_16, SYNC_16]


@pytest.mark.parametrize(("limit", "pieces"), [(8, [8, 8, 4]), (20, [20]), (0, [20]), (3, [3, 3, 3, 3, 3, 3, 2])])
@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
async def test_transfers_are_split_to_the_limit_of_the_unit(op: Op, limit: int, pieces: list[int]) -> None:
    disk = FakeDisk()
    disk.content[:] = bytes(number // 512 % 251 for number in range(len(disk.content)))
    disk.pages[0xB0] = limits(transfer=limit)
    unit, link = await unit_of(disk)
    if op is Op.READ:
        assert await read(unit, 512, 20 * 512) == disk.content[512 : 21 * 512]
    else:
        data = bytes(number // 512 + 100 for number in range(20 * 512))
        await write(unit, 512, data)
        assert disk.content[512 : 21 * 512] == data
    assert [extent(cdb)[1] for cdb in link.sent] == pieces


async def test_a_unit_without_a_limit_gets_transfers_of_bounded_size() -> None:
    unit, link = await unit_of(FakeDisk(blocks=2 * LARGEST_TRANSFER // 512))
    await read(unit, 0, LARGEST_TRANSFER + 512)
    assert [extent(cdb)[1] * 512 for cdb in link.sent] == [LARGEST_TRANSFER, 512]


@pytest.mark.parametrize("fua", [False, True])
async def test_a_long_write_goes_as_several_commands_only_where_the_session_has_nothing_else_to_do(fua: bool) -> None:
    disk = FakeDisk(blocks=4 * ALONE // 512)
    disk.fua = True
    unit, link = await unit_of(disk)
    data = bytes(range(256)) * (2 * ALONE // 256)
    await write(unit, 512, data, fua=fua)
    assert disk.content[512 : 512 + len(data)] == data
    assert [extent(cdb)[1] * 512 for cdb in link.sent] == [ALONE, ALONE]
    link.sent.clear()
    unit.submit(Request(Op.READ, 0, 512, memoryview(bytearray(512))))
    await write(unit, 512, data, fua=fua)
    assert [extent(cdb)[1] * 512 for cdb in link.sent] == [512, 2 * ALONE]


async def test_a_long_write_is_one_command_again_once_the_target_has_said_that_its_set_is_full() -> None:
    disk = FakeDisk(blocks=4 * ALONE // 512)
    unit, link = await unit_of(disk)
    unit.full()
    await write(unit, 0, bytes(3 * ALONE))
    counted = LogicalUnit(link, unit.description, splits=False)
    await write(counted, 0, bytes(3 * ALONE))
    assert [extent(cdb)[1] * 512 for cdb in link.sent] == [3 * ALONE, 3 * ALONE]


async def test_a_read_knows_no_fua() -> None:
    unit, link = await unit_of(FakeDisk())
    request = Request(Op.READ, 0, 512, memoryview(bytearray(512)), fua=True)
    unit.submit(request)
    unit.kick()
    assert request.finished and request.error is None and len(link.sent) == 1


async def test_an_error_of_one_piece_fails_the_whole() -> None:
    disk = FakeDisk()
    disk.pages[0xB0] = limits(transfer=8)
    unit, _link = await unit_of(disk)
    disk.script = [None, check(3, 0x11, 0x00)]
    with pytest.raises(RequestFailed, match="unrecovered read error"):
        await read(unit, 0, 20 * 512)


async def test_empty_transfers_finish_without_a_command() -> None:
    unit, link = await unit_of(FakeDisk())
    assert submit(unit, Op.READ).finished and submit(unit, Op.WRITE, 512).finished
    assert submit(unit, Op.ZERO).finished
    assert link.sent == [] and not link.queue


async def test_a_short_read_is_an_error_and_no_data() -> None:
    unit, link = await unit_of(FakeDisk())
    link.short_by = 1
    with pytest.raises(RequestFailed, match="moved 511 bytes"):
        await read(unit, 0, 512)


async def test_reading_past_the_end_is_an_io_error() -> None:
    unit, _link = await unit_of(FakeDisk(blocks=8))
    with pytest.raises(RequestFailed) as caught:
        await read(unit, 8 * 512, 512)
    assert caught.value.errno == errno.EIO


async def test_a_standby_path_is_told_apart() -> None:
    disk = FakeDisk()
    unit, _link = await unit_of(disk)
    disk.script = [check(2, 0x04, 0x0B)]
    with pytest.raises(PathUnusable):
        await read(unit, 0, 512)


async def test_a_unit_that_was_refused_makes_no_device() -> None:
    disk = FakeDisk()
    disk.device_type = 1
    with pytest.raises(UsageError, match="no disk but a tape"):
        await unit_of(disk)


# ---------------------------------------------------------------------------------------------------------------------- durability


@pytest.mark.parametrize(
    ("write_cache", "fua", "expected", "flags"),
    [
        (True, True, [WRITE_10], 0x08),
        (True, False, [WRITE_10, SYNC_10], 0),
        (False, True, [WRITE_10], 0x08),
        (False, False, [WRITE_10], 0),
    ],
)
async def test_fua_is_the_bit_or_a_flush_or_nothing(write_cache: bool, fua: bool, expected: list[int], flags: int) -> None:
    disk = FakeDisk()
    disk.write_cache, disk.fua = write_cache, fua
    unit, link = await unit_of(disk)
    await write(unit, 0, b"d" * 512, fua=True)
    assert link.opcodes == expected and link.sent[0][1] == flags
    assert disk.durable[:512] == b"d" * 512
    await write(unit, 512, b"v" * 512)
    assert link.sent[-1][1] == 0


async def test_a_split_write_with_fua_is_durable_as_a_whole() -> None:
    for fua, expected in ((True, [WRITE_10] * 3), (False, [WRITE_10] * 3 + [SYNC_10])):
        disk = FakeDisk()
        disk.fua = fua
        disk.pages[0xB0] = limits(transfer=1)
        unit, link = await unit_of(disk)
        await write(unit, 0, b"d" * 1536, fua=True)
        assert link.opcodes == expected and disk.durable[:1536] == b"d" * 1536


async def test_a_failed_flush_fails_the_fua_write() -> None:
    disk = FakeDisk()
    disk.fua = False
    unit, _link = await unit_of(disk)
    disk.script = [None, check(3, 0x0C, 0x00)]
    with pytest.raises(RequestFailed, match="write error"):
        await write(unit, 0, bytes(512), fua=True)
    disk.script = [check(7, 0x27, 0x00)]
    with pytest.raises(RequestFailed) as caught:
        await write(unit, 0, bytes(512), fua=True)
    assert caught.value.errno == errno.EROFS


async def test_flush_makes_durable() -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    await write(unit, 0, b"d" * 512)
    assert disk.durable[:512] == bytes(512)
    await flush(unit)
    assert disk.durable[:512] == b"d" * 512
    assert link.opcodes == [WRITE_10, SYNC_10]


async def test_flush_of_a_unit_without_a_cache_is_no_command() -> None:
    disk = FakeDisk()
    disk.write_cache = False
    unit, link = await unit_of(disk)
    await flush(unit)
    assert link.sent == []


async def test_flush_is_sent_where_the_cache_is_not_spoken_of_and_unknown_means_none() -> None:
    disk = FakeDisk()
    disk.refuse = {0x1A, 0x5A, SYNC_10}
    unit, link = await unit_of(disk)
    await flush(unit)
    assert link.opcodes == [SYNC_10]


async def test_a_flush_that_fails_is_told() -> None:
    disk = FakeDisk()
    unit, _link = await unit_of(disk)
    disk.script = [check(4, 0x44, 0x00)]
    with pytest.raises(RequestFailed, match="FLUSH on LUN 0 failed"):
        await flush(unit)


async def test_flushes_share_a_command_but_none_that_was_sent_before_them() -> None:
    unit, link = await unit_of(FakeDisk())
    link.hold = True
    first = submit(unit, Op.FLUSH)
    later = [submit(unit, Op.FLUSH) for _ in range(5)]
    assert len(link.queue) == 1
    link.answer()
    assert first.finished and not any(request.finished for request in later) and len(link.queue) == 1
    link.answer()
    assert all(request.finished for request in later) and not link.queue


@pytest.mark.logs("LUN 0: deferred MEDIUM ERROR 0C/00")
@pytest.mark.parametrize("write_cache", [True, False])
async def test_a_write_that_was_lost_fails_the_next_flush_once(write_cache: bool) -> None:
    disk = FakeDisk()
    disk.write_cache = write_cache
    unit, _link = await unit_of(disk)
    disk.script = [check(3, 0x0C, 0x00, deferred=True)]
    await read(unit, 0, 512)
    assert Attention.WRITE_LOST in unit.attentions
    with pytest.raises(RequestFailed, match="lost a write it had acknowledged"):
        await flush(unit)
    await flush(unit)


@pytest.mark.logs("deferred")
async def test_a_flush_that_learns_of_a_lost_write_fails() -> None:
    disk = FakeDisk()
    unit, _link = await unit_of(disk)
    disk.script = [check(3, 0x0C, 0x00, deferred=True)]
    with pytest.raises(RequestFailed, match="lost a write"):
        await flush(unit)


# ---------------------------------------------------------------------------------------------------------------------- attentions


async def test_a_changed_mode_is_read_again() -> None:
    disk = FakeDisk()
    disk.write_cache = False
    unit, link = await unit_of(disk)
    before = unit.geometry
    disk.write_cache, disk.write_protected, disk.fua = True, True, False
    disk.script = [attention(0x2A, 0x01)]
    await read(unit, 0, 512)
    assert link.opcodes == [READ_10, MODE_SENSE, READ_10]
    assert unit.geometry is not before and unit.geometry.write_cache and unit.geometry.read_only
    assert unit.attentions == {Attention.MODE_CHANGED}


async def test_while_the_mode_is_unknown_a_cache_without_fua_is_assumed() -> None:
    disk = FakeDisk()
    disk.write_cache = False
    unit, link = await unit_of(disk)
    link.hold = True
    submit(unit, Op.READ, 0, 512)
    link.answer(scripted=attention(0x2A, 0x01))
    writing = submit(unit, Op.WRITE, 0, 512, fua=True)
    flushing = submit(unit, Op.FLUSH)
    assert [task.cdb[0] for task in link.queue] == [MODE_SENSE, READ_10, WRITE_10, SYNC_10]
    link.hold = False
    unit.kick()
    assert writing.finished and flushing.finished and not unit.geometry.write_cache


async def test_an_answer_that_a_change_has_overtaken_is_asked_for_again() -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    link.hold = True
    submit(unit, Op.READ, 0, 512)
    submit(unit, Op.READ, 512, 512)
    link.answer(scripted=attention(0x2A, 0x01))
    assert [task.cdb[0] for task in link.queue] == [READ_10, MODE_SENSE, READ_10]
    link.answer(scripted=attention(0x2A, 0x01))
    disk.write_cache = False
    link.hold = False
    unit.kick()
    assert link.opcodes.count(MODE_SENSE) == 2 and not unit.geometry.write_cache


async def test_a_unit_that_never_stops_announcing_is_not_asked_without_end() -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    disk.script = [attention(0x29, 0x00)] * 10000
    request = submit(unit, Op.READ, 0, 512)
    unit.kick()
    assert request.error is not None
    assert len(link.sent) <= 4 * ATTENTION_LIMIT**2


@pytest.mark.logs("29/01")
async def test_a_flush_that_a_power_on_has_overtaken_is_none() -> None:
    """The cache it synchronized is not the one the writes before it went to. The attention comes with any command of the session."""
    unit, link = await unit_of(FakeDisk())
    link.hold = True
    reading, flushing, waiting = submit(unit, Op.READ, 0, 512), submit(unit, Op.FLUSH), submit(unit, Op.FLUSH)
    link.answer(scripted=attention(0x29, 0x01))
    later = submit(unit, Op.FLUSH)
    link.hold = False
    unit.kick()
    assert reading.finished and isinstance(flushing.error, TaskAborted)
    assert isinstance(waiting.error, TaskAborted), "the command that serves it went out later, but what it covers was written before"
    assert later.finished and later.error is None


@pytest.mark.logs("29/01")
async def test_reads_that_a_power_on_has_overtaken_are_not_believed() -> None:
    """They see what is left without the cache: the one that was told as well, for it is sent again at once."""
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    link.hold = True
    told, behind, writing = submit(unit, Op.READ, 0, 512), submit(unit, Op.READ, 512, 512), submit(unit, Op.WRITE, 0, 512)
    link.answer(scripted=attention(0x29, 0x01))
    later = submit(unit, Op.READ, 0, 512)
    link.hold = False
    unit.kick()
    assert isinstance(told.error, TaskAborted) and isinstance(behind.error, TaskAborted)
    assert writing.error is None and later.error is None


@pytest.mark.logs("29/01", "2A/09")
async def test_what_is_announced_to_a_command_of_control_is_heard() -> None:
    """A unit announces a thing once to each session, to whatever command comes next."""
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    heard: list[Attention] = []
    unit.on_attention = heard.append
    disk.script = [attention(0x2A, 0x09), attention(0x29, 0x01)]
    await unit.refresh()
    disk.script = [attention(0x29, 0x01)]
    await unit.listen()
    assert heard == [Attention.CAPACITY_CHANGED, Attention.POWER_ON, Attention.POWER_ON]
    link.lose(PathLost("gone"))
    with pytest.raises(PathLost):
        await unit.listen()


@pytest.mark.logs("29/01")
async def test_a_fua_write_whose_flush_comes_after_a_power_on_is_not_durable() -> None:
    disk = FakeDisk()
    disk.fua = False
    unit, link = await unit_of(disk)
    link.hold = True
    writing, reading = submit(unit, Op.WRITE, 0, 512, fua=True), submit(unit, Op.READ, 0, 512)
    link.answer(1, scripted=attention(0x29, 0x01))
    link.hold = False
    unit.kick()
    assert isinstance(writing.error, TaskAborted) and reading.finished
    await write(unit, 0, b"d" * 512, fua=True)
    assert disk.durable[:512] == b"d" * 512


@pytest.mark.parametrize("answer", [UNKNOWN_FIELD, (0, b"", b""), (0, b"", b"\0")])
async def test_a_mode_that_cannot_be_read_again_leaves_the_safe_assumption(answer: tuple[int, bytes, bytes]) -> None:
    disk = FakeDisk()
    disk.write_cache = False
    unit, link = await unit_of(disk)
    disk.script = [attention(0x2A, 0x01), answer]
    await read(unit, 0, 512)
    assert unit.geometry.write_cache
    await write(unit, 0, bytes(512), fua=True)
    assert link.opcodes[-2:] == [WRITE_10, SYNC_10]


@pytest.mark.logs("capacity data has changed")
async def test_a_changed_capacity_is_announced_and_taken_up_on_request() -> None:
    disk = FakeDisk(blocks=8)
    unit, _link = await unit_of(disk)
    heard: list[Attention] = []
    unit.on_attention = heard.append
    disk.blocks = 16
    disk.content.extend(bytes(8 * 512))
    disk.script = [attention(0x2A, 0x09)]
    await read(unit, 0, 512)
    assert heard == [Attention.CAPACITY_CHANGED] and unit.attentions == {Attention.CAPACITY_CHANGED}
    assert unit.geometry.size == 8 * 512, "growth is not taken up unasked"
    assert (await unit.refresh()).size == 16 * 512 == unit.geometry.size
    assert not unit.attentions
    await write(unit, 15 * 512, b"e" * 512)
    assert disk.content[-512:] == b"e" * 512


async def test_a_unit_that_was_formatted_otherwise_must_be_mounted_again() -> None:
    disk = FakeDisk()
    unit, _link = await unit_of(disk)
    disk.block_size = 4096
    with pytest.raises(RequestInvalid, match="4096 bytes instead of 512"):
        await unit.refresh()


async def test_growth_beyond_32_bits_changes_the_commands() -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    disk.blocks = 1 << 33
    await unit.refresh()
    await read(unit, 0, 512)
    assert link.opcodes[-1] == READ_16


@pytest.mark.parametrize(("asc", "ascq", "kind"), [(0x3F, 0x0E, Attention.LUNS_CHANGED), (0x2A, 0x06, Attention.PATHS_CHANGED)])
async def test_other_announcements_are_kept_for_whoever_acts_on_them(asc: int, ascq: int, kind: Attention) -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    disk.script = [attention(asc, ascq)]
    await read(unit, 0, 512)
    assert unit.attentions == {kind} and link.opcodes == [READ_10, READ_10]


# --------------------------------------------------------------------------------------------------------------------- trim and zero


def unmapped(disk: FakeDisk) -> list[tuple[int, int]]:
    """Runs of deallocated blocks."""
    runs: list[tuple[int, int]] = []
    for lba in sorted(disk.deallocated):
        if runs and sum(runs[-1]) == lba:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((lba, 1))
    return runs


@pytest.mark.parametrize(
    ("knobs", "first", "blocks", "expected", "commands"),
    [
        ({}, 3, 10, [(3, 10)], 1),
        ({"unmap": 4}, 3, 10, [(3, 10)], 3),
        ({"granularity": 8}, 3, 20, [(8, 8)], 1),
        ({"granularity": 8}, 8, 16, [(8, 16)], 1),
        ({"granularity": 8}, 9, 14, [], 0),
        ({"granularity": 8}, 1, 3, [], 0),
        ({"granularity": 8, "alignment": 3}, 0, 32, [(3, 24)], 1),
        ({"granularity": 8, "unmap": 20}, 0, 64, [(0, 64)], 4),
        ({"granularity": 8, "unmap": 4}, 0, 16, [(0, 16)], 4),
    ],
)
@pytest.mark.parametrize("page", [UNMAP_PAGE, WRITE_SAME_PAGE])
async def test_trim_deallocates_whole_granules_within_the_limits(
    page: bytes, knobs: dict[str, int], first: int, blocks: int, expected: list[tuple[int, int]], commands: int
) -> None:
    disk = FakeDisk()
    same = {"same": knobs["unmap"]} if "unmap" in knobs else {}
    disk.pages.update({0xB0: limits(**knobs, **same), 0xB2: page})
    unit, link = await unit_of(disk)
    assert unit.geometry.can_trim
    await trim(unit, first * 512, blocks * 512)
    assert unmapped(disk) == expected
    assert link.opcodes == [UNMAP if page == UNMAP_PAGE else WRITE_SAME] * commands
    assert all(cdb[1] & 0x08 for cdb in link.sent if cdb[0] == WRITE_SAME)


async def test_trim_of_a_unit_that_cannot_is_refused() -> None:
    unit, link = await unit_of(FakeDisk())
    assert not unit.geometry.can_trim
    with pytest.raises(RequestInvalid) as caught:
        await trim(unit, 0, 512)
    assert caught.value.errno == errno.EOPNOTSUPP and link.sent == []


async def test_trim_of_an_enormous_range_fits_the_descriptor() -> None:
    disk = FakeDisk(content=False)
    disk.blocks = 1 << 34
    disk.pages[0xB2] = UNMAP_PAGE
    seen: list[tuple[int, int]] = []

    def unmap(cdb: bytes, data: bytes) -> tuple[int, bytes, bytes]:
        seen.append(struct.unpack_from(">QI", data, 8))
        return 0, b"", b""

    disk.commands[UNMAP] = unmap
    unit, _link = await unit_of(disk)
    await trim(unit, 0, disk.blocks * 512)
    assert sum(blocks for _, blocks in seen) == 1 << 34 and len(seen) == 5


@pytest.mark.parametrize("reads_zero", [True, False])
async def test_zero_deallocates_only_where_that_reads_as_zeroes(reads_zero: bool) -> None:
    disk = FakeDisk()
    disk.content[:] = b"x" * len(disk.content)
    disk.reads_zero = reads_zero
    disk.pages[0xB2] = ZEROING_PAGE if reads_zero else WRITE_SAME_PAGE
    unit, link = await unit_of(disk)
    await zero(unit, 1024, 8192)
    assert disk.content == b"x" * 1024 + bytes(8192) + b"x" * (len(disk.content) - 9216)
    assert link.opcodes == [WRITE_SAME] and bool(link.sent[0][1] & 0x08) is reads_zero


async def test_zero_honours_the_limit_of_write_same() -> None:
    disk = FakeDisk()
    disk.pages[0xB0] = limits(same=5)
    unit, link = await unit_of(disk)
    await zero(unit, 0, 12 * 512)
    assert [extent(cdb) for cdb in link.sent] == [(0, 5), (5, 5), (10, 2)]


@pytest.mark.parametrize("fua", [True, False])
async def test_zero_with_fua_is_durable(fua: bool) -> None:
    disk = FakeDisk()
    disk.content[:] = b"x" * len(disk.content)
    disk.durable, disk.fua = bytes(disk.content), fua
    unit, link = await unit_of(disk)
    await zero(unit, 0, 512, fua=True)
    assert link.opcodes == [WRITE_SAME, SYNC_10] and disk.durable[:512] == bytes(512)


async def test_zeroes_are_written_where_write_same_is_unknown_and_that_is_remembered() -> None:
    disk = FakeDisk(blocks=8192)
    disk.content[:] = b"x" * len(disk.content)
    disk.refuse = {WRITE_SAME}
    unit, link = await unit_of(disk)
    await zero(unit, 512, 3 << 20)
    assert disk.content == b"x" * 512 + bytes(3 << 20) + b"x" * (len(disk.content) - 512 - (3 << 20))
    assert link.opcodes[0] == WRITE_SAME and set(link.opcodes[1:]) == {WRITE_10}
    before = len(link.opcodes)
    await zero(unit, 0, 512)
    assert link.opcodes[before:] == [WRITE_10]


async def test_zero_falls_back_step_by_step() -> None:
    disk = FakeDisk()
    disk.pages[0xB2] = ZEROING_PAGE
    disk.refuse_write_same_unmap = True
    unit, link = await unit_of(disk)
    await zero(unit, 0, 512)
    assert [(cdb[0], cdb[1]) for cdb in link.sent] == [(WRITE_SAME, 0x08), (WRITE_SAME, 0)]
    disk.script = [UNKNOWN_FIELD]
    await zero(unit, 0, 512)
    assert link.opcodes[2:] == [WRITE_SAME, WRITE_10]


async def test_pieces_refused_together_are_all_zeroed() -> None:
    disk = FakeDisk()
    disk.content[:] = b"x" * len(disk.content)
    disk.pages[0xB0] = limits(same=4)
    disk.refuse = {WRITE_SAME}
    unit, link = await unit_of(disk)
    await zero(unit, 0, 16 * 512)
    assert disk.content == bytes(16 * 512) + b"x" * (len(disk.content) - 16 * 512)
    assert link.opcodes.count(WRITE_10) == 4


async def test_zero_that_fails_is_no_reason_to_write() -> None:
    disk = FakeDisk()
    unit, link = await unit_of(disk)
    disk.script = [check(7, 0x27, 0x07)]
    with pytest.raises(RequestFailed) as caught:
        await zero(unit, 0, 512)
    assert caught.value.errno == errno.ENOSPC and link.opcodes == [WRITE_SAME]


async def test_block_status_is_in_bytes() -> None:
    disk = FakeDisk(blocks=64)
    disk.thin = True
    disk.deallocated = set(range(8, 64))
    unit, _link = await unit_of(disk)
    assert await unit.lba_status(512, 16 * 512) == [
        Extent(512, 7 * 512, Provisioning.MAPPED),
        Extent(8 * 512, 9 * 512, Provisioning.DEALLOCATED),
    ]


async def test_a_lost_session_ends_everything() -> None:
    disk = FakeDisk()
    disk.fua = False
    disk.pages.update({0xB0: limits(transfer=1), 0xB2: UNMAP_PAGE})
    unit, link = await unit_of(disk)
    link.hold = True
    requests = [
        submit(unit, Op.READ, 0, 8192),
        submit(unit, Op.WRITE, 0, 512, fua=True),
        submit(unit, Op.FLUSH),
        submit(unit, Op.FLUSH),
        submit(unit, Op.TRIM, 0, 512),
        submit(unit, Op.ZERO, 0, 512, fua=True),
    ]
    link.lose(PathLost("gone"))
    assert all(isinstance(request.error, PathLost) for request in requests)


async def test_the_unit_reads_as_one_line() -> None:
    unit, _link = await unit_of(FakeDisk(blocks=8))
    assert repr(unit) == "<LogicalUnit 0 4096 bytes>"


OPERATIONS = st.tuples(st.sampled_from([Op.READ, Op.WRITE, Op.ZERO, Op.FLUSH]), st.integers(0, 63), st.integers(1, 64), st.booleans())


@given(operations=st.lists(OPERATIONS, max_size=15), limit=st.integers(0, 9), cache=st.booleans(), fua=st.booleans(), refuse=st.booleans())
async def test_any_sequence_leaves_what_the_model_has(
    operations: list[tuple[Op, int, int, bool]], limit: int, cache: bool, fua: bool, refuse: bool
) -> None:
    disk = FakeDisk(blocks=64)
    disk.write_cache, disk.fua = cache, fua
    disk.pages[0xB0] = limits(transfer=limit, same=limit)
    disk.refuse = {WRITE_SAME} if refuse else set()
    unit, _link = await unit_of(disk)
    model = bytearray(disk.content)
    # What each block may be on the medium: its last durable value, and every one written since, for a cache may be emptied at any time.
    may_be = [{bytes(model[at : at + 512])} for at in range(0, len(model), 512)]
    for number, (op, first, wanted, forced) in enumerate(operations):
        blocks = range(first, min(first + wanted, 64))
        offset, length = first * 512, len(blocks) * 512
        if op is Op.READ:
            assert await read(unit, offset, length) == model[offset : offset + length]
            continue
        if op is Op.FLUSH:
            await flush(unit)
            may_be = [{bytes(model[at : at + 512])} for at in range(0, len(model), 512)]
            continue
        fill = bytes(512) if op is Op.ZERO else bytes([number + 1]) * 512
        model[offset : offset + length] = fill * len(blocks)
        await (zero(unit, offset, length, forced) if op is Op.ZERO else write(unit, offset, fill * len(blocks), forced))
        for block in blocks:
            may_be[block] = {fill} if forced or not cache else may_be[block] | {fill}
    assert disk.content == model
    assert all(bytes(disk.durable[block * 512 : block * 512 + 512]) in values for block, values in enumerate(may_be))
