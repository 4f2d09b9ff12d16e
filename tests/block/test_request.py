"""Request and the awaitable sugar over submit."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from isblk.block.request import Op, Request, Witness, execute, flush, read, trim, write, zero
from isblk.errors import RequestFailed
from support.memorydevice import MemoryDevice, Seen, broken


def test_a_request_tells_its_owner_once() -> None:
    told: list[Request] = []
    request = Request(Op.WRITE, 512, 512, memoryview(bytes(512)), fua=True, done=told.append)
    request.finish()
    assert told == [request] and request.finished and request.error is None
    with pytest.raises(AssertionError, match="finished twice"):
        request.finish()


def test_a_request_keeps_its_error_and_needs_no_owner() -> None:
    error = broken(errno.ENOSPC)
    request = Request(Op.FLUSH)
    request.finish(error)
    assert request.error is error


def test_an_error_that_is_there_before_the_end_stays_unless_there_is_another() -> None:
    doubted, failed = Request(Op.READ, 0, 512), Request(Op.READ, 0, 512)
    doubted.error = failed.error = before = broken(errno.EIO)
    doubted.finish()
    failed.finish(error := broken(errno.EROFS))
    assert doubted.error is before and failed.error is error


@pytest.mark.source_form("has a kind of Witness of its own")
def test_witnesses_are_told_before_the_owner_and_of_one_end_only() -> None:
    class Hears(Witness):
        def __init__(self, name: str) -> None:
            self.name = name

        def passed(self, request: Request) -> None:
            told.append(self.name)

    told: list[str] = []
    request = Request(Op.WRITE, 0, 512, memoryview(bytes(512)), done=lambda _: told.append("owner"))
    request.gate, request.lock = Hears("gate"), Hears("lock")
    request.finish(broken(errno.EIO))
    assert told == ["lock", "gate", "owner"]
    request.renew()
    request.finish()
    assert told == ["lock", "gate", "owner", "owner"] and request.error is None


def test_a_request_reads_as_one_line() -> None:
    assert repr(Request(Op.ZERO, 4096, 512, fua=True)) == "<Request ZERO 4096+512 fua>"
    assert repr(Request(Op.READ, 0, 1)) == "<Request READ 0+1>"


async def test_sugar_asks_for_what_it_says() -> None:
    device = MemoryDevice(8192)
    await write(device, 512, b"x" * 512)
    await write(device, 1024, b"y" * 512, fua=True)
    assert await read(device, 512, 1024) == b"x" * 512 + b"y" * 512
    await trim(device, 512, 512)
    await zero(device, 1024, 512, fua=True)
    await flush(device)
    assert await read(device, 0, 8192) == bytes(8192)
    assert device.requests == [
        Seen(Op.WRITE, 512, 512, False),
        Seen(Op.WRITE, 1024, 512, True),
        Seen(Op.READ, 512, 1024, False),
        Seen(Op.TRIM, 512, 512, False),
        Seen(Op.ZERO, 1024, 512, True),
        Seen(Op.FLUSH, 0, 0, False),
        Seen(Op.READ, 0, 8192, False),
    ]
    assert device.kicks == 7


async def test_the_error_of_a_request_is_raised() -> None:
    device = MemoryDevice()
    device.fail_next = [broken(errno.EROFS)]
    with pytest.raises(RequestFailed) as caught:
        await write(device, 0, bytes(512))
    assert caught.value.errno == errno.EROFS


async def test_a_wait_lasts_as_long_as_the_device_takes(autojump_clock: trio.testing.MockClock) -> None:
    device = MemoryDevice(delay=3.0)
    start = trio.current_time()
    await read(device, 0, 512)
    assert trio.current_time() - start == pytest.approx(3.0)


async def test_a_cancelled_wait_leaves_the_request_running() -> None:
    device = MemoryDevice(hold=True)
    request = Request(Op.WRITE, 0, 512, memoryview(b"z" * 512))
    with trio.move_on_after(0) as scope:
        await execute(device, request)
    assert scope.cancelled_caught
    assert device.pending == [request]
    device.complete()
    assert request.finished and device.content[:512] == b"z" * 512
