"""What people put on a disk, on the file that the direct FUSE engine shows: file systems, qemu, sqlite, git; also while paths fail."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from isblk.scsi.data import Provisioning
from isblk.target.config import PortalConfig
from support.commands import Commands
from support.exerciser import Exerciser
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.tgt import Tgtd
from support.trees import check, compare, fill
from support.waiting import until

SIZE = 512 * MIB
FILE_SYSTEMS = {
    "ext4": (("mkfs.ext4", "-q"), ("e2fsck", "-fn")),
    "xfs": (("mkfs.xfs", "-q", "-f"), ("xfs_repair", "-n", "-f")),
    "btrfs": (("mkfs.btrfs", "-q", "-f"), ("btrfs", "check", "--readonly", "--force")),
}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TargetProcess]:
    """A thin disk with a volatile write cache behind two portals of one group."""
    portals = (PortalConfig(port=0), PortalConfig(port=0))
    with target_process([disk(0, SIZE, path=str(tmp_path / "disk.img"))], portals=portals) as running:
        yield running


@pytest.fixture
def commands(fuse: None, target: TargetProcess, processes: Processes, mounts: Mounts) -> Commands:
    found = Commands(processes, target)
    found.mount_options = ["--fuse-engine", "direct"]
    return found


def known(name: str) -> None:
    """btrfs is a module that not every kernel has; its tools work on the file without."""
    if (
        name not in Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", name], check=False, capture_output=True).returncode
    ):
        pytest.skip(f"this kernel cannot mount {name}")


@pytest.mark.deadline(150)
@pytest.mark.parametrize("caching", ["rw", "direct_io", "writeback"])
@pytest.mark.parametrize("name", list(FILE_SYSTEMS))
def test_a_file_system_is_made_and_checked(commands: Commands, tmp_path: Path, name: str, caching: str) -> None:
    make, verify = FILE_SYSTEMS[name]
    place = commands.mount(tmp_path / "disk", "-o", caching)
    check(*make, place)
    check(*verify, place)
    commands.umount(place)
    commands.target.ask("crash")
    commands.mount(place, "-o", "ro")
    check(*verify, place)
    commands.umount(place)


@pytest.mark.deadline(150)
@pytest.mark.parametrize("direct_io", ["off", "on"])
@pytest.mark.parametrize("name", list(FILE_SYSTEMS))
def test_a_tree_on_a_loop_mount_survives_a_crash_of_the_target(
    commands: Commands, root: None, tmp_path: Path, name: str, direct_io: str
) -> None:
    known(name)
    make, verify = FILE_SYSTEMS[name]
    place, tree = commands.mount(tmp_path / "disk"), tmp_path / "mnt"
    check(*make, place)
    tree.mkdir()
    device = check("losetup", "--find", "--show", f"--direct-io={direct_io}", place).strip()
    assert check("losetup", "--noheadings", "--output", "DIO", device).strip() == str(int(direct_io == "on"))
    check("mount", device, tree)
    like = fill(tree / "tree")
    check("umount", tree)
    check("losetup", "-d", device)
    commands.umount(place)
    commands.target.ask("crash")
    commands.mount(place)
    check(*verify, place)
    check("mount", "-o", "loop,ro", place, tree)
    compare(like, tree / "tree")
    check("umount", tree)
    commands.umount(place)


def test_discards_of_a_loop_mount_reach_the_medium(commands: Commands, root: None, tmp_path: Path) -> None:
    """mkfs and fstrim: blocks of the file behind the target's disk."""
    place, image, tree = commands.mount(tmp_path / "disk"), tmp_path / "disk.img", tmp_path / "mnt"
    check("dd", "if=/dev/urandom", f"of={place}", "bs=1M", "count=128", "conv=notrunc,fsync", "status=none")
    full = image.stat().st_blocks * 512
    assert full >= 128 * MIB
    check("mkfs.ext4", "-q", place)
    check("sync", place)
    made = image.stat().st_blocks * 512
    assert made < full - 100 * MIB, "mkfs discards what was there"
    tree.mkdir()
    check("mount", "-o", "loop", place, tree)
    (tree / "file").write_bytes(random.Random(1).randbytes(64 * MIB))
    check("sync", "-f", tree)
    (tree / "file").unlink()

    def is_given_back() -> bool:
        check("sync", "-f", tree)
        check("fstrim", tree)
        check("sync", place)
        return image.stat().st_blocks * 512 < made + 24 * MIB

    until(is_given_back, "the file's blocks to be given back")
    check("umount", tree)
    check("e2fsck", "-fn", place)
    commands.umount(place)


def walk(place: Path) -> list[tuple[int, int]]:
    """The stretches of data, by SEEK_DATA and SEEK_HOLE, as filefrag and cp walk."""
    found = []
    with place.open("rb") as file:
        at, end = 0, os.lseek(file.fileno(), 0, os.SEEK_END)
        while at < end:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            found.append((data, at))
    return found


def test_holes_are_those_of_get_lba_status(commands: Commands, tmp_path: Path) -> None:
    """The same disk asked over NBD, whose base:allocation is GET LBA STATUS itself."""
    place = commands.mount(tmp_path / "disk")
    chance = random.Random(5)
    with place.open("r+b", buffering=0) as file:
        for _ in range(40):
            os.pwrite(file.fileno(), chance.randbytes(chance.randrange(1, 70_000)), chance.randrange(SIZE - 70_000))
        os.fsync(file.fileno())
    found = walk(place)
    commands.run("nbd", *commands.there, "--socket", tmp_path / "socket")
    mapped = json.loads(check("nbdinfo", "--json", "--map", f"nbd+unix:///?socket={tmp_path / 'socket'}"))
    commands.run("umount", tmp_path / "socket")
    data: list[tuple[int, int]] = []
    for extent in mapped:
        if not extent["type"] & Provisioning.DEALLOCATED:
            if data and data[-1][1] == extent["offset"]:
                data[-1] = (data[-1][0], extent["offset"] + extent["length"])
            else:
                data.append((extent["offset"], extent["offset"] + extent["length"]))
    assert found == data and len(found) > 10
    check("cp", "--sparse=always", place, tmp_path / "copy")
    check("cmp", place, tmp_path / "copy")
    commands.umount(place)


def test_tgtd_knows_holes_too(fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path, tgt: Tgtd) -> None:
    name = "iqn.2026-11.test.isblk.tgt:fuse"
    number = tgt.target(name)
    tgt.disk(number, 1, 64 * MIB)
    tgt.unit_params(number, 1, "thin_provisioning=1")
    place = tmp_path / "disk"
    processes.run(isblk("mount", "-p", tgt.portal, name, place, "--fuse-engine", "direct"))
    with place.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 2 * MIB, 8 * MIB)
        os.fsync(file.fileno())
        assert walk(place) == [(8 * MIB, 10 * MIB)]
        check("fallocate", "--punch-hole", "--offset", "9MiB", "--length", "512KiB", place)
        assert os.pread(file.fileno(), 2 * MIB, 8 * MIB) == b"x" * MIB + bytes(MIB // 2) + b"x" * (MIB // 2)
        check("fallocate", "--zero-range", "--offset", "8MiB", "--length", "512", place)
        assert os.pread(file.fileno(), 1024, 8 * MIB) == bytes(512) + b"x" * 512
    processes.run(isblk("umount", place))


def test_qemu_opens_the_file_in_each_of_its_ways(commands: Commands, tmp_path: Path) -> None:
    place, image = commands.mount(tmp_path / "disk"), tmp_path / "image"
    image.write_bytes(os.urandom(5 * MIB) + bytes(20 * MIB) + os.urandom(MIB))
    for cache, aio in (("none", "native"), ("none", "io_uring"), ("writethrough", "threads"), ("writeback", "threads")):
        check("qemu-img", "convert", "-n", "-t", cache, "-f", "raw", "-O", "raw", image, place)
        check("qemu-img", "compare", "-f", "raw", "-F", "raw", place, image)
        script = ["write -P 7 1M 64k", "write -z 2M 1M", "discard 3M 1M", "flush", "read -P 7 1M 64k", "read -P 0 2M 1M"]
        words = check("qemu-io", "-f", "raw", "-t", cache, "-i", aio, *(each for line in script for each in ("-c", line)), place)
        assert "failed" not in words
    mapped = json.loads(check("qemu-img", "map", "--output=json", "-f", "raw", place))
    assert any(not each["data"] and each["zero"] for each in mapped)
    commands.umount(place)


# ------------------------------------------------------------------------------------------------------------------ while paths fail


def over_both(commands: Commands, place: Path) -> Path:
    one, two = commands.target.portals
    log = place.with_suffix(".log")
    commands.run("mount", "-p", one, "-p", two, commands.target.name, place, "--log-file", log, *commands.mount_options)
    until(lambda: all(each["state"] == "up" for each in commands.status()[0]["sessions"]), "both paths")
    return place


@pytest.mark.parametrize("caching", ["rw", "direct_io", "writeback"])
def test_the_file_agrees_with_itself_while_paths_and_caches_are_lost(
    fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path, caching: str
) -> None:
    """Large writes are kept for a target that loses its cache in the very memory they arrived in; what is done again must be what was."""
    size = 4 * MIB + 512
    portals = (PortalConfig(port=0), PortalConfig(port=0))
    with target_process([disk(0, size, path=str(tmp_path / "disk.img"))], portals=portals) as running:
        commands = Commands(processes, running)
        commands.mount_options = ["--fuse-engine", "direct", "-o", caching]
        place = over_both(commands, tmp_path / "disk")
        harm, is_over = {"drop": 0, "crash": 0}, threading.Event()

        def do_harm() -> None:
            chance = random.Random(6)
            while not is_over.wait(chance.uniform(0.1, 0.4)):
                what = chance.choice(list(harm))
                running.ask(what)
                harm[what] += 1

        harming = threading.Thread(target=do_harm)
        harming.start()
        try:
            with Exerciser(place, bytes(size), seed=7, to_the_end=caching != "writeback") as work:
                until(lambda: work.run(100) is None and min(harm.values()) > 5, "enough to have gone wrong", 40)
        finally:
            is_over.set()
            harming.join()
        commands.umount(place)
        running.ask("crash")
        assert (tmp_path / "disk.img").read_bytes() == work.content


@pytest.mark.deadline(150)
def test_a_database_and_a_repository_survive_the_loss_of_paths(commands: Commands, root: None, mounts: Mounts, tmp_path: Path) -> None:
    """sqlite commits and git commits on ext4 on a loop device, while connections are cut again and again; then both are checked."""
    place, tree = over_both(commands, tmp_path / "disk"), tmp_path / "mnt"
    assert os.getxattr(place, "user.isblk.paths").count(b" up") == 2
    check("mkfs.ext4", "-q", place)
    mounts.loop_mount(place, tree)
    failures: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    def keep_books() -> None:
        with sqlite3.connect(tree / "books.db", isolation_level=None) as books:
            books.execute("create table entries (number integer primary key, text text)")
            for number in range(150):
                books.execute("insert into entries values (?, ?)", (number, "x" * number))
        books.close()

    def keep_history() -> None:
        repository = tree / "repository"
        git = ["git", "-C", repository, "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "core.fsync=all"]
        check("git", "init", "-q", repository)
        for number in range(12):
            (repository / f"file{number}").write_bytes(random.Random(number).randbytes(50_000))
            check(*git, "add", ".", seconds=100)
            check(*git, "commit", "-qm", str(number), seconds=100)

    workers = [threading.Thread(target=guarded, args=(work,)) for work in (keep_books, keep_history)]
    for worker in workers:
        worker.start()
    drops = 0
    while any(worker.is_alive() for worker in workers):
        commands.target.ask("drop")
        drops += 1
        for worker in workers:
            worker.join(0.7)
    assert not failures and drops > 2
    with sqlite3.connect(tree / "books.db") as books:
        assert books.execute("select count(*), sum(length(text)) from entries").fetchone() == (150, sum(range(150)))
        assert books.execute("pragma integrity_check").fetchone() == ("ok",)
    books.close()
    check("git", "-C", tree / "repository", "fsck", "--strict")
    assert check("git", "-C", tree / "repository", "rev-list", "--count", "HEAD").strip() == "12"
    mounts.unmount(tree)
    check("e2fsck", "-fn", place)
    commands.umount(place)
