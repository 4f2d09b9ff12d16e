"""The stack of one disk over a session in memory, and which logical units of a target are meant."""

from __future__ import annotations

import pytest

from isblk.block.request import flush, read, write
from isblk.block.stack import choose_disks, open_disk
from isblk.errors import NotFound, RequestInvalid, UsageError
from support.fakelink import FakeDisk, FakeLink

NAME = "iqn.2026-11.test.isblk:target"


def number(value: int) -> bytes:
    """A LUN in SAM's flat or peripheral form, written by hand."""
    return (bytes([0, value]) if value < 256 else (0x4000 | value).to_bytes(2, "big")) + bytes(6)


def link(*numbers: int) -> FakeLink:
    return FakeLink(disks={number(one): FakeDisk() for one in numbers})


def controller() -> FakeDisk:
    disk = FakeDisk()
    disk.device_type = 0x0C
    return disk


async def test_a_disk_is_a_gate_in_bytes_over_whole_blocks() -> None:
    there = link(3)
    disk = await open_disk(there, 3, NAME)
    assert (disk.number, disk.device.geometry.block_size, disk.gate.geometry.block_size) == (3, 512, 1)
    assert disk.gate.geometry.size == disk.description.size == 2048 * 512
    await write(disk.gate, 1001, b"odd")
    assert await read(disk.gate, 1000, 5) == b"\0odd\0"
    assert there.disks[number(3)].content[1001:1004] == b"odd"
    await flush(disk.gate)
    assert there.disks[number(3)].durable[1001:1004] == b"odd"
    assert disk.gate.counters.as_dict()["write_bytes"] == 3, "the gate counts what the front end asked for"


async def test_nothing_passes_the_gate_beyond_the_end() -> None:
    disk = await open_disk(link(0), 0, NAME)
    with pytest.raises(RequestInvalid):
        await read(disk.gate, 2048 * 512 - 1, 2)


async def test_a_lun_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="LUN 5"):
        await open_disk(link(0, 1), 5, NAME)


async def test_a_lun_that_is_no_disk() -> None:
    there = FakeLink(disks={number(0): controller(), number(1): FakeDisk()})
    with pytest.raises(UsageError, match="LUN 0 is no disk"):
        await open_disk(there, 0, NAME)


async def test_all_disks_in_order_and_a_sentence_for_each_that_is_left_out() -> None:
    there = FakeLink(disks={number(0): controller(), number(7): FakeDisk(), number(300): FakeDisk(64, 4096), number(2): FakeDisk()})
    disks, left_out = await choose_disks(there, None, True, NAME)
    assert [(found.lun[1] if found.lun[0] == 0 else 300, found.block_size) for found in disks] == [(2, 512), (7, 512), (300, 4096)]
    assert len(left_out) == 1 and left_out[0].startswith("LUN 0 is no disk")


async def test_a_target_without_a_disk_says_what_is_there_instead() -> None:
    with pytest.raises(NotFound, match="the target has no disk to use: LUN 0 is no disk"):
        await open_disk(FakeLink(disks={number(0): controller()}), None, NAME)


async def test_a_target_that_shows_nothing_points_at_its_access_list() -> None:
    with pytest.raises(NotFound, match=r"no logical unit to this initiator .*access list"):
        await open_disk(FakeLink(disks={}), None, NAME)


async def test_the_only_disk_needs_no_number() -> None:
    assert (await open_disk(link(4), None, NAME)).number == 4


async def test_several_disks_are_listed() -> None:
    with pytest.raises(UsageError, match=rf"^{NAME} has several disks \(LUN 1, 4, 300\): choose one with --lun"):
        await open_disk(link(1, 300, 4), None, NAME)
