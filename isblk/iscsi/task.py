"""What a session works on: SCSI tasks, and the exchanges that are none (RFC 7143 4.2, 11.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from isblk.errors import IsblkError


class Task:
    """One SCSI command: an opaque CDB, the 8-byte LUN, and the caller's memory for its data, lent until `done` is called.

    `done(task)` is called exactly once. Then either `error` is set (the task never got a SCSI status: path lost, aborted, rejected, or
    what came back contradicts itself), or `status` and `sense` are what the logical unit answered. `transferred` counts bytes that moved;
    `residual` is how many bytes of the expected length did not (negative: the unit would have moved more).
    """

    __slots__ = (
        "cdb",
        "cmd_sn",
        "data_sn",
        "done",
        "epoch",
        "error",
        "itt",
        "length",
        "lun",
        "r2t_sn",
        "read_into",
        "residual",
        "sense",
        "status",
        "transferred",
        "write_from",
    )

    def __init__(
        self,
        lun: bytes,
        cdb: bytes,
        read_into: memoryview | None = None,
        write_from: memoryview | None = None,
        done: Callable[[Task], None] | None = None,
    ) -> None:
        self.lun = lun
        self.cdb = cdb
        self.read_into = read_into
        self.write_from = write_from
        self.done = done
        self.length = len(read_into) if read_into is not None else len(write_from) if write_from is not None else 0
        self.itt = -1
        self.cmd_sn = 0
        self.epoch = 0
        self.data_sn = 0
        self.r2t_sn = 0
        self.transferred = 0
        self.residual = 0
        self.status = 0
        self.sense = b""
        self.error: IsblkError | None = None

    def finished(self) -> None:
        """Tell whoever waits."""
        if self.done is not None:
            self.done(self)

    def __repr__(self) -> str:
        return f"<Task itt={self.itt} cdb={self.cdb[:1].hex()} {self.transferred}/{self.length}>"


class Kind(Enum):
    """What an exchange is about."""

    PING = "NOP-Out"
    PLUG = "NOP-Out in place of a rejected command"
    TASK_MANAGEMENT = "task management"
    TEXT = "Text"
    LOGOUT = "Logout"


@dataclass(slots=True)
class Exchange:
    """One request that is no SCSI command, and what came of it.

    `done(exchange)` is called exactly once, with `error` set or `response` (the response code of task management and logout), `text` (raw
    bytes of a whole text answer), `time2wait` and `time2retain` (seconds, logout) filled in. `cmd_sn` of task management: it covers the
    commands before. `again` sends the request once more as a non-immediate one (11.17.1);
    it is `numbered` then.
    """

    kind: Kind
    done: Callable[[Exchange], None]
    itt: int = -1
    function: int = 0
    cmd_sn: int = 0
    again: Callable[..., None] | None = None
    numbered: bool = False
    lun: bytes = bytes(8)
    reference: Task | None = None
    response: int = 0
    text: bytearray | None = None
    answers: int = 0
    time2wait: int = 0
    time2retain: int = 0
    error: IsblkError | None = None


@dataclass(frozen=True)
class AsyncMessage:
    """An asynchronous message as it came (11.9); `parameters` are Parameter1 to Parameter3, `sense` belongs to a SCSI event."""

    event: int
    vendor_code: int
    parameters: tuple[int, int, int]
    lun: bytes
    sense: bytes
