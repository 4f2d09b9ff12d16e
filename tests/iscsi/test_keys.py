from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError
from isblk.iscsi import keys
from isblk.iscsi.keys import KEYS, Kind, Rule, Stages

NEGOTIATED = [key for key in KEYS.values() if key.rule not in (Rule.DECLARATIVE, Rule.OBSOLETE)]
SECTION_13 = """HeaderDigest DataDigest MaxConnections SendTargets TargetName InitiatorName TargetAlias InitiatorAlias TargetAddress
TargetPortalGroupTag InitialR2T ImmediateData MaxRecvDataSegmentLength MaxBurstLength FirstBurstLength DefaultTime2Wait DefaultTime2Retain
MaxOutstandingR2T DataPDUInOrder DataSequenceInOrder ErrorRecoveryLevel SessionType TaskReporting iSCSIProtocolLevel X#NodeArchitecture
IFMarker OFMarker IFMarkInt OFMarkInt"""


def test_every_key_of_the_rfc_has_its_row() -> None:
    assert set(KEYS) == {*SECTION_13.split(), "AuthMethod", "CHAP_A", "CHAP_I", "CHAP_N", "CHAP_C", "CHAP_R"}


@pytest.mark.parametrize(
    ("name", "rule", "low", "high", "default"),
    [
        ("MaxConnections", Rule.MINIMUM, 1, 65535, "1"),
        ("InitialR2T", Rule.OR, 0, 0, "Yes"),
        ("ImmediateData", Rule.AND, 0, 0, "Yes"),
        ("MaxRecvDataSegmentLength", Rule.DECLARATIVE, 512, 16777215, "8192"),
        ("MaxBurstLength", Rule.MINIMUM, 512, 16777215, "262144"),
        ("FirstBurstLength", Rule.MINIMUM, 512, 16777215, "65536"),
        ("DefaultTime2Wait", Rule.MAXIMUM, 0, 3600, "2"),
        ("DefaultTime2Retain", Rule.MINIMUM, 0, 3600, "20"),
        ("MaxOutstandingR2T", Rule.MINIMUM, 1, 65535, "1"),
        ("DataPDUInOrder", Rule.OR, 0, 0, "Yes"),
        ("DataSequenceInOrder", Rule.OR, 0, 0, "Yes"),
        ("ErrorRecoveryLevel", Rule.MINIMUM, 0, 2, "0"),
        ("HeaderDigest", Rule.FIRST_COMMON, 0, 0, "None"),
        ("DataDigest", Rule.FIRST_COMMON, 0, 0, "None"),
        ("TaskReporting", Rule.FIRST_COMMON, 0, 0, "RFC3720"),
        ("TargetPortalGroupTag", Rule.DECLARATIVE, 0, 65535, None),
    ],
)
def test_rows_say_what_section_13_says(name: str, rule: Rule, low: int, high: int, default: str | None) -> None:
    key = KEYS[name]
    assert (key.rule, key.low, key.high, key.default) == (rule, low, high, default)


def test_keys_irrelevant_in_discovery_are_those_of_the_rfc() -> None:
    irrelevant = {key.name for key in KEYS.values() if key.irrelevant_in_discovery}
    assert irrelevant == {
        "MaxConnections",
        "InitialR2T",
        "ImmediateData",
        "MaxBurstLength",
        "FirstBurstLength",
        "MaxOutstandingR2T",
        "DataPDUInOrder",
        "DataSequenceInOrder",
        "TaskReporting",
        "iSCSIProtocolLevel",
    }


@pytest.mark.parametrize(
    ("name", "offered", "received", "agreed"),
    [
        ("InitialR2T", "No", "Yes", "Yes"),
        ("InitialR2T", "No", "No", "No"),
        ("InitialR2T", "Yes", "Yes", "Yes"),
        ("ImmediateData", "Yes", "No", "No"),
        ("ImmediateData", "Yes", "Yes", "Yes"),
        ("MaxBurstLength", "16776192", "262144", "262144"),
        ("MaxBurstLength", "16776192", "0xfffc00", "16776192"),
        ("DefaultTime2Wait", "2", "5", "5"),
        ("DefaultTime2Retain", "20", "0", "0"),
        ("HeaderDigest", "CRC32C,None", "None", "None"),
        ("HeaderDigest", "CRC32C", "CRC32C", "CRC32C"),
        ("CHAP_A", "8,7,6,5", "5", "5"),
        ("TaskReporting", "RFC3720,ResponseFence", "NotUnderstood", "RFC3720"),
        ("iSCSIProtocolLevel", "1", "NotUnderstood", "1"),
        ("FirstBurstLength", "262144", "Irrelevant", "65536"),
        ("MaxOutstandingR2T", "16", "Reject", "1"),
    ],
)
def test_answers_within_the_offer_are_adopted(name: str, offered: str, received: str, agreed: str) -> None:
    assert keys.adopt(name, offered, received) == agreed


@pytest.mark.parametrize(
    ("name", "offered", "received"),
    [
        ("InitialR2T", "Yes", "No"),
        ("InitialR2T", "No", "no"),
        ("ImmediateData", "No", "Yes"),
        ("MaxBurstLength", "262144", "262145"),
        ("MaxBurstLength", "262144", "511"),
        ("MaxBurstLength", "262144", "many"),
        ("MaxOutstandingR2T", "16", "0"),
        ("DefaultTime2Wait", "2", "1"),
        ("DefaultTime2Wait", "2", "3601"),
        ("HeaderDigest", "CRC32C", "None"),
        ("HeaderDigest", "CRC32C,None", "CRC32C,None"),
        ("HeaderDigest", "None", "CRC32C"),
        ("HeaderDigest", "CRC32C,None", "MD5"),
        ("AuthMethod", "CHAP", "None"),
        ("AuthMethod", "CHAP", "Reject"),
        ("CHAP_A", "5", "7"),
        ("MaxBurstLength", "262144", "NotUnderstood"),
        ("HeaderDigest", "None", "NotUnderstood"),
        ("MaxBurstLength", "262144", ""),
    ],
)
def test_answers_outside_the_offer_are_protocol_errors(name: str, offered: str, received: str) -> None:
    with pytest.raises(ProtocolError):
        keys.adopt(name, offered, received)


@pytest.mark.parametrize(
    ("name", "offered", "agreed"),
    [
        ("ImmediateData", "No", "No"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "Yes"),
        ("MaxBurstLength", "16776192", "262144"),
        ("TaskReporting", "RFC3720,ResponseFence", "RFC3720"),
        ("HeaderDigest", "CRC32C,None", "None"),
    ],
)
def test_silence_leaves_what_the_offer_decides_or_the_default(name: str, offered: str, agreed: str) -> None:
    assert keys.unanswered(name, offered) == agreed


@pytest.mark.parametrize(
    ("name", "offered"), [("HeaderDigest", "CRC32C"), ("DefaultTime2Retain", "0"), ("AuthMethod", "CHAP"), ("MaxBurstLength", "512")]
)
def test_silence_that_contradicts_the_offer_is_a_protocol_error(name: str, offered: str) -> None:
    with pytest.raises(ProtocolError):
        keys.unanswered(name, offered)


@pytest.mark.parametrize(
    ("name", "proposed", "own", "said"),
    [
        ("X-com.example.speed", "9", None, "NotUnderstood"),
        ("SomethingNew", "1", None, "NotUnderstood"),
        ("IFMarker", "Yes", None, "No"),
        ("OFMarker", "No", None, "No"),
        ("IFMarkInt", "2048~8192", None, "Reject"),
        ("OFMarkInt", "2048", None, "Reject"),
        ("InitialR2T", "No", "No", "No"),
        ("InitialR2T", "No", "Yes", "Yes"),
        ("InitialR2T", "Yes", "No", "Yes"),
        ("ImmediateData", "Yes", "No", "No"),
        ("ImmediateData", "No", "Yes", "No"),
        ("ImmediateData", "Maybe", "Yes", "Reject"),
        ("MaxBurstLength", "16776192", "65536", "65536"),
        ("MaxBurstLength", "0x1000", "65536", "4096"),
        ("MaxBurstLength", "511", "65536", "Reject"),
        ("MaxBurstLength", "16776192", None, "262144"),
        ("DefaultTime2Wait", "2", "5", "5"),
        ("DefaultTime2Wait", "9", "5", "9"),
        ("HeaderDigest", "CRC32C,None", "None,CRC32C", "CRC32C"),
        ("HeaderDigest", "X-new,None", "CRC32C,None", "None"),
        ("HeaderDigest", "CRC32C", "None", "Reject"),
        ("HeaderDigest", "", "None", "Reject"),
        ("AuthMethod", "SRP,CHAP,None", "CHAP", "CHAP"),
        ("AuthMethod", "None", "CHAP", "Reject"),
        ("CHAP_A", "9,7,5", "8,7,6,5", "7"),
        ("TaskReporting", "FastAbort,RFC3720", "RFC3720", "RFC3720"),
        ("TargetAlias", "Bob-s Disk", None, None),
        ("TargetPortalGroupTag", "0", None, None),
        ("MaxRecvDataSegmentLength", "65536", None, None),
    ],
)
def test_proposals_are_answered(name: str, proposed: str, own: str | None, said: str | None) -> None:
    assert keys.answer(name, proposed, own) == said


def test_keys_of_a_normal_session_are_irrelevant_in_discovery() -> None:
    assert keys.answer("MaxBurstLength", "65536", discovery=True) == "Irrelevant"
    assert keys.answer("DefaultTime2Wait", "2", discovery=True) == "2"
    assert keys.answer("HeaderDigest", "None", discovery=True) == "None"


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("MaxBurstLength", "Reject"),
        ("InitialR2T", "Irrelevant"),
        ("X-a", "NotUnderstood"),
        ("MaxRecvDataSegmentLength", "511"),
        ("TargetPortalGroupTag", "65536"),
        ("SessionType", "Other"),
    ],
)
def test_reserved_words_and_wrong_declarations_are_protocol_errors(name: str, proposed: str) -> None:
    with pytest.raises(ProtocolError):
        keys.answer(name, proposed)


@given(st.sampled_from(NEGOTIATED), st.data())
def test_what_one_side_answers_the_other_adopts(key: keys.Key, data: st.DataObject) -> None:
    values = {
        Kind.BOOLEAN: st.sampled_from(["Yes", "No"]),
        Kind.NUMBER: st.integers(key.low, key.high).map(str),
        Kind.LIST: st.lists(st.sampled_from(key.choices or ("x",)), min_size=1, unique=True).map(",".join),
    }[key.kind]
    offered, own = data.draw(values), data.draw(values)
    said = keys.answer(key.name, offered, own)
    assert said is not None
    if said == "Reject":
        assert not set(offered.split(",")) & set(own.split(","))
    else:
        assert keys.adopt(key.name, offered, said) == said


@given(st.sampled_from(sorted(KEYS)), st.text(max_size=20))
def test_random_proposals_raise_only_protocol_error(name: str, value: str) -> None:
    try:
        said = keys.answer(name, value)
    except ProtocolError:
        return
    assert said is None or said in keys.RESERVED or KEYS[name].check(said) == said


@given(st.sampled_from(NEGOTIATED), st.text(max_size=20))
def test_random_answers_raise_only_protocol_error(key: keys.Key, value: str) -> None:
    offered = {Kind.BOOLEAN: "Yes", Kind.NUMBER: "1"}.get(key.kind, "None")
    try:
        agreed = keys.adopt(key.name, offered, value)
    except ProtocolError:
        return
    assert agreed == key.check(agreed)


def test_keys_have_their_stage_and_sender() -> None:
    keys.check_sender("AuthMethod", Stages.SECURITY, from_target=True)
    keys.check_sender("TargetAddress", Stages.SECURITY, from_target=True)
    keys.check_sender("TargetName", Stages.FULL_FEATURE, from_target=True)
    keys.check_sender("MaxRecvDataSegmentLength", Stages.FULL_FEATURE, from_target=False)
    keys.check_sender("X-com.example.a", Stages.SECURITY, from_target=True)


@pytest.mark.parametrize(
    ("name", "stage", "from_target"),
    [
        ("HeaderDigest", Stages.SECURITY, True),
        ("AuthMethod", Stages.OPERATIONAL, True),
        ("InitiatorName", Stages.SECURITY, True),
        ("TargetName", Stages.OPERATIONAL, True),
        ("SendTargets", Stages.OPERATIONAL, False),
        ("MaxConnections", Stages.FULL_FEATURE, False),
        ("TargetPortalGroupTag", Stages.OPERATIONAL, False),
    ],
)
def test_keys_out_of_place_are_protocol_errors(name: str, stage: Stages, from_target: bool) -> None:
    with pytest.raises(ProtocolError, match=name):
        keys.check_sender(name, stage, from_target)


def test_agreed_values_read_as_numbers_and_booleans_with_defaults() -> None:
    assert keys.number({"MaxBurstLength": "512"}, "MaxBurstLength") == 512
    assert keys.number({}, "MaxBurstLength") == 262144
    assert keys.boolean({"InitialR2T": "No"}, "InitialR2T") is False
    assert keys.boolean({}, "InitialR2T") is True


def test_integrity_between_keys() -> None:
    keys.check_integrity({})
    keys.check_integrity({"MaxBurstLength": "512", "InitialR2T": "Yes", "ImmediateData": "No"})
    with pytest.raises(ProtocolError, match="FirstBurstLength"):
        keys.check_integrity({"MaxBurstLength": "512"})
    keys.check_integrity({"ErrorRecoveryLevel": "1", "MaxOutstandingR2T": "1"})
    keys.check_integrity({"ErrorRecoveryLevel": "1", "MaxOutstandingR2T": "2", "DataSequenceInOrder": "No"})
    with pytest.raises(ProtocolError, match="R2T"):
        keys.check_integrity({"ErrorRecoveryLevel": "1", "MaxOutstandingR2T": "2"})
