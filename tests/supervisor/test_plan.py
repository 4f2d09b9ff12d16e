"""What a reload does with each export."""

from __future__ import annotations

import pytest

from isblk.supervisor.plan import OWN, Plan, compare
from isblk.table.entry import Entry, parse

NAME = "iqn.2001-05.com.example:disks"


def entries(*lines: str) -> list[Entry]:
    table = parse("/etc/isblk/isblktab", "\n".join(f"{NAME} {line}" for line in lines))
    assert not table.problems
    return list(table.entries)


def planned(before: str, now: str, is_wanted: bool = True) -> str:
    """The one list that the one entry at /a is in."""
    found = compare({entry.where: (entry, is_wanted) for entry in entries(before)}, entries(now)).to_json()
    (name,) = [name for name, places in found.items() if places]
    assert found[name] == ["/a"]
    return name


def test_what_is_new_is_started_and_what_is_gone_stopped() -> None:
    before = {entry.where: (entry, True) for entry in entries("/a fuse", "/b fuse")}
    plan = compare(before, entries("/b fuse", "/c fuse", "/d fuse noauto"))
    assert plan.to_json() == {"start": ["/c"], "stop": ["/a"], "restart": [], "change": [], "keep": ["/b"], "leave_down": ["/d"]}


def test_a_line_that_moved_is_not_touched() -> None:
    before = {entry.where: (entry, True) for entry in entries("/a fuse ro", "/b fuse")}
    assert compare(before, entries("/b fuse", "/new fuse", "/a   fuse   ro")).keep == entries("/b fuse", "/new fuse", "/a   fuse   ro")[::2]


@pytest.mark.parametrize("option", ["nofail", "timeout=5", "retry=5", "retry=never", "noauto", "auto"])
def test_the_tables_own_options_change_in_place(option: str) -> None:
    assert planned("/a fuse ro", f"/a fuse ro,{option}") == "change"
    assert planned(f"/a fuse {option},ro", "/a fuse ro") == "change"
    assert option.split("=")[0] in OWN


@pytest.mark.parametrize("option", ["policy=round-robin", "failback=manual", "no-path-retry=5", "replacement-timeout=5", "fence=fast"])
def test_what_a_daemon_can_be_told_changes_in_place_but_for_an_automount(option: str) -> None:
    assert planned("/a fuse ro", f"/a fuse ro,{option}") == "change"
    assert planned(f"/a fuse {option},ro", "/a fuse ro,nofail") == "change"
    assert planned("/a fuse automount", f"/a fuse automount,{option}") == "restart"
    assert planned("/a fuse automount", f"/a fuse {option}") == "restart"


@pytest.mark.parametrize(
    ("before", "now"),
    [("/a fuse", "/a fuse ro"), ("/a fuse", "/a nbd"), ("/a fuse portal=a", "/a fuse portal=b"), ("/a fuse shared", "/a fuse")],
)
def test_what_a_command_sees_needs_another_process(before: str, now: str) -> None:
    assert planned(before, now) == "restart"


def test_another_target_needs_another_process() -> None:
    other = parse("tab", "iqn.2001-05.com.example:other /a fuse").entries
    assert compare({"/a": (entries("/a fuse")[0], True)}, other).restart == list(other)


def test_what_somebody_has_ended_stays_down_unless_the_table_now_wants_it() -> None:
    assert planned("/a fuse", "/a fuse ro", is_wanted=False) == "leave_down"
    assert planned("/a fuse noauto", "/a fuse noauto", is_wanted=False) == "leave_down"
    assert planned("/a fuse noauto", "/a fuse", is_wanted=False) == "start"


def test_nothing_of_nothing() -> None:
    assert compare({}, []) == Plan()
