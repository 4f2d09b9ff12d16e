"""`isblk doctor` on targets that are not ours: what it says of tgtd, whose CHAP has a fault of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk.config import LoginOptions
from isblk.doctor.examination import Examination
from isblk.doctor.findings import Report
from support.doctor import BRIEF, names, who
from support.lio import Lio
from support.processes import Processes, isblk
from support.tgt import Tgtd

NAME = "iqn.2026-11.test.isblk:doctor"
OURS, THEIRS = "secret of ours 12", "secret of tgtd 123"
Findings = dict[str, dict[str, Any]]


@pytest.fixture
def doctor(processes: Processes, tgt: Tgtd, tmp_path: Path) -> Callable[..., Findings]:
    """`doctor(secret, ..., code=4)`: its findings by name."""

    def doctor(secret: str = "", *options: str, code: int = 0) -> Findings:
        if secret:
            (tmp_path / "secret").write_text(secret)
            (tmp_path / "secret").chmod(0o600)
            options = ("--user", "me", "--secret-file", str(tmp_path / "secret"), *options)
        brief = ("--probe", "0.2", "--probe-size", "1M", "--json")
        done = processes.run(isblk("doctor", "-p", tgt.portal, NAME, *brief, *options), code=code)
        return {finding["finding"]: finding for finding in json.loads(done.stdout)["findings"]}

    return doctor


def test_a_target_that_is_well(doctor: Callable[..., Findings], tgt: Tgtd) -> None:
    target = tgt.target(NAME, MaxBurstLength=65536, InitialR2T="Yes", ImmediateData="No")
    tgt.disk(target, 1, 16 << 20)
    found = doctor()
    assert {"logged-in", "reported", "disk", "no-disk", "ping", "read", "throughput", "chap-none"} <= set(found)
    assert found["bursts-small"]["text"] == "a burst is 65536 bytes, so that large transfers are many" and "writes-wait" in found
    rows = {row["key"]: row["why"] for row in found["keys"]["data"]["negotiated"]}
    assert rows["MaxBurstLength"] == "the target lowered it: the smaller value counts"
    assert rows["ImmediateData"] == "the target said No: it takes two to say Yes"
    assert tgt.sessions(target) == 0


def test_chap_is_explained(doctor: Callable[..., Findings], tgt: Tgtd) -> None:
    target = tgt.target(NAME)
    tgt.disk(target, 1, 16 << 20)
    tgt.account(target, "me", OURS)
    found = doctor(OURS)
    assert found["chap-one-way"]["text"].startswith("CHAP with MD5: we proved to be me")
    assert "chap-twice" in found or "chap-weak" in found
    assert "chap-refused" in doctor("another secret", code=4)
    assert "chap-wanted" in doctor(code=4)


def test_mutual_chap_is_explained(doctor: Callable[..., Findings], tgt: Tgtd, tmp_path: Path) -> None:
    target = tgt.target(NAME)
    tgt.disk(target, 1, 16 << 20)
    tgt.account(target, "me", OURS)
    (tmp_path / "theirs").write_text(THEIRS)
    (tmp_path / "theirs").chmod(0o600)
    mutual = ("--target-user", "it", "--target-secret-file", str(tmp_path / "theirs"))
    assert {"chap-unproved", "chap-refused", "chap-broken-off"} & set(doctor(OURS, *mutual, code=4))
    tgt.account(target, "it", THEIRS, outgoing=True)
    assert "chap-mutual" in doctor(OURS, *mutual)
    (tmp_path / "theirs").write_text("something else")
    assert "chap-wrong-proof" in doctor(OURS, *mutual, code=4)


def test_a_target_without_a_disk(doctor: Callable[..., Findings], tgt: Tgtd) -> None:
    tgt.target(NAME)
    assert "disks-none" in doctor(code=3)
    assert "no-disk" in doctor(code=3)


async def lio_report(lio: Lio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *portals: str, **options: Any) -> Report:
    """An examination of a target in the virtual machine. The portals that it reports lead nowhere from here, and are not tried."""

    async def unreached(_portal: object) -> str:
        await trio.lowlevel.checkpoint()
        return "not tried"

    monkeypatch.setattr("isblk.doctor.network.reason_not_reached", unreached)
    report, run = Report(), tmp_path / "run"
    run.mkdir(exist_ok=True)
    subject = who(tmp_path, name, list(portals), LoginOptions(login_timeout=20, **options))
    await Examination(report, subject, run, bounds=BRIEF).run_all()
    return report


@pytest.mark.deadline(150)
async def test_lio_with_two_portal_groups(lio: Lio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lio.set_access(2, 1)
    try:
        report = await lio_report(lio, tmp_path, monkeypatch, lio.open, *lio.portals)
    finally:
        lio.set_access(2, 0)
    said = names(report)
    assert said.count("logged-in") == 2 and said.count("paths-same") == 2 and "portal-out-of-reach" in said
    assert said.count("access-best") == 3 and said.count("access-second") == 1 and "throughput" in said
    assert report.exit_code == 0


@pytest.mark.deadline(150)
async def test_chap_of_lio(lio: Lio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in (("ours", lio.secret), ("theirs", lio.mutual_secret), ("wrong", "nobody knows this")):
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    ours = {"user": lio.user, "secret_file": str(tmp_path / "ours")}
    theirs = {"target_user": lio.mutual_user, "target_secret_file": str(tmp_path / "theirs")}
    portal = lio.portals[0]
    assert "chap-one-way" in names(await lio_report(lio, tmp_path, monkeypatch, lio.chap, portal, **ours))
    assert "chap-mutual" in names(await lio_report(lio, tmp_path, monkeypatch, lio.mutual, portal, **ours, **theirs))
    wrong = await lio_report(lio, tmp_path, monkeypatch, lio.chap, portal, **{**ours, "secret_file": str(tmp_path / "wrong")})
    assert {"chap-refused", "chap-broken-off"} & set(names(wrong)) and wrong.exit_code == 4
    nobody = await lio_report(lio, tmp_path, monkeypatch, lio.chap, portal)
    assert {"chap-wanted", "login-closed"} & set(names(nobody)) and nobody.exit_code == 4
