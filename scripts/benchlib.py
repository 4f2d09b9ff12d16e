"""The benchmark: contests of isblk with libiscsi's iscsi-perf and with qemu-img, run in turn on one tgtd of its own.

Machines are noisy and the two of a contest meet the same noise, so the ratio of medians is the figure to trust; CPU per I/O (user + system
of the whole client process, its start included) moves least of all. Speed is reported here and asserted nowhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import trio

import benchfuse
import benchnbd
import benchpaths
from support.tgt import Tgtd

ISBLK = str(Path(sys.executable).with_name("isblk"))
NAME = "iqn.2026-11.test.isblk:bench"
LUNS = {"file": 1, "null": 2}  # tgtd's own 0 is a controller
FILE_BYTES = 512 * 1024 * 1024
MIB = 1024 * 1024


class Run(NamedTuple):
    """What one client did in one run."""

    rate: float  # in the contest's unit
    cpu_us: float  # per I/O


class Ended(NamedTuple):
    output: str
    cpu_seconds: float


class Contest(NamedTuple):
    """Two clients at the same work."""

    name: str
    unit: str
    peer_name: str
    isblk: Callable[[float], Run]
    peer: Callable[[float], Run]


class Results(NamedTuple):
    isblk: list[Run]
    peer: list[Run]

    @property
    def ratio(self) -> float:
        return median(run.rate for run in self.isblk) / median(run.rate for run in self.peer)


# ------------------------------------------------------------------------------------------------------------------------- clients


def ended(argv: list[str], env: dict[str, str]) -> Ended:
    """Run a command to its end; SystemExit with its words when it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"bench: {' '.join(argv)} exited {process.returncode}: {errors.read().decode(errors='replace')}")
        return Ended(output.read().decode(errors="replace"), usage.ru_utime + usage.ru_stime)


class Clients:
    """The three clients, pointed at one target."""

    def __init__(self, portal: str, env: dict[str, str]) -> None:
        self.portal = portal
        self.env = env
        self._qemu_rates: dict[tuple[int, bool], float] = {}

    def url(self, lun: int) -> str:
        return f"iscsi://{self.portal}/{NAME}/{lun}"

    def isblk(self, lun: int, rw: str, block: int, depth: int, seconds: float, unit: str) -> Run:
        shape = ["--rw", rw, "--bs", str(block), "--iodepth", str(depth), "--runtime", f"{seconds:g}"]
        argv = [ISBLK, "perf", NAME, "-p", self.portal, "--lun", str(lun), *shape, "--json"]
        done = ended(argv + (["--destructive"] if "write" in rw else []), self.env)
        said = json.loads(done.output)
        if said["errors"] or not said["requests"]:
            raise SystemExit(f"bench: isblk perf did {said['requests']} requests with {said['errors']} errors")
        rate = said["iops"] if unit == "IOPS" else said["bytes"] / said["seconds"] / 1e6
        return Run(rate, done.cpu_seconds / said["requests"] * 1e6)

    def iscsi_perf(self, lun: int, depth: int, seconds: float) -> Run:
        """4 KiB random reads; iscsi-perf knows whole seconds only."""
        whole = max(1, round(seconds))
        done = ended(["iscsi-perf", "-m", str(depth), "-b", "8", "-t", str(whole), "-r", self.url(lun)], self.env)
        iops = float(re.findall(r"iops average (\d+)", done.output)[-1])
        return Run(iops, done.cpu_seconds / (iops * whole) * 1e6)

    def qemu_img(self, lun: int, write: bool, seconds: float) -> Run:
        """1 MiB sequential at depth 8; qemu-img counts requests, so the first run only finds out how many fill the time."""
        if (lun, write) not in self._qemu_rates:
            self._qemu_rates[lun, write] = self._qemu_img(lun, write, 500).rate
        return self._qemu_img(lun, write, max(50, int(self._qemu_rates[lun, write] * 1e6 / MIB * seconds)))

    def _qemu_img(self, lun: int, write: bool, count: int) -> Run:
        shape = ["-f", "raw", "-t", "none", "-s", "1M", "-d", "8", "-c", str(count), *(["-w"] if write else [])]
        done = ended(["qemu-img", "bench", *shape, self.url(lun)], self.env)
        (seconds,) = re.findall(r"Run completed in ([\d.]+) seconds", done.output)
        return Run(count * MIB / float(seconds) / 1e6, done.cpu_seconds / count * 1e6)


def contests(clients: Clients) -> Iterator[Contest]:
    """Everything that is compared."""
    for store, lun in LUNS.items():
        for depth in (1, 32):

            def ours(seconds: float, lun: int = lun, depth: int = depth) -> Run:
                return clients.isblk(lun, "randread", 4096, depth, seconds, "IOPS")

            def theirs(seconds: float, lun: int = lun, depth: int = depth) -> Run:
                return clients.iscsi_perf(lun, depth, seconds)

            yield Contest(f"4 KiB random read, QD{depth}, {store}", "IOPS", "iscsi-perf", ours, theirs)
        for rw in ("read", "write"):

            def our_stream(seconds: float, lun: int = lun, rw: str = rw) -> Run:
                return clients.isblk(lun, rw, MIB, 8, seconds, "MB/s")

            def their_stream(seconds: float, lun: int = lun, rw: str = rw) -> Run:
                return clients.qemu_img(lun, rw == "write", seconds)

            yield Contest(f"1 MiB sequential {rw}, QD8, {store}", "MB/s", "qemu-img", our_stream, their_stream)


def held(contest: Contest, rounds: int, seconds: float) -> Results:
    results = Results([], [])
    for _ in range(rounds):
        results.isblk.append(contest.isblk(seconds))
        results.peer.append(contest.peer(seconds))
    return results


# -------------------------------------------------------------------------------------------------------------- start and memory


def help_seconds(env: dict[str, str]) -> float:
    """Wall time of `isblk --help`, median of ten."""
    times = []
    for _ in range(10):
        before = time.perf_counter()
        ended([ISBLK, "--help"], env)
        times.append(time.perf_counter() - before)
    return median(times)


def found(value: Any, key: str) -> list[Any]:
    """Every value of a key, however deep in what a command printed as JSON."""
    if isinstance(value, dict):
        return [each for name, inner in value.items() for each in ([inner] if name == key else found(inner, key))]
    return [each for inner in value for each in found(inner, key)] if isinstance(value, list) else []


def idle_mount_bytes(portal: str, home: Path, env: dict[str, str]) -> dict[str, int]:
    """Resident and proportional set of the daemon behind a fresh mount, in bytes."""
    mountpoint = home / "lun"
    ended([ISBLK, "mount", NAME, str(mountpoint), "-p", portal, "--lun", "1"], env)
    try:
        pids = set(found(json.loads(ended([ISBLK, "status", "--json"], env).output), "pid"))
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    finally:
        ended([ISBLK, "umount", str(mountpoint)], env)
    return {
        name: sum(int(size) for text in rollups for size in re.findall(rf"^{name}: +(\d+) kB", text, re.MULTILINE)) * 1024
        for name in ("Rss", "Pss")
    }


# ---------------------------------------------------------------------------------------------------------------------------- table


def spread(runs: list[Run]) -> str:
    rates = [run.rate for run in runs]
    return f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def row(contest: Contest, results: Results) -> str:
    cpu = " / ".join(f"{median(run.cpu_us for run in runs):.1f}" for runs in results)
    peer = f"{contest.peer_name} {spread(results.peer)}"
    return f"| {contest.name} | {spread(results.isblk)} {contest.unit} | {peer} | {results.ratio:.2f} | {cpu} |"


def as_json(contest: Contest, results: Results) -> dict[str, Any]:
    sides = {"isblk": results.isblk, contest.peer_name: results.peer}
    runs = {who: [run._asdict() for run in each] for who, each in sides.items()}
    return {"contest": contest.name, "unit": contest.unit, "ratio_of_medians": results.ratio, "runs": runs}


def paths(tgtd: Tgtd, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Two paths beside one, printed; the runs."""
    logging.getLogger("isblk").setLevel(logging.ERROR)  # that paths come and go is no news here
    portals = [tgtd.portal, tgtd.add_portal()]
    print("\n| contest | two paths, IOPS | one path, IOPS | ratio |\n|---|---|---|---|")
    found = []
    for comparison in trio.run(benchpaths.healthy, NAME, portals, LUNS["null"], rounds, seconds):
        found.append(comparison)
        print(comparison.row(), flush=True)
    found.append(trio.run(benchpaths.limited, rounds, seconds))
    print(found[-1].row(), flush=True)
    return [{**each._asdict(), "ratio_of_medians": each.ratio} for each in found]


def nbd(tgtd: Tgtd, home: Path, env: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The NBD servers side by side, printed; the runs."""
    if not any(options.only in f"NBD {shape.name}" for shape in benchnbd.SHAPES):
        return []
    print(f"\n{benchnbd.HEADING}\n|---|---|---|---|---|---|")
    held_ones = benchnbd.contests(home, tgtd.portal, NAME, LUNS["null"], env, [ISBLK], options.rounds, options.seconds, options.only)
    report = []
    for contest in held_ones:
        print(contest.row(), flush=True)
        report.append(contest.as_json())
    return report


def fuse(tgtd: Tgtd, home: Path, env: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The FUSE engines and qemu side by side, printed; the runs."""
    report: list[dict[str, Any]] = []
    for contest in benchfuse.contests(home, tgtd.portal, NAME, LUNS, env, ISBLK, options.rounds, options.seconds, options.only):
        if not report:
            print(f"\n{benchfuse.HEADING}\n|---|---|---|---|---|---|---|---|")
        print(contest.row(), flush=True)
        report.append(contest.as_json())
    return report


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure isblk beside libiscsi and qemu on the same tgtd.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contest is held (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only contests whose name has TEXT in it, such as QD32, null, NBD, FUSE or paths"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="where the runs go as JSON (%(default)s)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    return options


def environment(home: Path) -> dict[str, str]:
    """The caller's environment with isblk's state below `home`, so that a benchmark leaves nothing behind."""
    (home / "run").mkdir(mode=0o700)
    ours = {"ISBLK_STATE_DIR": str(home / "state"), "ISBLK_RUN_DIR": str(home / "run"), "XDG_CONFIG_HOME": str(home / "config")}
    return {**os.environ, **ours}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="isblk-bench-") as directory, Tgtd(Path(directory)) as tgtd:
        home = Path(directory)
        env = environment(home)
        target = tgtd.target(NAME)
        image = tgtd.disk(target, LUNS["file"], FILE_BYTES)
        with image.open("r+b") as file:  # written once: holes would be read faster than data
            for _ in range(FILE_BYTES // MIB):
                file.write(os.urandom(MIB))
        tgtd.null(target, LUNS["null"])
        report: dict[str, Any] = {"rounds": options.rounds, "seconds": options.seconds, "contests": []}
        print("| contest | isblk: median (min-max) | peer: median (min-max) | ratio | CPU us per I/O of both |\n|---|---|---|---|---|")
        for contest in contests(Clients(tgtd.portal, env)):
            if options.only in contest.name:
                results = held(contest, options.rounds, options.seconds)
                print(row(contest, results), flush=True)
                report["contests"].append(as_json(contest, results))
        if options.only in "two paths":
            report["paths"] = paths(tgtd, options.rounds, options.seconds)
        report["nbd"] = nbd(tgtd, home, env, options)
        report["fuse"] = fuse(tgtd, home, env, options)
        report["help_seconds"] = help_seconds(env)
        print(f"\nisblk --help: {report['help_seconds'] * 1e3:.0f} ms (median of 10)")
        report["idle_mount_bytes"] = idle_mount_bytes(tgtd.portal, home, env)
        sizes = ", ".join(f"{name.upper()} {size / MIB:.1f} MiB" for name, size in report["idle_mount_bytes"].items())
        print(f"idle mount: {sizes}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
