"""What the tests of installed commands share: a target in a process of its own, over a file whose bytes can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Commands
from support.logs import restored_logging
from support.mounts import Mounts
from support.processes import Processes
from support.targets import MIB, TargetProcess, disk, target_process


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file behind LUN 0 of `target`."""
    return tmp_path / "disk.img"


@pytest.fixture
def target(image: Path) -> Iterator[TargetProcess]:
    """A target with one disk of 64 MiB and a volatile write cache."""
    with target_process([disk(0, 64 * MIB, path=str(image))]) as running:
        yield running


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    """Commands set up the log of the process they run in: afterwards it is as it was."""
    with restored_logging():
        yield


@pytest.fixture
def commands(fuse: None, target: TargetProcess, processes: Processes, mounts: Mounts) -> Commands:
    """isblk's commands against `target`."""
    return Commands(processes, target)
