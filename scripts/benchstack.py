"""CPU microseconds per request of block/ and iscsi/ alone, from the gate to the framer: no socket, no kernel, no target.

    .venv/bin/python scripts/benchstack.py [--rounds N] CHECKOUT [CHECKOUT]

The target is a few lines that answer each command with bytes made beforehand. Two checkouts are measured in turn (A B A B), each round in a
process of its own, for the ratio of neighbours is what noise moves least; the first is the one that the second is compared with. For what
a change in the hot path costs: a benchmark over sockets drowns it.
"""

from __future__ import annotations

import argparse
import gc
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

REQUESTS = 40_000
DEPTH = 32
LENGTH = 4096


def measure(policy: str) -> dict[str, float]:
    """CPU microseconds a read and a write, in this process."""
    import trio

    from isblk.block.align import Aligned
    from isblk.block.choose import Policy
    from isblk.block.gate import Gate
    from isblk.block.lun import LogicalUnit
    from isblk.block.multipath import Multipath
    from isblk.block.path import Path as BlockPath
    from isblk.block.policies import Policies
    from isblk.block.probe import geometry, probe
    from isblk.block.request import Op, Request
    from isblk.iscsi.framer import Framer
    from isblk.iscsi.names import Portal
    from isblk.iscsi.session import Session
    from isblk.link.keeper import Phase
    from support.fakelink import FakeDisk, FakeLink
    from support.scripts import login_result

    class Link:
        """A session whose other end answers at once."""

        def __init__(self) -> None:
            login = login_result(window=1 << 20, initial_r2t=False, immediate_data=True, max_recv_data_segment_length=1 << 20)
            self.session = Session(login)
            self.framer = Framer(self.session, login.negotiated.max_recv_data_segment_length)
            if hasattr(self.session, "run"):  # A checkout before it had one can be compared with.
                self.framer.switch(self.session, login.negotiated.max_recv_data_segment_length, self.session.run)
            self.hearers: dict[bytes, Any] = {}
            self.stat_sn, self.submit, self.tasks = login.exp_stat_sn, self.session.submit, self.session.unfinished
            self.head, self.data = struct.Struct(">BBHI8sIIIII"), bytes(12) + bytes(LENGTH)

        def kick(self) -> None:
            """Nothing: `turn` sends."""

        def turn(self) -> None:
            """Answer everything that was sent, in as few receives as fit."""
            answers = []
            for buffer in self.session.outgoing():
                if len(buffer) != 48:
                    continue
                itt, (cmd_sn,) = buffer[16:20], struct.unpack_from(">I", buffer, 24)
                tag, reads = int.from_bytes(itt, "big"), buffer[1] & 0x40
                window = (tag, 0, self.stat_sn, cmd_sn + 1, cmd_sn + (1 << 20))
                if reads:
                    answers.append(self.head.pack(0x25, 0x81, 0, LENGTH, bytes(8), *window) + self.data)
                else:
                    answers.append(self.head.pack(0x21, 0x80, 0, 0, bytes(8), *window) + bytes(12))
                self.stat_sn += 1
            stream = memoryview(b"".join(answers))
            while stream:
                landing = self.framer.receive_buffer()
                count = min(len(landing), len(stream))
                landing[:count] = stream[:count]
                self.framer.received(count)
                stream = stream[count:]

    async def built() -> tuple[Any, Any, Any]:
        disk = FakeDisk(blocks=1 << 16, content=False)
        disk.write_cache = False
        found = await probe(FakeLink(disk), bytes(8))
        link = Link()
        device = Multipath("LUN 0", geometry(found), Policies(policy=Policy(policy)), lambda *_: None)
        keeper = SimpleNamespace(portal=Portal("10.0.0.1", 3260), connection=None, phase=Phase.UP, reason="", portal_group=1)
        path = BlockPath(0, cast(Any, keeper))
        path.unit = LogicalUnit(cast(Any, link), found)
        device.paths.append(path)
        device.gain(path)
        return Gate(Aligned(device)), path, link

    gate, path, link = trio.run(built)
    open_requests = 0

    def done(_request: Request) -> None:
        nonlocal open_requests
        open_requests -= 1

    def run(op: Op, count: int) -> float:
        nonlocal open_requests
        data = memoryview(bytearray(LENGTH))
        for tick in ticks:  # In 10 000 requests once, which is oftener than in a daemon that has to do.
            tick()
        began = time.process_time_ns()
        for _ in range(count // DEPTH):
            for at in range(DEPTH):
                open_requests += 1
                gate.submit(Request(op, at * LENGTH, LENGTH, data, False, done))
            while open_requests:
                link.turn()
        return (time.process_time_ns() - began) / count / 1000

    ticks = [each.tick for each in (gate, path) if hasattr(each, "tick")]
    gc.disable()
    for op in (Op.READ, Op.WRITE):
        run(op, 4000)
    return {op.name.lower(): min(run(op, REQUESTS // 4) for _ in range(4)) for op in (Op.READ, Op.WRITE)}


def child(checkout: Path, policy: str) -> dict[str, float]:
    """The same in a fresh process with the code of a checkout."""
    env = {**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'tests'}", "PYTHONHASHSEED": "0"}
    said = subprocess.run([sys.executable, __file__, "--child", policy], env=env, capture_output=True, text=True, check=True, timeout=60)
    return {name: float(value) for name, value in (line.split() for line in said.stdout.splitlines())}


def main() -> None:
    """Rounds in turn, medians, and the median of the ratios of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--policy", default="failover")
    parser.add_argument("--child", metavar="POLICY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for name, value in measure(options.child).items():
            print(name, value)
        return
    checkouts = [path.resolve() for path in options.checkouts or [Path(__file__).parents[1]]]
    rounds = [[child(path, options.policy) for path in checkouts] for _ in range(options.rounds)]
    for name in rounds[0][0]:
        columns = list(zip(*([found[name] for found in row] for row in rounds), strict=True))
        for path, column in zip(checkouts, columns, strict=True):
            print(f"{name} of {LENGTH} bytes: {median(column):.3f} us (best {min(column):.3f})  {path}")
        if len(checkouts) > 1:
            ratios = [row[-1][name] / row[0][name] for row in rounds]
            print(f"{name}: ratio {median(ratios):.4f}, of the best ones {min(columns[-1]) / min(columns[0]):.4f}")


if __name__ == "__main__":
    main()
