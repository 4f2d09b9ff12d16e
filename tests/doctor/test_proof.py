"""A login judged: what CHAP proved, and why a target says no, with real conversations and with ones that no target holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from isblk.config import LoginOptions
from isblk.doctor import proof
from isblk.doctor.findings import Report
from isblk.doctor.listening import Listener
from isblk.errors import IsblkError, LoginRefused, NotFound, ProtocolError, Unreachable
from isblk.iscsi.chap import Credentials
from isblk.iscsi.login import AuthenticationFailed, Doubt
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from support.doctor import NAME, PORTAL, examined, names, text
from support.targets import running_target

SECRET, OTHER = "a secret of ours 1", "a secret of the target 2"


class Heard:
    """What a conversation was, as far as proof.py looks."""

    def __init__(self, algorithm: int | None = 7, offered: tuple[int, ...] = (8, 7, 6, 5), status: tuple[int, int] | None = None) -> None:
        self.algorithm = algorithm
        self.offered = list(offered)
        self.status = status


def listener(*conversations: Heard) -> Listener:
    found = Listener()
    found.conversations.extend(conversations)  # type: ignore[arg-type]
    return found


def access(ours: bool = True, theirs: bool = False) -> Access:
    return Access(
        NAME,
        Isid.from_random(1),
        Credentials("me", SECRET.encode()) if ours else None,
        Credentials("it", OTHER.encode()) if theirs else None,
    )


DOUBTS = [
    pytest.param(Doubt.REFUSED, "refused our proof as me, with SHA-256", marks=pytest.mark.provokes("chap-refused")),
    pytest.param(Doubt.WANTED, "wants CHAP, and no credentials", marks=pytest.mark.provokes("chap-wanted")),
    pytest.param(Doubt.UNWANTED, "does not do CHAP", marks=pytest.mark.provokes("chap-unwanted")),
    pytest.param(Doubt.NO_ALGORITHM, "(SHA3-256, SHA-256, SHA-1, MD5)", marks=pytest.mark.provokes("chap-no-algorithm")),
    pytest.param(Doubt.BROKEN_OFF, "middle of CHAP, with SHA-256", marks=pytest.mark.provokes("chap-broken-off")),
    pytest.param(Doubt.REFLECTED, "challenge of ours back", marks=pytest.mark.provokes("chap-reflected")),
    pytest.param(Doubt.UNPROVED, "did not prove who it is", marks=pytest.mark.provokes("chap-unproved")),
    pytest.param(Doubt.MIRRORED, "with our own secret", marks=pytest.mark.provokes("chap-mirrored")),
    pytest.param(Doubt.WRONG_PROOF, "is wrong", marks=pytest.mark.provokes("chap-wrong-proof")),
    pytest.param(Doubt.OTHER_NAME, "somebody else: it calls itself x", marks=pytest.mark.provokes("chap-other-name")),
]


@pytest.mark.parametrize(("doubt", "words"), DOUBTS)
def test_every_doubt_has_its_sentence(doubt: Doubt, words: str) -> None:
    report, error = Report(), AuthenticationFailed(f"{PORTAL}: it calls itself x; check it", doubt=doubt)
    proof.refusal(report, PORTAL, access(), listener(Heard()), error)
    assert words in report.findings[0].text and report.exit_code == 4
    assert len(report.findings) == 1 and set(proof._DOUBTS) == set(Doubt)


def test_both_attempts_of_a_refused_login_are_told() -> None:
    report = Report()
    proof.refusal(report, PORTAL, access(), listener(Heard(7), Heard(5, (5,))), AuthenticationFailed("no"))
    assert text(report, "chap-refused") == f"{PORTAL} refused our proof as me, with SHA-256 and then with MD5"


FAILURES = [
    pytest.param(LoginRefused("x: not allowed; add it"), (2, 2), "login-refused", 4, marks=pytest.mark.provokes("login-refused")),
    pytest.param(LoginRefused("closed"), None, "login-closed", 4, marks=pytest.mark.provokes("login-closed")),
    pytest.param(NotFound("no such target"), (2, 3), "target-unknown", 3, marks=pytest.mark.provokes("target-unknown")),
    pytest.param(Unreachable("it did not finish the login"), None, "login-late", 5, marks=pytest.mark.provokes("login-late")),
    pytest.param(Unreachable("gone"), None, "login-broken-off", 5, marks=pytest.mark.provokes("login-broken-off")),
    pytest.param(ProtocolError("rubbish"), None, "login-nonsense", 6, marks=pytest.mark.provokes("login-nonsense")),
]


@pytest.mark.parametrize(("error", "status", "name", "code"), FAILURES)
def test_every_refusal_has_its_sentence(error: IsblkError, status: tuple[int, int] | None, name: str, code: int) -> None:
    report = Report()
    proof.refusal(report, PORTAL, access(), listener(Heard(status=status)), error)
    assert names(report) == [name] and report.exit_code == code


def test_the_advice_of_an_error_is_the_remedy() -> None:
    report = Report()
    proof.refusal(
        report, PORTAL, access(), listener(Heard(status=(2, 2))), LoginRefused(f"{PORTAL}: not allowed; add the name; and log in")
    )
    (finding,) = report.findings
    assert (finding.text, finding.remedy) == (f"{PORTAL}: not allowed", "add the name; and log in")


@pytest.mark.provokes("chap-twice", "chap-one-way")
def test_a_target_that_took_the_second_login() -> None:
    report = Report()
    proof.explain(report, access(), listener(Heard(7), Heard(5, (5,))))
    assert names(report) == ["chap-one-way", "chap-twice"]
    assert text(report, "chap-twice").startswith("the target refused the first login, with SHA-256")


@pytest.mark.provokes("chap-weak", "chap-mutual")
def test_a_target_that_chose_the_weakest() -> None:
    report = Report()
    proof.explain(report, access(theirs=True), listener(Heard(5)))
    assert names(report) == ["chap-mutual", "chap-weak"]
    assert report.findings[0].text == "CHAP with MD5: we proved to be me, and the target to be it"


def test_an_algorithm_that_nobody_knows_has_its_number() -> None:
    assert proof.algorithm_text(99) == "algorithm 99" and proof.algorithm_text(8) == "SHA3-256"


def options(tmp_path: Path, ours: str = SECRET, theirs: str | None = None) -> LoginOptions:
    for name, secret in (("ours", ours), ("theirs", theirs or "")):
        (tmp_path / name).write_text(secret + "\n")
        (tmp_path / name).chmod(0o600)
    mutual = {"target_user": "it", "target_secret_file": str(tmp_path / "theirs")} if theirs is not None else {}
    return LoginOptions(user="me", secret_file=str(tmp_path / "ours"), login_timeout=5, **mutual)


CREDENTIALS = {"credentials": Credentials("me", SECRET.encode())}
MUTUAL = {**CREDENTIALS, "mutual": Credentials("it", OTHER.encode())}


@pytest.mark.provokes("chap-none")
async def test_nobody_had_to_prove_anything(tmp_path: Path) -> None:
    async with running_target() as target:
        report = await examined(tmp_path, target)
    assert report.exit_code == 0


@pytest.mark.provokes("chap-one-way", "secrets-ready")
async def test_we_proved_who_we_are(tmp_path: Path) -> None:
    async with running_target(**CREDENTIALS) as target:
        report = await examined(tmp_path, target, options=options(tmp_path))
    assert "CHAP with SHA3-256: we proved to be me" in text(report, "chap-one-way")


@pytest.mark.provokes("chap-mutual")
async def test_both_proved_who_they_are(tmp_path: Path) -> None:
    async with running_target(**MUTUAL) as target:
        report = await examined(tmp_path, target, options=options(tmp_path, theirs=OTHER))
    assert "with SHA3-256" in text(report, "chap-mutual") and report.exit_code == 0


async def test_no_secret_and_no_proof_is_in_a_report(tmp_path: Path, heard: list[object]) -> None:
    async with running_target(**MUTUAL) as target:
        report = await examined(tmp_path, target, options=options(tmp_path, theirs=OTHER))
        wrong = await examined(tmp_path, target, options=options(tmp_path, "wrong secret of ours", OTHER))
    assert wrong.exit_code == 4
    for secret in (SECRET, OTHER, "wrong secret", SECRET.encode().hex(), "CHAP_R", "CHAP_C"):
        assert secret not in repr(report.as_dict()) + repr(wrong.as_dict()) + repr(heard)


REAL = [
    ({}, SECRET, None, "chap-unwanted"),
    (CREDENTIALS, "not the secret at all", None, "chap-refused"),
    (CREDENTIALS, SECRET, OTHER, "chap-refused"),
    (MUTUAL, SECRET, "not the target's secret", "chap-wrong-proof"),
    ({**CREDENTIALS, "chap_algorithms": ()}, SECRET, None, "chap-no-algorithm"),
]


@pytest.mark.parametrize(("settings", "ours", "theirs", "name"), REAL)
async def test_real_targets_are_told_apart(tmp_path: Path, settings: dict[str, object], ours: str, theirs: str | None, name: str) -> None:
    async with running_target(**settings) as target:
        report = await examined(tmp_path, target, options=options(tmp_path, ours, theirs))
        assert target.sessions == 0
    assert report.said(name) and report.exit_code == 4, names(report)


async def test_a_target_that_wants_credentials_is_told_so(tmp_path: Path) -> None:
    async with running_target(**CREDENTIALS) as target:
        report = await examined(tmp_path, target)
    assert report.said("chap-wanted") and report.said("disks-skipped")


async def test_what_is_no_iscsi_portal(tmp_path: Path) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(10)
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n" + bytes(100))

    async with running_target() as target, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        portal = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        report = await examined(tmp_path, target, [portal])
        nursery.cancel_scope.cancel()
    assert report.said("login-nonsense") and report.exit_code == 6
