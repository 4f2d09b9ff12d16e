"""fusekernel.py with the real kernel: what the direct engine knows and pyfuse3 does not; test_fuse.py has what both do."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from support import fusedaemon
from support.exerciser import Exerciser
from support.fusedaemon import GRANULE, Plan, mounted
from support.mounts import Mounts
from support.waiting import until

MIB = 1 << 20
PUNCH, ZERO, KEEP = 2, 16, 1
BLKGETSIZE64 = 0x80081272
pytestmark = pytest.mark.usefixtures("fuse")
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lun0")


@pytest.fixture(params=["direct", "direct_io", "writeback"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """For tests of each way of caching."""
    monkeypatch.setattr(fusedaemon, "variant", request.param)
    return str(request.param)


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# ----------------------------------------------------------------------------------------------------------------- ways of caching


def test_a_shared_mapping_is_written_through(place: str, variant: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place) as descriptor, mmap.mmap(descriptor, 0) as view:
            view[70_000:70_006] = b"mapped"
            view.flush()
            with opened(place, os.O_RDONLY | os.O_DIRECT) as direct, closing(mmap.mmap(-1, 8192)) as buffer:
                os.preadv(direct, [buffer], 69_632)
                assert buffer[368:374] == b"mapped"
        assert mount.unmount()["disks"]["0"]["WRITE"] >= 1


def test_random_work_of_fio_is_verified(place: str, variant: str, tmp_path: Path) -> None:
    """Every engine that people use, each block read back and compared."""
    with mounted(Plan(place, {0: 64 * MIB})) as mount:
        for engine, direct in (("libaio", 1), ("io_uring", 1), ("io_uring", 0), ("psync", 0), ("psync", 1), ("mmap", 0)):
            job = [f"--name={engine}{direct}", f"--filename={place}", "--rw=randwrite", "--bs=4k", "--size=8m", f"--ioengine={engine}"]
            job += [
                f"--direct={direct}",
                "--iodepth=16",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--fallocate=none",
                f"--aux-path={tmp_path}",
            ]
            run("fio", *job)
        mount.unmount()


@pytest.mark.parametrize("zero_unmaps", [True, False])
def test_every_way_to_use_the_file_agrees_with_every_other(place: str, variant: str, zero_unmaps: bool) -> None:
    size = 3 * MIB + 1536
    with mounted(Plan(place, {0: size}, can_trim=True, zero_unmaps=zero_unmaps)) as mount:
        with Exerciser(Path(place), bytes(size), seed=20261126, to_the_end=variant != "writeback") as work:
            work.run(1500)
            assert min(work.done.values()) > 50
            assert (work.holes > 0) is (variant != "writeback"), "with a write-back cache everything is data"
        mount.unmount()


def test_the_page_cache_is_used_or_not(place: str, variant: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(50):
                os.pread(descriptor, 4096, 0)
                os.pwrite(descriptor, b"x" * 512, 8192)
        seen = mount.unmount()["disks"]["0"]
    if variant == "direct_io":
        assert (seen["READ"], seen["WRITE"]) == (50, 50)
    elif variant == "direct":
        assert seen["READ"] < 10 and seen["WRITE"] == 50
    else:
        assert seen["READ"] < 10 and seen["WRITE"] < 10


def test_what_others_wrote_is_seen_by_whoever_opens_the_file(place: str) -> None:
    """The disk is grown and shrunk behind the kernel's back, which takes the bytes of its end with it: another initiator's write."""
    with mounted(Plan(place, {0: MIB}, resize_to=4096)) as mount:
        with opened(place) as descriptor:
            os.pwrite(descriptor, b"x" * 8192, 0)
            assert os.pread(descriptor, 4096, 4096) == b"x" * 4096
            mount.process.send_signal(signal.SIGUSR2)
            until(lambda: os.stat(place).st_size == 4096, "the size to be seen")
            with opened(place) as another:
                assert os.pread(another, 8192, 0) == b"x" * 4096
        mount.unmount()


def test_a_write_back_cache_tells_its_errors_at_fsync(place: str) -> None:
    with mounted(Plan(place, {0: MIB}, fail_from=65536, caching="writeback")) as mount:
        with opened(place) as descriptor:
            assert os.pwrite(descriptor, b"x" * 4096, 131072) == 4096
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                os.fsync(descriptor)
            os.fsync(descriptor)
        mount.unmount()


def test_a_write_back_cache_is_written_back_by_every_way_out(place: str) -> None:
    for end in ("unmount", "sigterm"):
        with mounted(Plan(place, {0: 8 * MIB}, caching="writeback")) as mount:
            with opened(place) as descriptor:
                os.pwrite(descriptor, b"x" * 4 * MIB, 0)
            if end == "unmount":
                seen = mount.unmount()
            else:
                mount.process.send_signal(signal.SIGTERM)
                seen = mount.finish()
        assert seen["counters"]["bytes_written"] == 4 * MIB, end


def test_sigterm_writes_back_what_a_file_that_stays_open_has_in_the_cache(place: str) -> None:
    with mounted(Plan(place, {0: 8 * MIB}, caching="writeback")) as mount:
        descriptor = os.open(place, os.O_RDWR)
        try:
            os.pwrite(descriptor, b"x" * MIB, 0)
            mount.process.send_signal(signal.SIGTERM)
            assert mount.finish()["counters"]["bytes_written"] == MIB
        finally:
            os.close(descriptor)


def test_an_asynchronous_direct_write_with_o_dsync_is_durable(place: str, tmp_path: Path) -> None:
    """No FSYNC follows it, with the page cache neither: without FUA it would be acknowledged while the target can still lose it."""
    with mounted(Plan(place, {0: MIB})) as mount:
        job = ["--name=t", f"--filename={place}", "--rw=write", "--bs=4k", "--size=64k", "--direct=1", "--sync=dsync", "--fallocate=none"]
        run("fio", *job, "--ioengine=libaio", "--iodepth=4", f"--aux-path={tmp_path}")
        seen = mount.unmount()["disks"]["0"]
    assert (seen["WRITE"], seen["FUA"]) == (16, 16)


def test_a_single_write_can_ask_for_durability(place: str) -> None:
    """RWF_DSYNC."""
    with mounted(Plan(place, {0: MIB}, caching="direct_io")) as mount:
        with opened(place) as descriptor:
            os.pwritev(descriptor, [b"x" * 4096], 0, os.RWF_DSYNC)
            os.pwritev(descriptor, [b"x" * 4096], 0)
        assert mount.unmount()["disks"]["0"]["FUA"] == 1


@pytest.mark.parametrize("caching", ["write-through", "direct_io"])
def test_direct_writes_of_several_threads_run_at_once(place: str, caching: str) -> None:
    with mounted(Plan(place, {0: 8 * MIB}, delay=0.1, caching=caching)) as mount:
        with opened(place, os.O_RDWR | os.O_DIRECT) as descriptor, ThreadPoolExecutor(8) as threads, closing(mmap.mmap(-1, MIB)) as buffer:
            assert list(threads.map(lambda part: os.pwritev(descriptor, [buffer], part * MIB), range(8))) == [MIB] * 8
        most = mount.unmount()["disks"]["0"]["most_at_once"]
    assert most == (8 if caching == "direct_io" else 1), "with the page cache the kernel holds the inode's lock meanwhile"


# ---------------------------------------------------------------------------------------------------------------------- resizing


def test_a_resize_shows_at_once_and_under_load(place: str, variant: str, tmp_path: Path) -> None:
    """The kernel is told while readers and writers keep every page and request busy; nothing deadlocks, and both ends move on."""
    with mounted(Plan(place, {0: 16 * MIB}, resize_to=32 * MIB)) as mount, ThreadPoolExecutor(1) as threads:
        job = ["--name=t", f"--filename={place}", "--rw=randrw", "--bs=64k", "--size=16m", "--ioengine=psync", "--numjobs=4", "--thread"]
        job += ["--time_based", "--runtime=3", "--fallocate=none", f"--aux-path={tmp_path}"]
        load = threads.submit(run, "fio", *job, "--output-format=json")
        until(lambda: int(os.stat(place).st_size == 16 * MIB) and load.running(), "the load")
        mount.process.send_signal(signal.SIGUSR2)
        until(lambda: os.stat(place).st_size == 32 * MIB, "the new size", 3)
        assert load.running()
        answer = load.result(30)
        assert all(not each["error"] for each in json.loads(answer[answer.index("{") :])["jobs"])
        with opened(place) as descriptor:
            assert os.pwrite(descriptor, b"behind the old end", 20 * MIB) == 18
            assert os.lseek(descriptor, 0, os.SEEK_END) == 32 * MIB
        mount.unmount()


def test_the_page_at_the_old_end_is_read_again_after_growing(place: str) -> None:
    with mounted(Plan(place, {0: 4096 + 512}, resize_to=8192)) as mount:
        with opened(place) as descriptor:
            assert len(os.pread(descriptor, 8192, 0)) == 4608
            mount.process.send_signal(signal.SIGUSR2)
            until(lambda: os.stat(place).st_size == 8192, "the size to be seen")
            os.pwrite(descriptor, b"x" * 512, 8192 - 512)
            assert os.pread(descriptor, 8192, 0) == bytes(8192 - 512) + b"x" * 512
        mount.unmount()


# ---------------------------------------------------------------------------------------------------------- what a block device has


@pytest.mark.parametrize("zero_unmaps", [True, False])
def test_holes_are_punched_and_found(place: str, zero_unmaps: bool) -> None:
    with mounted(Plan(place, {0: 4 * MIB}, can_trim=True, zero_unmaps=zero_unmaps)) as mount:
        with opened(place) as descriptor:
            os.pwrite(descriptor, b"x" * 4 * MIB, 0)
            os.pread(descriptor, 4 * MIB, 0)  # into the page cache
            fallocate(descriptor, PUNCH | KEEP, MIB + 512, MIB)
            assert os.pread(descriptor, 4 * MIB, 0) == b"x" * (MIB + 512) + bytes(MIB) + b"x" * (2 * MIB - 512)
            hole, end = MIB + GRANULE, 2 * MIB
            assert os.lseek(descriptor, 0, os.SEEK_HOLE) == hole
            assert os.lseek(descriptor, hole, os.SEEK_HOLE) == hole
            assert os.lseek(descriptor, hole, os.SEEK_DATA) == end
            assert os.lseek(descriptor, end, os.SEEK_HOLE) == 4 * MIB
            fallocate(descriptor, ZERO, 0, 4 * MIB)
            assert os.pread(descriptor, 4 * MIB, 0) == bytes(4 * MIB)
            for mode in (0, KEEP, 8):
                with pytest.raises(OSError, check=lambda error: error.errno == errno.EOPNOTSUPP):
                    fallocate(descriptor, mode, 0, 4096)
        mount.unmount()


def test_sparse_copies_leave_out_holes(place: str, tmp_path: Path) -> None:
    with mounted(Plan(place, {0: 16 * MIB}, can_trim=True)) as mount:
        with opened(place) as descriptor:
            fallocate(descriptor, PUNCH | KEEP, 0, 16 * MIB)
            os.pwrite(descriptor, os.urandom(65536), 3 * MIB)
        run("cp", "--sparse=always", place, tmp_path / "copy")
        assert (tmp_path / "copy").stat().st_blocks * 512 <= MIB
        run("dd", f"if={tmp_path / 'copy'}", f"of={place}", "bs=1M", "conv=sparse,notrunc", "status=none")
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", place, tmp_path / "converted")
        run("cmp", tmp_path / "copy", tmp_path / "converted")
        run("cmp", tmp_path / "copy", place)
        assert mount.unmount()["disks"]["0"]["STATUS"] > 0


def test_ranges_are_copied_without_leaving_the_server(tmp_path: Path) -> None:
    place = tmp_path / "disks"
    with mounted(Plan(str(place), {0: 4 * MIB, 1: 8 * MIB}, directory=True)) as mount:
        content = os.urandom(3 * MIB)
        with opened(place / "lun0") as source, opened(place / "lun1") as target:
            os.pwrite(source, content, 4096)
            copied = 0
            while copied < 3 * MIB:
                copied += os.copy_file_range(source, target, 3 * MIB - copied, 4096 + copied, 512 + copied)
            assert os.pread(target, 3 * MIB, 512) == content
            assert os.copy_file_range(target, target, 4096, 512, 6 * MIB) == 4096
            assert os.pread(target, 4096, 6 * MIB) == content[:4096]
        mount.unmount()


def test_the_disk_tells_which_it_is(place: str) -> None:
    with mounted(Plan(place, {0: 4 * MIB})) as mount:
        assert sorted(os.listxattr(place)) == ["user.isblk.lun", "user.isblk.target"]
        assert os.getxattr(place, "user.isblk.target") == b"iqn.2026-11.test:disk"
        with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
            os.getxattr(place, "user.other")
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EOPNOTSUPP):
            os.setxattr(place, "user.isblk.lun", b"7")
        mount.unmount()


def test_the_size_is_asked_as_of_a_block_device(place: str) -> None:
    with mounted(Plan(place, {0: 4 * MIB})) as mount:
        with opened(place) as descriptor:
            assert int.from_bytes(fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8)), "little") == 4 * MIB
            with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOTTY):
                fcntl.ioctl(descriptor, 0x80041270, bytes(4))
        mount.unmount()


def test_the_time_of_mounting_is_the_time_of_birth(place: str) -> None:
    """statx(2) with STATX_BTIME is the one question that FUSE_STATX exists for."""
    with mounted(Plan(place, {0: MIB})) as mount:
        assert abs(int(run("stat", "-c", "%W", place)) - int(run("date", "+%s"))) < 60
        mount.unmount()


@pytest.mark.parametrize("direct_io", ["off", "on"])
def test_fstrim_gives_blocks_back_through_a_loop_mount(place: str, tmp_path: Path, root: None, direct_io: str) -> None:
    with mounted(Plan(place, {0: 64 * MIB}, can_trim=True)) as mount, Mounts(tmp_path):
        run("mkfs.ext4", "-q", place)
        device = run("losetup", "--find", "--show", f"--direct-io={direct_io}", place).strip()
        tree = tmp_path / "tree"
        tree.mkdir()
        run("mount", device, tree)
        content = os.urandom(16 * MIB)
        (tree / "file").write_bytes(content)
        (tree / "kept").write_bytes(content[:MIB])
        os.sync()
        with opened(place, os.O_RDONLY) as descriptor:
            before = allocated(descriptor)
            (tree / "file").unlink()
            os.sync()

            def is_given_back() -> bool:
                run("fstrim", tree)  # again: ext4 frees a moment after the transaction has been committed
                return allocated(descriptor) < before - 15 * MIB

            until(is_given_back, "the blocks to be given back")
        assert (tree / "kept").read_bytes() == content[:MIB]
        run("umount", tree)
        run("losetup", "-d", device)
        run("e2fsck", "-fn", place)
        mount.unmount()


def allocated(descriptor: int) -> int:
    """Bytes that are no hole."""
    total = at = 0
    size = os.lseek(descriptor, 0, os.SEEK_END)
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(descriptor, data, os.SEEK_HOLE)
        total += at - data
    return total


# ---------------------------------------------------------------------------------------------------------------- load and bounds


def test_more_than_the_memory_holds_waits_and_is_done(place: str, tmp_path: Path) -> None:
    """Ninety-six requests of 1 MiB against 64 MiB of memory, on a slow disk."""
    with mounted(Plan(place, {0: 128 * MIB}, delay=0.05, caching="direct_io")) as mount:
        for rw in ("write", "read"):
            job = [f"--name={rw}", f"--filename={place}", f"--rw={rw}", "--bs=1m", "--size=1m", "--numjobs=96", "--thread", "--direct=1"]
            job += ["--offset_increment=1m", "--ioengine=psync", "--loops=4", "--fallocate=none", "--group_reporting"]
            run("fio", *job, f"--aux-path={tmp_path}")
        seen = mount.unmount()
    assert seen["counters"]["bytes_read"] == seen["counters"]["bytes_written"] == 384 * MIB
    assert 40 <= seen["disks"]["0"]["most_at_once"] <= 64


def test_an_asker_that_is_killed_harms_nobody(place: str) -> None:
    with mounted(Plan(place, {0: 4 * MIB}, delay=1.0, caching="direct_io")) as mount:
        with subprocess.Popen(["dd", f"if={place}", "of=/dev/null", "bs=4k", "iflag=direct", "status=none"]) as reader:
            until(lambda: "request_wait_answer" in Path(f"/proc/{reader.pid}/wchan").read_text() or _sleeps(reader.pid), "the read to wait")
            reader.kill()
        with opened(place) as descriptor:
            assert os.pread(descriptor, 512, 0) == bytes(512)
        mount.unmount()


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "DS"
