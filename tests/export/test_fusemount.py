"""fusemount.py: mounting as root and as others, what is shown, and unmounting when the daemon is killed."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from isblk.errors import UsageError
from isblk.export.fusemount import Mounted, _escaped, _handed_over, mount
from isblk.export.fuseoptions import MountOptions
from isblk.export.mountpoint import Mountpoint, is_mounted, unmount
from support.fusedaemon import REPOSITORY, Plan, mounted
from support.waiting import until

MIB = 1 << 20
AS_USER = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
pytestmark = pytest.mark.usefixtures("fuse")


@contextmanager
def opened(place: Path) -> Iterator[int]:
    """Open for the length of a block, in which its daemon may die."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


def mount_line(place: Path) -> str:
    return next(line for line in Path("/proc/self/mounts").read_text().splitlines() if os.fspath(place) in line)


def test_the_table_of_mounts_shows_isblk_and_the_target(tmp_path: Path) -> None:
    with mounted(Plan(str(tmp_path / "lun0"), {0: MIB}, read_only=True)) as mount:
        source, place, kind, options, *_ = mount_line(mount.path).split()
        assert (source, place, kind) == ("iqn.2026-11.test:disk/0", str(mount.path), "fuse.isblk")
        assert {"ro", "nosuid", "nodev", "default_permissions"} <= set(options.split(","))
        assert "allow_other" not in options
        mount.unmount()


def test_a_mount_that_the_kernel_refuses_is_one_sentence(root: None, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").touch()
    for place, is_directory, reason in (("missing", False, "No such file"), ("file", True, "Not a directory")):
        with pytest.raises(UsageError, match=f"{place} cannot be mounted on: {reason}"):
            mount(Mountpoint(tmp_path / place, is_directory, False), MountOptions("x"), False)


@pytest.mark.parametrize("name", ["lun0", "with blank", "back\\slash", "üml\nfeed"])
def test_kill_9_leaves_no_dead_mount_behind(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    with mounted(Plan(str(place), {0: MIB})) as mount:
        with opened(place) as descriptor:
            mount.process.kill()
            mount.process.wait()
            until(lambda: not is_mounted(place), "the mount to be taken away", 10)
            with pytest.raises(OSError):
                os.pread(descriptor, 512, 4096)
        assert place.stat().st_size == 0
        with mounted(Plan(str(place), {0: 2 * MIB})) as again:
            assert place.stat().st_size == 2 * MIB
            again.unmount()


def test_kill_9_does_not_touch_what_somebody_else_has_mounted_there(root: None, tmp_path: Path) -> None:
    place, before = tmp_path / "lun0", watchers()
    with mounted(Plan(str(place), {0: MIB})) as first, opened(place):
        unmount(place, lazy=True)
        (watcher,) = until(lambda: watchers() - before, "the watcher's command line to be there")
        with mounted(Plan(str(place), {0: 2 * MIB})) as second:
            first.process.kill()
            first.process.wait()
            until(lambda: watcher not in watchers(), "the first one's watcher to end", 10)
            assert place.stat().st_size == 2 * MIB
            second.unmount()


def watchers() -> set[int]:
    """The shells that wait for the end of a daemon."""
    found = set()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"mountinfo" in command.read_bytes():
                found.add(int(command.parent.name))
    return found


def test_a_daemon_that_ends_in_order_leaves_no_watcher(tmp_path: Path) -> None:
    before = watchers()
    with mounted(Plan(str(tmp_path / "lun0"), {0: MIB})) as mount:
        (watcher,) = until(lambda: watchers() - before, "the watcher's command line to be there")
        assert os.getsid(watcher) == watcher, "Ctrl-C at the terminal must not reach it"
        mount.unmount()
        assert watcher not in watchers()


def test_an_ordinary_users_mount_goes_with_its_daemon(fuse_for_users: None) -> None:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        place = Path(home) / "lun0"
        with mounted(Plan(str(place), {0: MIB}), user="nobody") as mount:
            assert "user_id=65534" in mount_line(place) and "fuse.isblk" in mount_line(place)
            mount.process.kill()
            mount.process.wait()
            until(lambda: not is_mounted(place), "fusermount3 to take the mount away", 10)
        with mounted(Plan(str(place), {0: MIB}), user="nobody") as mount:
            subprocess.run([*AS_USER, "fusermount3", "-u", place], check=True, timeout=20)
            mount.finish()
        assert os.listdir(home) == ["lun0"], "the first one had made it, and was killed"


@pytest.mark.deadline(120)
def test_root_of_a_user_namespace_mounts(root: None, tmp_path: Path) -> None:
    """`unshare -Urm`: mount(2) without any privilege outside; mkfs and fsck on the file, seen in there alone."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make user namespaces")
    place = tmp_path / "lun0"
    script = f"""
import sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
import subprocess
from support.fusedaemon import Plan, mounted
with mounted(Plan({str(place)!r}, {{0: {16 * MIB}}})) as mount:
    subprocess.run(["mkfs.ext4", "-q", mount.path], check=True)
    subprocess.run(["e2fsck", "-fn", mount.path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(mount.path.stat().st_size, open("/proc/self/uid_map").read().split()[2])
    mount.unmount()
"""
    done = subprocess.run(["unshare", "-Urm", sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{16 * MIB} 1\n", "")
    assert not is_mounted(place) and not place.exists()


# ------------------------------------------------------------------------------------------------------------------------- parts


def test_a_descriptor_is_handed_over_through_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as file:
        file.write(b"words")
        file.flush()
        theirs.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
        descriptor = _handed_over(ours)
        assert descriptor is not None
        assert os.pread(descriptor, 5, 0) == b"words" and not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_a_socket_that_ends_without_a_descriptor_is_a_refusal() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.send(b"\0")
        assert _handed_over(ours) is None
        theirs.close()
        assert _handed_over(ours) is None


def test_a_path_is_written_as_mountinfo_writes_it() -> None:
    assert _escaped(Path("/a b\tc\nd\\e/ü")) == "/a\\040b\\011c\\012d\\134e/ü"


def test_closing_twice_and_dismissing_nobody_is_harmless(tmp_path: Path) -> None:
    one = Mounted(os.open(os.devnull, os.O_RDWR), Mountpoint(tmp_path / "nothing", False, False))
    assert one.number is None
    one.close()
    one.close()
    one.dismiss()
