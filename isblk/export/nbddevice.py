"""The kernel's NBD devices as the file system shows them: /dev/nbdN, what sysfs tells of one, who uses it, and writing back its page cache.

Who uses a device is found out without opening it, for to open it reads its partition table, which takes as long as its paths do: mount
points (of every mount namespace), swap, device mapper and md, loop devices, and open files. What none of these show (a target of the
kernel's, say) an exclusive open would find; it is not worth the hang.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from isblk.errors import RequestFailed, UsageError

ANY = ("any", "/dev/nbd")
"""Words for a device that is free."""
BLKFLSBUF = 0x1261
"""ioctl of linux/fs.h: write back what the page cache has of the device and of the file system on it."""
_DEVICE = re.compile(r"/dev/nbd([0-9]{1,6})", re.ASCII)
_SYS, _PROC = Path("/sys"), Path("/proc")
_ESCAPED = re.compile(r"\\([0-7]{3})", re.ASCII)


def parse(text: str) -> int | None:
    """The index of /dev/nbdN, also by a link to it; None for `any`. Raises UsageError."""
    if text in ANY:
        return None
    found = _DEVICE.fullmatch(os.path.realpath(text)) if text else None
    if found is None:
        raise UsageError(f"{text!r} is no NBD device: it looks like /dev/nbd0, or `any` for one that is free")
    return int(found[1])


def is_device(text: str) -> bool:
    """Whether `parse` would return an index."""
    return _DEVICE.fullmatch(os.path.realpath(text)) is not None


def path(index: int) -> str:
    """The device file."""
    return f"/dev/nbd{index}"


def owner(index: int) -> int | None:
    """The process that connected the device, which may have ended since; None when it is not connected."""
    text = _attribute(index, "pid")
    return int(text) if text and text.isdecimal() else None


def backend(index: int) -> str:
    """What the device says that it shows (netlink's backend identifier); empty when it says nothing."""
    return _attribute(index, "backend") or ""


def users(index: int) -> list[str]:
    """Who uses the device or a partition of it, each a phrase as 'mounted at /mnt' or 'open in process 7 (dd)'. Not this process."""
    files = {path(index), *(f"/dev/{each.name}" for each in (_SYS / "block" / f"nbd{index}").glob(f"nbd{index}p*"))}
    found = [*_mounts(index, files), *_swaps(files), *_holders(index), *_loops(files), *_openers(files)]
    return list(dict.fromkeys(found))


def write_back(index: int) -> None:
    """Write back what the page cache has of the device, and of a file system on it; takes as long as that does. Raises RequestFailed."""
    try:
        descriptor = os.open(path(index), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, BLKFLSBUF, 0)  # The file system too, which fsync of its device leaves alone; tells no error.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RequestFailed(f"what was written to {path(index)} could not be written back: {error.strerror}") from None


def _attribute(index: int, name: str) -> str | None:
    try:
        return (_SYS / "block" / f"nbd{index}" / name).read_text().strip()
    except OSError:
        return None


def _mounts(index: int, files: set[str]) -> Iterator[str]:
    """Once for each mount namespace there is a process in, ours first, whose names are those of the user (proc_pid_mountinfo(5))."""
    numbers = {_attribute(index, "dev"), *(_attribute(index, f"{Path(file).name}/dev") for file in files)} - {None}
    seen: set[str] = set()
    for process in (_PROC / "self", *_processes()):
        with suppress(OSError):
            namespace = os.readlink(process / "ns" / "mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            for line in (process / "mountinfo").read_text(errors="surrogateescape").splitlines():
                before, _, after = line.partition(" - ")
                fields, source = before.split(), after.split()[1:2]
                if fields[2] in numbers or files & set(source):
                    yield f"mounted at {_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])}"


def _swaps(files: set[str]) -> Iterator[str]:
    with suppress(OSError):
        for line in (_PROC / "swaps").read_text().splitlines()[1:]:
            if line.split()[0] in files:
                yield "used as swap"


def _holders(index: int) -> Iterator[str]:
    disk = _SYS / "block" / f"nbd{index}"
    for holder in (*disk.glob("holders/*"), *disk.glob(f"nbd{index}p*/holders/*")):
        yield f"a part of {holder.name}"


def _loops(files: set[str]) -> Iterator[str]:
    for backing in (_SYS / "block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().strip() in files:
                yield f"behind /dev/{backing.parts[-3]}"


def _openers(files: set[str]) -> Iterator[str]:
    for process in _processes():
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):
            if any(_link(each) in files for each in (process / "fd").iterdir()):
                yield f"open in process {process.name} ({(process / 'comm').read_text().strip()})"


def _link(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


def _processes() -> list[Path]:
    return [each for each in _PROC.iterdir() if each.name.isdecimal()]
