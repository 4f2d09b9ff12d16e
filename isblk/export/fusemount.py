"""Mounting without libfuse: root by mount(2), others by fusermount3, which hands over the open /dev/fuse.

fusermount3(1) is set-user-id root. It mounts for whoever may write the mountpoint, and passes the descriptor through the socket whose
number is in _FUSE_COMMFD (SCM_RIGHTS, unix(7)).

A daemon that is killed leaves a dead mount. So a shell of four lines waits for the end of a pipe, and unmounts what is mounted at that
place while it has the same device number; a daemon that ends in order tells it that there is nothing to do. (The option auto_unmount of
fusermount3 was the other way: it works with allow_other alone, since afterwards it looks at the mount as root, who is not let in. And it
would unmount whatever of isblk is at that place by then.)
"""

from __future__ import annotations

import array
import ctypes
import errno
import logging
import os
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from isblk.errors import UsageError
from isblk.export.fuseoptions import KERNEL_FLAGS, MountOptions
from isblk.export.mountpoint import FUSE_DEVICE, Mountpoint, device_number

log = logging.getLogger(__name__)

TYPE = "fuse.isblk"
HANDOVER_SECONDS = 30.0
"""How long fusermount3 may take; it waits for nobody, so this is only a bound."""
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4  # mount(2)
_DIRECTORY, _FILE = 0o040000, 0o100000

_WATCH = """read -r _ && exit
device=$1 escaped=$2; shift 2
while read -r _ _ number _ place _; do
[ "$number $place" = "$device $escaped" ] && exec "$@"; done </proc/self/mountinfo"""


class Mounted:
    """An open, mounted /dev/fuse: `descriptor`, not blocking. `number` is the file system's device, None where it cannot be found out."""

    def __init__(self, descriptor: int, mountpoint: Mountpoint) -> None:
        self.descriptor = descriptor
        self.number = device_number(mountpoint.path)
        self._watcher: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """The connection ends, whoever still uses it; nothing is unmounted. Harmless when it has ended."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def watch(self, path: Path) -> None:
        """Have it unmounted when this process dies. On a machine without a shell a dead mount has to be cleared by hand."""
        if self.number is None:
            return
        unmount = ["umount", "-lic", "--"] if os.geteuid() == 0 else ["fusermount3", "-uzq", "--"]
        command = ["/bin/sh", "-c", _WATCH, "isblk", "{}:{}".format(*self.number), _escaped(path), *unmount, os.fspath(path)]
        null = subprocess.DEVNULL
        try:
            # A session of its own: Ctrl-C at the terminal ends the daemon in order, and is none of the shell's.
            self._watcher = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=null, stderr=null, cwd="/", start_new_session=True, bufsize=0
            )
        except OSError as error:
            log.info("nothing will unmount %s should this daemon be killed: %s", path, error)

    def dismiss(self) -> None:
        """Behind an unmount: nobody has to unmount any more. (Somebody else's mount may be at that place by now.)"""
        watcher, self._watcher = self._watcher, None
        if watcher is None or watcher.stdin is None:
            return
        with suppress(OSError):
            watcher.stdin.write(b"\n")
        watcher.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            watcher.wait(5)


def mount(mountpoint: Mountpoint, options: MountOptions, read_only: bool) -> Mounted:
    """Mount. Raises UsageError with what the kernel or fusermount3 has against it; a mountpoint that was made for this is removed then."""
    try:
        descriptor = (_mount_as_root if os.geteuid() == 0 else _mount_as_user)(mountpoint, options, read_only)
    except UsageError:
        mountpoint.remove()
        raise
    mounted = Mounted(descriptor, mountpoint)
    mounted.watch(mountpoint.path)
    return mounted


# --------------------------------------------------------------------------------------------------------------------------- root


def _mount_as_root(mountpoint: Mountpoint, options: MountOptions, read_only: bool) -> int:
    try:
        descriptor = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{FUSE_DEVICE} cannot be opened: {error.strerror}; load the module (modprobe fuse)") from None
    words = [f"fd={descriptor}", f"rootmode={_DIRECTORY if mountpoint.is_directory else _FILE:o}", f"user_id={os.getuid()}"]
    words += [f"group_id={os.getgid()}", "default_permissions", *(["allow_other"] if options.allow_other else [])]
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0) | sum(KERNEL_FLAGS[word] for word in options.kernel)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (
        options.shown_source.encode(),
        os.fsencode(mountpoint.path),
        TYPE.encode(),
        ctypes.c_ulong(flags),
        ",".join(words).encode(),
    )
    if libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        remedy = "; give the container CAP_SYS_ADMIN, or run as an ordinary user" if number == errno.EPERM else ""
        raise UsageError(f"{mountpoint.path} cannot be mounted on: {os.strerror(number)}{remedy}")
    return descriptor


def _escaped(path: Path) -> str:
    """A path as mountinfo writes it; `read -r` leaves the backslashes alone."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in os.fspath(path))


# -------------------------------------------------------------------------------------------------------------------- other users


def _mount_as_user(mountpoint: Mountpoint, options: MountOptions, read_only: bool) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs, tempfile.TemporaryFile() as words:
        ours.settimeout(HANDOVER_SECONDS)
        command = ["fusermount3", "-o", ",".join(sorted(options.for_libfuse(read_only))), "--", os.fspath(mountpoint.path)]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"}
        null = subprocess.DEVNULL
        try:
            helper = subprocess.Popen(command, stdin=null, stdout=null, stderr=words, env=environment, pass_fds=[theirs.fileno()])
        except OSError as error:
            raise UsageError(f"fusermount3 cannot be started ({error.strerror}), and only root can mount without it") from None
        theirs.close()
        descriptor = _handed_over(ours)
        if descriptor is None:
            helper.kill()
        helper.wait()
        words.seek(0)
        lines = words.read().decode(errors="replace").splitlines()
    if descriptor is None:
        reason = next((line.strip() for line in lines if line.strip()), "fusermount3 gave no reason")
        raise UsageError(f"{mountpoint.path} cannot be mounted on: {reason}")
    os.set_blocking(descriptor, False)
    return descriptor


def _handed_over(sock: socket.socket) -> int | None:
    """The descriptor that comes with a byte; None when the socket ends without one."""
    found = array.array("i")
    try:
        _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(found.itemsize), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= found.itemsize:
            found.frombytes(data[: found.itemsize])
            return found[0]
    return None
