"""What is known of a disk without asking it, and what is not taken for the same disk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isblk.block.gate import Gate
from isblk.block.known import Known, described
from isblk.block.pathset import WrongUnit
from isblk.block.stack import Disk
from support.memorydevice import MemoryDevice

WWID = "naa.600140500000000000000000000000ab"


def found(size: int = 1 << 20, block_size: int = 512, **identity: str | None) -> Disk:
    """A disk as a login finds it."""
    device = MemoryDevice(size, block_size)
    names = {"vendor": "V", "product": "P", "serial": "S", "wwid": WWID, **identity}
    return Disk(3, described(3, **names), device, Gate(device))  # type: ignore[arg-type]


def test_what_is_known_is_what_was_found() -> None:
    known = Known.of(found())
    assert known == Known(3, MemoryDevice().geometry, "V", "P", "S", WWID)
    shown = known.description
    assert (shown.identity.vendor, shown.identity.product, shown.serial, shown.wwid) == ("V", "P", "S", WWID)
    assert shown.is_disk and shown.lun == bytes.fromhex("0003000000000000")


def test_another_size_is_the_same_disk() -> None:
    Known.of(found()).check(found(1 << 21))
    Known.of(found(wwid=None)).check(found(wwid=None))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"wwid": "naa.6001405000000000000000000000ffff"}, r"another logical unit \(naa.6001405000000000000000000000ffff\) .*\(naa.*ab\)"),
        ({"wwid": None}, r"another logical unit \(S\)"),
        ({"serial": "T"}, "another logical unit"),
        ({"product": "Q"}, "is a Q now, not the P"),
        ({"block_size": 4096}, "blocks of 4096 bytes now, not of 512"),
    ],
)
def test_another_disk_is_refused(other: dict[str, str | int | None], why: str) -> None:
    with pytest.raises(WrongUnit, match=f"LUN 3 .*{why}.*mount it once without --automount") as caught:
        Known.of(found()).check(found(**other))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(WrongUnit, match="unnamed"):
        replace(Known.of(found()), wwid=None, serial="").check(found())
