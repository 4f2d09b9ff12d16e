"""Probing: which LUNs there are, who each is, how large, and what is refused, against scripted disks."""

from __future__ import annotations

import errno
import struct

import pytest
import trio
import trio.testing

from isblk.block.probe import (
    ATTENTION_LIMIT,
    BACK_OFF,
    CommandFailed,
    execute,
    geometry,
    list_luns,
    parse_mode,
    probe,
    probe_all,
    read_capacity,
)
from isblk.errors import NotFound, PathLost, ProtocolError
from isblk.scsi.data import Mode
from support.fakelink import BUSY, UNKNOWN_COMMAND, UNKNOWN_FIELD, Answer, FakeDisk, FakeLink, attention, check

LUN = bytes(8)
LUN_1 = bytes.fromhex("0001000000000000")
LUN_FLAT_1 = bytes.fromhex("4001000000000000")
LUN_EXTENDED = bytes.fromhex("d200000100000000")


def block_limits(*, transfer: int = 0, optimal: int = 0, unmap: int = 0, granularity: int = 0, alignment: int = 0, same: int = 0) -> bytes:
    valid = 0x80000000 if alignment else 0
    return struct.pack(">BBHIIIIIIIQ", 0, 0, 0, transfer, optimal, 0, unmap, 1 if unmap else 0, granularity, valid | alignment, same)


async def test_a_disk_is_described() -> None:
    disk = FakeDisk(blocks=4096)
    disk.thin = disk.reads_zero = True
    disk.physical_exponent = 3
    disk.pages = {
        0x80: b"ABC123",
        0x83: bytes.fromhex("01 03 0010 6001405a1b2c3d4e5f60718293a4b5c6"),
        0xB0: block_limits(optimal=128, granularity=8, unmap=1000),
        0xB1: (7200).to_bytes(2, "big") + bytes(58),
        0xB2: bytes.fromhex("00 e4 02 00"),
    }
    found = await probe(FakeLink(disk), LUN)
    assert (found.serial, found.wwid, found.refusal) == ("ABC123", "naa.6001405a1b2c3d4e5f60718293a4b5c6", None)
    assert (found.size, found.block_size, found.is_disk) == (4096 * 512, 512, True)
    assert found.mode == Mode(write_protected=False, fua=True, write_cache=True)
    assert (found.identity.vendor, found.identity.product) == ("FAKE", "DISK")
    shape = geometry(found)
    assert (shape.size, shape.block_size, shape.physical_block_size) == (4096 * 512, 512, 4096)
    assert (shape.optimal_transfer, shape.trim_granularity, shape.max_transfer) == (128 * 512, 8 * 512, 0)
    assert shape.can_trim and shape.can_zero and shape.can_fua and shape.write_cache and shape.trim_reads_zero and shape.rotational
    assert not shape.read_only and shape.zero_unmaps == (found.provisioning.write_same_16_unmap and shape.trim_reads_zero)


async def test_a_plain_disk_promises_nothing_it_did_not_say() -> None:
    disk = FakeDisk(block_size=4096)
    disk.pages = {}
    disk.write_cache, disk.fua, disk.write_protected = False, False, True
    found = await probe(FakeLink(disk), LUN)
    shape = geometry(found)
    assert (found.serial, found.wwid) == ("", None)
    assert shape.read_only and shape.block_size == 4096
    assert not (shape.can_trim or shape.write_cache or shape.trim_reads_zero or shape.rotational)


async def test_only_pages_that_are_listed_are_asked_for() -> None:
    link = FakeLink()
    await probe(link, LUN)
    assert [cdb[2] for cdb in link.sent if cdb[0] == 0x12 and cdb[1] & 1] == [0x00, 0x80]


@pytest.mark.parametrize("payload", [b"", b"\x00\x80\x83\xb0\xb1\xb2"])
async def test_pages_that_are_listed_and_then_refused_are_done_without(payload: bytes) -> None:
    disk = FakeDisk()
    disk.pages = {0x80: b"", 0x83: b"\x01\x03", 0xB0: b"", 0xB1: b"", 0xB2: b""}
    disk.script = [None, (0, b"", bytes([0, 0, 0, len(payload)]) + payload), *[UNKNOWN_FIELD] * 5 * bool(payload)]
    found = await probe(FakeLink(disk), LUN)
    assert found.refusal is None and found.serial == "" and not geometry(found).can_trim


async def test_a_page_that_is_another_than_asked_for_is_left_out_of_account() -> None:
    disk = FakeDisk()
    disk.script = [None, None, (0, b"", b"\x00\x83\x00\x04SOME")]
    assert (await probe(FakeLink(disk), LUN)).serial == ""


async def test_a_long_page_is_asked_for_again_whole() -> None:
    disk = FakeDisk()
    names = b"".join(bytes.fromhex("01 13 0004") + bytes([0, 0, 0, port]) for port in range(100))
    disk.pages = {0x83: names + bytes.fromhex("01 03 0008 5001405a1b2c3d4e")}
    link = FakeLink(disk)
    assert (await probe(link, LUN)).wwid == "naa.5001405a1b2c3d4e"
    assert [cdb[3:5] for cdb in link.sent if cdb[0] == 0x12 and cdb[2] == 0x83] == [b"\x00\xfc", (4 + 812).to_bytes(2, "big")]


async def test_attentions_of_a_fresh_nexus_are_absorbed() -> None:
    disk = FakeDisk()
    disk.script = [attention(0x29, 0x00), attention(0x3F, 0x0E), None, attention(0x2A, 0x09)]
    assert (await probe(FakeLink(disk), LUN)).refusal is None


async def test_attentions_without_end_are_not_absorbed_for_ever() -> None:
    disk = FakeDisk()
    disk.script = [attention(0x29, 0x00)] * (ATTENTION_LIMIT + 1)
    link = FakeLink(disk)
    with pytest.raises(CommandFailed, match="UNIT ATTENTION 29/00"):
        await execute(link, LUN, bytes(6))
    assert len(link.sent) == ATTENTION_LIMIT + 1


async def test_a_unit_that_becomes_ready_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    disk = FakeDisk()
    disk.script = [check(2, 0x04, 0x01), BUSY, check(2, 0x04, 0x0A)]
    await execute(FakeLink(disk), LUN, bytes(6))
    assert trio.current_time() > 0


async def test_a_unit_that_stays_busy_is_given_up_in_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    disk = FakeDisk()
    disk.script = [BUSY] * 100
    start = trio.current_time()
    with pytest.raises(CommandFailed, match="BUSY") as caught:
        await execute(FakeLink(disk), LUN, bytes(6))
    assert caught.value.errno == errno.EBUSY
    assert trio.current_time() - start == pytest.approx(sum(BACK_OFF))
    assert sum(BACK_OFF) < 60


async def test_a_lost_path_ends_probing() -> None:
    link = FakeLink()
    link.lose(PathLost("gone"))
    with pytest.raises(PathLost):
        await probe(link, LUN)


@pytest.mark.parametrize("answer", [(0, b"", bytes([0x7F]) + bytes(35)), (0, b"", bytes([0x20]) + bytes(35)), check(5, 0x25, 0x00)])
async def test_no_logical_unit_is_not_found(answer: Answer) -> None:
    disk = FakeDisk()
    disk.script = [answer]
    with pytest.raises(NotFound, match="has no LUN 0"):
        await probe(FakeLink(disk), LUN)


async def test_what_is_no_disk_is_described_and_refused() -> None:
    disk = FakeDisk()
    disk.device_type = 0x0C
    link = FakeLink(disk)
    found = await probe(link, LUN)
    assert found.refusal == "LUN 0 is no disk but a storage array controller"
    assert (found.size, found.block_size, found.serial) == (0, 0, "SERIAL01")
    assert set(link.opcodes) == {0x12}, "a controller is not asked for its capacity"


@pytest.mark.parametrize("length", [0, 1, 256, 520, 528, 1 << 17])
async def test_odd_block_lengths_are_refused_in_words(length: int) -> None:
    disk = FakeDisk(content=False)
    disk.block_size = length
    found = await probe(FakeLink(disk), LUN)
    assert found.refusal is not None and f"blocks of {length} bytes" in found.refusal


@pytest.mark.parametrize("length", [512, 1024, 2048, 4096, 65536])
async def test_block_lengths_that_are_powers_of_two_are_taken(length: int) -> None:
    assert (await probe(FakeLink(FakeDisk(16, length)), LUN)).refusal is None


async def test_a_size_beyond_any_file_is_refused() -> None:
    disk = FakeDisk(content=False)
    disk.blocks = 1 << 64
    found = await probe(FakeLink(disk), LUN)
    assert found.refusal is not None and "more than a file can have" in found.refusal


async def test_a_unit_without_medium_is_described_and_refused() -> None:
    disk = FakeDisk()
    disk.commands[0x00] = lambda cdb, data: check(2, 0x3A, 0x00)
    found = await probe(FakeLink(disk), LUN)
    assert found.refusal is not None and "medium not present" in found.refusal
    assert found.serial == "SERIAL01"


async def test_capacity_falls_back_to_the_short_command() -> None:
    disk = FakeDisk(blocks=100)
    disk.refuse = {0x9E}
    assert (await read_capacity(FakeLink(disk), LUN)).blocks == 100


async def test_capacity_beyond_32_bits_needs_the_long_command() -> None:
    disk = FakeDisk(content=False)
    disk.blocks = 1 << 33
    assert (await read_capacity(FakeLink(disk), LUN)).blocks == 1 << 33
    disk.refuse = {0x9E}
    with pytest.raises(CommandFailed, match="20/00"):
        await read_capacity(FakeLink(disk), LUN)


async def test_a_capacity_that_fails_for_another_reason_is_not_asked_twice() -> None:
    disk = FakeDisk()
    disk.script = [check(4, 0x44, 0x00)]
    link = FakeLink(disk)
    with pytest.raises(CommandFailed, match="44/00"):
        await read_capacity(link, LUN)
    assert link.opcodes == [0x9E]


@pytest.mark.parametrize("refuse", [set(), {0x1A}])
@pytest.mark.parametrize("caching_page", [True, False])
async def test_the_mode_is_found_whichever_way_the_unit_knows(refuse: set[int], caching_page: bool) -> None:
    disk = FakeDisk()
    disk.refuse, disk.caching_page, disk.write_protected = refuse, caching_page, True
    found = await probe(FakeLink(disk), LUN)
    assert found.mode == Mode(True, True, True if caching_page else None)
    assert geometry(found).write_cache, "a cache that is not spoken of is assumed"
    assert found.mode_sense is not None
    _status, _sense, answer = disk.answer(found.mode_sense, b"")
    assert parse_mode(found.mode_sense, answer) == found.mode


async def test_a_unit_without_mode_sense_is_usable() -> None:
    disk = FakeDisk()
    disk.refuse = {0x1A, 0x5A}
    found = await probe(FakeLink(disk), LUN)
    assert (found.refusal, found.mode_sense, found.mode.write_cache) == (None, None, None)


@pytest.mark.parametrize("opcode", [0x12, 0x9E, 0x1A])
async def test_answers_too_short_to_be_any_are_protocol_errors(opcode: int) -> None:
    disk = FakeDisk()
    disk.commands[opcode] = lambda cdb, data: (0, b"", b"\0")
    with pytest.raises(ProtocolError):
        await probe(FakeLink(disk), LUN)


async def test_luns_come_in_sam_order_as_they_were_reported() -> None:
    luns = [LUN_EXTENDED, LUN_FLAT_1, LUN_1, LUN]
    assert await list_luns(FakeLink(disks={lun: FakeDisk(8) for lun in luns})) == [LUN, LUN_1, LUN_FLAT_1, LUN_EXTENDED]


async def test_a_long_list_of_luns_is_asked_for_again() -> None:
    disk = FakeDisk(8)
    luns = [bytes([0x40 | number >> 8, number & 0xFF]) + bytes(6) for number in range(3000)]
    link = FakeLink(disks=dict.fromkeys(luns, disk))
    assert await list_luns(link) == luns
    assert [int.from_bytes(cdb[6:10], "big") for cdb in link.sent] == [4096, 8 + 3000 * 8]


@pytest.mark.parametrize("claim", [4096, 0xFFFFFFF8])
async def test_a_list_that_never_comes_whole_is_a_protocol_error(claim: int) -> None:
    link = FakeLink()
    link.lun_list_claim = claim
    with pytest.raises(ProtocolError, match="LUN list"):
        await list_luns(link)
    assert len(link.sent) <= 2


async def test_a_target_without_report_luns_has_lun_0() -> None:
    disk = FakeDisk()
    disk.refuse = {0xA0}
    assert await list_luns(FakeLink(disk)) == [LUN]


async def test_a_list_that_cannot_be_had_for_another_reason_is_an_error() -> None:
    disk = FakeDisk()
    disk.script = [(0x18, b"", b"")]
    with pytest.raises(CommandFailed, match="RESERVATION CONFLICT"):
        await list_luns(FakeLink(disk))


async def test_every_unit_is_described_and_what_is_not_there_left_out() -> None:
    controller, gone = FakeDisk(), FakeDisk()
    controller.device_type, gone.qualifier = 0x0C, 3
    link = FakeLink(disks={LUN: controller, LUN_1: FakeDisk(), LUN_FLAT_1: gone, LUN_EXTENDED: FakeDisk(block_size=520)})
    found = await probe_all(link)
    assert [(unit.lun, unit.refusal is None) for unit in found] == [(LUN, False), (LUN_1, True), (LUN_EXTENDED, False)]


async def test_unknown_commands_are_told_by_their_words() -> None:
    disk = FakeDisk()
    disk.script = [UNKNOWN_COMMAND]
    with pytest.raises(CommandFailed, match=r"LUN 0 failed a command: ILLEGAL REQUEST 20/00 \(invalid command operation code\)"):
        await execute(FakeLink(disk), LUN, bytes(6))
