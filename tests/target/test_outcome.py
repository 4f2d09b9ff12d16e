from __future__ import annotations

from isblk.target.config import LunConfig
from isblk.target.outcome import Command, Nexus, Outcome, answer, key_of
from isblk.target.store import Store
from isblk.target.unit import Unit


def test_a_service_action_is_part_of_the_key_only_where_the_code_has_them() -> None:
    assert key_of(bytes((0x9E, 0x10))) == (0x9E, 0x10)
    assert key_of(bytes((0xA3, 0xEC))) == (0xA3, 0x0C)
    assert key_of(bytes((0x28, 0x18))) == (0x28, 0)


def test_an_answer_is_cut_to_the_allocation_length_without_an_error() -> None:
    assert answer(b"abcdef", 4) == Outcome(0, b"", b"abcd")
    assert answer(b"abc", 100).data == b"abc"


def test_a_command_exists_where_its_unit_can_do_it() -> None:
    def run(unit: Unit, cdb: bytes, data_out: object, nexus: Nexus) -> Outcome:
        return Outcome(0)

    store = Store.in_memory(4096)
    disk, thick, other = Unit(LunConfig(0), "t", store), Unit(LunConfig(1, thin=False), "t", store), Unit(LunConfig(2, device_type=12), "t")
    rows = [Command(6, run), Command(6, run, thin=True), Command(6, run, any_device=True)]
    assert [[row.allowed(unit) for unit in (disk, thick, other)] for row in rows] == [
        [True, True, False],
        [True, False, False],
        [True, True, True],
    ]
    store.close()
