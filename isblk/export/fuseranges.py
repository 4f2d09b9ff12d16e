"""What is done to a range of a disk in several steps: punch a hole, zero, look for holes, copy. Beside the hot road, so with await.

A hole that was punched reads as zeroes, whatever the logical unit thinks of UNMAP: mkfs.ext4 relies on it, and a loop device turns both
discards and write-zeroes into it. ZERO (WRITE SAME with UNMAP) is both at once where the unit has it. Where it has UNMAP alone, what is
still mapped afterwards, by GET LBA STATUS, is zeroed, and so is what UNMAP may leave out, the ends that are no whole granule.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from isblk.block.request import Device, Provisioned, read, trim, write, zero
from isblk.errors import IsblkError, RequestInvalid
from isblk.export.files import Details
from isblk.export.fusewire import MAX_WRITE, Copy, Fallocate, FallocateMode, Lseek, offset_reply

COPY_MOST: Final = 16 << 20
"""Bytes copied for one COPY_FILE_RANGE: the caller goes on by itself, and can be interrupted in between."""
FIRST_WINDOW: Final = 64 << 20
"""Bytes asked about at once when looking for a hole; doubled with each step, up to LAST_WINDOW."""
LAST_WINDOW: Final = 1 << 40
_DEALLOCATED: Final = 1
_MODES: Final = (
    FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE,
    FallocateMode.ZERO_RANGE,
    FallocateMode.ZERO_RANGE | FallocateMode.KEEP_SIZE,
)


async def allocate(device: Device, details: Details, asked: Fallocate) -> bytes:
    """FALLOCATE as a block device has it: punch a hole, zero a range; EOPNOTSUPP for reserving space, which a disk cannot promise.

    Raises RequestInvalid; ENOSPC for a range that begins beyond the end, or ends there without KEEP_SIZE.
    """
    if asked.mode not in _MODES:
        raise RequestInvalid(f"fallocate mode {asked.mode:#x} is none of a disk's", errno.EOPNOTSUPP)
    size = device.geometry.size
    length = min(asked.length, size - asked.offset)
    if length <= 0 or (length < asked.length and not asked.mode & FallocateMode.KEEP_SIZE):
        raise RequestInvalid("the range passes the end of the disk", errno.ENOSPC)
    if asked.mode & FallocateMode.PUNCH_HOLE:
        await _punch(device, details, asked.offset, length)
    else:
        await zero(device, asked.offset, length)
    return b""


async def _punch(device: Device, details: Details, offset: int, length: int) -> None:
    geometry = device.geometry
    if geometry.zero_unmaps or not (geometry.can_trim and geometry.trim_reads_zero):
        await zero(device, offset, length)
        return
    await trim(device, offset, length)
    for extent in await _extents(device, details, offset, length):
        first, end = max(offset, extent.offset), min(offset + length, extent.offset + extent.length)
        if extent.provisioning != _DEALLOCATED and first < end:
            await zero(device, first, end - first)


async def seek(device: Device, details: Details, asked: Lseek) -> bytes:
    """LSEEK with SEEK_DATA or SEEK_HOLE: a hole is what is deallocated and reads as zeroes; what is not known is data. ENXIO at the end."""
    geometry, hole = device.geometry, asked.whence == os.SEEK_HOLE
    if asked.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise RequestInvalid(f"lseek with whence {asked.whence}", errno.EINVAL)
    if asked.offset >= geometry.size:
        raise RequestInvalid("nothing lies beyond the end", errno.ENXIO)
    if details.lba_status is None or not geometry.trim_reads_zero:
        return offset_reply(geometry.size if hole else asked.offset)
    at, window = asked.offset, FIRST_WINDOW
    while at < geometry.size:
        length = min(window, geometry.size - at)
        for extent in await _extents(device, details, at, length):
            if extent.offset + extent.length > at and (extent.provisioning == _DEALLOCATED) is hole:
                return offset_reply(max(at, extent.offset))
        at, window = at + length, min(2 * window, LAST_WINDOW)
    if hole:
        return offset_reply(geometry.size)
    raise RequestInvalid("there is no data behind this", errno.ENXIO)


async def copy(source: Device, target: Device, asked: Copy, reply: Callable[[int], bytes]) -> bytes:
    """COPY_FILE_RANGE by reading and writing; fewer bytes than asked at an end, after COPY_MOST, and before an error."""
    if asked.flags:
        raise RequestInvalid("copy_file_range knows no flags", errno.EINVAL)
    wanted = min(asked.length, COPY_MOST, source.geometry.size - asked.offset_in)
    if wanted <= 0:
        return reply(0)
    wanted = min(wanted, target.geometry.size - asked.offset_out)
    if wanted <= 0:
        raise RequestInvalid("the copy would begin beyond the end of the disk", errno.ENOSPC)
    copied = 0
    try:
        while copied < wanted:
            data = await read(source, asked.offset_in + copied, min(MAX_WRITE, wanted - copied))
            await write(target, asked.offset_out + copied, data)
            copied += len(data)
    except IsblkError:
        if not copied:
            raise
    return reply(copied)


async def _extents(device: Device, details: Details, offset: int, length: int) -> list[Provisioned]:
    """What is known of a range, asked in whole physical blocks, in order and without gaps: what is not told is data."""
    found: list[Provisioned] = []
    if details.lba_status is not None:
        geometry = device.geometry
        block = max(1, geometry.physical_block_size)
        first, end = offset // block * block, min(-(-(offset + length) // block) * block, geometry.size)
        found = list(await details.lba_status(first, end - first))
    whole: list[Provisioned] = []
    at = offset
    for extent in found:
        if extent.offset > at:
            whole.append(_Data(at, extent.offset - at))
        whole.append(extent)
        at = max(at, extent.offset + extent.length)
    return whole if at >= offset + length else [*whole, _Data(at, offset + length - at)]


class _Data:
    """A stretch that is mapped, or of which nothing is known."""

    provisioning = 0

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
