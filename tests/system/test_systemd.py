"""Exports of isblktab and lines of /etc/fstab under a systemd: up by themselves, watched, and down in order before the network goes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from isblk.systemdunits import escape
from isblk.target.config import PortalConfig
from support.commands import get
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.systemd import SHARE, Systemd, can_run
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import until

STOP_SECONDS = 1
BOOT = "[Unit]\nWants=remote-fs.target sockets.target\nAfter=remote-fs.target sockets.target\n"
NETWORK = """[Unit]
Before=network.target network-online.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'grep -ci ":{port:04X} 01 " /proc/net/tcp >{share}/sessions'
[Install]
RequiredBy=network-online.target
"""
"""What makes the network in there: when it goes, it counts the connections to the target that are left."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TargetProcess]:
    """Four disks with a volatile write cache each, over files."""
    with target_process([disk(number, 16 * MIB, path=str(tmp_path / f"disk{number}")) for number in range(4)]) as running:
        yield running


@pytest.fixture
def home(root: None, fuse: None, tmp_path: Path) -> Path:
    """A directory that a systemd can have as SHARE."""
    if not can_run():
        pytest.skip("this machine lets nobody make namespaces for a systemd")
    (tmp_path / "home" / "etc" / "isblk").mkdir(parents=True)
    unit(tmp_path / "home", "boot.target", BOOT)
    return tmp_path / "home"


def unit(home: Path, name: str, text: str) -> None:
    path = home / "etc" / "systemd" / "system" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def table(home: Path, *lines: str) -> None:
    (home / "etc" / "isblk" / "isblktab").write_text("".join(f"{line}\n" for line in lines))


def service(name: str) -> str:
    return f"isblk@{escape(f'{SHARE}/{name}')}.service"


def with_ext4(processes: Processes, mounts: Mounts, target: TargetProcess, *luns: int) -> None:
    """An empty file system on some of the disks."""
    for lun in luns:
        place = processes.home / f"lun{lun}"
        processes.run(isblk("mount", "-p", target.portal, "--lun", str(lun), target.name, place))
        processes.run(["mkfs.ext4", "-q", str(place)])
        processes.run(isblk("umount", place))


@pytest.mark.deadline(120)
@pytest.mark.parametrize("reload", [False, True])
def test_everything_is_up_after_a_boot_and_written_back_before_the_network_goes(
    processes: Processes, mounts: Mounts, target: TargetProcess, home: Path, reload: bool
) -> None:
    with_ext4(processes, mounts, target, 0, 1)
    (home / "lun0").touch()
    here = f"portal={target.portal}"
    table(
        home,
        f"{target.name} {SHARE}/lun1 fuse {here},lun=1",
        f"{target.name} {SHARE}/lun2.sock nbd {here},lun=2",
        f"{target.name} {SHARE}/lun3.sock nbd {here},lun=3,nofail",
        f"{target.name} {SHARE}/wrong fuse {here},lnu=3",
    )
    (home / "etc" / "fstab").write_text(
        f"{target.name} {SHARE}/lun0 isblk {here},lun=0,_netdev,nofail 0 0\n"
        f"{SHARE}/lun0 /mnt/a ext4 loop,_netdev,nofail,x-systemd.requires-mounts-for={SHARE}/lun0 0 0\n"
        f"{SHARE}/lun1 /mnt/b ext4 loop,_netdev,nofail,x-systemd.requires={service('lun1')},"
        f"x-systemd.requires-mounts-for={SHARE}/lun1 0 0\n"
    )
    unit(home, "network.service", NETWORK.format(port=int(target.portal.rpartition(":")[2]), share=SHARE))
    unit(home, "network-online.target.d/test.conf", "[Unit]\nRequires=network.service\nAfter=network.service\n")
    with Systemd(processes, home, "boot.target") as systemd:
        systemd.started()
        assert systemd.show(service("lun1"), "ActiveState", "SubState", "StatusText") == {
            "ActiveState": "active",
            "SubState": "running",
            "StatusText": "the path is up",
        }
        for place in ("a", "b"):
            assert systemd.run("findmnt", "-no", "FSTYPE", f"/mnt/{place}").stdout == "ext4\n"
            systemd.run("sh", "-c", f"echo on {place} >/mnt/{place}/words")
        assert systemd.show(service("lun3.sock"), "ActiveState") == {"ActiveState": "inactive"}, "nobody has connected"
        for socket in ("lun2.sock", "lun3.sock"):
            systemd.run("nbdinfo", "--size", f"nbd+unix:///?socket={SHARE}/{socket}")
        assert systemd.show(service("lun3.sock"), "ActiveState") == {"ActiveState": "active"}
        assert target.ask("sessions") == 4
        failed = systemd.run("systemctl", "--failed", "--no-legend", "--plain").stdout
        assert "isblk" not in failed and "mnt-" not in failed and "srv-" not in failed, failed
        if reload:  # what is mounted is looked at anew then, and differently
            systemd.run("systemctl", "daemon-reload")
        systemd.shut_down()
    assert (home / "sessions").read_text() == "0\n", "the network went first"
    assert target.ask("sessions") == 0
    target.ask("crash")
    for number, place in ((0, "a"), (1, "b")):
        image = get(processes.home / f"disk{number}", 0, 16 * MIB)
        assert f"on {place}\n".encode() in image, "not written back"
    assert not list(home.glob("*.sock"))


@pytest.mark.deadline(120)
def test_a_service_is_watched_started_again_and_says_how_it_is(processes: Processes, mounts: Mounts, home: Path) -> None:
    portals = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))
    with target_process([disk(0, 16 * MIB), disk(1, MIB)], portals=portals) as target:
        one, two = target.portals
        table(
            home,
            f"{target.name} {SHARE}/lun0 fuse portal={one},portal={two},lun=0,fuse-engine=direct",
            f"{target.name} {SHARE}/lun1 fuse portal={one},lun=1,fuse-engine=pyfuse3",
        )
        unit(home, "isblk@.service.d/test.conf", f"[Service]\nRestartSec=0.2\nWatchdogSec=2\nTimeoutStopSec={STOP_SECONDS}\n")
        name = service("lun0")
        with Systemd(processes, home, "boot.target") as systemd:
            systemd.started()

            def shown(*properties: str) -> list[str]:
                found = systemd.show(name, *properties)
                return [found[each] for each in properties]

            def runs_since(restarts: int) -> bool:
                state, now = shown("SubState", "NRestarts")
                return state == "running" and int(now) > restarts

            until(lambda: shown("StatusText") == ["2 of 2 paths up"], "both paths to be told")
            for number in (signal.SIGKILL, signal.SIGSTOP):
                before = shown("MainPID", "NRestarts")
                systemd.run("kill", f"-{int(number)}", before[0])
                until(partial(runs_since, int(before[1])), f"a start after {number.name}")
                assert shown("StatusText") and systemd.run("stat", "-c", "%s", f"{SHARE}/lun0").stdout == f"{16 * MIB}\n"
            systemd.run("kill", "-9", systemd.show(service("lun1"), "MainPID")["MainPID"])
            until(lambda: systemd.show(service("lun1"), "NRestarts", "SubState") == {"NRestarts": "1", "SubState": "running"}, "a restart")
            assert systemd.run("stat", "-c", "%s", f"{SHARE}/lun1").stdout == f"{MIB}\n", "what pyfuse3 left behind was in the way"
            target.ask("close 1")
            until(lambda: shown("StatusText")[0].startswith(f"1 of 2 paths up: {two} "), "the loss of a path to be told")
            target.ask("hold")
            systemd.run("sh", "-c", f"dd if=/dev/zero of={SHARE}/lun0 bs=4096 count=1 conv=notrunc >/dev/null 2>&1 &")
            until(lambda: target.ask("held") == 1, "a write to be on its way")
            stopping = systemd.start("systemctl", "stop", name)
            until(lambda: shown("StatusText") == ["writing back and logging out"], "the end to begin")
            late = time.monotonic() + 3 * STOP_SECONDS
            until(lambda: time.monotonic() > late, "the time for a stop to be over")
            assert shown("ActiveState") == ["deactivating"], "it was not given the time it asked for"
            target.ask("release")
            assert stopping.wait() == 0
            assert shown("ActiveState", "Result") == ["inactive", "success"]
            assert not systemd.run("findmnt", f"{SHARE}/lun0", code=1).stdout
            systemd.run("systemctl", "start", name)
            systemd.run("umount", f"{SHARE}/lun0")
            until(lambda: shown("ActiveState", "Result") == ["inactive", "success"], "umount to have ended it for good")
            systemd.shut_down()
        assert target.ask("sessions") == 0
