"""A Link to a disk in memory: SCSI commands parsed here once more, independently of isblk, with answers a test can script.

Tasks wait until `kick` (or, with `hold`, until `answer`) and are then carried out in order. Nothing of isblk/scsi is used here, on
purpose: a builder and its reader must not share a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import trio

from isblk.errors import IsblkError
from isblk.iscsi.task import Task
from isblk.scsi.sense import Verdict

if TYPE_CHECKING:
    from isblk.link.connection import Completion

Answer = tuple[int, bytes, bytes]  # status, sense, data

GOOD: Answer = (0x00, b"", b"")


def number(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "big")


def check(key: int, asc: int, ascq: int, deferred: bool = False) -> Answer:
    """CHECK CONDITION with fixed sense."""
    return 0x02, bytes([0x71 if deferred else 0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0]), b""


def attention(asc: int, ascq: int) -> Answer:
    return check(6, asc, ascq)


UNKNOWN_COMMAND = check(5, 0x20, 0x00)
UNKNOWN_FIELD = check(5, 0x24, 0x00)
BUSY: Answer = (0x08, b"", b"")


class FakeDisk:
    """A disk, or with another `device_type` something else. Each knob is what a target may be like.

    `script` holds answers given to the next commands instead of carrying them out; None in it lets one through. `refuse` is a set of
    operation codes that are unknown here, `pages` the VPD pages there are (code to payload).
    """

    def __init__(self, blocks: int = 2048, block_size: int = 512, content: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.content = bytearray(blocks * block_size if content else 0)
        self.durable = bytes(self.content)
        self.device_type = 0
        self.qualifier = 0
        self.write_cache = True
        self.fua = True
        self.write_protected = False
        self.thin = False  # LBPME
        self.reads_zero = False  # LBPRZ
        self.physical_exponent = 0
        self.pages: dict[int, bytes] = {0x80: b"SERIAL01"}
        self.refuse: set[int] = set()
        self.refuse_write_same_unmap = False
        self.caching_page = True
        self.script: list[Answer | None] = []
        self.deallocated: set[int] = set()
        self.status_at_once = 1000
        self.commands: dict[int, Callable[[bytes, bytes], Answer]] = {
            0x00: lambda cdb, data: GOOD,
            0x12: self._inquiry,
            0x1A: lambda cdb, data: self._mode(cdb, cdb[4], short=True),
            0x5A: lambda cdb, data: self._mode(cdb, number(cdb[7:9]), short=False),
            0x25: self._capacity_10,
            0x9E: self._service_action_in,
            0x28: lambda cdb, data: self._read(number(cdb[2:6]), number(cdb[7:9])),
            0x88: lambda cdb, data: self._read(number(cdb[2:10]), number(cdb[10:14])),
            0x2A: lambda cdb, data: self._write(number(cdb[2:6]), number(cdb[7:9]), cdb[1], data),
            0x8A: lambda cdb, data: self._write(number(cdb[2:10]), number(cdb[10:14]), cdb[1], data),
            0x35: lambda cdb, data: self._synchronize(cdb),
            0x91: lambda cdb, data: self._synchronize(cdb),
            0x42: self._unmap,
            0x93: self._write_same,
        }

    def answer(self, cdb: bytes, data: bytes) -> Answer:
        """Carry out one command."""
        if self.script and (scripted := self.script.pop(0)) is not None:
            return scripted
        if cdb[0] in self.refuse or cdb[0] not in self.commands:
            return UNKNOWN_COMMAND
        return self.commands[cdb[0]](cdb, data)

    def _inquiry(self, cdb: bytes, data: bytes) -> Answer:
        allocation = number(cdb[3:5])
        first = bytes([self.qualifier << 5 | self.device_type])
        if cdb[1] & 1:
            payload = bytes(sorted({0, *self.pages})) if cdb[2] == 0 else self.pages.get(cdb[2])
            if payload is None:
                return UNKNOWN_FIELD
            return 0, b"", (first + cdb[2:3] + len(payload).to_bytes(2, "big") + payload)[:allocation]
        return 0, b"", (first + bytes([0, 6, 2, 31, 0, 0, 2]) + b"FAKE    " + b"DISK            " + b"1.0 ")[:allocation]

    def _mode(self, cdb: bytes, allocation: int, short: bool) -> Answer:
        page = cdb[2] & 0x3F
        if page == 0x08 and not self.caching_page:
            return UNKNOWN_FIELD
        pages = bytes([0x08, 0x12, 4 if self.write_cache else 0]) + bytes(17) if self.caching_page else b""
        flags = (0x80 if self.write_protected else 0) | (0x10 if self.fua else 0)
        head = bytes([3 + len(pages), 0, flags, 0]) if short else (6 + len(pages)).to_bytes(2, "big") + bytes([0, flags, 0, 0, 0, 0])
        return 0, b"", (head + pages)[:allocation]

    def _capacity_10(self, cdb: bytes, data: bytes) -> Answer:
        return 0, b"", min(self.blocks - 1, 0xFFFFFFFF).to_bytes(4, "big") + self.block_size.to_bytes(4, "big")

    def _service_action_in(self, cdb: bytes, data: bytes) -> Answer:
        allocation = number(cdb[10:14])
        if cdb[1] == 0x10:
            flags = (0x80 if self.thin else 0) | (0x40 if self.reads_zero else 0)
            head = (self.blocks - 1).to_bytes(8, "big") + self.block_size.to_bytes(4, "big") + bytes([0, self.physical_exponent, flags, 0])
            return 0, b"", (head + bytes(16))[:allocation]
        if cdb[1] == 0x12:
            return self._lba_status(number(cdb[2:10]), allocation)
        return UNKNOWN_FIELD

    def _lba_status(self, lba: int, allocation: int) -> Answer:
        if lba >= self.blocks:
            return check(5, 0x21, 0)
        found = b""
        count = 0
        while lba < self.blocks and count < self.status_at_once:
            end = lba
            while end < self.blocks and (end in self.deallocated) == (lba in self.deallocated):
                end += 1
            found += lba.to_bytes(8, "big") + (end - lba).to_bytes(4, "big") + bytes([lba in self.deallocated, 0, 0, 0])
            lba, count = end, count + 1
        return 0, b"", ((len(found) + 4).to_bytes(4, "big") + bytes(4) + found)[:allocation]

    def _read(self, lba: int, blocks: int) -> Answer:
        if lba + blocks > self.blocks:
            return check(5, 0x21, 0)
        return 0, b"", bytes(self.content[lba * self.block_size : (lba + blocks) * self.block_size])

    def _write(self, lba: int, blocks: int, flags: int, data: bytes) -> Answer:
        if self.write_protected:
            return check(7, 0x27, 0)
        if lba + blocks > self.blocks:
            return check(5, 0x21, 0)
        assert len(data) == blocks * self.block_size
        self.content[lba * self.block_size : (lba + blocks) * self.block_size] = data
        if not self.write_cache or (self.fua and flags & 0x08):
            self._persist(lba, blocks)
        self.deallocated -= set(range(lba, lba + blocks))
        return GOOD

    def _persist(self, lba: int, blocks: int) -> None:
        start, end = lba * self.block_size, (lba + blocks) * self.block_size
        self.durable = self.durable[:start] + bytes(self.content[start:end]) + self.durable[end:]

    def _synchronize(self, cdb: bytes) -> Answer:
        assert not any(cdb[1:]), "the whole device, and not before it is done"
        self.durable = bytes(self.content)
        return GOOD

    def _unmap(self, cdb: bytes, data: bytes) -> Answer:
        assert number(cdb[7:9]) == len(data) and number(data[0:2]) == len(data) - 2 and number(data[2:4]) == len(data) - 8
        for at in range(8, len(data), 16):
            lba, blocks = number(data[at : at + 8]), number(data[at + 8 : at + 12])
            if lba + blocks > self.blocks:
                return check(5, 0x21, 0)
            self._deallocate(lba, blocks)
        return GOOD

    def _deallocate(self, lba: int, blocks: int) -> None:
        self.deallocated |= set(range(lba, lba + blocks))
        fill = b"\0" if self.reads_zero else b"\xdd"
        self.content[lba * self.block_size : (lba + blocks) * self.block_size] = fill * (blocks * self.block_size)

    def _write_same(self, cdb: bytes, data: bytes) -> Answer:
        lba, blocks = number(cdb[2:10]), number(cdb[10:14])
        if cdb[1] & 0x08 and self.refuse_write_same_unmap:
            return UNKNOWN_FIELD
        if lba + blocks > self.blocks:
            return check(5, 0x21, 0)
        if cdb[1] & 0x08:
            self._deallocate(lba, blocks)
        else:
            assert len(data) == self.block_size
            self.content[lba * self.block_size : (lba + blocks) * self.block_size] = data * blocks
        if not self.write_cache:
            self._persist(lba, blocks)
        return GOOD


class FakeLink:
    """A session with some disks behind it, by their LUN's eight bytes. `sent` are the CDBs in the order they were carried out."""

    def __init__(self, disk: FakeDisk | None = None, disks: dict[bytes, FakeDisk] | None = None, hold: bool = False) -> None:
        self.disks = disks if disks is not None else {bytes(8): disk or FakeDisk()}
        self.hold = hold
        self.queue: list[Task] = []
        self.kicked = 0
        self.sent: list[bytes] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.lost: IsblkError | None = None
        self.lun_list_claim: int | None = None
        self.most_queued = 0
        self.short_by = 0
        self.hearers: dict[bytes, Callable[[Verdict], None]] = {}

    @property
    def opcodes(self) -> list[int]:
        """Operation codes carried out so far."""
        return [cdb[0] for cdb in self.sent]

    def submit(self, task: Task) -> None:
        """Queue a task, or end it when the session is gone."""
        if self.lost is not None:
            task.error = self.lost
            task.finished()
            return
        assert len(task.cdb) in (6, 10, 12, 16)
        self.queue.append(task)
        self.most_queued = max(self.most_queued, len(self.queue))

    def kick(self) -> None:
        """Carry out what is queued, unless held."""
        self.kicked += 1
        while self.queue and not self.hold:
            self.answer()

    def answer(self, index: int = 0, scripted: Answer | None = None) -> Task:
        """Carry out one queued task."""
        task = self.queue.pop(index)
        self.sent.append(task.cdb)
        task.status, task.sense, data = scripted or self._carry_out(task)
        moved = 0
        if task.read_into is not None:
            moved = min(len(data), len(task.read_into)) - self.short_by
            task.read_into[:moved] = data[:moved]
        elif task.write_from is not None:
            moved = len(task.write_from) - self.short_by if task.status == 0 else 0
        task.transferred = moved
        task.residual = task.length - moved or -max(0, len(data) - task.length)
        task.finished()
        return task

    def _carry_out(self, task: Task) -> Answer:
        if task.cdb[0] == 0xA0:
            return self._report_luns(number(task.cdb[6:10]))
        disk = self.disks.get(task.lun)
        if disk is None:
            return (0, b"", bytes([0x7F]) + bytes(35)) if task.cdb[0] == 0x12 else check(5, 0x25, 0)
        return disk.answer(task.cdb, bytes(task.write_from) if task.write_from is not None else b"")

    def _report_luns(self, allocation: int) -> Answer:
        first = next(iter(self.disks.values()), None)
        if first is not None and 0xA0 in first.refuse:
            return UNKNOWN_COMMAND
        if first is not None and first.script and (scripted := first.script.pop(0)) is not None:
            return scripted
        length = 8 * len(self.disks) if self.lun_list_claim is None else self.lun_list_claim
        return 0, b"", (length.to_bytes(4, "big") + bytes(4) + b"".join(self.disks))[:allocation]

    def tasks(self) -> list[Task]:
        """What is queued."""
        return list(self.queue)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Keep a timer until `elapse`."""
        self.timers.append((seconds, function))

    def elapse(self) -> float:
        """Let the oldest timer fire; returns its seconds."""
        seconds, function = self.timers.pop(0)
        function()
        return seconds

    def lose(self, error: IsblkError) -> None:
        """End the session: every queued task ends with `error`, and each one submitted later."""
        self.lost = error
        queued, self.queue = self.queue, []
        for task in queued:
            task.error = error
            task.finished()

    async def execute(self, lun: bytes, cdb: bytes, read_length: int = 0, write: bytes = b"") -> Completion:
        """One command, waited for."""
        finished = trio.Event()
        buffer = memoryview(bytearray(read_length))
        task = Task(lun, cdb, buffer if read_length else None, memoryview(write) if write else None, lambda _task: finished.set())
        self.submit(task)
        self.kick()
        await finished.wait()
        if task.error is not None:
            raise task.error
        data = bytes(buffer[: task.transferred])
        return cast("Completion", SimpleNamespace(status=task.status, sense=task.sense, data=data, residual=task.residual))
