"""The LIO machine itself: what it sets up is what a foreign initiator sees."""

from __future__ import annotations

import subprocess

import pytest

from support.lio import Lio


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("portal", [0, 1])
def test_all_targets_are_listed(lio: Lio, portal: int) -> None:
    said = run("iscsi-ls", f"iscsi://{lio.portals[portal]}").stdout
    assert said.count(f"Target:{lio.open} Portal:10.0.2.15:326") == 2
    assert lio.chap in said
    assert lio.mutual in said


@pytest.mark.parametrize("portal", [0, 1])
@pytest.mark.parametrize(("lun", "size", "block_size"), [(0, 512, 512), (1, 256, 4096)])
def test_disks_have_the_promised_shape(lio: Lio, portal: int, lun: int, size: int, block_size: int) -> None:
    said = run("iscsi-readcapacity16", f"iscsi://{lio.portals[portal]}/{lio.open}/{lun}").stdout
    assert f"LOGICAL BLOCK LENGTH IN BYTES:{block_size}\n" in said
    assert f"Total size:{size * 1024 * 1024}\n" in said


def test_chap_lets_in_who_knows_the_secret(lio: Lio) -> None:
    assert run("iscsi-inq", f"iscsi://{lio.user}%{lio.secret}@{lio.portals[0]}/{lio.chap}/0").returncode == 0
    assert run("iscsi-inq", f"iscsi://{lio.user}%not-what-it-knows@{lio.portals[0]}/{lio.chap}/0").returncode != 0
    assert run("iscsi-inq", f"iscsi://{lio.portals[0]}/{lio.chap}/0").returncode != 0


def test_mutual_chap_proves_the_target(lio: Lio) -> None:
    url = f"iscsi://{lio.user}%{lio.secret}@{lio.portals[0]}/{lio.mutual}/0?target_user={lio.mutual_user}&target_password={{}}"
    assert run("iscsi-inq", url.format(lio.mutual_secret)).returncode == 0
    assert run("iscsi-inq", url.format("not-what-it-knows")).returncode != 0
