"""Debian boots in a virtual machine, with lines of isblktab and fstab: what they say comes up by itself, and goes down in order."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isblk.target.config import PortalConfig
from support.debian import Debian, boot_debian
from support.guest import HOST
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import free_port, until

pytestmark = pytest.mark.deadline(700)
UP_SECONDS = 120.0
NAME = "iqn.2026-11.test.isblk:boot"
FSTAB = """{name} /mnt/lun0 isblk portal={portal},lun=0,_netdev,nofail 0 0
/mnt/lun0 /srv/data ext4 loop,_netdev,nofail,x-systemd.requires-mounts-for=/mnt/lun0 0 0
/mnt/lun1 /srv/table ext4 loop,_netdev,nofail,x-systemd.requires=isblk@mnt-lun1.service,x-systemd.requires-mounts-for=/mnt/lun1 0 0
"""
ISBLKTAB = """{name} /mnt/lun1 fuse portal={portal},lun=1,timeout=240{nofail}
{name} /mnt/lun2 fuse portal={portal},lun=2,automount,idle=0,nofail,timeout=240,retry=1
"""
SLOW = "[Manager]\nDefaultTimeoutStartSec=240\nDefaultTimeoutStopSec=120\n"
"""Under emulation, on a machine that has other things to do."""


class Lab:
    """Disks that outlive the target and the machine: 0 and 1 have an ext4 with a file in it, 2 is text."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        (home / "tree").mkdir()
        (home / "tree" / "old").write_text("was there")
        self.images = [home / f"disk{number}" for number in range(3)]
        for image in self.images[:2]:
            command = ["mkfs.ext4", "-q", "-F", "-d", home / "tree", image, "16M"]
            subprocess.run(command, check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        self.images[2].write_bytes(b"at first access".ljust(MIB))

    @contextmanager
    def target(self) -> Iterator[TargetProcess]:
        """The target with these disks behind a volatile write cache, always at the same port."""
        disks = [disk(number, size=None, path=str(image)) for number, image in enumerate(self.images)]
        with target_process(disks, name=NAME, portals=(PortalConfig(port=self.port),)) as running:
            yield running

    @contextmanager
    def boot(self, name: str, nofail: str) -> Iterator[Debian]:
        """Boot with the two tables."""
        home = self.home / name
        home.mkdir()
        words = {"name": NAME, "portal": f"{HOST}:{self.port}", "nofail": nofail}
        files = {
            "etc/fstab": FSTAB.format(**words),
            "etc/isblk/isblktab": ISBLKTAB.format(**words),
            "etc/isblk/isblk.conf": 'initiator-name = "iqn.2026-11.test.isblk:guest"\n',
            "etc/systemd/system.conf.d/slow.conf": SLOW,
            "mnt/lun0": "",  # As mount.isblk(8) tells: systemd would make a directory.
        }
        with boot_debian(home, files) as guest:
            yield guest

    def kept(self, number: int, path: str) -> str:
        """A file of a disk's ext4, as it is on the image."""
        image = self.images[number]
        command = ["debugfs", "-R", f"cat {path}", image]
        return subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": "/usr/sbin:/sbin"}).stdout

    def check(self, number: int) -> None:
        """The ext4 was unmounted and has no error."""
        subprocess.run(["/sbin/e2fsck", "-n", "-f", self.images[number]], check=True, capture_output=True)
        features = subprocess.run(["/sbin/dumpe2fs", "-h", self.images[number]], check=True, capture_output=True, text=True).stdout
        assert "needs_recovery" not in features and "clean" in features


@pytest.fixture
def lab(root: None, tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def mounted(guest: Debian, *places: str) -> bool:
    """Whether something is mounted at each of them."""
    points = [line.split()[1] for line in guest.run("cat /proc/mounts").splitlines() if line]
    return all(place in points for place in places)


def test_exports_come_up_and_go_down_with_the_machine(lab: Lab) -> None:
    """What was written without a word about sync is on the disks of a target that has lost its cache, and a second boot finds it. That one
    is not kept waiting by a target that is away, and the exports of isblktab come when it does."""
    with lab.target() as target:
        with lab.boot("first", "") as guest:
            assert mounted(guest, "/mnt/lun1"), "multi-user.target was reached before what it requires"
            until(lambda: mounted(guest, "/mnt/lun0", "/srv/data", "/srv/table"), "the file systems", UP_SECONDS)
            assert guest.run("cat /srv/data/old /srv/table/old").strip() == "was there" * 2
            assert guest.run("head -c 15 /mnt/lun2").strip() == "at first access"
            assert target.ask("sessions") == 3
            assert guest.run("systemctl --failed --quiet").strip() == ""
            guest.run("echo from fstab >/srv/data/new && echo from isblktab >/srv/table/new")
            guest.run("echo FROM FIRST | dd of=/mnt/lun2 conv=notrunc")
            console = guest.power_off()
        assert "GUEST-NETWORK-ENDS with 0 connections" in console
        assert target.ask("sessions") == 0
        assert set(target.ask("endings")) == {"the initiator logged out"}
        target.kill()
    for number in (0, 1):
        lab.check(number)
    assert (lab.kept(0, "new"), lab.kept(1, "new")) == ("from fstab\n", "from isblktab\n")
    assert lab.images[2].read_bytes()[:11] == b"FROM FIRST\n"
    with lab.boot("second", ",nofail,retry=1") as guest:
        until(lambda: int(guest.run("systemctl show -P NRestarts isblk@mnt-lun1.service")), "an attempt to have failed", UP_SECONDS)
        until(lambda: "activating" not in guest.run("systemctl is-active mnt-lun0.mount", code=None), "mount to have given up", UP_SECONDS)
        assert not mounted(guest, "/mnt/lun0") and not mounted(guest, "/mnt/lun1")
        with lab.target():
            until(lambda: mounted(guest, "/mnt/lun1"), "isblktab's export", UP_SECONDS)
            assert guest.run("head -c 10 /mnt/lun2").strip() == "FROM FIRST"
            guest.run("systemctl start srv-data.mount srv-table.mount", seconds=UP_SECONDS)
            assert guest.run("cat /srv/data/new /srv/table/new").split("\n")[:2] == ["from fstab", "from isblktab"]
