"""`isblk doctor` as a user sees it: text, colours, JSON, exit codes, and the bundle that holds no secret."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from isblk import control
from isblk.cli import main
from isblk.doctor.sentences import SECTIONS
from isblk.iscsi.chap import Credentials
from support.logs import restored_logging
from support.targets import TargetProcess, disk, target_process
from support.waiting import free_port

Run = Callable[..., Result]
BRIEF = ("--probe", "0.2", "--probe-size", "1M")


@pytest.fixture
def doctor(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`doctor(..., code=5)`: what it says, whatever its exit code; standard output and error apart."""
    monkeypatch.setattr("isblk.doctor.bundle.JOURNAL_COMMAND", ("false",))

    def doctor(*arguments: object, code: int = 0, color: bool = False) -> Result:
        result = CliRunner().invoke(main, ["doctor", *map(str, arguments)], prog_name="isblk", color=color)
        assert result.exit_code == code, f"{arguments} exited {result.exit_code}, not {code}: {result.output}"
        assert "Traceback" not in result.output
        return result

    return doctor


def test_text_for_people_in_the_order_of_the_examination(doctor: Run, target: TargetProcess) -> None:
    lines = doctor(target.url(1), *BRIEF).stdout.splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings[:-1] == [heading for name, heading in SECTIONS.items() if name != "end"]
    assert headings[-1].endswith("exit code 0") and "hint" in headings[-1]
    assert any(line.startswith("  ok        LUN 1: 16.0 MiB") for line in lines)
    assert any("MaxOutstandingR2T" in line and "the target lowered it" in line for line in lines)
    assert any(line.startswith("            -> ") for line in lines)


def test_json_and_the_exit_code_of_the_worst(doctor: Run, target: TargetProcess) -> None:
    dead = f"127.0.0.1:{free_port()}"
    result = doctor("-p", target.portal, "-p", dead, target.name, "--lun", 1, *BRIEF, "--json", code=5)
    told = json.loads(result.stdout)
    assert told["version"] == 1 and told["target"] == target.name and told["exit_code"] == 5
    assert told["counts"]["fault"] == 1 == sum(finding["severity"] == "fault" for finding in told["findings"])
    (keys,) = [finding["data"]["negotiated"] for finding in told["findings"] if finding["finding"] == "keys"]
    assert {"key": "ImmediateData", "asked": "Yes", "agreed": "Yes", "decided": "both", "why": "both said the same"} in keys
    assert {finding["check"] for finding in told["findings"]} <= set(SECTIONS)


def test_a_name_that_cannot_be_ends_it_early(doctor: Run, target: TargetProcess) -> None:
    result = doctor(target.url(1), "--initiator-name", "me", code=2)
    assert "our name cannot be used" in result.stdout and "network" not in result.stdout


def test_colours_are_for_terminals_that_want_them(doctor: Run, target: TargetProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in doctor(target.url(1), "--probe", 0).stdout
    monkeypatch.setattr("isblk.cli.doctor.is_terminal", lambda: True)
    assert "\x1b[32m" in doctor(target.url(1), "--probe", 0, color=True).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in doctor(target.url(1), "--probe", 0, color=True).stdout


def test_usage(run: Run, target: TargetProcess, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    assert "is there already" in run("doctor", target.url(1), "--bundle", tmp_path / "there", code=2).stderr
    assert "name it with --bundle" in run("doctor", target.url(1), "--with-capture", code=2).stderr
    assert "no portal for" in run("doctor", target.name, code=2).stderr


OURS, THEIRS, OTHER = "planted-secret-of-ours", "planted-secret-of-theirs", "planted-secret-of-the-environment"


@contextmanager
def guarded() -> Iterator[TargetProcess]:
    settings: dict[str, Any] = {"credentials": Credentials("me", OURS.encode()), "mutual": Credentials("it", THEIRS.encode())}
    with target_process([disk()], **settings) as served:
        yield served


def test_a_bundle_holds_no_secret_wherever_one_was_planted(
    doctor: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, secret in (("ours", OURS), ("theirs", THEIRS)):
        (tmp_path / name).write_text(secret + "\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "isblk.conf").write_text('user = "me"\nsecret-file = "ours"\ntarget-user = "it"\ntarget-secret-file = "theirs"\n')
    monkeypatch.setenv("ISBLK_CONFIG", str(tmp_path / "isblk.conf"))
    monkeypatch.setenv("ISBLK_SECRET", OTHER)
    logged = [f"a log of {OURS}", f"in hex 0x{THEIRS.encode().hex()}", "iscsi://me%planted-in-url@10.0.0.5/iqn.x:y", "CHAP_R=0xplanted"]
    answers = {"log": {"lines": logged}, "status": {"pid": 1, "where": "/x", "target": "iqn.x:y", "note": OTHER, "sessions": []}}
    monkeypatch.setattr(control, "daemons", lambda _run: [control.Daemon(Path("/1.sock"), 1)])
    monkeypatch.setattr(control, "ask", lambda _path, request, _deadline: answers[request])
    path = tmp_path / "report.tar.gz"
    with guarded() as served:
        result = doctor("-p", served.portal, served.name, *BRIEF, "--bundle", path, "--with-capture")
    assert "look through it before you send it" in result.stderr and "logins.pcapng" in result.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        found = {one.name.rpartition("/")[2]: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert next(iter(found)) == "README.txt" and {"findings.json", "log-1.txt", "status.json", "logins.pcapng"} <= set(found)
    everything = b"\0".join(found.values()) + result.output.encode()
    for secret in (OURS, THEIRS, OTHER, "planted-in-url", "0xplanted"):
        for spelling in (secret.encode(), secret.encode().hex().encode()):
            assert spelling not in everything, spelling
    assert b"a log of (removed)" in found["log-1.txt"] and b"secret-file          ours " in found["configuration.txt"]
    assert b"CHAP_N=me" in found["logins.pcapng"] and b"CHAP_R=0x0000" in found["logins.pcapng"]


def test_a_bundle_is_made_of_what_failed_too(doctor: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    doctor("-p", f"127.0.0.1:{free_port()}", "iqn.2001-05.com.example:disks", "--bundle", path, code=5)
    with tarfile.open(path) as archive, restored_logging():
        names = [one.name.rpartition("/")[2] for one in archive]
    assert "findings.txt" in names and "logins.pcapng" not in names
