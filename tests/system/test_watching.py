"""Looking at what runs with the commands as installed: status and its schema, events that are followed, metrics beside status, top on a
terminal; over a mount of each engine and an NBD server, with a portal that goes away."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from isblk.target.config import PortalConfig
from support import rawnbd, schema
from support.commands import Commands, get, put
from support.processes import Started, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.terminal import terminal
from support.waiting import free_port, until

DATA = bytes(range(256)) * 4096
TWO = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))


@pytest.fixture
def target() -> Iterator[TargetProcess]:
    with target_process([disk(0, 64 * MIB), disk(1, 8 * MIB)], portals=TWO) as running:
        yield running


def portals(commands: Commands) -> list[str]:
    one, two = commands.target.portals
    return ["-p", one, "-p", two, commands.target.name]


def mount(commands: Commands, place: Path, *options: str) -> Path:
    commands.run("mount", *portals(commands), place, "--lun", "0", *options)
    return place


def both_up(commands: Commands) -> bool:
    return all(path["state"] == "up" for one in commands.status() for device in one["devices"] for path in device["paths"])


@contextmanager
def nbd_client(place: Path) -> Iterator[None]:
    """A client that has chosen export 1 and says nothing more."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
        assert client.recv(18, socket.MSG_WAITALL) == rawnbd.GREETING
        client.sendall(struct.pack(">I", 3) + rawnbd.option(rawnbd.EXPORT_NAME, b"1"))
        assert len(client.recv(10, socket.MSG_WAITALL)) == 10
        yield


@contextmanager
def following(commands: Commands) -> Iterator[Started]:
    """`isblk events -f --json` in the background."""
    started = commands.processes.start(isblk("events", "-f", "--json"))
    try:
        yield started
    finally:
        assert started.stop(signal.SIGINT) == 0, started.stderr


def kinds(followed: Started) -> list[str]:
    return [json.loads(line)["kind"] for line in followed.stdout.splitlines()]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels, by prometheus-client's own parser; none twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} appears twice"
            found[key] = sample.value
    return found


def test_everything_that_runs_is_told_as_documented_and_alike_by_status_and_metrics(commands: Commands, tmp_path: Path) -> None:
    direct = mount(commands, tmp_path / "direct", "--fuse-engine", "direct", "-o", "direct_io")
    ordinary = mount(commands, tmp_path / "ordinary", "--fuse-engine", "pyfuse3", "--policy", "service-time")
    server = tmp_path / "nbd.sock"
    commands.run("nbd", *portals(commands), "--socket", server)
    until(lambda: both_up(commands), "every path to be up")
    for place in (direct, ordinary):
        put(place, 0, DATA, sync=True)
        assert get(place, 0, len(DATA)) == DATA
    with nbd_client(server):
        told = commands.status()
        text = commands.run("metrics").stdout
    schema.check(*told)
    assert [(one["kind"], one.get("engine")) for one in told] == [("mount", "direct"), ("mount", "pyfuse3"), ("nbd", None)]
    assert all(one["buffers"]["in_use"] < MIB * 2 for one in told) and told[2]["buffers"]["limit"] > 0
    assert [client["export"] for client in told[2]["clients"]] == ["1"]
    found = samples(text)
    for one in told:
        labels = {"export": one["where"], "target": one["target"]}
        for device in one["devices"]:
            compare(found, labels | {"lun": str(device["lun"])}, device)
        for session in one["sessions"]:
            here = labels | {"path": session["portal"]}
            assert found["isblk_logins_total", frozenset(here.items())] == session["logins"] == 1
            assert found["isblk_session_state", frozenset((here | {"isblk_session_state": "up"}).items())] == 1
            assert found["isblk_digest_errors_total", frozenset(here.items())] == 0
    assert found["isblk_daemons", frozenset()] == 3 and found["isblk_daemons_unreachable", frozenset()] == 0


def compare(found: dict[Any, float], labels: dict[str, str], device: dict[str, Any]) -> None:
    """A device's counters and its paths', as `status --json` and the metrics tell them."""
    for operation in ("read", "write", "flush", "trim", "zero"):
        here = frozenset((labels | {"operation": operation}).items())
        assert found["isblk_requests_total", here] == device["counters"][f"{operation}_requests"]
        if operation != "flush":
            assert found["isblk_transferred_bytes_total", here] == device["counters"][f"{operation}_bytes"]
        latency = device["latency"].get(operation)
        assert found.get(("isblk_request_duration_seconds_count", here)) == (latency and latency["requests"])
        if latency:
            assert found["isblk_request_duration_seconds_sum", here] == pytest.approx(latency["seconds"])
            assert found["isblk_request_duration_seconds_bucket", here | {("le", "+Inf")}] == sum(latency["buckets"].values())
            assert 0 < latency["samples"] <= latency["requests"]
    # Of all operations together, since a sample of one stands for those of others in between, too.
    counted = sum(device["counters"][f"{operation}_requests"] for operation in ("read", "write", "flush", "trim", "zero"))
    assert sum(latency["requests"] for latency in device["latency"].values()) <= counted
    assert found["isblk_device_size_bytes", frozenset(labels.items())] == device["size"]
    assert found["isblk_errors_total", frozenset((labels | {"kind": "failed"}).items())] == 0
    for path in device["paths"]:
        here = frozenset((labels | {"path": path["portal"]}).items())
        assert found["isblk_path_requests_total", here] == path["requests"]
        assert found["isblk_path_transferred_bytes_total", here] == path["bytes"]
        assert found["isblk_path_state", here | {("isblk_path_state", "up")}] == 1
        assert found["isblk_path_state", here | {("isblk_path_state", "down")}] == 0


def test_a_failover_is_followed_line_by_line_across_daemons_that_come_and_go(commands: Commands, tmp_path: Path) -> None:
    mount(commands, tmp_path / "one")
    until(lambda: both_up(commands), "both paths to be up")
    with following(commands) as followed:
        until(lambda: kinds(followed).count("path-up") == 2, "the past")
        mount(commands, tmp_path / "two")  # It starts later, and is heard all the same.
        until(lambda: kinds(followed).count("path-up") == 4, "the second mount's paths")
        commands.target.ask("close 0")
        put(tmp_path / "one", 0, DATA, sync=True)
        until(lambda: kinds(followed).count("failover") == 2, "both failovers")
        until(lambda: kinds(followed).count("login-failed") == 2, "both to have tried again")
        commands.umount(tmp_path / "two")
        until(lambda: "stopped" in kinds(followed), "the end of the second mount")
    events = [json.loads(line) for line in followed.stdout.splitlines()]
    assert [event["number"] for event in events if event["where"] == str(tmp_path / "two") and "number" in event] == list(
        range(1, 1 + sum(event["where"] == str(tmp_path / "two") and "number" in event for event in events))
    ), "each event once, in order"
    (failover,) = [event for event in events if event["kind"] == "failover" and event["where"] == str(tmp_path / "one")]
    one, two = commands.target.portals
    assert (failover["before"], failover["after"], failover["lun"], failover["level"]) == ([one], [two], 0, "warning")
    assert {"session-lost", "path-down", "login-failed", "started"} <= set(kinds(followed))
    told = commands.status()
    schema.check(*told)
    (device,) = told[0]["devices"]
    assert device["failovers"] == 1 and told[0]["sessions"][0]["ends"] == {"lost": 1}
    lines = commands.run("events", "--level", "warning").stdout.splitlines()
    assert any(re.fullmatch(r"\S+ \S+  failover +\S+/one  LUN 0: requests go to .* now, not to .*", line) for line in lines)


def test_top_lives_on_a_terminal(commands: Commands, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk", "--fuse-engine", "direct", "-o", "direct_io")
    until(lambda: both_up(commands), "both paths to be up")
    env = {**commands.processes.env, "NO_COLOR": ""}
    with terminal(isblk("top", "--interval", "0.2"), env, 110, 14) as shown:
        shown.until_text("LUN 0")
        shown.until(lambda: put(place, 0, DATA) or re.search(r"LUN 0 +2/2 up +[1-9].*(us|ms)", shown.text), "rates and latencies")
        shown.until_text(commands.target.portals[1])
        assert "READ/s" in shown.text and shown.colour("2/2 up") == {"green"}
        shown.type("p")
        shown.until(lambda: commands.target.portals[1] not in shown.text, "the paths to go")
        shown.type("?")
        shown.until_text("any key goes back")
        shown.type("x")
        shown.until(lambda: "any key goes back" not in shown.text, "the help to go")
        shown.resize(60, 8)
        shown.until(lambda: "q quit" in shown.lines[7] and "READ/s" not in shown.text, "the small screen")
        assert all(len(line) <= 60 for line in shown.lines)
        commands.target.ask("close 0")
        shown.until_text("1/2 up")
        shown.type("q")
        assert shown.ended() == 0
    assert b"\x1b[?1049l" in shown.raw, "the screen that was there before is back"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_watches_ends_by_a_signal_and_leaves_the_terminal_as_it_was(
    commands: Commands, tmp_path: Path, number: signal.Signals
) -> None:
    mount(commands, tmp_path / "disk")
    env = {**commands.processes.env, "NO_COLOR": "1"}
    with terminal(isblk("top"), env, 80, 10) as shown:
        shown.until_text("LUN 0")
        assert shown.colour("up") == {"default"}, "NO_COLOR is obeyed"
        shown.process.send_signal(number)
        assert shown.ended() == 0
    assert b"\x1b[?1049l" in shown.raw


def test_status_is_watched_in_place_with_colours(commands: Commands, tmp_path: Path) -> None:
    mount(commands, tmp_path / "disk")
    until(lambda: both_up(commands), "both paths to be up")
    with terminal(isblk("status", "--watch", "0.2"), commands.processes.env, 130, 14) as shown:
        shown.until_text("2 of 2 paths up")
        assert shown.colour("up ", beside="optimized") == {"green", "default"}
        put(tmp_path / "disk", 0, DATA, sync=True)
        shown.until_text("1.00 MiB")
        commands.target.ask("close 0")
        shown.until_text("1 of 2 paths up")
        shown.until(lambda: shown.text.count("isblk status, every 0.2 s") == 1, "one screen, not one behind the other")
        shown.process.send_signal(signal.SIGINT)
        assert shown.ended() == 0


def test_metrics_are_served_over_http_on_loopback_and_on_a_socket(commands: Commands, tmp_path: Path) -> None:
    mount(commands, tmp_path / "disk")
    port, path = free_port(), tmp_path / "metrics.sock"
    by_tcp = commands.processes.start(isblk("metrics", "--listen", f"127.0.0.1:{port}"))
    by_unix = commands.processes.start(isblk("metrics", "--socket", path))
    by_tcp.wait_for(f"http://127.0.0.1:{port}/metrics\n")
    by_unix.wait_for(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    for family, place in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, str(path))):
        head, body = http(family, place, "/metrics", "application/openmetrics-text")
        assert head.startswith("HTTP/1.0 200 ") and "application/openmetrics-text" in head
        assert samples(body)["isblk_daemons", frozenset()] == 1
    assert by_tcp.stop(signal.SIGTERM) == by_unix.stop(signal.SIGINT) == 0
    assert not path.exists()


def http(family: int, place: Any, path: str, accept: str) -> tuple[str, str]:
    with socket.socket(family) as client:
        client.settimeout(20)
        client.connect(place)
        client.sendall(f"GET {path} HTTP/1.0\r\nAccept: {accept}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


def test_a_daemon_that_is_stopped_hides_no_other(commands: Commands, tmp_path: Path) -> None:
    for name in ("one", "two"):
        mount(commands, tmp_path / name)
    first, second = commands.status()
    os.kill(first["pid"], signal.SIGSTOP)
    try:
        done = commands.run("metrics")
        found = samples(done.stdout)
        assert "does not answer" in done.stderr
        assert {
            value for (name, labels), value in found.items() if name == "isblk_daemon_info" and ("export", second["where"]) in labels
        } == {1}
        assert (found["isblk_daemons", frozenset()], found["isblk_daemons_unreachable", frozenset()]) == (1, 1)
    finally:
        os.kill(first["pid"], signal.SIGCONT)
