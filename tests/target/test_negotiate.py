from __future__ import annotations

from dataclasses import replace

import pytest

from isblk.errors import ProtocolError
from isblk.target.config import Offer
from isblk.target.negotiate import KEYS, Agreed, Negotiation

OFFER = Offer(max_burst_length=1 << 20, first_burst_length=1 << 16, max_outstanding_r2t=4)


@pytest.mark.parametrize(
    "key, proposed, answered",
    [
        ("MaxConnections", "8", "1"),
        ("MaxBurstLength", "262144", "262144"),
        ("MaxBurstLength", "16776192", "1048576"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "0x4000", "16384"),
        ("FirstBurstLength", "8192", "8192"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("MaxOutstandingR2T", "65535", "4"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "Yes", "Yes"),
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("DataDigest", "None,CRC32C", "None"),
        ("HeaderDigest", "MD5,None", "None"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "2", "1"),
        ("IFMarker", "Yes", "No"),
        ("OFMarkInt", "2048~8192", "Reject"),
    ],
)
def test_each_key_is_answered_by_its_own_rule(key: str, proposed: str, answered: str) -> None:
    assert Negotiation(OFFER).answer([(key, proposed)]) == [(key, answered)]


def test_what_was_agreed_is_kept_and_a_reject_keeps_the_default() -> None:
    negotiation = Negotiation(OFFER)
    negotiation.answer([("MaxBurstLength", "65536"), ("InitialR2T", "No"), ("MaxOutstandingR2T", "0"), ("DataDigest", "CRC32C")])
    assert negotiation.agreed == replace(Agreed(), max_burst_length=65536, initial_r2t=False, data_digest="CRC32C")


def test_first_burst_never_exceeds_max_burst_whatever_the_order() -> None:
    negotiation = Negotiation(OFFER)
    answers = dict(negotiation.answer([("FirstBurstLength", "65536"), ("MaxBurstLength", "4096")]))
    assert answers == {"MaxBurstLength": "4096", "FirstBurstLength": "4096"}


def test_first_burst_is_irrelevant_without_unsolicited_data() -> None:
    negotiation = Negotiation(OFFER)
    answers = dict(negotiation.answer([("FirstBurstLength", "65536"), ("ImmediateData", "No"), ("InitialR2T", "Yes")]))
    assert answers["FirstBurstLength"] == "Irrelevant"


def test_a_discovery_session_has_no_use_for_scsi_keys() -> None:
    negotiation = Negotiation(OFFER)
    negotiation.discovery = True
    answers = negotiation.answer([("MaxBurstLength", "65536"), ("HeaderDigest", "None")])
    assert answers == [("MaxBurstLength", "Irrelevant"), ("HeaderDigest", "None")]
    assert negotiation.agreed == Agreed()


@pytest.mark.parametrize(
    "pairs",
    [
        [("InitialR2T", "maybe")],
        [("MaxBurstLength", "many")],
        [("HeaderDigest", "")],
        [("MaxConnections", "Reject")],
        [("MaxConnections", "1"), ("MaxConnections", "1")],
        [("iSCSIProtocolLevel", "32")],
    ],
)
def test_a_malformed_or_repeated_proposal_is_a_protocol_error(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ProtocolError):
        Negotiation(OFFER).answer(pairs)


def test_max_recv_data_segment_length_is_declared_once_by_each_side() -> None:
    negotiation = Negotiation(replace(OFFER, max_recv_data_segment_length=65536))
    assert negotiation.declaration() == [("MaxRecvDataSegmentLength", "65536")]
    assert negotiation.declaration() == []
    negotiation.declare("131072")
    assert negotiation.agreed.initiator_max_recv_data_segment_length == 131072
    with pytest.raises(ProtocolError):
        negotiation.declare("131072")
    with pytest.raises(ProtocolError):
        Negotiation(OFFER).declare("511")


def test_a_silent_target_keeps_8192() -> None:
    negotiation = Negotiation(replace(OFFER, max_recv_data_segment_length=None))
    assert negotiation.declaration() == []
    assert negotiation.agreed.target_max_recv_data_segment_length == 8192


def test_a_digest_that_is_demanded_and_not_offered_ends_the_negotiation() -> None:
    negotiation = Negotiation(replace(OFFER, header_digest=("CRC32C",)))
    assert negotiation.answer([("HeaderDigest", "None")]) == [("HeaderDigest", "Reject")]
    with pytest.raises(ProtocolError):
        negotiation.check()


def proposing() -> tuple[Negotiation, dict[str, str]]:
    negotiation = Negotiation(replace(OFFER, propose=True, initial_r2t=True))
    negotiation.answer([("MaxConnections", "1")])
    return negotiation, dict(negotiation.proposals())


def test_a_proposing_target_proposes_what_was_left_out() -> None:
    negotiation, proposed = proposing()
    assert "MaxConnections" not in proposed
    assert proposed["MaxBurstLength"] == "1048576"
    assert proposed["HeaderDigest"] == "None,CRC32C"
    assert proposed["InitialR2T"] == "Yes"
    assert set(proposed) < KEYS
    assert negotiation.unanswered
    assert negotiation.proposals() == []


def test_answers_to_proposals_settle_them_and_are_not_answered() -> None:
    negotiation, proposed = proposing()
    given = {**proposed, "HeaderDigest": "CRC32C", "DataDigest": "None", "MaxBurstLength": "65536", "FirstBurstLength": "512"}
    assert negotiation.answer(list(given.items())) == []
    assert not negotiation.unanswered
    assert negotiation.agreed.header_digest == "CRC32C"
    assert negotiation.agreed.max_burst_length == 65536


def test_a_decided_boolean_needs_no_answer_but_everything_else_does() -> None:
    negotiation, proposed = proposing()
    given = {**proposed, "HeaderDigest": "None", "DataDigest": "None"}
    del given["InitialR2T"]
    assert negotiation.answer(list(given.items())) == []
    assert negotiation.agreed.initial_r2t is True
    negotiation, proposed = proposing()
    with pytest.raises(ProtocolError, match="unanswered"):
        negotiation.answer([])


@pytest.mark.parametrize(
    "key, value",
    [
        ("MaxBurstLength", "16776192"),
        ("MaxBurstLength", "1"),
        ("DefaultTime2Wait", "1"),
        ("InitialR2T", "No"),
        ("HeaderDigest", "MD5"),
        ("MaxBurstLength", "NotUnderstood"),
    ],
)
def test_an_answer_that_the_rule_excludes_is_a_protocol_error(key: str, value: str) -> None:
    negotiation, _ = proposing()
    with pytest.raises(ProtocolError):
        negotiation.answer([(key, value)])
