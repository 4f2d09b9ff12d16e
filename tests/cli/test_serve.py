"""`isblk serve`: which line it serves, with which command, and what it clears away before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from isblk import cli

Run = Callable[..., Result]
NAME = "iqn.2001-05.com.example:disks"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "isblktab"
    path.write_text(
        f"{NAME} /mnt/lun0 fuse portal=10.0.0.5,lun=2\n"
        f"{NAME} /run/disk.sock nbd portal=10.0.0.5\n"
        f"{NAME} 127.0.0.1:10809 nbd portal=10.0.0.5,ro\n"
        f"{NAME} /mnt/wrong fuse portal=10.0.0.5,polcy=x\n"
        f"{NAME} /mnt/secret fuse portal=10.0.0.5,user=me\n"
    )
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run in place of the real ones."""
    found: list[list[str]] = []
    real = cli.main.main

    def main(*words: list[str], **how: Any) -> Any:
        if not words:  # the runner's call
            return real(**how)
        found.extend(words)
        return None

    monkeypatch.setattr(cli.main, "main", main)
    return found


def test_an_entry_is_served_by_its_command_in_the_foreground(run: Run, table: Path, called: list[list[str]]) -> None:
    run("serve", "-f", table, "/mnt/lun0")
    assert called == [["mount", "--foreground", "--portal=10.0.0.5", "--lun=2", "--", NAME, "/mnt/lun0"]]


@pytest.mark.parametrize("where", ["127.0.0.1:10809", "/127.0.0.1:10809"])
def test_a_unit_names_an_address_by_a_path(run: Run, table: Path, called: list[list[str]], where: str) -> None:
    run("serve", "-f", table, where)
    assert called[0][:4] == ["nbd", "--foreground", "--listen", "127.0.0.1:10809"]


def test_sockets_of_systemd_take_the_place_of_its_own(run: Run, table: Path, called: list[list[str]]) -> None:
    passed = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    run("serve", "-f", table, "/run/disk.sock")
    run("serve", "-f", table, "/run/disk.sock", env=passed)
    run("serve", "-f", table, "127.0.0.1:10809", env=passed)
    run("serve", "-f", table, "/run/disk.sock", env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    own = ["nbd", "--foreground", "--socket", "/run/disk.sock", "--portal=10.0.0.5", "--", NAME]
    assert called == [own, [*own[:2], *own[4:]], ["nbd", "--foreground", "--portal=10.0.0.5", "-o", "ro", "--", NAME], own]


@pytest.mark.parametrize(
    ("where", "code", "sentence"),
    [
        ("/mnt/wrong", 2, "is policy meant?"),
        ("/mnt/secret", 2, "no secret for the CHAP user me"),
        ("/mnt/lun1", 3, "is /mnt/lun0 meant?"),
    ],
)
def test_what_is_wrong_with_the_line_is_told(run: Run, table: Path, called: list[list[str]], where: str, code: int, sentence: str) -> None:
    assert sentence in run("serve", "-f", table, where, code=code).stderr
    assert not called
