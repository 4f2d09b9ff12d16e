"""Bytes of a logical unit: memory or a sparse file with real holes, under a volatile write cache that a crash can lose.

Theory of operation: both kinds are a file descriptor (a memory disk is a memfd), so holes, reading and writing are one code. The
descriptor is the medium; what lies in it is durable. A cached write lands in `_cache`, an anonymous mapping as large as the disk of which
only touched pages exist, and `_dirty` says which bytes of it count. Reading lays the dirty bytes over the medium's. The cache is written
back by `sync`, and when it passes its limit (a real disk destages when it likes, SBC-3 4.15). Rejected: mapping the file copy-on-write,
which saves a copy on reads but turns a truncated file into SIGBUS and makes memory out of every hole that is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os

from isblk.errors import UsageError
from isblk.target.extents import Extents

CACHE_LIMIT = 64 << 20
_LARGEST = 1 << 46
_PAGE = mmap.PAGESIZE
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Store:
    """A disk's bytes. Offsets and lengths in bytes, within `size`; the caller has checked them. Failures of the medium are OSError."""

    def __init__(self, fd: int, size: int, cache_limit: int = CACHE_LIMIT) -> None:
        if not 0 < size <= _LARGEST:
            raise UsageError(f"a disk of {size} bytes cannot be offered: choose a size from 1 byte to 64 TiB")
        self.size = size
        self.cache_limit = cache_limit
        self._fd = fd
        self._cache = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self._dirty = Extents()

    @classmethod
    def in_memory(cls, size: int, cache_limit: int = CACHE_LIMIT) -> Store:
        """A disk that starts as zeros and ends with the process."""
        return _owning(os.memfd_create("isblk-disk", os.MFD_CLOEXEC), size, cache_limit, grow=True)

    @classmethod
    def at_path(cls, path: str, size: int | None = None, read_only: bool = False, cache_limit: int = CACHE_LIMIT) -> Store:
        """A disk in a file or block device; with `size`, a file that is missing or empty is created sparse. Raises UsageError."""
        mode = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if size else 0)
        try:
            fd = os.open(path, mode | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"cannot open the disk file {path}: {error.strerror}; give its size as {path}:SIZE to create it") from None
        try:
            found = _claim(fd, path, read_only)
            if found and size and found != size:
                raise UsageError(f"the disk file {path} has {found} bytes, not {size}: leave the size out, or choose another file")
            if not found and not size:
                raise UsageError(f"the disk file {path} is empty: give its size as {path}:SIZE")
        except UsageError:
            os.close(fd)
            raise
        return _owning(fd, found or size or 0, cache_limit, grow=not found)

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """The bytes as they are now, cached writes included."""
        if not self._dirty:
            return self._pread(offset, length)
        ranges = self._dirty.overlapping(offset, offset + length)
        if not ranges:
            return self._pread(offset, length)
        if ranges == [(offset, offset + length)]:
            return self._cache[offset : offset + length]
        data = bytearray(self._pread(offset, length))
        for start, end in ranges:
            data[start - offset : end - offset] = self._cache[start:end]
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write into the cache: a crash loses it until `sync`."""
        end = offset + len(data)
        self._cache[offset:end] = data
        self._dirty.add(offset, end)
        if self._dirty.size > self.cache_limit:
            self.sync()

    def write_through(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write onto the medium (FUA, or a disk without a cache)."""
        self._pwrite(offset, memoryview(data))
        self._dirty.remove(offset, offset + len(data))
        os.fdatasync(self._fd)

    def deallocate(self, offset: int, length: int) -> None:
        """Make a hole that reads as zeros; at once on the medium, which SBC-3 4.7.3.4 allows whatever the cache."""
        self._dirty.remove(offset, offset + length)
        if _libc.fallocate(self._fd, _FALLOC_KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
            return
        if ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), "cannot punch a hole")
        zeros = memoryview(bytes(min(length, 1 << 20)))
        for start in range(offset, offset + length, len(zeros)):
            self._pwrite(start, zeros[: offset + length - start])

    def sync(self) -> None:
        """Write the cache back and wait for the medium; after it a crash loses nothing."""
        for start, end in self._dirty:
            with memoryview(self._cache) as view, view[start:end] as part:
                self._pwrite(start, part)
        os.fdatasync(self._fd)
        for start, end in self._dirty:
            first = start - start % _PAGE
            self._cache.madvise(mmap.MADV_DONTNEED, first, end - first)
        self._dirty.clear()

    def crash(self) -> None:
        """Lose power: what `sync` or `write_through` did not put on the medium is gone."""
        self._dirty.clear()

    def resize(self, size: int) -> None:
        """Grow by zeros, or cut off the end, what is cached of it included. Raises UsageError where the medium cannot."""
        if not 0 < size <= _LARGEST:
            raise UsageError(f"a disk of {size} bytes cannot be offered: choose a size from 1 byte to 64 TiB")
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise UsageError(f"cannot make the disk {size} bytes large: {error.strerror}") from None
        if size < self.size:
            self._dirty.remove(size, self.size)
        # Pages beyond the old end are new ones; what a shrunken disk had there is unmapped, so it does not come back when it grows.
        self._cache.resize(size)
        self.size = size

    def is_dirty(self, offset: int, length: int) -> bool:
        return bool(self._dirty.overlapping(offset, offset + length))

    def durable(self, offset: int, length: int) -> bytes:
        """What the medium holds, the cache left out of sight: what would be found after a crash."""
        return self._pread(offset, length)

    def allocation(self, offset: int) -> tuple[bool, int]:
        """(allocated, end): whether the bytes from `offset` to `end` are backed by anything (SEEK_DATA, SEEK_HOLE, or the cache)."""
        cached = self._dirty.after(offset)
        if cached and cached[0] <= offset:
            return True, cached[1]
        allocated, end = self._medium_allocation(offset)
        if not allocated and cached:
            end = min(end, cached[0])
        return allocated, end

    def _medium_allocation(self, offset: int) -> tuple[bool, int]:
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: no data up to the end. Anything else: the medium has no holes to speak of (a block device).
            return error.errno != errno.ENXIO, self.size
        if data > offset:
            return False, min(data, self.size)
        return True, min(os.lseek(self._fd, offset, os.SEEK_HOLE), self.size)

    def close(self) -> None:
        """Write back what is cached and let go of the file. A second call does nothing."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self.sync()
        os.close(self._fd)
        self._cache.close()
        self._fd = -1

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                # The file was cut short under us; the missing end reads as a hole would.
                return data + bytes(length - len(data))
            data += more
        return data

    def _pwrite(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def __repr__(self) -> str:
        return f"<Store {self.size} bytes, {self._dirty.size} not synchronized>"


def _claim(fd: int, path: str, read_only: bool) -> int:
    """Lock the file against a second target (its cache would not see ours); the file's size in bytes."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        busy = error.errno == errno.EWOULDBLOCK
        raise UsageError(f"cannot use the disk file {path}: {'another target offers it' if busy else error.strerror}") from None


def _owning(fd: int, size: int, cache_limit: int, grow: bool) -> Store:
    try:
        if grow:
            os.ftruncate(fd, size)
        return Store(fd, size, cache_limit)
    except OSError as error:
        os.close(fd)
        raise UsageError(f"cannot make a disk of {size} bytes: {error.strerror}; choose a smaller size") from None
    except UsageError:
        os.close(fd)
        raise
