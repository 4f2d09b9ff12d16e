"""`isblk umount`: which daemon serves a mountpoint, and what it leaves behind when it could not write back."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from isblk import control
from isblk.cli import umount as cli
from isblk.errors import RequestFailed, Unreachable
from isblk.export import mountpoint

Run = Callable[..., Result]


@pytest.fixture
def daemon(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> control.Daemon:
    """A daemon that says it serves tmp_path/disk, and ends as soon as it is unmounted."""
    (tmp_path / "run").mkdir()
    there = control.Daemon(control.socket_path(tmp_path / "run", 4242), 4242)
    order: list[str] = []

    @contextmanager
    def watched(_path: Path) -> Iterator[Callable[[float], None]]:
        order.append("watched")
        yield lambda _seconds: order.append("ended")

    monkeypatch.setattr(control, "daemons", lambda _run: [there])
    monkeypatch.setattr(control, "ask", lambda _path, _request: {"where": str(tmp_path / "disk"), "order": order})
    monkeypatch.setattr(control, "watched", watched)
    monkeypatch.setattr(mountpoint, "unmount", lambda _text, *_how, **_more: order.append("unmounted"))
    return there


def order() -> Any:
    return control.ask(Path(), "status")["order"]


def test_it_watches_the_daemon_from_before_the_unmount_to_its_end(run: Run, daemon: control.Daemon, tmp_path: Path) -> None:
    result = run("umount", tmp_path / "disk")
    assert order() == ["watched", "unmounted", "ended"]
    assert result.output == ""


@pytest.mark.parametrize("spelled", ["disk", "./disk", "disk/", "../{home}/disk", "way/disk"])
def test_the_mountpoint_may_be_spelled_otherwise(
    run: Run, daemon: control.Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    (tmp_path / "way").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    run("umount", spelled.format(home=tmp_path.name))
    assert order()[0] == "watched"


def test_a_mount_of_nobody_is_just_unmounted(run: Run, daemon: control.Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("umount", tmp_path / "other")
    assert order() == ["unmounted"]


def test_a_daemon_that_does_not_answer_is_not_asked_twice(daemon: control.Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_path: Path, _request: str) -> dict[str, Any]:
        raise Unreachable("gone")

    monkeypatch.setattr(control, "ask", unreachable)
    assert cli._daemon_of(os.devnull) is None


def test_what_could_not_be_written_back_is_told_once(run: Run, daemon: control.Daemon, tmp_path: Path) -> None:
    note = control.failure_note(daemon.path.parent, daemon.pid)
    note.write_text("written data may be lost: this and that")
    assert run("umount", tmp_path / "disk", code=6).stderr == "isblk: written data may be lost: this and that\n"
    assert not note.exists()
    run("umount", tmp_path / "disk")


def test_a_failure_is_a_failed_request(daemon: control.Daemon) -> None:
    control.failure_note(daemon.path.parent, daemon.pid).write_text("lost")
    with pytest.raises(RequestFailed, match="lost"):
        cli.tell_failure(daemon)


def test_nothing_is_mounted(run: Run, tmp_path: Path) -> None:
    assert "nothing is mounted at" in run("umount", tmp_path, code=2).stderr


@pytest.mark.parametrize("spelled", ["disk.sock", "./disk.sock", "127.0.0.1:10809", "[::1]:10809"])
def test_an_nbd_server_is_ended_by_what_it_listens_at(
    run: Run, daemon: control.Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    stopped: list[tuple[Path, float]] = []
    where = str(tmp_path / "disk.sock")
    answer = {"kind": "nbd", "where": where, "listens": [where, "127.0.0.1:10809", "[::1]:10809"]}
    monkeypatch.setattr(control, "ask", lambda _path, _request: answer)
    monkeypatch.setattr(control, "stop", lambda path, timeout: stopped.append((path, timeout)))
    monkeypatch.chdir(tmp_path)
    run("umount", spelled, "--timeout", "7")
    assert stopped == [(daemon.path, 7.0)]
    control.failure_note(daemon.path.parent, daemon.pid).write_text("written data may be lost: this and that")
    assert "may be lost" in run("umount", spelled, code=6).stderr


def test_a_socket_that_nobody_serves_is_no_mountpoint(run: Run, daemon: control.Daemon, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert "no isblk of this user serves the socket" in run("umount", tmp_path / "dead.sock", code=2).stderr
    assert order() == []
