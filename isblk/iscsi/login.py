"""The login conversation, the initiator's side: from the first request to a result or a refusal (RFC 7143 6.3, 11.12, 11.13, 12.1).

Theory of operation: a generator that yields requests and is sent responses, because a login is a script with turns and then reads like
the RFC. A stage is a `_finish_stage`; a turn (continuation by C bit included) is a `_turn`; a response is checked once, in `_received`.
Every login begins in the security stage, also without credentials: tgt reinstates a session only then. It carries no clock: the caller
bounds the time, this module the number of PDUs and bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import NamedTuple

from isblk.errors import LoginRefused, ProtocolError
from isblk.iscsi import chap, keys, loginstatus, pdu
from isblk.iscsi.keys import KEYS, Rule, Stages
from isblk.iscsi.loginstatus import AuthenticationFailed, Doubt, LoginDeferred, Redirect
from isblk.iscsi.names import printable
from isblk.iscsi.terms import Agreement, Decider, LoginResult, LoginSettings, Negotiated
from isblk.iscsi.text import MAX_TEXT_PDUS, Pairs, TextAssembler, decode_pairs, encode_pairs, format_list, parse_number, quoted, split_text

__all__ = [
    "CHALLENGES",
    "Agreement",
    "AuthenticationFailed",
    "Doubt",
    "LoginConversation",
    "LoginDeferred",
    "LoginResult",
    "LoginSettings",
    "Negotiated",
    "Redirect",
]

CHALLENGES = chap.Challenges()
"""Those that initiator sessions of this process have sent: a reflected one is found on whichever connection it comes back."""

LOGIN_ITT = 0
"""The whole login is one task (6.3); nothing else is outstanding on its connection."""

_CODES = {Stages.SECURITY: 0, Stages.OPERATIONAL: 1, Stages.FULL_FEATURE: 3}
_VERSION = 0
_SN_MASK = 0xFFFFFFFF

Pdu = tuple[bytes, bytes]


class _Response(NamedTuple):
    """What a turn needs of a Login Response that passed `_received`."""

    transit: bool
    more: bool
    data: bytes


_Script = Generator[Pdu, _Response, LoginResult]
_Turn = Generator[Pdu, _Response, tuple[dict[str, str], bool]]
_Stage = Generator[Pdu, _Response, dict[str, str]]


class LoginConversation:
    """One login over one connection: `start`, then `answer` for each response, until `result` is there. An exception ends it for good."""

    def __init__(self, settings: LoginSettings, challenges: chap.Challenges = CHALLENGES) -> None:
        self.settings = settings
        self.result: LoginResult | None = None
        self.target = printable(settings.target_name) if settings.target_name else "the discovery service"
        self._challenges = challenges
        self._stage = Stages.SECURITY
        self._text = TextAssembler()
        self._sent = 0
        self._flags = 0
        self._heard: set[str] = set()
        self._declared: dict[str, str] = {}
        self._agreed: dict[str, str] = {}
        self._agreements: list[Agreement] = []
        self._replies: Pairs = []
        self._algorithms: tuple[chap.Algorithm, ...] = ()
        self._algorithm: int | None = None
        self._exp_stat_sn: int | None = None
        self._versions: tuple[int, int] | None = None
        self._window = (settings.cmd_sn, settings.cmd_sn)
        self._tsih = 0
        self._over = False
        self._script = self._converse()

    def start(self) -> Pdu:
        """The first request, as header (48 bytes) and data segment."""
        return next(self._script)

    def answer(self, bhs: bytes | memoryview, data: bytes | memoryview) -> list[Pdu]:
        """The next request after a response; none when the login is done. Raises LoginRefused, NotFound, Redirect or ProtocolError."""
        if self._over:
            raise AssertionError("the login is over")
        self._over = True
        response = self._received(bhs, data)
        try:
            request = self._script.send(response)
        except StopIteration as end:
            self.result = end.value
            return []
        self._over = False
        return [request]

    def closed(self) -> LoginRefused:
        """What to raise when the target closes the connection instead of answering, as LIO does when authentication is missing."""
        if self.retry_with_md5:
            return AuthenticationFailed(
                f"{self.target} broke off the login during CHAP: check the algorithms that it knows", True, Doubt.BROKEN_OFF
            )
        advice = (
            "does it know this initiator?"
            if self.settings.credentials
            else "it may want a CHAP name and secret, or not know this initiator"
        )
        return LoginRefused(f"{self.target} closed the connection in the middle of the login: {advice}")

    def _converse(self) -> _Script:
        yield from self._chap() if self.settings.credentials else self._no_authentication()
        self._stage = Stages.OPERATIONAL
        yield from self._operational()
        return self._finish()

    # Security stage (6.3.2, 12.1)

    def _no_authentication(self) -> _Stage:
        answers = yield from self._finish_stage([*self.settings.introduction(), ("AuthMethod", "None")], Stages.OPERATIONAL, {"AuthMethod"})
        method = answers.get("AuthMethod")
        if method not in (None, "None"):
            raise self._authentication_wanted(f"AuthMethod={quoted(str(method))}")
        self._settle("AuthMethod", "None", method or "None")
        return answers

    def _chap(self) -> _Stage:
        yield from self._choose_chap()
        offered = format_list([str(int(one)) for one in self._algorithms])
        said, _ = yield from self._turn([("CHAP_A", offered)], None, {"CHAP_A", "CHAP_I", "CHAP_C"})
        if said.get("CHAP_A") == keys.REJECT:
            raise AuthenticationFailed(f"{self.target} knows none of our CHAP algorithms", self.retry_with_md5, Doubt.NO_ALGORITHM)
        identifier = parse_number(self._need(said, "CHAP_I"), 0, 255)
        challenge = chap.decode_binary(self._need(said, "CHAP_C"))
        if self._challenges.reflected(challenge):
            text = f"{self.target} sent a CHAP challenge of ours back: somebody is using us to forge an answer"
            raise AuthenticationFailed(text, doubt=Doubt.REFLECTED)
        self._algorithm = int(self._settle("CHAP_A", offered, self._need(said, "CHAP_A")))
        return (yield from self._respond(identifier, challenge))

    def _choose_chap(self) -> _Stage:
        """Offer CHAP alone. None is neither offered nor taken: else whoever poses as the target could have authentication left out."""
        algorithms = chap.available(self.settings.chap_algorithms)
        said, _ = yield from self._turn([*self.settings.introduction(), ("AuthMethod", "CHAP")], None, {"AuthMethod"})
        method = self._need(said, "AuthMethod")
        if method in ("None", keys.REJECT):
            raise AuthenticationFailed(
                f"{self.target} does not authenticate with CHAP ({method}), but credentials are configured: "
                "set them up on the target, or leave them out here",
                doubt=Doubt.UNWANTED,
            )
        self._settle("AuthMethod", "CHAP", method)
        self._algorithms = algorithms
        return said

    def _respond(self, identifier: int, challenge: bytes) -> _Stage:
        credentials, mutual = self.settings.credentials, self.settings.mutual
        if credentials is None or self._algorithm is None:
            raise AssertionError("CHAP without credentials or algorithm")
        response = chap.response(self._algorithm, identifier, credentials.secret, challenge)
        pairs = [("CHAP_N", credentials.name), ("CHAP_R", chap.encode_binary(response))]
        if mutual is None:
            return (yield from self._finish_stage(pairs, Stages.OPERATIONAL, ()))
        our_identifier, our_challenge = chap.new_identifier(), self._challenges.issue()
        pairs += [("CHAP_I", str(our_identifier)), ("CHAP_C", chap.encode_binary(our_challenge))]
        answers = yield from self._finish_stage(pairs, Stages.OPERATIONAL, {"CHAP_N", "CHAP_R"})
        self._check_target(answers, credentials, mutual, our_identifier, our_challenge)
        return answers

    def _check_target(
        self, answers: dict[str, str], credentials: chap.Credentials, mutual: chap.Credentials, identifier: int, challenge: bytes
    ) -> None:
        """Mutual CHAP: the target proves itself, or the login ends; never fall back to one direction (9.2.1)."""
        if self._algorithm is None:
            raise AssertionError("CHAP without algorithm")
        if "CHAP_R" not in answers or "CHAP_N" not in answers:
            text = f"{self.target} did not prove who it is, though mutual CHAP was asked for: set it up on the target"
            raise AuthenticationFailed(text, doubt=Doubt.UNPROVED)
        received = chap.decode_binary(answers["CHAP_R"])
        if chap.verified(received, self._algorithm, identifier, credentials.secret, challenge):
            raise AuthenticationFailed(
                f"{self.target} answered our challenge with our own secret: somebody mirrors us, or both secrets are equal",
                doubt=Doubt.MIRRORED,
            )
        if not chap.verified(received, self._algorithm, identifier, mutual.secret, challenge):
            raise AuthenticationFailed(
                f"{self.target} could not prove who it is: check the secret of the target on both sides",
                self.retry_with_md5,
                Doubt.WRONG_PROOF,
            )
        if answers["CHAP_N"] != mutual.name:
            text = f"{self.target} calls itself {quoted(answers['CHAP_N'])} in CHAP, not {mutual.name!r}"
            raise AuthenticationFailed(text, doubt=Doubt.OTHER_NAME)

    @property
    def retry_with_md5(self) -> bool:
        """Whether CHAP is under way and another login that offers MD5 alone would be something new."""
        return (
            self._stage is Stages.SECURITY
            and self._algorithm != chap.Algorithm.MD5
            and chap.Algorithm.MD5 in self._algorithms
            and len(self._algorithms) > 1
        )

    # Operational stage (6.3.3)

    def _operational(self) -> _Stage:
        offers = self.settings.offers()
        negotiated = {name: value for name, value in offers if KEYS[name].rule is not Rule.DECLARATIVE}
        answers = yield from self._finish_stage(offers, Stages.FULL_FEATURE, negotiated)
        for name, value in negotiated.items():
            self._settle(name, value, answers.get(name))
        return answers

    def _finish(self) -> LoginResult:
        if not self._tsih or (self.settings.tsih and self._tsih != self.settings.tsih):
            raise ProtocolError(f"{self.target} ended the login with the session handle {self._tsih} (RFC 7143 11.13.3)")
        keys.check_integrity(self._agreed)
        ours = self.settings.max_recv_data_segment_length
        negotiated = Negotiated.from_keys(self._agreed, self._declared, ours)
        self._agreements.append(Agreement("MaxRecvDataSegmentLength", str(ours), str(ours), "isblk"))
        self._agreements += [Agreement(f"{name} (target)", None, value, "target") for name, value in self._declared.items()]
        return LoginResult(
            negotiated=negotiated,
            tsih=self._tsih,
            cmd_sn=self.settings.cmd_sn,
            exp_stat_sn=self._exp_stat_sn or 0,
            exp_cmd_sn=self._window[0],
            max_cmd_sn=self._window[1],
            tpgt=negotiated.target_portal_group_tag,
            target_alias=self._declared.get("TargetAlias"),
            agreements=tuple(self._agreements),
        )

    # Turns: pairs out, pairs in

    def _finish_stage(self, pairs: Pairs, next_stage: Stages, expected: Collection[str]) -> _Stage:
        """Ask for the next stage, with empty requests too, until the target agrees; the answers to `expected` keys on the way."""
        answers: dict[str, str] = {}
        transit = False
        while not transit:
            said, transit = yield from self._turn(pairs, next_stage, expected)
            answers |= said
            pairs = []
        return answers

    def _turn(self, pairs: Pairs, next_stage: Stages | None, expected: Collection[str]) -> _Turn:
        """Send what we owe and `pairs`, hear the whole answer; continuation by C bit both ways (6.2)."""
        owed, self._replies = self._replies, []
        *parts, last = split_text(encode_pairs([*owed, *pairs]))
        for part in parts:
            response = yield self._request(part, pdu.CONTINUE)
            if response.data or response.more or response.transit:
                raise ProtocolError(f"{self.target} interrupted a text that we had not finished (RFC 7143 6.2)")
        flags = pdu.TRANSIT | _CODES[next_stage] if next_stage else 0
        response = yield self._request(last, flags)
        while (heard := self._text.add(response.data, response.more)) is None:
            response = yield self._request(b"", flags)
        said = self._sort(heard, expected)
        self._check_portal_group()
        if response.transit:
            self._check_nothing_owed()
        return said, response.transit

    def _sort(self, heard: Pairs, expected: Collection[str]) -> dict[str, str]:
        """Take what the target said apart: answers are returned, declarations kept, proposals get their reply in the next request."""
        answers: dict[str, str] = {}
        for name, value in heard:
            keys.check_sender(name, self._stage, from_target=True)
            key = KEYS.get(name)
            if name in self._heard and not (key and key.repeatable):
                raise ProtocolError(f"{self.target} declared {name} twice in one login (RFC 7143 6.3)")
            self._heard.add(name)
            if name in expected:
                answers[name] = value
            elif key and key.target is Stages.SECURITY:
                raise ProtocolError(f"{self.target} sent {name} out of turn (RFC 7143 12.1)")
            elif key and key.rule is Rule.DECLARATIVE:
                self._declared[name] = key.check(value)
            else:
                self._reply(name, value)
        return answers

    def _reply(self, name: str, proposed: str) -> None:
        said = keys.answer(name, proposed, discovery=self.settings.discovery)
        if said is None:
            raise AssertionError("a declaration is no proposal")
        self._replies.append((name, said))
        if said not in keys.RESERVED:
            self._agreed[name] = said
            self._agreements.append(Agreement(name, None, said, "isblk"))

    def _check_nothing_owed(self) -> None:
        """A key that wants an answer has no place in the last response of a stage (11.13.6); one that we do not know needs none."""
        if any(said != keys.NOT_UNDERSTOOD for _, said in self._replies):
            raise ProtocolError(f"{self.target} ended a stage with a proposal of its own: {self._replies[0][0]} (RFC 7143 11.13.6)")
        self._replies = []

    def _check_portal_group(self) -> None:
        """The first answer of a normal session names the portal group (6.3.1); 13.9 asks for it only where a target was named."""
        tag, expected = self._declared.get("TargetPortalGroupTag"), self.settings.expected_tpgt
        if tag is None and not self.settings.discovery:
            raise ProtocolError(f"{self.target} did not name its portal group in its first answer (RFC 7143 6.3.1)")
        if tag is not None and expected is not None and int(tag) != expected:
            raise ProtocolError(f"{self.target} answered from portal group {tag}, not from {expected} as it was discovered: discover again")

    def _settle(self, name: str, offered: str, received: str | None) -> str:
        """Conclude one key that we offered, and note how it came about."""
        if KEYS[name].default == "None" and received in ("None", *keys.RESERVED) and "None" not in offered.split(","):
            raise LoginRefused(f"{self.target} does not do {name}={offered}, which is required here: set the digest to 'prefer' or 'none'")
        agreed = keys.unanswered(name, offered) if received is None else keys.adopt(name, offered, received)
        decided: Decider = "both" if agreed == offered.split(",")[0] else "target"
        if received is None or received in keys.RESERVED:
            decided = "default"
        self._agreed[name] = agreed
        self._agreements.append(Agreement(name, offered, agreed, decided))
        return agreed

    def _need(self, said: dict[str, str], name: str) -> str:
        if name not in said:
            raise ProtocolError(f"{self.target} left out {name} of its answer (RFC 7143 12.1)")
        return said[name]

    # Headers (11.12, 11.13)

    def _request(self, data: bytes, flags: int) -> Pdu:
        self._sent += 1
        if self._sent > MAX_TEXT_PDUS:
            raise ProtocolError(f"the login to {self.target} does not come to an end: {MAX_TEXT_PDUS} requests were not enough")
        settings = self.settings
        bhs = pdu.INITIATOR.pack(
            pdu.LOGIN | pdu.IMMEDIATE,
            flags | _CODES[self._stage] << 2,
            _VERSION,
            len(data),
            settings.isid + settings.tsih.to_bytes(2, "big"),
            LOGIN_ITT,
            settings.cid << 16,
            settings.cmd_sn,
            self._exp_stat_sn or 0,
            *(0, 0, 0, 0),
        )
        self._flags = flags
        return bhs, data

    def _received(self, bhs: bytes | memoryview, data: bytes | memoryview) -> _Response:
        """Check everything about a response that is not text (11.13). A status other than success ends the login."""
        opcode, flags, version_max, version_active, _, identity, itt, _, stat_sn, exp_cmd_sn, max_cmd_sn, status, *_ = pdu.TARGET.unpack(
            bhs
        )
        if opcode & pdu.OPCODE_MASK != pdu.LOGIN_RESPONSE:
            raise ProtocolError(f"{self.target} answered a login with something else: {pdu.describe(bhs)}")
        if status >> 24 != loginstatus.SUCCESS:
            raise self._refusal(status >> 24, status >> 16 & 0xFF, bytes(data))
        if itt != LOGIN_ITT or identity[:6] != self.settings.isid:
            raise ProtocolError(f"{self.target} answered another login than ours: {pdu.describe(bhs)}")
        self._check_version(version_max, version_active)
        self._advance(stat_sn, exp_cmd_sn, max_cmd_sn)
        self._tsih = int.from_bytes(identity[6:], "big")
        self._check_flags(flags)
        return _Response(bool(flags & pdu.TRANSIT), bool(flags & pdu.CONTINUE), bytes(data))

    def _check_flags(self, flags: int) -> None:
        transit, more = flags & pdu.TRANSIT, flags & pdu.CONTINUE
        if flags >> 2 & 3 != _CODES[self._stage]:
            raise ProtocolError(f"{self.target} answered from another stage of the login (RFC 7143 6.3)")
        if transit and (more or not self._flags & pdu.TRANSIT or flags & 3 != self._flags & 3):
            raise ProtocolError(f"{self.target} went to a stage of the login that we did not ask for (RFC 7143 6.3)")

    def _check_version(self, version_max: int, version_active: int) -> None:
        if version_active != _VERSION or (self._versions or (version_max, version_active)) != (version_max, version_active):
            raise ProtocolError(f"{self.target} speaks version {version_active} of iSCSI; only 0 is known (RFC 7143 11.13.2)")
        self._versions = version_max, version_active

    def _advance(self, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> None:
        """StatSN starts anywhere and then counts each response (11.13.4); a window that cannot be is ignored (4.2.2.1)."""
        if self._exp_stat_sn not in (None, stat_sn):
            raise ProtocolError(f"{self.target} sent StatSN {stat_sn} in the login where {self._exp_stat_sn} was due (RFC 7143 11.13.4)")
        self._exp_stat_sn = (stat_sn + 1) & _SN_MASK
        if (max_cmd_sn - exp_cmd_sn + 1) & _SN_MASK < 1 << 31:
            self._window = exp_cmd_sn, max_cmd_sn

    def _refusal(self, status_class: int, status_detail: int, data: bytes) -> Exception:
        if status_class == loginstatus.REDIRECTION:
            addresses = [value for name, value in decode_pairs(data) if name == "TargetAddress"]
            return loginstatus.redirect(status_detail, addresses, self.target)
        if (status_class, status_detail) == loginstatus.AUTHENTICATION_FAILURE and not self.settings.credentials:
            return self._authentication_wanted("status 0x0201")
        error = loginstatus.refusal(status_class, status_detail, self.target)
        # tgt, which computes SHA-1 for algorithm 7, calls the wrong answer it then gets a miscellaneous error of the initiator.
        if isinstance(error, AuthenticationFailed) or (self.retry_with_md5 and status_class == loginstatus.INITIATOR_ERROR):
            return AuthenticationFailed(str(error), self.retry_with_md5)
        return error

    def _authentication_wanted(self, evidence: str) -> AuthenticationFailed:
        text = f"login to {self.target} failed: it wants authentication ({evidence}); give a CHAP name and its secret"
        return AuthenticationFailed(text, doubt=Doubt.WANTED)
