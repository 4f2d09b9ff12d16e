"""Exports of isblktab and lines of /etc/fstab under a systemd: up by themselves, watched, and down in order before the network goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from isblk.systemdunits import escape
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.systemd import SHARE, Systemd, can_run, program
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import until

BOOT = "[Unit]\nWants=remote-fs.target sockets.target\nAfter=remote-fs.target sockets.target\n"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TargetProcess]:
    """Four disks with a volatile write cache each, over files."""
    with target_process([disk(number, 16 * MIB, path=str(tmp_path / f"disk{number}")) for number in range(4)]) as running:
        yield running


@pytest.fixture
def home(root: None, fuse: None, tmp_path: Path) -> Path:
    """A directory that a systemd can have as SHARE, with the program that its generator is."""
    if not can_run():
        pytest.skip("this machine lets nobody make namespaces for a systemd")
    generators = tmp_path / "home" / "etc" / "systemd" / "system-generators"
    generators.mkdir(parents=True)
    (tmp_path / "home" / "etc" / "isblk").mkdir()
    (generators / "isblk-generator").symlink_to(program().with_name("isblk-generator"))
    (tmp_path / "home" / "etc" / "systemd" / "system").mkdir()
    (tmp_path / "home" / "etc" / "systemd" / "system" / "boot.target").write_text(BOOT)
    return tmp_path / "home"


def with_ext4(processes: Processes, mounts: Mounts, target: TargetProcess, *luns: int) -> None:
    """An empty file system on some of the disks."""
    for lun in luns:
        place = processes.home / f"lun{lun}"
        processes.run(isblk("mount", "-p", target.portal, "--lun", str(lun), target.name, place))
        processes.run(["mkfs.ext4", "-q", str(place)])
        processes.run(isblk("umount", place))


def test_it(processes: Processes, mounts: Mounts, target: TargetProcess, home: Path) -> None:
    with_ext4(processes, mounts, target, 0, 1)
    (home / "fstab-lun").touch()
    (home / "etc" / "isblk" / "isblktab").write_text(
        f"{target.name} {SHARE}/lun1 fuse portal={target.portal},lun=1\n"
        f"{target.name} {SHARE}/lun2.sock nbd portal={target.portal},lun=2\n"
        f"{target.name} {SHARE}/lun3.sock nbd portal={target.portal},lun=3,nofail\n"
    )
    service = f"isblk@{escape(f'{SHARE}/lun1')}.service"
    (home / "etc" / "fstab").write_text(
        f"{target.name} {SHARE}/fstab-lun isblk portal={target.portal},lun=0,_netdev,nofail 0 0\n"
        f"{SHARE}/fstab-lun /mnt/a ext4 loop,_netdev,nofail,x-systemd.requires-mounts-for={SHARE}/fstab-lun 0 0\n"
        f"{SHARE}/lun1 /mnt/b ext4 loop,_netdev,nofail,x-systemd.requires={service} 0 0\n"
    )
    with Systemd(processes, home, "boot.target") as systemd:
        try:
            systemd.run("sh", "-c", "mkdir -p /sbin; /bin/true")
            systemd.started()
            print(systemd.run("systemctl", "--no-pager", "status", "--all", "isblk@*", code=None).stdout)
            print(systemd.run("systemctl", "--no-pager", "list-units", "--all", code=None).stdout)
            print(systemd.run("findmnt").stdout)
        finally:
            print(systemd.console)
        systemd.shut_down()
        print(systemd.console)
        print(target.ask("sessions"))
        assert 0
