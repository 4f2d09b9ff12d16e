from __future__ import annotations

from collections.abc import Iterator

import pytest

from isblk.iscsi import pdu
from isblk.iscsi.pdu import TaskManagement
from isblk.target.luns import encode_lun
from support.rawinitiator import Answer, RawInitiator, logged_in, read10, write10
from support.targets import configuration, disk

COMPLETE, NO_TASK, NO_LUN, NO_REASSIGN, NOT_SUPPORTED = 0, 1, 2, 4, 5


@pytest.fixture
def initiator() -> Iterator[RawInitiator]:
    made = logged_in(configuration((disk(0), disk(1))), ("InitialR2T", "Yes"), ("MaxOutstandingR2T", "1"), ("MaxBurstLength", "512"))
    made.node.hold = lambda lun, cdb: cdb[0] == 0x28
    yield made
    made.node.units.close()


def manage(initiator: RawInitiator, function: int, lun: int = 0, ref_itt: int = pdu.RESERVED_TAG, ref_cmd_sn: int = 0) -> list[Answer]:
    return initiator.request(pdu.TASK_MANAGEMENT, 0x80 | function, lun=encode_lun(lun), w20=ref_itt, w32=ref_cmd_sn, immediate=True)


def only(answers: list[Answer]) -> int:
    (answer,) = answers
    assert answer.opcode == pdu.TASK_MANAGEMENT_RESPONSE
    return answer.second


def test_an_aborted_task_is_never_answered(initiator: RawInitiator) -> None:
    assert initiator.command(read10(0, 1), read=512) == []
    held = initiator.itt
    before = initiator.connection.session
    assert before is not None
    assert before.in_progress == 1
    assert only(manage(initiator, TaskManagement.ABORT_TASK, ref_itt=held, ref_cmd_sn=initiator.cmd_sn - 1)) == COMPLETE
    assert before.in_progress == 0
    initiator.node.release()
    assert initiator.collect() == []


def test_a_task_that_has_gone_does_not_exist(initiator: RawInitiator) -> None:
    initiator.command(bytes(6))
    assert only(manage(initiator, TaskManagement.ABORT_TASK, ref_itt=initiator.itt, ref_cmd_sn=initiator.cmd_sn - 1)) == NO_TASK


def test_a_command_that_has_not_come_yet_is_taken_as_come_and_ignored_when_it_does(initiator: RawInitiator) -> None:
    missing = initiator.next_cmd_sn()
    (answer,) = manage(initiator, TaskManagement.ABORT_TASK, ref_itt=99, ref_cmd_sn=missing)
    assert answer.second == COMPLETE
    assert answer.exp_cmd_sn == initiator.cmd_sn
    assert initiator.command(bytes(6), cmd_sn=missing, itt=99) == []


def test_a_task_set_is_aborted_for_one_lun_only(initiator: RawInitiator) -> None:
    initiator.command(read10(0, 1), read=512, lun=0)
    initiator.command(read10(0, 1), read=512, lun=1)
    survivor = initiator.itt
    assert only(manage(initiator, TaskManagement.ABORT_TASK_SET, lun=0)) == COMPLETE
    initiator.node.release()
    assert [answer.itt for answer in initiator.collect()] == [survivor]


def test_the_answer_waits_for_data_that_was_asked_for(initiator: RawInitiator) -> None:
    (r2t,) = initiator.command(write10(0, 3), write=1536)
    writer = initiator.itt
    assert manage(initiator, TaskManagement.LOGICAL_UNIT_RESET) == []
    assert initiator.data_out(b"x" * 100, 0, itt=writer, ttt=r2t.ttt, final=False) == []
    (answer,) = initiator.data_out(b"", 100, data_sn=1, itt=writer, ttt=r2t.ttt)
    assert (answer.opcode, answer.second) == (pdu.TASK_MANAGEMENT_RESPONSE, COMPLETE)
    (attention,) = initiator.command(bytes(6))
    assert attention.sense[12:14] == b"\x29\x03"
    assert initiator.node.units.units[0].store.read(0, 512) == bytes(512)


def test_data_for_an_aborted_task_is_ignored(initiator: RawInitiator) -> None:
    (r2t,) = initiator.command(write10(0, 1), write=512)
    writer = initiator.itt
    assert only(manage(initiator, TaskManagement.ABORT_TASK, ref_itt=writer)) == COMPLETE
    assert initiator.data_out(b"x" * 512, 0, itt=writer, ttt=r2t.ttt) == []
    assert not initiator.connection.closing


def test_a_unit_reset_reaches_the_tasks_of_other_sessions(initiator: RawInitiator) -> None:
    other = RawInitiator(initiator.node)
    other.log_in(isid=b"\x80\0\0\0\0\x09")
    other.clear_attention()
    other.command(read10(0, 1), read=512)
    assert only(manage(initiator, TaskManagement.LOGICAL_UNIT_RESET)) == COMPLETE
    initiator.node.release()
    assert other.collect() == []
    found = [other.command(bytes(6))[0].sense[12:14] for _ in range(2)]
    assert found == [b"\x2f\0", b"\x29\x03"]


def test_a_missing_lun_and_functions_that_are_not_there(initiator: RawInitiator) -> None:
    assert only(manage(initiator, TaskManagement.LOGICAL_UNIT_RESET, lun=9)) == NO_LUN
    assert only(manage(initiator, TaskManagement.TASK_REASSIGN)) == NO_REASSIGN
    assert only(manage(initiator, TaskManagement.CLEAR_ACA)) == NOT_SUPPORTED
    assert only(manage(initiator, 99)) == NOT_SUPPORTED


def test_a_warm_reset_clears_every_unit_and_a_cold_one_every_connection(initiator: RawInitiator) -> None:
    initiator.command(read10(0, 1), read=512, lun=1)
    assert only(manage(initiator, TaskManagement.TARGET_WARM_RESET)) == COMPLETE
    assert not initiator.connection.tasks
    for lun in (0, 1):
        assert initiator.command(bytes(6), lun=lun)[0].sense[12:14] == b"\x29\x03"
    assert manage(initiator, TaskManagement.TARGET_COLD_RESET) == []
    assert initiator.connection.dropped
    assert not initiator.node.sessions


def test_a_function_that_is_not_immediate_waits_for_its_turn(initiator: RawInitiator) -> None:
    skipped = initiator.next_cmd_sn()
    later = initiator.request(pdu.TASK_MANAGEMENT, 0x80 | TaskManagement.TARGET_WARM_RESET)
    assert later == []
    answers = initiator.command(bytes(6), cmd_sn=skipped)
    assert [answer.opcode for answer in answers] == [pdu.SCSI_RESPONSE, pdu.TASK_MANAGEMENT_RESPONSE]


def test_a_unit_reset_takes_a_held_write_away_before_it_is_answered(initiator: RawInitiator) -> None:
    initiator.node.hold = lambda lun, cdb: cdb[0] == 0x2A
    other = RawInitiator(initiator.node)
    other.log_in(isid=b"\x80\0\0\0\0\x09")
    other.clear_attention()
    other.command(write10(0, 1), write=512, data=b"x" * 512)
    assert only(manage(initiator, TaskManagement.LOGICAL_UNIT_RESET)) == COMPLETE
    assert not other.connection.tasks
    initiator.node.release()
    assert initiator.node.units.units[0].store.read(0, 512) == bytes(512)


def test_a_unit_reset_may_be_missing() -> None:
    without = logged_in(configuration((disk(0),), lun_reset=False))
    assert only(manage(without, TaskManagement.LOGICAL_UNIT_RESET)) == NOT_SUPPORTED
    assert only(manage(without, TaskManagement.ABORT_TASK_SET)) == COMPLETE
    without.node.units.close()
