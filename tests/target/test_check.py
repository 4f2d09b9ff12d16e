from __future__ import annotations

from isblk.target import check
from isblk.target.check import Check, Key, fixed_sense


def test_fixed_sense_has_its_fields_where_spc_puts_them() -> None:
    sense = fixed_sense(Key.ILLEGAL_REQUEST, 0x21, 0x00, 0x12345678)
    assert sense == bytes.fromhex("f00005123456780a000000002100000000 00".replace(" ", ""))
    assert len(sense) == 18


def test_information_that_does_not_fit_is_left_out_as_not_valid() -> None:
    sense = fixed_sense(Key.ILLEGAL_REQUEST, 0x21, 0x00, 1 << 32)
    assert sense[0] == 0x70
    assert sense[3:7] == bytes(4)


def test_a_check_says_what_it_is_and_carries_the_sense() -> None:
    failed = Check(Key.UNIT_ATTENTION, 0x29, 0x07)
    assert str(failed) == "UNIT_ATTENTION 29/07"
    assert (failed.sense[2], failed.sense[12], failed.sense[13]) == (6, 0x29, 0x07)


def test_each_kind_of_failure_has_its_own_sense() -> None:
    made = [
        check.invalid_opcode(),
        check.out_of_range(7),
        check.invalid_field(),
        check.no_such_unit(),
        check.invalid_parameter(),
        check.short_parameter_list(),
        check.write_protected(),
        check.no_space(),
    ]
    triples = [(each.sense[2], each.sense[12], each.sense[13]) for each in made]
    assert triples == [(5, 0x20, 0), (5, 0x21, 0), (5, 0x24, 0), (5, 0x25, 0), (5, 0x26, 0), (5, 0x1A, 0), (7, 0x27, 0), (7, 0x27, 7)]
