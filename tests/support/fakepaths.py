"""Paths to a unit in memory for tests of multipath: sessions that can be cut, commands that stay behind in the target and land later."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import trio

from isblk.block.command import PathUnusable
from isblk.block.multipath import Multipath
from isblk.block.path import Path
from isblk.block.policies import Policies
from isblk.block.request import Geometry, Op, Request
from isblk.errors import IsblkError, PathLost, TaskAborted
from isblk.iscsi.names import Portal
from isblk.iscsi.pdu import TaskManagement
from isblk.link.keeper import Phase
from isblk.scsi.data import AccessState

BLOCK = 512
BLOCKS = 64
UNKNOWN_COMMAND = (0x02, bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]), b"")


class Command:
    """What the target has got of one request: its own copy of the data."""

    def __init__(self, unit: FakeUnit, request: Request) -> None:
        self.unit = unit
        self.request = request
        self.data = bytes(request.data) if request.data is not None and request.op is Op.WRITE else bytes(request.length)
        self.applied = False

    def land(self) -> None:
        """Take effect; once."""
        if self.applied:
            return
        self.applied = True
        store, op = self.unit.store, self.request.op
        where = slice(self.request.offset, self.request.offset + self.request.length)
        if op in (Op.WRITE, Op.TRIM, Op.ZERO):
            store.content[where] = self.data
            if self.request.fua:
                store.durable[where] = self.data
        elif op is Op.READ and self.request.data is not None:
            self.request.data[:] = store.content[where]
        elif op is Op.FLUSH:
            store.durable[:] = store.content


class Store:
    """The logical unit itself. `stuck`: commands of sessions that are gone, which may still land. `keys`: who is registered."""

    def __init__(self) -> None:
        self.content = bytearray(BLOCK * BLOCKS)
        self.durable = bytearray(BLOCK * BLOCKS)
        self.geometry = Geometry(len(self.content), BLOCK, BLOCK, can_trim=True, can_zero=True, can_fua=True, write_cache=True)
        self.stuck: list[Command] = []
        self.keys: tuple[int, ...] = ()
        self.knows_keys = True
        self.reset_response: int | None = 0
        self.resets = 0
        self.log: list[tuple[int, str, int, int]] = []

    def land_all(self) -> None:
        stuck, self.stuck = self.stuck, []
        for command in stuck:
            command.land()

    def crash(self) -> None:
        """Power is lost: the cache is gone, and every command that was taken in."""
        self.content[:] = self.durable
        self.stuck.clear()

    def block(self, number: int) -> int:
        return self.content[number * BLOCK]


class FakeUnit:
    """One session's unit: requests stay in `pending` until `answer`; with `hold` False they finish within `submit`."""

    def __init__(self, store: Store, number: int, hold: bool) -> None:
        self.store = store
        self.number = number
        self.hold = hold
        self.pending: list[Command] = []
        self.lost: PathLost | None = None
        self.kicks = 0
        self.retries = 0
        self.fail_next: list[Exception] = []
        self.lun = bytes(8)
        self.link = self
        self.on_attention: Callable[[Any], None] | None = None
        self.commands: list[bytes] = []
        self.hearers: dict[bytes, Any] = {}

    @property
    def geometry(self) -> Geometry:
        return self.store.geometry

    def submit(self, request: Request) -> None:
        if self.lost is not None:
            request.finish(PathLost(str(self.lost), sent=False))
            return
        self.store.log.append((self.number, request.op.name, request.offset // BLOCK, request.length // BLOCK))
        if self.fail_next:
            request.finish(self.fail_next.pop(0))
            return
        command = Command(self, request)
        if self.hold:
            self.pending.append(command)
        else:
            command.land()
            request.finish()

    def kick(self) -> None:
        self.kicks += 1

    def answer(self, index: int = 0, error: Exception | None = None) -> None:
        command = self.pending.pop(index)
        if error is None:
            command.land()
        command.request.finish(error)

    def answer_all(self) -> None:
        while self.pending:
            self.answer()

    def cut(self, sent: int | None = None) -> None:
        """The connection is gone; of the pending commands the first `sent` (None: all) were given to the network, and may land later."""
        self.lost = PathLost(f"path {self.number} was cut")
        pending, self.pending = self.pending, []
        count = len(pending) if sent is None else sent
        self.store.stuck += [command for command in pending[:count] if not command.applied and command.request.op is not Op.READ]
        for at, command in enumerate(pending):
            command.request.finish(PathLost(str(self.lost), sent=at < count))

    async def execute(self, lun: bytes, cdb: bytes, read_length: int = 0, write: bytes = b"") -> Any:
        """Only READ KEYS is asked."""
        await trio.lowlevel.checkpoint()
        if self.lost is not None:
            raise PathLost(str(self.lost), sent=False)
        self.commands.append(cdb)
        status, sense, data = 0, b"", b""
        if self.store.knows_keys:
            data = bytes(4) + (8 * len(self.store.keys)).to_bytes(4, "big") + b"".join(key.to_bytes(8, "big") for key in self.store.keys)
        else:
            status, sense, data = UNKNOWN_COMMAND
        return SimpleNamespace(status=status, sense=sense, data=data, residual=0)


class FakeConnection:
    """What the fence needs of a connection."""

    def __init__(self, rig: Rig, path: Path, unit: FakeUnit) -> None:
        self.rig = rig
        self.path = path
        self.unit = unit

    async def manage(self, function: TaskManagement, *, lun: bytes) -> int:
        assert function is TaskManagement.LOGICAL_UNIT_RESET
        store = self.unit.store
        store.resets += 1
        if store.reset_response is None:
            await trio.sleep_forever()
        await trio.sleep(self.rig.reset_takes)
        if self.unit.lost is not None:
            raise PathLost(str(self.unit.lost))
        assert store.reset_response is not None
        if not store.reset_response:
            assert not any(path.in_flight for path in self.rig.device.paths), "a reset hits what is on its way"
            self.rig.on_reset(store)
        return store.reset_response

    def fail(self, error: IsblkError) -> None:
        self.unit.cut()
        self.rig.device.lose(self.path, error)


class Rig:
    """A Multipath over `count` paths to one Store; paths begin down."""

    def __init__(self, nursery: trio.Nursery, count: int = 2, store: Store | None = None, hold: bool = True, **policies: Any) -> None:
        self.store = store or Store()
        self.hold = hold
        self.reset_takes = 0.01
        self.on_reset: Callable[[Store], None] = lambda store: store.stuck.clear()
        self.device = Multipath("LUN 0", self.store.geometry, Policies(**policies), nursery.start_soon)
        for number in range(count):
            keeper = SimpleNamespace(portal=Portal("10.0.0.1", 3260 + number), connection=None, phase=Phase.DOWN, reason="", portal_group=1)
            self.device.paths.append(Path(number, cast(Any, keeper), self.device.policies.queue_depth))
        self.finished: list[Request] = []

    def up(self, *numbers: int, reinstate: bool = True, access: AccessState = AccessState.OPTIMIZED) -> FakeUnit:
        """Log in: the old session of the path has ended at the target, unless told otherwise."""
        for number in numbers:
            path, unit = self.device.paths[number], FakeUnit(self.store, number, self.hold)
            if reinstate:
                self.reinstate(number)
            path.unit, path.access = cast(Any, unit), access
            path.connection = cast(Any, FakeConnection(self, path, unit))
            path.keeper.connection = path.connection
            self.device.gain(path)
        return unit

    def reinstate(self, number: int) -> None:
        path = self.device.paths[number]
        path.ended = path.session
        self.device.fence.changed()

    def unit(self, number: int) -> FakeUnit:
        found = self.device.paths[number].unit
        assert found is not None
        return cast(FakeUnit, found)

    def cut(self, number: int, sent: int | None = None) -> None:
        """The session is lost: its requests hear of it first, then the keeper."""
        path, unit = self.device.paths[number], self.unit(number)
        unit.cut(sent)
        path.keeper.connection = None
        self.device.lose(path, PathLost(f"path {number} was cut"))

    def submit(self, op: Op, block: int = 0, value: int = 0, count: int = 1, fua: bool = False) -> Request:
        length = 0 if op is Op.FLUSH else count * BLOCK
        data = memoryview(bytearray([value]) * length) if op in (Op.READ, Op.WRITE) else None
        request = Request(op, block * BLOCK if length else 0, length, data, fua, self.finished.append)
        self.device.submit(request)
        self.device.kick()
        return request

    def write(self, block: int, value: int, count: int = 1, fua: bool = False) -> Request:
        return self.submit(Op.WRITE, block, value, count, fua)

    def read(self, block: int) -> Request:
        return self.submit(Op.READ, block)

    def flush(self) -> Request:
        return self.submit(Op.FLUSH)

    def sent(self, *ops: str) -> list[tuple[int, str, int]]:
        """Path, operation and block of what went out."""
        return [(number, op, block) for number, op, block, _ in self.store.log if not ops or op in ops]


def unusable() -> PathUnusable:
    return PathUnusable("the port is in standby")


def aborted() -> TaskAborted:
    return TaskAborted("the command was aborted")
