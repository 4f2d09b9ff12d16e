"""isblk against LIO, the target of the Linux kernel, in a virtual machine."""

from __future__ import annotations

from support.lio import Lio
from support.waiting import answers


def test_the_portals_answer(lio: Lio) -> None:
    assert all(answers(int(portal.rpartition(":")[2])) for portal in lio.portals)
