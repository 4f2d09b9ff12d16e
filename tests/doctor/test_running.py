"""Our name, the settings, and the daemons of the target."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from isblk import control, state
from isblk.doctor import running
from isblk.doctor.findings import Report
from isblk.errors import Unreachable
from support.doctor import names, text

TARGET = "iqn.2001-05.com.example:disks"


@pytest.mark.provokes("settings-read")
def test_files_that_were_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "isblk.conf").write_text('policy = "failover"\n')
    monkeypatch.setenv("ISBLK_CONFIG", str(tmp_path / "isblk.conf"))
    report = Report()
    running.settings(report)
    assert str(tmp_path / "isblk.conf") in report.findings[0].text


@pytest.mark.provokes("settings-none")
def test_without_files_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISBLK_CONFIG", "")
    running.settings(Report())


@pytest.fixture
def host_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for function in (state.initiator_name, state.known_name):
        defaults = [tmp_path / "none" if value == state.SYSTEM_NAME_FILE else value for value in function.__defaults__ or ()]
        monkeypatch.setattr(function, "__defaults__", tuple(defaults))
    return tmp_path / "state"


@pytest.mark.provokes("name-known")
def test_a_name_that_is_given(host_without_a_name: Path) -> None:
    report = Report()
    assert running.our_name(report, host_without_a_name, "iqn.2026-11.Test:me", {}) == "iqn.2026-11.test:me"
    assert running.our_name(report, host_without_a_name, None, {"ISBLK_INITIATOR_NAME": "iqn.2026-11.test:you"}) == "iqn.2026-11.test:you"
    assert [finding.text for finding in report.findings] == [
        "our name is iqn.2026-11.test:me (as asked for)",
        "our name is iqn.2026-11.test:you ($ISBLK_INITIATOR_NAME)",
    ]


@pytest.mark.provokes("name-new", "name-known")
def test_a_name_that_has_to_be_made_is_kept(host_without_a_name: Path) -> None:
    report = Report()
    made = running.our_name(report, host_without_a_name, None, {})
    assert running.our_name(report, host_without_a_name, None, {}) == made
    assert names(report) == ["name-new", "name-known"]


@pytest.mark.provokes("name-wrong")
def test_a_name_that_cannot_be(host_without_a_name: Path) -> None:
    report = Report()
    assert running.our_name(report, host_without_a_name, "me", {}) is None
    host_without_a_name.mkdir()
    (host_without_a_name / "initiatorname.iscsi").write_text("InitiatorName=rubbish\n")
    assert running.our_name(report, host_without_a_name, None, {}) is None
    assert names(report) == ["name-wrong"] * 2


@pytest.mark.provokes("name-copied")
def test_a_name_older_than_the_machine_came_with_an_image(host_without_a_name: Path, tmp_path: Path) -> None:
    report = Report()
    (tmp_path / "machine-id").write_text("0" * 32)
    running.our_name(report, host_without_a_name, None, {}, tmp_path / "machine-id")
    running.our_name(report, host_without_a_name, None, {}, tmp_path / "machine-id")
    assert not report.said("name-copied")
    os.utime(host_without_a_name / "initiatorname.iscsi", (1.0, 1.0))
    running.our_name(report, host_without_a_name, None, {}, tmp_path / "machine-id")


def answering(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any] | Exception) -> None:
    """Daemons that answer so."""
    monkeypatch.setattr(
        control, "daemons", lambda _run: [control.Daemon(Path(f"/{number}.sock"), number) for number in range(len(answers))]
    )

    def ask(path: Path, _request: str, _deadline: float) -> dict[str, Any]:
        answer = answers[int(path.stem)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(control, "ask", ask)


def session(state: str = "up", logins: int = 1, error: str | None = None) -> dict[str, Any]:
    return {"portal": "10.0.0.5:3260", "state": state, "logins": logins, "error": error}


def daemon(*sessions: dict[str, Any], target: str = TARGET) -> dict[str, Any]:
    return {"pid": 77, "where": "/mnt/disk", "target": target, "sessions": list(sessions)}


@pytest.mark.provokes("running-nothing")
def test_nothing_runs_on_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, daemon(session(), target="iqn.2001-05.com.example:other"))
    report = Report()
    assert len(running.daemons(report, Path("/run"), TARGET)) == 1
    assert names(report) == ["running-nothing"]


@pytest.mark.provokes("running-well")
def test_what_runs_well(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, daemon(session(), session()))
    report = Report()
    running.daemons(report, Path("/run"), TARGET)
    assert [finding.text for finding in report.findings] == ["process 77 serves /mnt/disk: 2 of 2 paths are up"]


@pytest.mark.provokes("running-ill")
def test_what_runs_ill_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, daemon(session(), session("down", error="10.0.0.5:3260 closed the connection"), session("connecting")))
    report = Report()
    running.daemons(report, Path("/run"), TARGET)
    assert text(report, "running-ill").endswith("1 of 3 paths up: 10.0.0.5:3260 closed the connection; 10.0.0.5:3260 is connecting")


@pytest.mark.provokes("running-restless")
def test_a_session_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, daemon(session(logins=running.RESTLESS + 1)))
    running.daemons(Report(), Path("/run"), TARGET)


@pytest.mark.provokes("running-silent", "running-nothing")
def test_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Unreachable("it may be stopped"))
    assert running.daemons(Report(), Path("/run"), TARGET) == []
