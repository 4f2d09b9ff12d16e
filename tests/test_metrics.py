"""Metrics: names and units, what becomes of odd answers, and the dashboard's expressions beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from isblk import metrics
from isblk.block.latency import BOUNDS
from isblk.cli.metrics import dashboard_text

LATENCY = {"requests": 10, "seconds": 0.5, "samples": 4, "buckets": {"100": 4, "150": 2, "200": 3, "inf": 1}}
COUNTERS = {f"{op}_requests": 3 for op in ("read", "write", "flush", "trim", "zero")} | {
    f"{op}_bytes": 4096 for op in ("read", "write", "trim", "zero")
}


def path(portal: str = "10.0.0.5:3260", **more: Any) -> dict[str, Any]:
    counted = dict.fromkeys(("requests", "bytes", "retries", "losses", "in_flight"), 2)
    return {"portal": portal, "state": "up", "error_kinds": {"lost": 1}, "latency": LATENCY, **counted, **more}


def session(portal: str = "10.0.0.5:3260", **more: Any) -> dict[str, Any]:
    counted = {"logins": 3, "failures": 1, "reconnects": 2, "digest_errors": 1}
    return {"portal": portal, "state": "up", "ends": {"digest": 1, "lost": 1}, **counted, **more}


def device(*paths: dict[str, Any], **more: Any) -> dict[str, Any]:
    deeds = dict.fromkeys(("waiting", "failed_over", "failovers", "fences", "cache_losses", "power_ons", "journal_bytes", "in_flight"), 1)
    found = {"lun": 3, "size": 1 << 20, "counters": COUNTERS, "error_kinds": {"failed": 7}, "latency": {"read": LATENCY}, **deeds}
    return {**found, "paths": list(paths or (path(),)), **more}


def daemon(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"pid": 7, "kind": "mount", "where": "/mnt/disk", "target": "iqn.x", "since": 12.5, "buffers": {"in_use": 4096}}
    return {**found, "sessions": [session()], "devices": list(devices or (device(),)), **more}


ENDINGS = ("", "_total", "_bucket", "_count", "_sum", "_info")
Samples = dict[tuple[str, tuple[str, ...]], float]


def told(*daemons: dict[str, Any], unreachable: int = 0) -> Samples:
    """Samples by name and values of the labels, in the order of the labels' names."""
    found: Samples = {}
    for family in text_string_to_metric_families(metrics.text(lambda: (daemons, unreachable))):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found, f"{key} appears twice"
            found[key] = sample.value
    return found


def test_what_a_daemon_says_has_its_metric() -> None:
    found, here = told(daemon(), unreachable=2), ("/mnt/disk", "3")
    assert found["isblk_requests_total", (*here, "read", "iqn.x")] == 3
    assert found["isblk_transferred_bytes_total", (*here, "trim", "iqn.x")] == 4096
    assert found["isblk_errors_total", ("/mnt/disk", "failed", "3", "iqn.x")] == 7
    assert found["isblk_failovers_total", (*here, "iqn.x")] == found["isblk_fences_total", (*here, "iqn.x")] == 1
    assert found["isblk_path_errors_total", ("/mnt/disk", "lost", "3", "10.0.0.5:3260", "iqn.x")] == 1
    assert found["isblk_digest_errors_total", ("/mnt/disk", "10.0.0.5:3260", "iqn.x")] == 1
    assert found["isblk_session_losses_total", ("/mnt/disk", "lost", "10.0.0.5:3260", "iqn.x")] == 1
    assert found["isblk_buffers_in_use_bytes", ("/mnt/disk", "iqn.x")] == 4096
    assert found["isblk_daemon_info", ("/mnt/disk", "mount", "7", "iqn.x")] == 1
    assert (found["isblk_daemons", ()], found["isblk_daemons_unreachable", ()]) == (1, 2)


def test_kinds_of_errors_are_there_from_the_start() -> None:
    found = told(daemon(device(error_kinds={"strange": 1})))
    kinds = {key[1][1]: value for key, value in found.items() if key[0] == "isblk_errors_total"}
    assert kinds == {**dict.fromkeys(metrics.KINDS, 0.0), "strange": 1.0}


def test_a_histogram_is_cumulative_and_its_sum_and_count_are_right() -> None:
    found = told(daemon())
    buckets = {key[1][1]: value for key, value in found.items() if key[0] == "isblk_request_duration_seconds_bucket"}
    shown = [bound for bound in BOUNDS if f"{bound:.1e}"[:3] in ("1.0", "2.0", "5.0")]
    assert [float(bound) for bound in buckets if bound != "+Inf"] == shown and len(shown) == 21
    assert (buckets["0.0001"], buckets["0.0002"], buckets["50.0"], buckets["+Inf"]) == (4.0, 9.0, 9.0, 10.0)
    here = ("/mnt/disk", "3", "read", "iqn.x")
    assert (found["isblk_request_duration_seconds_count", here], found["isblk_request_duration_seconds_sum", here]) == (10.0, 0.5)


def test_a_path_is_in_one_state() -> None:
    for state in metrics.PATH_STATES:
        found = told(daemon(device(path(state=state))))
        assert {key[1][1] for key, value in found.items() if key[0] == "isblk_path_state" and value} == {state}


def test_series_stay_apart_whatever_has_the_same_name() -> None:
    twice = daemon(device(path(), path()), sessions=[session(), session()])
    found = told(twice, {**twice, "pid": 8})
    places = {key[1][0] for key in found if key[0] == "isblk_requests_total"}
    assert places == {"/mnt/disk", "/mnt/disk (pid 8)"}
    assert {key[1][2] for key in found if key[0] == "isblk_path_requests_total"} == {"10.0.0.5:3260", "10.0.0.5:3260#2"}


def test_names_with_odd_characters_survive() -> None:
    odd = 'a "quoted"\\back\nslash \N{SNOWMAN}'
    assert ("isblk_start_time_seconds", (odd, "iqn.x")) in told(daemon(where=odd))


def test_a_kind_of_daemon_that_serves_no_disks_is_counted_all_the_same() -> None:
    found = told({"pid": 9, "kind": "supervisor"})
    assert found["isblk_daemons", ()] == 1 and found["isblk_daemon_info", ("supervisor", "supervisor", "9", "")] == 1


def test_nothing_runs() -> None:
    assert told() == {("isblk_daemons", ()): 0, ("isblk_daemons_unreachable", ()): 0}


def test_names_and_units_are_those_of_openmetrics() -> None:
    families = list(text_string_to_metric_families(metrics.text(lambda: ([daemon(clients=[], accepted=1, refused=0)], 0))))
    assert {family.name for family in families} >= {family.name for family in metrics.FAMILIES if "limit" not in family.name}
    for family in families:
        assert re.fullmatch(r"isblk(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        unit = family.name.rpartition("_")[2]
        assert family.unit == (unit if unit in ("seconds", "bytes") else "")
        assert not family.name.endswith(("_total", "_count", "_info"))
    sampled = {sample.name for family in families for sample in family.samples}
    assert sampled <= metrics.exposed_names()


def test_only_what_a_scraper_asks_for_is_given() -> None:
    registry = metrics.registry(lambda: ([daemon()], 0))
    names = {family.name for family in registry.restricted_registry(["isblk_fences_total"]).collect()}
    assert names == {"isblk_fences"}


# ------------------------------------------------------------------------------------------------------------------ the dashboard


def queries(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for name, each in value.items() if name in ("expr", "query") and isinstance(each, str))
        for each in value.values():
            yield from queries(each)
    elif isinstance(value, list):
        for each in value:
            yield from queries(each)


def test_each_expression_of_the_dashboard_names_metrics_that_there_are() -> None:
    dashboard = json.loads(dashboard_text())
    names = [name for query in queries(dashboard) for name in re.findall(r"isblk_\w+(?=[{),\[ ]|$)", query)]
    assert len(names) > 25
    assert set(names) <= metrics.exposed_names()


def test_the_dashboards_labels_are_those_of_its_metrics() -> None:
    names = metrics.exposed_names()
    labels = {name: {*family.labels, "le"} for family in metrics.FAMILIES for name in names if name.removeprefix(family.name) in ENDINGS}
    for query in queries(json.loads(dashboard_text())):
        if "isblk_" not in query or "label_values" in query:
            continue
        (name, *_), used = re.findall(r"isblk_\w+(?=[{\[)])", query), re.findall(r"(\w+)(?:!=|=~|=)\"", query)
        grouped = [label for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(", ")]
        known = labels.get(name, set()) | {name}
        assert {*used, *grouped} <= known, query


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    dashboard = json.loads(dashboard_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) == 15
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
        place = panel["gridPos"]
        taken = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells and max(x for x, _ in taken) < 24
        cells |= taken


@pytest.mark.parametrize("missing", ["latency", "counters"])
def test_a_daemon_of_another_version_is_no_reason_to_fail_without_words(missing: str) -> None:
    broken = device()
    del broken[missing]
    if missing == "latency":
        assert ("isblk_requests_total", ("/mnt/disk", "3", "read", "iqn.x")) in told(daemon(broken))
    else:
        with pytest.raises(KeyError):
            told(daemon(broken))
