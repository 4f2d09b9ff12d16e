"""What the file is for: file systems made, checked, loop-mounted, filled and compared on it; random writes verified by fio."""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

from support.commands import Commands
from support.mounts import Mounts
from support.trees import check, compare, fill, fio_verify


def test_ext4_keeps_a_tree_through_umount_and_a_crash_of_the_target(root: None, commands: Commands, mounts: Mounts, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    check("mkfs.ext4", "-q", place)
    mounts.loop_mount(place, tmp_path / "mnt")
    tree = fill(tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    commands.umount(place)
    commands.target.ask("crash")
    commands.mount(place, "-o", "ro")
    check("fsck.ext4", "-fn", place)
    mounts.loop_mount(place, tmp_path / "mnt", "ro")
    compare(tree, tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    commands.umount(place)


def test_debugfs_needs_no_root(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    check("mkfs.ext4", "-q", place)
    here = Path(__file__)
    check("debugfs", "-w", "-R", f"write {here} copied", place)
    check("debugfs", "-R", f"dump copied {tmp_path / 'back'}", place)
    assert filecmp.cmp(here, tmp_path / "back", shallow=False)
    commands.umount(place)


def test_random_writes_read_back_as_they_were_written(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk", "--digest", "both")
    fio_verify(place, "32m")
    commands.umount(place)


def test_dd_reads_and_writes_past_no_end(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    for flags in ("conv=notrunc", "oflag=direct conv=notrunc"):
        done = subprocess.run(
            ["dd", "if=/dev/zero", f"of={place}", "bs=1M", *flags.split()], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1 and "No space left on device" in done.stderr
        assert "67108864 bytes" in done.stderr
    commands.umount(place)
