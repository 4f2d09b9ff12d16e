from __future__ import annotations

import hashlib

import pytest

from isblk.errors import ProtocolError
from isblk.iscsi.chap import Challenges, Credentials, decode_binary, encode_binary
from isblk.target.authenticate import Chap, Refused, Status
from isblk.target.config import TargetConfig

SECRET, OURS = b"initiator secret", b"target secret 12"
CONFIG = TargetConfig(credentials=Credentials("joe", SECRET), mutual=Credentials("target", OURS))
HASHES = {5: "md5", 6: "sha1", 7: "sha256", 8: "sha3_256"}


def expected(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> str:
    """RFC 1994, computed here and not by the code under test."""
    return encode_binary(hashlib.new(HASHES[algorithm], bytes([identifier]) + secret + challenge).digest())


def begin(chap: Chap, algorithms: str = "5") -> tuple[int, int, bytes]:
    keys = dict(chap.answer({"CHAP_A": algorithms}))
    return int(keys["CHAP_A"]), int(keys["CHAP_I"]), decode_binary(keys["CHAP_C"])


@pytest.mark.parametrize("algorithm", [5, 6, 7, 8])
def test_the_right_secret_is_accepted_with_every_algorithm(algorithm: int) -> None:
    chap = Chap(CONFIG, Challenges())
    chosen, identifier, challenge = begin(chap, str(algorithm))
    assert chosen == algorithm
    assert chap.answer({}) == []
    assert not chap.proved
    assert chap.answer({"CHAP_N": "joe", "CHAP_R": expected(algorithm, identifier, SECRET, challenge)}) == []
    assert chap.proved


def test_the_first_algorithm_of_the_initiator_that_is_configured_wins() -> None:
    assert begin(Chap(CONFIG, Challenges()), "99,8,7,5")[0] == 8
    only_md5 = TargetConfig(credentials=CONFIG.credentials, chap_algorithms=(5,))
    assert begin(Chap(only_md5, Challenges()), "8,7,6,5")[0] == 5
    with pytest.raises(Refused) as refused:
        begin(Chap(only_md5, Challenges()), "8,7")
    assert refused.value.status == Status.AUTHENTICATION_FAILURE


@pytest.mark.parametrize("name, secret", [("jim", SECRET), ("joe", b"another secret"), ("joe", OURS)])
def test_a_wrong_name_or_secret_is_refused(name: str, secret: bytes) -> None:
    chap = Chap(CONFIG, Challenges())
    algorithm, identifier, challenge = begin(chap)
    with pytest.raises(Refused) as refused:
        chap.answer({"CHAP_N": name, "CHAP_R": expected(algorithm, identifier, secret, challenge)})
    assert refused.value.status == Status.AUTHENTICATION_FAILURE
    assert not chap.proved


def test_the_target_proves_itself_when_asked() -> None:
    chap = Chap(CONFIG, Challenges())
    algorithm, identifier, challenge = begin(chap, "7")
    asked = {"CHAP_I": "33", "CHAP_C": "0xabcdef"}
    answer = dict(chap.answer({"CHAP_N": "joe", "CHAP_R": expected(algorithm, identifier, SECRET, challenge), **asked}))
    assert answer == {"CHAP_N": "target", "CHAP_R": expected(7, 33, OURS, b"\xab\xcd\xef")}


def test_a_proof_is_refused_without_credentials_for_it_or_with_half_a_question() -> None:
    without = TargetConfig(credentials=CONFIG.credentials)
    for config, asked in ((without, {"CHAP_I": "1", "CHAP_C": "0xab"}), (CONFIG, {"CHAP_I": "1"}), (CONFIG, {"CHAP_C": "0xab"})):
        chap = Chap(config, Challenges())
        algorithm, identifier, challenge = begin(chap)
        with pytest.raises(Refused):
            chap.answer({"CHAP_N": "joe", "CHAP_R": expected(algorithm, identifier, SECRET, challenge), **asked})


def test_our_own_challenge_thrown_back_is_refused() -> None:
    challenges = Challenges()
    _, _, foreign = begin(Chap(CONFIG, challenges))
    chap = Chap(CONFIG, challenges)
    algorithm, identifier, challenge = begin(chap)
    proof = {"CHAP_N": "joe", "CHAP_R": expected(algorithm, identifier, SECRET, challenge)}
    with pytest.raises(Refused, match="reflects"):
        chap.answer({**proof, "CHAP_I": "1", "CHAP_C": encode_binary(foreign)})


def test_keys_out_of_turn_are_refused() -> None:
    for keys in ({"CHAP_N": "joe", "CHAP_R": "0x00"}, {"CHAP_A": "5", "CHAP_N": "joe"}):
        with pytest.raises(Refused):
            Chap(CONFIG, Challenges()).answer(keys)
    chap = Chap(CONFIG, Challenges())
    begin(chap)
    with pytest.raises(Refused):
        chap.answer({"CHAP_A": "5"})
    with pytest.raises(Refused):
        chap.answer({"CHAP_N": "joe"})


def test_values_that_are_no_numbers_or_no_binary_are_protocol_errors() -> None:
    with pytest.raises(ProtocolError):
        Chap(CONFIG, Challenges()).answer({"CHAP_A": "five"})
    chap = Chap(CONFIG, Challenges())
    begin(chap)
    with pytest.raises(ProtocolError):
        chap.answer({"CHAP_N": "joe", "CHAP_R": "secret"})


def test_a_refusal_names_no_secret() -> None:
    chap = Chap(CONFIG, Challenges())
    begin(chap)
    with pytest.raises(Refused) as refused:
        chap.answer({"CHAP_N": "joe", "CHAP_R": "0x00"})
    assert "secret" not in repr(refused.value).replace("name or secret", "")
