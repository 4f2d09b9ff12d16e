"""fuse.py on real mounts: memory disks served by a process of their own, and the tools people point at such a file."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from isblk.errors import ExitCode, UsageError
from isblk.export.files import ROOT
from isblk.export.fuse import _is_news
from isblk.export.mountpoint import device_number, is_mounted, prepare, unmount
from support import fusedaemon
from support.fusedaemon import Plan, mounted, start
from support.mounts import Mounts
from support.waiting import until

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture(autouse=True, params=["pyfuse3", "direct", "direct_io"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for both engines, and for the direct one with and without the page cache."""
    monkeypatch.setattr(fusedaemon, "variant", request.param)
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lun0")


@contextmanager
def opened(path: Path | str, flags: int, dies: bool = False) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        with suppress(OSError) if dies else nullcontext():
            os.close(descriptor)


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def aligned(fill: bytes, length: int) -> mmap.mmap:
    """A buffer whose address O_DIRECT takes."""
    buffer = mmap.mmap(-1, length)
    buffer[:] = fill * length
    return buffer


# ------------------------------------------------------------------------------------------------------------------- as a file


def test_a_disk_is_a_regular_file_at_the_path_itself(place: str) -> None:
    with mounted(Plan(place, {0: 10 * MIB})) as mount:
        shown = os.stat(place)
        assert oct(shown.st_mode) == "0o100600"
        assert (shown.st_size, shown.st_blocks, shown.st_ino, shown.st_uid) == (10 * MIB, 10 * MIB // 512, ROOT, os.geteuid())
        assert os.statvfs(place).f_bfree == 0
        assert os.statvfs(place).f_blocks == 10 * MIB // 4096
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place in line)
        assert " fuse.isblk iqn.2026-11.test:disk/0 " in line
        mount.unmount()
        assert not Path(place).exists()


def test_several_disks_are_files_of_a_directory(tmp_path: Path) -> None:
    place = tmp_path / "disks"
    with mounted(Plan(str(place), {0: MIB, 3: 2 * MIB, 300: 3 * MIB}, directory=True)) as mount:
        assert {path.name: path.stat().st_size for path in place.iterdir()} == {"lun0": MIB, "lun3": 2 * MIB, "lun300": 3 * MIB}
        (place / "lun3").open("r+b").close()
        with opened(place / "lun300", os.O_RDWR) as descriptor:
            os.pwrite(descriptor, b"three hundred", 5)
            assert os.pread(descriptor, 20, 0) == b"\0" * 5 + b"three hundred" + b"\0\0"
        with pytest.raises(OSError, check=lambda error: error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES)):
            (place / "new").touch()
        with pytest.raises(FileNotFoundError):
            (place / "lun1").stat()
        seen = mount.unmount()["disks"]
    assert [seen[lun]["WRITE"] for lun in ("0", "3", "300")] == [0, 0, 1]


def test_mkfs_and_fsck_work_on_the_file(place: str) -> None:
    with mounted(Plan(place, {0: 32 * MIB})) as mount:
        run("mkfs.ext4", "-q", place)
        run("e2fsck", "-fn", place)
        assert mount.unmount()["disks"]["0"]["FLUSH"] > 0


def test_mkfs_xfs_works_on_the_file(place: str) -> None:
    with mounted(Plan(place, {0: 320 * MIB})) as mount:
        run("mkfs.xfs", "-q", "-f", place)
        run("xfs_repair", "-n", "-f", place)
        mount.unmount()


def test_loop_mounting_works(place: str, tmp_path: Path, root: None) -> None:
    with mounted(Plan(place, {0: 32 * MIB})) as mount, Mounts(tmp_path) as mounts:
        run("mkfs.ext4", "-q", place)
        mounts.loop_mount(Path(place), tmp_path / "tree")
        (tmp_path / "tree" / "file").write_bytes(b"words" * 100_000)
        mounts.unmount(tmp_path / "tree")
        mounts.loop_mount(Path(place), tmp_path / "tree", "ro")
        assert (tmp_path / "tree" / "file").read_bytes() == b"words" * 100_000
        mounts.unmount(tmp_path / "tree")
        mount.unmount()


def test_fio_reads_back_what_it_wrote(place: str, tmp_path: Path) -> None:
    with mounted(Plan(place, {0: 16 * MIB}, delay=0.002)) as mount:
        job = ["--name=t", f"--filename={place}", "--rw=randrw", "--bsrange=512-256k", "--bs_unaligned=0", "--size=8m", "--ioengine=libaio"]
        run("fio", *job, "--direct=1", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", f"--aux-path={tmp_path}")
        assert mount.unmount()["disks"]["0"]["most_at_once"] >= 4


def test_dd_and_cp_onto_the_file_work_as_onto_a_disk(place: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 * MIB))
    with mounted(Plan(place, {0: 8 * MIB})) as mount:
        run("dd", f"if={image}", f"of={place}", "bs=1M", "oflag=direct")
        assert Path(place).read_bytes()[: 3 * MIB] == image.read_bytes()
        run("cp", "/dev/null", place)
        assert os.stat(place).st_size == 8 * MIB
        run("cp", image, place)
        run("cp", place, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == image.read_bytes() + bytes(5 * MIB)
        assert "No space left" in run("dd", "if=/dev/zero", f"of={place}", "bs=3M", "conv=notrunc", code=1)
        mount.unmount()


def test_qemu_img_converts_onto_the_file(place: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(2 * MIB))
    with mounted(Plan(place, {0: 4 * MIB})) as mount:
        run("qemu-img", "convert", "-n", "-t", "none", "-f", "raw", "-O", "raw", image, place)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", place, image)
        mount.unmount()


def test_another_size_is_refused_and_the_same_is_not(place: str) -> None:
    with mounted(Plan(place, {0: 4 * MIB})) as mount:
        os.truncate(place, 4 * MIB)
        for size in (0, 4 * MIB - 512, 4 * MIB + 512):
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EINVAL):
                os.truncate(place, size)
        assert os.stat(place).st_size == 4 * MIB
        assert mount.unmount()["disks"]["0"]["WRITE"] == 0


def test_opening_with_truncation_keeps_size_and_data(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, b"kept", 4096)
        with opened(place, os.O_RDWR | os.O_TRUNC) as descriptor:
            assert os.fstat(descriptor).st_size == MIB
            assert os.lseek(descriptor, 0, os.SEEK_END) == MIB
            assert os.pread(descriptor, 4, 4096) == b"kept"
        mount.unmount()


def test_opening_with_truncation_never_lets_others_see_an_end(place: str, variant: str) -> None:
    """With pyfuse3 their asynchronous reads would find the end of the file at offset 0 (operations.py), so it is refused."""
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_RDWR) as reader:
            os.pwrite(reader, b"there", 0)
            if variant == "pyfuse3":
                with pytest.raises(OSError, check=lambda error: error.errno == errno.EBUSY):
                    os.open(place, os.O_WRONLY | os.O_TRUNC)
            else:
                with ThreadPoolExecutor(1) as threads:
                    sizes = threads.submit(lambda: {(os.lseek(reader, 0, os.SEEK_END), os.pread(reader, 5, 0)) for _ in range(500)})
                    for _ in range(50):
                        os.close(os.open(place, os.O_WRONLY | os.O_TRUNC))
                    assert sizes.result(20) == {(MIB, b"there")}
        with opened(place, os.O_WRONLY | os.O_TRUNC), opened(place, os.O_RDONLY) as other:
            assert os.fstat(other).st_size == MIB
        mount.unmount()


def test_opening_with_truncation_waits_for_one_who_is_about_to_close(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount, ThreadPoolExecutor(1) as threads:
        with opened(place, os.O_RDONLY):
            truncating = threads.submit(os.open, place, os.O_WRONLY | os.O_TRUNC)
            until(lambda: truncating.running() or truncating.done(), "the second open to begin")
        os.close(truncating.result(10))
        mount.unmount()


def test_mode_and_owner_stay_and_times_do_not_matter(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        os.utime(place, (0, 0))
        os.chmod(place, 0o600)
        os.chown(place, os.geteuid(), os.getegid())
        for change in (lambda: os.chmod(place, 0o644), lambda: os.chown(place, 12345, -1)):
            with pytest.raises(PermissionError):
                change()
        assert os.stat(place).st_mode & 0o7777 == 0o600
        mount.unmount()


# ------------------------------------------------------------------------------------------------------------------------ data


def test_requests_carry_up_to_a_mebibyte(place: str) -> None:
    with mounted(Plan(place, {0: 8 * MIB})) as mount:
        with opened(place, os.O_RDWR | os.O_DIRECT) as descriptor, closing(aligned(b"x", 4 * MIB)) as buffer:
            assert os.pwritev(descriptor, [buffer], MIB) == 4 * MIB
            assert os.preadv(descriptor, [buffer], MIB) == 4 * MIB
        seen = mount.unmount()
    assert (seen["disks"]["0"]["largest"], seen["disks"]["0"]["READ"], seen["disks"]["0"]["WRITE"]) == (MIB, 4, 4)
    assert (seen["counters"]["bytes_read"], seen["counters"]["bytes_written"], seen["counters"]["in_flight"]) == (4 * MIB, 4 * MIB, 0)


def test_readers_of_one_file_run_in_parallel(place: str) -> None:
    with mounted(Plan(place, {0: 8 * MIB}, delay=0.1)) as mount:
        with opened(place, os.O_RDONLY) as descriptor, ThreadPoolExecutor(8) as threads:
            parts = list(threads.map(lambda part: len(os.pread(descriptor, MIB, part * MIB)), range(8)))
        assert parts == [MIB] * 8
        assert mount.unmount()["disks"]["0"]["most_at_once"] >= 8


def test_bytes_come_back_from_any_offset(place: str) -> None:
    content = os.urandom(300_000)
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_RDWR) as descriptor:
            assert os.pwrite(descriptor, content, 4093) == len(content)
            for offset, length in ((4093, 1), (4094, 4097), (4093, len(content)), (150_001, 131_073)):
                assert os.pread(descriptor, length, offset) == content[offset - 4093 :][:length]
        mount.unmount()


def test_the_end_of_the_disk_is_the_end_of_the_file(place: str) -> None:
    with mounted(Plan(place, {0: 4096 + 512})) as mount:
        with opened(place, os.O_RDWR) as descriptor:
            assert os.pwrite(descriptor, b"x" * 1024, 4096) == 512
            with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
                os.pwrite(descriptor, b"x", 4096 + 512)
            assert os.pread(descriptor, 4096, 4096) == b"x" * 512
            assert os.pread(descriptor, 4096, 4096 + 512) == b""
        mount.unmount()


def test_the_file_can_be_mapped_for_reading(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_RDWR) as descriptor:
            os.pwrite(descriptor, b"mapped", 70_000)
            with mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
                assert view[70_000:70_006] == b"mapped"
        mount.unmount()


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_fsync_is_one_flush_and_close_is_none(place: str, sync: Callable[[int], None]) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_RDWR) as descriptor:
            os.pwrite(descriptor, b"x", 0)
            sync(descriptor)
        seen = mount.unmount()["disks"]["0"]
    assert (seen["WRITE"], seen["FLUSH"], seen["FUA"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "flag, plan, expected",
    [
        (os.O_SYNC, {}, {"FUA": 1, "FLUSH": 0}),
        (os.O_DSYNC, {}, {"FUA": 1, "FLUSH": 0}),
        (os.O_DSYNC | os.O_DIRECT, {}, {"FUA": 1, "FLUSH": 0}),
        (os.O_DSYNC, {"can_fua": False}, {"FUA": 0, "FLUSH": 1}),
        (os.O_DSYNC, {"write_cache": False}, {"FUA": 0, "FLUSH": 0}),
        (0, {}, {"FUA": 0, "FLUSH": 0}),
    ],
)
def test_a_write_through_a_synchronous_handle_is_durable(
    place: str, variant: str, flag: int, plan: dict[str, Any], expected: dict[str, int]
) -> None:
    """With the page cache the kernel sends an FSYNC behind it; behind an asynchronous direct write it does not, so that has FUA too."""
    if variant == "direct" and flag:
        expected = {"FUA": int(bool(flag & os.O_DIRECT)), "FLUSH": 1}
    with mounted(Plan(place, {0: MIB}, **plan)) as mount:
        with opened(place, os.O_RDWR | flag) as descriptor, closing(aligned(b"x", 4096)) as buffer:
            os.pwritev(descriptor, [buffer], 0)
        seen = mount.unmount()["disks"]["0"]
    assert {name: seen[name] for name in expected} == expected


def test_errors_arrive_with_their_errno_and_harm_nobody_else(place: str, variant: str) -> None:
    with mounted(Plan(place, {0: MIB}, fail_from=65536)) as mount:
        with opened(place, os.O_RDWR) as descriptor:
            for attempt in (lambda: os.pread(descriptor, 4096, 65536), lambda: os.pwrite(descriptor, b"x" * 4096, 65536)):
                with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
                    attempt()
            assert os.pread(descriptor, 4096, 0) == bytes(4096)
        errors = mount.unmount()["counters"]["errors"]
    assert errors == 2 or (variant == "direct" and errors > 2), "the page cache tries a page once more"


# -------------------------------------------------------------------------------------------------------------- rights and ends


@pytest.mark.parametrize("plan", [{"read_only": True}, {"read_only_disk": True}])
def test_a_read_only_disk_cannot_be_written(place: str, plan: dict[str, Any]) -> None:
    with mounted(Plan(place, {0: MIB}, **plan)) as mount:
        assert os.stat(place).st_mode & 0o7777 == 0o400
        assert Path(place).read_bytes() == bytes(MIB)
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EROFS):
            os.open(place, os.O_RDWR)
        mount.unmount()


def test_umount_ends_the_daemon(place: str, root: None) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        run("umount", place)
        mount.finish()
        assert not Path(place).exists()


def test_fusermount3_ends_the_daemon(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        run("fusermount3", "-u", place)
        mount.finish()
        assert not Path(place).exists()


def test_sigterm_unmounts_and_ends_the_daemon(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        mount.process.send_signal(signal.SIGTERM)
        mount.finish()
        assert not is_mounted(Path(place))
        assert not Path(place).exists()


def test_sigterm_answers_what_was_begun_even_while_the_file_is_open(place: str) -> None:
    with mounted(Plan(place, {0: MIB}, delay=0.5)) as mount, opened(place, os.O_RDWR, dies=True) as descriptor:
        with ThreadPoolExecutor(1) as threads:
            write = threads.submit(os.pwrite, descriptor, b"x" * 4096, 0)
            mount.process.send_signal(signal.SIGTERM)
            assert write.result(timeout=20) == 4096
        assert mount.finish()["disks"]["0"]["WRITE"] == 1
        with pytest.raises(OSError, check=lambda error: error.errno in (errno.ENOTCONN, errno.ECONNABORTED)):
            os.pwrite(descriptor, b"x" * 4096, 0)


def test_a_cancelled_serve_answers_what_was_begun_and_leaves_nothing_mounted(place: str) -> None:
    with mounted(Plan(place, {0: MIB}, delay=1.0)) as mount, opened(place, os.O_RDWR, dies=True) as descriptor:
        with ThreadPoolExecutor(4) as threads:
            reads = [threads.submit(os.pread, descriptor, 4096, 4096 * number) for number in range(4)]
            until(lambda: sum(read.running() for read in reads) == 4, "the reads to begin", 10)
            threads.submit(os.stat, place).result(10)  # answered behind them: they are with the disk by now
            mount.process.send_signal(signal.SIGUSR1)
            assert [len(read.result(20)) for read in reads] == [4096] * 4
        mount.finish()
        assert not is_mounted(Path(place))
        assert not Path(place).exists()


def test_an_aborted_connection_ends_the_daemon_and_leaves_nothing_mounted(place: str, tmp_path: Path, root: None) -> None:
    with mounted(Plan(place, {0: MIB})) as mount, Mounts(tmp_path) as mounts:
        control = tmp_path / "connections"
        control.mkdir()
        run("mount", "-t", "fusectl", "none", control)
        number = device_number(Path(place))
        assert number is not None
        (control / str(number[1]) / "abort").write_text("1")
        mounts.unmount(control)
        mount.finish()
        assert not is_mounted(Path(place))


@pytest.mark.parametrize("attempt", range(5))
def test_unmounting_right_behind_a_close_is_no_error(place: str, attempt: int) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        for _ in range(50):
            with opened(place, os.O_RDONLY) as descriptor:
                os.pread(descriptor, 512, 0)
        mount.unmount()


def test_unmounting_an_open_file_is_refused_as_busy(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        with opened(place, os.O_RDONLY), pytest.raises(UsageError, match="in use"):
            unmount(place)
        mount.unmount()


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(") ")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def test_a_dead_mount_is_named_with_its_remedy_and_can_be_cleared(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        for helper in children(mount.process.pid):  # the direct engine has one that would clear it first
            os.kill(helper, signal.SIGKILL)
        mount.process.kill()
        mount.process.wait()
        with pytest.raises(OSError, check=lambda error: error.errno in (errno.ENOTCONN, errno.ECONNABORTED)):
            os.stat(place)
        with pytest.raises(UsageError, match="fusermount3 -u"):
            prepare(place, directory=False)
        unmount(place)
        with mounted(Plan(place, {0: MIB})) as again:
            again.unmount()


def test_a_second_mount_at_the_same_place_is_refused(place: str) -> None:
    with mounted(Plan(place, {0: MIB})) as mount:
        second = start(Plan(place, {0: MIB}))
        _, words = second.communicate(timeout=30)
        assert second.returncode == ExitCode.USAGE
        assert "mountpoint already" in words
        assert len(words.splitlines()) == 1
        mount.unmount()


def test_a_refused_mount_is_one_sentence_and_leaves_nothing_behind(fuse_for_users: None) -> None:
    """An ordinary user whose fusermount3 has lost its set-user-id bit: no_new_privs takes that away."""
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        process = start(Plan(f"{home}/lun0", {0: MIB}), user="nobody", privileges=False)
        _, words = process.communicate(timeout=30)
        assert process.returncode == ExitCode.USAGE
        assert words == f"{home}/lun0 cannot be mounted on: fusermount3: mount failed: Operation not permitted\n"
        assert os.listdir(home) == []


def test_an_ordinary_user_mounts_and_unmounts(fuse_for_users: None) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        with mounted(Plan(f"{home}/lun0", {0: 8 * MIB}), user="nobody") as mount:
            as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            run(*as_user, "mkfs.ext4", "-q", mount.path)
            assert run(*as_user, "stat", "-c", "%U %a %s", mount.path) == f"nobody 600 {8 * MIB}\n"
            with pytest.raises(PermissionError):
                os.stat(mount.path)  # even root stays out without allow_other
            run(*as_user, "fusermount3", "-u", mount.path)
            mount.finish()
        assert os.listdir(home) == []


def test_allow_other_lets_root_into_a_users_mount(fuse_for_users: None, root: None) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        with mounted(Plan(f"{home}/lun0", {0: MIB}, allow_other=True)) as mount:
            assert mount.path.stat().st_size == MIB
            assert "allow_other" in next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if home in line)
            mount.unmount()


def record(text: str, *values: str) -> logging.LogRecord:
    return logging.LogRecord("pyfuse3", logging.ERROR, "", 0, text, values, None)


def test_only_the_complaint_that_nobody_waits_is_kept_out_of_the_log() -> None:
    assert not _is_news(record("fuse_release(): fuse_reply_* failed with %s", os.strerror(errno.ENOENT)))
    assert _is_news(record("fuse_release(): fuse_reply_* failed with %s", os.strerror(errno.EINVAL)))
    assert _is_news(record("something else: %s", os.strerror(errno.ENOENT)))


def test_pyfuse3_refuses_a_write_back_cache_and_leaves_nothing(place: str) -> None:
    process = start(Plan(place, {0: MIB}, engine="pyfuse3", caching="writeback"))
    _, words = process.communicate(timeout=30)
    assert (process.returncode, words) == (ExitCode.USAGE, "the pyfuse3 engine cannot do -o writeback; leave out --fuse-engine pyfuse3\n")
    assert not Path(place).exists()
