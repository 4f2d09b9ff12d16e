"""A process that memory is written out through: done for real in a process of its own, and what is not allowed is no failure."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from isblk import reclaim

READ = """
from isblk.reclaim import stand_apart
stand_apart()
buffer = bytearray(1 << 20)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck:")))
"""


def test_its_memory_is_locked_as_it_is_touched(root: None) -> None:
    """The rest needs CAP_SYS_RESOURCE, which root has not everywhere: interop/test_attach.py looks at that."""
    said = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, timeout=30, check=True).stdout
    assert 1024 < int(said) < 512 * 1024, "KiB"


def test_what_is_not_allowed_is_logged_and_the_rest_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Libc:
        calls: ClassVar[list[str]] = []

        def prctl(self, *_arguments: int) -> int:
            Libc.calls.append("prctl")
            return -1

        def mlockall(self, flags: int) -> int:
            Libc.calls.append(f"mlockall {flags}")
            return 0

    monkeypatch.setattr(reclaim.ctypes, "CDLL", lambda name, use_errno: Libc())
    monkeypatch.setattr(reclaim.ctypes, "get_errno", lambda: 1)
    monkeypatch.setattr(reclaim, "OOM_SCORE_ADJ", tmp_path / "score")
    with caplog.at_level(logging.INFO):
        reclaim.stand_apart()
    assert Libc.calls == ["prctl", "mlockall 7"] and (tmp_path / "score").read_text() == "-1000"
    assert caplog.messages == ["it cannot be seen to that its memory waits for no writing: Operation not permitted"]
