"""A finding: a sentence of the table, filled in, with its severity and remedy; and the report that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from isblk.doctor.sentences import SENTENCES, Sentence, Severity
from isblk.errors import ExitCode

__all__ = ["Finding", "Report", "Severity"]

WORST_FIRST = (ExitCode.UNREACHABLE, ExitCode.REFUSED, ExitCode.NOT_FOUND, ExitCode.IO_ERROR, ExitCode.USAGE)
"""Which fault decides the exit code: what comes first on the way to the disk hides what comes behind it."""


@dataclass(frozen=True)
class Finding:
    """`name` is the sentence's in the table and stays the same for ever; `data` is for JSON alone."""

    name: str
    section: str
    severity: Severity
    text: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.DONE
    data: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        told = {"check": self.section, "finding": self.name, "severity": self.severity.value, "text": self.text}
        return {**told, "remedy": self.remedy or None, **({"data": self.data} if self.data else {})}


class Report:
    """The findings in the order they were made; `heard` is told each at once."""

    def __init__(self, heard: Callable[[Finding], None] | None = None) -> None:
        self.findings: list[Finding] = []
        self._heard = heard

    def say(self, name: str, data: dict[str, Any] | None = None, /, **values: object) -> None:
        """Add the sentence `name` of the table with its values."""
        sentence = SENTENCES[name]
        text, remedy = sentence.text.format(**values), sentence.remedy.format(**values)
        self.add(Finding(name, sentence.section, sentence.severity, text, remedy, _code(sentence), data or {}))

    def add(self, finding: Finding) -> None:
        """Add a finding that is made already."""
        self.findings.append(finding)
        if self._heard is not None:
            self._heard(finding)

    def said(self, name: str) -> bool:
        """Whether a sentence was said."""
        return any(finding.name == name for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Findings of this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def exit_code(self) -> ExitCode:
        """That of the worst fault (WORST_FIRST); 0 when there is none: a warning is no failure."""
        codes = {finding.exit_code for finding in self.findings}
        return next((code for code in WORST_FIRST if code in codes), ExitCode.DONE)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; version 1, to which keys are only added."""
        counts = {severity.value: self.count(severity) for severity in Severity}
        return {"version": 1, "findings": [one.as_dict() for one in self.findings], "counts": counts, "exit_code": int(self.exit_code)}


def _code(sentence: Sentence) -> ExitCode:
    return sentence.code if sentence.severity is Severity.FAULT else ExitCode.DONE
