"""CHAP as the target does it: challenge, verify, and prove itself when asked (RFC 7143 12.1.3, 9.2.1)."""

from __future__ import annotations

from enum import IntEnum

from isblk.iscsi import chap
from isblk.iscsi.text import parse_list, parse_number
from isblk.target.config import TargetConfig

Pair = tuple[str, str]
KEYS = frozenset(("CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"))


class Status(IntEnum):
    """Login status class and detail in one number (11.13.5)."""

    SUCCESS = 0x0000
    MOVED_TEMPORARILY = 0x0101
    MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    NOT_FOUND = 0x0203
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B


class Refused(Exception):
    """The login ends with this status; `pairs` go with it (TargetAddress of a redirect)."""

    def __init__(self, status: Status, why: str, pairs: tuple[Pair, ...] = ()) -> None:
        super().__init__(why)
        self.status = status
        self.pairs = pairs


class Chap:
    """One authentication; raises Refused and ProtocolError. `proved` is set once the initiator has shown that it knows its secret."""

    def __init__(self, config: TargetConfig, challenges: chap.Challenges) -> None:
        if config.credentials is None:
            raise AssertionError("CHAP was chosen by a target without credentials")
        self._expected = config.credentials
        self._mutual = config.mutual
        self._algorithms = config.chap_algorithms
        self._challenges = challenges
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.proved = False

    def answer(self, keys: dict[str, str]) -> list[Pair]:
        """One turn: CHAP_A brings the challenge, CHAP_N and CHAP_R the verdict; nothing brings nothing."""
        if not keys:
            return []
        if not self._algorithm and set(keys) == {"CHAP_A"}:
            return self._begin(keys["CHAP_A"])
        if self._algorithm and not self.proved and {"CHAP_N", "CHAP_R"} <= set(keys) <= {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}:
            return self._finish(keys)
        raise _failed(f"CHAP keys out of turn: {', '.join(sorted(keys))}")

    def _begin(self, offered: str) -> list[Pair]:
        """The first of the initiator's algorithms that we have (6.2.1)."""
        wanted = [parse_number(each, 0, 255) for each in parse_list(offered)]
        usable = [number for number in wanted if number in self._algorithms]
        if not usable:
            raise _failed("no common CHAP algorithm")
        self._algorithm = usable[0]
        self._identifier = chap.new_identifier()
        self._challenge = self._challenges.issue()
        return [
            ("CHAP_A", str(self._algorithm)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", chap.encode_binary(self._challenge)),
        ]

    def _finish(self, keys: dict[str, str]) -> list[Pair]:
        response = chap.decode_binary(keys["CHAP_R"])
        proved = chap.verified(response, self._algorithm, self._identifier, self._expected.secret, self._challenge)
        if not proved or keys["CHAP_N"] != self._expected.name:
            raise _failed("wrong CHAP name or secret")
        self.proved = True
        if "CHAP_I" not in keys and "CHAP_C" not in keys:
            return []
        if "CHAP_I" not in keys or "CHAP_C" not in keys or self._mutual is None:
            raise _failed("the initiator asks for a proof that this target is not configured to give")
        challenge = chap.decode_binary(keys["CHAP_C"])
        if self._challenges.reflected(challenge):
            raise _failed("the initiator reflects our own challenge (9.2.1)")
        identifier = parse_number(keys["CHAP_I"], 0, 255)
        proof = chap.response(self._algorithm, identifier, self._mutual.secret, challenge)
        return [("CHAP_N", self._mutual.name), ("CHAP_R", chap.encode_binary(proof))]


def _failed(why: str) -> Refused:
    return Refused(Status.AUTHENTICATION_FAILURE, why)
