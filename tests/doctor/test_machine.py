"""What this machine can do: each answer, on machines made up of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from isblk.doctor import machine
from isblk.doctor.findings import Report
from isblk.doctor.machine import Machine, look
from support.doctor import names, text

Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A machine that has these files, and fusermount3 or not, for root or a user."""

    def make(*there: str, helper: bool = True, uid: int = 0, conf: str = "") -> Machine:
        for name in there:
            (tmp_path / name).write_text("")
        (tmp_path / "fuse.conf").write_text(conf)
        monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/fusermount3" if helper else None)
        return Machine(tmp_path / "fuse", tmp_path / "fuse.conf", tmp_path / "loop-control", tmp_path / "nbd", uid)

    return make


@pytest.mark.provokes("fuse-ready", "loop-ready", "nbd-ready")
def test_a_machine_that_can_do_everything(make: Make) -> None:
    report = Report()
    look(report, make("fuse", "loop-control", "nbd"))
    assert names(report)[:3] == ["fuse-ready", "loop-ready", "nbd-ready"]
    assert text(report, "fuse-ready").endswith("/fuse, /usr/bin/fusermount3, root")


@pytest.mark.provokes("fuse-missing", "loop-missing", "nbd-missing")
def test_a_machine_that_can_do_nothing(make: Make) -> None:
    report = Report()
    look(report, make())
    assert names(report)[:3] == ["fuse-missing", "loop-missing", "nbd-missing"]


@pytest.mark.provokes("fusermount-missing", "nbd-for-root")
def test_an_ordinary_user_needs_fusermount(make: Make) -> None:
    look(Report(), make("fuse", "nbd", helper=False, uid=1000))


def test_root_does_not(make: Make) -> None:
    report = Report()
    look(report, make("fuse", helper=False))
    assert report.said("fuse-ready")


@pytest.mark.provokes("fuse-closed")
def test_a_device_that_cannot_be_opened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make("fuse", uid=1000)
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    look(Report(), found)


@pytest.mark.provokes("others-shut-out")
def test_others_are_shut_out_unless_the_file_says_otherwise(make: Make) -> None:
    look(Report(), make("fuse", uid=1000, conf="# user_allow_other\n"))
    allowed = Report()
    look(allowed, make("fuse", uid=1000, conf="user_allow_other\n"))
    assert not allowed.said("others-shut-out")


@pytest.mark.provokes("files-few", "files-enough")
def test_open_files() -> None:
    report = Report()
    for limit in (256, 1024, -1):
        machine._files(report, limit)
    assert names(report) == ["files-few", "files-enough", "files-enough"]
    assert report.findings[2].text == "a process can have any number of files open"


@pytest.mark.provokes("clock-right", "clock-free", "clock-wrong")
def test_the_clock() -> None:
    report = Report()
    for now, state in ((1.8e9, 0), (1.8e9, machine.TIME_ERROR), (1.8e9, -1), (3600.0, 0), (9e9, 0)):
        machine._clock(report, now, state)
    assert names(report) == ["clock-right", "clock-free", "clock-right", "clock-wrong", "clock-wrong"]
    assert report.findings[3].text == "the clock says 1970-01-01 01:00, which cannot be"


def test_this_machine_answers() -> None:
    report = Report()
    look(report)
    assert {"files-enough", "files-few"} & set(names(report)) and {"clock-right", "clock-free"} & set(names(report))
