"""scripts/soak for a few seconds: it injects faults and finds nothing; and where writes may come back, it finds that."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import trio
import trio.lowlevel

from support.memorydevice import MemoryDevice
from support.oracle import Oracle
from support.processes import Processes, Started
from support.workload import Workload

ROOT = Path(__file__).parents[2]


def soak(processes: Processes, *arguments: str, code: int) -> Started:
    """scripts/soaklib.py, as scripts/soak runs it."""
    argv = [sys.executable, str(ROOT / "scripts" / "soaklib.py"), *arguments]
    return processes.run(argv, code=code, seconds=50, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})


def test_a_short_soak_finds_nothing(processes: Processes) -> None:
    said = soak(processes, "0.1", "--seed", "3", code=0).stdout
    assert "lost writes: 0; resurrected writes: 0; problems: 0" in said
    found = re.search(r"^(\d+) faults: .*\breset\b", said, re.MULTILINE)
    assert found is not None and int(found[1]) >= 20, said
    assert re.search(r"^stalls after RST: <= ", said, re.MULTILINE)


def test_without_the_fence_writes_come_back_and_it_tells(processes: Processes) -> None:
    said = soak(processes, "0.2", "--seed", "3", "--fence", "fast", "--only", "late", "--only", "client-reset", code=1).stdout
    assert "PROBLEM" in said
    (lost, resurrected) = map(int, re.findall(r"(?:lost|resurrected) writes: (\d+)", said))
    assert lost + resurrected > 0


async def test_nothing_is_sent_behind_a_pause_however_it_meets_the_workers() -> None:
    """A write that slips through runs beside the flush whose medium is then compared: the soak once called that a lost write."""
    device = MemoryDevice()
    work = Workload(device, Oracle(256), seed=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run, 2)
        for _ in range(300):
            await trio.lowlevel.checkpoint()
            with work.paused():
                await work.quiet()
                before = len(device.requests)
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                assert len(device.requests) == before
        nursery.cancel_scope.cancel()
