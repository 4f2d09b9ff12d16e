"""Findings and the report they make: filled in, heard at once, and summed up in an exit code."""

from __future__ import annotations

import json

import pytest

from isblk.doctor.findings import Finding, Report
from isblk.doctor.sentences import Severity
from isblk.errors import ExitCode


def test_a_finding_is_a_sentence_filled_in_and_heard_at_once() -> None:
    told: list[Finding] = []
    report = Report(told.append)
    report.say("port-unreachable", portal="10.0.0.5:3260", reason="No route to host", host="10.0.0.5")
    (finding,) = told
    assert finding.text == "10.0.0.5:3260 cannot be reached: No route to host"
    assert finding.remedy == "check the address, the link and the route (ip route get 10.0.0.5)"
    assert (finding.severity, finding.section, finding.exit_code) == (Severity.FAULT, "network", ExitCode.UNREACHABLE)
    assert report.said("port-unreachable") and not report.said("port-refuses")


def test_braces_in_a_value_are_only_braces() -> None:
    report = Report()
    report.say("disk-sick", reason="LUN 0 {failed} {}")
    assert report.findings[0].text == "LUN 0 {failed} {}"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([], 0),
        (["loop-ready"], 0),
        (["loop-ready", "clock-free", "files-few", "disks-skipped"], 0),
        (["disk-sick"], 6),
        (["disk-sick", "secrets-wrong"], 6),
        (["disk-sick", "disks-none"], 3),
        (["disks-none", "login-refused"], 4),
        (["login-refused", "port-refuses", "secrets-wrong"], 5),
        (["secrets-wrong"], 2),
    ],
)
def test_the_worst_fault_decides_the_exit_code_and_a_warning_is_none(said: list[str], code: int) -> None:
    report = Report()
    values = dict.fromkeys(("reason", "portal", "advice", "initiator", "limit"), "x")
    for name in said:
        report.say(name, **values)
    assert report.exit_code == code


def test_json_has_every_finding_and_what_they_come_to() -> None:
    report = Report()
    report.say("ping", {"median_ms": 0.2}, portal="p", median="0.20", p99="1.00")
    report.say("port-refuses", portal="p")
    told = json.loads(json.dumps(report.as_dict()))
    assert told["version"] == 1 and told["exit_code"] == 5
    assert told["counts"] == {"not made": 0, "ok": 1, "hint": 0, "warning": 0, "fault": 1}
    assert told["findings"][0] == {
        "check": "speed",
        "finding": "ping",
        "severity": "ok",
        "text": "p: a ping takes 0.20 ms, 1 of 100 more than 1.00 ms",
        "remedy": None,
        "data": {"median_ms": 0.2},
    }
    assert "data" not in told["findings"][1] and told["findings"][1]["remedy"]
