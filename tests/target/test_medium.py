from __future__ import annotations

from collections.abc import Iterator

import pytest

from isblk.target.config import LunConfig
from isblk.target.outcome import Nexus, Outcome
from isblk.target.store import Store
from isblk.target.unit import Unit

NEXUS = Nexus("i", b"\x80\0\0\0\0\0", 1)
BLOCKS = 2048


def make(**settings: object) -> Unit:
    config = LunConfig(0, **settings)  # type: ignore[arg-type]
    return Unit(config, "iqn.2026-11.org.isblk:medium", Store.in_memory(BLOCKS * config.block_size))


@pytest.fixture
def unit() -> Iterator[Unit]:
    made = make()
    yield made
    made.store.close()


def run(unit: Unit, cdb: str, data: bytes = b"") -> Outcome:
    return unit.execute(bytes.fromhex(cdb).ljust(16, b"\0"), data, NEXUS)


def sense(outcome: Outcome) -> tuple[int, int, int]:
    return outcome.sense[2], outcome.sense[12], outcome.sense[13]


FOUR_BLOCKS_AT_5 = [
    ("080000050400", "0a0000050400"),
    ("28000000000500000400", "2a000000000500000400"),
    ("a80000000005000000040000", "aa0000000005000000040000"),
    ("88000000000000000005000000040000", "8a000000000000000005000000040000"),
]


@pytest.mark.parametrize("read, write", FOUR_BLOCKS_AT_5)
def test_reading_and_writing_with_cdbs_of_every_size(unit: Unit, read: str, write: str) -> None:
    data = bytes(range(256)) * 8
    assert run(unit, write, data) == Outcome(0, wanted=2048)
    assert run(unit, read).data == data
    assert unit.store.read(5 * 512, 2048) == data


def test_zero_blocks_in_a_6_byte_cdb_are_256(unit: Unit) -> None:
    assert len(run(unit, "080000000000").data) == 256 * 512
    assert len(run(unit, "28000000000000000000").data) == 0


def test_blocks_of_4096_bytes() -> None:
    unit = make(block_size=4096)
    assert run(unit, "2a000000000100000100", b"q" * 4096).wanted == 4096
    assert unit.store.read(4096, 4096) == b"q" * 4096
    assert bytes(run(unit, "25").data) == (BLOCKS - 1).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    assert run(unit, "9e10" + "00" * 8 + "000000ff").data[13] == 0
    unit.store.close()


@pytest.mark.parametrize("cdb", ["28000000080000000100", "28000000070000010001", "2a00ffffffff00000100", "35000000080000000100"])
def test_what_reaches_beyond_the_end_is_out_of_range(unit: Unit, cdb: str) -> None:
    outcome = run(unit, cdb, bytes(512))
    if cdb == "28000000070000010001":
        assert outcome.status == 0
    else:
        assert sense(outcome) == (5, 0x21, 0)


def test_the_last_block_is_in_range(unit: Unit) -> None:
    assert run(unit, "2800000007ff00000100").status == 0
    assert sense(run(unit, "2800000007ff00000200")) == (5, 0x21, 0)


def test_protection_information_and_too_long_transfers_are_refused(unit: Unit) -> None:
    assert sense(run(unit, "28200000000000000100")) == (5, 0x24, 0)
    small = make(max_transfer=4096)
    assert sense(run(small, "28000000000000000900")) == (5, 0x24, 0)
    assert run(small, "28000000000000000800").status == 0
    small.store.close()


def test_only_fua_and_synchronize_cache_make_a_write_durable(unit: Unit) -> None:
    run(unit, "2a000000000000000100", b"a" * 512)
    run(unit, "2a080000000100000100", b"b" * 512)
    assert unit.store.durable(0, 1024) == bytes(512) + b"b" * 512
    run(unit, "35" + "00" * 9)
    run(unit, "2a000000000200000100", b"c" * 512)
    unit.crash()
    assert unit.store.read(0, 1536) == b"a" * 512 + b"b" * 512 + bytes(512)


def test_without_a_write_cache_every_write_is_durable() -> None:
    unit = make(write_cache=False)
    run(unit, "2a000000000000000100", b"a" * 512)
    unit.crash()
    assert unit.store.read(0, 512) == b"a" * 512
    unit.store.close()


def test_a_fua_read_puts_cached_data_on_the_medium_first(unit: Unit) -> None:
    run(unit, "2a000000000000000100", b"a" * 512)
    run(unit, "28080000000000000100")
    assert unit.store.durable(0, 512) == b"a" * 512


def test_a_write_protected_unit_refuses_everything_that_writes() -> None:
    unit = make(read_only=True)
    for cdb, data in (
        ("2a000000000000000100", bytes(512)),
        ("42000000000000001800", bytes(24)),
        ("93000000000000000000000000010000", bytes(512)),
        ("89000000000000000000000000010000", bytes(1024)),
    ):
        assert sense(run(unit, cdb, data)) == (7, 0x27, 0)
    assert run(unit, "28000000000000000100").status == 0
    unit.store.close()


def test_a_write_with_less_data_than_its_cdb_asks_for_writes_whole_blocks(unit: Unit) -> None:
    outcome = run(unit, "2a000000000000000300", b"x" * 1100)
    assert outcome == Outcome(0, wanted=1536)
    assert unit.store.read(0, 1536) == b"x" * 1024 + bytes(512)


def test_read_capacity_16_tells_of_thin_provisioning() -> None:
    for thin in (True, False):
        unit = make(thin=thin)
        data = run(unit, "9e10" + "00" * 8 + "000000ff").data
        assert data[:12] == (BLOCKS - 1).to_bytes(8, "big") + (512).to_bytes(4, "big")
        assert (data[13], data[14]) == (3, 0xC0 if thin else 0)
        unit.store.close()


def unmap(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges)
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def statuses(unit: Unit, lba: int, length: int = 1024) -> list[tuple[int, int, int]]:
    data = bytes(run(unit, "9e12" + lba.to_bytes(8, "big").hex() + length.to_bytes(4, "big").hex()).data)
    rows = [data[at : at + 16] for at in range(8, len(data), 16)]
    return [(int.from_bytes(row[:8], "big"), int.from_bytes(row[8:12], "big"), row[12]) for row in rows]


def test_unmap_makes_holes_that_lba_status_shows(unit: Unit) -> None:
    run(unit, "2a000000000000004000", b"d" * 512 * 64)
    data = unmap((8, 16), (40, 8))
    assert run(unit, f"4200000000000000{len(data):02x}00", data).status == 0
    assert unit.store.read(0, 64 * 512) == b"d" * 8 * 512 + bytes(16 * 512) + b"d" * 16 * 512 + bytes(8 * 512) + b"d" * 16 * 512
    assert statuses(unit, 0) == [(0, 8, 0), (8, 16, 1), (24, 16, 0), (40, 8, 1), (48, 16, 0), (64, BLOCKS - 64, 1)]
    assert statuses(unit, 10, 24) == [(10, 14, 1)]
    assert sense(run(unit, "9e12" + BLOCKS.to_bytes(8, "big").hex() + "00000400")) == (5, 0x21, 0)


def test_unmap_does_nothing_unless_all_of_it_is_good(unit: Unit) -> None:
    run(unit, "2a000000000000000800", b"d" * 4096)
    data = unmap((0, 8), (BLOCKS, 1))
    assert sense(run(unit, f"4200000000000000{len(data):02x}00", data)) == (5, 0x21, 0)
    assert unit.store.read(0, 4096) == b"d" * 4096
    assert run(unit, "42000000000000000000").status == 0
    assert sense(run(unit, "42000000000000000400", bytes(4))) == (5, 0x1A, 0)
    assert sense(run(unit, "42000000000000001800", bytes(8))) == (5, 0x1A, 0)
    assert sense(run(unit, "42010000000000001800", unmap((0, 8)))) == (5, 0x24, 0)
    many = unmap(*[(0, 1)] * 257)
    assert sense(run(unit, f"42000000000000{len(many):04x}00", many)) == (5, 0x26, 0)
    assert run(unit, "42000000000000001800", unmap((BLOCKS, 0))).status == 0


def test_a_thick_unit_has_no_unmap_and_no_lba_status() -> None:
    unit = make(thin=False)
    assert sense(run(unit, "42000000000000001800", unmap((0, 8)))) == (5, 0x20, 0)
    assert sense(run(unit, "9e12" + "00" * 12)) == (5, 0x20, 0)
    assert sense(run(unit, "93080000000000000000000000080000", bytes(512))) == (5, 0x24, 0)
    unit.store.close()


def test_write_same_repeats_its_block(unit: Unit) -> None:
    block = bytes(range(256)) * 2
    assert run(unit, "41000000000200000300", block).wanted == 512
    assert unit.store.read(512, 5 * 512) == bytes(512) + block * 3 + bytes(512)
    assert run(unit, "93000000000000000002000000030000", block[::-1]).status == 0
    assert unit.store.read(1024, 3 * 512) == block[::-1] * 3


def test_write_same_with_unmap_makes_holes_of_zeros_only(unit: Unit) -> None:
    run(unit, "2a000000000000001000", b"d" * 8192)
    run(unit, "93080000000000000000000000080000", bytes(512))
    run(unit, "93080000000000000008000000080000", b"e" * 512)
    assert statuses(unit, 0)[:2] == [(0, 8, 1), (8, 8, 0)]
    assert unit.store.read(4096, 4096) == b"e" * 4096


def test_write_same_without_a_buffer_writes_zeros(unit: Unit) -> None:
    run(unit, "2a000000000000000800", b"d" * 4096)
    assert run(unit, "93010000000000000000000000080000") == Outcome(0)
    assert unit.store.read(0, 4096) == bytes(4096)
    assert statuses(unit, 0)[0] == (0, 8, 0)


@pytest.mark.parametrize("cdb, asc", [("41000000000000000000", 0x24), ("41000000000000000100", 0x1A), ("41100000000000000100", 0x24)])
def test_write_same_is_refused_for_no_blocks_wrong_data_and_anchors(unit: Unit, cdb: str, asc: int) -> None:
    assert sense(run(unit, cdb, bytes(1024))) == (5, asc, 0)


def test_verify_with_and_without_comparing(unit: Unit) -> None:
    run(unit, "2a000000000000000100", b"v" * 512)
    assert run(unit, "2f000000000000000100").status == 0
    assert run(unit, "2f020000000000000100", b"v" * 512).status == 0
    wrong = run(unit, "8f020000000000000000000000010000", b"v" * 7 + b"w" * 505)
    assert sense(wrong) == (0xE, 0x1D, 0)
    assert int.from_bytes(wrong.sense[3:7], "big") == 7
    assert sense(run(unit, "2f040000000000000100")) == (5, 0x24, 0)
    assert sense(run(unit, "2f020000000000000100", b"v")) == (5, 0x1A, 0)


def test_compare_and_write_writes_only_what_compares(unit: Unit) -> None:
    cdb = "8900" + "00" * 8 + "000000" + "01" + "0000"
    assert run(unit, cdb, bytes(512) + b"n" * 512) == Outcome(0, wanted=1024)
    assert unit.store.read(0, 512) == b"n" * 512
    assert sense(run(unit, cdb, bytes(512) + b"m" * 512)) == (0xE, 0x1D, 0)
    assert unit.store.read(0, 512) == b"n" * 512
    assert sense(run(unit, cdb, bytes(512))) == (5, 0x24, 0)
    assert sense(run(unit, "8900" + "00" * 8 + "000000" + "81" + "0000", bytes(512 * 258))) == (5, 0x24, 0)
