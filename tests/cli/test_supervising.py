"""What `up`, `down` and `reload` share: when there is no use in waiting, what is said of what is not up, what `isblk status` shows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from isblk.cli import supervising
from isblk.cli.supervising import describe, exports, follow, is_ended, is_started, needed, supervisor, tell_started
from isblk.errors import UsageError
from isblk.table.entry import parse

NAME = "iqn.2001-05.com.example:disks"


def export(state: str, where: str = "/a", **more: Any) -> dict[str, Any]:
    return {
        "where": where,
        "type": "fuse",
        "state": state,
        "reason": "",
        "exit_code": 0,
        "pid": None,
        "since": time.time(),
        "next_try": None,
    } | {
        "restarts": 0,
        "timeout": 90,
        **more,
    }


def test_a_target_that_does_not_answer_is_waited_for_and_nothing_else_that_failed() -> None:
    assert [is_started(export(state)) for state in ("up", "failed", "down")] == [True] * 3
    assert [is_started(export(state)) for state in ("starting", "stopping")] == [False] * 2
    assert [is_started(export("retrying", exit_code=code)) for code in (2, 3, 4, 5, 6)] == [True, True, True, False, True]
    assert not is_started(export("up", changing=True))
    assert [is_ended(export(state)) for state in ("down", "up", "stopping")] == [True, True, False]


def test_what_is_not_up_is_told_and_the_worst_counts_that_may_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("/a fuse", "/b fuse nofail", "/c fuse", "/d fuse", "/e fuse nofail", "/f fuse timeout=7", "/g fuse")
    entries = {entry.where: entry for entry in parse("tab", "\n".join(f"{NAME} {line}" for line in lines)).entries}
    found = [
        export("up", "/a"),
        export("retrying", "/b", reason="no answer", exit_code=6, next_try=time.time() + 4.2),
        export("retrying", "/c", reason="refused", exit_code=4, next_try=time.time() - 1),
        export("failed", "/d", reason="not there", exit_code=3),
        export("starting", "/e"),
        export("starting", "/f"),
        export("down", "/g", reason="ended in order, by somebody else"),
    ]
    assert tell_started({each["where"]: each for each in found}, entries) == 5
    assert capsys.readouterr().err.splitlines() == [
        "isblk: /b is not up: no answer; next try in 4 s",
        "isblk: /c is not up: refused; next try in 0 s",
        "isblk: /d is not up: not there",
        "isblk: /f is not up: it has not come within 7 s; it is tried further",
        "isblk: /g is not up: ended in order, by somebody else",
    ]


def test_each_export_is_followed_until_it_settles_or_for_as_long_as_it_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    states = {"/slow": 3, "/never": 1000, "/quick": 0}
    monkeypatch.setattr(supervising.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervising.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(
        supervising, "exports", lambda path, wanted: {where: export("up" if now[0] >= states[where] else "starting") for where in wanted}
    )
    found = follow(Path("x"), {"/slow": 9, "/never": 5, "/quick": 0}, is_started)
    assert {where: each["state"] for where, each in found.items()} == {"/slow": "up", "/never": "starting", "/quick": "up"}
    assert now[0] == pytest.approx(5, abs=0.2)
    assert follow(Path("x"), {}, is_started) == {}


def test_an_export_that_is_gone_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising.control, "ask", lambda path, request: {"exports": [export("up")]})
    assert {where: each["state"] for where, each in exports(Path("x"), ["/a", "/b"]).items()} == {"/a": "up", "/b": "down"}


def test_a_supervisor_of_another_table_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert supervisor(Path("tab"), tmp_path) is None
    with pytest.raises(UsageError, match="no supervisor runs: `isblk up` starts one"):
        needed(Path("tab"), tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "77.sock").touch()
    monkeypatch.setattr(supervising.lock, "find", lambda run: run / "77.sock")
    monkeypatch.setattr(supervising.control, "ask", lambda path, request: {"table": f"{tmp_path}/tab"})
    assert supervisor(Path("tab"), tmp_path) == tmp_path / "77.sock"
    with pytest.raises(UsageError, match=f"process 77, keeps {tmp_path}/tab: name that with -f"):
        needed(Path("other"), tmp_path)


def test_a_supervisor_that_begins_or_ends_just_now_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now, path = [0.0], tmp_path / "77.sock"
    monkeypatch.setattr(supervising.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervising.control, "ask", lambda path, request: {"table": "/tab"})

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1:
            path.touch()

    monkeypatch.setattr(supervising.time, "sleep", sleep)
    monkeypatch.setattr(supervising.lock, "find", lambda run: path)
    assert supervisor(Path("/tab"), tmp_path) == path
    assert 1 < now[0] < 2
    path.unlink()
    monkeypatch.setattr(supervising.lock, "find", lambda run: path if now[0] < 2.5 else None)
    monkeypatch.setattr(supervising.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert supervisor(Path("/tab"), tmp_path) is None


def test_status_shows_each_export_and_why_it_is_not_up() -> None:
    now = time.time()
    status = {
        "table": "/etc/isblk/isblktab",
        "pid": 7,
        "since": now,
        "exports": [export("up", pid=8), export("retrying", "/b", reason="no answer", next_try=now + 9.9, restarts=3)],
    }
    assert describe(status, lambda since: "NOW").splitlines() == [
        "/etc/isblk/isblktab  supervisor  pid 7  up NOW",
        "  EXPORT    TYPE    STATE     FOR    PID    RESTARTS",
        "  /a        fuse    up        NOW    8      0",
        "  /b        fuse    retrying  NOW    -      3",
        "  /b: no answer; next try in 10 s",
    ]
    assert describe({**status, "exports": []}, str).splitlines()[1:] == ["  no exports"]
    assert os.path.isabs(status["table"])
