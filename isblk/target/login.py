"""The target's side of the login conversation: stages, identification, refusals, redirects, continuation (RFC 7143 6.3, 11.12, 11.13).

Theory of operation: `request` takes one Login Request and returns the one Login Response. Text that continues (C) in either direction is
exchanged first; a whole set of pairs is then split by `_sort` into what identifies, authenticates and negotiates. A violation is raised and
becomes a response with its status in `request`; after that `over` is True and the connection must close.
"""

from __future__ import annotations

from enum import IntEnum

from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.text import TextAssembler, encode_pairs, parse_list, split_text
from isblk.target import authenticate, negotiate
from isblk.target.authenticate import Chap, Refused, Status
from isblk.target.config import PortalConfig, Reinstatement
from isblk.target.negotiate import Negotiation
from isblk.target.outcome import Nexus
from isblk.target.sessions import DISCOVERY, NORMAL, Link, Node, Session

Pair = tuple[str, str]
Response = tuple[bytes, bytes]
"""BHS and data segment."""
MAX_REQUESTS = 64
_IDENTITY = frozenset(("InitiatorName", "TargetName", "SessionType", "InitiatorAlias"))


class Stage(IntEnum):
    """CSG and NSG (11.12.3)."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


_TRANSITIONS = {
    (Stage.SECURITY, Stage.OPERATIONAL),
    (Stage.SECURITY, Stage.FULL_FEATURE),
    (Stage.OPERATIONAL, Stage.FULL_FEATURE),
}


class Login:
    """One login. `session` is set when it succeeded, `over` when it failed."""

    def __init__(self, node: Node, portal: PortalConfig, link: Link) -> None:
        self.session: Session | None = None
        self.over = False
        self.stat_sn = node.config.offer.initial_stat_sn
        self.negotiation = Negotiation(node.config.offer)
        self.why = ""
        self._node = node
        self._portal = portal
        self._link = link
        self._fixed: tuple[bytes, int, int] | None = None
        self._cmd_sn = 0
        self._stage = Stage.SECURITY
        self._assembler = TextAssembler()
        self._chunks: list[bytes] = []
        self._requests = 0
        self._seen: set[str] = set()
        self._nexus: Nexus | None = None
        self._session_type = NORMAL
        self._chap: Chap | None = None
        self._waiting: tuple[bytes, bytes] | None = None
        self._reinstated = False

    @property
    def started(self) -> bool:
        return self._requests > 0

    def request(self, bhs: memoryview, data: memoryview) -> Response | None:
        """The response to one Login Request; None when it has to wait, for `resume`. Never raises for what the network brought."""
        try:
            return self._converse(bhs, data)
        except Refused as refused:
            return self._refuse(bhs, refused.status, str(refused), refused.pairs)
        except ProtocolError as error:
            return self._refuse(bhs, Status.INITIATOR_ERROR, str(error))

    def resume(self) -> Response | None:
        """Look again whether the login that waits may be answered."""
        if self._waiting is None:
            raise AssertionError("a login is resumed that does not wait")
        return self._enter_full_feature(*self._waiting)

    def refuse_foreign(self, bhs: memoryview) -> Response:
        """The answer to a PDU that is no Login Request in the middle of a login (11.13.5)."""
        return self._refuse(bhs, Status.INVALID_DURING_LOGIN, "a PDU other than Login during login")

    def _converse(self, bhs: memoryview, data: memoryview) -> Response | None:
        flags = self._check_header(bhs)
        if self._waiting is not None:
            raise ProtocolError("the initiator goes on before its last Login Request is answered (6.3)")
        if self._chunks:
            if data or flags & pdu.CONTINUE:
                raise ProtocolError("the initiator sent text while ours continues (6.2)")
            return self._respond(bhs, [])
        pairs = self._assembler.add(data, bool(flags & pdu.CONTINUE))
        if pairs is None:
            return self._response(bhs, b"", 0)
        return self._respond(bhs, self._answer(pairs))

    def _check_header(self, bhs: memoryview) -> int:
        """What every Login Request must satisfy (11.12); returns its flags."""
        _, flags, versions, _, session_id, itt, cid, cmd_sn, *_ = pdu.INITIATOR.unpack(bhs)
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise ProtocolError(f"the login does not end within {MAX_REQUESTS} requests")
        if versions & 0xFF:
            raise Refused(Status.UNSUPPORTED_VERSION, "the initiator demands a version above 0")
        fixed = (session_id, itt, cid >> 16)
        stage = flags >> 2 & 3
        if self._fixed is None:
            self._fixed, self._cmd_sn = fixed, cmd_sn
            if stage not in (Stage.SECURITY, Stage.OPERATIONAL):
                raise ProtocolError("the login begins in no stage that exists")
            self._stage = Stage(stage)
        if fixed != self._fixed or stage != self._stage:
            raise ProtocolError("ISID, TSIH, CID, task tag or stage changed within the login (11.12)")
        if flags & pdu.TRANSIT and (flags & pdu.CONTINUE or (stage, flags & 3) not in _TRANSITIONS):
            raise ProtocolError("the transition asked for does not exist (6.3)")
        return int(flags)

    # What a whole set of pairs means

    def _answer(self, pairs: list[Pair]) -> list[Pair]:
        identity, security, operational, answers = self._sort(pairs)
        if self._nexus is None:
            self._identify(identity)
            answers[:0] = self._introduction()
        if self._stage == Stage.SECURITY:
            return answers + self._secure(security)
        if self._needs_authentication():
            raise Refused(Status.AUTHENTICATION_FAILURE, "the initiator skipped the authentication that this target demands")
        answers += self.negotiation.answer(operational)
        # Ours come last: `proposals` is about what the initiator left out.
        return answers + self.negotiation.declaration() + self.negotiation.proposals()

    def _sort(self, pairs: list[Pair]) -> tuple[dict[str, str], dict[str, str], list[Pair], list[Pair]]:
        """(identity, security, operational, answers to the rest); a key of the other stage or a repeated one is an error (6.3)."""
        identity: dict[str, str] = {}
        security: dict[str, str] = {}
        operational: list[Pair] = []
        answers: list[Pair] = []
        for key, value in pairs:
            if key in negotiate.KEYS:
                self._require_stage(Stage.OPERATIONAL, key)
                operational.append((key, value))
            elif key == "MaxRecvDataSegmentLength":
                self.negotiation.declare(value)
            else:
                if key in self._seen:
                    raise ProtocolError(f"the initiator declared {key} twice in one login (6.3)")
                self._seen.add(key)
                if key == "AuthMethod" or key in authenticate.KEYS:
                    self._require_stage(Stage.SECURITY, key)
                    security[key] = value
                elif key in _IDENTITY:
                    identity[key] = value
                else:
                    answers.append((key, "NotUnderstood"))
        return identity, security, operational, answers

    def _require_stage(self, stage: Stage, key: str) -> None:
        if self._stage != stage:
            raise ProtocolError(f"the key {key} does not belong into the {self._stage.name.lower()} stage (6.3)")

    def _identify(self, keys: dict[str, str]) -> None:
        """Who comes, to whom, for what: the first complete request (6.3.1)."""
        name = keys.get("InitiatorName", "")
        if not name:
            raise Refused(Status.MISSING_PARAMETER, "the initiator does not say its name")
        self._session_type = keys.get("SessionType", NORMAL)
        if self._session_type not in (NORMAL, DISCOVERY):
            raise Refused(Status.SESSION_TYPE_NOT_SUPPORTED, "no such session type")
        if self._session_type == NORMAL:
            self._check_target(keys.get("TargetName", ""))
        else:
            self.negotiation.discovery = True
        session_id, _, cid = self._fixed_fields()
        self._nexus = Nexus(name, session_id[:6], self._portal.tpgt)
        self._check_session(int.from_bytes(session_id[6:], "big"), cid)

    def _check_target(self, name: str) -> None:
        if not name:
            raise Refused(Status.MISSING_PARAMETER, "the initiator does not say which target")
        if name.lower() != self._node.config.name.lower():
            raise Refused(Status.NOT_FOUND, "no target of that name")
        redirect = self._portal.redirect
        if redirect is not None:
            status = Status.MOVED_PERMANENTLY if redirect.permanent else Status.MOVED_TEMPORARILY
            raise Refused(status, "moved", (("TargetAddress", redirect.address),))

    def _check_session(self, tsih: int, cid: int) -> None:
        """The table of 6.3.1 for a TSIH that is not 0."""
        if tsih == 0:
            return
        session = self._node.find(tsih)
        if session is None or session.nexus != self._nexus or session.session_type != self._session_type:
            raise Refused(Status.SESSION_DOES_NOT_EXIST, "no session with that TSIH")
        if session.cid != cid:
            raise Refused(Status.TOO_MANY_CONNECTIONS, "a session has one connection")

    def _introduction(self) -> list[Pair]:
        """What the first response tells whatever comes after (6.3.1)."""
        alias = self._node.config.alias
        tag = ("TargetPortalGroupTag", str(self._portal.tpgt))
        return [("TargetAlias", alias), tag] if alias else [tag]

    def _needs_authentication(self) -> bool:
        config = self._node.config
        wanted = config.credentials is not None and (self._session_type == NORMAL or config.discovery_auth)
        return wanted and not (self._chap is not None and self._chap.proved)

    def _secure(self, keys: dict[str, str]) -> list[Pair]:
        answers: list[Pair] = []
        methods = keys.pop("AuthMethod", None)
        if methods is not None:
            answers.append(("AuthMethod", self._choose_method(parse_list(methods))))
        if self._chap is not None:
            return answers + self._chap.answer(keys)
        if keys:
            raise Refused(Status.AUTHENTICATION_FAILURE, "CHAP keys, but CHAP was not agreed")
        return answers

    def _choose_method(self, methods: list[str]) -> str:
        """The first acceptable one (6.2.1): CHAP where a proof is demanded, else None; a proof nobody could check is refused."""
        if self._needs_authentication():
            if "CHAP" not in methods:
                raise Refused(Status.AUTHENTICATION_FAILURE, "this target demands CHAP")
            self._chap = Chap(self._node.config, self._node.challenges)
            return "CHAP"
        if "None" not in methods:
            raise Refused(Status.AUTHENTICATION_FAILURE, "no authentication is configured here, and the initiator insists on one")
        return "None"

    # Responses

    def _respond(self, bhs: memoryview, answers: list[Pair]) -> Response | None:
        """The next piece of text, and the transition when it is asked for and possible."""
        flags = bhs[1]
        if not self._chunks:
            limit = min(self._node.config.offer.login_chunk, pdu.LOGIN_DATA_SEGMENT_LENGTH)
            self._chunks = split_text(encode_pairs(answers), limit)
        chunk = self._chunks.pop(0)
        if self._chunks:
            return self._response(bhs, chunk, pdu.CONTINUE)
        if not flags & pdu.TRANSIT or not self._may_leave():
            return self._response(bhs, chunk, 0)
        return self._transit(bhs, chunk, Stage(flags & 3))

    def _may_leave(self) -> bool:
        """Whether the stage is done as far as the target goes."""
        if self._stage == Stage.OPERATIONAL:
            return not self.negotiation.unanswered
        if self._needs_authentication() and self._chap is None:
            raise Refused(Status.AUTHENTICATION_FAILURE, "the initiator leaves the security stage without proving anything")
        return not self._needs_authentication()

    def _transit(self, bhs: memoryview, chunk: bytes, stage: Stage) -> Response | None:
        if stage == Stage.FULL_FEATURE:
            self.negotiation.check()
            return self._enter_full_feature(bytes(bhs), chunk)
        previous, self._stage = self._stage, stage
        return self._response(bhs, chunk, pdu.TRANSIT | stage, previous)

    def _enter_full_feature(self, bhs: bytes, chunk: bytes) -> Response | None:
        """The last response, once an older session of the same initiator port is out of the way."""
        if not self._make_way():
            self._waiting = bhs, chunk
            return None
        previous, self._stage = self._stage, Stage.FULL_FEATURE
        self._waiting = None
        self._open()
        return self._response(memoryview(bhs), chunk, pdu.TRANSIT | Stage.FULL_FEATURE, previous)

    def _make_way(self) -> bool:
        """Whether the session may begin now; raises Refused where it may not begin at all (config.Reinstatement)."""
        nexus, node, kind = self._known_nexus, self._node, self._node.config.reinstatement
        if any(self._fixed_fields()[0][6:]):
            return True  # A TSIH: the session goes on over this connection.
        old = node.session_of(nexus, self._session_type)
        if kind is Reinstatement.REFUSE and (old is not None or node.has_departed(nexus, self._session_type)):
            raise Refused(Status.TOO_MANY_CONNECTIONS, "the initiator port has a session already")
        if kind is Reinstatement.WAIT:
            if old is not None:
                self._reinstated = True
                old.link.drop("the session was reinstated")
            return not node.has_departed(nexus, self._session_type)
        return True

    def _open(self) -> None:
        """Login succeeded: now, and not before, an older session of the same initiator port ends (6.3.5)."""
        session_id, _, cid = self._fixed_fields()
        session = self._node.find(int.from_bytes(session_id[6:], "big"))
        if session is None:
            window = self._node.config.offer.window
            session = self._node.open_session(self._known_nexus, self._session_type, cid, self._link, window, self._reinstated)
            session.exp_cmd_sn = self._cmd_sn
        else:
            self._node.adopt(session, cid, self._link)
        self.session = session

    @property
    def _known_nexus(self) -> Nexus:
        if self._nexus is None:
            raise AssertionError("a login ended before it identified anybody")
        return self._nexus

    def _response(self, bhs: memoryview, data: bytes, flags: int, stage: Stage | None = None) -> Response:
        session_id, itt, _ = self._fixed_fields()
        if self.session is not None:
            session_id = session_id[:6] + self.session.tsih.to_bytes(2, "big")
        window = self._node.config.offer.window
        exp_cmd_sn = self.session.exp_cmd_sn if self.session is not None else self._cmd_sn
        max_cmd_sn = (exp_cmd_sn + window - 1) & 0xFFFFFFFF
        flags |= (self._stage if stage is None else stage) << 2
        words = (0, self.stat_sn, exp_cmd_sn, max_cmd_sn, 0, 0, 0)
        self.stat_sn = (self.stat_sn + 1) & 0xFFFFFFFF
        return pdu.TARGET.pack(pdu.LOGIN_RESPONSE, flags, 0, 0, len(data), session_id, itt, *words), data

    def _refuse(self, bhs: memoryview, status: Status, why: str, pairs: tuple[Pair, ...] = ()) -> Response:
        """A response whose status ends the login; T, CSG and NSG are reserved in it."""
        self.over = True
        self.why = why
        data = encode_pairs(pairs)
        session_id, itt = bytes(bhs[8:16]), int.from_bytes(bhs[16:20], "big")
        return pdu.TARGET.pack(pdu.LOGIN_RESPONSE, 0, 0, 0, len(data), session_id, itt, 0, 0, 0, 0, status << 16, 0, 0), data

    def _fixed_fields(self) -> tuple[bytes, int, int]:
        if self._fixed is None:
            raise AssertionError("a login answers before it was asked anything")
        return self._fixed

    def __repr__(self) -> str:
        state = "over" if self.over else "done" if self.session else self._stage.name.lower()
        return f"<Login {state}, {self._requests} requests>"
