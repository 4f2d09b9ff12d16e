"""isblk against tgtd, the Linux target in user space."""

from __future__ import annotations

from support.tgt import Tgtd


def test_a_target_starts_without_sessions(tgt: Tgtd) -> None:
    assert tgt.sessions(tgt.target("iqn.2026-11.test.isblk:disk")) == 0
