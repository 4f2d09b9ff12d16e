"""Logical units over several portals: what is there, whether it is the same, what each path lets through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from isblk.block.probe import Description, probe
from isblk.doctor import disks
from isblk.doctor.findings import Report
from isblk.errors import PathLost
from isblk.iscsi.names import Portal
from isblk.scsi.data import AccessState
from isblk.scsi.lun_number import lun_to_bytes
from support.doctor import NAME, PORTAL, names, text
from support.fakelink import FakeDisk, FakeLink, check

SECOND = Portal("192.0.2.2", 3260)
LUN_0, LUN_1 = lun_to_bytes(0), lun_to_bytes(1)
NAA = bytes.fromhex("6001405aabbccddee000000000000001")


def identification(name: bytes = NAA, group: int | None = None) -> bytes:
    """VPD page 83: the unit's NAA name, and the port group that it is asked through."""
    page = bytes((1, 3, 0, len(name))) + name if name else b""
    return page + (bytes((1, 0x15, 0, 4, 0, 0)) + group.to_bytes(2, "big") if group is not None else b"")


def a_disk(name: bytes = NAA, group: int | None = None, **knobs: Any) -> FakeDisk:
    disk = FakeDisk()
    disk.pages[0x83] = identification(name, group)
    for knob, value in knobs.items():
        setattr(disk, knob, value)
    return disk


async def described(disk: FakeDisk, lun: bytes = LUN_0) -> Description:
    return await probe(FakeLink(disks={lun: disk}), lun)


@pytest.mark.provokes("disk", "no-disk", "disk-protected")
async def test_what_a_portal_shows() -> None:
    report = Report()
    link = FakeLink(disks={LUN_0: a_disk(device_type=0x0C), LUN_1: a_disk(write_protected=True)})
    units = await disks.list_units(report, PORTAL, link)
    assert units is not None
    disks.describe(report, PORTAL, units, None, NAME)
    assert names(report) == ["no-disk", "disk", "disk-protected"]
    assert text(report, "disk") == "LUN 1: 1.00 MiB in blocks of 512 bytes, FAKE DISK, naa." + NAA.hex()
    assert text(report, "no-disk") == "LUN 0 is no disk but a storage array controller"


@pytest.mark.provokes("disk-nameless")
async def test_a_disk_without_a_name() -> None:
    report = Report()
    disks.describe(report, PORTAL, {LUN_0: await described(a_disk(b""))}, LUN_0, NAME)
    assert "without a name" in text(report, "disk") and report.exit_code == 0


@pytest.mark.provokes("disk-unusable")
async def test_a_disk_of_odd_blocks() -> None:
    disks.describe(Report(), PORTAL, {LUN_0: await described(a_disk(block_size=520))}, None, NAME)


@pytest.mark.provokes("disk-sick")
async def test_a_disk_that_does_not_work() -> None:
    report = Report()
    sick = replace(await described(a_disk()), capacity=None, refusal="LUN 0 failed a command: medium error")
    disks.describe(report, PORTAL, {LUN_0: sick}, None, NAME)
    assert report.exit_code == 6


@pytest.mark.provokes("disk-absent")
async def test_the_lun_that_is_meant_is_not_there() -> None:
    report = Report()
    disks.describe(report, PORTAL, {LUN_0: await described(a_disk())}, lun_to_bytes(7), NAME)
    assert text(report, "disk-absent") == f"there is no LUN 7 at {PORTAL}; there are: 0" and report.exit_code == 3


@pytest.mark.provokes("disks-none")
def test_no_disk_is_shown() -> None:
    report = Report()
    disks.describe(report, PORTAL, {}, None, NAME)
    assert report.exit_code == 3 and NAME in report.findings[0].remedy


@pytest.mark.provokes("disks-unlisted")
async def test_a_target_that_does_not_list_its_units() -> None:
    report, link = Report(), FakeLink(disks={})
    link.lose(PathLost("it closed the connection"))
    assert await disks.list_units(report, PORTAL, link) is None
    assert report.exit_code == 6


@pytest.mark.provokes("paths-one")
async def test_one_path_is_compared_with_nothing() -> None:
    report = Report()
    disks.compare(report, [(PORTAL, {LUN_0: await described(a_disk())})])
    assert report.exit_code == 0


@pytest.mark.provokes("paths-same")
async def test_the_same_disk_over_both() -> None:
    report, one = Report(), await described(a_disk())
    disks.compare(report, [(PORTAL, {LUN_0: one}), (SECOND, {LUN_0: one})])
    assert text(report, "paths-same") == "LUN 0 is the same disk over all 2 portals"


@pytest.mark.provokes("paths-different")
async def test_two_disks_under_one_number() -> None:
    report, other = Report(), NAA[:-1] + b"\2"
    seen = [(PORTAL, {LUN_0: await described(a_disk())}), (SECOND, {LUN_0: await described(a_disk(other))})]
    disks.compare(report, seen)
    assert names(report) == ["paths-different"] and report.exit_code == 6
    assert f"naa.{other.hex()} over {SECOND}, but naa.{NAA.hex()} over {PORTAL}" in report.findings[0].text


@pytest.mark.provokes("paths-sizes")
async def test_one_disk_of_two_sizes() -> None:
    report, small = Report(), FakeDisk(blocks=1024)
    small.pages[0x83] = identification()
    disks.compare(report, [(PORTAL, {LUN_0: await described(a_disk())}), (SECOND, {LUN_0: await described(small)})])
    assert names(report) == ["paths-sizes"] and report.exit_code == 6


@pytest.mark.provokes("paths-missing", "paths-same")
async def test_a_disk_that_one_portal_does_not_show() -> None:
    report, one = Report(), await described(a_disk())
    disks.compare(report, [(PORTAL, {LUN_0: one, LUN_1: replace(one, lun=LUN_1)}), (SECOND, {LUN_0: one})])
    assert names(report) == ["paths-same", "paths-missing"]


def groups(state: AccessState, group: int = 1, preferred: bool = False) -> bytes:
    """REPORT TARGET PORT GROUPS with one group of one port."""
    one = bytes((0x80 * preferred | state, 0x0F)) + group.to_bytes(2, "big") + bytes((0, 0, 0, 1)) + bytes((0, 0, 0, 1))
    return len(one).to_bytes(4, "big") + one


async def path(portal: Portal, answer: tuple[int, bytes, bytes], group: int = 1) -> Any:
    """A path to a unit with ALUA, that answers so when it is asked for its groups."""
    link = FakeLink(disks={LUN_0: a_disk(group=group)})
    found = await probe(link, LUN_0)
    found = replace(found, identity=replace(found.identity, target_port_group_support=1))
    link.disks[LUN_0].script[:] = [answer]
    return portal, link, {LUN_0: found}


@pytest.mark.provokes("access-best", "access-second", "access-shut")
async def test_the_state_of_each_path() -> None:
    report = Report()
    ways = [
        await path(PORTAL, (0, b"", groups(AccessState.OPTIMIZED, preferred=True))),
        await path(SECOND, (0, b"", groups(AccessState.NON_OPTIMIZED))),
        await path(Portal("192.0.2.3", 3260), (0, b"", groups(AccessState.STANDBY))),
    ]
    await disks.access(report, ways)
    assert [finding.text for finding in report.findings] == [
        f"LUN 0 over {PORTAL}: active/optimized, preferred",
        f"LUN 0 over {SECOND}: active/non-optimized",
        "LUN 0 over 192.0.2.3:3260: standby",
    ]
    assert report.exit_code == 0


@pytest.mark.provokes("access-nowhere")
async def test_no_path_lets_anything_through() -> None:
    report = Report()
    await disks.access(report, [await path(PORTAL, (0, b"", groups(AccessState.UNAVAILABLE)))])
    assert names(report) == ["access-shut", "access-nowhere"] and report.exit_code == 6


@pytest.mark.provokes("access-unknown")
async def test_a_state_that_cannot_be_read() -> None:
    report = Report()
    await disks.access(report, [await path(PORTAL, check(4, 0x44, 0)), await path(SECOND, (0, b"", groups(AccessState.OPTIMIZED, 9)))])
    assert names(report) == ["access-unknown"] * 2
    assert "group 1, where we are, is not listed" in report.findings[1].text


@pytest.mark.provokes("access-symmetric")
async def test_a_unit_without_access_states() -> None:
    report, link = Report(), FakeLink(disks={LUN_0: a_disk()})
    await disks.access(report, [(PORTAL, link, {LUN_0: await probe(link, LUN_0)})])
    assert names(report) == ["access-symmetric"]
