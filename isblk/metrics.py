"""What the daemons answer to `status`, as metrics with OpenMetrics' names and units; made with prometheus-client (extra `metrics`).

Every number here is one of `isblk status --json`, so the two can be compared; nothing is counted in this process. Names end in their unit
(_seconds, _bytes), counters are exposed with _total. Labels: `export` (where it is: a mountpoint, socket or device), `target`, `lun`,
`path` (a portal), and where several are one `operation`, `kind` or the state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from isblk.block.latency import BOUNDS, counts_of

PATH_STATES = ("up", "standby", "fencing", "down", "wrong unit")
SESSION_STATES = ("connecting", "up", "down", "wrong unit", "ended")
ENDS = ("lost", "protocol", "digest")
PATH_KINDS = ("failed", "aborted", "unusable", "lost")
KINDS = (*PATH_KINDS, "no-path", "invalid")
"""What is counted for every device from the start; other kinds (errors.py) appear when there are some."""
SHOWN_BOUNDS = tuple(at for at, bound in enumerate(BOUNDS) if f"{bound:e}"[:3] in ("1.0", "2.0", "5.0"))
"""Of the buckets those at 1, 2 and 5 in each decade: a time series each, and there are many devices."""

_DAEMON = ("export", "target")
_SESSION = (*_DAEMON, "path")
_DEVICE = (*_DAEMON, "lun")
_PATH = (*_DEVICE, "path")
Status = Mapping[str, Any]
Labels = Sequence[str]


class Family(NamedTuple):
    """One metric: what it is called (a counter without _total), its kind, its labels, what it says, and how it is found."""

    name: str
    kind: type[Metric]
    labels: Labels
    text: str
    find: Callable[[Status], Iterable[tuple[Labels, Any]]]


def _of_daemon(value: Callable[[Status], Any]) -> Callable[[Status], Iterator[tuple[Labels, Any]]]:
    """A value of the daemon itself; None where this kind has none."""

    def find(daemon: Status) -> Iterator[tuple[Labels, Any]]:
        found = value(daemon)
        if found is not None:
            yield (), found

    return find


def _of_sessions(value: Callable[[Status], Any]) -> Callable[[Status], Iterator[tuple[Labels, Any]]]:
    def find(daemon: Status) -> Iterator[tuple[Labels, Any]]:
        for name, session in _named(daemon.get("sessions", ())):
            yield (name,), value(session)

    return find


def _of_devices(value: Callable[[Status], Any]) -> Callable[[Status], Iterator[tuple[Labels, Any]]]:
    def find(daemon: Status) -> Iterator[tuple[Labels, Any]]:
        for device in daemon.get("devices", ()):
            found = value(device)
            if found is not None:
                yield (str(device["lun"]),), found

    return find


def _of_paths(value: Callable[[Status], Any]) -> Callable[[Status], Iterator[tuple[Labels, Any]]]:
    def find(daemon: Status) -> Iterator[tuple[Labels, Any]]:
        for device in daemon.get("devices", ()):
            for name, path in _named(device.get("paths", ())):
                yield (str(device["lun"]), name), value(path)

    return find


def _each(find: Callable[[Status], Iterable[tuple[Labels, Any]]], always: Labels = ()) -> Callable[[Status], Iterator[tuple[Labels, Any]]]:
    """Of values that are mappings: one for each key, which is the last label.

    `always` are keys that are there from the start, at 0: of a series that begins at 1, no rate() sees the first step.
    """

    def found(daemon: Status) -> Iterator[tuple[Labels, Any]]:
        for labels, values in find(daemon):
            for key, value in {**dict.fromkeys(always, 0), **values}.items():
                yield (*labels, key), value

    return found


def _named(ones: Iterable[Status]) -> Iterator[tuple[str, Status]]:
    """By portal; a second one of the same name (a redirect may lead there) is told apart, for a series must not appear twice."""
    seen: Counter[str] = Counter()
    for one in ones:
        name = one["portal"]
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}", one


def _requests(device: Status) -> dict[str, int]:
    return {op: device["counters"][f"{op}_requests"] for op in ("read", "write", "flush", "trim", "zero")}


def _bytes(device: Status) -> dict[str, int]:
    return {op: device["counters"][f"{op}_bytes"] for op in ("read", "write", "trim", "zero")}


def _states(states: Sequence[str]) -> Callable[[Status], dict[str, bool]]:
    return lambda one: {state: one["state"] == state for state in states}


def _key(name: str) -> Callable[[Status], Any]:
    return lambda one: one.get(name)


_C, _G, _H, _S = CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, StateSetMetricFamily
_LATENCY = "How long requests took, estimated from every n-th of them."
FAMILIES = (
    Family(
        "isblk_daemon",
        InfoMetricFamily,
        _DAEMON,
        "A daemon that answered.",
        lambda daemon: [((), {"kind": str(daemon.get("kind", "")), "pid": str(daemon["pid"])})],
    ),
    Family("isblk_start_time_seconds", _G, _DAEMON, "When the daemon began, since 1970.", _of_daemon(_key("since"))),
    Family(
        "isblk_buffers_in_use_bytes",
        _G,
        _DAEMON,
        "Memory of requests in flight.",
        _of_daemon(lambda daemon: daemon.get("buffers", {}).get("in_use")),
    ),
    Family(
        "isblk_buffers_limit_bytes",
        _G,
        _DAEMON,
        "Memory of requests in flight beyond which front ends are not read from.",
        _of_daemon(lambda daemon: daemon.get("buffers", {}).get("limit")),
    ),
    Family("isblk_clients", _G, _DAEMON, "NBD clients connected.", _of_daemon(lambda d: len(d["clients"]) if "clients" in d else None)),
    Family("isblk_clients_accepted", _C, _DAEMON, "NBD clients that have connected.", _of_daemon(_key("accepted"))),
    Family("isblk_clients_refused", _C, _DAEMON, "NBD clients turned away, because of their number.", _of_daemon(_key("refused"))),
    Family("isblk_session_state", _S, _SESSION, "Where the session to a portal is.", _of_sessions(_states(SESSION_STATES))),
    Family("isblk_logins", _C, _SESSION, "Logins that succeeded.", _of_sessions(_key("logins"))),
    Family("isblk_login_failures", _C, _SESSION, "Logins that failed.", _of_sessions(_key("failures"))),
    Family("isblk_reconnects", _C, _SESSION, "Logins behind the first.", _of_sessions(_key("reconnects"))),
    Family("isblk_session_losses", _C, (*_SESSION, "kind"), "Sessions lost, by what ended them.", _each(_of_sessions(_key("ends")), ENDS)),
    Family("isblk_digest_errors", _C, _SESSION, "Sessions that a wrong digest ended.", _of_sessions(_key("digest_errors"))),
    Family("isblk_device_size_bytes", _G, _DEVICE, "Size of the disk.", _of_devices(_key("size"))),
    Family("isblk_requests", _C, (*_DEVICE, "operation"), "Requests that have ended.", _each(_of_devices(_requests))),
    Family("isblk_transferred_bytes", _C, (*_DEVICE, "operation"), "Bytes of requests that succeeded.", _each(_of_devices(_bytes))),
    Family("isblk_errors", _C, (*_DEVICE, "kind"), "Requests that ended with an error.", _each(_of_devices(_key("error_kinds")), KINDS)),
    Family("isblk_request_duration_seconds", _H, (*_DEVICE, "operation"), _LATENCY, _each(_of_devices(_key("latency")))),
    Family("isblk_requests_in_flight", _G, _DEVICE, "Requests that have not ended.", _of_devices(_key("in_flight"))),
    Family("isblk_requests_waiting", _G, _DEVICE, "Requests that wait for a path or a fence.", _of_devices(_key("waiting"))),
    Family("isblk_requests_repeated", _C, _DEVICE, "Requests repeated after a path failed.", _of_devices(_key("failed_over"))),
    Family("isblk_failovers", _C, _DEVICE, "How often other paths took over.", _of_devices(_key("failovers"))),
    Family("isblk_fences", _C, _DEVICE, "Fences put up.", _of_devices(_key("fences"))),
    Family("isblk_cache_losses", _C, _DEVICE, "How often acknowledged writes were lost.", _of_devices(_key("cache_losses"))),
    Family("isblk_power_ons", _C, _DEVICE, "Power-ons announced by the unit.", _of_devices(_key("power_ons"))),
    Family("isblk_unflushed_bytes", _G, _DEVICE, "Acknowledged writes kept until the next flush.", _of_devices(_key("journal_bytes"))),
    Family("isblk_path_state", _S, _PATH, "What isblk knows of a path.", _of_paths(_states(PATH_STATES))),
    Family("isblk_path_requests", _C, _PATH, "Requests sent over a path.", _of_paths(_key("requests"))),
    Family("isblk_path_transferred_bytes", _C, _PATH, "Bytes carried by a path.", _of_paths(_key("bytes"))),
    Family(
        "isblk_path_errors",
        _C,
        (*_PATH, "kind"),
        "Requests that came back with an error.",
        _each(_of_paths(_key("error_kinds")), PATH_KINDS),
    ),
    Family("isblk_path_retries", _C, _PATH, "Commands sent once more over the same path.", _of_paths(_key("retries"))),
    Family("isblk_path_losses", _C, _PATH, "How often a path was lost.", _of_paths(_key("losses"))),
    Family("isblk_path_request_duration_seconds", _H, _PATH, _LATENCY, _of_paths(_key("latency"))),
    Family("isblk_path_requests_in_flight", _G, _PATH, "Requests on their way over a path.", _of_paths(_key("in_flight"))),
)
"""Every metric of a daemon."""
UNREACHABLE = "isblk_daemons_unreachable"
ANSWERED = "isblk_daemons"


class Statuses(Collector):
    """A collector over what `ask` returns: the answers of all daemons, and how many gave none."""

    def __init__(self, ask: Callable[[], tuple[Sequence[Status], int]]) -> None:
        self._ask = ask

    def describe(self) -> Iterator[Metric]:
        """Every family there can be, empty."""
        yield from (_empty(family) for family in FAMILIES)
        for name in (ANSWERED, UNREACHABLE):
            yield GaugeMetricFamily(name, "")

    def collect(self) -> Iterator[Metric]:
        """Ask, and fill each family."""
        daemons, unreachable = self._ask()
        named = list(_places(daemons))
        for family in FAMILIES:
            metric = _empty(family)
            for place, daemon in named:
                for labels, value in family.find(daemon):
                    _add(metric, [place, str(daemon.get("target", "")), *labels], value)
            yield metric
        yield GaugeMetricFamily(ANSWERED, "Daemons that answered.", len(daemons))
        yield GaugeMetricFamily(UNREACHABLE, "Daemons that did not answer.", unreachable)


def registry(ask: Callable[[], tuple[Sequence[Status], int]]) -> CollectorRegistry:
    """A registry with nothing else in it: what this process does is of no interest."""
    found = CollectorRegistry()
    found.register(Statuses(ask))
    return found


def text(ask: Callable[[], tuple[Sequence[Status], int]]) -> str:
    """OpenMetrics text."""
    found: bytes = generate_latest(registry(ask))  # type: ignore[no-untyped-call]
    return found.decode()


def exposed_names() -> set[str]:
    """Every name of a sample, with the suffixes that its kind has."""
    suffixes = {_C: ("_total",), _H: ("_bucket", "_count", "_sum"), InfoMetricFamily: ("_info",)}
    names = {f"{family.name}{suffix}" for family in FAMILIES for suffix in suffixes.get(family.kind, ("",))}
    return names | {ANSWERED, UNREACHABLE}


def _places(daemons: Sequence[Status]) -> Iterator[tuple[str, Status]]:
    """Each with the name of its place, which no two have."""
    seen: set[str] = set()
    for daemon in daemons:
        place = str(daemon.get("where") or daemon.get("kind") or "isblk")
        place = f"{place} (pid {daemon['pid']})" if place in seen else place
        seen.add(place)
        yield place, daemon


def _empty(family: Family) -> Metric:
    more = {"unit": unit} if (unit := family.name.rpartition("_")[2]) in ("seconds", "bytes") else {}
    return family.kind(family.name, family.text, labels=family.labels, **more)  # type: ignore[call-arg]  # which each of them takes


def _add(metric: Metric, labels: list[str], value: Any) -> None:
    if isinstance(metric, HistogramMetricFamily):
        metric.add_metric(labels, *_histogram(value))
    elif isinstance(metric, (CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, StateSetMetricFamily)):
        metric.add_metric(labels, value)


def _histogram(latency: Status) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets, as the exposition format has them."""
    counts = counts_of(latency["buckets"])
    buckets = [(str(BOUNDS[at]), float(sum(counts[: at + 1]))) for at in SHOWN_BOUNDS]
    return [*buckets, ("+Inf", float(sum(counts)))], latency["seconds"]
