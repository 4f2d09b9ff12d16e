"""Random work on one file of a mount, each result compared with a bytearray: every way to read, to write and to ask for holes, mixed.

What a disk shows as a file has to agree with itself whichever way it is used: system calls, O_DIRECT, a shared mapping, holes that are
punched, ranges that are zeroed or copied. One user at a time; the same seed does the same work.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

PUNCH, KEEP, ZERO = 2, 1, 16
DIRECT = 4096
"""What O_DIRECT is aligned to here."""
LONGEST = 300_000
_libc = ctypes.CDLL(None, use_errno=True)


class Exerciser:
    """Random operations on the file at `place`, of which `content` is what must be there.

    Without `to_the_end` no write passes the end of the disk: a write-back cache takes what the disk will refuse.
    """

    def __init__(self, place: Path, content: bytes, seed: int, to_the_end: bool = True) -> None:
        self.content = bytearray(content)
        self.done: dict[str, int] = {}
        self.holes = 0
        self._place = place
        self._chance = random.Random(seed)
        self._last: deque[str] = deque(maxlen=12)
        self._buffer = mmap.mmap(-1, 2 * LONGEST)
        self._actions: list[Callable[[], None]] = [
            *(self.read, self.write, self.read_direct, self.write_direct, self.read_mapped, self.write_mapped),
            *(self.punch, self.zero, self.copy, self.seek, self.sync, self.open_again),
            *([self.write_past_the_end] if to_the_end else []),
        ]
        self._open()

    def __enter__(self) -> Exerciser:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._buffer.close()

    def run(self, steps: int) -> None:
        """Do `steps` of them, compare everything at the end; AssertionError with the latest operations for the first byte that is wrong."""
        for number in range(steps):
            action = self._chance.choice(self._actions)
            self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
            try:
                action()
            except OSError as error:
                raise AssertionError(f"operation {number}: {error}: {'; '.join(self._last)}") from error
        self.open_again()
        self._compare(0, os.pread(self._file, len(self.content) + 1, 0))
        assert len(self.content) == os.fstat(self._file).st_size

    # ------------------------------------------------------------------ operations

    def read(self) -> None:
        """pread."""
        offset, length = self._range("read")
        self._compare(offset, os.pread(self._file, length, offset))

    def write(self) -> None:
        """pwrite."""
        offset, length = self._range("write")
        self._put(offset, data := self._data(length))
        assert os.pwrite(self._file, data, offset) == length

    def read_direct(self) -> None:
        """preadv with O_DIRECT."""
        offset, length = self._range("read_direct", DIRECT)
        with memoryview(self._buffer)[:length] as view:
            assert os.preadv(self._direct, [view], offset) == length
            self._compare(offset, bytes(view))

    def write_direct(self) -> None:
        """pwritev with O_DIRECT."""
        offset, length = self._range("write_direct", DIRECT)
        self._put(offset, data := self._data(length))
        with memoryview(self._buffer)[:length] as view:
            view[:] = data
            assert os.pwritev(self._direct, [view], offset) == length

    def read_mapped(self) -> None:
        """Load from a shared mapping."""
        offset, length = self._range("read_mapped")
        self._compare(offset, self._mapped[offset : offset + length])

    def write_mapped(self) -> None:
        """Store to a shared mapping, and msync: before it nobody else need see it."""
        offset, length = self._range("write_mapped")
        self._put(offset, data := self._data(length))
        self._mapped[offset : offset + length] = data
        self._mapped.flush()

    def punch(self) -> None:
        """fallocate: a hole."""
        offset, length = self._range("punch")
        self._put(offset, bytes(length))
        self._fallocate(PUNCH | KEEP, offset, length)

    def zero(self) -> None:
        """fallocate: zeroes."""
        offset, length = self._range("zero")
        self._put(offset, bytes(length))
        self._fallocate(ZERO, offset, length)

    def copy(self) -> None:
        """copy_file_range within the file, between ranges that do not overlap."""
        half = len(self.content) // 2
        source, target = self._chance.sample([0, half], 2)
        length = self._chance.randrange(1, LONGEST)
        source, target = source + self._chance.randrange(half - length), target + self._chance.randrange(half - length)
        self._note(f"copy {source}+{length} to {target}")
        data = bytes(self.content[source : source + length])
        self._put(target, data)
        copied = 0
        while copied < length:
            count = os.copy_file_range(self._file, self._file, length - copied, source + copied, target + copied)
            assert count, "nothing more is copied"
            copied += count

    def seek(self) -> None:
        """SEEK_DATA and SEEK_HOLE: what is called a hole must be zeroes; what is called data may be, while not all is known."""
        offset = self._chance.randrange(len(self.content))
        self._note(f"seek {offset}")
        hole = os.lseek(self._file, offset, os.SEEK_HOLE)
        assert offset <= hole <= len(self.content)
        self._compare(hole, bytes(min(512 - hole % 512, len(self.content) - hole)))
        try:
            data = os.lseek(self._file, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = len(self.content)
        assert offset <= data <= len(self.content)
        self.holes += data > offset
        self._compare(offset, bytes(data - offset))

    def sync(self) -> None:
        """fsync."""
        self._note("sync")
        os.fsync(self._file)

    def open_again(self) -> None:
        """Close and open, with nothing in the page cache."""
        self._note("open again")
        os.fsync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        self._close()
        self._open()

    def write_past_the_end(self) -> None:
        """What fits is written, as on a block device."""
        end = len(self.content)
        length = self._chance.randrange(1, LONGEST)
        fits = self._chance.randrange(1, length + 1)
        self._note(f"write {end - fits}+{length}, past the end")
        data = self._data(length)
        written = os.pwrite(self._file, data[:fits] if self._chance.random() < 0.5 else data, end - fits)
        assert 0 < written <= fits
        self._put(end - fits, data[:written])

    # ------------------------------------------------------------------ what they are made of

    def _open(self) -> None:
        self._file = os.open(self._place, os.O_RDWR | os.O_CLOEXEC)
        self._direct = os.open(self._place, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._mapped = mmap.mmap(self._file, len(self.content))

    def _close(self) -> None:
        self._mapped.close()
        os.close(self._file)
        os.close(self._direct)

    def _range(self, what: str, aligned: int = 1) -> tuple[int, int]:
        """An offset and a length within the file; often short, often at a boundary."""
        chance, size = self._chance, len(self.content)
        length = chance.choice([1, 511, 512, 4096, 4097, chance.randrange(1, LONGEST), chance.randrange(1, 20_000)])
        length = max(aligned, length // aligned * aligned)
        offset = chance.randrange(size - length + 1)
        if chance.random() < 0.5:
            offset -= offset % 4096
        offset -= offset % aligned
        self._note(f"{what} {offset}+{length}")
        return offset, length

    def _data(self, length: int) -> bytes:
        return self._chance.randbytes(length)

    def _put(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self._file, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _note(self, what: str) -> None:
        self._last.append(what)

    def _compare(self, offset: int, found: bytes) -> None:
        due = self.content[offset : offset + len(found)]
        if found != due:
            at = next((index for index, (one, other) in enumerate(zip(found, due, strict=False)) if one != other), len(due))
            raise AssertionError(f"byte {offset + at} is not what it should be: {'; '.join(self._last)}")
