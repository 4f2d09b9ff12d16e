"""`isblk doctor` beside what runs: it sees it, leaves it alone, and puts its log into the bundle."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

from support.commands import Commands, get, put
from support.waiting import until

BRIEF = ("--probe", "0.2", "--probe-size", "1M")


def findings(commands: Commands, *options: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """What it finds, by name."""
    told = json.loads(commands.run("doctor", *commands.there, *BRIEF, "--json", *options, code=code).stdout)
    return {finding["finding"]: finding for finding in told["findings"]}


def test_a_mount_is_seen_and_left_alone(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    put(place, 0, b"before")
    found = findings(commands)
    assert found["running-well"]["text"].endswith(f"serves {place}: 1 of 1 paths are up")
    assert "throughput" in found and "logged-in" in found
    put(place, 6, b" and after", sync=True)
    assert get(place, 0, 16) == b"before and after"
    (mount,) = commands.status()
    assert [session["logins"] for session in mount["sessions"]] == [1]
    commands.umount(place)


def test_the_bundle_has_status_and_log_of_a_mount_that_is_ill(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret in the environment")
    place = commands.mount(tmp_path / "disk")
    (mount,) = commands.status()
    commands.target.kill()
    until(lambda: commands.status()[0]["sessions"][0]["state"] != "up", "the path to be lost")
    path = tmp_path / "report.tar.gz"
    environment = {"ISBLK_SECRET": "a secret in the environment"}
    done = commands.run("doctor", *commands.there, *BRIEF, "--bundle", path, code=5, env=environment)
    assert "0 of 1 paths up" in done.stdout and "refuses connections" in done.stdout and done.stdout.endswith("exit code 5\n")
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        members = {one.name.rpartition("/")[2]: archive.extractfile(one).read().decode() for one in archive}  # type: ignore[union-attr]
    assert "is down" in members[f"log-{mount['pid']}.txt"]
    assert json.loads(members["status.json"])[0]["where"] == str(place)
    assert "a secret in the environment" not in "".join(members.values())
    os.kill(mount["pid"], 9)


def test_a_secret_file_is_where_the_command_was_typed(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("readable by others")
    (tmp_path / "secret").chmod(0o644)
    said = commands.refused("mount", *commands.there, tmp_path / "disk", "--user", "me", "--secret-file", "secret", code=2, cwd=tmp_path)
    assert said == f"others can read the secret file {tmp_path / 'secret'} (mode 0644): chmod 600 it"
