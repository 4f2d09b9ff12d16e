from __future__ import annotations

import pytest

from isblk.target.config import AccessState, LunConfig
from isblk.target.outcome import Nexus, Outcome
from isblk.target.store import Store
from isblk.target.unit import PortGroups, Unit

NEXUS = Nexus("i", b"\x80\0\0\0\0\0", 1)
STORE = Store.in_memory(1 << 20)


@pytest.fixture
def unit() -> Unit:
    return Unit(LunConfig(0), "iqn.2026-11.org.isblk:primary", STORE, PortGroups({1, 2}))


@pytest.fixture
def controller() -> Unit:
    return Unit(LunConfig(0, device_type=0x0C), "iqn.2026-11.org.isblk:primary")


def run(unit: Unit, cdb: str) -> Outcome:
    return unit.execute(bytes.fromhex(cdb).ljust(16, b"\0"), b"", NEXUS)


def test_request_sense_takes_the_attention_that_waits(unit: Unit) -> None:
    unit.nexus_started(NEXUS)
    assert run(unit, "03000000ff00").data[12:14] == b"\x29\0"
    assert run(unit, "03000000ff00").data[2] == 0
    assert run(unit, "00").status == 0


def test_inquiry_is_answered_with_an_attention_pending_and_leaves_it(unit: Unit) -> None:
    unit.nexus_started(NEXUS)
    assert run(unit, "120000002400").status == 0
    assert len(run(unit, "120000002400").data) == 36
    assert run(unit, "00").status == 2


@pytest.mark.parametrize("cdb", ["1200800000ff", "120200 00ff00", "1201c10000ff"])
def test_an_inquiry_for_what_is_not_there_is_an_invalid_field(unit: Unit, cdb: str) -> None:
    outcome = run(unit, cdb)
    assert (outcome.status, outcome.sense[12]) == (2, 0x24)


def test_vital_product_data_through_inquiry(unit: Unit) -> None:
    assert bytes(run(unit, "12018000ff00").data)[4:] == unit.identity.serial.encode()


def test_mode_sense_of_both_sizes(unit: Unit) -> None:
    short, long = run(unit, "1a083f00ff00"), run(unit, "5a083f0000000000ff00")
    assert bytes(short.data)[4:] == bytes(long.data)[8:]


def test_target_port_groups_show_their_states(unit: Unit) -> None:
    unit.groups.change(2, AccessState.STANDBY)
    data = bytes(run(unit, "a30a00000000000000ff0000").data)
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == 24
    assert (data[4], data[6:8], data[14:16]) == (0x00, b"\0\1", b"\0\1")
    assert (data[16], data[18:20]) == (0x02, b"\0\2")
    extended = bytes(run(unit, "a32a00000000000000ff0000").data)
    assert extended[4] == 0x10
    assert extended[8:] == data[4:]
    assert run(unit, "a34a00000000000000ff0000").status == 2


def test_every_supported_operation_code_can_be_asked_for_one_by_one(unit: Unit) -> None:
    data = bytes(run(unit, "a30c00000000000010000000").data)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    rows = [data[at : at + 8] for at in range(4, len(data), 8)]
    assert len(rows) == len(unit.commands)
    for row in rows:
        option = "02" if row[5] & 1 else "01"
        one = bytes(run(unit, f"a30c{option}{row[0]:02x}{row[2:4].hex()}0000 00ff0000").data)
        assert one[1] == 3
        assert one[2:4] == row[6:8]
        assert one[4] == row[0]


def test_operation_codes_with_timeouts_and_those_that_are_not_there(unit: Unit, controller: Unit) -> None:
    data = bytes(run(unit, "a30c80000000000010000000").data)
    assert int.from_bytes(data[:4], "big") == 20 * len(unit.commands)
    assert bytes(run(unit, "a30c01ff0000000000ff0000").data) == b"\0\x01\0\0"
    assert bytes(run(controller, "a30c0128000000 0000ff0000").data) == b"\0\x01\0\0"
    assert run(unit, "a30c019e0000000000ff0000").status == 2
    assert run(unit, "a30c0228000000 0000ff0000").status == 2
    assert bytes(run(unit, "a30c039e0010000000ff0000").data)[1] == 3


def test_a_controller_has_the_primary_commands_alone(controller: Unit) -> None:
    assert run(controller, "00").status == 0
    assert run(controller, "120000002400").data[0] == 0x0C
    for cdb in ("28" + "00" * 9, "25" + "00" * 9, "35" + "00" * 9, "1b0000000000"):
        outcome = run(controller, cdb)
        assert (outcome.status, outcome.sense[12]) == (2, 0x20)


def test_stopping_the_unit_writes_its_cache_back(unit: Unit) -> None:
    unit.put(0, b"z" * 512, through=False)
    run(unit, "1b0000000100")
    assert STORE.durable(0, 1) != b"z"
    run(unit, "1b0000000000")
    assert STORE.durable(0, 1) == b"z"


def test_no_reservation_key_is_registered_unless_a_test_says_so(unit: Unit) -> None:
    assert bytes(run(unit, "5e000000000000004000").data) == bytes(8)
    unit.reservation_keys, unit.reservation_generation = (1, 0xFF00000000000000), 3
    whole = bytes.fromhex("00000003 00000010 0000000000000001 ff00000000000000")
    assert bytes(run(unit, "5e000000000000004000").data) == whole
    assert bytes(run(unit, "5e000000000000000c00").data) == whole[:12]
    for nothing in ("5e010000000000004000", "5e030000000000004000"):
        assert bytes(run(unit, nothing).data) == bytes.fromhex("00000003 00000000")
    assert bytes(run(unit, "5e020000000000004000").data) == bytes.fromhex("0008 00 80 00000000")
    refused = run(unit, "5e040000000000004000")
    assert refused.status == 2 and bytes(refused.sense)[12:14] == b"\x24\x00"


def test_the_preferred_group_is_marked() -> None:
    unit = Unit(LunConfig(0), "iqn.2026-11.org.isblk:primary", STORE, PortGroups({1, 2}))
    unit.groups.preferred = {2}
    data = bytes(run(unit, "a30a00000000000000ff0000").data)
    assert (data[4], data[12 + 4]) == (0x00, 0x80)
