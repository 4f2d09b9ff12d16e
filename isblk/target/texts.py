"""Text Requests in full feature phase: SendTargets, and the few keys that may still be declared (RFC 7143 6.4, 13.3, appendix C)."""

from __future__ import annotations

from collections.abc import Callable

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.text import Pairs, TextAssembler, encode_pairs, parse_number, split_text
from isblk.target import negotiate
from isblk.target.negotiate import Agreed
from isblk.target.sessions import DISCOVERY, Node, Session

_WILDCARDS = frozenset(("0.0.0.0", "::"))


class Exchange:
    """The one text exchange of a connection: requests that continue (C), answers that continue (F=0 with a Target Transfer Tag, or C)."""

    def __init__(self, new_ttt: Callable[[], int], by_c_bit: bool) -> None:
        self._new_ttt = new_ttt
        self._more_flag = pdu.CONTINUE if by_c_bit else 0
        self._assembler = TextAssembler()
        self._pieces: list[bytes] = []
        self._ttt = pdu.RESERVED_TAG

    def take(self, ttt: int, data: bytes, continues: bool, answer: Callable[[Pairs], list[bytes]]) -> tuple[int, bytes, int]:
        """One request; (flags, data, TTT) of its response. A reserved TTT resets whatever was under way (11.10.4). Raises ProtocolError."""
        if ttt == pdu.RESERVED_TAG:
            self._assembler, self._pieces = TextAssembler(), []
        elif ttt != self._ttt:
            raise ProtocolError("a Text Request with a Target Transfer Tag that was not given (11.10.4)")
        if not self._pieces:
            pairs = self._assembler.add(data, continues)
            if pairs is None:
                self._ttt = self._new_ttt()
                return 0, b"", self._ttt
            self._pieces = answer(pairs)
        elif data or continues:
            raise ProtocolError("a Text Request brings text while ours continues (6.2)")
        piece = self._pieces.pop(0)
        self._ttt = self._new_ttt() if self._pieces else pdu.RESERVED_TAG
        return self._more_flag if self._pieces else pdu.FINAL, piece, self._ttt

    def __repr__(self) -> str:
        return f"<Exchange {len(self._pieces)} pieces to go>"


def answer_text(node: Node, session: Session, agreed: Agreed, pairs: Pairs, local_host: str) -> Pairs:
    """The answers to one whole request. `local_host` is the address that this connection came in on. Raises ProtocolError."""
    answers: Pairs = []
    for key, value in pairs:
        if key == "SendTargets":
            answers += _send_targets(node, session, value, local_host)
        elif key == "MaxRecvDataSegmentLength":
            agreed.initiator_max_recv_data_segment_length = parse_number(value, 512, pdu.MAX_DATA_SEGMENT_LENGTH)
        else:
            answers.append((key, "Reject" if key in negotiate.KEYS else "NotUnderstood"))
    return answers


def cut(pairs: Pairs, limit: int, by_c_bit: bool) -> list[bytes]:
    """Text in pieces of at most `limit` bytes: anywhere for the C bit, else between pairs, where a pair that is longer stays whole."""
    if by_c_bit:
        return split_text(encode_pairs(pairs), limit)
    pieces: list[bytes] = []
    for pair in pairs:
        encoded = encode_pairs([pair])
        if pieces and len(pieces[-1]) + len(encoded) <= limit:
            pieces[-1] += encoded
        else:
            pieces.append(encoded)
    return pieces or [b""]


def _send_targets(node: Node, session: Session, value: str, local_host: str) -> Pairs:
    """All in a discovery session, this target by its name or by nothing in a normal one (appendix C)."""
    name = node.config.name
    if value == "All":
        if session.session_type != DISCOVERY:
            return [("SendTargets", "Reject")]
    elif value.lower() != name.lower() and (value or session.session_type == DISCOVERY):
        return []
    return [("TargetName", name), *(("TargetAddress", each) for each in addresses(node, local_host))]


def addresses(node: Node, local_host: str) -> list[str]:
    """Every portal as 'address:port,tag'; one that listens everywhere is told as the address the initiator reached."""
    told = []
    for portal, (host, port) in zip(node.config.portals, node.addresses, strict=True):
        host = local_host if host in _WILDCARDS else host
        address = portal.announced or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        told.append(f"{address},{portal.tpgt}")
    return told
