"""What both FUSE engines are told and what both count: the options of a mount, how the kernel may cache, counters for `isblk status`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Engine(Enum):
    """Who speaks to /dev/fuse: this process (fusekernel.py), or libfuse by way of pyfuse3 (fuse.py)."""

    DIRECT = "direct"
    PYFUSE3 = "pyfuse3"


DEFAULT_ENGINE = Engine.DIRECT
"""The faster one in every row of scripts/bench; it knows more, and needs nothing that has to be compiled (pyfuse3 is an extra)."""


KERNEL_FLAGS = {"noexec": 8, "noatime": 1024, "nodiratime": 2048}
"""Words of -o that the kernel does, with their bits (mount(2)). The others that mount(8) knows say nothing about these files."""


class Caching(Enum):
    """What the kernel's page cache does for the files.

    WRITE_THROUGH: reads are kept, writes go to the target before they return. NONE: neither, for disks that other hosts write. WRITEBACK:
    writes return when they are in the cache, and their errors are told by fsync(2), as on a local disk.
    """

    WRITE_THROUGH = "write-through"
    NONE = "direct_io"
    WRITEBACK = "writeback"


@dataclass(frozen=True)
class MountOptions:
    """What mount(8) shows and allows: `source` is its first column (TARGET/LUN), `allow_other` lets other users in, by the files' modes.

    `kernel`: words of KERNEL_FLAGS.
    """

    source: str
    read_only: bool = False
    allow_other: bool = False
    caching: Caching = Caching.WRITE_THROUGH
    kernel: frozenset[str] = frozenset()

    @property
    def shown_source(self) -> str:
        """The source as libfuse and fusermount3 take it: commas separate options, bytes beyond ASCII are not taken; '_' stands there."""
        return "".join(c if c.isascii() and c.isprintable() and c not in ",\\ " else "_" for c in self.source)

    def for_libfuse(self, read_only: bool = False) -> set[str]:
        """The set that pyfuse3.init and fusermount3 take."""
        options = {"default_permissions", f"fsname={self.shown_source}", "subtype=isblk", *self.kernel}
        return options | ({"ro"} if self.read_only or read_only else set()) | ({"allow_other"} if self.allow_other else set())


class _Memory:
    """`held` tells how many bytes of memory the requests in flight hold; each engine puts its own way of knowing it there.

    Apart from the counters, so that `vars` of them are numbers.
    """

    __slots__ = ("held",)
    held: Callable[[], int]


@dataclass
class Counters(_Memory):
    """Operations finished (failed ones too), bytes moved, errors returned, and requests in flight now; for `isblk status`."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.held = int
