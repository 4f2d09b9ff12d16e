"""What happened between two answers of `status`: rates, latency percentiles and faults, by device and by path, as plain values. PURE.

Two answers are of the same daemon when process id and start agree. Counters only grow within a daemon's life; one that is smaller than
before (another session, another daemon) counts from nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isblk.block.latency import BOUNDS, counts_of, percentile

PERCENTILES = (50.0, 99.0)
_OTHERS = ("flush", "trim", "zero")


@dataclass(frozen=True)
class Row:
    """One device or one path over an interval: rates a second, latencies in seconds (None: nothing was timed), counts as they are now.

    `path` is None for a device. `faults` are errors, retries, failovers and losses within the interval; `notes` what is not well now.
    """

    where: str
    target: str
    lun: int
    path: str | None
    state: str
    reads: float
    writes: float
    others: float
    read_bytes: float
    write_bytes: float
    p50: float | None
    p99: float | None
    in_flight: int
    waiting: int
    errors: int
    faults: int

    @property
    def requests(self) -> float:
        """All operations a second."""
        return self.reads + self.writes + self.others

    @property
    def moved(self) -> float:
        """Bytes a second, both directions."""
        return self.read_bytes + self.write_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(self).items()}
        latency = {"p50": self.p50, "p99": self.p99}
        return {**rates, **{name: None if value is None else round(value, 7) for name, value in latency.items()}}


def rows(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], seconds: float) -> list[Row]:
    """Each device of `after`, and behind it its paths."""
    known = {_identity(daemon): daemon for daemon in before}
    found: list[Row] = []
    for daemon in after:
        old = known.get(_identity(daemon), {})
        devices = {device["lun"]: device for device in old.get("devices", ())}
        for device in daemon.get("devices", ()):
            was = devices.get(device["lun"], {})
            found.append(_device(daemon, was, device, seconds))
            paths = {path["portal"]: path for path in was.get("paths", ())}
            found += [_path(daemon, device, paths.get(path["portal"], {}), path, seconds) for path in device.get("paths", ())]
    return found


def _identity(daemon: Mapping[str, Any]) -> tuple[object, object]:
    return daemon.get("pid"), daemon.get("since")


def _device(daemon: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Row:
    def rate(*names: str) -> float:
        return sum(_grown(was.get("counters", {}), now["counters"], name) for name in names) / seconds

    counts = [_new_counts(was.get("latency", {}).get(op, {}), found) for op, found in now.get("latency", {}).items()]
    median, slow = _percentiles(counts)
    deeds = sum(_grown(was, now, name) for name in ("failed_over", "failovers", "fences", "cache_losses", "power_ons"))
    return Row(
        where=str(daemon.get("where", daemon["pid"])),
        target=str(daemon.get("target", "")),
        lun=now["lun"],
        path=None,
        state=_summary(now.get("paths", ())),
        reads=rate("read_requests"),
        writes=rate("write_requests"),
        others=rate(*(f"{name}_requests" for name in _OTHERS)),
        read_bytes=rate("read_bytes"),
        write_bytes=rate("write_bytes"),
        p50=median,
        p99=slow,
        in_flight=now["in_flight"],
        waiting=now.get("waiting", 0),
        errors=now["counters"]["errors"],
        faults=_grown(was.get("counters", {}), now["counters"], "errors") + deeds,
    )


def _path(daemon: Mapping[str, Any], device: Mapping[str, Any], was: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Row:
    """A path does not tell reads from writes: all requests count as `others`, all bytes as read."""
    median, slow = _percentiles([_new_counts(was.get("latency", {}), now["latency"])] if "latency" in now else [])
    return Row(
        where=str(daemon.get("where", daemon["pid"])),
        target=str(daemon.get("target", "")),
        lun=device["lun"],
        path=now["portal"],
        state=now["state"],
        reads=0.0,
        writes=0.0,
        others=_grown(was, now, "requests") / seconds,
        read_bytes=_grown(was, now, "bytes") / seconds,
        write_bytes=0.0,
        p50=median,
        p99=slow,
        in_flight=now["in_flight"],
        waiting=0,
        errors=now["errors"],
        faults=sum(_grown(was, now, name) for name in ("errors", "retries", "losses")),
    )


def _summary(paths: Iterable[Mapping[str, Any]]) -> str:
    """2/2 up."""
    states = [path["state"] for path in paths]
    return f"{states.count('up')}/{len(states)} up" if states else "-"


def _grown(was: Mapping[str, Any], now: Mapping[str, Any], name: str) -> int:
    before, after = was.get(name, 0), now.get(name, 0)
    return int(after - before if after >= before else after)


def _new_counts(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[int]:
    before, after = counts_of(was.get("buckets", {})), counts_of(now.get("buckets", {}))
    return [new - old if new >= old else new for old, new in zip(before, after, strict=True)]


def _percentiles(counts: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    together = [sum(column) for column in zip([0] * (len(BOUNDS) + 1), *counts, strict=True)]
    median, slow = (percentile(together, percent) for percent in PERCENTILES)
    return median, slow
