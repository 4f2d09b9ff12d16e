"""files.py: what a disk looks like as a file, and where it stays a disk."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.request import Geometry, Request
from isblk.errors import RequestInvalid
from isblk.export.files import ROOT, Details, Owner, Volume

OWNER = Owner(1000, 100, 1_700_000_000_000_000_000)
MIB = 1 << 20


class Disk:
    def __init__(self, size: int = MIB, read_only: bool = False) -> None:
        self.geometry = Geometry(size, 512, 512, read_only=read_only)

    def submit(self, request: Request) -> None:
        raise AssertionError("the file system asks a device only for its geometry")

    def kick(self) -> None:
        raise AssertionError("the file system asks a device only for its geometry")


def refused(number: int) -> pytest.RaisesExc[RequestInvalid]:
    return pytest.raises(RequestInvalid, check=lambda error: error.errno == number)


def test_one_disk_is_the_root_itself() -> None:
    shown = Volume.of_file(Disk(5 * 512), OWNER).attributes(ROOT)
    assert stat.S_ISREG(shown.mode)
    assert stat.S_IMODE(shown.mode) == 0o600
    assert (shown.size, shown.blocks, shown.links, shown.owner) == (2560, 5, 1, OWNER)


def test_a_directory_has_a_file_per_lun_in_order() -> None:
    volume = Volume.of_directory({10: Disk(3 * MIB), 2: Disk(2 * MIB), 1 << 40: Disk(4 * MIB)}, OWNER)
    assert stat.S_IFMT(volume.attributes(ROOT).mode) == stat.S_IFDIR
    assert [(name, attributes.size) for name, attributes, _ in volume.entries(0)] == [
        (b"lun2", 2 * MIB),
        (b"lun10", 3 * MIB),
        (b"lun%d" % (1 << 40), 4 * MIB),
    ]


def test_a_listing_goes_on_behind_each_cookie() -> None:
    volume = Volume.of_directory({lun: Disk() for lun in range(5)}, OWNER)
    whole = [name for name, _, _ in volume.entries(0)]
    cookies = [cookie for _, _, cookie in volume.entries(0)]
    for position, cookie in enumerate(cookies):
        assert [name for name, _, _ in volume.entries(cookie)] == whole[position + 1 :]


def test_names_are_found_and_others_are_not() -> None:
    volume = Volume.of_directory({0: Disk(), 7: Disk(2 * MIB)}, OWNER)
    assert volume.lookup(ROOT, b"lun7").size == 2 * MIB
    assert volume.lookup(ROOT, b".").inode == ROOT
    for name in (b"lun1", b"lun07", b"LUN0", b"", b"lun0/"):
        with refused(errno.ENOENT):
            volume.lookup(ROOT, name)
    with refused(errno.ENOTDIR):
        volume.lookup(volume.lookup(ROOT, b"lun0").inode, b"lun7")
    with refused(errno.ENOENT):
        volume.attributes(99)


def test_a_file_is_no_directory_and_a_directory_no_file() -> None:
    with refused(errno.ENOTDIR):
        Volume.of_file(Disk(), OWNER).check_directory(ROOT)
    with refused(errno.EISDIR):
        Volume.of_directory({0: Disk()}, OWNER).check_open(ROOT, os.O_RDONLY)
    with refused(errno.ENOENT):
        Volume.of_directory({0: Disk()}, OWNER).check_open(99, os.O_RDONLY)


@pytest.mark.parametrize("by_option", [False, True])
def test_a_read_only_disk_has_mode_0400_and_opens_only_for_reading(by_option: bool) -> None:
    volume = Volume.of_file(Disk(read_only=not by_option), OWNER, read_only=by_option)
    assert volume.read_only
    assert stat.S_IMODE(volume.attributes(ROOT).mode) == 0o400
    volume.check_open(ROOT, os.O_RDONLY)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with refused(errno.EROFS):
            volume.check_open(ROOT, flags)


def test_a_directory_is_read_only_when_each_of_its_disks_is() -> None:
    mixed = Volume.of_directory({0: Disk(read_only=True), 1: Disk()}, OWNER)
    assert not mixed.read_only
    assert [mixed.is_read_only(mixed.lookup(ROOT, name).inode) for name in (b"lun0", b"lun1")] == [True, False]
    assert Volume.of_directory({0: Disk(read_only=True), 1: Disk(read_only=True)}, OWNER).read_only


def test_truncating_is_accepted_to_the_same_size_only() -> None:
    volume = Volume.of_file(Disk(), OWNER)
    volume.check_resize(ROOT, MIB)
    for size in (0, MIB - 1, MIB + 1, 1 << 60):
        with refused(errno.EINVAL):
            volume.check_resize(ROOT, size)


def test_opening_with_truncation_is_harmless() -> None:
    volume = Volume.of_file(Disk(), OWNER)
    volume.check_open(ROOT, os.O_WRONLY | os.O_TRUNC)
    assert volume.size(ROOT) == MIB


@given(st.integers(0, 3 * 4096), st.integers(0, 3 * 4096))
def test_reads_and_writes_end_with_the_disk(offset: int, length: int) -> None:
    volume = Volume.of_file(Disk(4096), OWNER)
    expected = len(range(4096)[offset : offset + length])
    assert volume.readable(ROOT, offset, length) == expected
    if expected or not length:
        assert volume.writable(ROOT, offset, length) == expected
    else:
        with refused(errno.ENOSPC):
            volume.writable(ROOT, offset, length)


def test_a_resized_disk_shows_its_new_size() -> None:
    disk = Disk()
    volume = Volume.of_directory({3: disk}, OWNER)
    disk.geometry = Geometry(2 * MIB, 512, 512)
    assert volume.lookup(ROOT, b"lun3").size == 2 * MIB
    volume.check_resize(volume.lookup(ROOT, b"lun3").inode, 2 * MIB)


def test_the_file_system_is_full_of_its_disks() -> None:
    space = Volume.of_directory({0: Disk(4096), 1: Disk(512)}, OWNER).space()
    assert (space.block_size, space.blocks, space.files) == (4096, 2, 2)


def test_only_a_disk_that_comes_later_and_has_no_size_yet_is_waited_for() -> None:
    async def ready() -> None:
        """Never called here."""

    disk = Disk(0)
    assert Volume.of_file(disk, OWNER).awaited(ROOT) is None
    volume = Volume.of_file(disk, OWNER, details=Details(ready=ready))
    assert volume.awaited(ROOT) is ready
    disk.geometry = Geometry(MIB, 512, 512)
    assert volume.awaited(ROOT) is None
