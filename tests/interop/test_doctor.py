"""`isblk doctor` on targets that are not ours: what it says of tgtd, whose CHAP has a fault of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
