"""Block status: covered without gaps whatever the unit tells."""

from __future__ import annotations

import struct

import pytest

from isblk.block.mapping import MOST_COMMANDS, block_status
from isblk.block.probe import CommandFailed, probe
from isblk.scsi.data import Provisioning
from support.fakelink import FakeDisk, FakeLink, check

LUN = bytes(8)
MAPPED, DEALLOCATED = Provisioning.MAPPED, Provisioning.DEALLOCATED


def thin() -> FakeDisk:
    disk = FakeDisk(blocks=1024)
    disk.thin = True
    disk.deallocated = {*range(10, 20), *range(30, 1024)}
    return disk


async def status(disk: FakeDisk, first: int, blocks: int) -> tuple[list[tuple[int, int, Provisioning]], int]:
    link = FakeLink(disk)
    found = await probe(link, LUN)
    link.sent.clear()
    extents = await block_status(link, found, first * 512, blocks * 512)
    return [(extent.offset // 512, extent.length // 512, extent.provisioning) for extent in extents], len(link.sent)


@pytest.mark.parametrize("at_once", [1, 2, 1000])
async def test_a_range_is_covered_with_as_many_questions_as_it_takes(at_once: int) -> None:
    disk = thin()
    disk.status_at_once = at_once
    found, questions = await status(disk, 5, 35)
    assert found == [(5, 5, MAPPED), (10, 10, DEALLOCATED), (20, 10, MAPPED), (30, 10, DEALLOCATED)]
    assert questions == -(-4 // at_once)


async def test_a_unit_that_is_not_thin_is_not_asked() -> None:
    assert await status(FakeDisk(blocks=1024), 0, 1024) == ([(0, 1024, MAPPED)], 0)


async def test_a_unit_that_cannot_tell_has_everything_mapped() -> None:
    disk = thin()
    real = disk.commands[0x9E]
    disk.commands[0x9E] = lambda cdb, data: real(cdb, data) if cdb[1] == 0x10 else check(5, 0x20, 0)
    assert await status(disk, 0, 1024) == ([(0, 1024, MAPPED)], 1)


async def test_another_failure_is_one() -> None:
    disk = thin()
    real = disk.commands[0x9E]
    disk.commands[0x9E] = lambda cdb, data: real(cdb, data) if cdb[1] == 0x10 else check(4, 0x44, 0)
    with pytest.raises(CommandFailed):
        await status(disk, 0, 1024)


def lba_status(*descriptors: tuple[int, int, int]) -> bytes:
    data = b"".join(struct.pack(">QIB3x", *each) for each in descriptors)
    return struct.pack(">I4x", len(data) + 4) + data


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lba_status(), [(8, 8, MAPPED)]),
        (lba_status((8, 0, 1)), [(8, 8, MAPPED)]),
        (lba_status((9, 7, 1)), [(8, 8, MAPPED)]),
        (lba_status((0, 4, 1)), [(8, 8, MAPPED)]),
        (lba_status((0, 12, 1), (13, 3, 1)), [(8, 4, DEALLOCATED), (12, 4, MAPPED)]),
        (lba_status((0, 100, 1), (100, 100, 0)), [(8, 8, DEALLOCATED)]),
        (lba_status((8, 4, 1), (12, 4, 1)), [(8, 8, DEALLOCATED)]),
    ],
)
async def test_what_makes_no_sense_counts_as_mapped(answer: bytes, expected: list[tuple[int, int, Provisioning]]) -> None:
    disk = thin()
    real = disk.commands[0x9E]
    disk.commands[0x9E] = lambda cdb, data: real(cdb, data) if cdb[1] == 0x10 else (0, b"", answer)
    found, questions = await status(disk, 8, 8)
    assert found == expected
    assert questions <= 2


async def test_a_unit_that_tells_one_block_at_a_time_is_not_asked_for_ever() -> None:
    disk = thin()
    real = disk.commands[0x9E]

    def one_block(cdb: bytes, data: bytes) -> tuple[int, bytes, bytes]:
        return real(cdb, data) if cdb[1] == 0x10 else (0, b"", lba_status((int.from_bytes(cdb[2:10], "big"), 1, 1)))

    disk.commands[0x9E] = one_block
    found, questions = await status(disk, 0, 1024)
    assert found == [(0, MOST_COMMANDS, DEALLOCATED), (MOST_COMMANDS, 1024 - MOST_COMMANDS, MAPPED)]
    assert questions == MOST_COMMANDS
