"""The gate: what may pass, what is counted, and when nothing is in flight."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.block import request as blocks
from isblk.block.gate import Gate
from isblk.block.request import Op, Request
from isblk.errors import RequestFailed, RequestInvalid
from support.memorydevice import MemoryDevice

SIZE = 8192


def asked(gate: Gate, op: Op, offset: int = 0, length: int = 512, data: memoryview | None = None) -> Request:
    if data is None and op in (Op.READ, Op.WRITE):
        data = memoryview(bytearray(max(length, 0)))
    request = Request(op, offset, length, data)
    gate.submit(request)
    return request


def test_a_request_passes_and_its_own_callback_is_called_once() -> None:
    gate = Gate(MemoryDevice(SIZE))
    told: list[Request] = []
    request = Request(Op.READ, 0, 512, memoryview(bytearray(512)), done=told.append)
    gate.submit(request)
    assert told == [request] and request.error is None and gate.in_flight == 0
    assert request.done == told.append, "the request is its owner's again, callback and all"


def test_a_request_may_be_used_again_from_its_own_callback() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    count = 0

    def again(request: Request) -> None:
        nonlocal count
        count += 1
        if count < 3:
            request.renew()
            gate.submit(request)

    gate.submit(Request(Op.READ, 0, 512, memoryview(bytearray(512)), done=again))
    for _ in range(3):
        device.pending.pop().finish()
    assert count == 3 and gate.in_flight == 0 and gate.counters.requests[Op.READ] == 3


@pytest.mark.parametrize(
    "op, offset, length, number",
    [
        (Op.READ, -512, 512, errno.EINVAL),
        (Op.READ, 0, 0, errno.EINVAL),
        (Op.TRIM, 0, 0, errno.EINVAL),
        (Op.ZERO, 0, -512, errno.EINVAL),
        (Op.READ, SIZE, 512, errno.EINVAL),
        (Op.READ, SIZE - 256, 512, errno.EINVAL),
        (Op.WRITE, SIZE - 256, 512, errno.ENOSPC),
        (Op.TRIM, SIZE - 256, 512, errno.ENOSPC),
        (Op.ZERO, SIZE, 1, errno.ENOSPC),
        (Op.WRITE, 1 << 70, 512, errno.ENOSPC),
    ],
)
def test_a_range_that_cannot_be_is_refused_and_never_reaches_the_device(op: Op, offset: int, length: int, number: int) -> None:
    device = MemoryDevice(SIZE)
    gate = Gate(device)
    request = asked(gate, op, offset, length)
    assert isinstance(request.error, RequestInvalid) and request.error.errno == number
    assert device.requests == [] and gate.counters.errors == 1 and gate.in_flight == 0


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
def test_data_must_be_there_and_as_long_as_the_request(op: Op) -> None:
    gate = Gate(MemoryDevice(SIZE))
    without = Request(op, 0, 512)
    gate.submit(without)
    short = asked(gate, op, 0, 512, memoryview(bytearray(511)))
    assert isinstance(without.error, RequestInvalid) and isinstance(short.error, RequestInvalid)


def test_the_last_bytes_may_be_read_and_written() -> None:
    gate = Gate(MemoryDevice(SIZE))
    assert asked(gate, Op.READ, SIZE - 512).error is None
    assert asked(gate, Op.WRITE, SIZE - 512).error is None


@pytest.mark.parametrize("op", [Op.WRITE, Op.TRIM, Op.ZERO])
def test_a_read_only_device_is_not_changed(op: Op) -> None:
    gate = Gate(MemoryDevice(SIZE, read_only=True))
    request = asked(gate, op)
    assert isinstance(request.error, RequestInvalid) and request.error.errno == errno.EROFS
    assert asked(gate, Op.READ).error is None and asked(gate, Op.FLUSH, 0, 0).error is None


def test_a_device_that_cannot_discard_is_not_asked_to() -> None:
    device = MemoryDevice(SIZE)
    device.geometry = replace(device.geometry, can_trim=False)
    request = asked(Gate(device), Op.TRIM)
    assert isinstance(request.error, RequestInvalid) and request.error.errno == errno.EOPNOTSUPP


def test_a_resize_holds_from_the_next_request_on() -> None:
    device = MemoryDevice(SIZE)
    gate = Gate(device)
    assert asked(gate, Op.READ, SIZE).error is not None
    device.resize(2 * SIZE)
    assert asked(gate, Op.READ, SIZE).error is None and gate.geometry.size == 2 * SIZE


def test_a_closed_gate_takes_nothing_more_and_lets_what_is_in_flight_finish() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    early = asked(gate, Op.READ)
    gate.close()
    late = asked(gate, Op.FLUSH, 0, 0)
    assert isinstance(late.error, RequestInvalid) and late.error.errno == errno.ESHUTDOWN
    assert not early.finished
    device.pending.pop().finish()
    assert early.finished and early.error is None


def test_requests_bytes_and_errors_are_counted_by_operation() -> None:
    device = MemoryDevice(SIZE)
    gate = Gate(device)
    asked(gate, Op.READ, 0, 1024)
    asked(gate, Op.WRITE)
    asked(gate, Op.FLUSH, 0, 0)
    device.fail_next.append(RequestFailed("broken"))
    asked(gate, Op.READ)
    asked(gate, Op.READ, SIZE)
    assert gate.counters.as_dict() == {
        "read_requests": 2,
        "write_requests": 1,
        "flush_requests": 1,
        "trim_requests": 0,
        "zero_requests": 0,
        "read_bytes": 1024,
        "write_bytes": 512,
        "trim_bytes": 0,
        "zero_bytes": 0,
        "errors": 2,
    }


def test_a_kick_reaches_the_device() -> None:
    device = MemoryDevice(SIZE)
    Gate(device).kick()
    assert device.kicks == 1


async def test_a_gate_with_nothing_in_flight_is_drained_at_once() -> None:
    with trio.fail_after(1):
        await Gate(MemoryDevice(SIZE)).drained()


async def test_all_who_wait_for_the_gate_to_drain_are_told_when_the_last_request_has_finished() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    asked(gate, Op.READ)
    asked(gate, Op.READ)
    drained = 0

    async def wait() -> None:
        nonlocal drained
        await gate.drained()
        drained += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        device.pending.pop().finish()
        await wait_all_tasks_blocked()
        assert drained == 0
        device.pending.pop().finish()
        await wait_all_tasks_blocked()
        assert drained == 2


async def test_a_gate_that_is_busy_again_by_the_time_it_is_looked_at_is_not_drained() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    asked(gate, Op.READ)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.drained)
        await wait_all_tasks_blocked()
        device.pending.pop().finish()
        asked(gate, Op.READ)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        device.pending.pop().finish()


async def test_the_sugar_of_devices_works_through_a_gate() -> None:
    gate = Gate(MemoryDevice(SIZE))
    await blocks.write(gate, 512, b"x" * 512)
    assert await blocks.read(gate, 512, 512) == b"x" * 512
    await blocks.flush(gate)
    with pytest.raises(RequestInvalid):
        await blocks.read(gate, SIZE, 512)


def test_changes_that_no_flush_covers_are_counted() -> None:
    device = MemoryDevice(SIZE)
    gate = Gate(device)
    asked(gate, Op.READ)
    assert gate.unflushed == 0
    for op in (Op.WRITE, Op.TRIM, Op.ZERO):
        asked(gate, op)
    gate.submit(Request(Op.WRITE, 0, 512, memoryview(bytearray(512)), fua=True))
    device.fail_next.append(RequestFailed("broken"))
    asked(gate, Op.WRITE)
    assert gate.unflushed == 3, "what FUA made durable and what failed was acknowledged to nobody as volatile"
    device.fail_next.append(RequestFailed("broken"))
    asked(gate, Op.FLUSH, 0, 0)
    assert gate.unflushed == 3, "a flush that failed covers nothing"
    asked(gate, Op.FLUSH, 0, 0)
    assert gate.unflushed == 0


def test_a_flush_covers_what_was_acknowledged_before_it_was_submitted_and_no_more() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    early, late = asked(gate, Op.WRITE), asked(gate, Op.WRITE)
    device.complete(device.pending.index(early))
    flush = asked(gate, Op.FLUSH, 0, 0)
    device.complete(device.pending.index(late))
    device.complete(device.pending.index(flush))
    assert gate.unflushed == 1


def test_flushes_that_finish_out_of_order_do_not_uncover_anything() -> None:
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    first = asked(gate, Op.FLUSH, 0, 0)
    write = asked(gate, Op.WRITE)
    device.complete(device.pending.index(write))
    second = asked(gate, Op.FLUSH, 0, 0)
    device.complete(device.pending.index(second))
    device.complete(device.pending.index(first))
    assert gate.unflushed == 0


# ------------------------------------------------------------------------------------------------------------------ time and errors


def test_requests_are_timed_by_operation_and_failed_ones_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("isblk.block.gate.monotonic", lambda: now)
    device = MemoryDevice(SIZE, hold=True)
    gate = Gate(device)
    for op, seconds in ((Op.READ, 0.001), (Op.WRITE, 0.002), (Op.FLUSH, 0.003)):
        request = asked(gate, op, length=0 if op is Op.FLUSH else 512)
        now += seconds
        device.pending.pop().finish()
        assert request.error is None
    asked(gate, Op.READ)
    device.pending.pop().finish(RequestFailed("the medium is bad"))
    asked(gate, Op.READ, SIZE)
    found = gate.latencies()
    assert {op: each["buckets"] for op, each in found.items()} == {"read": {"1000": 1}, "write": {"2000": 1}, "flush": {"3000": 1}}
    assert gate.counters.error_kinds == {"failed": 1, "invalid": 1} and gate.counters.errors == 2


def test_of_many_requests_few_are_timed_and_those_stand_for_all() -> None:
    gate = Gate(MemoryDevice(SIZE))
    for _ in range(5000):
        asked(gate, Op.READ)
    told = gate.latencies()["read"]
    assert told["samples"] < 500 and 4000 < told["requests"] <= 5000
    for _ in range(10):
        gate.tick()
    asked(gate, Op.READ)
    asked(gate, Op.READ)
    told = gate.latencies()["read"]
    assert told["requests"] == 5002, "all of them, as soon as one is timed again"
