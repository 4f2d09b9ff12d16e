from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.target.outcome import Nexus
from isblk.target.sessions import DISCOVERY, NORMAL, Node, Session, serial_less
from support.targets import configuration

NEXUS = Nexus("one", b"\x80\0\0\0\0\1", 1)
WORDS = st.integers(0, 0xFFFFFFFF)


class FakeLink:
    def __init__(self) -> None:
        self.log: list[object] = []

    def drop(self, reason: str) -> None:
        self.log.append("drop")

    def pump(self) -> None:
        self.log.append("pump")

    def abort_tasks(self, lun: bytes | None) -> None:
        self.log.append(lun)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(configuration())
    yield made
    made.units.close()


def test_serial_numbers_compare_across_the_wrap() -> None:
    assert serial_less(0xFFFFFFFF, 0)
    assert not serial_less(0, 0xFFFFFFFF)
    assert not serial_less(5, 5)


@given(WORDS, st.integers(1, 0x7FFFFFFF))
def test_a_number_is_below_the_ones_that_follow_it(start: int, step: int) -> None:
    assert serial_less(start, (start + step) & 0xFFFFFFFF)
    assert not serial_less((start + step) & 0xFFFFFFFF, start)


def test_a_window_closes_as_commands_are_in_progress_and_never_moves_back() -> None:
    session = Session(NEXUS, NORMAL, 1, 0, FakeLink(), 4)
    session.exp_cmd_sn = 0xFFFFFFFE
    assert session.max_cmd_sn == 1
    assert [session.in_window(number) for number in (0xFFFFFFFD, 0xFFFFFFFE, 0, 1, 2)] == [False, True, True, True, False]
    for _ in range(4):
        session.exp_cmd_sn = (session.exp_cmd_sn + 1) & 0xFFFFFFFF
        session.in_progress += 1
        assert session.max_cmd_sn == 1
    assert session.exp_cmd_sn == 2
    assert not session.in_window(2)
    session.in_progress -= 1
    assert session.max_cmd_sn == 2


def test_the_same_initiator_port_takes_over_its_session(node: Node) -> None:
    old, new = FakeLink(), FakeLink()
    first = node.open_session(NEXUS, NORMAL, 0, old, 8)
    node.close_session(first, new)
    assert node.sessions == {first.tsih: first}
    node.open_session(NEXUS._replace(isid=b"\x80\0\0\0\0\2"), NORMAL, 0, FakeLink(), 8)
    node.open_session(NEXUS, DISCOVERY, 0, FakeLink(), 8)
    assert old.log == []
    second = node.open_session(NEXUS, NORMAL, 0, new, 8)
    assert old.log == ["drop"]
    assert second.tsih != first.tsih
    assert node.logins == 4


def test_a_handle_is_never_zero_and_never_used_twice(node: Node) -> None:
    node._next_tsih = 0xFFFE
    handles = [node.open_session(NEXUS._replace(initiator=str(n)), NORMAL, 0, FakeLink(), 8).tsih for n in range(3)]
    assert handles == [0xFFFF, 1, 2]


def test_release_runs_the_oldest_first_and_pumps_every_connection(node: Node) -> None:
    link, ran = FakeLink(), list[int]()
    node.open_session(NEXUS, NORMAL, 0, link, 8)
    node.held = [lambda: ran.append(1), lambda: ran.append(2), lambda: ran.append(3)]
    assert node.release(1) == 1
    assert ran == [1]
    assert node.release() == 2
    assert ran == [1, 2, 3]
    assert link.log == ["pump", "pump"]
    assert node.release() == 0


def test_a_crash_drops_everybody_and_what_is_not_synchronized(node: Node) -> None:
    link = FakeLink()
    node.open_session(NEXUS, NORMAL, 0, link, 8)
    unit = node.units.units[0]
    unit.put(0, b"x" * 512, through=False)
    node.held = [lambda: pytest.fail("a held command ran after the crash")]
    node.crash()
    node.release()
    assert link.log[0] == "drop"
    assert unit.store.read(0, 512) == bytes(512)


def test_an_abort_reaches_the_other_sessions_only(node: Node) -> None:
    mine, other = FakeLink(), FakeLink()
    node.open_session(NEXUS, NORMAL, 0, mine, 8)
    node.open_session(NEXUS._replace(initiator="two"), NORMAL, 0, other, 8)
    node.abort_elsewhere(bytes(8), mine)
    assert (mine.log, other.log) == ([], [bytes(8)])
