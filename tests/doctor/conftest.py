"""Every test here that says it provokes a sentence does: what was said is listened to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from isblk.doctor.findings import Finding, Report


@pytest.fixture(autouse=True)
def heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Finding]]:
    """All findings of the test, in whichever report."""
    said: list[Finding] = []
    add = Report.add

    def listen(report: Report, finding: Finding) -> None:
        said.append(finding)
        add(report, finding)

    monkeypatch.setattr(Report, "add", listen)
    yield said
    promised = {name for marker in request.node.iter_markers("provokes") for name in marker.args}
    missed = promised - {finding.name for finding in said}
    assert not missed, f"never said: {sorted(missed)}"
