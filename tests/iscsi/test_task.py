"""A task counts its bytes and tells whoever waits."""

from __future__ import annotations

from isblk.iscsi.task import AsyncMessage, Exchange, Kind, Task
from support.scripts import LUN_1, READ_CDB, WRITE_CDB


def test_a_task_is_as_long_as_its_memory() -> None:
    assert Task(LUN_1, READ_CDB, memoryview(bytearray(512))).length == 512
    assert Task(LUN_1, WRITE_CDB, None, memoryview(b"abc")).length == 3
    assert Task(LUN_1, bytes(6)).length == 0


def test_a_finished_task_tells_whoever_waits() -> None:
    told: list[Task] = []
    task = Task(LUN_1, bytes(6), done=told.append)
    task.finished()
    assert told == [task]


def test_nobody_need_wait() -> None:
    task = Task(LUN_1, bytes(6))
    task.finished()
    assert task.error is None


def test_a_new_task_has_no_result_and_no_tag() -> None:
    task = Task(LUN_1, READ_CDB)
    assert (task.itt, task.status, task.sense, task.residual, task.transferred, task.error) == (-1, 0, b"", 0, 0, None)


def test_a_task_tells_its_progress_and_only_the_opcode_of_its_cdb() -> None:
    assert repr(Task(LUN_1, READ_CDB, memoryview(bytearray(512)))) == "<Task itt=-1 cdb=28 0/512>"


def test_tasks_with_the_same_content_are_different_tasks() -> None:
    assert len({Task(LUN_1, READ_CDB), Task(LUN_1, READ_CDB)}) == 2


def test_exchanges_do_not_share_their_text() -> None:
    one = Exchange(Kind.TEXT, lambda _: None, text=bytearray())
    other = Exchange(Kind.TEXT, lambda _: None, text=bytearray())
    assert one.text is not None
    one.text += b"x"
    assert not other.text


def test_an_async_message_is_what_came() -> None:
    message = AsyncMessage(1, 0, (0, 0, 5), LUN_1, b"")
    assert message == AsyncMessage(1, 0, (0, 0, 5), LUN_1, b"")
