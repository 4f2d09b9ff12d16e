"""`isblk nbd`: where it listens, what is refused, and what reaches the server; the server itself is replaced."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from click.testing import Result

from isblk.cli import nbd as cli
from isblk.errors import NotFound
from isblk.link.opening import Access
from isblk.listening import Listener
from isblk.nbdserver import NbdSpec

Run = Callable[..., Result]
NAME = "iqn.2026-11.test.isblk:x"


@dataclass
class Asked:
    """What would have been served, and how."""

    spec: NbdSpec | None = None
    where: list[str] = field(default_factory=list)
    failure: Exception | None = None

    async def serve(self, spec: NbdSpec, listeners: list[Listener], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        self.spec, self.where = spec, [listener.where for listener in listeners]
        if self.failure is None:
            for listener in listeners:
                listener.publish()
            started()
        for listener in listeners:
            listener.withdraw()
            listener.sock.close()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Stands in for the server; with -f the command runs in this process."""
    found = Asked()
    monkeypatch.setattr(cli, "serve_nbd", found.serve)
    return found


def test_a_socket_is_served_and_its_uri_printed(run: Run, asked: Asked, tmp_path: Path) -> None:
    said = run("nbd", "-f", "-p", "h", NAME, "--socket", tmp_path / "s")
    assert said.stdout == f"nbd+unix:///?socket={tmp_path}/s\n" and not said.stderr
    assert asked.spec is not None and asked.where == [str(tmp_path / "s")]
    assert (asked.spec.read_only, asked.spec.tls, asked.spec.lun, asked.spec.exit_on_last) == (False, None, None, False)
    assert len(asked.spec.isids) == 1
    assert not (tmp_path / "s").exists()


def test_what_is_said_reaches_the_server(run: Run, asked: Asked, tmp_path: Path) -> None:
    words = ["--lun", "3", "--max-connections", "9", "--exit-on-last", "--policy", "round-robin"]
    run("nbd", "-f", "-p", "h", "-p", "i", NAME, "--listen", "127.0.0.1:0", *words)
    assert asked.spec is not None
    found = asked.spec
    assert (found.lun, found.max_connections, found.exit_on_last, found.policies.policy.value) == (3, 9, True, "round-robin")
    assert [portal.host for portal in found.target.portals] == ["h", "i"]


@pytest.mark.parametrize(("words", "read_only"), [((), False), (("-o", "ro"), True), (("--read-only",), True), (("-o", "rw"), False)])
def test_read_only_in_both_spellings(run: Run, asked: Asked, tmp_path: Path, words: tuple[str, ...], read_only: bool) -> None:
    run("nbd", "-f", "-p", "h", NAME, "--socket", tmp_path / "s", *words)
    assert asked.spec is not None and asked.spec.read_only is read_only


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nowhere to listen: give --socket PATH, or --listen"),
        (["--socket", "s", "--listen", "127.0.0.1"], "--socket and --listen exclude each other"),
        (["--socket", ""], "--socket is empty"),
        (["--socket", "/no/such/dir/s"], "cannot be made: No such file"),
        (["--socket", "/dev/null"], "is there and no socket"),
        (["--listen", ""], "not a portal"),
        (["--listen", "127.0.0.1:x"], "not a portal"),
        (["--listen", "192.0.2.1:0"], "cannot listen at 192.0.2.1:0: Cannot assign requested address"),
        (["--listen", "0.0.0.0:0"], "anybody who reaches 0.0.0.0:"),
        (["--listen", "[::]:0"], "anybody who reaches [::]:"),
        (["--socket", "s", "-o", "what"], "unknown mount option 'what'"),
        (["--socket", "s", "-o", "ro,rw"], "contradict each other"),
        (["--socket", "s", "--read-only", "-o", "rw"], "--read-only and -o rw contradict each other"),
        (["--socket", "s", "--max-connections", "0"], "--max-connections"),
        (["--socket", "s", "--tls-psk", "k", "--tls-certificates", "d"], "--tls-certificates and --tls-psk exclude each other"),
        (["--socket", "s", "--tls-certificates", "/no/such/dir"], "/no/such/dir"),
        (["--socket", "s", "--tls-psk", "/no/such/file"], "/no/such/file" if sys.version_info >= (3, 13) else "Python 3.13"),
        (["--socket", "s", "--policy", "best"], "policy"),
        (["--socket", "s", "--lun", "x"], "LUN"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    run: Run, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in run("nbd", "-p", "h", NAME, *words, code=2).stderr
    assert asked.spec is None
    assert not [name for name in os.listdir(tmp_path) if name != "run"]


def test_insecure_is_insisted_on(run: Run, asked: Asked) -> None:
    run("nbd", "-f", "-p", "h", NAME, "--listen", "0.0.0.0:0", "--insecure")
    assert asked.where[0].startswith("0.0.0.0:")


def test_a_socket_that_answers_is_left_alone(run: Run, asked: Asked, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as live:
        live.bind(str(tmp_path / "s"))
        live.listen()
        said = run("nbd", "-p", "h", NAME, "--socket", tmp_path / "s", code=2).stderr
        assert f"a server listens at {tmp_path}/s already" in said
    run("nbd", "-f", "-p", "h", NAME, "--socket", tmp_path / "s")


def test_sockets_of_systemd_take_the_place_of_options(run: Run, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passed() -> list[Listener]:
        return [Listener(socket.create_server(("127.0.0.1", 0)), "passed")]

    monkeypatch.setattr(cli, "activated", passed)
    run("nbd", "-f", "-p", "h", NAME)
    assert asked.where == ["passed"]
    kept: list[Listener] = []
    monkeypatch.setattr(cli, "activated", lambda: kept.append(passed()[0]) or kept)  # type: ignore[func-returns-value]
    assert "systemd passes the sockets" in run("nbd", "-f", "-p", "h", NAME, "--socket", tmp_path / "s", code=2).stderr
    kept[0].sock.close()


def test_a_daemon_that_fails_leaves_no_socket(run: Run, asked: Asked, tmp_path: Path) -> None:
    asked.failure = NotFound("there is no such target")
    assert run("nbd", "-p", "h", NAME, "--socket", tmp_path / "s", code=3).stderr == "isblk: there is no such target\n"
    assert sorted(os.listdir(tmp_path)) == ["run", "state"]
