"""Commands of a disk: capacity, provisioning, and access to the medium (SBC-3 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isblk.target import check, pages
from isblk.target.outcome import Command, Data, Key, Nexus, Outcome, answer

if TYPE_CHECKING:
    from isblk.target.unit import Unit


def _read_capacity_10(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    last = min(unit.blocks - 1, 0xFFFFFFFF)
    return Outcome(check.GOOD, data=last.to_bytes(4, "big") + unit.block_size.to_bytes(4, "big"))


def _read_capacity_16(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    exponent = max(0, (unit.config.physical_block_size // unit.block_size).bit_length() - 1)
    thin = 0xC0 if unit.config.thin else 0  # LBPME, LBPRZ
    data = (unit.blocks - 1).to_bytes(8, "big") + unit.block_size.to_bytes(4, "big") + bytes((0, exponent, thin, 0)) + bytes(16)
    return answer(data, int.from_bytes(cdb[10:14], "big"))


def _get_lba_status(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    lba, length = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    unit.check_range(lba, 1)
    body = b""
    for _ in range(max(1, min(length, 65536) // 16)):
        allocated, end = unit.store.allocation(lba * unit.block_size)
        following = max(lba + 1, min(end // unit.block_size, lba + 0xFFFFFFFF))
        body += lba.to_bytes(8, "big") + (following - lba).to_bytes(4, "big") + bytes((0 if allocated else 1, 0, 0, 0))
        lba = following
        if lba >= unit.blocks:
            break
    return answer((len(body) + 4).to_bytes(4, "big") + bytes(4) + body, length)


def _unmap(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SBC-3 5.28: nothing is unmapped unless every descriptor is good."""
    wanted = int.from_bytes(cdb[7:9], "big")
    unit.check_writable()
    if cdb[1] & 0x01:
        raise check.invalid_field()
    if wanted == 0:
        return Outcome(check.GOOD)
    if wanted < 8 or len(data_out) < wanted:
        raise check.short_parameter_list()
    listed = min(int.from_bytes(data_out[2:4], "big"), wanted - 8) // 16
    ranges = []
    for at in range(8, 8 + 16 * listed, 16):
        lba, count = int.from_bytes(data_out[at : at + 8], "big"), int.from_bytes(data_out[at + 8 : at + 12], "big")
        if lba > unit.blocks or count > unit.blocks - lba:
            raise check.out_of_range(lba)
        ranges.append((lba, count))
    if listed > pages.UNMAP_DESCRIPTORS or sum(count for _, count in ranges) > pages.UNMAP_BLOCKS:
        raise check.invalid_parameter()
    for lba, count in ranges:
        if count:
            unit.store.deallocate(lba * unit.block_size, count * unit.block_size)
    return Outcome(check.GOOD, wanted=wanted)


def _write_same(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SBC-3 5.44, 5.46. With UNMAP, blocks of zeros become holes (LBPRZ=1); other patterns are written as if UNMAP were not set."""
    lba, count = _extent(cdb)
    unit.check_writable()
    without_buffer = cdb[0] == 0x93 and cdb[1] & 0x01
    if cdb[1] & 0xF0 or (cdb[1] & 0x08 and not unit.config.thin) or not count:
        raise check.invalid_field()
    unit.check_range(lba, count)
    if count * unit.block_size > unit.config.max_transfer:
        raise check.invalid_field()
    if not without_buffer and len(data_out) != unit.block_size:
        raise check.short_parameter_list()
    block = bytes(unit.block_size) if without_buffer else bytes(data_out[: unit.block_size])
    if cdb[1] & 0x08 and not any(block):
        unit.store.deallocate(lba * unit.block_size, count * unit.block_size)
    else:
        unit.put(lba, block * count, through=False)
    return Outcome(check.GOOD, wanted=0 if without_buffer else unit.block_size)


def _read(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    lba, count = _extent(cdb)
    unit.check_access(cdb, lba, count)
    offset, length = lba * unit.block_size, count * unit.block_size
    if cdb[0] != 0x08 and cdb[1] & 0x08 and unit.store.is_dirty(offset, length):
        # FUA: the answer comes from the medium, so what is cached goes there first (SBC-3 4.15).
        unit.store.sync()
    return Outcome(check.GOOD, data=unit.store.read(offset, length))


def _write(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    lba, count = _extent(cdb)
    unit.check_writable()
    unit.check_access(cdb, lba, count)
    wanted = count * unit.block_size
    # An initiator that expected to send less than the CDB says gets its whole blocks written and an overflow residual.
    usable = min(wanted, len(data_out) - len(data_out) % unit.block_size)
    data = data_out if usable == len(data_out) else memoryview(data_out)[:usable]
    unit.put(lba, data, through=cdb[0] != 0x0A and bool(cdb[1] & 0x08))
    return Outcome(check.GOOD, wanted=wanted)


def _verify(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    lba, count = _extent(cdb)
    compare = cdb[1] >> 1 & 0x03
    unit.check_access(cdb, lba, count)
    if compare > 1:
        raise check.invalid_field()
    if not compare:
        return Outcome(check.GOOD)
    unit.compare(lba, count, data_out)
    return Outcome(check.GOOD, wanted=count * unit.block_size)


def _compare_and_write(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SBC-3 5.2: the first half is compared, the second written if they are equal."""
    lba, count = int.from_bytes(cdb[2:10], "big"), cdb[13]
    length = count * unit.block_size
    unit.check_writable()
    unit.check_access(cdb, lba, count)
    if count > pages.COMPARE_AND_WRITE_BLOCKS or len(data_out) != 2 * length:
        raise check.invalid_field()
    unit.compare(lba, count, memoryview(data_out)[:length])
    unit.put(lba, memoryview(data_out)[length : 2 * length], through=bool(cdb[1] & 0x08))
    return Outcome(check.GOOD, wanted=2 * length)


def _synchronize_cache(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SBC-3 5.21; the range is checked, then the whole cache is written: more than asked is allowed."""
    unit.check_range(*_extent(cdb))
    unit.store.sync()
    return Outcome(check.GOOD)


def _extent(cdb: bytes) -> tuple[int, int]:
    """LBA and number of blocks of a 6-, 10-, 12- or 16-byte CDB (SPC-4 4.2.2): the group of the operation code says which."""
    group = cdb[0] >> 5
    if group == 0:
        # A length of zero means 256 blocks (SBC-3 5.6).
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group in (1, 2):
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if group == 5:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")


COMMANDS: dict[Key, Command] = {
    (0x08, 0): Command(6, _read),
    (0x0A, 0): Command(6, _write),
    (0x25, 0): Command(10, _read_capacity_10),
    (0x28, 0): Command(10, _read),
    (0x2A, 0): Command(10, _write),
    (0x2F, 0): Command(10, _verify),
    (0x35, 0): Command(10, _synchronize_cache),
    (0x41, 0): Command(10, _write_same),
    (0x42, 0): Command(10, _unmap, thin=True),
    (0x88, 0): Command(16, _read),
    (0x89, 0): Command(16, _compare_and_write),
    (0x8A, 0): Command(16, _write),
    (0x8F, 0): Command(16, _verify),
    (0x91, 0): Command(16, _synchronize_cache),
    (0x93, 0): Command(16, _write_same),
    (0x9E, 0x10): Command(16, _read_capacity_16),
    (0x9E, 0x12): Command(16, _get_lba_status, thin=True),
    (0xA8, 0): Command(12, _read),
    (0xAA, 0): Command(12, _write),
}
