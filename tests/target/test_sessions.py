from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi import pdu
from isblk.iscsi.pdu import TaskManagement
from isblk.iscsi.text import encode_pairs
from isblk.target.config import Reinstatement
from isblk.target.outcome import Nexus
from isblk.target.sessions import DISCOVERY, NORMAL, Node, Session, serial_less
from support.rawinitiator import INITIATOR_NAME, ISID, Answer, RawInitiator, logged_in, write10
from support.targets import configuration, disk

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


# Reinstatement while a unit still works on a write of the old session


OTHER_ISID = b"\x80\0\0\0\0\x09"


def held_write(kind: Reinstatement, **settings: Any) -> RawInitiator:
    """An initiator with a complete write that its unit still works on."""
    initiator = logged_in(configuration((disk(0),), reinstatement=kind, **settings))
    initiator.node.hold = lambda lun, cdb: cdb[0] == 0x2A
    assert initiator.command(write10(0, 1), write=512, data=b"old!" * 128) == []
    initiator.node.hold = None
    return initiator


def first_bytes(initiator: RawInitiator) -> bytes:
    return bytes(initiator.node.units.units[0].store.read(0, 4))


def try_again(initiator: RawInitiator) -> tuple[RawInitiator, list[Answer]]:
    """A second login with the same ISID; what the target answers at once."""
    again = RawInitiator(initiator.node)
    text = encode_pairs([("InitiatorName", INITIATOR_NAME), ("TargetName", initiator.node.config.name)])
    bhs = pdu.INITIATOR.pack(pdu.LOGIN | pdu.IMMEDIATE, 0x87, 0, len(text), ISID + b"\0\0", 0, 0, again.cmd_sn, 0, 0, 0, 0, 0)
    return again, again.send(bhs, text)


@pytest.mark.parametrize("noticed", [False, True])
@pytest.mark.parametrize("kind, late", [(Reinstatement.TERMINATE, b"new!"), (Reinstatement.AT_ONCE, b"old!")])
def test_a_reinstating_login_is_answered_at_once_and_an_old_write_lands_late_or_never(
    kind: Reinstatement, late: bytes, noticed: bool
) -> None:
    old = held_write(kind)
    if noticed:
        old.connection.lost()
    new, (answer,) = try_again(old)
    assert answer.login_status == 0
    assert old.connection.dropped
    assert [session.link for session in old.node.sessions.values()] == [new.connection]
    new.clear_attention()
    assert new.command(write10(0, 1), write=512, data=b"new!" * 128)[0].status == 0
    old.node.release()
    assert first_bytes(old) == late
    assert not old.node.departed
    assert not old.connection.tasks
    old.node.units.close()


@pytest.mark.parametrize("noticed", [False, True])
def test_a_login_waits_for_the_old_write_to_end(noticed: bool) -> None:
    old = held_write(Reinstatement.WAIT)
    if noticed:
        old.connection.lost()
    new, answers = try_again(old)
    assert answers == []
    assert old.connection.dropped
    assert not old.node.sessions
    woken = []
    new.connection.wake = lambda: woken.append(True)
    old.node.release()
    assert woken
    assert first_bytes(old) == b"old!"
    (answer,) = new.collect()
    assert (answer.opcode, answer.login_status) == (pdu.LOGIN_RESPONSE, 0)
    (attention,) = new.command(bytes(6))
    assert attention.sense[12:14] == (b"\x29\0" if noticed else b"\x29\x07")
    old.node.units.close()


def test_a_login_that_waits_goes_on_when_the_old_write_is_aborted() -> None:
    old = held_write(Reinstatement.WAIT)
    other = RawInitiator(old.node)
    other.log_in(isid=OTHER_ISID)
    new, answers = try_again(old)
    assert answers == []
    reset = other.request(pdu.TASK_MANAGEMENT, 0x80 | TaskManagement.LOGICAL_UNIT_RESET, w20=pdu.RESERVED_TAG, immediate=True)
    assert [answer.opcode for answer in reset] == [pdu.TASK_MANAGEMENT_RESPONSE]
    assert new.collect()[0].login_status == 0
    old.node.release()
    assert first_bytes(old) == bytes(4)
    old.node.units.close()


def test_a_login_that_waits_may_give_up_and_may_not_hurry() -> None:
    old = held_write(Reinstatement.WAIT)
    gone, _ = try_again(old)
    gone.connection.lost()
    hasty, _ = try_again(old)
    assert hasty.login_request([], 0x87).login_status == 0x0200
    last, _ = try_again(old)
    old.node.release()
    assert last.collect()[0].login_status == 0
    assert [session.link for session in old.node.sessions.values()] == [last.connection]
    assert gone.connection.session is None
    old.node.units.close()


def test_another_initiator_port_waits_for_nobody() -> None:
    old = held_write(Reinstatement.WAIT)
    assert RawInitiator(old.node).log_in(isid=OTHER_ISID).login_status == 0
    assert not old.connection.dropped
    old.node.units.close()


def test_a_login_is_refused_while_the_old_session_or_its_write_is_there() -> None:
    old = held_write(Reinstatement.REFUSE)
    refused, (answer,) = try_again(old)
    assert answer.login_status == 0x0206
    assert refused.connection.closing
    assert not old.connection.dropped
    old.connection.lost()
    assert try_again(old)[1][0].login_status == 0x0206
    old.node.release()
    assert first_bytes(old) == b"old!"
    assert try_again(old)[1][0].login_status == 0
    old.node.units.close()


def test_a_write_that_outlived_its_connection_is_aborted_by_a_unit_reset() -> None:
    old = held_write(Reinstatement.AT_ONCE)
    new, _ = try_again(old)
    new.clear_attention()
    (answer,) = new.request(pdu.TASK_MANAGEMENT, 0x80 | TaskManagement.LOGICAL_UNIT_RESET, w20=pdu.RESERVED_TAG, immediate=True)
    assert answer.second == 0
    assert not old.node.departed
    old.node.release()
    assert first_bytes(old) == bytes(4)
    old.node.units.close()


def test_a_write_whose_data_has_not_come_ends_with_its_connection() -> None:
    old = logged_in(configuration((disk(0),), reinstatement=Reinstatement.AT_ONCE), ("InitialR2T", "Yes"), ("ImmediateData", "No"))
    old.node.hold = lambda lun, cdb: True
    old.command(write10(0, 1), write=512)
    old.connection.lost()
    assert not old.connection.tasks
    assert not old.node.departed
    old.node.units.close()


def test_a_crash_forgets_what_outlived_its_connection() -> None:
    old = held_write(Reinstatement.WAIT)
    old.connection.lost()
    waiting, answers = try_again(old)
    assert answers == []
    old.node.crash()
    assert waiting.collect()[0].login_status == 0
    old.node.release()
    assert first_bytes(old) == bytes(4)
    old.node.units.close()
