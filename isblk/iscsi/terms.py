"""The terms of a login: what we ask (LoginSettings), what was agreed (Negotiated), and how it came about (RFC 7143 11.12, 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from isblk.errors import ProtocolError, UsageError
from isblk.iscsi.chap import STRONGEST_FIRST, Credentials, check_directions
from isblk.iscsi.keys import KEYS, boolean, number
from isblk.iscsi.names import ISID_LENGTH
from isblk.iscsi.text import Pairs, encode_pairs, format_boolean, format_list

# How a setting is offered: the first choice is ours, and where None is no choice the digest is required.
DIGEST_OFFERS: Mapping[str, str] = {"none": "None", "crc32c": "CRC32C", "prefer": "CRC32C,None", "allow": "None,CRC32C"}


@dataclass(frozen=True)
class LoginSettings:
    """Everything one login needs to know; lengths in bytes, times in seconds. Raises UsageError for what cannot be asked.

    `mutual` is what the target must prove: its name and secret. `cmd_sn` is the session's next command sequence number: the login carries
    it without using it up. The defaults are for speed: large bursts, and data sent before it is asked for.
    """

    initiator_name: str
    isid: bytes
    target_name: str | None = None
    session_type: Literal["Normal", "Discovery"] = "Normal"
    tsih: int = 0
    cid: int = 0
    cmd_sn: int = 1
    expected_tpgt: int | None = None
    initiator_alias: str | None = None
    credentials: Credentials | None = None
    mutual: Credentials | None = None
    chap_algorithms: tuple[int, ...] = STRONGEST_FIRST
    header_digest: str = "none"
    data_digest: str = "none"
    max_recv_data_segment_length: int = 1048576
    max_burst_length: int = 16776192
    first_burst_length: int = 262144
    immediate_data: bool = True
    initial_r2t: bool = False
    max_outstanding_r2t: int = 16
    default_time2wait: int = 2
    default_time2retain: int = 0
    error_recovery_level: int = 0
    max_connections: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True

    def __post_init__(self) -> None:
        if self.session_type not in KEYS["SessionType"].choices:
            raise UsageError(f"not a session type: {self.session_type!r}; it is Normal or Discovery")
        if not self.discovery and not self.target_name:
            raise UsageError("a login needs the name of a target")
        if len(self.isid) != ISID_LENGTH:
            raise UsageError("an ISID has 6 bytes (RFC 7143 11.12.5)")
        for digest in (self.header_digest, self.data_digest):
            if digest not in DIGEST_OFFERS:
                raise UsageError(f"not a digest setting: {digest!r}; it is one of {', '.join(DIGEST_OFFERS)}")
        if self.first_burst_length > self.max_burst_length:
            raise UsageError("FirstBurstLength cannot be above MaxBurstLength (RFC 7143 13.14)")
        check_directions(self.credentials, self.mutual)
        self._check_offers()
        try:
            encode_pairs(self.introduction())
        except ValueError as error:
            raise UsageError(f"a name or alias cannot be sent: {error}") from error

    def _check_offers(self) -> None:
        for name, value in self.offers():
            try:
                for item in value.split(","):
                    KEYS[name].check(item)
            except ProtocolError as error:
                raise UsageError(f"{name}={value} cannot be offered: it is out of range (RFC 7143 13)") from error

    @property
    def discovery(self) -> bool:
        """Whether this login is for a discovery session."""
        return self.session_type == "Discovery"

    def introduction(self) -> Pairs:
        """Who we are and whom we want: the keys of the first request (6.3)."""
        pairs = [("InitiatorName", self.initiator_name), ("SessionType", self.session_type)]
        if self.initiator_alias:
            pairs.append(("InitiatorAlias", self.initiator_alias))
        if self.target_name and not self.discovery:
            pairs.append(("TargetName", self.target_name))
        return pairs

    def offers(self) -> Pairs:
        """The keys of the operational stage: every one that applies, because LIO proposes what is missing and drops a login over it."""
        return [
            (name, value)
            for name, value in self._all_offers()
            if not (self.discovery and KEYS[name].irrelevant_in_discovery) and not (self.tsih and KEYS[name].leading)
        ]

    def _all_offers(self) -> Pairs:
        return [
            ("HeaderDigest", DIGEST_OFFERS[self.header_digest]),
            ("DataDigest", DIGEST_OFFERS[self.data_digest]),
            ("MaxRecvDataSegmentLength", str(self.max_recv_data_segment_length)),
            ("InitialR2T", format_boolean(self.initial_r2t)),
            ("ImmediateData", format_boolean(self.immediate_data)),
            ("MaxBurstLength", str(self.max_burst_length)),
            ("FirstBurstLength", str(self.first_burst_length)),
            ("MaxOutstandingR2T", str(self.max_outstanding_r2t)),
            ("MaxConnections", str(self.max_connections)),
            ("DataPDUInOrder", format_boolean(self.data_pdu_in_order)),
            ("DataSequenceInOrder", format_boolean(self.data_sequence_in_order)),
            ("DefaultTime2Wait", str(self.default_time2wait)),
            ("DefaultTime2Retain", str(self.default_time2retain)),
            ("ErrorRecoveryLevel", str(self.error_recovery_level)),
            # An originator must offer at least these two (13.23); the first is what we want.
            ("TaskReporting", format_list(("RFC3720", "ResponseFence"))),
            ("iSCSIProtocolLevel", "1"),
        ]


@dataclass(frozen=True)
class Negotiated:
    """The values in force in the full feature phase; lengths in bytes, times in seconds.

    `max_recv_data_segment_length` is ours, what the target may send; `target_max_recv_data_segment_length` is what we may send.
    """

    header_digest: bool
    data_digest: bool
    max_recv_data_segment_length: int
    target_max_recv_data_segment_length: int
    initial_r2t: bool
    immediate_data: bool
    first_burst_length: int
    max_burst_length: int
    max_outstanding_r2t: int
    default_time2wait: int
    default_time2retain: int
    error_recovery_level: int
    max_connections: int
    data_pdu_in_order: bool
    data_sequence_in_order: bool
    target_portal_group_tag: int | None

    @classmethod
    def from_keys(cls, agreed: Mapping[str, str], declared: Mapping[str, str], max_recv_data_segment_length: int) -> Negotiated:
        """From what was `agreed` and what the target `declared`; defaults of RFC 7143 13 for the rest."""
        tag = declared.get("TargetPortalGroupTag")
        return cls(
            header_digest=agreed.get("HeaderDigest") == "CRC32C",
            data_digest=agreed.get("DataDigest") == "CRC32C",
            max_recv_data_segment_length=max_recv_data_segment_length,
            target_max_recv_data_segment_length=number(declared, "MaxRecvDataSegmentLength"),
            initial_r2t=boolean(agreed, "InitialR2T"),
            immediate_data=boolean(agreed, "ImmediateData"),
            first_burst_length=number(agreed, "FirstBurstLength"),
            max_burst_length=number(agreed, "MaxBurstLength"),
            max_outstanding_r2t=number(agreed, "MaxOutstandingR2T"),
            default_time2wait=number(agreed, "DefaultTime2Wait"),
            default_time2retain=number(agreed, "DefaultTime2Retain"),
            error_recovery_level=number(agreed, "ErrorRecoveryLevel"),
            max_connections=number(agreed, "MaxConnections"),
            data_pdu_in_order=boolean(agreed, "DataPDUInOrder"),
            data_sequence_in_order=boolean(agreed, "DataSequenceInOrder"),
            target_portal_group_tag=int(tag) if tag is not None else None,
        )


Decider = Literal["isblk", "target", "both", "default"]


@dataclass(frozen=True)
class Agreement:
    """One line for `isblk status`: what we asked (None: nothing), what holds now, and who decided it."""

    key: str
    asked: str | None
    agreed: str
    decided: Decider


@dataclass(frozen=True)
class LoginResult:
    """A login that succeeded. The first command of the full feature phase carries `cmd_sn`; `exp_stat_sn` is the next StatSN to come."""

    negotiated: Negotiated
    tsih: int
    cmd_sn: int
    exp_stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int
    tpgt: int | None
    target_alias: str | None
    agreements: tuple[Agreement, ...]
