from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.iscsi import pdu
from isblk.iscsi.chap import Credentials, decode_binary, encode_binary
from isblk.iscsi.text import encode_pairs
from isblk.target.config import Offer, PortalConfig, Redirect, TargetConfig
from isblk.target.sessions import Node
from support.rawinitiator import INITIATOR_NAME, ISID, RawInitiator, open_node
from support.targets import AWKWARD, configuration

SECRET, OURS = b"initiator secret", b"target secret 12"
TARGET = configuration(alias="a disk")
WHO = [("InitiatorName", INITIATOR_NAME), ("TargetName", TARGET.name)]
TO_FULL, TO_OPERATIONAL, STAY_SECURITY, STAY_OPERATIONAL = 0x87, 0x81, 0x00, 0x04
SECURITY_TO_FULL = 0x83


@pytest.fixture
def initiator() -> Iterator[RawInitiator]:
    made = RawInitiator(open_node(TARGET))
    yield made
    made.node.units.close()


def against(config: TargetConfig, portal: PortalConfig | None = None) -> RawInitiator:
    return RawInitiator(open_node(config), portal)


def test_the_shortest_login(initiator: RawInitiator) -> None:
    answer = initiator.login_request(WHO, TO_FULL)
    assert (answer.opcode, answer.flags, answer.login_status) == (pdu.LOGIN_RESPONSE, TO_FULL, 0)
    assert answer.text == [("TargetAlias", "a disk"), ("TargetPortalGroupTag", "1"), ("MaxRecvDataSegmentLength", "262144")]
    assert answer.lun[:6] == ISID
    assert int.from_bytes(answer.lun[6:], "big") in initiator.node.sessions
    assert (answer.exp_cmd_sn, answer.max_cmd_sn) == (1, 128)


def test_three_stages_keep_one_numbering_and_give_the_handle_last(initiator: RawInitiator) -> None:
    first = initiator.login_request([*WHO, ("AuthMethod", "None")], TO_OPERATIONAL)
    assert (first.flags, first.text[-1]) == (TO_OPERATIONAL, ("AuthMethod", "None"))
    assert first.lun[6:] == b"\0\0"
    second = initiator.login_request([("HeaderDigest", "None"), ("X-com.example.key", "1")], STAY_OPERATIONAL)
    assert second.flags == STAY_OPERATIONAL
    assert dict(second.text)["X-com.example.key"] == "NotUnderstood"
    third = initiator.login_request([("MaxBurstLength", "65536")], TO_FULL)
    assert third.flags == TO_FULL
    assert [first.stat_sn, second.stat_sn, third.stat_sn] == [1, 2, 3]
    assert third.lun[6:] != b"\0\0"


def test_from_security_straight_to_full_feature(initiator: RawInitiator) -> None:
    answer = initiator.login_request([*WHO, ("AuthMethod", "None")], SECURITY_TO_FULL)
    assert answer.flags == SECURITY_TO_FULL
    assert initiator.connection.agreed.target_max_recv_data_segment_length == 8192


@pytest.mark.parametrize(
    "pairs, flags, status",
    [
        ([], TO_FULL, 0x0207),
        ([("InitiatorName", INITIATOR_NAME)], TO_FULL, 0x0207),
        ([("InitiatorName", INITIATOR_NAME), ("TargetName", "iqn.2026-11.org.isblk:other")], TO_FULL, 0x0203),
        ([*WHO, ("SessionType", "Strange")], TO_FULL, 0x0209),
        ([*WHO, ("AuthMethod", "CHAP")], TO_OPERATIONAL, 0x0201),
        ([*WHO, ("AuthMethod", "None")], TO_FULL, 0x0200),
        ([*WHO, ("HeaderDigest", "None")], TO_OPERATIONAL, 0x0200),
        ([*WHO, ("CHAP_A", "5")], STAY_SECURITY, 0x0201),
        ([*WHO, ("HeaderDigest", "None"), ("HeaderDigest", "None")], TO_FULL, 0x0200),
        ([*WHO, WHO[0]], TO_FULL, 0x0200),
        ([*WHO, ("MaxRecvDataSegmentLength", "0")], TO_FULL, 0x0200),
        (WHO, 0x8B, 0x0200),
        (WHO, 0x85, 0x0200),
        (WHO, 0x80, 0x0200),
        (WHO, 0xC7, 0x0200),
        (b"no text", TO_FULL, 0x0200),
    ],
)
def test_a_login_that_cannot_be_is_refused_with_its_status_and_closed(
    initiator: RawInitiator, pairs: list[tuple[str, str]] | bytes, flags: int, status: int
) -> None:
    answer = initiator.login_request(pairs, flags)
    assert f"{answer.login_status:04x}" == f"{status:04x}"
    assert initiator.connection.closing
    assert not initiator.node.sessions


def test_a_version_above_ours_is_refused(initiator: RawInitiator) -> None:
    assert initiator.login_request(WHO, TO_FULL, versions=0x0101).login_status == 0x0205


def test_a_session_that_does_not_exist_cannot_be_joined(initiator: RawInitiator) -> None:
    assert initiator.login_request(WHO, TO_FULL, tsih=7).login_status == 0x020A


def test_a_second_connection_is_one_too_many_but_the_same_one_is_reinstated(initiator: RawInitiator) -> None:
    tsih = int.from_bytes(initiator.login_request(WHO, TO_FULL).lun[6:], "big")
    second = RawInitiator(initiator.node)
    assert second.login_request(WHO, TO_FULL, tsih=tsih, cid=1).login_status == 0x0206
    third = RawInitiator(initiator.node)
    answer = third.login_request(WHO, TO_FULL, tsih=tsih)
    assert (answer.login_status, answer.lun[6:]) == (0, tsih.to_bytes(2, "big"))
    assert initiator.connection.dropped
    assert list(initiator.node.sessions) == [tsih]


def test_what_must_not_change_within_a_login(initiator: RawInitiator) -> None:
    initiator.login_request(WHO, STAY_SECURITY)
    assert initiator.login_request([], TO_OPERATIONAL, isid=bytes(6)).login_status == 0x0200
    other = RawInitiator(initiator.node)
    other.login_request(WHO, STAY_SECURITY)
    assert other.login_request([], TO_FULL).login_status == 0x0200


def test_another_pdu_during_login_is_refused_and_as_the_first_one_closes_silently(initiator: RawInitiator) -> None:
    initiator.login_request(WHO, STAY_SECURITY)
    (answer,) = initiator.request(pdu.TEXT)
    assert (answer.opcode, answer.login_status) == (pdu.LOGIN_RESPONSE, 0x020B)
    other = RawInitiator(initiator.node)
    assert other.request(pdu.TEXT) == []
    assert other.connection.closing


def test_a_login_that_never_ends_is_ended(initiator: RawInitiator) -> None:
    initiator.login_request(WHO, STAY_SECURITY)
    answers = [initiator.login_request([], STAY_SECURITY).login_status for _ in range(64)]
    assert answers[:62] == [0] * 62
    assert 0x0200 in answers[62:]


# Authentication


def chapped(**settings: object) -> TargetConfig:
    return replace(TARGET, credentials=Credentials("joe", SECRET), mutual=Credentials("me", OURS), **settings)  # type: ignore[arg-type]


def respond(initiator: RawInitiator, secret: bytes, extra: list[tuple[str, str]], flags: int) -> tuple[int, list[tuple[str, str]], int]:
    challenge = dict(initiator.login_request([("CHAP_A", "5")], STAY_SECURITY).text)
    assert challenge["CHAP_A"] == "5"
    digest = hashlib.md5(bytes([int(challenge["CHAP_I"])]) + secret + decode_binary(challenge["CHAP_C"])).digest()
    answer = initiator.login_request([("CHAP_N", "joe"), ("CHAP_R", encode_binary(digest)), *extra], flags)
    return answer.login_status, answer.text, answer.flags


def test_chap_one_way_and_mutual() -> None:
    initiator = against(chapped())
    first = initiator.login_request([*WHO, ("AuthMethod", "CHAP,None")], STAY_SECURITY)
    assert dict(first.text)["AuthMethod"] == "CHAP"
    assert respond(initiator, SECRET, [], TO_OPERATIONAL) == (0, [], TO_OPERATIONAL)
    assert initiator.login_request([], TO_FULL).flags == TO_FULL
    mutual = RawInitiator(initiator.node)
    mutual.login_request([*WHO, ("AuthMethod", "CHAP")], TO_OPERATIONAL)
    status, text, _ = respond(mutual, SECRET, [("CHAP_I", "9"), ("CHAP_C", "0x0102")], TO_OPERATIONAL)
    assert status == 0
    assert dict(text) == {"CHAP_N": "me", "CHAP_R": encode_binary(hashlib.md5(bytes([9]) + OURS + b"\1\2").digest())}
    initiator.node.units.close()


def test_a_wrong_secret_is_refused() -> None:
    initiator = against(chapped())
    initiator.login_request([*WHO, ("AuthMethod", "CHAP")], STAY_SECURITY)
    assert respond(initiator, OURS, [], TO_OPERATIONAL)[0] == 0x0201
    assert not initiator.node.sessions
    initiator.node.units.close()


@pytest.mark.parametrize(
    "pairs, flags",
    [
        ([*WHO, ("AuthMethod", "None")], STAY_SECURITY),
        (WHO, TO_FULL),
        (WHO, TO_OPERATIONAL),
        (WHO, SECURITY_TO_FULL),
    ],
)
def test_authentication_cannot_be_walked_around(pairs: list[tuple[str, str]], flags: int) -> None:
    initiator = against(chapped())
    assert initiator.login_request(pairs, flags).login_status == 0x0201
    initiator.node.units.close()


def test_asking_to_leave_before_the_proof_is_not_granted() -> None:
    initiator = against(chapped())
    answer = initiator.login_request([*WHO, ("AuthMethod", "CHAP")], SECURITY_TO_FULL)
    assert (answer.login_status, answer.flags) == (0, 0)
    assert initiator.login_request([("CHAP_A", "5")], SECURITY_TO_FULL).flags == 0
    assert initiator.login_request([], SECURITY_TO_FULL).flags == 0
    assert not initiator.node.sessions
    initiator.node.units.close()


def test_discovery_is_open_unless_told_otherwise() -> None:
    assert against(chapped()).log_in(discovery=True).login_status == 0
    assert against(chapped(discovery_auth=True)).log_in(discovery=True).login_status == 0x0201


# Redirects, continuation, proposals


@pytest.mark.parametrize("permanent, status", [(False, 0x0101), (True, 0x0102)])
def test_a_portal_that_redirects_sends_normal_sessions_away(permanent: bool, status: int) -> None:
    portal = PortalConfig(redirect=Redirect("[2001:db8::1]:3261", permanent))
    config = replace(TARGET, portals=(portal,))
    answer = against(config).login_request(WHO, TO_FULL)
    assert (answer.login_status, answer.text) == (status, [("TargetAddress", "[2001:db8::1]:3261")])
    assert against(config).log_in(discovery=True).login_status == 0


def test_long_text_of_ours_comes_in_pieces() -> None:
    initiator = against(replace(TARGET, offer=AWKWARD, alias="x" * 200))
    pieces = [initiator.login_request([*WHO, ("HeaderDigest", "None")], TO_FULL)]
    while pieces[-1].flags & pdu.CONTINUE:
        assert pieces[-1].flags == pdu.CONTINUE | STAY_OPERATIONAL
        pieces.append(initiator.login_request([], STAY_OPERATIONAL))
    assert all(len(piece.data) <= 64 for piece in pieces)
    assert b"".join(piece.data for piece in pieces).startswith(b"TargetAlias=" + b"x" * 200 + b"\0TargetPortalGroupTag=1\0")
    assert pieces[-1].flags == STAY_OPERATIONAL
    assert initiator.login_request([], TO_FULL).flags == TO_FULL
    initiator.node.units.close()


def test_text_of_theirs_in_pieces_is_put_together(initiator: RawInitiator) -> None:
    text = encode_pairs([*WHO, ("MaxBurstLength", "65536")])
    first = initiator.login_request(text[:30], STAY_OPERATIONAL | pdu.CONTINUE)
    assert (first.flags, first.data) == (STAY_OPERATIONAL, b"")
    last = initiator.login_request(text[30:], TO_FULL)
    assert dict(last.text)["MaxBurstLength"] == "65536"


def test_text_while_ours_continues_is_refused() -> None:
    initiator = against(replace(TARGET, offer=AWKWARD, alias="x" * 200))
    assert initiator.login_request(WHO, TO_FULL).flags & pdu.CONTINUE
    assert initiator.login_request([("HeaderDigest", "None")], TO_FULL).login_status == 0x0200
    initiator.node.units.close()


def test_a_proposing_target_waits_for_its_answers() -> None:
    initiator = against(replace(TARGET, offer=Offer(propose=True)))
    answer = initiator.login_request([*WHO, ("InitialR2T", "No")], TO_FULL)
    assert answer.flags == STAY_OPERATIONAL
    told = dict(answer.text)
    assert told["MaxBurstLength"] == "16776192"
    given = [
        (key, value.split(",")[0])
        for key, value in answer.text
        if key[0] not in "T" and key not in ("InitialR2T", "MaxRecvDataSegmentLength")
    ]
    assert initiator.login_request(given, TO_FULL).flags == TO_FULL
    silent = RawInitiator(initiator.node)
    silent.login_request(WHO, TO_FULL)
    assert silent.login_request([], TO_FULL).login_status == 0x0200
    initiator.node.units.close()


def test_reinstatement_ends_the_old_session_and_another_isid_or_group_does_not() -> None:
    config = replace(TARGET, portals=(PortalConfig(port=0, tpgt=1), PortalConfig(port=0, tpgt=2)))
    node = open_node(config)
    first, same, other_isid, other_group = RawInitiator(node), RawInitiator(node), RawInitiator(node), RawInitiator(node, config.portals[1])
    first.log_in()
    other_isid.log_in(isid=b"\x80\0\0\0\0\7")
    other_group.log_in()
    assert not first.connection.dropped
    assert len(node.sessions) == 3
    same.log_in()
    assert [each.connection.dropped for each in (first, same, other_isid, other_group)] == [True, False, False, False]
    (answer,) = same.command(bytes(6))
    assert answer.sense[12:14] == b"\x29\x07"
    node.units.close()


def test_a_failed_login_reinstates_nothing() -> None:
    node: Node = open_node(chapped())
    first = RawInitiator(node)
    first.login_request([*WHO, ("AuthMethod", "CHAP")], STAY_SECURITY)
    respond(first, SECRET, [], SECURITY_TO_FULL)
    thief = RawInitiator(node)
    thief.login_request([*WHO, ("AuthMethod", "CHAP")], STAY_SECURITY)
    assert respond(thief, OURS, [], SECURITY_TO_FULL)[0] == 0x0201
    assert not first.connection.dropped
    assert len(node.sessions) == 1
    node.units.close()


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=4))
def test_whatever_a_login_says_it_is_answered_or_closed(requests: list[tuple[int, bytes]]) -> None:
    node = open_node(configuration(()))
    initiator = RawInitiator(node)
    for flags, text in requests:
        if initiator.connection.closing or initiator.connection.session is not None:
            break
        assert initiator.login_request(text, flags).opcode == pdu.LOGIN_RESPONSE
