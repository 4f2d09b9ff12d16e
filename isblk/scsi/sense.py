"""Sense data and verdicts: what the end of a command means for whoever sent it (SPC-4 4.5, SAM-5 5.3).

(status, sense) -> Verdict is a table, VERDICTS, looked up by (key, ASC, ASCQ), then (key, ASC), then (key): the first row wins. The split
follows what the Linux SCSI and multipath layers learned: an illegal request, a medium error or a reservation conflict would fail on each
path alike and must never take paths down; a controller that cannot reach its unit says nothing about its neighbour.

The errno of a failure is what a file system or a virtual machine can act on:
    EIO            medium and hardware errors, out of range after a shrink, sense that says nothing
    EREMOTEIO      the target refused the command's form (ILLEGAL REQUEST): a wrong command, not a bad disk
    EOPNOTSUPP     20/00, the command does not exist there
    EROFS          write protected          ENOSPC   a thin unit has no space left
    EILSEQ         protection information does not match the data (as in Linux)
    EACCES         a reservation conflict, or access rights         ENOMEDIUM   no medium         ENXIO   no such unit
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from isblk.scsi.sense_text import CODES


class Status(IntEnum):
    """SCSI status codes (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class Key(IntEnum):
    """Sense keys (SPC-4 table 27)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True)
class Sense:
    """Sense data. `deferred`: it is about an earlier command, and the one that carried it was not done (SPC-4 4.5.5)."""

    key: Key
    asc: int = 0
    ascq: int = 0
    deferred: bool = False
    information: int | None = None  # for medium errors: the first block that failed

    def __str__(self) -> str:
        words = CODES.get((self.asc, self.ascq))
        name = self.key.name.replace("_", " ")
        return f"{name} {self.asc:02X}/{self.ascq:02X}" + (f" ({words})" if words else "")


NO_SENSE = Sense(Key.NO_SENSE)
"""Stands for sense data that is absent, too short to hold a key, or of a format that SPC-4 does not define."""

_FIXED = (0x70, 0x71)
_DESCRIPTOR = (0x72, 0x73)
_INFORMATION_DESCRIPTOR = 0x00
_FIXED_INFORMATION = struct.Struct(">I")
_DESCRIPTOR_INFORMATION = struct.Struct(">Q")


def parse_sense(data: bytes | memoryview) -> Sense:
    """Parse sense data in either format, cut short anywhere: what did not arrive is 0, and without a key NO_SENSE. Never raises."""
    code = data[0] & 0x7F if len(data) else 0
    if code in _FIXED and len(data) > 2:
        return _parse_fixed(bytes(data), code == 0x71)
    if code in _DESCRIPTOR and len(data) > 1:
        return _parse_descriptor(bytes(data), code == 0x73)
    return NO_SENSE


def _parse_fixed(data: bytes, deferred: bool) -> Sense:
    if len(data) > 7:
        data = data[: 8 + data[7]]
    valid = data[0] & 0x80 and len(data) >= 7
    information = _FIXED_INFORMATION.unpack_from(data, 3)[0] if valid else None
    asc, ascq = data[12:14].ljust(2, b"\0")
    return Sense(Key(data[2] & 0x0F), asc, ascq, deferred, information)


def _parse_descriptor(data: bytes, deferred: bool) -> Sense:
    asc, ascq = data[2:4].ljust(2, b"\0")
    return Sense(Key(data[1] & 0x0F), asc, ascq, deferred, _descriptor_information(data))


def _descriptor_information(data: bytes) -> int | None:
    end = min(len(data), 8 + data[7]) if len(data) > 7 else 0
    at = 8
    while at + 1 < end:
        following = at + 2 + data[at + 1]
        if data[at] == _INFORMATION_DESCRIPTOR and at + 12 <= min(following, end) and data[at + 2] & 0x80:
            information: int = _DESCRIPTOR_INFORMATION.unpack_from(data, at + 4)[0]
            return information
        at = following
    return None


class Action(Enum):
    """What to do with a finished command."""

    DONE = auto()
    RETRY = auto()  # here, after a pause: nothing is wrong with the command
    OTHER_PATH = auto()  # this path cannot do it, another may; without one it fails with the verdict's errno
    FAIL = auto()
    ATTENTION = auto()  # note what changed (`attention`), then retry here


class Attention(Enum):
    """What a unit attention announces, where somebody must act on it (SAM-5 5.14)."""

    RESET = auto()  # reset or nexus loss: 29/xx, and what iSCSI cleared, 47/7F
    POWER_ON = auto()  # 29/01, and 29/04 of a unit that restarted by itself: a volatile cache may have been lost
    MODE_CHANGED = auto()  # write protection or cache may have changed
    CAPACITY_CHANGED = auto()
    PATHS_CHANGED = auto()  # asymmetric access states
    LUNS_CHANGED = auto()
    IDENTITY_CHANGED = auto()
    MEDIUM_CHANGED = auto()
    RESERVATIONS_CHANGED = auto()
    SPACE_LOW = auto()  # thin provisioning soft threshold
    WRITE_LOST = auto()  # a deferred error: a write that was acknowledged has failed since
    OTHER = auto()


@dataclass(frozen=True)
class Verdict:
    """What the end of a command means. `errno` is 0 only for DONE; for RETRY and ATTENTION it is what to fail with when retries run out."""

    action: Action
    reason: str = ""
    errno: int = 0
    attention: Attention | None = None
    sense: Sense = NO_SENSE


@dataclass(frozen=True)
class _Row:
    """One row of the table: a verdict without the words of the sense that leads to it."""

    action: Action
    errno: int = errno.EIO
    attention: Attention | None = None


_DONE = _Row(Action.DONE, 0)
_RETRY = _Row(Action.RETRY)
_BUSY = _Row(Action.RETRY, errno.EBUSY)
_OTHER_PATH = _Row(Action.OTHER_PATH)
_FAIL = _Row(Action.FAIL)


def _fail(error_number: int) -> _Row:
    return _Row(Action.FAIL, error_number)


def _attention(kind: Attention) -> _Row:
    return _Row(Action.ATTENTION, errno.EIO, kind)


STATUS_VERDICTS: dict[int, _Row] = {
    Status.GOOD: _DONE,
    Status.CONDITION_MET: _DONE,
    Status.BUSY: _BUSY,
    Status.RESERVATION_CONFLICT: _fail(errno.EACCES),
    Status.TASK_SET_FULL: _BUSY,
    Status.ACA_ACTIVE: _BUSY,
    Status.TASK_ABORTED: _RETRY,  # another initiator's reset, reported because of TAS=1
}

VERDICTS: dict[tuple[int, ...], _Row] = {
    (Key.NO_SENSE,): _DONE,
    (Key.RECOVERED_ERROR,): _DONE,
    (Key.NOT_READY,): _OTHER_PATH,
    (Key.NOT_READY, 0x04, 0x00): _RETRY,
    (Key.NOT_READY, 0x04, 0x01): _RETRY,
    (Key.NOT_READY, 0x04, 0x02): _FAIL,  # stopped; it is not for an initiator to start a shared unit unasked
    (Key.NOT_READY, 0x04, 0x03): _FAIL,
    (Key.NOT_READY, 0x04, 0x04): _fail(errno.EBUSY),  # formatting takes hours: no retry would outlast it
    (Key.NOT_READY, 0x04, 0x07): _RETRY,
    (Key.NOT_READY, 0x04, 0x08): _RETRY,
    (Key.NOT_READY, 0x04, 0x09): _RETRY,
    (Key.NOT_READY, 0x04, 0x0A): _RETRY,
    (Key.NOT_READY, 0x04, 0x0B): _OTHER_PATH,
    (Key.NOT_READY, 0x04, 0x0C): _OTHER_PATH,
    (Key.NOT_READY, 0x04, 0x12): _OTHER_PATH,
    (Key.NOT_READY, 0x04, 0x14): _RETRY,
    (Key.NOT_READY, 0x04, 0x1B): _fail(errno.EBUSY),
    (Key.NOT_READY, 0x3A): _fail(errno.ENOMEDIUM),
    (Key.NOT_READY, 0x3E, 0x00): _RETRY,
    (Key.MEDIUM_ERROR,): _FAIL,
    (Key.HARDWARE_ERROR,): _FAIL,
    (Key.HARDWARE_ERROR, 0x08): _OTHER_PATH,
    (Key.ILLEGAL_REQUEST,): _fail(errno.EREMOTEIO),
    (Key.ILLEGAL_REQUEST, 0x10): _fail(errno.EILSEQ),
    (Key.ILLEGAL_REQUEST, 0x20, 0x00): _fail(errno.EOPNOTSUPP),
    (Key.ILLEGAL_REQUEST, 0x20, 0x02): _fail(errno.EACCES),
    (Key.ILLEGAL_REQUEST, 0x21): _FAIL,
    (Key.ILLEGAL_REQUEST, 0x25): _Row(Action.OTHER_PATH, errno.ENXIO),
    (Key.ILLEGAL_REQUEST, 0x27): _fail(errno.EROFS),
    (Key.UNIT_ATTENTION,): _attention(Attention.OTHER),
    (Key.UNIT_ATTENTION, 0x28): _attention(Attention.MEDIUM_CHANGED),
    (Key.UNIT_ATTENTION, 0x29): _attention(Attention.RESET),
    (Key.UNIT_ATTENTION, 0x29, 0x01): _attention(Attention.POWER_ON),
    (Key.UNIT_ATTENTION, 0x29, 0x04): _attention(Attention.POWER_ON),
    (Key.UNIT_ATTENTION, 0x2A, 0x01): _attention(Attention.MODE_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x03): _attention(Attention.RESERVATIONS_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x04): _attention(Attention.RESERVATIONS_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x05): _attention(Attention.RESERVATIONS_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x06): _attention(Attention.PATHS_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x07): _attention(Attention.PATHS_CHANGED),
    (Key.UNIT_ATTENTION, 0x2A, 0x09): _attention(Attention.CAPACITY_CHANGED),
    (Key.UNIT_ATTENTION, 0x38, 0x07): _attention(Attention.SPACE_LOW),
    (Key.UNIT_ATTENTION, 0x3F, 0x03): _attention(Attention.IDENTITY_CHANGED),
    (Key.UNIT_ATTENTION, 0x3F, 0x05): _attention(Attention.IDENTITY_CHANGED),
    (Key.UNIT_ATTENTION, 0x3F, 0x0E): _attention(Attention.LUNS_CHANGED),
    (Key.UNIT_ATTENTION, 0x47, 0x7F): _attention(Attention.RESET),
    (Key.DATA_PROTECT,): _fail(errno.EACCES),
    (Key.DATA_PROTECT, 0x27): _fail(errno.EROFS),
    (Key.DATA_PROTECT, 0x27, 0x07): _fail(errno.ENOSPC),
    (Key.BLANK_CHECK,): _FAIL,
    (Key.VENDOR_SPECIFIC,): _FAIL,
    (Key.COPY_ABORTED,): _FAIL,
    # Aborted commands are re-issued; for iSCSI these are 0C/0C, 0C/0D, 47/05 and 11/13 (RFC 7143 11.4.7.2).
    (Key.ABORTED_COMMAND,): _RETRY,
    (Key.ABORTED_COMMAND, 0x10): _fail(errno.EILSEQ),
    (Key.RESERVED,): _FAIL,
    (Key.VOLUME_OVERFLOW,): _fail(errno.ENOSPC),
    (Key.MISCOMPARE,): _fail(errno.EREMOTEIO),
    (Key.COMPLETED,): _DONE,
}

_GOOD = Verdict(Action.DONE)


def verdict(status: int, sense: bytes | memoryview = b"") -> Verdict:
    """Judge the end of a command by its SAM status and its sense data (without iSCSI's length in front). Never raises."""
    if status == Status.GOOD:
        return _GOOD
    if status != Status.CHECK_CONDITION:
        row = STATUS_VERDICTS.get(status, _FAIL)
        return Verdict(row.action, _status_text(status), row.errno, row.attention)
    parsed = parse_sense(sense)
    if parsed is NO_SENSE:
        # The target says that something happened and does not say what: data must not pass for good.
        return Verdict(Action.FAIL, "CHECK CONDITION without sense data", errno.EIO)
    if parsed.deferred:
        return Verdict(Action.ATTENTION, f"deferred {parsed}", errno.EIO, Attention.WRITE_LOST, parsed)
    row = _row(parsed)
    return Verdict(row.action, str(parsed), row.errno, row.attention, parsed)


def flush_verdict(status: int, sense: bytes | memoryview = b"") -> Verdict:
    """Judge a SYNCHRONIZE CACHE: as any command, but ILLEGAL REQUEST 20/00 means there is no cache to write back, so it is done."""
    judged = verdict(status, sense)
    return Verdict(Action.DONE, judged.reason, sense=judged.sense) if is_unsupported_command(judged.sense) else judged


def is_unsupported_command(sense: Sense) -> bool:
    """ILLEGAL REQUEST 20/00: the logical unit does not know the operation code (nor will it the next time)."""
    return (sense.key, sense.asc, sense.ascq, sense.deferred) == (Key.ILLEGAL_REQUEST, 0x20, 0x00, False)


def is_unsupported_field(sense: Sense) -> bool:
    """ILLEGAL REQUEST 24/00: it knows the operation code, but not something asked for in the CDB."""
    return (sense.key, sense.asc, sense.ascq, sense.deferred) == (Key.ILLEGAL_REQUEST, 0x24, 0x00, False)


def _row(sense: Sense) -> _Row:
    key = sense.key
    return VERDICTS.get((key, sense.asc, sense.ascq)) or VERDICTS.get((key, sense.asc)) or VERDICTS[(key,)]


def _status_text(status: int) -> str:
    try:
        return Status(status).name.replace("_", " ")
    except ValueError:
        return f"status 0x{status:02X}"
