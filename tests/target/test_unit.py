from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from isblk.errors import UsageError
from isblk.target.check import Key, fixed_sense
from isblk.target.config import AccessState, LunConfig
from isblk.target.outcome import Nexus, Outcome
from isblk.target.store import Store
from isblk.target.unit import PortGroups, Unit

ONE = Nexus("one", b"\x80\0\0\0\0\0", 1)
TWO = Nexus("two", b"\x80\0\0\0\0\0", 2)
READ = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0))
TEST_UNIT_READY = bytes(16)
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))


@pytest.fixture
def unit() -> Iterator[Unit]:
    store = Store.in_memory(1 << 20)
    yield Unit(LunConfig(0), "iqn.2026-11.org.isblk:unit", store, PortGroups({1, 2}))
    store.close()


def sense(outcome: Outcome) -> tuple[int, int, int]:
    assert outcome.status == 2
    return outcome.sense[2], outcome.sense[12], outcome.sense[13]


def test_a_fresh_nexus_finds_one_unit_attention_and_others_are_not_disturbed(unit: Unit) -> None:
    unit.nexus_started(ONE)
    assert sense(unit.execute(TEST_UNIT_READY, b"", ONE)) == (6, 0x29, 0)
    assert unit.execute(TEST_UNIT_READY, b"", ONE).status == 0
    unit.nexus_started(TWO)
    assert unit.execute(TEST_UNIT_READY, b"", ONE).status == 0
    assert sense(unit.execute(READ, b"", TWO)) == (6, 0x29, 0)


def test_the_attention_of_a_fresh_nexus_can_be_chosen_or_left_out() -> None:
    store = Store.in_memory(4096)
    chosen, silent = (Unit(LunConfig(0, fresh_attention=each), "t", store) for each in ((0x29, 0x07), None))
    for each in (chosen, silent):
        each.nexus_started(ONE)
    assert sense(chosen.execute(READ, b"", ONE)) == (6, 0x29, 0x07)
    silent.nexus_lost(ONE)
    assert silent.execute(READ, b"", ONE).status == 0
    store.close()


def test_attentions_queue_up_once_each_and_end_with_the_nexus(unit: Unit) -> None:
    unit.nexus_started(ONE)
    unit.attention(0x2A, 0x09)
    unit.attention(0x2A, 0x09, ONE)
    unit.reset()
    found = [sense(unit.execute(READ, b"", ONE)) for _ in range(3)]
    assert found == [(6, 0x29, 0), (6, 0x2A, 0x09), (6, 0x29, 0x03)]
    assert unit.execute(READ, b"", ONE).status == 0
    unit.attention(0x2A, 0x01, ONE)
    unit.nexus_ended(ONE)
    assert unit.take_attention(ONE) is None


def test_a_crash_loses_the_cache_and_tells_every_nexus(unit: Unit) -> None:
    unit.nexus_started(ONE)
    unit.take_attention(ONE)
    unit.put(0, b"x" * 512, through=False)
    unit.crash()
    assert sense(unit.execute(READ, b"", ONE)) == (6, 0x29, 0x01)
    assert unit.execute(READ, b"", ONE).data == bytes(512)


def test_an_injected_failure_ends_the_command_it_names(unit: Unit) -> None:
    medium_error = fixed_sense(Key.MEDIUM_ERROR, 0x11, 0x00)
    unit.inject = lambda cdb: (2, medium_error) if cdb[0] == 0x28 else None
    assert sense(unit.execute(READ, b"", ONE)) == (3, 0x11, 0)
    assert unit.execute(TEST_UNIT_READY, b"", ONE).status == 0
    unit.inject = lambda cdb: (0x28, b"")
    assert unit.execute(READ, b"", ONE) == Outcome(0x28)
    unit.inject = None
    assert unit.execute(READ, b"", ONE).status == 0


@pytest.mark.parametrize("state, ascq", [(AccessState.STANDBY, 0x0B), (AccessState.UNAVAILABLE, 0x0C), (AccessState.TRANSITIONING, 0x0A)])
def test_a_group_that_is_not_active_refuses_the_medium_and_answers_inquiry(unit: Unit, state: AccessState, ascq: int) -> None:
    unit.groups.change(2, state)
    assert sense(unit.execute(READ, b"", TWO)) == (2, 0x04, ascq)
    assert unit.execute(INQUIRY, b"", TWO).status == 0
    assert unit.execute(READ, b"", ONE).status == 0
    unit.groups.change(2, AccessState.NON_OPTIMIZED)
    assert unit.execute(READ, b"", TWO).status == 0


def test_an_offline_unit_is_not_ready(unit: Unit) -> None:
    unit.offline = True
    assert sense(unit.execute(TEST_UNIT_READY, b"", ONE)) == (2, 0x04, 0x03)
    assert unit.execute(INQUIRY, b"", ONE).status == 0


def test_an_unknown_command_is_an_invalid_operation_code(unit: Unit) -> None:
    assert sense(unit.execute(bytes((0xFF,)) + bytes(15), b"", ONE)) == (5, 0x20, 0)
    assert sense(unit.execute(bytes((0x9E, 0x1F)) + bytes(14), b"", ONE)) == (5, 0x20, 0)


@pytest.mark.parametrize("number, expected", [(errno.ENOSPC, (7, 0x27, 0x07)), (errno.EIO, (3, 0x0C, 0x00))])
def test_a_failure_of_the_medium_becomes_sense_data(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, number: int, expected: tuple[int, ...]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "medium")

    monkeypatch.setattr(unit.store, "write", fail)
    assert sense(unit.execute(bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0)), bytes(512), ONE)) == expected


def test_every_cdb_at_all_ends_in_an_outcome(unit: Unit) -> None:
    """Whatever a hostile CDB says, it is answered and nothing is raised."""
    for opcode in range(256):
        for fill in (0x00, 0x01, 0x55, 0x80, 0xFF):
            outcome = unit.execute(bytes((opcode,)) + bytes([fill]) * 15, bytes(512), ONE)
            assert outcome.status in (0, 2)
            assert len(outcome.sense) == (18 if outcome.status else 0)


def test_a_change_of_an_access_state_is_told_to_every_nexus_once(unit: Unit) -> None:
    for nexus in (ONE, TWO):
        unit.nexus_started(nexus)
        unit.take_attention(nexus)
    unit.groups.change(2, AccessState.STANDBY)
    unit.groups.change(2, AccessState.STANDBY)
    assert sense(unit.execute(TEST_UNIT_READY, b"", ONE)) == (6, 0x2A, 0x06)
    assert unit.execute(TEST_UNIT_READY, b"", ONE).status == 0
    assert sense(unit.execute(TEST_UNIT_READY, b"", TWO)) == (6, 0x2A, 0x06)
    assert sense(unit.execute(TEST_UNIT_READY, b"", TWO)) == (2, 0x04, 0x0B)


MODE_SENSE = bytes((0x1A, 8, 0x3F, 0, 255, 0))
READ_KEYS = bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 64, 0))
REPORT_GROUPS = bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0))
READ_CAPACITY = bytes((0x9E, 0x10, *bytes(10), 0, 32, 0, 0))


@pytest.mark.parametrize(
    "state, allowed",
    [
        (AccessState.NON_OPTIMIZED, {MODE_SENSE, READ_KEYS, REPORT_GROUPS, READ_CAPACITY, TEST_UNIT_READY, READ}),
        (AccessState.STANDBY, {MODE_SENSE, READ_KEYS, REPORT_GROUPS}),
        (AccessState.UNAVAILABLE, {REPORT_GROUPS}),
        (AccessState.TRANSITIONING, {REPORT_GROUPS}),
    ],
)
def test_which_commands_an_access_state_allows(unit: Unit, state: AccessState, allowed: set[bytes]) -> None:
    unit.groups.change(2, state)
    every = {MODE_SENSE, READ_KEYS, REPORT_GROUPS, READ_CAPACITY, TEST_UNIT_READY, READ}
    assert {cdb for cdb in every if unit.execute(cdb, b"", TWO).status == 0} == allowed


def test_a_unit_that_grows_and_shrinks_tells_every_nexus(unit: Unit) -> None:
    unit.nexus_started(ONE)
    unit.take_attention(ONE)
    unit.resize(2 << 20)
    assert sense(unit.execute(READ_CAPACITY, b"", ONE)) == (6, 0x2A, 0x09)
    assert int.from_bytes(bytes(unit.execute(READ_CAPACITY, b"", ONE).data)[:8], "big") == 4095
    last = bytes((0x28, 0, 0, 0, 0x0F, 0xFF, 0, 0, 1, 0))
    assert unit.execute(last, b"", ONE).status == 0
    unit.resize(1 << 20)
    unit.take_attention(ONE)
    assert sense(unit.execute(last, b"", ONE)) == (5, 0x21, 0)
    assert bytes(unit.execute(bytes((0x1A, 0, 0x3F, 0, 255, 0)), b"", ONE).data)[4:8] == (2048).to_bytes(4, "big")


@pytest.mark.parametrize("size", [0, 511, 1 << 47])
def test_a_size_that_cannot_be_changes_nothing(unit: Unit, size: int) -> None:
    with pytest.raises(UsageError):
        unit.resize(size)
    assert unit.blocks == 2048
