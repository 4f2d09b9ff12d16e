"""`isblk status`: what daemons answer, as text and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from isblk import control
from isblk.cli import status as cli
from isblk.errors import Unreachable

Run = Callable[..., Result]
COUNTERS = {"read_requests": 4, "read_bytes": 3584, "write_requests": 5, "write_bytes": 1 << 20, "flush_requests": 2, "errors": 1}
REFUSED = "10.0.0.6:3260 cannot be reached: Connection refused; check the address, the port and that the target runs"
AGREEMENT = {"key": "InitialR2T", "asked": None, "agreed": "No", "decided": "target"}


def session(portal: str, isid: str, **more: Any) -> dict[str, Any]:
    there = {"portal": portal, "portal_group": 1, "isid": isid, "state": "up", "since": 0.0, "error": None, "logins": 1, "failures": 0}
    return {**there, "traffic": {"bytes_sent": 2048, "bytes_received": 1 << 20}, "negotiated": [AGREEMENT], **more}


def lost(portal: str, isid: str) -> dict[str, Any]:
    found = session(portal, isid, portal_group=None, state="down", error=REFUSED, logins=0, failures=7)
    return {key: value for key, value in found.items() if key not in ("traffic", "negotiated")}


def path(portal: str, isid: str, **more: Any) -> dict[str, Any]:
    there = {"portal": portal, "portal_group": 1, "isid": isid, "state": "up", "reason": None, "since": 0.0, "access": "optimized"}
    counted = {"requests": 9, "bytes": 1 << 20, "in_flight": 7, "errors": 0, "losses": 0, "logins": 1}
    return {**there, **counted, "preferred": False, "damped": False, "last_error": None, **more}


def device(lun: int, paths: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    deeds = {"policy": "failover", "waiting": 0, "failed_over": 0, "fences": 0, "cache_losses": 0, "journal_bytes": 0}
    return {"lun": lun, "size": 256 << 20, "counters": COUNTERS, "in_flight": 7, "wwid": None, "paths": paths, **deeds, **more}


def mount(sessions: list[dict[str, Any]], devices: list[dict[str, Any]]) -> dict[str, Any]:
    where = {"pid": 4242, "where": "/home/me/disk", "target": "iqn.2026-11.test.isblk:disks", "read_only": True}
    return {**where, "since": 0.0, "sessions": sessions, "devices": devices}


A, B = ("10.0.0.5:3260", "80d3f4b00001"), ("10.0.0.6:3260", "80d3f4b00002")
SINGLE = mount([session(*A)], [device(3, [path(*A)])])
DOWN = path(*B, portal_group=None, state="down", reason=REFUSED, requests=0, bytes=0, in_flight=0, logins=0, access="standby")
DOUBLE = mount(
    [session(*A), lost(*B)],
    [device(3, [path(*A, last_error="the target was busy"), DOWN], waiting=2, failed_over=4, fences=1, journal_bytes=3 << 20)],
)
SEVERAL = mount(
    [session(*A), lost(*B)],
    [device(3, [path(*A), DOWN]), device(4, [path(*A, state="standby", reason="standby", access="standby", damped=True), DOWN])],
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """`told(MOUNT)`: a daemon that answers this, as of now."""

    def aged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: time.time() - 90061.5 if key == "since" else aged(each) for key, each in value.items()}
        return [aged(each) for each in value] if isinstance(value, list) else value

    def tell(answer: dict[str, Any]) -> None:
        monkeypatch.setattr(control, "daemons", lambda run: [control.Daemon(control.socket_path(run, 4242), 4242)])
        monkeypatch.setattr(control, "ask", lambda _path, _request: aged(answer))

    return tell


Told = Callable[[dict[str, Any]], None]


def lines(run: Run, *options: str) -> list[str]:
    return [" ".join(line.split()) for line in run("status", *options).stdout.splitlines()]


def test_nothing_is_mounted(run: Run) -> None:
    result = run("status")
    assert (result.stdout, result.stderr) == ("", "isblk: nothing is mounted\n")
    assert json.loads(run("status", "--json").stdout) == {"version": 1, "mounts": []}


def test_one_path_is_one_line_and_nothing_else_is_told_of_it(run: Run, told: Told) -> None:
    told(SINGLE)
    assert lines(run) == [
        "/home/me/disk iqn.2026-11.test.isblk:disks read-only pid 4242 up 1 d 1 h",
        "LUN SIZE READS READ WRITES WRITTEN FLUSHES ERRORS IN FLIGHT WWID",
        "3 256 MiB 4 3.50 KiB 5 1.00 MiB 2 1 7 -",
        "PATH GROUP ISID STATE FOR ACCESS REQUESTS CARRIED IN FLIGHT",
        "10.0.0.5:3260 1 80d3f4b00001 up 1 d 1 h optimized 9 1.00 MiB 7",
    ]


def test_two_paths_with_the_reason_of_the_one_that_is_down(run: Run, told: Told) -> None:
    told(DOUBLE)
    assert lines(run)[3:] == [
        "PATH GROUP ISID STATE FOR ACCESS REQUESTS CARRIED IN FLIGHT",
        "10.0.0.5:3260 1 80d3f4b00001 up 1 d 1 h optimized 9 1.00 MiB 7",
        "10.0.0.6:3260 - 80d3f4b00002 down 1 d 1 h - 0 0 B 0",
        "10.0.0.5:3260 last error: the target was busy",
        REFUSED,
        "failover, 1 of 2 paths up, waiting 2, repeated 4, fences 1, kept until the next flush 3.00 MiB",
    ]


def test_paths_of_several_devices_do_not_repeat_what_is_the_same(run: Run, told: Told) -> None:
    told(SEVERAL)
    said = lines(run)
    assert said[4:11] == [
        "PATH GROUP ISID SESSION FOR LOGINS SENT RECEIVED",
        "10.0.0.5:3260 1 80d3f4b00001 up 1 d 1 h 1 2.00 KiB 1.00 MiB",
        "10.0.0.6:3260 - 80d3f4b00002 down 1 d 1 h 0 0 B 0 B",
        "LUN PATH STATE FOR ACCESS REQUESTS CARRIED IN FLIGHT",
        "3 10.0.0.5:3260 up 1 d 1 h optimized 9 1.00 MiB 7",
        "10.0.0.6:3260 down 1 d 1 h - 0 0 B 0",
        "4 10.0.0.5:3260 standby 1 d 1 h standby 9 1.00 MiB 7",
    ]
    assert said.count(REFUSED) == 1
    assert said[-3:] == [
        "LUN 3 failover, 1 of 2 paths up",
        "10.0.0.5:3260 comes and goes too often: it is used when there is no other",
        "LUN 4 failover, 0 of 2 paths up",
    ]


@pytest.mark.parametrize("answer", [SINGLE, DOUBLE, SEVERAL])
def test_its_tables_fit_a_terminal(run: Run, told: Told, answer: dict[str, Any]) -> None:
    long = "192.168.100.100:32600"
    text = json.dumps(answer).replace("10.0.0.5:3260", long).replace('"optimized"', '"non-optimized"').replace('"up"', '"fencing"')
    told(json.loads(text))
    said = run("status").stdout.splitlines()
    assert any(long in line and "non-optimized" in line for line in said)
    assert max(len(line) for line in said if "failover," not in line and "cannot be reached" not in line) <= 120


def test_what_was_negotiated(run: Run, told: Told) -> None:
    told(DOUBLE)
    said = lines(run, "--negotiated")
    at = said.index("KEY ASKED AGREED DECIDED BY")
    assert said[at - 1 : at + 2] == ["10.0.0.5:3260", "KEY ASKED AGREED DECIDED BY", "InitialR2T - No target"]
    assert said[at + 2] == "10.0.0.6:3260 no session"


AUTOMOUNT = {"state": "no session", "since": 0.0, "idle": 300.0, "logins": 0, "waiting": 0, "seen": True, "error": None}
ASLEEP = {**mount([], [device(3, [], policy=None)]), "automount": AUTOMOUNT}


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ({}, "automount: no session for 1 d 1 h; the target is logged in to when the file is used"),
        ({"seen": False}, "when the file is used; never seen yet, so its size is not known"),
        ({"state": "logging in", "waiting": 1}, "automount: logging in for 1 d 1 h; 1 request waits"),
        (
            {"state": "logging in", "waiting": 2, "error": "refused"},
            "for 1 d 1 h; 2 requests wait; the last login failed: refused",
        ),
        ({"state": "logged in"}, "automount: logged in for 1 d 1 h; logged out after 300 s without use"),
        ({"state": "logged in", "idle": 0}, "automount: logged in for 1 d 1 h; never logged out"),
    ],
)
def test_an_automount_says_whether_it_is_logged_in(run: Run, told: Told, now: dict[str, Any], line: str) -> None:
    told({**ASLEEP, "automount": {**AUTOMOUNT, **now}})
    said = lines(run)
    assert said[2].startswith("3 256 MiB") and said[3].endswith(line) and len(said) == 4
    assert not any(row.startswith("PATH") for row in lines(run, "--negotiated"))
    told({**SINGLE, "automount": {**AUTOMOUNT, **now}})
    assert [row.split()[0] for row in lines(run)[3:]] == ["automount:", "PATH", "10.0.0.5:3260"]


def test_of_an_automount_that_waits_nothing_is_told_of_paths(run: Run, told: Told) -> None:
    told({**ASLEEP, "devices": [device(3, [], policy=None, waiting=2), device(4, [], policy=None)]})
    assert len(lines(run)) == 5


def test_json_is_what_the_daemons_said(run: Run, told: Told) -> None:
    told(DOUBLE)
    answer = json.loads(run("status", "--json").stdout)
    (found,) = answer["mounts"]
    assert answer["version"] == 1
    assert [each["state"] for each in found["devices"][0]["paths"]] == ["up", "down"]
    assert found["sessions"][0]["negotiated"] == [AGREEMENT]


def test_a_daemon_that_does_not_answer_hides_no_other(run: Run, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_path: object, _request: object) -> dict[str, Any]:
        raise Unreachable("the daemon 4242 does not answer")

    told(SINGLE)
    monkeypatch.setattr(control, "ask", unreachable)
    result = run("status", "--json")
    assert json.loads(result.stdout)["mounts"] == []
    assert result.stderr == "isblk: the daemon 4242 does not answer\n"


NBD = {
    **SINGLE,
    "kind": "nbd",
    "where": "/run/disk.sock",
    "uris": ["nbd+unix:///?socket=/run/disk.sock"],
    "exports": [{"name": "3", "lun": 3, "wwid": "naa.6001", "read_only": True}, {"name": "4", "lun": 4, "wwid": None, "read_only": False}],
    "clients": [
        {
            "address": "pid 7",
            "export": "3",
            "negotiated": {"phase": "transmission", "replies": "structured", "allocation": True, "tls": "none"},
            "counters": {"reads": 5, "bytes_read": 4096, "others": 1, "errors": 0},
        },
        {"address": "pid 8", "export": None, "negotiated": {"phase": "options"}, "counters": {}},
    ],
}


def test_an_nbd_server_with_its_exports_and_its_clients(run: Run, told: Told) -> None:
    told(NBD)
    assert lines(run)[5:] == [
        "nbd+unix:///?socket=/run/disk.sock",
        "EXPORT LUN ALSO ACCESS",
        "3 3 naa.6001 read-only",
        "4 4 - read-write",
        "CLIENT EXPORT NEGOTIATED READS READ WRITES WRITTEN OTHERS ERRORS",
        "pid 7 3 replies structured, allocation 5 4.00 KiB 0 0 B 1 0",
        "pid 8 - phase options 0 0 B 0 0 B 0 0",
    ]
    told({**NBD, "clients": []})
    assert lines(run)[-1] == "no clients"


def test_a_block_device_with_its_connections(run: Run, told: Told) -> None:
    block_device = {"path": "/dev/nbd0", "size": 64 << 20, "block_size": 512, "connections": 2, "timeout": 300}
    counters = {"reads": 5, "bytes_read": 4096, "writes": 2, "bytes_written": 1024, "others": 1, "errors": 0}
    client = {"address": "kernel, connection 1", "export": "0", "negotiated": {"replies": "simple", "tls": "none"}, "counters": counters}
    more = {"dead_connection_timeout": 30, "replaced_connections": 0}
    found = {**SINGLE, "kind": "attach", "where": "/dev/nbd0", "block_device": {**block_device, **more}, "clients": [client]}
    told(found)
    assert lines(run)[5:] == [
        "64.0 MiB in blocks of 512, 2 connections, timeout 300 s, dead connection timeout 30 s",
        "CLIENT EXPORT NEGOTIATED READS READ WRITES WRITTEN OTHERS ERRORS",
        "kernel, connection 1 0 replies simple 5 4.00 KiB 2 1.00 KiB 1 0",
    ]
    told({**found, "block_device": {**block_device, **more, "replaced_connections": 3}})
    assert "2 connections, 3 replaced, timeout 300 s" in lines(run)[5]
    told({**found, "block_device": {**block_device, **more, "connections": 1, "timeout": 0}})
    assert "1 connection, no timeout, dead" in lines(run)[5]


# ------------------------------------------------------------------------------------------------------------------ again and again


def interrupted_after(monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    def sleep(seconds: float) -> None:
        nonlocal turns
        turns -= 1
        assert seconds in (0.5, cli.WATCH_SECONDS)
        if not turns:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.time, "sleep", sleep)


def test_watching_without_a_terminal_is_one_text_behind_the_other(run: Run, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told(SINGLE)
    interrupted_after(monkeypatch, 3)
    said = run("status", "--watch").stdout
    assert said.count("isblk status, every 2 s") == said.count("/home/me/disk") == 3 and "\x1b" not in said


def test_watching_as_json_is_a_line_each(run: Run, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told(SINGLE)
    interrupted_after(monkeypatch, 2)
    lines = [json.loads(line) for line in run("status", "--watch", "0.5", "--json").stdout.splitlines()]
    assert [line["mounts"][0]["pid"] for line in lines] == [4242, 4242] and lines[0]["time"] <= lines[1]["time"]


def test_the_schema_is_printed_without_asking_anybody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "daemons", None)
    printed = json.loads(run("status", "--schema").stdout)
    assert printed["properties"]["version"] == {"const": control.VERSION}


def test_a_kind_of_daemon_that_is_not_known_is_shown_as_far_as_it_goes(run: Run, told: Told) -> None:
    told({"pid": 9, "kind": "something", "since": 0.0})
    assert lines(run) == ["something pid 9 up 1 d 1 h"]
    told({"pid": 9})
    assert lines(run, "--negotiated") == ["isblk pid 9"]
