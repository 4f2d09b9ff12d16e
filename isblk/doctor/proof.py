"""A login judged: who had to prove what by CHAP and how that went, or why the target says no. Shows no secret, and none is kept here."""

from __future__ import annotations

from isblk.doctor.findings import Report
from isblk.doctor.listening import Conversation, Listener
from isblk.errors import ExitCode, IsblkError, LoginRefused, NotFound, Unreachable
from isblk.iscsi.chap import Algorithm
from isblk.iscsi.login import AuthenticationFailed, Doubt
from isblk.iscsi.names import Portal
from isblk.link.opening import Access

NAMES = {Algorithm.MD5: "MD5", Algorithm.SHA1: "SHA-1", Algorithm.SHA256: "SHA-256", Algorithm.SHA3_256: "SHA3-256"}
WEAK = (Algorithm.MD5, Algorithm.SHA1)

_DOUBTS = {
    Doubt.REFUSED: "chap-refused",
    Doubt.WANTED: "chap-wanted",
    Doubt.UNWANTED: "chap-unwanted",
    Doubt.NO_ALGORITHM: "chap-no-algorithm",
    Doubt.BROKEN_OFF: "chap-broken-off",
    Doubt.REFLECTED: "chap-reflected",
    Doubt.UNPROVED: "chap-unproved",
    Doubt.MIRRORED: "chap-mirrored",
    Doubt.WRONG_PROOF: "chap-wrong-proof",
    Doubt.OTHER_NAME: "chap-other-name",
}


def explain(report: Report, access: Access, listener: Listener) -> None:
    """How a login that succeeded was proved."""
    last = listener.last
    credentials, mutual = access.credentials, access.target_credentials
    if credentials is None or last is None:
        report.say("chap-none")
        return
    algorithm = algorithm_text(last.algorithm)
    if mutual is None:
        report.say("chap-one-way", algorithm=algorithm, user=credentials.name)
    else:
        report.say("chap-mutual", algorithm=algorithm, user=credentials.name, target_user=mutual.name)
    first = listener.conversations[0]
    if first is not last and len(first.offered) > 1 and last.offered == [Algorithm.MD5]:
        report.say("chap-twice", algorithm=algorithm_text(first.algorithm))
    elif last.algorithm in WEAK and len(last.offered) > 1:
        report.say("chap-weak", offered=offered_text(last), algorithm=algorithm)


def refusal(report: Report, portal: Portal, access: Access, listener: Listener, error: IsblkError) -> None:
    """Why a login failed."""
    if isinstance(error, AuthenticationFailed):
        _doubt(report, portal, access, listener, error)
        return
    reason, advice = _parts(error, portal)
    last = listener.last
    if isinstance(error, NotFound) or error.exit_code is ExitCode.NOT_FOUND:
        report.say("target-unknown", portal=portal, reason=reason, advice=advice or "see `isblk discover` for the names there are")
    elif isinstance(error, LoginRefused) and last is not None and last.status in (None, (0, 0)):
        report.say("login-closed", portal=portal, initiator=access.initiator_name)
    elif isinstance(error, LoginRefused):
        report.say("login-refused", portal=portal, reason=reason, advice=advice or "see the target's log")
    elif isinstance(error, Unreachable):
        _unreachable(report, portal, access, error, reason)
    else:
        report.say("login-nonsense", portal=portal, reason=reason)


def _unreachable(report: Report, portal: Portal, access: Access, error: Unreachable, reason: str) -> None:
    if isinstance(error.__cause__, OSError):
        report.say("login-broken-off", portal=portal, reason=error.__cause__.strerror or error.__cause__)
    elif "did not finish" in str(error):
        report.say("login-late", portal=portal, seconds=f"{access.timing.login_timeout:g}")
    else:
        report.say("login-broken-off", portal=portal, reason=reason)


def _doubt(report: Report, portal: Portal, access: Access, listener: Listener, error: AuthenticationFailed) -> None:
    last = listener.last
    tried = [algorithm_text(one.algorithm) for one in listener.conversations if one.algorithm is not None]
    report.say(
        _DOUBTS[_precisely(error.doubt, last)],
        portal=portal,
        reason=_parts(error, portal)[0],
        user=access.credentials.name if access.credentials is not None else "nobody",
        algorithm=f", with {' and then with '.join(dict.fromkeys(tried))}" if tried else "",
        offered=offered_text(last) if last is not None else "-",
    )


def _precisely(doubt: Doubt, last: Conversation | None) -> Doubt:
    """A target that says no before anything was proved: it is to our methods, or to our algorithms, that it does."""
    if doubt is not Doubt.REFUSED or last is None or last.algorithm is not None:
        return doubt
    return Doubt.NO_ALGORITHM if last.offered else Doubt.UNWANTED


def _parts(error: IsblkError, portal: Portal) -> tuple[str, str]:
    """What failed, and what to do, of a sentence that says both; without the portal, which is said anyhow."""
    reason, _, advice = str(error).removeprefix(f"{portal}: ").partition("; ")
    return reason, advice


def algorithm_text(number: int | None) -> str:
    """An algorithm as people know it."""
    known = next((name for algorithm, name in NAMES.items() if algorithm == number), None)
    return known or f"algorithm {number}"


def offered_text(conversation: Conversation) -> str:
    """The algorithms that we offered."""
    return ", ".join(map(algorithm_text, conversation.offered)) or "none"
