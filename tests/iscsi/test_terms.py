from __future__ import annotations

from typing import Any

import pytest

from isblk.errors import UsageError
from isblk.iscsi.chap import Credentials
from isblk.iscsi.keys import KEYS, Rule, Stages
from isblk.iscsi.terms import LoginSettings, Negotiated

INITIATOR = "iqn.2001-04.com.example:host"
TARGET = "iqn.2001-04.com.example:disk1"
ISID = bytes.fromhex("80abcdef0001")


def settings(**changes: Any) -> LoginSettings:
    return LoginSettings(**{"initiator_name": INITIATOR, "isid": ISID, "target_name": TARGET, **changes})


def test_every_key_to_negotiate_is_offered_with_the_defaults_for_speed() -> None:
    assert dict(settings().offers()) == {
        "HeaderDigest": "None",
        "DataDigest": "None",
        "MaxRecvDataSegmentLength": "1048576",
        "InitialR2T": "No",
        "ImmediateData": "Yes",
        "MaxBurstLength": "16776192",
        "FirstBurstLength": "262144",
        "MaxOutstandingR2T": "16",
        "MaxConnections": "1",
        "DataPDUInOrder": "Yes",
        "DataSequenceInOrder": "Yes",
        "DefaultTime2Wait": "2",
        "DefaultTime2Retain": "0",
        "ErrorRecoveryLevel": "0",
        "TaskReporting": "RFC3720,ResponseFence",
        "iSCSIProtocolLevel": "1",
    }


def test_no_key_of_the_table_that_the_stage_negotiates_is_left_out() -> None:
    negotiable = {
        key.name for key in KEYS.values() if key.rule not in (Rule.DECLARATIVE, Rule.OBSOLETE) and key.initiator & Stages.OPERATIONAL
    }
    assert negotiable <= dict(settings().offers()).keys()


def test_a_discovery_session_offers_only_what_applies() -> None:
    discovery = settings(session_type="Discovery", target_name=None)
    assert list(dict(discovery.offers())) == [
        "HeaderDigest",
        "DataDigest",
        "MaxRecvDataSegmentLength",
        "DefaultTime2Wait",
        "DefaultTime2Retain",
        "ErrorRecoveryLevel",
    ]
    assert discovery.introduction() == [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]


def test_a_login_to_a_session_that_exists_offers_no_leading_keys() -> None:
    assert list(dict(settings(tsih=7).offers())) == ["HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength"]


@pytest.mark.parametrize(
    ("setting", "offer"), [("none", "None"), ("crc32c", "CRC32C"), ("prefer", "CRC32C,None"), ("allow", "None,CRC32C")]
)
def test_digest_settings(setting: str, offer: str) -> None:
    offers = dict(settings(header_digest=setting, data_digest="none").offers())
    assert (offers["HeaderDigest"], offers["DataDigest"]) == (offer, "None")


def test_the_introduction_names_both_sides() -> None:
    assert settings(initiator_alias="Web Server 4").introduction() == [
        ("InitiatorName", INITIATOR),
        ("SessionType", "Normal"),
        ("InitiatorAlias", "Web Server 4"),
        ("TargetName", TARGET),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"target_name": None},
        {"session_type": "Other"},
        {"isid": b"short"},
        {"header_digest": "md5"},
        {"data_digest": "CRC32C"},
        {"max_recv_data_segment_length": 511},
        {"max_burst_length": 2**24},
        {"max_burst_length": 65536},
        {"max_outstanding_r2t": 0},
        {"default_time2wait": 3601},
        {"error_recovery_level": 3},
        {"initiator_alias": "a\0b"},
        {"initiator_alias": "x" * 256},
        {"mutual": Credentials("t", b"x" * 12)},
        {"credentials": Credentials("i", b"x" * 12), "mutual": Credentials("t", b"x" * 12)},
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_connection_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        settings(**changes)


def test_secrets_are_in_no_repr() -> None:
    shown = repr(settings(credentials=Credentials("i", b"secret-of-one"), mutual=Credentials("t", b"secret-of-two")))
    assert "secret-of" not in shown


def test_nothing_agreed_means_the_defaults_of_the_rfc() -> None:
    assert Negotiated.from_keys({}, {}, 1048576) == Negotiated(
        header_digest=False,
        data_digest=False,
        max_recv_data_segment_length=1048576,
        target_max_recv_data_segment_length=8192,
        initial_r2t=True,
        immediate_data=True,
        first_burst_length=65536,
        max_burst_length=262144,
        max_outstanding_r2t=1,
        default_time2wait=2,
        default_time2retain=20,
        error_recovery_level=0,
        max_connections=1,
        data_pdu_in_order=True,
        data_sequence_in_order=True,
        target_portal_group_tag=None,
    )


def test_agreed_and_declared_values_take_their_places() -> None:
    agreed = {"HeaderDigest": "CRC32C", "InitialR2T": "No", "ImmediateData": "No", "MaxBurstLength": "512", "DataPDUInOrder": "No"}
    negotiated = Negotiated.from_keys(agreed, {"MaxRecvDataSegmentLength": "65536", "TargetPortalGroupTag": "0"}, 4096)
    assert negotiated.header_digest
    assert not negotiated.data_digest
    assert not negotiated.initial_r2t
    assert not negotiated.immediate_data
    assert not negotiated.data_pdu_in_order
    assert negotiated.max_burst_length == 512
    assert negotiated.max_recv_data_segment_length == 4096
    assert negotiated.target_max_recv_data_segment_length == 65536
    assert negotiated.target_portal_group_tag == 0
