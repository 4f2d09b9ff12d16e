"""The stack of one disk: the gate over byte alignment over the logical unit; and which logical units of a target are meant."""

from __future__ import annotations

from dataclasses import dataclass

from isblk.block.align import Aligned
from isblk.block.gate import Gate
from isblk.block.lun import LogicalUnit
from isblk.block.probe import Description, Link, probe, probe_all
from isblk.errors import NotFound, RequestFailed, UsageError
from isblk.scsi.lun_number import lun_from_bytes, lun_text, lun_to_bytes


@dataclass(frozen=True)
class Disk:
    """A logical unit ready for a front end: `number` as `--lun` takes it, and the gate that every request passes."""

    number: int
    description: Description
    unit: LogicalUnit
    gate: Gate


def stack(link: Link, description: Description) -> Disk:
    """Build the stack over one logical unit that has been probed."""
    unit = LogicalUnit(link, description)
    return Disk(lun_from_bytes(description.lun), description, unit, Gate(Aligned(unit)))


async def open_disk(link: Link, number: int) -> Disk:
    """The logical unit of this number, which must be a usable disk. Raises NotFound, UsageError (no disk), RequestFailed (a sick one)."""
    lun = lun_to_bytes(number)
    description = await probe(link, lun)
    if description.refusal is not None:
        sick = description.is_disk and description.capacity is None  # it failed before it could say how large it is
        raise RequestFailed(description.refusal) if sick else UsageError(description.refusal)
    return stack(link, description)


async def open_disks(link: Link) -> tuple[list[Disk], list[str]]:
    """Every usable disk of the target in SAM order, and a sentence for each logical unit left out. Raises NotFound when there is none."""
    units = await probe_all(link)
    left_out = [unit.refusal for unit in units if unit.refusal is not None]
    disks = [stack(link, unit) for unit in units if unit.refusal is None]
    if not disks:
        found = "; ".join(left_out) or "it reports no logical unit to this initiator (check its access list)"
        raise NotFound(f"the target has no disk to use: {found}")
    return disks, left_out


def only(disks: list[Disk], target_name: str) -> Disk:
    """The one disk there is. Raises UsageError that lists them when there are several."""
    if len(disks) > 1:
        numbers = ", ".join(lun_text(disk.description.lun) for disk in disks)
        raise UsageError(f"{target_name} has several disks (LUN {numbers}): choose one with --lun, or name a directory to have them all")
    return disks[0]
