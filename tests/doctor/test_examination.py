"""The order of the examination: what goes on after a failure, what does not and says so, and the deadline of it all."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from isblk.config import LoginOptions
from isblk.doctor.examination import look_around
from isblk.doctor.findings import Report
from isblk.doctor.sentences import SECTIONS
from isblk.doctor.speed import Bounds
from support.doctor import examined, names, text
from support.targets import MIB, disk, running_target
from support.waiting import free_port


@pytest.mark.provokes("discovery-skipped", "login-skipped", "port-refuses", "logged-in", "paths-one")
async def test_one_portal_that_is_dead_does_not_hide_the_other(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with running_target() as target:
        report = await examined(tmp_path, target, [dead, target.portal])
    assert report.exit_code == 5 and report.said("throughput")
    assert text(report, "login-skipped") == f"no login was tried at {dead}: its port does not answer"


@pytest.mark.provokes("network-skipped", "name-unknown")
async def test_a_portal_whose_name_does_not_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = trio.socket.getaddrinfo

    async def getaddrinfo(host: str, *arguments: object, **options: object) -> object:
        if host == "no-such-host.invalid":
            raise OSError(-2, "Name or service not known")
        return await ask(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    async with running_target() as target:
        report = await examined(tmp_path, target, ["no-such-host.invalid", target.portal])
    assert report.said("logged-in") and report.exit_code == 5


@pytest.mark.provokes("disks-skipped", "speed-nowhere")
async def test_without_a_login_nothing_is_looked_at(tmp_path: Path) -> None:
    async with running_target() as target:
        report = await examined(tmp_path, target, [f"127.0.0.1:{free_port()}"])
    assert names(report)[-2:] == ["disks-skipped", "speed-nowhere"]


@pytest.mark.provokes("secrets-wrong", "login-skipped", "discovery-skipped", "port-answers")
async def test_credentials_that_cannot_be_used_leave_the_network_to_be_looked_at(tmp_path: Path) -> None:
    async with running_target() as target:
        report = await examined(tmp_path, target, options=LoginOptions(user="me", secret_file=str(tmp_path / "none")))
    assert report.exit_code == 2 and "cannot be read" in text(report, "secrets-wrong")


@pytest.mark.provokes("probe-declined", "read")
async def test_no_probe_when_it_is_not_wanted(tmp_path: Path) -> None:
    async with running_target() as target:
        report = await examined(tmp_path, target, bounds=Bounds(0))
    assert not report.said("throughput")


@pytest.mark.provokes("speed-skipped", "no-disk")
async def test_a_target_without_a_disk_is_pinged(tmp_path: Path) -> None:
    async with running_target([disk(device_type=0x0C)]) as target:
        report = await examined(tmp_path, target)
    assert report.said("ping") and report.said("disks-none") and report.exit_code == 3


async def test_the_disk_that_is_meant_is_the_one_that_is_read(tmp_path: Path) -> None:
    async with running_target([disk(0), disk(1, 64 << 10)]) as target:
        report = await examined(tmp_path, target, lun=1)
        (probe,) = [finding for finding in report.findings if finding.name == "throughput"]
        absent = await examined(tmp_path, target, lun=5)
    assert "65536 bytes each" in probe.text
    assert absent.said("disk-absent") and absent.said("speed-skipped") and absent.exit_code == 3


async def test_nothing_is_written(tmp_path: Path) -> None:
    reads = {0x00, 0x12, 0x1A, 0x5A, 0x25, 0x28, 0x88, 0x9E, 0xA0, 0xA3}
    seen = set()
    async with running_target([disk(0, 4 * MIB)]) as target:
        target.node.hold = lambda _lun, cdb: bool(seen.add(cdb[0]))
        report = await examined(tmp_path, target)
    assert report.said("throughput") and seen and not seen - reads


@pytest.mark.provokes("out-of-time")
async def test_when_time_is_over_it_says_what_was_not_looked_at(tmp_path: Path) -> None:
    async with running_target() as target:
        target.node.hold = lambda _lun, cdb: cdb[0] in (0x28, 0x88)
        report = await examined(tmp_path, target, deadline=0.5)
        assert target.sessions == 0
    assert report.findings[-1].text == f"the 0.5 s are over; what was not looked at: {SECTIONS['speed']}"
    assert report.exit_code == 0


@pytest.mark.provokes("name-wrong")
def test_a_look_around_needs_nobody(tmp_path: Path) -> None:
    report = Report()
    assert look_around(report, tmp_path / "state", "rubbish") is None
    assert {finding.section for finding in report.findings} == {"machine", "configuration"} and report.exit_code == 2
