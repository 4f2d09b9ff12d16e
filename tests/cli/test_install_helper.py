"""`isblk install-helper`: links for mount(8), and nothing that is not ours is touched."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from isblk.cli import install_helper as cli
from isblk.cli.install_helper import GENERATOR, GENERATORS, HELPERS

Run = Callable[..., Result]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an installation's commands."""
    commands = tmp_path / "venv" / "bin"
    commands.mkdir(parents=True)
    for name in (*HELPERS, GENERATOR):
        (commands / name).write_text("#!/bin/sh\n")
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    return commands


@pytest.fixture
def sbin(tmp_path: Path) -> Path:
    (tmp_path / "sbin").mkdir()
    return tmp_path / "sbin"


def links(sbin: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in sbin.iterdir()}


def test_it_makes_links_to_this_installation_and_says_which(run: Run, installation: Path, sbin: Path) -> None:
    said = run("install-helper", "--directory", sbin).stdout
    assert said.splitlines() == [str(sbin / name) for name in HELPERS]
    assert links(sbin) == {name: str(installation / name) for name in HELPERS}


def test_a_second_time_it_does_nothing(run: Run, installation: Path, sbin: Path) -> None:
    run("install-helper", "--directory", sbin)
    before = {path: path.lstat().st_ino for path in sbin.iterdir()}
    assert run("install-helper", "--directory", sbin).output == ""
    assert {path: path.lstat().st_ino for path in sbin.iterdir()} == before


def test_links_of_another_installation_are_replaced(run: Run, installation: Path, sbin: Path) -> None:
    (sbin / HELPERS[0]).symlink_to(f"/opt/gone/bin/{HELPERS[0]}")
    run("install-helper", "--directory", sbin)
    assert links(sbin)[HELPERS[0]] == str(installation / HELPERS[0])


@pytest.mark.parametrize("remove", [[], ["--remove"]])
def test_what_is_not_isblks_is_left_alone(run: Run, installation: Path, sbin: Path, remove: list[str]) -> None:
    (sbin / HELPERS[0]).write_text("somebody's")
    said = run("install-helper", "--directory", sbin, *remove, code=2).stderr
    assert "is not isblk's: move it away" in said
    assert (sbin / HELPERS[0]).read_text() == "somebody's"
    (sbin / HELPERS[0]).unlink()
    (sbin / HELPERS[0]).symlink_to("/usr/bin/other")
    run("install-helper", "--directory", sbin, *remove, code=2)
    assert links(sbin) == {HELPERS[0]: "/usr/bin/other"}


def test_remove_takes_them_away_and_is_content_when_there_are_none(run: Run, installation: Path, sbin: Path) -> None:
    run("install-helper", "--directory", sbin)
    assert run("install-helper", "--directory", sbin, "--remove").stdout.splitlines() == [str(sbin / name) for name in HELPERS]
    assert not links(sbin)
    assert run("install-helper", "--directory", sbin, "--remove").output == ""


def test_the_generator_of_systemd_is_installed_when_it_is_asked_for(run: Run, installation: Path, sbin: Path, tmp_path: Path) -> None:
    place = tmp_path / "etc" / "system-generators"
    assert run("install-helper", "--directory", sbin, "--systemd", place).stdout.splitlines()[-1] == str(place / GENERATOR)
    assert links(place) == {GENERATOR: str(installation / GENERATOR)}
    run("install-helper", "--directory", sbin, "--systemd", place, "--remove")
    assert not links(place) and not links(sbin)


def test_the_generator_goes_where_systemd_looks_for_it(run: Run, installation: Path, sbin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[Path] = []
    monkeypatch.setattr(cli, "_install", lambda link, _program: wanted.append(link))
    run("install-helper", "--directory", sbin, "--systemd")
    assert wanted[-1] == Path(GENERATORS) / GENERATOR


def test_a_directory_that_cannot_be_written_is_told(run: Run, installation: Path, tmp_path: Path) -> None:
    assert "cannot be made: No such file or directory" in run("install-helper", "--directory", tmp_path / "none", code=2).stderr


def test_without_the_commands_of_an_installation_it_says_how_to_get_them(run: Run, installation: Path, sbin: Path) -> None:
    (installation / HELPERS[1]).unlink()
    assert "install isblk with pip" in run("install-helper", "--directory", sbin, code=2).stderr
