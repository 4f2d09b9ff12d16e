"""`isblk metrics`: printed, refused, and without the package that it needs. (Serving: tests/system/test_watching.py.)"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from isblk import control
from isblk.errors import Unreachable

Run = Callable[..., Result]


def test_nothing_runs(run: Run) -> None:
    said = run("metrics").stdout
    assert "isblk_daemons 0.0\n" in said and said.endswith("# EOF\n")


def test_a_daemon_that_does_not_answer_is_named_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ask_all", lambda _run: ([], [Unreachable("the daemon 7 does not answer")]))
    result = run("metrics")
    assert result.stderr == "isblk: the daemon 7 does not answer\n"
    assert "isblk_daemons_unreachable 1.0\n" in result.stdout


def test_the_dashboard_needs_nobody_and_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ask_all", None)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert json.loads(run("metrics", "--dashboard").stdout)["title"] == "isblk"


@pytest.mark.parametrize("options", [(), ("--listen", "127.0.0.1:0"), ("--socket", "metrics")])
def test_without_the_package_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    monkeypatch.delitem(sys.modules, "isblk.metrics", raising=False)
    monkeypatch.delattr("isblk.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "pip install 'isblk[metrics]'" in run("metrics", *options, code=2).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--listen", "0.0.0.0:0"), "listen on loopback, or insist with --insecure"),
        (("--listen", "127.0.0.1", "--socket", "x"), "exclude each other"),
        (("--socket", "/"), "--socket is empty"),
        (("--listen", "no.such.host.invalid"), "has no address"),
        (("--socket", "/absent/metrics"), "cannot be made"),
    ],
)
def test_a_place_that_cannot_be_is_refused(run: Run, options: tuple[str, ...], words: str) -> None:
    assert words in run("metrics", *options, code=2).stderr


def test_a_socket_that_is_taken_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is there and no socket" in run("metrics", "--socket", tmp_path / "file", code=2).stderr
