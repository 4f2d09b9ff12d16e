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
MOUNT: dict[str, Any] = {
    "pid": 4242,
    "where": "/home/me/disk",
    "target": "iqn.2026-11.test.isblk:disks",
    "read_only": True,
    "since": 0.0,
    "sessions": [
        {
            "portal": "10.0.0.5:3260",
            "portal_group": 1,
            "isid": "80d3f4b00001",
            "state": "failed",
            "error": "10.0.0.5:3260 closed the connection",
            "negotiated": [{"key": "InitialR2T", "asked": None, "agreed": "No", "decided": "target"}],
        }
    ],
    "devices": [{"lun": 3, "size": 256 << 20, "counters": COUNTERS, "in_flight": 7, "wwid": None}],
}


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "daemons", lambda _run: [control.Daemon(control.socket_path(_run, 4242), 4242)])
    monkeypatch.setattr(control, "ask", lambda _path, _request: {**MOUNT, "since": time.time() - 90061})


def test_nothing_is_mounted(run: Run) -> None:
    result = run("status")
    assert (result.stdout, result.stderr) == ("", "isblk: nothing is mounted\n")
    assert json.loads(run("status", "--json").stdout) == {"version": 1, "mounts": []}


def test_a_mount_with_its_session_and_devices(run: Run, one: None) -> None:
    head, session, headings, device = run("status").stdout.splitlines()
    assert head == "/home/me/disk  iqn.2026-11.test.isblk:disks  read-only  pid 4242  up 1 d 1 h"
    assert session == "  10.0.0.5:3260  portal group 1  isid 80d3f4b00001  failed: 10.0.0.5:3260 closed the connection"
    assert headings.split("  ")[1] == "LUN"
    assert device.split() == ["3", "256", "MiB", "4", "3.50", "KiB", "5", "1.00", "MiB", "2", "1", "7", "-"]


def test_what_was_negotiated(run: Run, one: None) -> None:
    lines = run("status", "--negotiated").stdout.splitlines()
    assert lines[4].split() == ["KEY", "ASKED", "AGREED", "DECIDED", "BY"]
    assert lines[5].split() == ["InitialR2T", "-", "No", "target"]


def test_json_is_what_the_daemons_said(run: Run, one: None) -> None:
    (told,) = json.loads(run("status", "--json").stdout)["mounts"]
    assert told["devices"] == MOUNT["devices"] and told["sessions"] == MOUNT["sessions"]


def test_a_daemon_that_does_not_answer_hides_no_other(run: Run, one: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_path: object, _request: object) -> dict[str, Any]:
        raise Unreachable("the daemon 4242 does not answer")

    monkeypatch.setattr(control, "ask", unreachable)
    result = run("status", "--json")
    assert json.loads(result.stdout)["mounts"] == []
    assert result.stderr == "isblk: the daemon 4242 does not answer\n"


@pytest.mark.parametrize(("seconds", "text"), [(5, "up 0:00:05"), (3725, "up 1:02:05"), (-9, "up 0:00:00"), (200000, "up 2 d 7 h")])
def test_age(seconds: int, text: str) -> None:
    assert cli._age(time.time() - seconds - 0.3) == text
