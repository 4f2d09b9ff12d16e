from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import IsblkError, LoginRefused, NotFound, ProtocolError
from isblk.iscsi import chap, login, text
from isblk.iscsi.chap import Credentials
from isblk.iscsi.keys import KEYS
from isblk.iscsi.login import AuthenticationFailed, LoginConversation, LoginDeferred, LoginResult, LoginSettings, Redirect
from isblk.iscsi.loginstatus import STATUSES, ServiceUnavailable
from isblk.iscsi.names import Portal

INITIATOR = "iqn.2001-04.com.example:host"
TARGET = "iqn.2001-04.com.example:disk1"
ISID = bytes.fromhex("80abcdef0001")
ALICE = Credentials("alice", b"initiator-secret")
BOB = Credentials("bob", b"the-targets-secret")
CHALLENGE = bytes(range(16))
T, C = 0x80, 0x40
TPGT = ("TargetPortalGroupTag", "1")
NONE = ("AuthMethod", "None")
CHAP = ("AuthMethod", "CHAP")

# What tgt 1.0.85 says whatever it is offered; it declares no MaxRecvDataSegmentLength.
TGT_ANSWERS = [
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("InitialR2T", "Yes"),
    ("ImmediateData", "Yes"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "65536"),
    ("MaxOutstandingR2T", "1"),
    ("MaxConnections", "1"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "0"),
    ("ErrorRecoveryLevel", "0"),
    ("TaskReporting", "NotUnderstood"),
    ("iSCSIProtocolLevel", "NotUnderstood"),
]


def settings(**changes: Any) -> LoginSettings:
    return LoginSettings(**{"initiator_name": INITIATOR, "isid": ISID, "target_name": TARGET, **changes})


class Request:
    """One request, taken apart independently of the code under test."""

    def __init__(self, sent: tuple[bytes, bytes]) -> None:
        self.bhs, self.data = sent
        self.flags, self.length = self.bhs[1], int.from_bytes(self.bhs[5:8], "big")
        self.cmd_sn, self.exp_stat_sn = struct.unpack(">II", self.bhs[24:32])

    @property
    def pairs(self) -> list[tuple[str, str]]:
        assert self.length == len(self.data)
        return [(key, value) for key, _, value in (item.partition("=") for item in self.data.decode().split("\0")[:-1])]

    @property
    def said(self) -> dict[str, str]:
        return dict(self.pairs)


def respond(
    flags: int = 0,
    pairs: list[tuple[str, str]] | bytes = b"",
    *,
    stat_sn: int = 0,
    status: int = 0,
    tsih: int = 0,
    itt: int = 0,
    isid: bytes = ISID,
    opcode: int = 0x23,
    version: tuple[int, int] = (0, 0),
    window: tuple[int, int] = (1, 32),
) -> tuple[bytes, bytes]:
    data = pairs if isinstance(pairs, bytes) else b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)
    bhs = bytes((opcode, flags, *version)) + len(data).to_bytes(4, "big") + isid + tsih.to_bytes(2, "big")
    return bhs + struct.pack(">IIIIIH10x", itt, 0, stat_sn, *window, status), data


class Talk:
    """A login against a target that says what the test tells it; StatSN counts by itself from 100."""

    def __init__(self, **changes: Any) -> None:
        self.challenges = chap.Challenges()
        self.conversation = LoginConversation(settings(**changes), self.challenges)
        self.stat_sn = 100
        self.request = Request(self.conversation.start())

    def hear(self, flags: int = 0, pairs: list[tuple[str, str]] | bytes = b"", **fields: Any) -> Request | None:
        bhs, data = respond(flags, pairs, **{"stat_sn": self.stat_sn, **fields})
        self.stat_sn += 1
        answers = self.conversation.answer(memoryview(bhs), memoryview(data))
        if not answers:
            return None
        (self.request,) = map(Request, answers)
        return self.request

    def next(self, flags: int = 0, pairs: list[tuple[str, str]] | bytes = b"", **fields: Any) -> Request:
        request = self.hear(flags, pairs, **fields)
        assert request is not None
        return request

    def finish(self, pairs: list[tuple[str, str]] | bytes = b"", **fields: Any) -> LoginResult:
        assert self.hear(T | 1 << 2 | 3, pairs, **{"tsih": 7, **fields}) is None
        result = self.conversation.result
        assert result is not None
        return result


def in_operational_stage(**changes: Any) -> Talk:
    talk = Talk(**changes)
    talk.next(T | 1, [TPGT, NONE])
    return talk


def answers_to(offers: dict[str, str], **changes: str) -> list[tuple[str, str]]:
    """A target that agrees to the first of everything, but for `changes`."""
    agreed = {name: value.split(",")[0] for name, value in offers.items() if name != "MaxRecvDataSegmentLength"}
    return list((agreed | changes).items())


# The road without authentication


def test_first_request_is_literal() -> None:
    talk = Talk(cid=1, cmd_sn=0x01020304)
    text_bytes = f"InitiatorName={INITIATOR}\0SessionType=Normal\0TargetName={TARGET}\0AuthMethod=None\0".encode()
    assert talk.request.data == text_bytes
    assert (
        talk.request.bhs.hex()
        == "43810000" + f"{len(text_bytes):08x}" + "80abcdef0001" + "0000" + "00000000" + "00010000" + "01020304" + "0" * 40
    )


def test_login_with_a_target_like_tgt() -> None:
    talk = Talk(cmd_sn=5)
    request = talk.next(T | 1, [TPGT, NONE])
    assert request.flags == T | 1 << 2 | 3
    assert request.exp_stat_sn == 101
    assert request.cmd_sn == 5
    assert set(request.said) == {name for name, _ in TGT_ANSWERS} | {"MaxRecvDataSegmentLength"}
    result = talk.finish(TGT_ANSWERS, window=(5, 36))
    negotiated = result.negotiated
    assert (result.tsih, result.tpgt, result.cmd_sn, result.exp_stat_sn) == (7, 1, 5, 102)
    assert (result.exp_cmd_sn, result.max_cmd_sn) == (5, 36)
    assert (negotiated.max_burst_length, negotiated.first_burst_length, negotiated.max_outstanding_r2t) == (262144, 65536, 1)
    assert (negotiated.max_recv_data_segment_length, negotiated.target_max_recv_data_segment_length) == (1048576, 8192)
    assert negotiated.initial_r2t
    assert negotiated.immediate_data
    assert not negotiated.header_digest


def test_login_with_a_target_like_lio_that_proposes_keys_and_takes_several_turns() -> None:
    talk = Talk()
    request = talk.next(0, [TPGT, ("TargetAlias", "LIO Target"), NONE])
    assert (request.flags, request.data) == (T | 1, b"")
    offers = talk.next(T | 1).said
    request = talk.next(
        1 << 2, [("MaxRecvDataSegmentLength", "262144"), ("IFMarker", "Yes"), ("OFMarkInt", "2048~65535"), ("X-org.linux.a", "1")]
    )
    assert request.flags == T | 1 << 2 | 3
    assert request.pairs == [("IFMarker", "No"), ("OFMarkInt", "Reject"), ("X-org.linux.a", "NotUnderstood")]
    request = talk.next(1 << 2, answers_to(offers))
    assert (request.flags, request.data) == (T | 1 << 2 | 3, b"")
    result = talk.finish()
    assert result.target_alias == "LIO Target"
    assert result.negotiated.target_max_recv_data_segment_length == 262144
    assert (result.negotiated.max_burst_length, result.negotiated.max_outstanding_r2t) == (16776192, 16)
    assert not result.negotiated.initial_r2t


def test_every_login_begins_in_the_security_stage() -> None:
    for changes in ({}, {"credentials": ALICE}, {"session_type": "Discovery", "target_name": None}):
        request = Talk(**changes).request
        assert request.flags >> 2 & 3 == 0
        assert request.said["AuthMethod"] == ("CHAP" if "credentials" in changes else "None")


def test_target_that_skips_security_without_a_word_is_let_pass() -> None:
    talk = Talk()
    assert talk.next(T | 1, [TPGT]).flags >> 2 & 3 == 1


def test_agreements_say_who_decided() -> None:
    talk = in_operational_stage(header_digest="prefer", data_digest="allow", initiator_alias="x")
    offers = talk.request.said
    talk.next(1 << 2, [("IFMarker", "Yes")])
    result = talk.finish(
        [*answers_to(offers, MaxBurstLength="65536", FirstBurstLength="Irrelevant", HeaderDigest="None"), ("TargetAlias", "Bob-s Disk")]
    )
    table = {row.key: (row.asked, row.agreed, row.decided) for row in result.agreements}
    assert table["MaxBurstLength"] == ("16776192", "65536", "target")
    assert table["FirstBurstLength"] == ("262144", "65536", "default")
    assert table["HeaderDigest"] == ("CRC32C,None", "None", "target")
    assert table["DataDigest"] == ("None,CRC32C", "None", "both")
    assert table["ImmediateData"] == ("Yes", "Yes", "both")
    assert table["MaxRecvDataSegmentLength"] == ("1048576", "1048576", "isblk")
    assert table["IFMarker"] == (None, "No", "isblk")
    assert table["TargetAlias (target)"] == (None, "Bob-s Disk", "target")
    assert table["TargetPortalGroupTag (target)"] == (None, "1", "target")
    assert len(table) == len(result.agreements)


def test_booleans_that_the_offer_decides_may_go_unanswered() -> None:
    talk = in_operational_stage(immediate_data=False, initial_r2t=True)
    answers = [pair for pair in answers_to(talk.request.said) if pair[0] not in ("ImmediateData", "InitialR2T", "TaskReporting")]
    negotiated = talk.finish(answers).negotiated
    assert not negotiated.immediate_data
    assert negotiated.initial_r2t


def test_discovery_session_uses_only_what_applies() -> None:
    talk = Talk(session_type="Discovery", target_name=None)
    assert "TargetName" not in talk.request.said
    offers = talk.next(T | 1, [NONE]).said
    assert "MaxBurstLength" not in offers
    request = talk.next(1 << 2, [("MaxBurstLength", "65536"), ("MaxConnections", "4")])
    assert request.pairs == [("MaxBurstLength", "Irrelevant"), ("MaxConnections", "Irrelevant")]
    result = talk.finish(answers_to(offers))
    assert result.tpgt is None
    assert result.negotiated.max_connections == 1


def test_digests_are_agreed() -> None:
    talk = in_operational_stage(header_digest="crc32c", data_digest="prefer")
    negotiated = talk.finish(answers_to(talk.request.said)).negotiated
    assert negotiated.header_digest
    assert negotiated.data_digest


@pytest.mark.parametrize("said", ["Reject", "Irrelevant", "None"])
def test_required_digest_that_the_target_lacks_is_refused_in_words(said: str) -> None:
    talk = in_operational_stage(header_digest="crc32c")
    with pytest.raises(LoginRefused, match="HeaderDigest=CRC32C"):
        talk.finish(answers_to(talk.request.said, HeaderDigest=said))


def test_joining_a_session_keeps_its_handle() -> None:
    talk = Talk(tsih=9, cid=3)
    assert talk.request.bhs[14:16] == b"\0\x09"
    offers = talk.next(T | 1, [TPGT, NONE], tsih=9).said
    assert talk.finish(answers_to(offers), tsih=9).tsih == 9
    other = Talk(tsih=9)
    offers = other.next(T | 1, [TPGT, NONE]).said
    with pytest.raises(ProtocolError, match="session handle"):
        other.finish(answers_to(offers), tsih=10)


# CHAP


def chap_talk(algorithm: int, challenge: bytes = CHALLENGE, **changes: Any) -> Talk:
    """Up to our response."""
    talk = Talk(**{"credentials": ALICE, **changes})
    assert talk.request.flags == 0
    request = talk.next(0, [TPGT, CHAP])
    assert request.flags == 0
    talk.next(0, [("CHAP_A", str(algorithm)), ("CHAP_I", "0x17"), ("CHAP_C", chap.encode_binary(challenge))])
    return talk


def bobs_answer(talk: Talk, algorithm: int, secret: bytes = BOB.secret, name: str = BOB.name) -> list[tuple[str, str]]:
    said = talk.request.said
    received = chap.response(algorithm, int(said["CHAP_I"]), secret, bytes.fromhex(said["CHAP_C"][2:]))
    return [("CHAP_N", name), ("CHAP_R", "0x" + received.hex())]


@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
def test_chap_one_way(algorithm: int) -> None:
    talk = chap_talk(algorithm)
    assert talk.request.flags == T | 1
    assert talk.request.pairs == [("CHAP_N", "alice"), ("CHAP_R", "0x" + chap.response(algorithm, 0x17, ALICE.secret, CHALLENGE).hex())]
    offers = talk.next(T | 1).said
    result = talk.finish(answers_to(offers))
    table = {row.key: row.agreed for row in result.agreements}
    assert (table["AuthMethod"], table["CHAP_A"]) == ("CHAP", str(algorithm))


def test_algorithms_are_offered_strongest_first() -> None:
    talk = Talk(credentials=ALICE)
    assert talk.next(0, [TPGT, CHAP]).pairs == [("CHAP_A", "8,7,6,5")]
    alone = Talk(credentials=ALICE, chap_algorithms=(5,))
    assert alone.next(0, [TPGT, CHAP]).pairs == [("CHAP_A", "5")]


@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
@pytest.mark.parametrize("extra_turn", [False, True])
def test_chap_mutual(algorithm: int, extra_turn: bool) -> None:
    talk = chap_talk(algorithm, mutual=BOB)
    answer = bobs_answer(talk, algorithm)
    if extra_turn:
        assert talk.next(0, answer).data == b""
        talk.next(T | 1)
    else:
        talk.next(T | 1, answer)
    result = talk.finish(answers_to(talk.request.said))
    shown = repr(result) + repr(talk.conversation.settings)
    assert "CHAP_R" not in shown
    assert not [secret for secret in (ALICE.secret, BOB.secret) if secret.decode() in shown]


def test_every_login_challenges_anew() -> None:
    seen = {chap_talk(7, mutual=BOB).request.said["CHAP_C"] for _ in range(20)}
    assert len(seen) == 20


@pytest.mark.parametrize("said", [[("AuthMethod", "None")], [("AuthMethod", "Reject")]])
def test_target_that_will_not_authenticate_is_refused_when_credentials_are_set(said: list[tuple[str, str]]) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        Talk(credentials=ALICE).hear(0, [TPGT, *said])
    assert not caught.value.retry_with_md5


@pytest.mark.parametrize("pairs", [[TPGT, NONE], [TPGT, CHAP], [TPGT]])
def test_target_that_jumps_over_authentication_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(IsblkError):
        Talk(credentials=ALICE).hear(T | 1, pairs)


def test_target_that_wants_credentials_where_none_are_set_says_so() -> None:
    for said in ({"pairs": [TPGT, CHAP]}, {"pairs": [TPGT, ("AuthMethod", "Reject")]}, {"status": 0x0201}):
        with pytest.raises(AuthenticationFailed, match="give a CHAP name") as caught:
            Talk().hear(T | 1, **said)
        assert not caught.value.retry_with_md5


def test_mutual_chap_never_falls_back_to_one_way() -> None:
    talk = chap_talk(7, mutual=BOB)
    with pytest.raises(AuthenticationFailed, match="did not prove"):
        talk.hear(T | 1)
    talk = chap_talk(7, mutual=BOB)
    talk.next(0)
    with pytest.raises(AuthenticationFailed, match="did not prove"):
        talk.hear(T | 1)


def test_wrong_answer_of_the_target_is_refused_and_worth_a_retry_with_md5_alone() -> None:
    talk = chap_talk(7, mutual=BOB)
    with pytest.raises(AuthenticationFailed, match="could not prove") as caught:
        talk.hear(T | 1, bobs_answer(talk, 6))
    assert caught.value.retry_with_md5
    talk = chap_talk(5, mutual=BOB, chap_algorithms=(5,))
    with pytest.raises(AuthenticationFailed, match="could not prove") as caught:
        talk.hear(T | 1, bobs_answer(talk, 5, secret=b"somebody else's"))
    assert not caught.value.retry_with_md5


def test_target_that_mirrors_our_own_secret_is_refused() -> None:
    talk = chap_talk(5, mutual=BOB)
    with pytest.raises(AuthenticationFailed, match="own secret") as caught:
        talk.hear(T | 1, bobs_answer(talk, 5, secret=ALICE.secret))
    assert not caught.value.retry_with_md5


def test_target_under_another_name_is_refused() -> None:
    talk = chap_talk(5, mutual=BOB)
    with pytest.raises(AuthenticationFailed, match="'mallory'"):
        talk.hear(T | 1, bobs_answer(talk, 5, name="mallory"))


def test_challenge_of_ours_reflected_on_another_connection_is_refused() -> None:
    challenges = chap.Challenges()
    ours = challenges.issue()
    victim = LoginConversation(settings(credentials=ALICE, mutual=BOB), challenges)
    victim.start()
    victim.answer(*respond(0, [TPGT, CHAP], stat_sn=1))
    with pytest.raises(AuthenticationFailed, match="back"):
        victim.answer(*respond(0, [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x" + ours.hex())], stat_sn=2))


def test_all_sessions_of_a_process_share_their_challenges() -> None:
    conversation = LoginConversation(settings(credentials=ALICE, mutual=BOB))
    conversation.start()
    conversation.answer(*respond(0, [TPGT, CHAP], stat_sn=1))
    ((_, data),) = conversation.answer(*respond(0, [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x00")], stat_sn=2))
    assert login.CHALLENGES.reflected(bytes.fromhex(dict(text.decode_pairs(data))["CHAP_C"][2:]))


@pytest.mark.parametrize("status", [0x0201, 0x0200])
def test_refused_credentials_are_worth_a_retry_when_md5_was_not_chosen(status: int) -> None:
    talk = chap_talk(7)
    assert talk.conversation.retry_with_md5
    with pytest.raises(AuthenticationFailed) as caught:
        talk.hear(status=status)
    assert caught.value.retry_with_md5


def test_refused_credentials_are_not_worth_a_retry_when_md5_was_chosen() -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        chap_talk(5).hear(status=0x0201)
    assert not caught.value.retry_with_md5


def test_refusal_after_authentication_is_not_worth_a_retry() -> None:
    talk = chap_talk(7)
    talk.next(T | 1)
    assert not talk.conversation.retry_with_md5
    with pytest.raises(LoginRefused) as caught:
        talk.hear(status=0x0200)
    assert not isinstance(caught.value, AuthenticationFailed)


def test_list_of_algorithms_that_is_refused_is_worth_a_retry() -> None:
    for said in ({"status": 0x0201}, {"pairs": [("CHAP_A", "Reject")]}):
        talk = Talk(credentials=ALICE)
        talk.next(0, [TPGT, CHAP])
        with pytest.raises(AuthenticationFailed) as caught:
            talk.hear(**said)
        assert caught.value.retry_with_md5


def test_initiator_refused_before_chap_began_is_not_worth_a_retry() -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        Talk(credentials=ALICE).hear(status=0x0201)
    assert not caught.value.retry_with_md5


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("CHAP_A", "5"), ("CHAP_I", "1")],
        [("CHAP_A", "5"), ("CHAP_C", "0x00")],
        [("CHAP_I", "1"), ("CHAP_C", "0x00")],
        [("CHAP_A", "4"), ("CHAP_I", "1"), ("CHAP_C", "0x00")],
        [("CHAP_A", "8,7"), ("CHAP_I", "1"), ("CHAP_C", "0x00")],
        [("CHAP_A", "5"), ("CHAP_I", "256"), ("CHAP_C", "0x00")],
        [("CHAP_A", "5"), ("CHAP_I", "one"), ("CHAP_C", "0x00")],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x0")],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "")],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "00" * 1025)],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x00"), ("CHAP_R", "0x00")],
        [("CHAP_A", "5"), ("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x00")],
        [("AuthMethod", "CHAP"), ("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x00")],
        [("CHAP_A", "Irrelevant"), ("CHAP_I", "1"), ("CHAP_C", "0x00")],
    ],
)
def test_malformed_challenges_are_protocol_errors(pairs: list[tuple[str, str]]) -> None:
    talk = Talk(credentials=ALICE)
    talk.next(0, [TPGT, CHAP])
    with pytest.raises(ProtocolError):
        talk.hear(0, pairs)


def test_algorithm_that_was_not_offered_is_a_protocol_error() -> None:
    talk = Talk(credentials=ALICE, chap_algorithms=(5,))
    talk.next(0, [TPGT, CHAP])
    with pytest.raises(ProtocolError, match="CHAP_A"):
        talk.hear(0, [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", "0x00")])


def test_base64_challenge_is_understood() -> None:
    talk = Talk(credentials=ALICE)
    talk.next(0, [TPGT, CHAP])
    said = talk.next(0, [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0bAAECAw==")]).said
    assert said["CHAP_R"] == "0x" + chap.response(5, 1, ALICE.secret, bytes(range(4))).hex()


# Continuation


def test_answer_that_spans_pdus_in_the_middle_of_a_pair() -> None:
    talk = in_operational_stage()
    whole = b"".join(f"{key}={value}".encode() + b"\0" for key, value in TGT_ANSWERS)
    for start in range(0, len(whole) - 40, 40):
        request = talk.next(C | 1 << 2, whole[start : start + 40])
        assert request.data == b""
        assert not request.flags & C
        rest = whole[start + 40 :]
    assert talk.finish(rest).negotiated.max_outstanding_r2t == 1


def test_our_own_long_text_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "split_text", lambda data: text.split_text(data, 50))
    talk = Talk()
    sent = b""
    while talk.request.flags & C:
        assert talk.request.flags == C
        assert len(talk.request.data) == 50
        sent += talk.request.data
        talk.next()
    assert talk.request.flags == T | 1
    assert dict(text.decode_pairs(sent + talk.request.data)) == {
        "InitiatorName": INITIATOR,
        "SessionType": "Normal",
        "TargetName": TARGET,
        "AuthMethod": "None",
    }


@pytest.mark.parametrize(("flags", "pairs"), [(T | 1, b""), (C, b""), (0, b"TargetAlias=x\0")])
def test_target_that_interrupts_our_text_is_a_protocol_error(monkeypatch: pytest.MonkeyPatch, flags: int, pairs: bytes) -> None:
    monkeypatch.setattr(login, "split_text", lambda data: text.split_text(data, 50))
    talk = Talk()
    with pytest.raises(ProtocolError):
        talk.hear(flags, pairs)


def test_optional_answers_that_lio_leaves_out_are_not_missed() -> None:
    talk = in_operational_stage()
    lio = [pair for pair in answers_to(talk.request.said) if pair[0] not in ("DataPDUInOrder", "DataSequenceInOrder")]
    negotiated = talk.finish(lio).negotiated
    assert negotiated.data_pdu_in_order
    assert negotiated.data_sequence_in_order


@pytest.mark.parametrize(("flags", "data", "enough"), [(C | 1 << 2, b"", 62), (C | 1 << 2, bytes(8192), 7), (1 << 2, b"", 62)])
def test_login_or_text_that_never_ends_is_refused(flags: int, data: bytes, enough: int) -> None:
    talk = in_operational_stage()
    for _ in range(enough):
        talk.next(flags, data)
    with pytest.raises(ProtocolError, match="does not"):
        talk.hear(flags, data)


# Targets that break the rules


@pytest.mark.parametrize(
    ("flags", "pairs", "fields"),
    [
        (T | 1, [TPGT, NONE], {"opcode": 0x3F}),
        (T | 1, [TPGT, NONE], {"opcode": 0x20}),
        (T | 1, [TPGT, NONE], {"itt": 1}),
        (T | 1, [TPGT, NONE], {"isid": bytes(6)}),
        (T | 1, [TPGT, NONE], {"version": (1, 1)}),
        (T | C | 1, [TPGT, NONE], {}),
        (T | 1 << 2 | 1, [TPGT, NONE], {}),
        (T | 1 << 2 | 3, [TPGT, NONE], {}),
        (T | 3, [TPGT, NONE], {}),
        (T | 2, [TPGT, NONE], {}),
        (T | 0, [TPGT, NONE], {}),
        (T | 1, [NONE], {}),
        (T | 1, [("TargetPortalGroupTag", "65536"), NONE], {}),
        (T | 1, [TPGT, TPGT, NONE], {}),
        (T | 1, [TPGT, ("HeaderDigest", "None")], {}),
        (T | 1, [TPGT, ("CHAP_A", "5")], {}),
        (T | 1, [TPGT, ("InitiatorName", "iqn.x")], {}),
        (T | 1, [TPGT, ("AuthMethod", "SRP,CHAP")], {"status": 0x0400}),
        (T | 1, b"AuthMethod", {}),
        (0, [TPGT, ("X-a", "Reject")], {}),
    ],
)
def test_first_answer_that_breaks_the_rules_is_a_protocol_error(flags: int, pairs: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Talk().hear(flags, pairs, **fields)


@pytest.mark.parametrize(
    ("flags", "pairs", "fields"),
    [
        (T | 1 << 2 | 3, [("MaxBurstLength", "0")], {}),
        (T | 1 << 2 | 3, [("MaxBurstLength", "16776193")], {}),
        (T | 1 << 2 | 3, [("MaxBurstLength", "NotUnderstood")], {}),
        (T | 1 << 2 | 3, [("MaxBurstLength", "512")], {}),
        (T | 1 << 2 | 3, [("DefaultTime2Wait", "1")], {}),
        (T | 1 << 2 | 3, [("HeaderDigest", "CRC32C")], {}),
        (T | 1 << 2 | 3, [("MaxRecvDataSegmentLength", "100")], {}),
        (T | 1 << 2 | 3, [("InitialR2T", "Maybe")], {}),
        (T | 1 << 2 | 3, [TPGT], {}),
        (T | 1 << 2 | 3, [NONE], {}),
        (T | 1 << 2 | 3, [("IFMarker", "No")], {}),
        (T | 1 << 2 | 3, [], {"stat_sn": 100}),
        (T | 1 << 2 | 3, [], {"stat_sn": 102}),
        (T | 1 << 2 | 3, [], {"tsih": 0}),
        (T | 1 << 2 | 3, [], {"version": (1, 0)}),
        (T | 1, [], {}),
        (0, [], {}),
        (1 << 2 | C | T | 3, [], {}),
    ],
)
def test_operational_answer_that_breaks_the_rules_is_a_protocol_error(flags: int, pairs: Any, fields: dict[str, Any]) -> None:
    talk = in_operational_stage()
    said = dict(pairs)
    answers = [pair for pair in answers_to(talk.request.said) if pair[0] not in said]
    with pytest.raises(ProtocolError):
        talk.hear(flags, answers + pairs, **{"tsih": 7, **fields})


def test_key_answered_twice_over_two_turns_is_a_protocol_error() -> None:
    talk = in_operational_stage()
    talk.next(1 << 2, [("MaxBurstLength", "65536")])
    with pytest.raises(ProtocolError, match="MaxBurstLength twice"):
        talk.hear(1 << 2, [("MaxBurstLength", "65536")])


def test_answer_that_is_owed_and_never_comes_is_a_protocol_error() -> None:
    talk = in_operational_stage()
    with pytest.raises(ProtocolError, match="DefaultTime2Retain"):
        talk.finish([pair for pair in answers_to(talk.request.said) if pair[0] != "DefaultTime2Retain"])


def test_unknown_key_in_the_last_response_needs_no_answer() -> None:
    talk = in_operational_stage()
    assert talk.finish([*answers_to(talk.request.said), ("X-com.example.a", "1")]).tsih == 7


@pytest.mark.parametrize(("tag", "expected", "fits"), [("1", 1, True), ("0", 0, True), ("0x10", 16, True), ("2", 1, False)])
def test_portal_group_must_be_the_discovered_one(tag: str, expected: int, fits: bool) -> None:
    talk = Talk(expected_tpgt=expected)
    if fits:
        talk.next(T | 1, [("TargetPortalGroupTag", tag), NONE])
    else:
        with pytest.raises(ProtocolError, match="portal group 2"):
            talk.hear(T | 1, [("TargetPortalGroupTag", tag), NONE])


def test_stat_sn_wraps() -> None:
    talk = Talk()
    assert talk.next(T | 1, [TPGT, NONE], stat_sn=0xFFFFFFFF).exp_stat_sn == 0
    assert talk.finish(answers_to(talk.request.said), stat_sn=0).exp_stat_sn == 1


def test_window_that_cannot_be_is_ignored() -> None:
    talk = Talk(cmd_sn=9)
    talk.next(T | 1, [TPGT, NONE], window=(9, 40))
    result = talk.finish(answers_to(talk.request.said), window=(9, 3))
    assert (result.exp_cmd_sn, result.max_cmd_sn) == (9, 40)
    closed = Talk(cmd_sn=9)
    closed.next(T | 1, [TPGT, NONE], window=(9, 40))
    assert closed.finish(answers_to(closed.request.said), window=(9, 8)).max_cmd_sn == 8


def test_login_that_ended_stays_ended() -> None:
    talk = Talk()
    with pytest.raises(ProtocolError):
        talk.hear(T | 1, [NONE])
    with pytest.raises(AssertionError):
        talk.hear(T | 1, [TPGT, NONE])
    done = in_operational_stage()
    done.finish(answers_to(done.request.said))
    with pytest.raises(AssertionError):
        done.hear()


# Status


@pytest.mark.parametrize("code", STATUSES)
def test_every_status_ends_the_login_with_its_exception(code: tuple[int, int]) -> None:
    # Everything but the status is reserved then (11.13.5): ITT, ISID, StatSN and versions may be anything.
    with pytest.raises(STATUSES[code].failure, match="disk1 failed"):
        Talk().hear(0xFF, b"", status=code[0] << 8 | code[1], itt=99, isid=bytes(6), version=(9, 9))


def test_status_in_a_later_stage_counts_too() -> None:
    for status, failure in (
        (0x0203, NotFound),
        (0x0301, ServiceUnavailable),
        (0x0302, LoginDeferred),
        (0x0202, LoginRefused),
        (0x0777, ProtocolError),
    ):
        with pytest.raises(failure):
            in_operational_stage().hear(status=status)


@pytest.mark.parametrize(("status", "permanent"), [(0x0101, False), (0x0102, True)])
def test_redirects_are_taken_before_authentication(status: int, permanent: bool) -> None:
    with pytest.raises(Redirect) as caught:
        Talk(credentials=ALICE).hear(0, [("TargetAddress", "[2001:db8::1]:3261"), ("TargetAddress", "h")], status=status)
    assert caught.value.portal == Portal("2001:db8::1", 3261)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("pairs", [b"", b"TargetAddress=:::\0", b"TargetAddress=h", [("TargetAlias", "h")]])
def test_redirect_to_nowhere_is_a_protocol_error(pairs: Any) -> None:
    with pytest.raises(ProtocolError):
        Talk().hear(0, pairs, status=0x0101)


def test_connection_closed_without_an_answer_is_refused_with_advice() -> None:
    assert "may want a CHAP name" in str(Talk().conversation.closed())
    assert "does it know this initiator" in str(Talk(credentials=ALICE).conversation.closed())
    for algorithm, worth_it in ((7, True), (5, False)):
        error = chap_talk(algorithm).conversation.closed()
        assert isinstance(error, LoginRefused)
        assert getattr(error, "retry_with_md5", False) is worth_it


# Hostile targets

VALUES = st.sampled_from(
    ["", "Yes", "No", "None", "CHAP", "CRC32C", "Reject", "Irrelevant", "NotUnderstood", "0", "1", "5", "7", "0x00", "x" * 300]
)
NAMES = st.sampled_from([*sorted(KEYS), "X-a", "", "a b"])
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.tuples(NAMES, VALUES), max_size=5),
    st.just([TPGT, NONE]),
    st.just([TPGT, CHAP]),
    st.just(TGT_ANSWERS),
)
STATUS = st.one_of(st.just(0), st.just(0), st.integers(0, 0xFFFF))


@given(st.sampled_from([{}, {"credentials": ALICE}, {"credentials": ALICE, "mutual": BOB}]), st.data())
def test_hostile_targets_cause_only_our_own_errors(changes: dict[str, Any], data: st.DataObject) -> None:
    talk = Talk(**changes)
    try:
        for _ in range(6):
            proper = talk.request.flags & ~C
            flags = data.draw(st.one_of(st.just(proper), st.just(proper & ~(T | 3)), st.integers(0, 255)))
            if talk.hear(flags, data.draw(TEXTS), status=data.draw(STATUS), tsih=data.draw(st.integers(0, 1))) is None:
                break
    except IsblkError as error:
        shown = str(error)
        assert shown.isprintable()
        assert ALICE.secret.decode() not in shown


@given(st.binary(min_size=48, max_size=48), st.binary(max_size=60))
def test_random_headers_cause_only_our_own_errors(bhs: bytes, data: bytes) -> None:
    conversation = LoginConversation(settings())
    conversation.start()
    with pytest.raises(IsblkError):
        conversation.answer(b"\x23" + bhs[1:], data)
