"""The benchmark of the FUSE engines beside `qemu-storage-daemon --export fuse` over its iSCSI driver, under fio and git.

The direct engine is there twice, with the page cache and without. All mount the same disk of the same tgtd and are alive all the time, so
that they meet the same noise. Beside the rates it measures what noise does not move: CPU microseconds of the server process per I/O, and
its system calls per I/O.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchnbd import TRACE_SECONDS, Run, count_calls, cpu_seconds, fio_result

MIB = 1 << 20


class Shape(NamedTuple):
    """One workload of fio; `goal` is the ratio of isblk to qemu to reach. Buffered reads run over `size` once, behind an empty cache."""

    name: str
    rw: str
    block: int
    depth: int
    direct: bool = True
    goal: float = 0.0
    size: str = "4g"

    @property
    def unit(self) -> str:
        return "MB/s" if self.block >= MIB else "IOPS"

    @property
    def is_timed(self) -> bool:
        return self.direct or "write" in self.rw


SHAPES = (
    Shape("4 KiB random read, QD1", "randread", 4096, 1, goal=1.0),
    Shape("4 KiB random read, QD32", "randread", 4096, 32, goal=1.4),
    Shape("4 KiB random write, QD32", "randwrite", 4096, 32, goal=1.3),
    Shape("1 MiB sequential read, QD8", "read", MIB, 8, goal=1.2),
    Shape("1 MiB sequential write, QD8", "write", MIB, 8, goal=1.2),
    Shape("buffered sequential read", "read", MIB, 1, direct=False, goal=1.3, size="1g"),
    Shape("buffered sequential write", "write", MIB, 1, direct=False, goal=1.3, size="1g"),
)
GIT_CLONE, GIT_GOAL = "git clone onto ext4 on a loop device", 1.0


class Server(NamedTuple):
    """A running FUSE server and the file that it shows."""

    name: str
    file: Path
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return cpu_seconds(self.pid)


def servers(home: Path, portal: str, name: str, lun: int, env: dict[str, str], isblk: str) -> dict[str, list[str]]:
    """The commands, by what they are called; each shows the disk as the file `home`/name."""
    mount = [isblk, "mount", "-f", name, "-p", portal, "--lun", str(lun)]
    blockdev = f"driver=iscsi,node-name=disk,transport=tcp,portal={portal},target={name},lun={lun},cache.direct=on"
    export = f"type=fuse,id=export,node-name=disk,mountpoint={home / 'qemu'},writable=on"
    return {
        "direct": [*mount, str(home / "direct"), "--fuse-engine", "direct"],
        "direct_io": [*mount, str(home / "direct_io"), "--fuse-engine", "direct", "-o", "direct_io"],
        "pyfuse3": [*mount, str(home / "pyfuse3"), "--fuse-engine", "pyfuse3"],
        "qemu": ["qemu-storage-daemon", "--blockdev", blockdev, "--export", export],
    }


@contextmanager
def started(name: str, argv: list[str], home: Path, env: dict[str, str]) -> Iterator[Server]:
    """A server, once its file has a size; SIGTERM and its end behind the block."""
    file = home / name
    file.touch()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            end = time.monotonic() + 20
            while not file.stat().st_size:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"bench: {argv[0]} does not mount {file}")
                time.sleep(0.02)
            yield Server(name, file, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def fio(server: Server, shape: Shape, seconds: float) -> tuple[float, int]:
    """Run fio: the rate in the shape's unit, and how many requests there were."""
    engine = "libaio" if shape.direct else "psync"
    argv = [
        "fio",
        "--name=fuse",
        f"--ioengine={engine}",
        f"--direct={int(shape.direct)}",
        f"--filename={server.file}",
        f"--size={shape.size}",
    ]
    argv += ["--norandommap", "--fallocate=none", "--invalidate=1", f"--rw={shape.rw}", f"--bs={shape.block}", f"--iodepth={shape.depth}"]
    argv += [*(["--time_based", f"--runtime={seconds:g}"] if shape.is_timed else []), "--output-format=json"]
    return fio_result(argv, server.name, shape.rw, shape.unit, seconds + 120)


def measured(server: Server, shape: Shape, seconds: float) -> Run:
    """One run."""
    before = server.cpu_seconds()
    rate, requests = fio(server, shape, seconds)
    return Run(rate, (server.cpu_seconds() - before) / requests * 1e6)


class Contest(NamedTuple):
    """The servers under one workload."""

    name: str
    unit: str
    goal: float
    runs: dict[str, list[Run]]
    calls: dict[str, float]

    def ratio(self, name: str) -> float:
        """Of the medians: one server to qemu."""
        return median(run.rate for run in self.runs[name]) / median(run.rate for run in self.runs["qemu"])

    def row(self) -> str:
        """For the table."""
        cells = []
        for runs in self.runs.values():
            rates = [run.rate for run in runs]
            digits = ",.0f" if min(rates) > 100 else ",.3g"
            cells.append(f"{median(rates):{digits}} ({min(rates):{digits}}-{max(rates):{digits}})")
        cpu = " / ".join(f"{median(run.cpu_us for run in runs):,.1f}" for runs in self.runs.values())
        calls = " / ".join(f"{each:.2f}" for each in self.calls.values()) or "-"
        ratios = " / ".join(f"{self.ratio(name):.2f}" for name in self.runs if name != "qemu") + f" (goal {self.goal:g})"
        return f"| FUSE {self.name}, {self.unit} | {' | '.join(cells)} | {ratios} | {cpu} | {calls} |"

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        runs = {who: [run._asdict() for run in each] for who, each in self.runs.items()}
        ratios = {who: self.ratio(who) for who in runs}
        told = {"contest": f"FUSE {self.name}", "unit": self.unit, "ratios_of_medians": ratios, "goal": self.goal}
        return {**told, "runs": runs, "system_calls_per_io": self.calls}


def contests(
    home: Path, portal: str, name: str, luns: dict[str, int], env: dict[str, str], isblk: str, rounds: int, seconds: float, only: str = ""
) -> Iterator[Contest]:
    """Every shape whose name has `only` in it, the servers in turn (A B C A B C); at last git, on the disk that keeps what is written."""
    shapes = [shape for shape in SHAPES if only in f"FUSE {shape.name}"]
    if shapes:
        with ExitStack() as stack:
            commands = servers(home, portal, name, luns["null"], env, isblk)
            running = [stack.enter_context(started(each, argv, home, env)) for each, argv in commands.items()]
            for shape in shapes:
                yield _held(shape, running, rounds, seconds)
    if only in f"FUSE {GIT_CLONE}" and os.geteuid() == 0:
        yield _clones(home, servers(home, portal, name, luns["file"], env, isblk), env, rounds)


def _held(shape: Shape, running: list[Server], rounds: int, seconds: float) -> Contest:
    runs: dict[str, list[Run]] = {server.name: [] for server in running}
    for _ in range(rounds):
        for server in running:
            runs[server.name].append(measured(server, shape, seconds))
    calls = {server.name: count_calls(server.pid, lambda server=server: fio(server, shape, TRACE_SECONDS)[1]) for server in running}
    return Contest(shape.name, shape.unit, shape.goal, runs, calls)


def _clones(home: Path, commands: dict[str, list[str]], env: dict[str, str], rounds: int) -> Contest:
    """One server at a time, since all have the same disk: a fresh file system, a clone of a repository made here, synced and unmounted."""
    source = home / "source"
    _make_repository(source)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            with started(name, argv, home, env) as server:
                before = server.cpu_seconds()
                took = _clone(server, source, home / "tree")
                runs[name].append(Run(1 / took, (server.cpu_seconds() - before) * 1e6))
    return Contest(GIT_CLONE, "clones/s (CPU of a whole clone)", GIT_GOAL, runs, {})


def _make_repository(source: Path) -> None:
    """Two thousand files of 8 KiB in a hundred directories, committed."""
    for number in range(2000):
        file = source / f"directory{number % 100}" / f"file{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(4096).hex().encode())
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "files"]):
        subprocess.run(["git", *words], cwd=source, check=True)


def _clone(server: Server, source: Path, tree: Path) -> float:
    """Seconds from mount to unmount: the clone and everything of it on the disk."""
    tree.mkdir(exist_ok=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", server.file], check=True, stderr=subprocess.DEVNULL)
    before = time.monotonic()
    subprocess.run(["mount", "-o", "loop", server.file, tree], check=True)
    try:
        subprocess.run(["git", "clone", "-q", "--no-local", source, tree / "clone"], check=True)
    finally:
        subprocess.run(["umount", tree], check=True)
    return time.monotonic() - before


HEADING = (
    "| contest | direct: median (min-max) | direct, -o direct_io | pyfuse3 | qemu-storage-daemon | ratio of each to qemu "
    "| server's CPU us per I/O | its system calls per I/O |"
)
