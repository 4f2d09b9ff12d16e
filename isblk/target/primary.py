"""Commands that every unit has, whatever its type (SPC-4 6), and START STOP UNIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isblk.target import check, pages
from isblk.target.check import Key
from isblk.target.outcome import WITH_ACTIONS, Command, Data, Nexus, Outcome, answer
from isblk.target.outcome import Key as CommandKey

if TYPE_CHECKING:
    from isblk.target.unit import Unit


def _test_unit_ready(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    return Outcome(check.GOOD)


def _request_sense(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    waiting = unit.take_attention(nexus)
    sense = check.fixed_sense(Key.UNIT_ATTENTION, *waiting) if waiting else check.fixed_sense(Key.NO_SENSE, 0, 0)
    return answer(sense, cdb[4])


def _inquiry(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    length = int.from_bytes(cdb[3:5], "big")
    if cdb[1] & 0x01:
        return answer(pages.vital_product_data(unit.identity, cdb[2], nexus.tpgt), length)
    if cdb[1] & 0x02 or cdb[2]:
        raise check.invalid_field()
    return answer(pages.standard_inquiry(unit.identity, len(unit.groups.states) > 1), length)


def _mode_sense_6(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    return answer(pages.mode_parameters(unit.identity, cdb, unit.config.read_only, long_header=False), cdb[4])


def _mode_sense_10(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    data = pages.mode_parameters(unit.identity, cdb, unit.config.read_only, long_header=True)
    return answer(data, int.from_bytes(cdb[7:9], "big"))


def _report_target_port_groups(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SPC-4 6.37; a portal group is a target port group with one relative target port of the same number."""
    layout = cdb[1] >> 5
    if layout > 1:
        raise check.invalid_field()
    body = bytes((0x10, 0, 0, 0)) if layout else b""
    for tag, state in unit.groups.states.items():
        port = tag.to_bytes(2, "big")
        preferred = 0x80 if tag in unit.groups.preferred else 0
        body += bytes((preferred | state.value, 0x8F)) + port + bytes((0, 0, 0, 1)) + b"\0\0" + port
    return answer(len(body).to_bytes(4, "big") + body, int.from_bytes(cdb[6:10], "big"))


def _read_keys(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """PERSISTENT RESERVE IN, READ KEYS (SPC-4 6.15.2). Keys are given by tests; nothing here registers or reserves."""
    body = b"".join(key.to_bytes(8, "big") for key in unit.reservation_keys)
    header = unit.reservation_generation.to_bytes(4, "big") + len(body).to_bytes(4, "big")
    return answer(header + body, int.from_bytes(cdb[7:9], "big"))


def _read_reservation(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """PERSISTENT RESERVE IN, READ RESERVATION and READ FULL STATUS (SPC-4 6.15.3, 6.15.5): nobody has reserved anything."""
    return answer(unit.reservation_generation.to_bytes(4, "big") + bytes(4), int.from_bytes(cdb[7:9], "big"))


def _report_capabilities(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """PERSISTENT RESERVE IN, REPORT CAPABILITIES (SPC-4 6.15.4): no type of reservation can be made."""
    return answer((8).to_bytes(2, "big") + bytes((0, 0x80)) + bytes(4), int.from_bytes(cdb[7:9], "big"))


def _report_operation_codes(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """SPC-4 6.35: every command of the table, or one."""
    length = int.from_bytes(cdb[6:10], "big")
    option, code, action = cdb[2] & 0x07, cdb[3], int.from_bytes(cdb[4:6], "big")
    have = {key: command for key, command in unit.commands.items() if command.allowed(unit)}
    if option == 0:
        body = b"".join(_descriptor(*key, command.length, bool(cdb[2] & 0x80)) for key, command in sorted(have.items()))
        return answer(len(body).to_bytes(4, "big") + body, length)
    has_actions = code in WITH_ACTIONS
    if option > 3 or (option == 1 and has_actions) or (option == 2 and not has_actions):
        raise check.invalid_field()
    command = have.get((code, action if has_actions else 0))
    if command is None or (option == 3 and not has_actions and action):
        return answer(b"\0\x01\0\0", length)
    usage = bytes((code, action if has_actions else 0xFF)) + b"\xff" * (command.length - 3) + b"\0"
    return answer(b"\0\x03" + command.length.to_bytes(2, "big") + usage, length)


def _start_stop_unit(unit: Unit, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
    """There is no motor; stopping writes the cache back (SBC-3 5.20) and the unit stays ready."""
    if not cdb[4] & 0x01 and unit.has_medium:
        unit.store.sync()
    return Outcome(check.GOOD)


def _descriptor(code: int, action: int, length: int, timeouts: bool) -> bytes:
    flags = (0x01 if code in WITH_ACTIONS else 0) | (0x02 if timeouts else 0)
    row = bytes((code, 0)) + action.to_bytes(2, "big") + bytes((0, flags)) + length.to_bytes(2, "big")
    return row + (b"\0\x0a" + bytes(10) if timeouts else b"")


COMMANDS: dict[CommandKey, Command] = {
    (0x00, 0): Command(6, _test_unit_ready, any_device=True),
    (0x03, 0): Command(6, _request_sense, medium=False, any_device=True),
    (0x12, 0): Command(6, _inquiry, medium=False, any_device=True),
    (0x1A, 0): Command(6, _mode_sense_6, medium=False, any_device=True),
    (0x1B, 0): Command(6, _start_stop_unit, medium=False),
    (0x5A, 0): Command(10, _mode_sense_10, medium=False, any_device=True),
    (0x5E, 0x00): Command(10, _read_keys, medium=False, any_device=True),
    (0x5E, 0x01): Command(10, _read_reservation, medium=False, any_device=True),
    (0x5E, 0x02): Command(10, _report_capabilities, medium=False, any_device=True),
    (0x5E, 0x03): Command(10, _read_reservation, medium=False, any_device=True),
    (0xA3, 0x0A): Command(12, _report_target_port_groups, medium=False, any_device=True),
    (0xA3, 0x0C): Command(12, _report_operation_codes, medium=False, any_device=True),
}
