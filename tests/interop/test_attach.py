"""`isblk attach` with the kernel's NBD client, in a virtual machine whose kernel has one; the target is on this machine.

Every test has a target and a device of its own, and leaves none behind: the guest is one for the whole run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from isblk.target.config import PortalConfig
from support.guest import CHECKOUT, HOST, Guest
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import until

pytestmark = pytest.mark.deadline(170)
SIZE = 64 * MIB
FILES = "isblk man scripts"
"""Something to copy, of the checkout, where commands in the guest run: many small files. What Python compiles may change meanwhile."""
COPY = f"tar cf - --exclude=__pycache__ {FILES} | tar xf - -C /mnt && sync -f /mnt"
SAME = f"for each in {FILES}; do diff -r -x __pycache__ $each /mnt/$each || exit; done"
PORTALS = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))


@dataclass
class Lab:
    """The guest, and what a test attaches there."""

    guest: Guest
    target: TargetProcess

    def where(self, target: TargetProcess | None = None, paths: int = 1) -> str:
        """TARGET with its portals, as words of a command line."""
        found = target or self.target
        portals = " ".join(f"-p {portal.replace('127.0.0.1', HOST)}" for portal in found.portals[:paths])
        return f"{portals} {found.name}"

    def attach(self, device: str = "/dev/nbd0", *options: str, paths: int = 1, target: TargetProcess | None = None) -> None:
        """Attach, with a log in /run/log."""
        assert device in self.guest.run(f"isblk attach {self.where(target, paths)} {device} --log-file /run/log {' '.join(options)}")

    def status(self, device: str = "/dev/nbd0") -> dict[str, Any]:
        """What `isblk status` says of a device."""
        mounts = json.loads(self.guest.run("isblk status --json"))["mounts"]
        return next(each for each in mounts if each["where"] == device)

    def sysfs(self, attribute: str, device: str = "nbd0") -> str:
        """An attribute of the device; empty when it has none."""
        return self.guest.run(f"cat /sys/block/{device}/{attribute} 2>/dev/null", code=None).strip()

    def over(self) -> bool:
        """Whether no daemon and no session is left, and the kernel's device is free."""
        return self.target.ask("sessions") == 0 and not self.sysfs("pid") and self.sysfs("size") == "0"


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with target_process([disk(0, size=SIZE)], portals=PORTALS) as served:
        yield served


@pytest.fixture
def lab(guest: Guest, target: TargetProcess) -> Iterator[Lab]:
    yield Lab(guest, target)
    guest.run(
        "umount -q /mnt; for device in $(cd /sys/block; echo nbd*); do "
        "test ! -e /sys/block/$device/pid || isblk detach --force /dev/$device; done; rm -f /run/log /run/dd",
        code=None,
        seconds=100,
    )


def test_a_lun_is_a_disk_that_keeps_what_is_written(lab: Lab) -> None:
    """The commands of the manual page, and what must hold between them."""
    guest = lab.guest
    text = (CHECKOUT / "man" / "isblk-attach.1").read_text()
    said = re.search(r"^\.Bd -literal -offset indent\n(modprobe .*?)^\.Ed$", text, re.MULTILINE | re.DOTALL)
    assert said is not None
    modprobe, attach, *between, detach = said[1].replace("-p 10.0.0.5 iqn.2001-05.com.example:disks", lab.where()).splitlines()
    assert modprobe == "modprobe nbd" and attach.startswith("isblk attach") and detach.startswith("isblk detach")
    assert guest.run(attach).strip() == "/dev/nbd0"
    assert lab.sysfs("size") == str(SIZE // 512)
    assert lab.sysfs("queue/logical_block_size") == lab.sysfs("queue/physical_block_size") == "512"
    assert (lab.sysfs("queue/write_cache"), lab.sysfs("queue/fua"), lab.sysfs("ro")) == ("write back", "1", "0")
    assert int(lab.sysfs("queue/discard_max_bytes")) > SIZE
    assert lab.sysfs("backend").startswith(f"isblk {lab.target.name} naa.")
    assert guest.run("lsblk -bno NAME,SIZE,TYPE,RO /dev/nbd0").split() == ["nbd0", str(SIZE), "disk", "0"]
    daemon = lab.status()["pid"]
    assert guest.run("nbd-client -c /dev/nbd0").split() == [str(daemon)]
    assert guest.run(f"cat /proc/{daemon}/oom_score_adj").strip() == "-1000"
    assert int(guest.run(f"grep VmLck /proc/{daemon}/status").split()[1]) > 1024
    for command in between[:-1]:
        guest.run(command)
    guest.run(COPY)
    assert between[-1] == "umount /mnt"
    guest.run(between[-1])
    guest.run(detach)
    assert lab.over()
    lab.target.ask("crash")  # What was not flushed is gone.
    guest.run(attach)
    guest.run("fsck.ext4 -fn /dev/nbd0 && mount -o ro /dev/nbd0 /mnt")
    guest.run(SAME)
    guest.run(between[-1])
    guest.run("isblk umount /dev/nbd0")
    assert lab.over()


def test_any_free_device_and_several_connections(lab: Lab) -> None:
    lab.attach("/dev/nbd3", "--connections", "3", "--timeout", "500", "--dead-connection-timeout", "9")
    found = lab.status("/dev/nbd3")
    shown = {"connections": 3, "timeout": 500, "dead_connection_timeout": 9, "block_size": 512, "size": SIZE, "replaced_connections": 0}
    assert (found["kind"], found["block_device"]) == ("attach", {"path": "/dev/nbd3", **shown})
    assert len(found["clients"]) == 3
    fio = "fio --name=x --filename=/dev/nbd3 --size=2m --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c"
    lab.guest.run(f"{fio} --numjobs=2 --offset_increment=2m --group_reporting", seconds=100)
    used = [client["counters"]["bytes_written"] for client in lab.status("/dev/nbd3")["clients"]]  # requests may have been merged
    assert sum(used) >= 4 << 20 and sum(map(bool, used)) >= 2, "the kernel spreads requests over the connections"
    text = lab.guest.run("isblk status")
    assert "/dev/nbd3" in text and "64.0 MiB in blocks of 512, 3 connections, timeout 500 s, dead connection timeout 9 s" in text
    assert lab.guest.run(f"isblk attach {lab.where()} any").strip() == "/dev/nbd0"
    said = lab.guest.run(f"isblk attach {lab.where()} /dev/nbd3", code=2)
    assert "isblk: /dev/nbd3 is attached already, by process" in said and said.count("\n") == 1
    lab.guest.run("isblk detach /dev/nbd0; isblk detach /dev/nbd3")


def test_blocks_of_4096_bytes_and_read_only(lab: Lab) -> None:
    with target_process([disk(0, size=8 * MIB, block_size=4096)]) as target:
        lab.attach("/dev/nbd1", "-o", "ro", target=target)
        assert (lab.sysfs("queue/logical_block_size", "nbd1"), lab.sysfs("ro", "nbd1")) == ("4096", "1")
        lab.guest.run("dd if=/dev/zero of=/dev/nbd1 bs=4096 count=1 conv=fsync", code=1)
        lab.guest.run("isblk detach /dev/nbd1")


def test_a_lun_that_grows_is_a_device_that_grows(lab: Lab) -> None:
    lab.attach()
    lab.guest.run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    lab.target.ask(f"resize 0 {2 * SIZE}")
    until(lambda: lab.sysfs("size") == str(2 * SIZE // 512), "the device to grow")
    lab.guest.run("resize2fs /dev/nbd0 && test $(stat -f -c %b /mnt) -gt 100000 && umount /mnt && fsck.ext4 -fn /dev/nbd0")
    lab.guest.run("isblk detach /dev/nbd0")


def test_a_device_in_use_is_detached_by_force_alone(lab: Lab) -> None:
    guest = lab.guest
    lab.attach()
    guest.run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt")
    said = guest.run("isblk detach /dev/nbd0", code=2)
    assert said.startswith("isblk: /dev/nbd0 is mounted at /mnt: end that first") and said.count("\n") == 1
    assert guest.run("isblk umount /dev/nbd0", code=2) == said
    said = guest.run("umount /mnt; sleep 100 7</dev/nbd0 & isblk detach /dev/nbd0; code=$?; kill %1; exit $code", code=2)
    assert re.match(r"isblk: /dev/nbd0 is open in process \d+ \(sleep\): end that first", said)
    guest.run(f"mount /dev/nbd0 /mnt && {COPY.partition(' && ')[0]} && isblk detach --force /dev/nbd0")  # not synchronized
    assert lab.target.ask("sessions") == 0
    guest.run("umount /mnt")
    lab.target.ask("crash")
    lab.attach()
    guest.run(f"mount /dev/nbd0 /mnt && ({SAME}) && umount /mnt && isblk detach /dev/nbd0")


@pytest.mark.parametrize("how", ["nbd-client -d /dev/nbd0", "kill -TERM $(cat /sys/block/nbd0/pid)"])
def test_every_end_is_in_order(lab: Lab, how: str) -> None:
    lab.attach()
    lab.guest.run("dd if=/dev/urandom of=/run/dd bs=1M count=4 status=none && cp /run/dd /dev/nbd0")
    lab.guest.run(how)
    until(lab.over, "the daemon to end")
    lab.target.ask("crash")
    lab.attach()
    lab.guest.run("cmp -n 4194304 /run/dd /dev/nbd0 && isblk detach /dev/nbd0")


def test_a_daemon_that_died_is_replaced_under_a_mounted_file_system(lab: Lab) -> None:
    guest = lab.guest
    lab.attach("/dev/nbd0", "--connections", "2")
    guest.run(f"mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && {COPY}")
    guest.run("fsfreeze -f /mnt && kill -9 $(cat /sys/block/nbd0/pid)")  # Of several connections, what is on its way waits for minutes.
    write = "(fsfreeze -u /mnt && dd if=/dev/zero of=/mnt/later bs=1M count=2 conv=fsync >/run/dd 2>&1; echo $? >>/run/dd) &"
    guest.run(f"{write} isblk attach {lab.where()} /dev/nbd0 --connections 2 --log-file /run/log; wait; tail -n 1 /run/dd | grep -x 0")
    assert "was left behind by a daemon that died: it is served again" in guest.run("cat /run/log")
    guest.run(f"({SAME}) && umount /mnt && fsck.ext4 -fn /dev/nbd0 && isblk detach /dev/nbd0")
    assert lab.over()


def test_what_was_on_its_way_when_the_daemon_died_is_repeated(lab: Lab) -> None:
    """And only then: until it dies the kernel waits for it, however long that takes."""
    guest = lab.guest
    lab.attach()
    assert lab.sysfs("queue/io_timeout") == "30000"
    guest.run("dmesg --clear; echo 1000 >/sys/block/nbd0/queue/io_timeout")
    write_held(lab)
    until(lambda: "Possible stuck request" in guest.run("dmesg"), "the kernel to look at what takes long", 30)
    assert lab.status()["block_device"]["replaced_connections"] == 0
    guest.run("kill -9 $(cat /sys/block/nbd0/pid)")
    lab.target.ask("release")
    lab.attach()
    guest.run("while pgrep -x dd; do sleep 0.2; done; cmp -n 4096 /run/dd /dev/nbd0 && isblk detach /dev/nbd0")
    assert lab.over()


def test_what_was_on_its_way_fails_when_the_device_is_cleared_away(lab: Lab) -> None:
    lab.attach()
    write_held(lab)
    lab.guest.run("kill -9 $(cat /sys/block/nbd0/pid); isblk detach --force /dev/nbd0; while pgrep -x dd; do sleep 0.2; done")
    assert "error writing" in lab.guest.run("cat /run/said")
    lab.target.ask("release")


def write_held(lab: Lab) -> None:
    """Have a direct write of /run/dd on its way to a target that does not answer."""
    lab.target.ask("hold")
    lab.guest.run("dd if=/dev/urandom of=/run/dd bs=4096 count=1 status=none")
    lab.guest.run("dd if=/run/dd of=/dev/nbd0 oflag=direct bs=4096 >/run/said 2>&1 &")
    until(lambda: lab.target.ask("held"), "the write to be on its way")


def test_without_a_new_daemon_requests_fail_and_the_device_can_be_cleared_away(lab: Lab) -> None:
    lab.attach("/dev/nbd0", "--dead-connection-timeout", "2")
    lab.guest.run("kill -9 $(cat /sys/block/nbd0/pid); dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 iflag=direct", code=1, seconds=30)
    lab.guest.run("isblk detach /dev/nbd0")
    assert not lab.sysfs("pid")
    until(lambda: lab.target.ask("sessions") == 0, "the target to notice")
    lab.attach()
    lab.guest.run("isblk detach /dev/nbd0")


def test_a_path_lost_in_the_middle_of_a_copy_changes_nothing(lab: Lab) -> None:
    lab.attach("/dev/nbd0", paths=2)
    assert sum(path["state"] == "up" for path in lab.status()["devices"][0]["paths"]) == 2
    lab.guest.run("dd if=/dev/urandom of=/run/dd bs=1M count=32 status=none; dd if=/run/dd of=/dev/nbd0 bs=64k oflag=direct status=none &")
    until(lambda: any(client["counters"]["writes"] > 50 for client in lab.status()["clients"]), "the copy to be under way")
    lab.target.ask("close 0")
    lab.guest.run("while pgrep -x dd; do sleep 0.2; done; cmp -n 33554432 /run/dd /dev/nbd0", seconds=100)
    assert sum(path["state"] == "up" for path in lab.status()["devices"][0]["paths"]) == 1
    lab.guest.run("isblk detach /dev/nbd0")


def test_a_connection_that_the_kernel_gave_up_is_replaced(lab: Lab) -> None:
    lab.attach("/dev/nbd0", "--timeout", "3", "--no-path-retry", "2", "--connections", "2")
    lab.target.ask("hold")
    lab.guest.run(
        "dd if=/dev/urandom of=/run/dd bs=4096 count=1 status=none; dd if=/run/dd of=/dev/nbd0 oflag=direct status=none bs=4096 &"
    )
    until(lambda: lab.status()["block_device"]["replaced_connections"], "the kernel to give up a connection", 40)
    lab.target.ask("release")
    lab.guest.run("while pgrep -x dd; do sleep 0.2; done; cmp -n 4096 /run/dd /dev/nbd0 && isblk detach /dev/nbd0")
    assert lab.over()
