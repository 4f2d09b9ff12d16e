"""The tgt harness itself: what it sets up is what a foreign initiator sees."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.tgt import Tgtd
from support.waiting import answers

NAME = "iqn.2026-11.test.isblk:disk"
MIB = 1024 * 1024


def listed(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["iscsi-ls", "-s", url], capture_output=True, text=True, timeout=30, check=False)


def inquired(url: str) -> bool:
    return subprocess.run(["iscsi-inq", url], capture_output=True, timeout=30, check=False).returncode == 0


def test_disks_are_seen_by_a_foreign_initiator(tgt: Tgtd) -> None:
    target = tgt.target(NAME, MaxBurstLength=65536)
    image = tgt.disk(target, 1, 64 * MIB)
    tgt.null(target, 2)
    said = listed(f"iscsi://{tgt.portal}").stdout
    assert f"Target:{NAME} Portal:{tgt.portal},1" in said
    assert "Lun:1    Type:DIRECT_ACCESS (Size:63M)" in said  # iscsi-ls prints the last block's place
    assert "Lun:2    Type:DIRECT_ACCESS" in said
    assert image.stat().st_size == 64 * MIB
    assert tgt.sessions(target) == 0


def test_chap_is_asked_for_where_an_account_is_bound(tgt: Tgtd) -> None:
    target = tgt.target(NAME)
    tgt.disk(target, 1, MIB)
    tgt.account(target, "someone", "a-secret-of-16-b")
    assert inquired(f"iscsi://someone%a-secret-of-16-b@{tgt.portal}/{NAME}/1")
    assert not inquired(f"iscsi://{tgt.portal}/{NAME}/1")


def test_two_at_once_and_none_left(tmp_path: Path) -> None:
    with Tgtd(tmp_path) as one, Tgtd(tmp_path) as two:
        one.target(NAME + "1")
        two.target(NAME + "2")
        assert NAME + "1" in listed(f"iscsi://{one.portal}").stdout
        assert NAME + "2" in listed(f"iscsi://{two.portal}").stdout
    assert not answers(one.port)
    assert not answers(two.port)
