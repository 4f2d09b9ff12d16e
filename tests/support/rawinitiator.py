"""An initiator of bare PDUs for tests of the target's core: it does what the test says, right or wrong, and shows every answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isblk.iscsi import pdu
from isblk.iscsi.framer import Framer, frame
from isblk.iscsi.text import decode_pairs, encode_pairs
from isblk.target.config import PortalConfig, TargetConfig
from isblk.target.core import Connection
from isblk.target.luns import encode_lun
from isblk.target.sessions import Node

INITIATOR_NAME = "iqn.2026-11.org.isblk:test"
ISID = bytes.fromhex("800000010000")


@dataclass(frozen=True)
class Answer:
    """One PDU of the target, taken apart."""

    opcode: int
    flags: int
    second: int
    third: int
    lun: bytes
    itt: int
    ttt: int
    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    words: tuple[int, int, int]
    data: bytes

    @property
    def status(self) -> int:
        return self.third

    @property
    def sense(self) -> bytes:
        return self.data[2:]

    @property
    def login_status(self) -> int:
        return self.words[0] >> 16

    @property
    def text(self) -> list[tuple[str, str]]:
        return decode_pairs(self.data)


class RawInitiator:
    """One connection to a node, with no socket. Keeps CmdSN and task tags unless the test gives its own."""

    def __init__(self, node: Node, portal: PortalConfig | None = None) -> None:
        self.node = node
        self.connection = Connection(node, portal or node.config.portals[0])
        self.answers: list[Answer] = []
        self.cmd_sn = 1
        self.itt = 0
        self.header_digest = self.data_digest = False
        self._framer = Framer(self, pdu.MAX_DATA_SEGMENT_LENGTH)

    # The receiving half, as a sink of the framer

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        return None

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        opcode, flags, second, third, _, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, *words = pdu.TARGET.unpack(bhs)
        self.answers.append(
            Answer(
                opcode, flags, second, third, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn, (words[0], words[1], words[2]), bytes(data)
            )
        )

    def collect(self) -> list[Answer]:
        """What the target has to say now, in order."""
        self.answers = []
        while buffers := self.connection.outgoing():
            self._swallow(b"".join(buffers))
        return self.answers

    def _swallow(self, stream: bytes) -> None:
        while stream:
            buffer = self._framer.receive_buffer()
            count = min(len(buffer), len(stream))
            buffer[:count] = stream[:count]
            stream = stream[count:]
            self._framer.received(count)

    # The sending half

    def send_bytes(self, stream: bytes, chunk: int = 1 << 20) -> list[Answer]:
        """Raw bytes, at most `chunk` at a time; what the target answers."""
        for start in range(0, len(stream), chunk):
            rest = memoryview(stream)[start : start + chunk]
            while rest:
                buffer = self.connection.receive_buffer()
                count = min(len(buffer), len(rest))
                buffer[:count] = rest[:count]
                rest = rest[count:]
                self.connection.received(count)
        return self.collect()

    def send(self, bhs: bytes, data: bytes = b"", chunk: int = 1 << 20) -> list[Answer]:
        return self.send_bytes(b"".join(frame(bhs, data, self.header_digest, self.data_digest)), chunk)

    def next_itt(self) -> int:
        self.itt += 1
        return self.itt

    def next_cmd_sn(self) -> int:
        self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        return (self.cmd_sn - 1) & 0xFFFFFFFF

    def login_request(
        self, pairs: list[tuple[str, str]] | bytes, flags: int, isid: bytes = ISID, tsih: int = 0, cid: int = 0, versions: int = 0
    ) -> Answer:
        """One Login Request; its response."""
        data = pairs if isinstance(pairs, bytes) else encode_pairs(pairs)
        words = (cid << 16, self.cmd_sn, 0, 0, 0, 0, 0)
        bhs = pdu.INITIATOR.pack(pdu.LOGIN | pdu.IMMEDIATE, flags, versions, len(data), isid + tsih.to_bytes(2, "big"), 0, *words)
        (answer,) = self.send(bhs, data)
        return answer

    def log_in(self, *pairs: tuple[str, str], discovery: bool = False, isid: bytes = ISID, tsih: int = 0) -> Answer:
        """A login from the operational stage straight to full feature; its final response."""
        who = [("InitiatorName", INITIATOR_NAME)]
        who += [("SessionType", "Discovery")] if discovery else [("TargetName", self.node.config.name)]
        answer = self.login_request([*who, *pairs], 0x87, isid=isid, tsih=tsih)
        agreed = dict(answer.text) if answer.login_status == 0 else {}
        self.header_digest = agreed.get("HeaderDigest") == "CRC32C"
        self.data_digest = agreed.get("DataDigest") == "CRC32C"
        self._framer.enable_digests(self.header_digest, self.data_digest)
        return answer

    def command(
        self, cdb: bytes, read: int = 0, write: int = 0, data: bytes = b"", final: bool = True, lun: int = 0, **over: Any
    ) -> list[Answer]:
        """A SCSI Command: `read` or `write` bytes expected, `data` immediate. `over`: itt, cmd_sn, immediate, raw_lun, chunk."""
        flags = (pdu.FINAL if final else 0) | (pdu.READ if read else 0) | (pdu.WRITE if write else 0) | 1
        immediate = over.get("immediate", False)
        cmd_sn = over["cmd_sn"] if "cmd_sn" in over else self.cmd_sn if immediate else self.next_cmd_sn()
        itt = over["itt"] if "itt" in over else self.next_itt()
        opcode = pdu.SCSI_COMMAND | (pdu.IMMEDIATE if immediate else 0)
        raw_lun = over.get("raw_lun", encode_lun(lun))
        bhs = pdu.COMMAND.pack(opcode, flags, 0, len(data), raw_lun, itt, read or write, cmd_sn, 0, cdb.ljust(16, b"\0"))
        return self.send(bhs, data, over.get("chunk", 1 << 20))

    def data_out(
        self, data: bytes, offset: int, data_sn: int = 0, final: bool = True, ttt: int = pdu.RESERVED_TAG, itt: int | None = None
    ) -> list[Answer]:
        """A Data-Out for the last command, or for `itt`."""
        words = (ttt, 0, 0, 0, data_sn, offset, 0)
        flags = pdu.FINAL if final else 0
        bhs = pdu.INITIATOR.pack(pdu.DATA_OUT, flags, 0, len(data), bytes(8), self.itt if itt is None else itt, *words)
        return self.send(bhs, data)

    def request(self, opcode: int, flags: int = pdu.FINAL, data: bytes = b"", immediate: bool = False, **over: Any) -> list[Answer]:
        """Any other PDU. `over`: itt, cmd_sn, lun, and the words w20, w32, w36, w40, w44."""
        cmd_sn = over["cmd_sn"] if "cmd_sn" in over else self.cmd_sn if immediate else self.next_cmd_sn()
        itt = over["itt"] if "itt" in over else self.next_itt()
        words = (over.get("w20", 0), cmd_sn, 0, over.get("w32", 0), over.get("w36", 0), over.get("w40", 0), over.get("w44", 0))
        bhs = pdu.INITIATOR.pack(opcode | (pdu.IMMEDIATE if immediate else 0), flags, 0, len(data), over.get("lun", bytes(8)), itt, *words)
        return self.send(bhs, data)

    def clear_attention(self, lun: int = 0) -> None:
        """Take the unit attention that a fresh nexus finds."""
        (answer,) = self.command(bytes(6), lun=lun)
        if answer.status != 2 or answer.sense[2] != 6:
            raise AssertionError("there was no unit attention to take")


def logged_in(config: TargetConfig, *pairs: tuple[str, str]) -> RawInitiator:
    """A new node and a connection in full feature phase on it, without a unit attention left."""
    initiator = RawInitiator(open_node(config))
    answer = initiator.log_in(*pairs)
    if answer.login_status:
        raise AssertionError(f"login refused with {answer.login_status:04x}")
    for number, unit in initiator.node.units.units.items():
        if unit.config.fresh_attention is not None:
            initiator.clear_attention(number)
    return initiator


def open_node(config: TargetConfig) -> Node:
    """A node whose portals listen nowhere."""
    node = Node(config)
    node.addresses = [(portal.host, portal.port or 3260) for portal in config.portals]
    return node


def read10(lba: int, blocks: int, fua: bool = False) -> bytes:
    return bytes((0x28, 8 if fua else 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write10(lba: int, blocks: int, fua: bool = False) -> bytes:
    return bytes((0x2A, 8 if fua else 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
