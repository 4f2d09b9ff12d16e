"""The benchmark of the NBD servers: `isblk nbd` beside `qemu-nbd iscsi://` on unix sockets, over one null disk, under fio's nbd engine.

Beside the rates it measures what noise does not move: CPU microseconds of the server process per I/O, and its system calls per I/O.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

MIB = 1 << 20
TRACE_SECONDS = 1.0
TICKS = os.sysconf("SC_CLK_TCK")


class Shape(NamedTuple):
    """One workload of fio; `jobs` is the number of connections, `depth` that of each. `goal` is the ratio to reach, 0 where none is set."""

    name: str
    rw: str
    block: int
    depth: int
    jobs: int = 1
    goal: float = 0.0

    @property
    def unit(self) -> str:
        return "MB/s" if self.block >= MIB else "IOPS"


SHAPES = (
    Shape("4 KiB random read, QD1", "randread", 4096, 1, goal=1.1),
    Shape("4 KiB random read, QD32", "randread", 4096, 32, goal=1.6),
    Shape("4 KiB random write, QD32", "randwrite", 4096, 32, goal=1.8),
    Shape("4 KiB random read, 4 connections at QD8", "randread", 4096, 8, 4, goal=1.6),
    Shape("1 MiB sequential read, QD8", "read", MIB, 8, goal=1.2),
    Shape("1 MiB sequential write, QD8", "write", MIB, 8, goal=1.2),
    Shape("512 B random read, QD32", "randread", 512, 32),
    Shape("512 B random write, QD32", "randwrite", 512, 32),
    Shape("64 KiB random read, QD8", "randread", 65536, 8),
    Shape("64 KiB random write, QD8", "randwrite", 65536, 8),
)


class Run(NamedTuple):
    """What fio and the server's process did in one run."""

    rate: float  # in the shape's unit
    cpu_us: float  # of the server, per I/O


class Server(NamedTuple):
    """A running NBD server."""

    name: str
    socket: Path
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def isblk_server(home: Path, portal: str, name: str, lun: int, env: dict[str, str], isblk: list[str]) -> Iterator[Server]:
    """`isblk nbd` in the foreground, until the block ends."""
    socket = home / "isblk.sock"
    with started([*isblk, "nbd", "-f", name, "-p", portal, "--lun", str(lun), "--socket", str(socket)], socket, env) as process:
        yield Server("isblk", socket, process.pid)


@contextmanager
def qemu_server(home: Path, portal: str, name: str, lun: int, env: dict[str, str]) -> Iterator[Server]:
    """qemu-nbd over qemu's own iSCSI initiator (libiscsi), for eight clients, uncached."""
    socket = home / "qemu.sock"
    argv = ["qemu-nbd", "-t", "-e", "8", "--cache=none", "-f", "raw", "-k", str(socket), f"iscsi://{portal}/{name}/{lun}"]
    with started(argv, socket, env) as process:
        yield Server("qemu-nbd", socket, process.pid)


@contextmanager
def started(argv: list[str], socket: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once its socket is there; SIGTERM and its end behind the block."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env) as process:
        try:
            end = time.monotonic() + 20
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"bench: {argv[0]} does not listen")
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def fio(server: Server, shape: Shape, seconds: float) -> tuple[float, int]:
    """Run fio's nbd engine: the rate in the shape's unit, and how many requests there were."""
    argv = ["fio", "--name=nbd", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={server.socket}", "--size=1g", "--norandommap"]
    argv += [f"--rw={shape.rw}", f"--bs={shape.block}", f"--iodepth={shape.depth}", f"--numjobs={shape.jobs}", "--group_reporting"]
    argv += ["--time_based", f"--runtime={seconds:g}", "--output-format=json", "--thread"]
    return fio_result(argv, server.name, shape.rw, shape.unit, seconds + 60)


def fio_result(argv: list[str], name: str, rw: str, unit: str, limit: float) -> tuple[float, int]:
    """Run fio on the server `name`, at most `limit` seconds: the rate in `unit`, and how many requests there were."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=limit)
    if done.returncode:
        raise SystemExit(f"bench: fio on {name}: {done.stderr or done.stdout}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    side = job["write" if "write" in rw else "read"]
    if job["error"] or not side["total_ios"]:
        raise SystemExit(f"bench: fio on {name} did {side['total_ios']} requests, error {job['error']}")
    return (side["bw_bytes"] / 1e6 if unit == "MB/s" else side["iops"]), side["total_ios"]


def measured(server: Server, shape: Shape, seconds: float) -> Run:
    """One run."""
    before = server.cpu_seconds()
    rate, requests = fio(server, shape, seconds)
    return Run(rate, (server.cpu_seconds() - before) / requests * 1e6)


def system_calls(server: Server, shape: Shape) -> float:
    """System calls of the server per I/O."""
    return count_calls(server.pid, lambda: fio(server, shape, TRACE_SECONDS)[1])


def count_calls(pid: int, work: Callable[[], int]) -> float:
    """System calls of a process for each I/O of `work`, which says how many it did; a run of its own, for strace makes everything slow."""
    argv = ["strace", "-c", "-f", "-q", "-p", str(pid)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            _wait_until_traced(pid)
            requests = work()
        finally:
            tracer.send_signal(signal.SIGINT)
            _, said = tracer.communicate(timeout=20)
    total = re.search(r"^ *100\.00 +\S+ +\S* *(\d+) +(?:\d+ +)?total$", said, re.MULTILINE)
    if total is None:
        raise SystemExit(f"bench: strace counted nothing: {said}")
    return int(total[1]) / requests


def _wait_until_traced(pid: int) -> None:
    end = time.monotonic() + 10
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if time.monotonic() > end:
            raise SystemExit("bench: strace does not attach; may this user trace processes?")
        time.sleep(0.02)


class Contest(NamedTuple):
    """Both servers under one shape."""

    shape: Shape
    runs: dict[str, list[Run]]
    calls: dict[str, float]

    @property
    def ratio(self) -> float:
        """Of the medians: isblk to qemu-nbd."""
        ours, theirs = (median(run.rate for run in runs) for runs in self.runs.values())
        return ours / theirs

    def row(self) -> str:
        """For the table."""
        cells = []
        for runs in self.runs.values():
            rates = [run.rate for run in runs]
            cells.append(f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) {self.shape.unit}")
        cpu = " / ".join(f"{median(run.cpu_us for run in runs):.1f}" for runs in self.runs.values())
        calls = " / ".join(f"{each:.2f}" for each in self.calls.values()) or "-"
        goal = f" (goal {self.shape.goal:g})" if self.shape.goal else ""
        return f"| NBD {self.shape.name} | {' | '.join(cells)} | {self.ratio:.2f}{goal} | {cpu} | {calls} |"

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        runs = {who: [run._asdict() for run in each] for who, each in self.runs.items()}
        told = {"contest": f"NBD {self.shape.name}", "unit": self.shape.unit, "ratio_of_medians": self.ratio, "goal": self.shape.goal}
        return {**told, "runs": runs, "system_calls_per_io": self.calls}


def contests(
    home: Path, portal: str, name: str, lun: int, env: dict[str, str], isblk: list[str], rounds: int, seconds: float, only: str = ""
) -> Iterator[Contest]:
    """Every shape whose name has `only` in it, both servers in turn (A B A B) and alive all the time, so that both meet the same noise."""
    with isblk_server(home, portal, name, lun, env, isblk) as ours, qemu_server(home, portal, name, lun, env) as theirs:
        for shape in SHAPES:
            if only not in f"NBD {shape.name}":
                continue
            contest = Contest(shape, {ours.name: [], theirs.name: []}, {})
            for _ in range(rounds):
                for server in (ours, theirs):
                    contest.runs[server.name].append(measured(server, shape, seconds))
            for server in (ours, theirs):
                contest.calls[server.name] = system_calls(server, shape)
            yield contest


HEADING = "| contest | isblk: median (min-max) | qemu-nbd: median (min-max) | ratio | server's CPU us per I/O | its system calls per I/O |"
