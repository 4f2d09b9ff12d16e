"""A doctor for tests: its report, and an examination of a target in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from isblk.config import LoginOptions, parse_target
from isblk.doctor.examination import Examination
from isblk.doctor.findings import Report
from isblk.doctor.sessions import Who
from isblk.doctor.speed import Bounds
from isblk.iscsi.names import Portal
from support.targets import RunningTarget

NAME = "iqn.2026-11.test.isblk:doctor"
PORTAL = Portal("192.0.2.1", 3260)
BRIEF = Bounds(seconds=0.2, bytes=1 << 20)


def names(report: Report) -> list[str]:
    """What was said, in its order."""
    return [finding.name for finding in report.findings]


def text(report: Report, name: str) -> str:
    """The text of the one finding of that name."""
    (found,) = [finding.text for finding in report.findings if finding.name == name]
    return found


def who(directory: Path, target_name: str, portals: list[str], options: LoginOptions | None = None, **settings: Any) -> Who:
    """Who logs in, with state in a directory of the test."""
    options = options or LoginOptions(login_timeout=5)
    return Who(NAME, directory / "state", options, parse_target(target_name, portals), **settings)


async def examined(
    directory: Path,
    target: RunningTarget,
    portals: list[str] | None = None,
    *,
    name: str | None = None,
    options: LoginOptions | None = None,
    heard: Callable[[object], None] | None = None,
    **settings: Any,
) -> Report:
    """The whole examination of a target, at all its portals unless told otherwise; `settings` are Examination's fields."""
    report = Report(heard)
    (directory / "run").mkdir(exist_ok=True)
    subject = who(directory, name or target.name, portals or target.portals, options)
    await Examination(report, subject, directory / "run", **{"bounds": BRIEF, **settings}).run_all()
    return report
