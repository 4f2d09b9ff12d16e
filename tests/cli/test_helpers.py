"""The helpers of mount(8) and umount(8) as they are called: words, exit codes, and what they leave to `isblk mount` and `isblk umount`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isblk.cli import helpers, umount
from isblk.cli import mount as mount_command
from isblk.detach import Outcome
from isblk.errors import ExitCode, UsageError
from isblk.export import mountpoint
from support.logs import restored_logging

NAME = "iqn.2001-05.com.example:disks"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for variable, name in (("ISBLK_STATE_DIR", "state"), ("ISBLK_RUN_DIR", "run")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("ISBLK_CONFIG", "")
    with restored_logging():
        yield tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A helper with its arguments; the exit code."""

    def run(helper: Callable[[], Any], *arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [helper.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            helper()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


Call = Callable[..., int]


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """What becomes of the daemon, in place of one."""
    found = [Outcome(0)]
    monkeypatch.setattr("isblk.cli.service.run_detached", lambda work, log_file: found[0])
    return found


def test_a_mount_that_succeeds_says_nothing_unless_asked(call: Call, outcomes: list[Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(helpers.mount, NAME, "/mnt/lun0", "-o", "rw,portal=127.0.0.1,_netdev") == 0
    assert capsys.readouterr() == ("", "")
    assert call(helpers.mount, NAME, "/mnt/lun0", "-v", "-o", "rw,portal=127.0.0.1") == 0
    assert capsys.readouterr().err == f"isblk: {NAME} is mounted at /mnt/lun0\n"


@pytest.mark.parametrize(("code", "ours", "nofail"), [(1, 4, 4), (2, 1, 1), (3, 32, 0), (4, 32, 32), (5, 32, 0), (6, 32, 32), (130, 8, 8)])
def test_exit_codes_are_those_of_mount_and_nofail_forgives_what_is_not_there(
    call: Call, outcomes: list[Outcome], capsys: pytest.CaptureFixture[str], code: int, ours: int, nofail: int
) -> None:
    outcomes[0] = Outcome(code, "this is so")
    assert call(helpers.mount, NAME, "/mnt/lun0", "-o", "portal=127.0.0.1") == ours
    assert call(helpers.mount, NAME, "/mnt/lun0", "-o", "portal=127.0.0.1,nofail") == nofail
    assert capsys.readouterr().err == "isblk: this is so\n" * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([NAME], "it is called as mount.isblk SPEC DIR"),
        ([NAME, "/mnt", "-o", "prtal=1"], "is portal meant?"),
        (["nonsense", "/mnt", "-o", "portal=127.0.0.1"], "nonsense"),
        ([NAME, "/mnt"], "no portal for"),
        ([NAME, "/mnt", "-o", "portal=127.0.0.1,ro,rw"], "contradict"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence_also_by_a_fake_mount(
    call: Call, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert call(helpers.mount, *arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("isblk: ") and said.count("\n") == 1


def test_a_fake_mount_checks_and_mounts_nothing(call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mount_command, "detach", lambda *_arguments: pytest.fail("mounted"))
    assert call(helpers.mount, NAME, "/mnt", "-f", "-o", "portal=127.0.0.1") == 0
    assert call(helpers.mount, NAME, "/mnt", "-f", "-o", "portel=127.0.0.1") == 1
    assert call(helpers.mount, NAME, "/mnt", "-f") == 1
    assert "no portal for" in capsys.readouterr().err


def test_the_configuration_holds_for_lines_of_fstab_too(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "isblk.conf").write_text(f'portal = "127.0.0.1"\n[target."{NAME}"]\npolicy = "fastest"\n')
    monkeypatch.setenv("ISBLK_CONFIG", str(home / "isblk.conf"))
    assert call(helpers.mount, NAME, "/mnt", "-f") == 1
    assert "isblk.conf" in capsys.readouterr().err
    assert call(helpers.mount, NAME, "/mnt", "-f", "-o", "policy=round-robin") == 0


def test_a_helper_finds_programs_where_nobody_says_where_they_are(
    call: Call, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATH")
    assert call(helpers.mount, NAME, "/mnt", "-o", "portal=127.0.0.1") == 0
    assert "/usr/sbin" in os.environ["PATH"].split(":")


def test_umount_passes_on_how_it_was_asked(call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[str, dict[str, bool]]] = []
    monkeypatch.setattr(umount, "end_mount", lambda place, _timeout, **how: asked.append((place, how)))
    assert call(helpers.umount, "/mnt/lun0") == 0
    assert call(helpers.umount, "/mnt/lun0", "-l", "-f", "-v", "-t", "fuse.isblk") == 0
    assert asked == [("/mnt/lun0", {"lazy": False, "force": False}), ("/mnt/lun0", {"lazy": True, "force": True})]
    assert capsys.readouterr().err == "isblk: /mnt/lun0 is unmounted\n"


@pytest.mark.parametrize(("can", "code", "words"), [(True, 0, "is read-only from now on"), (False, 1, "it is in use")])
def test_what_is_in_use_is_made_read_only_if_that_is_asked(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], can: bool, code: int, words: str
) -> None:
    def busy(*_arguments: object, **_how: bool) -> None:
        raise UsageError("it is in use")

    monkeypatch.setattr(umount, "end_mount", busy)
    monkeypatch.setattr(mountpoint, "make_read_only", lambda _place: can)
    assert call(helpers.umount, "/mnt/lun0", "-r") == code
    assert words in capsys.readouterr().err
    assert call(helpers.umount, "/mnt/lun0") == 1


def test_a_namespace_that_is_none_is_told(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert call(helpers.umount, "/mnt/lun0", "-N", tmp_path / "file") == 1
    assert call(helpers.mount, NAME, "/mnt/lun0", "-N", tmp_path / "none") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot be entered: Invalid argument" in first
    assert "cannot be entered: No such file" in second
    assert ExitCode.USAGE == 2
