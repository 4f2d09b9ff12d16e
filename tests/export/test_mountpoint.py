"""mountpoint.py: each mountpoint that cannot be used ends in one sentence with its remedy, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from isblk.errors import ExitCode, UsageError
from isblk.export import mountpoint
from isblk.export.mountpoint import check_machine, device_number, is_mounted, prepare, unmount

pytestmark = pytest.mark.usefixtures("fuse")


def refusal(path: Path, directory: bool = False) -> str:
    with pytest.raises(UsageError) as caught:
        prepare(path, directory)
    assert caught.value.exit_code is ExitCode.USAGE
    return str(caught.value)


def test_a_file_that_is_not_there_is_made_and_removed_again(tmp_path: Path) -> None:
    point = prepare(tmp_path / "lun0", directory=False)
    assert point.path.stat().st_mode & 0o777 == 0o600
    point.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_made_and_removed_again(tmp_path: Path) -> None:
    point = prepare(tmp_path / "disks", directory=True)
    assert point.path.stat().st_mode & 0o777 == 0o700
    point.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "lun0").touch()
    point = prepare(tmp_path / "lun0", directory=False)
    assert not point.made
    point.remove()
    assert (tmp_path / "lun0").exists()


def test_what_was_put_there_since_stays(tmp_path: Path) -> None:
    file, directory = prepare(tmp_path / "lun0", directory=False), prepare(tmp_path / "disks", directory=True)
    file.path.write_text("mine")
    (directory.path / "mine").touch()
    file.remove()
    directory.remove()
    assert file.path.read_text() == "mine"
    assert (directory.path / "mine").exists()


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    point = prepare(tmp_path / "lun0", directory=False)
    point.remove()
    point.remove()


def test_a_link_to_a_file_mounts_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert prepare(tmp_path / "link", directory=False).path == (tmp_path / "file").resolve()


def test_each_unusable_mountpoint_has_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert "neither a file nor a directory" in refusal(tmp_path / "socket")
    assert f"{tmp_path / 'no'} is not there" in refusal(tmp_path / "no" / "lun0")
    assert "below a file" in refusal(tmp_path / "file" / "lun0")
    assert "symbolic link to nowhere" in refusal(tmp_path / "dangling")
    assert "is a directory" in refusal(tmp_path / "dir")
    assert "is not a directory" in refusal(tmp_path / "file", directory=True)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "dir", "dangling", "socket"}


def test_a_mountpoint_in_use_is_refused() -> None:
    assert "mountpoint already" in refusal(Path("/proc"), directory=True)


def test_mounts_are_known_without_touching_them() -> None:
    assert is_mounted(Path("/proc"))
    assert device_number(Path("/proc")) == (os.major(os.stat("/proc").st_dev), os.minor(os.stat("/proc").st_dev))
    assert not is_mounted(Path("/proc/self"))


def test_names_with_blanks_are_unescaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(b"42 27 0:39 / /mnt/a\\040b\\134c rw - fuse.isblk x rw\n43 27 0:40 / /mnt/a\\040b\\134c rw - fuse.isblk x rw\n")
    monkeypatch.setattr(mountpoint, "MOUNTINFO", table)
    assert device_number(Path("/mnt/a b\\c")) == (0, 40)
    assert device_number(Path("/mnt/a")) is None


def test_unmounting_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is mounted at"):
        unmount(tmp_path / "lun0")


def test_a_machine_without_fuse_is_told_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    for uid in (0, 1000):
        with pytest.raises(UsageError, match="modprobe fuse"):
            check_machine(allow_other=False, uid=uid)


def test_an_ordinary_user_needs_fusermount3_and_root_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_machine(allow_other=True, uid=0)
    with pytest.raises(UsageError, match="package fuse3"):
        check_machine(allow_other=False, uid=1000)


def test_an_ordinary_user_needs_to_open_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != mountpoint.FUSE_DEVICE)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    check_machine(allow_other=False, uid=0)
    with pytest.raises(UsageError, match="cannot be opened by this user"):
        check_machine(allow_other=False, uid=1000)


@pytest.mark.parametrize("text, allowed", [("# user_allow_other\n", False), ("user_allow_other\n", True), (None, False)])
def test_allow_other_needs_the_administrators_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, allowed: bool
) -> None:
    (tmp_path / "fusermount3").write_text("#!/bin/sh\n")
    (tmp_path / "fusermount3").chmod(0o755)
    (tmp_path / "fuse").touch()
    if text is not None:
        (tmp_path / "fuse.conf").write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    monkeypatch.setattr(mountpoint, "FUSE_CONF", tmp_path / "fuse.conf")
    check_machine(allow_other=False, uid=1000)
    if allowed:
        check_machine(allow_other=True, uid=1000)
    else:
        with pytest.raises(UsageError, match="user_allow_other"):
            check_machine(allow_other=True, uid=1000)


@pytest.mark.parametrize(
    ("file", "autoclear", "is_mounted", "waits"),
    [
        ("/mnt/lun0", "1", False, True),
        ("/mnt/disks/lun1", "1", False, True),
        ("/mnt/lun0", "1", True, False),
        ("/mnt/lun0", "0", False, False),
        ("/mnt/lun01", "1", False, False),
        ("/", "1", False, False),
    ],
)
def test_a_loop_device_that_is_about_to_let_go_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, autoclear: str, is_mounted: bool, waits: bool
) -> None:
    loop = tmp_path / "block" / "loop3" / "loop"
    loop.mkdir(parents=True)
    (tmp_path / "block" / "sda").mkdir()
    (tmp_path / "block" / "loop4" / "loop").mkdir(parents=True)  # has just gone
    (loop / "backing_file").write_text(f"{file}\n")
    (loop / "autoclear").write_text(f"{autoclear}\n")
    (loop.parent / "dev").write_text("7:3\n")
    (tmp_path / "mountinfo").write_text("22 1 0:5 / /mnt/lun0 rw - fuse.isblk x rw\n" + "23 1 7:3 / /srv rw - ext4 x rw\n" * is_mounted)
    monkeypatch.setattr(mountpoint, "BLOCK_DEVICES", tmp_path / "block")
    monkeypatch.setattr(mountpoint, "MOUNTINFO", tmp_path / "mountinfo")
    assert [mountpoint._has_ending_loop(Path(place)) for place in ("/mnt/lun0", "/mnt/disks")] == [
        waits and file == "/mnt/lun0",
        waits and file != "/mnt/lun0",
    ]


@pytest.mark.parametrize(("number", "cleared"), [(errno.ENOTCONN, True), (errno.ECONNABORTED, True), (errno.ENOENT, False), (None, False)])
def test_only_a_dead_mount_is_cleared_away(monkeypatch: pytest.MonkeyPatch, number: int | None, cleared: bool) -> None:
    def statvfs(_path: str) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(mountpoint, "unmount", lambda path, lazy: asked.append((path, lazy)))
    mountpoint.clear_dead("/mnt/lun0")
    monkeypatch.undo()
    assert asked == ([("/mnt/lun0", True)] if cleared else [])
