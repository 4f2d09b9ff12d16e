"""One request as several: order, window, errors, and ends that come at once."""

from __future__ import annotations

import pytest

from isblk.block.request import Op, Request
from isblk.block.series import WINDOW, Series, pieces
from isblk.errors import PathLost
from support.memorydevice import MemoryDevice, Seen, broken


def start(device: MemoryDevice, length: int, most: int, op: Op = Op.READ) -> Request:
    data = memoryview(bytearray(length)) if op in (Op.READ, Op.WRITE) else None
    request = Request(op, 512, length, data, fua=op is Op.WRITE)
    Series(request, pieces(request, most), device.submit, device.kick).start()
    return request


@pytest.mark.parametrize(("length", "most", "count"), [(512, 512, 1), (1024, 512, 2), (1536, 1024, 2), (10 * 512, 512, 10), (0, 512, 0)])
@pytest.mark.parametrize("hold", [True, False])
def test_pieces_cover_the_request_in_order(length: int, most: int, count: int, hold: bool) -> None:
    device = MemoryDevice(16384, hold=hold)
    device.content[:] = bytes(number // 512 + 1 for number in range(16384))
    request = start(device, length, most)
    device.complete_all()
    assert request.finished and request.error is None
    assert request.data is not None and bytes(request.data) == device.content[512 : 512 + length]
    assert len(device.requests) == count
    assert [seen.offset for seen in device.requests] == [512 + at * most for at in range(count)]


def test_pieces_keep_operation_data_and_fua() -> None:
    device = MemoryDevice(16384)
    start(device, 1536, 1024, Op.WRITE)
    assert device.requests == [Seen(Op.WRITE, 512, 1024, True), Seen(Op.WRITE, 1536, 512, True)]


def test_few_pieces_are_on_their_way_at_once_and_each_end_sends_another() -> None:
    device = MemoryDevice(16384, hold=True)
    request = start(device, 10 * 512, 512)
    for left in range(10, 0, -1):
        assert not request.finished
        assert len(device.pending) == min(WINDOW, left)
        device.complete(len(device.pending) - 1)
    assert request.finished and device.kicks >= 6


def test_the_first_error_stops_the_series_and_waits_for_what_is_on_its_way() -> None:
    device = MemoryDevice(16384, hold=True)
    request = start(device, 10 * 512, 512)
    first, second = broken(1), broken(2)
    device.complete(1, first)
    device.complete(0, second)
    assert not request.finished
    device.complete_all()
    assert request.error is first
    assert len(device.requests) == WINDOW


def test_an_error_that_comes_at_once_stops_the_series() -> None:
    device = MemoryDevice(16384)
    device.fail_next = [broken(5)]
    request = start(device, 10 * 512, 512)
    assert request.error is not None and len(device.requests) == 1


def test_many_pieces_that_finish_at_once_do_not_pile_up_on_the_stack() -> None:
    request = start(MemoryDevice(1 << 22), 4000 * 512, 512)
    assert request.finished


def test_a_part_that_may_still_be_done_outweighs_every_other_error() -> None:
    """Else the whole would be repeated, or reported, while a piece of it can land later (block/fence.py)."""
    for first in (broken(), PathLost("not sent", sent=False)):
        device = MemoryDevice(16384, hold=True)
        request = start(device, 10 * 512, 512, Op.WRITE)
        sent = PathLost("sent")
        device.complete(0, first)
        device.complete(0, sent)
        while device.pending:
            device.complete(0, PathLost("not sent", sent=False))
        assert request.error is sent
