"""Lines of /etc/fstab: mount -a, mount, umount and findmnt as they are typed, in a mount namespace with an fstab of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import get
from support.mounts import Mounts
from support.namespaces import Namespace
from support.processes import Processes, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import until

MANUAL = (Path(__file__).parents[2] / "man" / "mount.isblk.8").read_text()
MANUAL_LINES = [line for line in MANUAL.splitlines() if line.endswith("  0 0")]
"""The two that the manual page shows first: a disk, and the file system on it."""
WORDS = "what stands on the disk\n" * 5000


@pytest.fixture
def target(image: Path) -> Iterator[TargetProcess]:
    """Two disks, the first with a volatile write cache over `image`."""
    with target_process([disk(0, 64 * MIB, path=str(image)), disk(1, 8 * MIB)]) as running:
        yield running


@pytest.fixture
def place(root: None, fuse: None, tmp_path: Path, mounts: Mounts) -> Path:
    """Where this namespace keeps its things; loop devices below it are undone with the test."""
    (tmp_path / "ns").mkdir()
    return tmp_path / "ns"


@pytest.fixture
def there(place: Path, processes: Processes) -> Iterator[Namespace]:
    """A namespace whose mount(8) knows isblk."""
    with Namespace(processes, place) as namespace:
        namespace.run(*isblk("install-helper"))
        yield namespace


def line(target: TargetProcess, where: Path, options: str) -> str:
    return f"{target.name} {where} isblk portal={target.portal},{options} 0 0"


def shown(there: Namespace, where: Path) -> list[str]:
    """What findmnt says is mounted at a place: source, type and options."""
    return there.run("findmnt", "--noheadings", "--raw", "--output", "SOURCE,FSTYPE,OPTIONS", where, code=None).stdout.split()


def test_a_line_and_the_ext4_behind_it_come_and_go(there: Namespace, target: TargetProcess, image: Path, place: Path) -> None:
    lun, data = place / "lun0", place / "data"
    lun.touch()
    data.mkdir()
    disk_line, file_system_line = (
        text.replace("10.0.0.5", f"{target.portal},lun=0")
        .replace("iqn.2001-05.com.example:disks", target.name)
        .replace("/mnt/lun0", str(lun))
        .replace("/srv/data", str(data))
        for text in MANUAL_LINES
    )
    there.fstab(disk_line)
    there.run("mount", "-a")
    there.run("mkfs.ext4", "-q", lun)
    there.run("umount", lun)
    assert target.ask("sessions") == 0, "umount returned before the logout"
    target.ask("crash")
    assert get(image, 1080, 2) == b"\x53\xef", "umount returned before everything was written back"

    there.fstab(disk_line, file_system_line)
    there.run("mount", "-a")
    there.run("cp", words(place), data)
    assert shown(there, data)[1] == "ext4"
    assert "is in use" in there.run("umount", lun, code=1).stderr
    assert "is in use" in there.run("umount", "-r", lun, code=1).stderr, "what somebody writes to cannot be made read-only"
    there.run("sh", "-c", f"umount {data} && umount {lun}")  # at once: the loop device in between goes a moment later
    assert target.ask("sessions") == 0
    target.ask("crash")

    there.run("mount", "-a")
    assert there.run("cat", data / "words").stdout == WORDS
    there.run("umount", data, lun)
    assert target.ask("sessions") == 0
    assert lun.exists(), "a mountpoint that was there stays there"


def words(place: Path) -> Path:
    (place / "words").write_text(WORDS)
    return place / "words"


def test_a_mountpoint_may_be_a_file_a_directory_or_not_there_yet(there: Namespace, target: TargetProcess, place: Path) -> None:
    file, directory, missing = place / "file", place / "directory", place / "missing"
    file.touch()
    directory.mkdir()
    url = f"iscsi://{target.portal}/{target.name}/1"
    there.fstab(
        line(target, file, "lun=0,noatime,noexec,nodev"),
        line(target, directory, "defaults,x-ours=1"),
        f"{url} {missing} isblk ro 0 0",
    )
    there.run("mount", "-a")
    assert there.run("mount", "-a").stderr == "", "what is mounted is left alone"
    assert shown(there, file)[:2] == [target.name, "fuse.isblk"]
    assert {"rw", "noatime", "noexec"} <= set(shown(there, file)[2].split(","))
    assert shown(there, missing)[:2] == [url, "fuse.isblk"]
    assert "ro" in shown(there, missing)[2].split(",")
    sizes = there.run("stat", "-c", "%s", file, directory / "lun0", directory / "lun1", missing).stdout.split()
    assert sizes == [str(64 * MIB), str(64 * MIB), str(8 * MIB), str(8 * MIB)]
    there.run("sh", "-c", f"exec 3<{file}; umount -r {file}")
    assert "ro" in shown(there, file)[2].split(","), "what is read can still be made read-only"
    there.run("umount", url)
    assert not missing.exists()
    there.run("umount", "-v", directory)
    there.run("umount", "-l", file)
    until(lambda: target.ask("sessions") == 0, "the lazy unmount to come to its end")
    there.run("mount", target.name)  # the first line of that source
    assert shown(there, file)[0] == target.name
    there.run("umount", "-f", file)
    assert target.ask("sessions") == 0


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ("prtal=10.0.0.5", 1, "there is no option 'prtal': is portal meant?"),
        ("remount,ro", 1, "the option remount is not for isblk"),
        ("lun=7", 32, "7"),
        ("portal=127.0.0.1:1", 32, "cannot be reached"),
        ("portal=127.0.0.1:1,nofail", 0, "cannot be reached"),
        ("lun=7,nofail", 0, "7"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_the_exit_code_of_mount(
    there: Namespace, target: TargetProcess, place: Path, options: str, code: int, sentence: str
) -> None:
    portal = "" if "portal=" in options else f"portal={target.portal},"
    said = there.run("mount", "-t", "isblk", "-o", portal + options, target.name, place / "lun0", code=code).stderr
    assert sentence in said and said.startswith("isblk: ") and said.count("\n") == 1
    assert not (place / "lun0").exists() and not there.mounted()[1:]


def test_one_line_that_fails_does_not_stop_the_others(there: Namespace, target: TargetProcess, place: Path) -> None:
    there.fstab(line(target, place / "bad", "polcy=x"), line(target, place / "good", "lun=0"))
    assert "is policy meant?" in there.run("mount", "-a", code=64).stderr
    assert shown(there, place / "good") and not shown(there, place / "bad")
    there.run("umount", place / "good")


def test_a_fake_mount_checks_the_line(there: Namespace, target: TargetProcess, place: Path) -> None:
    there.fstab(line(target, place / "lun0", "lun=0"))
    there.run("mount", "-f", "-v", place / "lun0")
    assert "fenc" in there.run("mount", "-f", "-o", "fenc=fast", place / "lun0", code=1).stderr
    assert not shown(there, place / "lun0")
    assert target.ask("sessions") == 0


def test_umount_tells_what_could_not_be_written_back(there: Namespace, target: TargetProcess, place: Path) -> None:
    there.fstab(line(target, place / "lun0", "lun=0"))
    there.run("mount", place / "lun0")
    there.run("dd", "if=/dev/urandom", f"of={place / 'lun0'}", "bs=4096", "count=1", "conv=notrunc")
    target.kill()
    assert "written data may be lost" in there.run("umount", place / "lun0", code=32).stderr
    assert not shown(there, place / "lun0")


def test_another_namespace_can_be_named(there: Namespace, target: TargetProcess, place: Path, processes: Processes) -> None:
    helper = Path(isblk()[0]).with_name("mount.isblk")
    options = f"portal={target.portal},lun=0"
    processes.run([str(helper), target.name, str(place / "lun0"), "-N", there.path, "-o", options])
    assert shown(there, place / "lun0")[:2] == [target.name, "fuse.isblk"]
    assert str(place / "lun0") not in Path("/proc/self/mountinfo").read_text()
    processes.run([str(helper.with_name("umount.fuse.isblk")), str(place / "lun0"), "-N", there.path])
    assert not shown(there, place / "lun0")
    assert target.ask("sessions") == 0


def test_a_mount_whose_daemon_has_died_is_unmounted_as_well(there: Namespace, target: TargetProcess, place: Path) -> None:
    there.fstab(line(target, place / "lun0", "lun=0"))
    there.run("mount", place / "lun0")
    (daemon,) = (int(path.stem) for path in (place.parent / "run").glob("*.sock"))
    os.kill(daemon, signal.SIGKILL)
    until(lambda: target.ask("sessions") == 0, "the daemon to be gone")
    there.run("umount", place / "lun0", code=None)  # its own watcher may have been faster
    assert not shown(there, place / "lun0")
