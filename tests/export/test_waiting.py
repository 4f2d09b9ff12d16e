"""A request that wakes the task which sleeps on it, and needs none."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from isblk.block.request import Op
from isblk.export.waiting import Waiting


async def test_the_task_that_sleeps_on_a_request_is_woken_by_its_end() -> None:
    request = Waiting(Op.READ, 0, 4, memoryview(bytearray(4)))
    order: list[str] = []

    async def sleeper() -> None:
        request.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(lambda _raise: trio.lowlevel.Abort.FAILED)
        order.append("woken")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await wait_all_tasks_blocked()
        order.append("finish")
        request.finish()
    assert order == ["finish", "woken"]


def test_a_request_may_finish_before_anybody_sleeps() -> None:
    request = Waiting(Op.FLUSH)
    request.finish()
    assert request.finished and request.error is None
