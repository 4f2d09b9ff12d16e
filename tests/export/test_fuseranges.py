"""fuseranges.py: holes that read as zeroes whatever the unit makes of UNMAP, holes that are found, copies that end where they must."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.block.mapping import Extent
from isblk.block.request import Op, Request
from isblk.errors import RequestInvalid
from isblk.export.files import Details
from isblk.export.fuseranges import COPY_MOST, FIRST_WINDOW, allocate, copy, seek
from isblk.export.fusewire import MAX_WRITE, Copy, Fallocate, Lseek, offset_reply
from isblk.scsi.data import Provisioning
from support.memorydevice import MemoryDevice, broken

MIB = 1 << 20
GRANULE = 8192
PUNCH, ZERO, KEEP = 2, 16, 1


def refused(number: int) -> pytest.RaisesExc[RequestInvalid]:
    return pytest.raises(RequestInvalid, check=lambda error: error.errno == number)


class ThinDevice(MemoryDevice):
    """TRIM unmaps whole granules and leaves out the ends, and every `lazy`-th granule; ZERO maps, or with `zero_unmaps` unmaps."""

    def __init__(self, size: int, lazy: int = 0, zero_unmaps: bool = False) -> None:
        super().__init__(size)
        self.geometry = replace(self.geometry, physical_block_size=4096, zero_unmaps=zero_unmaps)
        self.mapped = [True] * -(-size // GRANULE)
        self.lazy = lazy
        self.asked: list[tuple[int, int]] = []

    def _act(self, request: Request) -> None:
        end = request.offset + request.length
        if request.op is Op.TRIM or (request.op is Op.ZERO and self.geometry.zero_unmaps):
            for granule in range(-(-request.offset // GRANULE), end // GRANULE):
                if request.op is Op.ZERO or not self.lazy or granule % self.lazy:
                    self.mapped[granule] = False
                    self.content[granule * GRANULE : (granule + 1) * GRANULE] = bytes(GRANULE)
        elif request.op in (Op.WRITE, Op.ZERO):
            for granule in range(request.offset // GRANULE, -(-end // GRANULE)):
                self.mapped[granule] = True
        if request.op is not Op.TRIM:
            super()._act(request)

    async def lba_status(self, offset: int, length: int) -> Sequence[Extent]:
        assert offset % 4096 == 0 and (length % 4096 == 0 or offset + length == self.geometry.size)
        self.asked.append((offset, length))
        found = []
        for granule in range(offset // GRANULE, -(-(offset + length) // GRANULE)):
            start, end = max(offset, granule * GRANULE), min(offset + length, (granule + 1) * GRANULE)
            found.append(Extent(start, end - start, Provisioning.MAPPED if self.mapped[granule] else Provisioning.DEALLOCATED))
        return found


# --------------------------------------------------------------------------------------------------------------------- fallocate


@given(
    st.integers(0, 20 * GRANULE // 512 - 1),
    st.integers(1, 20 * GRANULE // 512),
    st.integers(0, 3),
    st.sampled_from([PUNCH | KEEP, ZERO, ZERO | KEEP]),
    st.booleans(),
)
async def test_what_was_punched_or_zeroed_reads_as_zeroes_and_nothing_else_does(
    first: int, blocks: int, lazy: int, mode: int, zero_unmaps: bool
) -> None:
    device = ThinDevice(20 * GRANULE, lazy, zero_unmaps)
    before = os.urandom(20 * GRANULE)
    device.content[:] = before
    offset, length = first * 512, min(blocks * 512, 20 * GRANULE - first * 512)
    assert await allocate(device, Details(dict, device.lba_status), Fallocate(1, offset, length, mode)) == b""
    assert device.content == before[:offset] + bytes(length) + before[offset + length :]


async def test_a_punched_hole_is_given_back() -> None:
    for device in (ThinDevice(20 * GRANULE), ThinDevice(20 * GRANULE, zero_unmaps=True)):
        await allocate(device, Details(dict, device.lba_status), Fallocate(1, GRANULE, 4 * GRANULE, PUNCH | KEEP))
        assert device.mapped == [True] + [False] * 4 + [True] * 15


async def test_a_unit_whose_unmapped_blocks_read_as_anything_is_written() -> None:
    device = MemoryDevice()
    device.geometry = replace(device.geometry, trim_reads_zero=False)
    await allocate(device, Details(), Fallocate(1, 0, 65536, PUNCH | KEEP))
    assert [seen.op for seen in device.requests] == [Op.ZERO]


@pytest.mark.parametrize("mode", [0, KEEP, PUNCH, 8 | KEEP, 32, 64, 1 << 20])
async def test_other_modes_are_none_of_a_disks(mode: int) -> None:
    with refused(errno.EOPNOTSUPP):
        await allocate(MemoryDevice(), Details(), Fallocate(1, 0, 4096, mode))


async def test_the_end_of_the_disk_bounds_a_range() -> None:
    device = MemoryDevice(MIB)
    await allocate(device, Details(), Fallocate(1, MIB - 4096, 1 << 40, ZERO | KEEP))
    assert (device.requests[-1].offset, device.requests[-1].length) == (MIB - 4096, 4096)
    for offset, length, mode in ((MIB - 4096, 8192, ZERO), (MIB, 4096, ZERO | KEEP), (1 << 63, 1, PUNCH | KEEP)):
        with refused(errno.ENOSPC):
            await allocate(device, Details(), Fallocate(1, offset, length, mode))


# ------------------------------------------------------------------------------------------------------------------------- lseek


async def at(device: MemoryDevice, whence: int, offset: int, ask: Callable[..., object] | None = None) -> int:
    details = Details(dict, ask or getattr(device, "lba_status", None))  # type: ignore[arg-type]
    return int.from_bytes(await seek(device, details, Lseek(1, offset, whence)), "little")


@given(st.lists(st.booleans(), min_size=20, max_size=20), st.integers(0, 20 * GRANULE - 1))
async def test_holes_and_data_are_where_the_unit_says(mapped: list[bool], offset: int) -> None:
    device = ThinDevice(20 * GRANULE)
    device.mapped = mapped
    for whence, is_sought in ((os.SEEK_DATA, True), (os.SEEK_HOLE, False)):
        expected = next((byte for byte in range(offset, 20 * GRANULE) if mapped[byte // GRANULE] is is_sought), None)
        if expected is None and whence == os.SEEK_DATA:
            with refused(errno.ENXIO):
                await at(device, whence, offset)
        else:
            assert await at(device, whence, offset) == (20 * GRANULE if expected is None else expected)


async def test_a_large_disk_is_asked_in_growing_steps_and_not_further_than_needed() -> None:
    device = ThinDevice(1024)
    asked = []

    async def status(offset: int, length: int) -> list[Extent]:
        asked.append((offset, length))
        hole = Provisioning.DEALLOCATED if offset + length < 5 << 30 else Provisioning.MAPPED
        return [Extent(offset, length, hole)]

    device.geometry = replace(device.geometry, size=1 << 50)
    found = await at(device, os.SEEK_DATA, 0, status)
    assert [length for _, length in asked] == [FIRST_WINDOW << step for step in range(len(asked))]
    assert found == asked[-1][0] and len(asked) < 9


async def test_what_is_not_known_is_data() -> None:
    device = ThinDevice(20 * GRANULE)

    async def knows_nothing(offset: int, length: int) -> list[Extent]:
        return []

    async def knows_a_hole(offset: int, length: int) -> list[Extent]:
        return [Extent(2 * GRANULE, GRANULE, Provisioning.DEALLOCATED)]

    for offset in (0, 5, GRANULE):
        assert await at(device, os.SEEK_DATA, offset, knows_nothing) == offset
        assert await at(device, os.SEEK_HOLE, offset, knows_nothing) == 20 * GRANULE
        assert await at(device, os.SEEK_HOLE, offset, knows_a_hole) == 2 * GRANULE
    assert await at(device, os.SEEK_DATA, 2 * GRANULE, knows_a_hole) == 3 * GRANULE


async def test_a_hole_that_reads_as_anything_is_data() -> None:
    device = ThinDevice(20 * GRANULE)
    device.mapped = [False] * 20
    device.geometry = replace(device.geometry, trim_reads_zero=False)
    assert await at(device, os.SEEK_DATA, 77) == 77
    assert device.asked == []


async def test_nothing_lies_beyond_the_end() -> None:
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        with refused(errno.ENXIO):
            await at(ThinDevice(GRANULE), whence, GRANULE)
    with refused(errno.EINVAL):
        await at(ThinDevice(GRANULE), os.SEEK_SET, 0)


# -------------------------------------------------------------------------------------------------------------------------- copy


async def copied(source: MemoryDevice, target: MemoryDevice, offset_in: int, offset_out: int, length: int, flags: int = 0) -> int:
    return int.from_bytes(await copy(source, target, Copy(1, offset_in, 1, 2, offset_out, length, flags), offset_reply), "little")


async def test_bytes_are_copied_between_disks_in_parts() -> None:
    source, target = MemoryDevice(4 * MIB), MemoryDevice(8 * MIB)
    source.content[:] = os.urandom(4 * MIB)
    assert await copied(source, target, 512, 4096, 3 * MIB) == 3 * MIB
    assert target.content[4096 : 4096 + 3 * MIB] == source.content[512 : 512 + 3 * MIB]
    assert max(seen.length for seen in target.requests) == MAX_WRITE


async def test_a_copy_ends_at_the_end_of_either_disk() -> None:
    source, target = MemoryDevice(MIB), MemoryDevice(MIB)
    assert await copied(source, target, MIB - 4096, 0, 1 << 40) == 4096
    assert await copied(source, target, MIB, 0, 4096) == 0
    assert await copied(source, target, 0, MIB - 512, 4096) == 512
    with refused(errno.ENOSPC):
        await copied(source, target, 0, MIB, 4096)
    with refused(errno.EINVAL):
        await copied(source, target, 0, 0, 4096, flags=1)


async def test_a_long_copy_comes_back_in_between() -> None:
    device = MemoryDevice(64 * MIB)
    assert await copied(device, device, 0, 32 * MIB, 32 * MIB) == COPY_MOST


async def test_an_error_is_told_when_nothing_was_copied_and_a_shorter_copy_when_something_was() -> None:
    source, target = MemoryDevice(4 * MIB), MemoryDevice(4 * MIB)
    source.failing = lambda request: broken() if request.offset >= MIB else None
    assert await copied(source, target, 0, 0, 3 * MIB) == MIB
    with pytest.raises(Exception, match="wants this to fail"):
        await copied(source, target, MIB, 0, MIB)
