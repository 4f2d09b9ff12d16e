"""The table of login and text keys, and the arithmetic of negotiating them for both sides (RFC 7143 6.2, 12.1, 13; RFC 7144 for one key).

One row a key: what its values are, how an answer follows from an offer, who may send it in which stage. The proposer asks `adopt` what
an answer means and `unanswered` what silence means; the acceptor asks `answer` what to say. Values stay text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto

from isblk.errors import ProtocolError
from isblk.iscsi.text import format_boolean, parse_boolean, parse_list, parse_number, quoted

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
RESERVED = (NOT_UNDERSTOOD, IRRELEVANT, REJECT)


class Kind(Enum):
    """What the values of a key look like (6.1)."""

    BOOLEAN = auto()
    NUMBER = auto()
    LIST = auto()
    TEXT = auto()


class Rule(Enum):
    """The result function (13): which answers an offer allows. A declaration has no answer; obsolete keys are always turned down."""

    DECLARATIVE = auto()
    AND = auto()
    OR = auto()
    MINIMUM = auto()
    MAXIMUM = auto()
    FIRST_COMMON = auto()
    OBSOLETE = auto()


class Stages(Flag):
    """Where a side may send a key (13: use, senders, Any-Stage)."""

    NEVER = 0
    SECURITY = auto()
    OPERATIONAL = auto()
    FULL_FEATURE = auto()
    LOGIN = SECURITY | OPERATIONAL
    LATE = OPERATIONAL | FULL_FEATURE
    ALWAYS = LOGIN | FULL_FEATURE


@dataclass(frozen=True)
class Key:
    """One row. `default` holds while nothing is agreed; `low` and `high` bound a number; `leading`: only on the first login of a session;
    `later`: younger than RFC 3720, so a peer may answer NotUnderstood or nothing."""

    name: str
    kind: Kind
    rule: Rule
    initiator: Stages = Stages.OPERATIONAL
    target: Stages = Stages.OPERATIONAL
    default: str | None = None
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    leading: bool = False
    session_wide: bool = True
    irrelevant_in_discovery: bool = False
    repeatable: bool = False
    later: bool = False

    def check(self, value: str) -> str:
        """`value` in its one spelling, if this key can have it (of a list: one choice). Raises ProtocolError."""
        try:
            return self._check(value)
        except ProtocolError as error:
            raise ProtocolError(f"the peer's value of {self.name} is wrong: {error}") from error

    def _check(self, value: str) -> str:
        if self.kind is Kind.BOOLEAN:
            return format_boolean(parse_boolean(value))
        if self.kind is Kind.NUMBER:
            return str(parse_number(value, self.low, self.high))
        if self.choices and value not in self.choices:
            raise ProtocolError(f"{quoted(value)} is none of {', '.join(self.choices)}")
        return value


def _security(name: str, kind: Kind, rule: Rule = Rule.DECLARATIVE, high: int = 0, choices: tuple[str, ...] = ()) -> Key:
    """A key of section 12: security stage only."""
    return Key(name, kind, rule, Stages.SECURITY, Stages.SECURITY, high=high, choices=choices, session_wide=False)


def _declared(name: str, initiator: Stages, target: Stages, kind: Kind = Kind.TEXT, high: int = 0, repeatable: bool = False) -> Key:
    """A declaration of who or where one is."""
    return Key(name, kind, Rule.DECLARATIVE, initiator, target, high=high, repeatable=repeatable)


def _digest(name: str) -> Key:
    return Key(name, Kind.LIST, Rule.FIRST_COMMON, default="None", choices=("CRC32C", "None"), session_wide=False)


def _boolean(name: str, rule: Rule, default: str) -> Key:
    return Key(name, Kind.BOOLEAN, rule, default=default, leading=True, irrelevant_in_discovery=True)


def _number(name: str, rule: Rule, low: int, high: int, default: int, normal_only: bool = True, later: bool = False) -> Key:
    return Key(
        name, Kind.NUMBER, rule, default=str(default), low=low, high=high, leading=True, irrelevant_in_discovery=normal_only, later=later
    )


_LENGTH_MAX = 2**24 - 1
_TASK_REPORTING = ("RFC3720", "ResponseFence", "FastAbort")

KEYS: Mapping[str, Key] = {
    key.name: key
    for key in (
        _security("AuthMethod", Kind.LIST, Rule.FIRST_COMMON, choices=("CHAP", "None")),
        _security("CHAP_A", Kind.LIST, Rule.FIRST_COMMON, choices=("8", "7", "6", "5")),
        _security("CHAP_I", Kind.NUMBER, high=255),
        _security("CHAP_N", Kind.TEXT),
        _security("CHAP_C", Kind.TEXT),
        _security("CHAP_R", Kind.TEXT),
        _declared("InitiatorName", Stages.LOGIN, Stages.NEVER),
        _declared("InitiatorAlias", Stages.ALWAYS, Stages.NEVER),
        Key(
            "SessionType",
            Kind.TEXT,
            Rule.DECLARATIVE,
            Stages.LOGIN,
            Stages.NEVER,
            default="Normal",
            choices=("Normal", "Discovery"),
            leading=True,
        ),
        _declared("TargetName", Stages.LOGIN, Stages.FULL_FEATURE, repeatable=True),
        _declared("TargetAlias", Stages.NEVER, Stages.ALWAYS),
        _declared("TargetAddress", Stages.NEVER, Stages.ALWAYS, repeatable=True),
        _declared("TargetPortalGroupTag", Stages.NEVER, Stages.LOGIN, Kind.NUMBER, high=65535),
        _declared("SendTargets", Stages.FULL_FEATURE, Stages.NEVER),
        _declared("X#NodeArchitecture", Stages.LOGIN, Stages.LOGIN),
        _digest("HeaderDigest"),
        _digest("DataDigest"),
        Key(
            "MaxRecvDataSegmentLength",
            Kind.NUMBER,
            Rule.DECLARATIVE,
            Stages.LATE,
            Stages.LATE,
            default="8192",
            low=512,
            high=_LENGTH_MAX,
            session_wide=False,
        ),
        _number("MaxConnections", Rule.MINIMUM, 1, 65535, 1),
        _boolean("InitialR2T", Rule.OR, "Yes"),
        _boolean("ImmediateData", Rule.AND, "Yes"),
        _number("MaxBurstLength", Rule.MINIMUM, 512, _LENGTH_MAX, 262144),
        _number("FirstBurstLength", Rule.MINIMUM, 512, _LENGTH_MAX, 65536),
        _number("DefaultTime2Wait", Rule.MAXIMUM, 0, 3600, 2, normal_only=False),
        _number("DefaultTime2Retain", Rule.MINIMUM, 0, 3600, 20, normal_only=False),
        _number("MaxOutstandingR2T", Rule.MINIMUM, 1, 65535, 1),
        _boolean("DataPDUInOrder", Rule.OR, "Yes"),
        _boolean("DataSequenceInOrder", Rule.OR, "Yes"),
        _number("ErrorRecoveryLevel", Rule.MINIMUM, 0, 2, 0, normal_only=False),
        Key(
            "TaskReporting",
            Kind.LIST,
            Rule.FIRST_COMMON,
            default="RFC3720",
            choices=_TASK_REPORTING,
            leading=True,
            irrelevant_in_discovery=True,
            later=True,
        ),
        _number("iSCSIProtocolLevel", Rule.MINIMUM, 0, 31, 1, later=True),
        # Markers are gone, their keys are not: an old peer may still offer them (13.25).
        Key("IFMarker", Kind.BOOLEAN, Rule.OBSOLETE, default="No", session_wide=False),
        Key("OFMarker", Kind.BOOLEAN, Rule.OBSOLETE, default="No", session_wide=False),
        Key("IFMarkInt", Kind.TEXT, Rule.OBSOLETE, session_wide=False),
        Key("OFMarkInt", Kind.TEXT, Rule.OBSOLETE, session_wide=False),
    )
}

# Whether `value` may answer `offered`.
_ADMISSIBLE: Mapping[Rule, Callable[[str, str], bool]] = {
    Rule.AND: lambda offered, value: offered == "Yes" or value == "No",
    Rule.OR: lambda offered, value: offered == "No" or value == "Yes",
    Rule.MINIMUM: lambda offered, value: int(value) <= int(offered),
    Rule.MAXIMUM: lambda offered, value: int(value) >= int(offered),
    Rule.FIRST_COMMON: lambda offered, value: value in offered.split(","),
}

# What an acceptor that wants `own` says to an admissible `offered`; "" where the two have nothing in common.
_SELECT: Mapping[Rule, Callable[[str, str], str]] = {
    Rule.AND: lambda offered, own: format_boolean(offered == own == "Yes"),
    Rule.OR: lambda offered, own: format_boolean("Yes" in (offered, own)),
    Rule.MINIMUM: lambda offered, own: min(offered, own, key=int),
    Rule.MAXIMUM: lambda offered, own: max(offered, own, key=int),
    Rule.FIRST_COMMON: lambda offered, own: next((item for item in parse_list(offered) if item in own.split(",")), ""),
}


def check_sender(name: str, stage: Stages, from_target: bool) -> None:
    """Refuse a key that its sender may not send in this stage; unknown keys may come anywhere. Raises ProtocolError (6.3)."""
    key = KEYS.get(name)
    if key is not None and not stage & (key.target if from_target else key.initiator):
        side = "target" if from_target else "initiator"
        raise ProtocolError(f"the {side} sent {name} in the {stage.name} stage, where it has no place (RFC 7143 13)")


def adopt(name: str, offered: str, received: str) -> str:
    """The result of a negotiation that we proposed. Raises ProtocolError if `received` is not among what we `offered`."""
    key = KEYS[name]
    if received == NOT_UNDERSTOOD and not key.later:
        raise ProtocolError(f"the peer does not understand {name}, which every peer must (RFC 7143 6.2)")
    if received in RESERVED:
        return _default(key)
    value = key.check(received)
    if not _ADMISSIBLE[key.rule](offered, value):
        raise ProtocolError(f"the peer answered {name}={quoted(value)} to our {quoted(offered)}, which does not allow it (RFC 7143 6.2)")
    return value


def unanswered(name: str, offered: str) -> str:
    """The result when the peer never answered our offer. Raises ProtocolError where that cannot be lived with.

    An answer is optional for a boolean that the offer decides (6.2.2). Elsewhere silence means that nothing was negotiated: the default
    stands, if our offer allows it. Refusing those too was rejected: it locks out careless targets and protects nothing.
    """
    key = KEYS[name]
    if (key.rule, offered) in ((Rule.AND, "No"), (Rule.OR, "Yes")):
        return offered
    default = _default(key)
    if not _ADMISSIBLE[key.rule](offered, default):
        raise ProtocolError(f"the peer did not answer our {name}={quoted(offered)} (RFC 7143 6.2)")
    return default


def answer(name: str, proposed: str, own: str | None = None, discovery: bool = False) -> str | None:
    """What to say to a key that the peer proposes, None for a declaration. `own` is our wish (of a list: all we support), else the default.

    Raises ProtocolError for a reserved word as proposal and for a declaration that is wrong; a wrong value to negotiate is answered Reject.
    """
    if proposed in RESERVED:
        raise ProtocolError(f"the peer proposed {name}={proposed}, which can only be an answer (RFC 7143 6.2)")
    key = KEYS.get(name)
    if key is None:
        return NOT_UNDERSTOOD
    if key.rule is Rule.DECLARATIVE:
        key.check(proposed)
        return None
    if key.rule is Rule.OBSOLETE:
        return "No" if key.kind is Kind.BOOLEAN else REJECT
    if discovery and key.irrelevant_in_discovery:
        return IRRELEVANT
    return _select(key, proposed, own if own is not None else _default(key))


def number(agreed: Mapping[str, str], name: str) -> int:
    """The agreed number of `name`, else its default."""
    return int(agreed.get(name, _default(KEYS[name])))


def boolean(agreed: Mapping[str, str], name: str) -> bool:
    """The agreed boolean of `name`, else its default."""
    return agreed.get(name, _default(KEYS[name])) == "Yes"


def check_integrity(agreed: Mapping[str, str]) -> None:
    """The rules between keys, to be checked when all are agreed. Raises ProtocolError (6.2, 13.14, 13.19)."""
    first, most = number(agreed, "FirstBurstLength"), number(agreed, "MaxBurstLength")
    unsolicited = boolean(agreed, "ImmediateData") or not boolean(agreed, "InitialR2T")
    if unsolicited and first > most:
        raise ProtocolError(f"FirstBurstLength {first} was negotiated above MaxBurstLength {most} (RFC 7143 13.14)")
    in_order = number(agreed, "ErrorRecoveryLevel") > 0 and boolean(agreed, "DataSequenceInOrder")
    if in_order and number(agreed, "MaxOutstandingR2T") > 1:
        raise ProtocolError("several outstanding R2Ts were negotiated with error recovery and sequences in order (RFC 7143 13.19)")


def _default(key: Key) -> str:
    if key.default is None:
        raise ProtocolError(f"{key.name} was left undecided and has no default")
    return key.default


def _select(key: Key, proposed: str, own: str) -> str:
    try:
        offered = proposed if key.kind is Kind.LIST else key.check(proposed)
        return _SELECT[key.rule](offered, own) or REJECT
    except ProtocolError:
        return REJECT
