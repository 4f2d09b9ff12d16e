"""What is configured and what runs: our name, where settings come from, and the daemons that use the same target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isblk import control
from isblk.doctor.findings import Report
from isblk.errors import IsblkError
from isblk.settings import load
from isblk.state import NAME_VARIABLE, initiator_name, known_name

MACHINE_ID = Path("/etc/machine-id")
RESTLESS = 5
"""Logins of one session beyond its first that make one ask why."""
SECONDS = 2.0
"""For a daemon to answer."""


def settings(report: Report) -> None:
    """Where settings come from. (A file with an error in it ends every command before it begins.)"""
    files = [str(file.path) for file in load().files]
    if files:
        report.say("settings-read", files=", ".join(files))
    else:
        report.say("settings-none")


def our_name(report: Report, state: Path, option: str | None, environment: Mapping[str, str], machine_id: Path = MACHINE_ID) -> str | None:
    """Our iSCSI name and its origin; None when there is none to use."""
    try:
        known = ("-", "") if option is not None or environment.get(NAME_VARIABLE) else known_name(state)
        name = initiator_name(state, option, environment)
    except IsblkError as error:
        report.say("name-wrong", reason=error)
        return None
    if option is not None or environment.get(NAME_VARIABLE):
        report.say("name-known", name=name, origin="as asked for" if option is not None else f"${NAME_VARIABLE}")
    elif known[0] == "-":
        report.say("name-new", name=name, state=state)
    else:
        report.say("name-known", name=name, origin=known[1])
        if _is_older(Path(known[1]), machine_id):
            report.say("name-copied", file=known[1])
    return name


def _is_older(file: Path, machine_id: Path) -> bool:
    """Whether a file was there before this machine had an identity of its own (machine-id(5)): it came with an image."""
    try:
        return file.stat().st_mtime < machine_id.stat().st_mtime - 86400
    except OSError:
        return False


def daemons(report: Report, run: Path, target: str) -> list[dict[str, Any]]:
    """What runs on the target, asked over the control sockets; the answers of all daemons, for the bundle."""
    answers = []
    found = False
    for daemon in control.daemons(run):
        try:
            answer = control.ask(daemon.path, "status", SECONDS)
        except IsblkError as error:
            report.say("running-silent", pid=daemon.pid, reason=error)
            continue
        answers.append(answer)
        if answer.get("target") == target:
            found = True
            _one(report, answer)
    if not found:
        report.say("running-nothing")
    return answers


def _one(report: Report, answer: Mapping[str, Any]) -> None:
    sessions: list[dict[str, Any]] = answer.get("sessions", [])
    up = [one for one in sessions if one.get("state") == "up"]
    values = {"pid": answer["pid"], "where": answer.get("where"), "up": len(up), "all": len(sessions)}
    if len(up) == len(sessions):
        report.say("running-well", **values)
    else:
        reasons = [str(one.get("error") or f"{one.get('portal')} is {one.get('state')}") for one in sessions if one not in up]
        report.say("running-ill", reason="; ".join(reasons), **values)
    for one in sessions:
        if one.get("logins", 0) > RESTLESS:
            report.say("running-restless", pid=answer["pid"], portal=one["portal"], logins=one["logins"])
