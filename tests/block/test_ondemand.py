"""A disk that comes when it is used: what wakes it, what waits, and what is checked once more when it is there."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.block.gate import Gate
from isblk.block.known import Known, described
from isblk.block.multipath import Multipath
from isblk.block.ondemand import OnDemand
from isblk.block.pathset import WrongUnit
from isblk.block.policies import Policies
from isblk.block.request import Op, Request, flush, read, write
from isblk.block.stack import Disk
from isblk.errors import IsblkError, RequestFailed, RequestInvalid
from support.memorydevice import MemoryDevice, broken

MIB = 1 << 20


def there(device: MemoryDevice, wwid: str = "naa.1") -> Disk:
    """The disk as a login finds it."""
    return Disk(0, described(0, wwid=wwid), device, Gate(device))


class Waking:
    """Counts who wakes it."""

    def __init__(self, device: MemoryDevice | None = None) -> None:
        known = Known.of(there(device)) if device is not None else None
        self.woken = 0
        self.answer: IsblkError | None = None
        self.device = OnDemand(0, known, self._wake)
        self.gate = self.device.disk.gate

    def _wake(self) -> IsblkError | None:
        self.woken += 1
        return self.answer


def submitted(gate: Gate, request: Request) -> Request:
    gate.submit(request)
    gate.kick()
    return request


def asked(gate: Gate, op: Op = Op.READ, offset: int = 0, length: int = 1000) -> Request:
    return submitted(gate, Request(op, offset, length, memoryview(bytearray(length)) if op <= Op.WRITE else None))


def test_it_is_shown_as_it_is_remembered_and_looking_wakes_nobody() -> None:
    waking = Waking(MemoryDevice(MIB, 4096, read_only=True))
    shown = waking.gate.geometry
    assert (shown.size, shown.block_size, shown.physical_block_size, shown.read_only) == (MIB, 1, 4096, True)
    assert shown.write_cache, "whoever needs a durable write must ask for it"
    assert submitted(waking.gate, Request(Op.FLUSH)).finished, "nothing is held without a session, so nothing is to be flushed"
    assert waking.woken == 0 and waking.device.is_clean


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.TRIM, Op.ZERO])
def test_what_uses_it_wakes_it_and_waits(op: Op) -> None:
    memory = MemoryDevice()
    waking = Waking(memory)
    requests = [asked(waking.gate, op, at, 1000) for at in (0, 1000)]
    assert waking.woken == 2 and not any(request.finished for request in requests) and waking.device.waiting == 2
    assert waking.device.is_busy and not waking.device.is_clean
    waking.device.bind(there(memory))
    assert all(request.finished and request.error is None for request in requests)
    assert memory.kicks and waking.device.waiting == 0
    assert asked(waking.gate).finished and waking.woken == 2


def test_what_may_not_wait_is_told_why() -> None:
    waking = Waking(MemoryDevice())
    waking.answer = RequestFailed("not now")
    assert asked(waking.gate).error is waking.answer
    waking.answer = None
    request, error = asked(waking.gate), RequestFailed("in vain")
    waking.device.give_up(error)
    assert request.error is error
    assert waking.gate.in_flight == 0


@pytest.mark.logs("LUN 0 has shrunk from 1048576 to 4096 bytes", "LUN 0 has grown from 4096 to 8192")
def test_what_waited_is_checked_against_the_disk_that_came() -> None:
    waking = Waking(MemoryDevice())
    inside, beyond, trimmed = asked(waking.gate), asked(waking.gate, Op.READ, 8192), asked(waking.gate, Op.WRITE, 8192)
    smaller = MemoryDevice(4096)
    waking.device.bind(there(smaller))
    assert inside.error is None
    assert [getattr(one.error, "errno", 0) for one in (beyond, trimmed)] == [errno.EINVAL, errno.ENOSPC]
    waking.device.unbind()
    assert waking.gate.geometry.size == 4096, "it is remembered as it was last"
    change = asked(waking.gate, Op.WRITE)
    waking.device.bind(there(MemoryDevice(8192, read_only=True)))
    assert isinstance(change.error, RequestInvalid) and change.error.errno == errno.EROFS


def test_another_disk_is_not_bound() -> None:
    waking = Waking(MemoryDevice())
    request = asked(waking.gate)
    with pytest.raises(WrongUnit):
        waking.device.bind(there(MemoryDevice(), wwid="naa.2"))
    assert not request.finished and waking.device.below is None


def test_a_disk_that_was_never_seen_has_no_size_until_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    waking = Waking()
    assert waking.gate.geometry.size == 0 and waking.device.known is None
    waking.device.bind(there(MemoryDevice()))
    assert waking.gate.geometry.size == MIB and not caplog.records
    assert waking.device.disk.description.wwid == "naa.1"
    waking.device.unbind()
    assert waking.gate.geometry.size == MIB


def test_while_it_is_refused_nothing_waits() -> None:
    waking, error = Waking(MemoryDevice()), RequestFailed("another disk")
    request = asked(waking.gate)
    waking.device.refuse(error)
    assert request.error is error and asked(waking.gate).error is error and waking.woken == 1
    waking.device.allow()
    assert not asked(waking.gate).finished


async def test_it_is_clean_when_everything_is_flushed() -> None:
    memory = MemoryDevice()
    waking = Waking(memory)
    waking.device.bind(there(memory))
    await write(waking.gate, 1, b"odd")
    assert not waking.device.is_clean and waking.device.activity == 1
    await flush(waking.gate)
    assert waking.device.is_clean and waking.device.activity == 2
    assert memory.durable[1:4] == b"odd"


async def test_a_flush_that_nobody_asked_for_and_that_failed_is_told_once() -> None:
    memory = MemoryDevice()
    waking = Waking(memory)
    waking.device.bind(there(memory))
    waking.device.complain(broken())
    assert await read(waking.gate, 0, 512)
    with pytest.raises(RequestFailed):
        await flush(waking.gate)
    await flush(waking.gate)


async def test_who_needs_it_itself_waits_and_keeps_it(autojump_clock: object) -> None:
    memory = MemoryDevice()
    waking, seen = Waking(memory), []

    async def use() -> None:
        async with waking.device.used() as below:
            seen.append(below)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        nursery.start_soon(waking.device.ready)
        await wait_all_tasks_blocked()
        assert not seen and waking.woken == 2
        waking.device.bind(there(memory))
        await wait_all_tasks_blocked()
        assert seen == [memory] and waking.device.is_busy
    assert waking.device.is_clean and not memory.requests
    waking.device.unbind()
    waking.answer = RequestFailed("not now")
    with pytest.raises(RequestFailed, match="not now"):
        await waking.device.ready()


def test_what_multipath_holds_is_not_left_behind() -> None:
    memory = MemoryDevice()
    below = Multipath("LUN 0", memory.geometry, Policies(), lambda *_: None)
    waking = Waking(memory)
    waking.device.bind(Disk(0, described(0, wwid="naa.1"), below, Gate(memory)))
    assert waking.device.is_clean and not waking.device.is_dirty
    below.journal.append(Request(Op.WRITE, 0, 4, memoryview(b"data"), fua=True))
    assert waking.device.is_dirty and not waking.device.is_clean, "a durable write is kept behind older ones"
    below.journal.clear()
    below.fence.replay_needed = True
    assert not waking.device.is_clean
    below.fence.replay_needed = False
    below.cache_losses = 2
    assert waking.device.losses == 2
    waking.device.unbind()
    assert waking.device.losses == 2, "they stay told when the session has gone"
