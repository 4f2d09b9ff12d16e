"""The target's decisions on operational keys: what it answers to each proposal, what it proposes itself (RFC 7143 6.2, 13).

Written from the RFC without the initiator's table of keys, on purpose. One function a kind of key; `Agreed` is what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.text import parse_boolean, parse_list, parse_number
from isblk.target.config import Offer

Pair = tuple[str, str]
_ANSWERS = frozenset(("Reject", "Irrelevant", "NotUnderstood"))


@dataclass
class Agreed:
    """What holds on the connection once login ends, and before that the defaults of RFC 7143 13. Lengths in bytes, times in seconds."""

    header_digest: str = "None"
    data_digest: str = "None"
    initiator_max_recv_data_segment_length: int = pdu.LOGIN_DATA_SEGMENT_LENGTH
    target_max_recv_data_segment_length: int = pdu.LOGIN_DATA_SEGMENT_LENGTH
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0


@dataclass(frozen=True)
class _Number:
    """A numeric key: its field, bounds, and which of two values wins."""

    field: str
    low: int
    high: int
    choose: Callable[[int, int], int] = min


@dataclass(frozen=True)
class _Boolean:
    """A boolean key: its field, and whether the result is OR (else AND) of the two sides."""

    field: str
    is_or: bool


_NUMBERS = {
    "MaxConnections": _Number("max_connections", 1, 65535),
    "MaxBurstLength": _Number("max_burst_length", 512, 0xFFFFFF),
    "FirstBurstLength": _Number("first_burst_length", 512, 0xFFFFFF),
    "DefaultTime2Wait": _Number("default_time2wait", 0, 3600, max),
    "DefaultTime2Retain": _Number("default_time2retain", 0, 3600),
    "MaxOutstandingR2T": _Number("max_outstanding_r2t", 1, 65535),
    "ErrorRecoveryLevel": _Number("error_recovery_level", 0, 2),
}
_BOOLEANS = {
    "InitialR2T": _Boolean("initial_r2t", is_or=True),
    "ImmediateData": _Boolean("immediate_data", is_or=False),
    "DataPDUInOrder": _Boolean("data_pdu_in_order", is_or=True),
    "DataSequenceInOrder": _Boolean("data_sequence_in_order", is_or=True),
}
_DIGESTS = {"HeaderDigest": "header_digest", "DataDigest": "data_digest"}
_NOT_IN_DISCOVERY = frozenset({*_BOOLEANS, "MaxConnections", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T", "TaskReporting"})
_MARKERS = {"OFMarker": "No", "IFMarker": "No", "OFMarkInt": "Reject", "IFMarkInt": "Reject"}
KEYS = frozenset((*_NUMBERS, *_BOOLEANS, *_DIGESTS, *_MARKERS, "TaskReporting", "iSCSIProtocolLevel"))
"""What belongs into the operational stage and nowhere else; MaxRecvDataSegmentLength may come in any."""


class Negotiation:
    """The operational negotiation of one login. Bad proposals raise ProtocolError."""

    def __init__(self, offer: Offer) -> None:
        self.agreed = Agreed()
        self._offer = offer
        self.discovery = False
        self._settled: set[str] = set()
        self._proposed: dict[str, str] = {}
        self._declared = False

    @property
    def unanswered(self) -> bool:
        """Whether the target has proposed something that the initiator must still answer."""
        return bool(self._proposed)

    def declaration(self) -> list[Pair]:
        """Our MaxRecvDataSegmentLength, once, unless configured to stay silent."""
        limit = self._offer.max_recv_data_segment_length
        if self._declared or limit is None:
            return []
        self._declared = True
        self.agreed.target_max_recv_data_segment_length = limit
        return [("MaxRecvDataSegmentLength", str(limit))]

    def proposals(self) -> list[Pair]:
        """Our own proposals for what the initiator left out (6.2): a target may, and LIO does."""
        if not self._offer.propose or self._proposed:
            return []
        pairs = []
        for key in (*_DIGESTS, *_NUMBERS, *_BOOLEANS):
            if key not in self._settled and not (self.discovery and key in _NOT_IN_DISCOVERY) and not self._irrelevant(key):
                self._proposed[key] = self._own_value(key)
                pairs.append((key, self._proposed[key]))
        return pairs

    def answer(self, pairs: list[Pair]) -> list[Pair]:
        """Take one request's pairs of operational keys; the answers. FirstBurstLength is judged last: others decide whether it matters."""
        answers = []
        pending = set(self._proposed)
        for key, value in sorted(pairs, key=lambda pair: pair[0] == "FirstBurstLength"):
            if key in self._proposed:
                self._take_answer(key, value)
                continue
            if key in self._settled:
                raise ProtocolError(f"the initiator negotiated {key} twice in one login (6.3)")
            self._settled.add(key)
            if value in _ANSWERS:
                raise ProtocolError(f"the initiator proposed the reserved word {value} for {key} (6.2)")
            answers.append((key, self._decide(key, value)))
        self._settle_unanswered(pending & set(self._proposed))
        return answers

    def declare(self, value: str) -> None:
        """The initiator's MaxRecvDataSegmentLength, which is declared and not answered (13.12)."""
        if "MaxRecvDataSegmentLength" in self._settled:
            raise ProtocolError("the initiator declared MaxRecvDataSegmentLength twice in one login (6.3)")
        self._settled.add("MaxRecvDataSegmentLength")
        self.agreed.initiator_max_recv_data_segment_length = parse_number(value, 512, pdu.MAX_DATA_SEGMENT_LENGTH)

    def check(self) -> None:
        """Integrity, before anything takes effect (6.2): raises ProtocolError."""
        agreed = self.agreed
        agreed.first_burst_length = min(agreed.first_burst_length, agreed.max_burst_length)
        for key, name in _DIGESTS.items():
            if getattr(agreed, name) not in getattr(self._offer, name):
                raise ProtocolError(f"no {key} that both sides accept")

    def _decide(self, key: str, value: str) -> str:
        if self.discovery and key in _NOT_IN_DISCOVERY:
            return "Irrelevant"
        if key in _MARKERS:
            return _MARKERS[key]
        if key == "TaskReporting":
            return "RFC3720" if "RFC3720" in parse_list(value) else "Reject"
        if key == "iSCSIProtocolLevel":
            return str(min(1, parse_number(value, 0, 31)))
        if key in _DIGESTS:
            return self._decide_digest(key, value)
        if self._irrelevant(key):
            return "Irrelevant"
        if key in _BOOLEANS:
            return self._decide_boolean(_BOOLEANS[key], parse_boolean(value))
        return self._decide_number(_NUMBERS[key], value)

    def _decide_digest(self, key: str, value: str) -> str:
        acceptable: tuple[str, ...] = getattr(self._offer, _DIGESTS[key])
        for each in parse_list(value):
            if each in acceptable:
                setattr(self.agreed, _DIGESTS[key], each)
                return each
        return "Reject"

    def _decide_boolean(self, rule: _Boolean, proposed: bool) -> str:
        ours: bool = getattr(self._offer, rule.field)
        result = proposed or ours if rule.is_or else proposed and ours
        setattr(self.agreed, rule.field, result)
        return "Yes" if result else "No"

    def _decide_number(self, rule: _Number, value: str) -> str:
        proposed = parse_number(value)
        if not rule.low <= proposed <= rule.high:
            return "Reject"
        result = rule.choose(proposed, getattr(self._offer, rule.field))
        if rule.field == "first_burst_length":
            result = min(result, self.agreed.max_burst_length)
        setattr(self.agreed, rule.field, result)
        return str(result)

    def _irrelevant(self, key: str) -> bool:
        return key == "FirstBurstLength" and self.agreed.initial_r2t and not self.agreed.immediate_data

    def _own_value(self, key: str) -> str:
        if key in _DIGESTS:
            return ",".join(getattr(self._offer, _DIGESTS[key]))
        name = _BOOLEANS[key].field if key in _BOOLEANS else _NUMBERS[key].field
        value = getattr(self._offer, name)
        return ("Yes" if value else "No") if key in _BOOLEANS else str(value)

    def _settle_unanswered(self, keys: set[str]) -> None:
        """Only a boolean whose proposal already decides the result may stay without an answer (6.2.2)."""
        for key in sorted(keys):
            rule = _BOOLEANS.get(key)
            if rule is None or (self._proposed[key] == "Yes") != rule.is_or:
                raise ProtocolError(f"the initiator left our proposal of {key} unanswered (6.2)")
            del self._proposed[key]
            self._settled.add(key)
            setattr(self.agreed, rule.field, rule.is_or)

    def _take_answer(self, key: str, value: str) -> None:
        """The initiator's answer to what we proposed: it must be one that the rule allows (6.2.1, 6.2.2)."""
        ours = self._proposed.pop(key)
        self._settled.add(key)
        if value == "NotUnderstood":
            raise ProtocolError(f"the initiator does not understand {key}, which RFC 7143 demands (6.2)")
        if value in ("Reject", "Irrelevant"):
            return
        if key in _DIGESTS:
            if value not in ours.split(","):
                raise ProtocolError(f"the initiator chose a {key} that was not proposed (6.2.1)")
            setattr(self.agreed, _DIGESTS[key], value)
        elif key in _BOOLEANS:
            rule, chosen = _BOOLEANS[key], parse_boolean(value)
            if chosen != (ours == "Yes") and chosen != rule.is_or:
                raise ProtocolError(f"the initiator answered {key}={value} to {ours}, which the rule excludes (6.2.2)")
            setattr(self.agreed, rule.field, chosen)
        else:
            number, chosen_number = _NUMBERS[key], parse_number(value)
            if not number.low <= chosen_number <= number.high or number.choose(chosen_number, int(ours)) != chosen_number:
                raise ProtocolError(f"the initiator answered {key}={value} to {ours}, which the rule excludes (6.2.2)")
            setattr(self.agreed, number.field, chosen_number)
