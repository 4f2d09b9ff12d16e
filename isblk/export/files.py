"""The file system shown: one regular file that is the root itself, or a directory with one file per disk LUN; names, attributes, sizes.

Theory of operation: a disk is shown as a regular file because only the kernel can make block devices, and mkfs, qemu and losetup all take a
regular file. It still behaves as a block device where the two differ and a user could lose data or be surprised:

* its size is the device's. Truncating to that size succeeds and does nothing; every other size is refused with EINVAL, which is what
  ftruncate(2) says of a block device (EPERM, the alternative, would send the user looking for rights);
* opening with O_TRUNC is accepted and ignored, as it is for /dev/sda, so `dd of=FILE` and `cp IMAGE FILE` work (but EBUSY while
  another program has the file open, for a reason of the kernel's that operations.py tells);
* a write that begins at or beyond the end gets ENOSPC, one that crosses it is short; a read there finds the end of the file;
* its blocks are those that the disk has allocated, as far as it tells (allocation.py), but never none: GNU tar would not read it;
* mode and owner stay as they were mounted (EPERM); times are accepted and forgotten (`cp -p`, `touch`), for a disk keeps none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from isblk.errors import RequestInvalid

if TYPE_CHECKING:
    from isblk.block.request import Device, Provisioned

ROOT = 1
"""The inode number of what is mounted, given by the FUSE protocol."""

SECTOR = 512
"""Bytes in one unit of `st_blocks`."""

PREFERRED_BLOCK = 4096
"""Bytes: `st_blksize`. Not the device's optimal transfer: the kernel takes it for the inode's block size, which may not exceed a page."""


@dataclass(frozen=True)
class Owner:
    """Who mounted (uid, gid) and when, in nanoseconds since 1970: the owner and all the times of every file."""

    uid: int
    gid: int
    mounted_ns: int


@dataclass(frozen=True)
class Attributes:
    """What stat(2) shows of one inode: `size` in bytes, `blocks` in units of 512 bytes."""

    inode: int
    mode: int
    size: int
    blocks: int
    links: int
    owner: Owner


@dataclass(frozen=True)
class Space:
    """What statvfs(3) shows: `blocks` of `block_size` bytes each, none free, for the disks are all there is."""

    block_size: int
    blocks: int
    files: int


class Usage(Protocol):
    """What is known of how much of a disk is allocated (allocation.Allocation is one)."""

    @property
    def known(self) -> int | None:
        """Bytes, as far as they are known."""

    def ask(self) -> None:
        """Somebody wants to know: find out again, if what is known is old."""


@dataclass(frozen=True)
class Details:
    """What is known of a disk beside its bytes.

    `labels()` are shown as extended attributes, `user.isblk.` before each name. `lba_status(offset, length)`, in bytes and whole physical
    blocks, tells what is provisioned (block.mapping.Extent fits); without it everything counts as data. `usage` sums that up; without it
    everything counts as allocated. `ready()` returns when the disk is there, for one that comes when it is used: who opens it while its
    size is not known, 0, has to wait for that.
    """

    labels: Callable[[], Mapping[str, str]] = dict
    lba_status: Callable[[int, int], Awaitable[Sequence[Provisioned]]] | None = None
    usage: Usage | None = None
    ready: Callable[[], Awaitable[None]] | None = None


class Volume:
    """The inodes of one mount. Sizes are asked from the devices each time, so that a resize shows at once.

    `forget_pages()`, set by the engine where the kernel caches pages, has it drop them all. Raises errors.RequestInvalid, with its errno,
    for whatever the file system refuses.
    """

    def __init__(
        self,
        root: Device | None,
        disks: Mapping[int, Device],
        owner: Owner,
        read_only: bool = False,
        details: Mapping[int, Details] | None = None,
    ) -> None:
        """`details` by LUN; of the one disk that is a file itself, by 0."""
        self._root = root
        self._owner = owner
        self._read_only = read_only
        self._details: dict[int, Details] = {ROOT: details[0]} if root is not None and details else {}
        self.devices: dict[int, Device] = {ROOT: root} if root is not None else {}
        self.forget_pages: Callable[[], Awaitable[None]] | None = None
        self._names: dict[bytes, int] = {}
        for inode, lun in enumerate(sorted(disks), start=ROOT + 1):
            self.devices[inode] = disks[lun]
            self._names[b"lun%d" % lun] = inode
            if details and lun in details:
                self._details[inode] = details[lun]

    @classmethod
    def of_file(cls, device: Device, owner: Owner, read_only: bool = False, details: Details | None = None) -> Volume:
        """One disk as the mounted file itself."""
        return cls(device, {}, owner, read_only, {0: details} if details is not None else None)

    @classmethod
    def of_directory(
        cls, disks: Mapping[int, Device], owner: Owner, read_only: bool = False, details: Mapping[int, Details] | None = None
    ) -> Volume:
        """A directory with one file per disk, by LUN: lun0, lun1, ... (`lun_from_bytes` of SAM-5 4.7, so up to 64 bits)."""
        return cls(None, disks, owner, read_only, details)

    @property
    def is_directory(self) -> bool:
        """Whether the mountpoint has to be a directory."""
        return self._root is None

    @property
    def read_only(self) -> bool:
        """Whether nothing in the volume can be written, so that the mount as a whole is read-only."""
        return all(self.is_read_only(inode) for inode in self.devices)

    def is_read_only(self, inode: int) -> bool:
        """Whether writes to this file are refused: by the mount's option or by the device's write protection."""
        return self._read_only or self._device(inode).geometry.read_only

    def attributes(self, inode: int) -> Attributes:
        """What stat(2) shows; ENOENT for an inode that is not there."""
        if inode == ROOT and self._root is None:
            mode = stat.S_IFDIR | (0o500 if self._read_only else 0o700)
            return Attributes(ROOT, mode, 0, 0, 2, self._owner)
        size = self.size(inode)
        mode = stat.S_IFREG | (0o400 if self.is_read_only(inode) else 0o600)
        usage = self.details(inode).usage
        if usage is not None:
            usage.ask()
        return Attributes(inode, mode, size, self.blocks(inode), 1, self._owner)

    def blocks(self, inode: int) -> int:
        """How many blocks of 512 bytes of a file are allocated, as far as is known by now."""
        size, usage = self.size(inode), self.details(inode).usage
        allocated = usage.known if usage is not None else None
        return -(-min(size, max(size if allocated is None else allocated, PREFERRED_BLOCK)) // SECTOR)

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """The entry `name` of a directory; ENOTDIR or ENOENT where there is none."""
        self.check_directory(parent)
        if name in (b".", b".."):
            return self.attributes(ROOT)
        if name not in self._names:
            raise RequestInvalid(f"no file {os.fsdecode(name)!r} here", errno.ENOENT)
        return self.attributes(self._names[name])

    def entries(self, after: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """The directory's entries behind cookie `after` (0: from the start), each with its own cookie, which is its inode number."""
        for name, inode in self._names.items():
            if inode > after:
                yield name, self.attributes(inode), inode

    def files(self) -> dict[bytes, int]:
        """The inode of each file by its name; of the one disk that is the root itself by an empty name."""
        return {b"": ROOT} if self._root is not None else dict(self._names)

    def check_directory(self, inode: int) -> None:
        """Pass for the root of the directory form; ENOTDIR for a file."""
        if not stat.S_ISDIR(self.attributes(inode).mode):
            raise RequestInvalid("this is a file, not a directory", errno.ENOTDIR)

    def check_open(self, inode: int, flags: int) -> None:
        """Pass for what open(2) may do; EROFS for writing to a read-only file, root included, whom mode 0400 would not stop; EISDIR."""
        if inode not in self.devices:
            self.attributes(inode)
            raise RequestInvalid("this is a directory, not a file", errno.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY and self.is_read_only(inode):
            raise RequestInvalid("the disk is write-protected or mounted read-only", errno.EROFS)

    def check_resize(self, inode: int, size: int) -> None:
        """Pass when `size` (bytes) is the size already; EINVAL for another."""
        if size != self.size(inode):
            raise RequestInvalid(f"a disk of {self.size(inode)} bytes cannot be made {size} bytes long", errno.EINVAL)

    def size(self, inode: int) -> int:
        """The file's size in bytes; ENOENT for an inode that is not there."""
        return self._device(inode).geometry.size

    def awaited(self, inode: int) -> Callable[[], Awaitable[None]] | None:
        """What an open of this file has to wait for first, if anything."""
        ready = self.details(inode).ready
        return ready if ready is not None and not self.size(inode) else None

    def details(self, inode: int) -> Details:
        """What is known of the disk behind an inode; nothing of a directory."""
        return self._details.get(inode, Details())

    def readable(self, inode: int, offset: int, length: int) -> int:
        """How many of `length` bytes at `offset` lie before the end of the file."""
        return max(0, min(length, self.size(inode) - offset))

    def writable(self, inode: int, offset: int, length: int) -> int:
        """How many of `length` bytes at `offset` can be written; ENOSPC when none, as at the end of a block device."""
        fits = self.readable(inode, offset, length)
        if length and not fits:
            raise RequestInvalid(f"byte {offset} is beyond the end of the disk", errno.ENOSPC)
        return fits

    def space(self) -> Space:
        """What statvfs(3) shows, in blocks of 4096 bytes, begun blocks counted whole."""
        blocks = sum(-(-device.geometry.size // PREFERRED_BLOCK) for device in self.devices.values())
        return Space(PREFERRED_BLOCK, blocks, len(self.devices))

    def _device(self, inode: int) -> Device:
        device = self.devices.get(inode)
        if device is None:
            raise RequestInvalid(f"no inode {inode} here", errno.ENOENT)
        return device
