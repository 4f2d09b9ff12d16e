"""Protocol data units: opcodes, flags, header layouts and a one-line text of every PDU (RFC 7143 11).

Every basic header segment is 48 bytes, and all of them share two shapes: what follows the LUN is eight 32-bit words. The session packs and
unpacks with the Structs below directly; an object per PDU was measured to cost more than the rest of the receive path and is not made.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

BHS_LENGTH: Final = 48
DIGEST_LENGTH: Final = 4
RESERVED_TAG: Final = 0xFFFFFFFF
"""The reserved Initiator Task Tag and Target Transfer Tag (11.2.1.8, 11.7.4)."""
MAX_DATA_SEGMENT_LENGTH: Final = 0xFFFFFF
LOGIN_DATA_SEGMENT_LENGTH: Final = 8192
"""What either side may send until MaxRecvDataSegmentLength is declared (13.12)."""

NOP_OUT: Final = 0x00
SCSI_COMMAND: Final = 0x01
TASK_MANAGEMENT: Final = 0x02
LOGIN: Final = 0x03
TEXT: Final = 0x04
DATA_OUT: Final = 0x05
LOGOUT: Final = 0x06
SNACK: Final = 0x10
NOP_IN: Final = 0x20
SCSI_RESPONSE: Final = 0x21
TASK_MANAGEMENT_RESPONSE: Final = 0x22
LOGIN_RESPONSE: Final = 0x23
TEXT_RESPONSE: Final = 0x24
DATA_IN: Final = 0x25
LOGOUT_RESPONSE: Final = 0x26
R2T: Final = 0x31
ASYNC_MESSAGE: Final = 0x32
REJECT: Final = 0x3F

OPCODE_MASK: Final = 0x3F
IMMEDIATE: Final = 0x40
"""The I bit of byte 0 (11.2.1.1)."""

FINAL: Final = 0x80
"""The F bit of byte 1; in login and text the same bit is T or F (11.2.1.3)."""
TRANSIT: Final = 0x80
CONTINUE: Final = 0x40
"""The C bit of login and text (11.10.2, 11.12.2)."""
READ: Final = 0x40
WRITE: Final = 0x20
"""R and W of a SCSI Command (11.3.1)."""
DATA_ACKNOWLEDGE: Final = 0x40
DATA_OVERFLOW: Final = 0x04
DATA_UNDERFLOW: Final = 0x02
DATA_STATUS: Final = 0x01
"""A, O, U and S of a Data-In (11.7.1)."""
RESPONSE_OVERFLOW: Final = 0x04
RESPONSE_UNDERFLOW: Final = 0x02
"""O and U of a SCSI Response (11.4.1)."""


class Attribute(IntEnum):
    """Task attributes of a SCSI Command (11.3.1.2)."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class TaskManagement(IntEnum):
    """Task management functions (11.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskManagementResponse(IntEnum):
    """Answers to a task management function (11.6.1)."""

    COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    REJECTED = 255


class LogoutReason(IntEnum):
    """Why the initiator logs out (11.14.1)."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class AsyncEvent(IntEnum):
    """Events of an asynchronous message (11.9.1)."""

    SCSI_EVENT = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROPPED = 2
    ALL_CONNECTIONS_DROPPED = 3
    NEGOTIATION_REQUESTED = 4
    TASKS_TERMINATED = 5


class RejectReason(IntEnum):
    """Why the target rejected a PDU (11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    TOO_MANY_IMMEDIATE = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    OUT_OF_RESOURCES = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


COMMAND: Final = Struct(">BBHI8sIIII16s")
"""SCSI Command: opcode, flags, 0, lengths, LUN, ITT, expected data transfer length, CmdSN, ExpStatSN, CDB."""
INITIATOR: Final = Struct(">BBHI8s8I")
"""Any other PDU of the initiator: opcode, flags, 2 bytes, lengths, LUN (or ISID and TSIH), ITT, then words 20 24 28 32 36 40 44."""
TARGET: Final = Struct(">BBBBI8s8I")
"""Any PDU of the target: opcode, flags, two bytes, lengths, LUN (or ISID, TSIH), ITT, TTT, StatSN, ExpCmdSN, MaxCmdSN, words 36 40 44."""
HOT_TARGET: Final = Struct(">xBBBI8x8I")
"""The same without opcode and LUN: what the receive path looks at."""
HOT_COMMAND: Final = Struct(">Q8sIIII16s")
"""COMMAND with its first eight bytes as one number."""
HOT_ANSWER: Final = Struct(">II8xI4xIIIQ4x")
"""TARGET of a PDU that may end a task as it should: the first four bytes as one number, lengths, ITT, StatSN, ExpCmdSN, MaxCmdSN, words 36
and 40 as one number. (Half the values cost two thirds of the time.)"""
LENGTHS: Final = Struct(">I")
"""Bytes 4 to 7: TotalAHSLength in 4-byte words, then DataSegmentLength in bytes."""

NAMES: Final = {
    NOP_OUT: "NOP-Out",
    SCSI_COMMAND: "SCSI Command",
    TASK_MANAGEMENT: "Task Management",
    LOGIN: "Login",
    TEXT: "Text",
    DATA_OUT: "Data-Out",
    LOGOUT: "Logout",
    SNACK: "SNACK",
    NOP_IN: "NOP-In",
    SCSI_RESPONSE: "SCSI Response",
    TASK_MANAGEMENT_RESPONSE: "Task Management Response",
    LOGIN_RESPONSE: "Login Response",
    TEXT_RESPONSE: "Text Response",
    DATA_IN: "Data-In",
    LOGOUT_RESPONSE: "Logout Response",
    R2T: "R2T",
    ASYNC_MESSAGE: "Async Message",
    REJECT: "Reject",
}

_WORDS: Final = {
    NOP_OUT: ("ttt", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    SCSI_COMMAND: ("length", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    TASK_MANAGEMENT: ("ref_itt", "cmd_sn", "exp_stat_sn", "ref_cmd_sn", "exp_data_sn", "", ""),
    LOGIN: ("", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    TEXT: ("ttt", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    DATA_OUT: ("ttt", "", "exp_stat_sn", "", "data_sn", "offset", ""),
    LOGOUT: ("", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    SNACK: ("ttt", "", "exp_stat_sn", "", "", "beg_run", "run_length"),
    NOP_IN: ("ttt", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "", "", ""),
    SCSI_RESPONSE: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "exp_data_sn", "", "residual"),
    TASK_MANAGEMENT_RESPONSE: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "", "", ""),
    LOGIN_RESPONSE: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "", "", ""),
    TEXT_RESPONSE: ("ttt", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "", "", ""),
    DATA_IN: ("ttt", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "data_sn", "offset", "residual"),
    LOGOUT_RESPONSE: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "", "time2wait_retain", ""),
    R2T: ("ttt", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "r2t_sn", "offset", "length"),
    ASYNC_MESSAGE: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "event", "parameter2_3", ""),
    REJECT: ("", "stat_sn", "exp_cmd_sn", "max_cmd_sn", "data_sn", "", ""),
}


def padded(length: int) -> int:
    """`length` rounded up to whole 4-byte words (11.2.3)."""
    return (length + 3) & ~3


def describe(bhs: bytes | memoryview) -> str:
    """One line of a PDU for logs and traces, from its 48-byte header alone: payload may hold secrets and is never printed."""
    opcode, flags, second, third, lengths, lun, itt, *words = TARGET.unpack(bhs)
    code = opcode & OPCODE_MASK
    parts = [NAMES.get(code, f"opcode 0x{code:02x}")]
    if opcode & IMMEDIATE:
        parts.append("immediate")
    is_login = code in (LOGIN, LOGIN_RESPONSE)  # which have ISID and TSIH in the place of the LUN (11.12, 11.13)
    place = f"isid={lun[:6].hex()} tsih={int.from_bytes(lun[6:], 'big')}" if is_login else f"lun={lun.hex()}"
    parts.append(f"flags=0x{flags:02x} bytes={lengths & 0xFFFFFF} itt=0x{itt:x} {place}")
    if code == LOGIN_RESPONSE:
        parts.append(f"status=0x{words[4] >> 16:04x}")
    if code in (SCSI_RESPONSE, DATA_IN):
        parts.append(f"response=0x{second:02x} status=0x{third:02x}")
    if code == REJECT:
        parts.append(f"reason=0x{second:02x}")
    if code == SCSI_COMMAND:
        parts.append(f"cdb={bytes(bhs[32:48]).hex()}")
    parts.extend(f"{name}={word}" for name, word in zip(_WORDS.get(code, ()), words, strict=False) if name)
    return " ".join(parts)
