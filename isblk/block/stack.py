"""The stack of one disk: the gate over byte alignment over the logical unit; and which logical units of a target are meant."""

from __future__ import annotations

from dataclasses import dataclass

from isblk.block.align import Aligned
from isblk.block.gate import Gate
from isblk.block.lun import LogicalUnit
from isblk.block.probe import Description, Link, probe, probe_all
from isblk.block.request import Device
from isblk.errors import NotFound, RequestFailed, UsageError
from isblk.scsi.lun_number import lun_from_bytes, lun_text, lun_to_bytes


@dataclass(eq=False)
class Disk:
    """A disk ready for a front end: `number` as `--lun` takes it, `device` in whole blocks, and the gate that every request passes.

    The `description` of one whose sessions come and go is that of the latest (ondemand.py).
    """

    number: int
    description: Description
    device: Device
    gate: Gate


def stack(link: Link, description: Description) -> Disk:
    """Build the stack over one logical unit that has been probed, over one session."""
    unit = LogicalUnit(link, description)
    return Disk(lun_from_bytes(description.lun), description, unit, Gate(Aligned(unit)))


async def choose_disks(link: Link, number: int | None, several: bool, target_name: str) -> tuple[list[Description], list[str]]:
    """The disk of that number, or without one the only disk, or with `several` all of them; and a sentence for each unit left out.

    Raises NotFound when there is no such disk, UsageError when it is none or when there are several and only one was meant,
    RequestFailed for a sick one.
    """
    if number is not None:
        found = await probe(link, lun_to_bytes(number))
        if found.refusal is not None:
            sick = found.is_disk and found.capacity is None  # it failed before it could say how large it is
            raise RequestFailed(found.refusal) if sick else UsageError(found.refusal)
        return [found], []
    units = await probe_all(link)
    left_out = [unit.refusal for unit in units if unit.refusal is not None]
    disks = [unit for unit in units if unit.refusal is None]
    if not disks:
        reason = "; ".join(left_out) or "it reports no logical unit to this initiator (check its access list)"
        raise NotFound(f"the target has no disk to use: {reason}")
    if len(disks) > 1 and not several:
        numbers = ", ".join(lun_text(unit.lun) for unit in disks)
        raise UsageError(
            f"{target_name} has several disks (LUN {numbers}): choose one with --lun, or have them all with `isblk mount` and a directory"
        )
    return disks, left_out


async def open_disk(link: Link, number: int | None, target_name: str) -> Disk:
    """The stack over the disk of this number, or over the only one. Raises as `choose_disks`."""
    descriptions, _ = await choose_disks(link, number, False, target_name)
    return stack(link, descriptions[0])
