"""Which bytes of a thin logical unit are provisioned: GET LBA STATUS (SBC-3 5.6), asked until the range is covered."""

from __future__ import annotations

from dataclasses import dataclass

from isblk.block.probe import CommandFailed, Description, Link, execute
from isblk.scsi import cdb
from isblk.scsi.data import LBA_STATUS_DESCRIPTOR_LENGTH, LBA_STATUS_HEADER_LENGTH, LbaStatus, Provisioning, parse_lba_status
from isblk.scsi.sense import Key

MOST_COMMANDS = 256
_ALLOCATION = LBA_STATUS_HEADER_LENGTH + 256 * LBA_STATUS_DESCRIPTOR_LENGTH


@dataclass(frozen=True)
class Extent:
    """Bytes `offset` to `offset + length` have one provisioning status. Not MAPPED means zeroes only where the unit has LBPRZ."""

    offset: int
    length: int
    provisioning: Provisioning


async def block_status(link: Link, unit: Description, offset: int, length: int) -> list[Extent]:
    """Provisioning of `length` bytes at `offset`, whole blocks, in order and without gaps. Raises CommandFailed, PathLost, ProtocolError.

    It is a hint: what the unit does not tell, or cannot, counts as mapped.
    """
    if unit.capacity is None:
        raise AssertionError("a unit without a capacity has no blocks")
    block = unit.block_size
    first, end = offset // block, (offset + length) // block
    known = await _ask(link, unit.lun, first, end) if unit.capacity.provisioning_enabled else []
    covered = known[-1].lba + known[-1].blocks if known else first
    if covered < end:
        known.append(LbaStatus(covered, end - covered, Provisioning.MAPPED))
    return _merged([Extent(each.lba * block, each.blocks * block, each.provisioning) for each in known])


async def _ask(link: Link, lun: bytes, first: int, end: int) -> list[LbaStatus]:
    """Descriptors that follow each other from `first` on, cut to the range; fewer than it needs when the unit stops making sense."""
    known: list[LbaStatus] = []
    at = first
    for _ in range(MOST_COMMANDS):
        if at >= end:
            break
        before = at
        for each in await _descriptors(link, lun, at):
            if not each.lba <= at < min(each.lba + each.blocks, end):
                break
            following = min(each.lba + each.blocks, end)
            known.append(LbaStatus(at, following - at, each.provisioning))
            at = following
        if at == before:
            break
    return known


async def _descriptors(link: Link, lun: bytes, lba: int) -> tuple[LbaStatus, ...]:
    try:
        return parse_lba_status(await execute(link, lun, cdb.get_lba_status(lba, _ALLOCATION), _ALLOCATION))
    except CommandFailed as error:
        if error.verdict.sense.key is not Key.ILLEGAL_REQUEST:
            raise
        return ()


def _merged(extents: list[Extent]) -> list[Extent]:
    merged: list[Extent] = []
    for extent in extents:
        if merged and merged[-1].provisioning is extent.provisioning:
            merged[-1] = Extent(merged[-1].offset, merged[-1].length + extent.length, extent.provisioning)
        else:
            merged.append(extent)
    return merged
