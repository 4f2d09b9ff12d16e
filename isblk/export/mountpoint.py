"""The mountpoint: whether it can be used and by whom, making one that is not there, and unmounting (fusermount3(1), mount(2)).

Everything that can be known to fail is found here, before the kernel is asked, because libfuse says it on standard error in its own words.
No function here touches what is behind a mount for longer than one stat(2), and none may run in the thread that serves that mount.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from isblk.errors import UsageError

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
MOUNTINFO = Path("/proc/self/mountinfo")

BLOCK_DEVICES = Path("/sys/block")
LOOP_SECONDS = 5.0
"""How long a loop device that nobody uses any more may take to let go of its file. Since Linux 5.17 it does so some time after the umount
of what was on it."""
LOOP_PAUSE = 0.05

UNMOUNT_DEADLINE = 30.0
"""Seconds that fusermount3 may take; it waits for nobody, so this is only a bound."""


@dataclass(frozen=True)
class Mountpoint:
    """A place that is ready to be mounted on: absolute `path`, and whether isblk made it (and removes it again)."""

    path: Path
    is_directory: bool
    made: bool

    def remove(self) -> None:
        """After unmounting: take away what `prepare` made, unless somebody has since put something there."""
        if not self.made:
            return
        try:
            if self.is_directory:
                self.path.rmdir()
            elif self.path.lstat().st_size == 0:
                self.path.unlink()
        except OSError:
            return  # in use again or gone: not ours any more


def prepare(text: str | os.PathLike[str], directory: bool, allow_other: bool = False) -> Mountpoint:
    """Check that a file (or with `directory` a directory) can be mounted at `text`, and make it if it is not there.

    Raises UsageError, having made nothing, with what is in the way and the remedy.
    """
    check_machine(allow_other)
    path = Path(os.path.abspath(text))
    found = _look(path)
    if found is None:
        _make(path, directory)
        return Mountpoint(path, directory, made=True)
    path = path.resolve()
    if is_mounted(path):
        raise UsageError(f"{path} is a mountpoint already; unmount what is there first (isblk umount {path}) or name another path")
    _check_kind(path, found, directory)
    return Mountpoint(path, directory, made=False)


def check_machine(allow_other: bool, uid: int | None = None) -> None:
    """Raise UsageError where FUSE cannot work for `uid` (default: the effective one) on this machine."""
    uid = os.geteuid() if uid is None else uid
    if not FUSE_DEVICE.exists():
        raise UsageError(f"{FUSE_DEVICE} is not there; load the module (modprobe fuse) or give the container the device (--device)")
    if uid == 0:
        return
    if shutil.which("fusermount3") is None:
        raise UsageError("fusermount3 is not installed, and only root can mount without it; install the package fuse3")
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise UsageError(f"{FUSE_DEVICE} cannot be opened by this user; ask root for 'chmod 666 {FUSE_DEVICE}', its usual mode")
    if allow_other and not _user_allow_other():
        raise UsageError(f"-o allow_other needs the line 'user_allow_other' in {FUSE_CONF}; ask root to add it, or leave the option out")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly at `path`, asked from the kernel's table, so that a dead mount cannot block the question."""
    return device_number(path) is not None


def device_number(path: Path) -> tuple[int, int] | None:
    """Major and minor of the file system mounted last at `path`; None where none is. Column 3 and 5 of proc_pid_mountinfo(5)."""
    found = None
    for line in MOUNTINFO.read_bytes().splitlines():
        columns = line.split()
        if _unescape(columns[4]) == os.fsencode(path):
            major, minor = columns[2].split(b":")
            found = int(major), int(minor)
    return found


def unmount(text: str | os.PathLike[str], lazy: bool = False, force: bool = False) -> None:
    """Unmount `text`. With `lazy` also while it is in use: out of sight at once, gone with its last user. `force` fails what hangs there.

    Raises UsageError when nothing is mounted there, when it is in use, or when it is another user's.
    """
    path = _mounted_path(Path(os.path.abspath(text)))
    if path is None:
        raise UsageError(f"nothing is mounted at {os.path.abspath(text)}; 'isblk status' lists what is")
    end = time.monotonic() + LOOP_SECONDS
    while not lazy and _has_ending_loop(path) and time.monotonic() < end:
        time.sleep(LOOP_PAUSE)
    if os.geteuid() == 0:
        _umount2(path, lazy, force)
    elif force:
        raise UsageError(f"only root can unmount {path} by force")
    else:
        _fusermount(path, lazy)


def clear_dead(text: str | os.PathLike[str]) -> None:
    """Take away the mount of a daemon that was killed: nobody can use it any more, and nothing can be mounted there while it is.

    Asked by statfs(2), which always goes to the daemon, and waits for one that hangs: what stat(2) says may be from before it died.
    """
    try:
        os.statvfs(text)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            with suppress(UsageError):
                unmount(text, lazy=True)


def make_read_only(text: str | os.PathLike[str]) -> bool:
    """Let nobody write to what is mounted at `text` any more. False where that cannot be, as when somebody has it open for writing."""
    import ctypes

    read_only, remount = 1, 32  # MS_RDONLY, MS_REMOUNT of mount(2)
    path = _mounted_path(Path(os.path.abspath(text)))
    return path is not None and ctypes.CDLL(None).mount(None, os.fsencode(path), None, ctypes.c_ulong(read_only | remount), None) == 0


def _has_ending_loop(path: Path) -> bool:
    """Whether a loop device has its file at or below `path`, and is to go with its last user, and has none who mounted it."""
    mounted = {line.split()[2] for line in MOUNTINFO.read_bytes().splitlines()}
    for loop in BLOCK_DEVICES.glob("loop*/loop"):
        try:
            file, goes = os.fsdecode((loop / "backing_file").read_bytes()[:-1]), (loop / "autoclear").read_bytes() == b"1\n"
            number = (loop.parent / "dev").read_bytes().strip()
        except OSError:  # It has gone meanwhile.
            continue
        if goes and number not in mounted and Path(file).is_relative_to(path):
            return True
    return False


def _mounted_path(path: Path) -> Path | None:
    """The mount's own name for `path`: the last component is not resolved, since looking at a dead mount fails."""
    for candidate in (path, path.parent.resolve() / path.name):
        if is_mounted(candidate):
            return candidate
    try:
        resolved = path.resolve()
    except OSError:
        return None
    return resolved if is_mounted(resolved) else None


def _umount2(path: Path, lazy: bool, force: bool) -> None:
    import ctypes  # only root needs it, and only at the end

    forced, detach, no_follow = 1, 2, 8  # MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW of umount2(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), (detach if lazy else 0) | (forced if force else 0) | no_follow) == 0:
        return
    error = ctypes.get_errno()
    if error == errno.EBUSY:
        raise UsageError(_busy(path))
    raise UsageError(f"{path} cannot be unmounted: {os.strerror(error)}")


def _fusermount(path: Path, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=UNMOUNT_DEADLINE, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise UsageError("fusermount3 is not installed, and only root can unmount without it; install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{path} cannot be unmounted: fusermount3 did not end in {UNMOUNT_DEADLINE:.0f} s") from None
    if done.returncode == 0:
        return
    if "busy" in done.stderr.lower():
        raise UsageError(_busy(path))
    raise UsageError(f"{path} cannot be unmounted: {done.stderr.strip() or 'fusermount3 failed without a word'}")


def _busy(path: Path) -> str:
    return f"{path} is in use; end what has it open ('fuser -vm {path}' names it; 'losetup -a' for loop devices) and try again"


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UsageError(f"{path} is a symbolic link to nowhere; remove it or name another path") from None
        return None
    except NotADirectoryError:
        raise UsageError(f"{path} lies below a file, not below a directory; name another path") from None
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            remedy = f"run 'fusermount3 -u {path}' (or 'isblk umount {path}'), then mount again"
            raise UsageError(f"{path} is what an earlier mount left when its daemon died; {remedy}") from None
        raise UsageError(f"{path} cannot be used as a mountpoint: {error.strerror}") from None


def _check_kind(path: Path, found: os.stat_result, directory: bool) -> None:
    if directory:
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{path} is not a directory, which several disks need; name a directory, or one disk with --lun")
    elif stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a directory, but one disk is shown as a file; name a file, or a path that is not there yet")
    elif not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is neither a file nor a directory; name another path")
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path} is not writable for this user, as a mountpoint must be; change its mode or name another path")


def _make(path: Path, directory: bool) -> None:
    try:
        if directory:
            path.mkdir(0o700)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        raise UsageError(f"{path} cannot be made, since {path.parent} is not there; make that directory first") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}; name another path, or make the mountpoint first") from None


def _user_allow_other() -> bool:
    try:
        return any(line.strip() == "user_allow_other" for line in FUSE_CONF.read_text(errors="replace").splitlines())
    except OSError:
        return False


def _unescape(column: bytes) -> bytes:
    """A path of mountinfo: space, tab, newline and backslash are written as three octal digits."""
    head, *rest = column.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)
