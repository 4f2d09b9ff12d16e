"""Commands as processes: what they print, how they end when interrupted, and that nothing secret shows."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from isblk.cli.progress import CLEAR
from isblk.iscsi.chap import Credentials
from support.commands import Commands, ended, get, put
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.targets import TargetProcess, disk, target_process
from support.waiting import until

SECRET, THEIRS = "the-secret-nobody-sees", "what-the-target-keeps"


def test_status_tells_of_a_mount_what_there_is(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk", "--digest", "both")
    put(place, 0, bytes(8192), sync=True)
    assert len(get(place, 512, 1024)) == 1024
    (mount,) = commands.status()
    assert (mount["where"], mount["target"], mount["kind"], mount["read_only"]) == (str(place), commands.target.name, "mount", False)
    (session,), (device,) = mount["sessions"], mount["devices"]
    assert session["portal"] == commands.target.portal and session["state"] == "up" and session["error"] is None
    agreed = {line["key"]: line["agreed"] for line in session["negotiated"]}
    assert agreed["HeaderDigest"] == agreed["DataDigest"] == "CRC32C" and agreed["ErrorRecoveryLevel"] == "0"
    assert device["counters"]["write_bytes"] == 8192 and device["counters"]["flush_requests"] == 1
    assert device["size"] == place.stat().st_size and device["block_size"] == 512 and device["in_flight"] == 0
    text = commands.run("status", "--negotiated").stdout
    assert text.startswith(f"{place}  {commands.target.name}  pid {mount['pid']}  up 0:00:0")
    assert re.search(r"HeaderDigest +CRC32C +CRC32C", text)
    commands.umount(place)
    assert commands.run("status").stderr == "isblk: nothing is mounted\n"


def test_secrets_appear_nowhere(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    ours, theirs = Credentials("me", SECRET.encode()), Credentials("nas", THEIRS.encode())
    for name, text in (("secret", SECRET), ("target-secret", THEIRS)):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    with target_process([disk()], credentials=ours, mutual=theirs, discovery_auth=True) as target:
        commands = Commands(processes, target)
        chap = [
            "--user",
            "me",
            "--secret-file",
            tmp_path / "secret",
            "--target-user",
            "nas",
            "--target-secret-file",
            tmp_path / "target-secret",
        ]
        loud = ["-vv", "--trace"]
        said = [commands.run("discover", target.portal, *chap, *loud), commands.run("ls", *commands.there, *chap, *loud)]
        said.append(commands.run("mount", *commands.there, tmp_path / "disk", *chap, *loud, "--log-file", tmp_path / "log"))
        (mount,) = commands.status()
        arguments = Path(f"/proc/{mount['pid']}/cmdline").read_bytes().decode()
        said.append(commands.run("status", "--json"))
        commands.umount(tmp_path / "disk")
        everything = "".join(one.stdout + one.stderr for one in said) + (tmp_path / "log").read_text() + arguments
        assert "Login" in everything
        assert SECRET not in everything and THEIRS not in everything


def test_secrets_come_from_the_environment_too(processes: Processes) -> None:
    with target_process([disk()], credentials=Credentials("me", SECRET.encode())) as target:
        url = f"iscsi://me@{target.portal}/{target.name}"
        assert "disk" in processes.run(isblk("ls", url), env={"ISBLK_SECRET": SECRET}).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_logs_out(processes: Processes, target: TargetProcess, number: int) -> None:
    running = processes.start(isblk("perf", target.url(), "--runtime", "30"))
    until(lambda: target.ask("sessions") == 1, "the session")
    assert running.stop(number) == 130
    assert running.stderr == f"isblk: interrupted by {signal.Signals(number).name}\n"
    assert target.ask("sessions") == 0


def test_perf_shows_a_bar_on_a_terminal_and_wipes_it(processes: Processes, target: TargetProcess) -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            isblk("perf", target.url(), "--runtime", "1.3"), stdout=subprocess.PIPE, stderr=theirs, env=processes.env
        ) as running:
            assert running.stdout is not None
            printed = running.stdout.read().decode()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert running.returncode == 0
    assert re.search(r"\[#+-*\]  1 s  [\d,]+ I/O per second  [\d,.]+ MB/s  0 errors", shown) and shown.endswith(CLEAR)
    assert printed.count("\n") == 3


def test_a_reader_that_goes_away_is_no_bug(processes: Processes, target: TargetProcess) -> None:
    listing = shlex.join(isblk("ls", "--json", "-p", target.portal, target.name))
    done = processes.run(["bash", "-c", f"{listing} | true"], seconds=20)
    assert not done.stderr
    assert target.ask("sessions") == 0


def test_allow_other_lets_others_in(root: None, commands: Commands, tmp_path: Path) -> None:
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(above.stat().st_mode | 0o011)
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    for options, allowed in (((), False), (("-o", "allow_other"), True)):
        place = commands.mount(tmp_path / "disk", *options)
        seen = subprocess.run([*as_user, "stat", place], capture_output=True, timeout=20, check=False).returncode == 0
        assert seen is allowed
        read = subprocess.run([*as_user, "head", "-c1", place], capture_output=True, timeout=20, check=False).returncode == 0
        assert not read, "the file is its owner's, 0600"
        commands.umount(place)


def test_the_daemon_leaves_nothing_but_its_session_when_its_command_is_killed(
    commands: Commands, processes: Processes, tmp_path: Path
) -> None:
    place = commands.mount(tmp_path / "disk")
    (mount,) = commands.status()
    assert os.getsid(mount["pid"]) != os.getsid(0), "a session of its own: no terminal's end ends it"
    assert os.readlink(f"/proc/{mount['pid']}/cwd") == "/"
    assert {os.readlink(f"/proc/{mount['pid']}/fd/{number}") for number in (0, 1, 2)} == {os.devnull}
    commands.umount(place)
    assert ended(mount["pid"])


def test_the_target_keeps_its_disk_between_runs(processes: Processes, tmp_path: Path, mounts: Mounts, fuse: None) -> None:
    argv = isblk("target", "--lun", f"{tmp_path}/kept.img:4M", "--portal", "127.0.0.1:0", "--json")
    for expected in (bytes(4), b"kept"):
        running = processes.start(argv)
        running.wait_for("}")
        told = json.loads(running.stdout)
        place = tmp_path / "disk"
        processes.run(isblk("mount", "-p", told["portals"][0], told["name"], place))
        assert get(place, 4096, 4) == expected
        put(place, 4096, b"kept")
        processes.run(isblk("umount", place))
        assert running.stop() == 0
