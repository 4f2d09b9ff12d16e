"""What is known of a logical unit that is not logged in to: what a file of it shows, and by what it is known again."""

from __future__ import annotations

from dataclasses import dataclass

from isblk.block.pathset import WrongUnit
from isblk.block.probe import Description
from isblk.block.request import Geometry
from isblk.block.stack import Disk
from isblk.scsi.inquiry import DEVICE_TYPE_DISK, Inquiry
from isblk.scsi.lun_number import lun_text, lun_to_bytes


@dataclass(frozen=True)
class Known:
    """One disk as its latest session had it; `number` as --lun takes it, `geometry` in whole blocks."""

    number: int
    geometry: Geometry
    vendor: str = ""
    product: str = ""
    serial: str = ""
    wwid: str | None = None

    @classmethod
    def of(cls, disk: Disk) -> Known:
        """What is to be remembered of a disk that is logged in to, with the size it has now."""
        found = disk.description
        return cls(disk.number, disk.device.geometry, found.identity.vendor, found.identity.product, found.serial, found.wwid)

    @property
    def description(self) -> Description:
        """As probing would describe it, as far as it is known."""
        return described(self.number, self.vendor, self.product, self.serial, self.wwid)

    def check(self, found: Disk) -> None:
        """Raise WrongUnit unless this is the same logical unit: its designators, or where it has none serial number and names.

        Its size may be another: a logical unit grows. Its blocks may not, for what is above counts in them.
        """
        where = f"LUN {lun_text(found.description.lun)}"
        remedy = "nothing is read from it or written to it; check the target, or mount it once without --automount if this is meant"
        theirs, ours = Known.of(found), self
        if (theirs.wwid, theirs.serial) != (ours.wwid, ours.serial):
            now, then = theirs.wwid or theirs.serial or "unnamed", ours.wwid or ours.serial or "unnamed"
            raise WrongUnit(f"{where} is another logical unit ({now}) than the one that is remembered ({then}): {remedy}")
        if theirs.product != ours.product:
            raise WrongUnit(f"{where} is a {theirs.product} now, not the {ours.product} that is remembered: {remedy}")
        if theirs.geometry.block_size != ours.geometry.block_size:
            now_size, size = theirs.geometry.block_size, ours.geometry.block_size
            raise WrongUnit(f"{where} has blocks of {now_size} bytes now, not of {size} as is remembered: {remedy}")


def described(number: int, vendor: str = "", product: str = "", serial: str = "", wwid: str | None = None) -> Description:
    """The description of a disk of which no more is known."""
    identity = Inquiry(DEVICE_TYPE_DISK, 0, False, 0, False, 0, vendor, product, "")
    return Description(lun_to_bytes(number), identity, serial, wwid, designators=(), refusal=None)
