"""The kernel's NBD devices by name and in sysfs, and who uses one, on trees that look like /sys and /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isblk.errors import RequestFailed, UsageError
from isblk.export import nbddevice

MOUNT = "36 29 {} / {} rw,relatime shared:1 - ext4 {} rw\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/sys with nbd0, its partition nbd0p1 and nbd1; /proc with this process alone."""
    for name, number in (("nbd0", "43:0"), ("nbd0/nbd0p1", "43:1"), ("nbd1", "43:32")):
        place = tmp_path / "sys" / "block" / name
        (place / "holders").mkdir(parents=True)
        (place / "dev").write_text(f"{number}\n")
    process(tmp_path, os.getpid(), "isblk", "mnt:[1]")
    (tmp_path / "proc" / "self").symlink_to(str(os.getpid()))
    monkeypatch.setattr(nbddevice, "_SYS", tmp_path / "sys")
    monkeypatch.setattr(nbddevice, "_PROC", tmp_path / "proc")
    return tmp_path


def process(system: Path, pid: int, name: str, namespace: str, *files: str, mounts: str = "") -> None:
    place = system / "proc" / str(pid)
    (place / "fd").mkdir(parents=True)
    (place / "ns").mkdir()
    (place / "ns" / "mnt").symlink_to(namespace)
    (place / "comm").write_text(f"{name}\n")
    (place / "mountinfo").write_text(MOUNT.format("8:1", "/", "/dev/sda1") + mounts)
    for number, file in enumerate(files):
        (place / "fd" / str(number)).symlink_to(file)


@pytest.mark.parametrize(
    ("text", "index"), [("/dev/nbd0", 0), ("/dev/nbd17", 17), ("/dev/../dev/nbd3", 3), ("any", None), ("/dev/nbd", None)]
)
def test_a_device_has_an_index(text: str, index: int | None) -> None:
    assert nbddevice.parse(text) == index


def test_a_link_to_a_device_is_that_device(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to("/dev/nbd2")
    assert nbddevice.parse(str(tmp_path / "disk")) == 2
    assert nbddevice.is_device(str(tmp_path / "disk")) and not nbddevice.is_device(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "nbd0", "/dev/sda", "/dev/nbd0p1", "/dev/nbdx", "/dev/nbd-1", "/dev/nbd٣", "/dev/nbd0/", "ANY", "/dev/null"]
)
def test_everything_else_is_none(text: str) -> None:
    if text == "/dev/nbd0/":  # realpath takes the slash away
        assert nbddevice.parse(text) == 0
        return
    with pytest.raises(UsageError, match="is no NBD device: it looks like /dev/nbd0, or `any`"):
        nbddevice.parse(text)


def test_sysfs_says_who_connected_it_and_what_it_shows(system: Path) -> None:
    assert nbddevice.owner(0) is None and nbddevice.backend(0) == ""
    (system / "sys/block/nbd0/pid").write_text("42\n")
    (system / "sys/block/nbd0/backend").write_text("isblk iqn.x naa.1\n")
    assert nbddevice.owner(0) == 42 and nbddevice.backend(0) == "isblk iqn.x naa.1"
    assert nbddevice.owner(9) is None


def test_a_device_that_nobody_uses(system: Path) -> None:
    process(system, 7, "dd", "mnt:[2]", "/dev/nbd1", "/dev/null", mounts=MOUNT.format("43:32", "/other", "/dev/nbd1"))
    assert nbddevice.users(0) == []


def test_mounts_of_every_namespace_count(system: Path) -> None:
    process(system, 7, "a", "mnt:[2]", mounts=MOUNT.format("43:0", "/far\\040away", "/dev/nbd0"))
    process(system, 8, "b", "mnt:[2]", mounts=MOUNT.format("43:0", "/far\\040away", "/dev/nbd0"))
    process(system, 9, "c", "mnt:[3]", mounts=MOUNT.format("0:99", "/btrfs", "/dev/nbd0p1") + MOUNT.format("43:1", "/part", "/dev/root"))
    assert sorted(nbddevice.users(0)) == ["mounted at /btrfs", "mounted at /far away", "mounted at /part"]


def test_open_files_swap_loop_devices_and_what_is_built_on_it_count(system: Path) -> None:
    process(system, 7, "dd", "mnt:[1]", "/dev/null", "/dev/nbd0")
    process(system, 8, "parted", "mnt:[1]", "/dev/nbd0p1")
    (system / "proc" / "swaps").write_text("Filename Type Size Used Priority\n/dev/nbd0p1 partition 1 0 -2\n")
    (system / "sys/block/loop3/loop").mkdir(parents=True)
    (system / "sys/block/loop3/loop/backing_file").write_text("/dev/nbd0\n")
    (system / "sys/block/nbd0/nbd0p1/holders/dm-4").mkdir()
    (system / "sys/block/nbd0/holders/md0").mkdir()
    assert sorted(nbddevice.users(0)) == [
        "a part of dm-4",
        "a part of md0",
        "behind /dev/loop3",
        "open in process 7 (dd)",
        "open in process 8 (parted)",
        "used as swap",
    ]


def test_this_process_is_no_user(system: Path) -> None:
    (system / "proc" / str(os.getpid()) / "fd" / "5").symlink_to("/dev/nbd0")
    assert nbddevice.users(0) == []


def test_what_cannot_be_written_back_is_said() -> None:
    with pytest.raises(RequestFailed, match="what was written to /dev/nbd999999 could not be written back: No such file"):
        nbddevice.write_back(999999)
