"""The file of a bug report: what is in it, who can read it, and that no secret is, wherever one was planted."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from isblk import __version__, control
from isblk.doctor import bundle
from isblk.doctor.bundle import FOLDER, check, findings, logs, members, pack, secrets, system
from isblk.doctor.findings import Report
from isblk.doctor.scrub import HIDDEN, Scrubber
from isblk.errors import Unreachable, UsageError
from isblk.settings import Settings, parse


def report() -> Report:
    found = Report()
    found.say("loop-ready")
    found.say("port-refuses", portal="10.0.0.5:3260")
    return found


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {one.name.removeprefix(f"{FOLDER}/"): archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def test_a_bundle_is_for_its_owner_alone_and_holds_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    before = os.umask(0)
    try:
        told = pack(path, {"a.txt": "text of hunter2222", "b.bin": b"\0hunter2222"}, Scrubber([b"hunter2222"]))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    found = read(path)
    assert found == {"a.txt": f"text of {HIDDEN}".encode(), "b.bin": b"\0**********"}
    assert told == [(name, len(data)) for name, data in found.items()]
    with tarfile.open(path) as archive:
        assert all(one.mode == 0o600 and (one.uid, one.uname) == (0, "") for one in archive)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        check(path)
    with pytest.raises(UsageError, match="File exists"):
        pack(path, {}, Scrubber([]))
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is there already"):
        check(path)
    with pytest.raises(UsageError, match="no directory"):
        check(tmp_path / "none" / "report.tar.gz")
    check(tmp_path / "new.tar.gz")


def test_the_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "JOURNAL_COMMAND", ("false",))
    found = members(report(), [{"pid": 7}], tmp_path, "policy failover")
    assert list(found) == ["findings.txt", "findings.json", "system.txt", "configuration.txt", "status.json"]
    assert "-> check that the target runs" in str(found["findings.txt"]) and str(found["findings.txt"]).endswith("exit code 5\n")
    assert findings(Report()) == "exit code 0\n"


def test_versions_and_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISBLK_SECRET", "hunter2222")
    monkeypatch.setenv("ISBLK_RUN_DIR", "/run/x")
    text = system()
    assert f"isblk {__version__}\n" in text and "trio 0." in text and "$ISBLK_SECRET is set" in text and "$ISBLK_RUN_DIR=/run/x" in text
    assert "hunter2222" not in text and os.uname().nodename not in text.replace("\n", " ").split()
    monkeypatch.setattr(bundle, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(bundle, "PACKAGES", ("no-such-package-of-isblk",))
    assert "unknown distribution" in system() and "no-such-package-of-isblk not installed" in system()
    (tmp_path / "os-release").write_text('NAME=x\nPRETTY_NAME="Debian of tests"\n')
    assert "Debian of tests" in system()


def test_logs_of_daemons_that_answer_and_of_those_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "daemons", lambda _run: [control.Daemon(Path("/1.sock"), 1), control.Daemon(Path("/2.sock"), 2)])

    def ask(path: Path, request: str, _deadline: float) -> dict[str, object]:
        assert request == "log"
        if path.stem == "2":
            raise Unreachable("the daemon 2 does not answer")
        return {"lines": ["one", "two"]}

    monkeypatch.setattr(control, "ask", ask)
    monkeypatch.setattr(bundle, "JOURNAL_COMMAND", ("printf", "from the journal"))
    (tmp_path / "9.failed").write_text("written data may be lost")
    assert logs(tmp_path) == {
        "log-1.txt": "one\ntwo\n",
        "log-2.txt": "not to be had: the daemon 2 does not answer\n",
        "failed-9.txt": "written data may be lost",
        "journal.txt": "from the journal",
    }


def test_a_machine_without_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "JOURNAL_COMMAND", ("no-such-command-of-isblk",))
    assert logs(tmp_path) == {}


def test_every_place_that_a_secret_may_be_in_is_looked_at(tmp_path: Path) -> None:
    places = ("option", "top", "section", "discovery", "mutual")
    for place in places:
        (tmp_path / place).write_text(f"secret of {place}\n")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "isblk").write_text("secret of systemd")
    text = f"""
        secret-file = "top"
        [target."iqn.*"]
        secret-file = "section"
        target-secret-file = "{tmp_path}/mutual"
        [target."eui.*"]
        secret-file = "credential:isblk"
        [discovery]
        secret-file = "discovery"
        """
    environment = {"ISBLK_SECRET": "secret of env", "MY_PASSWORD": "secret of shell"}
    environment["CREDENTIALS_DIRECTORY"] = str(tmp_path / "credentials")
    settings = Settings([parse(tmp_path / "isblk.conf", text)])
    found = secrets(environment, settings, [str(tmp_path / "option"), None, "credential:x", "/none"])
    wanted = {f"secret of {place}".encode() for place in (*places, "env", "shell", "systemd")}
    assert wanted <= set(found)
