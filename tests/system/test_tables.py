"""isblktab as it is installed: up, down, reload and the supervisor, with real mounts and servers, kill -9, targets that come and go."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isblk.export.mountpoint import is_mounted
from isblk.iscsi.chap import Credentials
from isblk.target.config import PortalConfig
from support.commands import ended, get, put
from support.mounts import Mounts
from support.processes import Processes, Started, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import free_port, until

DATA = bytes(range(256)) * 4096
pytestmark = pytest.mark.usefixtures("fuse")


class Machine:
    """A machine with a table: its lines name the target's LUNs by themselves."""

    def __init__(self, processes: Processes, target: TargetProcess, tmp_path: Path) -> None:
        self.processes = processes
        self.target = target
        self.home = tmp_path
        self.table = tmp_path / "isblktab"
        self.log = tmp_path / "log"

    def write(self, *lines: str) -> None:
        """Lines as 'WHERE TYPE LUN [OPTIONS]', WHERE below the test's directory."""
        text = ""
        for line in lines:
            where, kind, lun, *options = line.split()
            text += f"{self.target.name} {self.home / where} {kind} {','.join((f'lun={lun}', f'portal={self.target.portal}', *options))}\n"
        self.table.write_text(text)

    def run(self, command: str, *arguments: str | Path, code: int = 0) -> Started:
        options = ["--log-file", self.log] if command == "up" and "--foreground" not in arguments else []
        return self.processes.run(isblk(command, "-f", self.table, *options, *arguments), code=code, seconds=40)

    @property
    def supervisor(self) -> dict[str, Any]:
        """What `isblk status` has of it."""
        found = json.loads(self.processes.run(isblk("status", "--json")).stdout)["supervisor"]
        assert isinstance(found, dict)
        return found

    def export(self, where: str) -> dict[str, Any]:
        (found,) = [export for export in self.supervisor["exports"] if export["where"] == str(self.home / where)]
        assert isinstance(found, dict)
        return found

    def pids(self) -> dict[str, int]:
        """The process of each export."""
        return {Path(export["where"]).name: export["pid"] for export in self.supervisor["exports"]}

    def kill_supervisor(self) -> None:
        pid = self.supervisor["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: ended(pid), "the supervisor to be dead")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """The files behind the LUNs of `target`."""
    return [tmp_path / f"image{number}" for number in range(3)]


@pytest.fixture
def target(images: list[Path]) -> Iterator[TargetProcess]:
    """Three disks with volatile write caches."""
    with target_process([disk(number, 16 * MIB, path=str(image)) for number, image in enumerate(images)]) as running:
        yield running


@pytest.fixture
def machine(processes: Processes, mounts: Mounts, target: TargetProcess, tmp_path: Path) -> Machine:
    return Machine(processes, target, tmp_path)


def test_everything_comes_up_is_written_back_and_goes_down(machine: Machine, images: list[Path]) -> None:
    machine.write("a fuse 0", "b.sock nbd 1", "c fuse 2 ro,noauto")
    done = machine.run("up")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["WHERE", "STATE"],
        [f"{machine.home}/a", "up"],
        [f"{machine.home}/b.sock", "up"],
    ]
    assert not done.stderr
    put(machine.home / "a", MIB, DATA)
    assert (machine.home / "b.sock").is_socket()
    assert not (machine.home / "c").exists()
    machine.run("up", machine.home / "c")
    assert machine.export("c")["state"] == "up"
    with pytest.raises(PermissionError) if os.geteuid() else pytest.raises(OSError, match="Read-only"):
        put(machine.home / "c", 0, b"x")
    supervisor = machine.supervisor["pid"]
    assert machine.run("down").stderr == ""
    assert ended(supervisor)
    assert get(images[0], MIB, len(DATA)) == DATA
    assert not any((machine.home / name).exists() for name in ("a", "b.sock", "c"))
    assert machine.target.ask("sessions") == 0
    assert not machine.processes.strays()


def test_an_export_that_is_killed_comes_back_and_the_others_do_not_notice(machine: Machine) -> None:
    machine.write("a fuse 0", "b.sock nbd 1")
    machine.run("up")
    before = machine.pids()
    put(machine.home / "a", 0, DATA, sync=True)
    os.kill(before["a"], signal.SIGKILL)
    until(lambda: machine.pids()["a"] not in (None, before["a"]) and machine.export("a")["state"] == "up", "the export to be up again")
    assert get(machine.home / "a", 0, len(DATA)) == DATA
    assert machine.export("a")["restarts"] == 1
    assert machine.pids()["b.sock"] == before["b.sock"]
    assert f"{machine.home}/a ended: it was killed by SIGKILL; next try in 0.5 s" in machine.log.read_text()
    machine.run("down")


def test_a_supervisor_that_is_killed_leaves_the_exports_serving_and_the_next_goes_on_with_them(
    machine: Machine, images: list[Path]
) -> None:
    machine.write("a fuse 0", "b.sock nbd 1")
    machine.run("up")
    before = machine.pids()
    machine.kill_supervisor()
    put(machine.home / "a", 0, DATA)
    done = machine.run("up")
    assert machine.pids() == before
    assert [export["adopted"] for export in machine.supervisor["exports"]] == [True, True]
    assert done.stderr == ""
    os.kill(before["b.sock"], signal.SIGKILL)
    until(lambda: machine.pids()["b.sock"] not in (None, before["b.sock"]), "a new server")
    machine.run("down")
    assert get(images[0], 0, len(DATA)) == DATA
    assert machine.target.ask("sessions") == 0


def test_what_a_killed_supervisor_left_can_be_ended_without_starting_it_anew(machine: Machine, images: list[Path]) -> None:
    machine.write("a fuse 0", "b fuse 1 noauto")
    machine.run("up")
    put(machine.home / "a", 0, DATA)
    machine.kill_supervisor()
    assert [line.split()[1] for line in machine.run("down").stdout.splitlines()[1:]] == ["down", "down"]
    assert get(images[0], 0, len(DATA)) == DATA
    assert not machine.processes.strays()


def test_a_table_that_changed_while_nobody_looked_holds_for_what_is_found(machine: Machine) -> None:
    machine.write("a fuse 0", "b fuse 1")
    machine.run("up")
    before = machine.pids()
    machine.kill_supervisor()
    machine.write("a fuse 0 nofail", "b fuse 1 ro")
    machine.run("up")
    until(
        lambda: machine.pids()["b"] not in (None, before["b"]) and machine.export("b")["state"] == "up", "the export with its new options"
    )
    assert machine.pids()["a"] == before["a"]
    assert "/b has other options than the table: it is started again" in machine.log.read_text()
    machine.run("down")


def test_what_was_mounted_by_hand_is_not_mounted_twice(machine: Machine) -> None:
    machine.processes.run(isblk("mount", "-p", machine.target.portal, machine.target.name, machine.home / "a", "--lun", "0"))
    machine.write("a fuse 0")
    machine.run("up")
    assert machine.export("a")["adopted"]
    machine.run("down")
    assert not is_mounted(machine.home / "a")


def test_a_reload_starts_stops_restarts_changes_and_leaves_alone(machine: Machine) -> None:
    machine.write("keep fuse 0", "gone.sock nbd 1", "other fuse 2")
    machine.run("up")
    before = machine.pids()
    machine.write("new.sock nbd 1", "other fuse 2 ro", "keep fuse 0 nofail,timeout=5")
    done = machine.run("reload")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["stopped", f"{machine.home}/gone.sock"],
        ["restarted", f"{machine.home}/other"],
        ["started", f"{machine.home}/new.sock"],
        ["changed", f"{machine.home}/keep"],
    ]
    after = machine.pids()
    assert list(after) == ["new.sock", "other", "keep"]
    assert after["keep"] == before["keep"]
    assert after["other"] != before["other"]
    assert ended(before["gone.sock"])
    assert not (machine.home / "gone.sock").exists()
    assert machine.export("keep")["nofail"]
    assert machine.run("reload").stdout.count("unchanged") == 3
    assert machine.pids() == after
    machine.run("down")


def test_how_paths_are_used_changes_under_whoever_uses_them(machine: Machine) -> None:
    machine.write("a fuse 0", "b.sock nbd 1")
    machine.run("up")
    before = machine.pids()

    def policies() -> set[str]:
        mounts = json.loads(machine.processes.run(isblk("status", "--json")).stdout)["mounts"]
        return {device["policy"] for mount in mounts for device in mount["devices"]}

    with (machine.home / "a").open("rb"):
        machine.write("a fuse 0 policy=round-robin,no-path-retry=5", "b.sock nbd 1 policy=round-robin")
        assert machine.run("reload").stdout.count("changed") == 2
        assert policies() == {"round-robin"}
        assert machine.pids() == before
        machine.kill_supervisor()
        machine.write("a fuse 0 policy=queue-length", "b.sock nbd 1 policy=queue-length")
        machine.run("up")
        until(lambda: policies() == {"queue-length"}, "what is found to be told")
        assert machine.pids() == before
    machine.run("down")


def test_what_is_in_use_is_left_alone_unless_forced(machine: Machine) -> None:
    machine.write("a fuse 0", "b fuse 1")
    machine.run("up")
    with (machine.home / "a").open("rb"):
        done = machine.run("down", code=2)
        assert f"isblk: {machine.home}/a stays up: {machine.home}/a is in use; end what has it open" in done.stderr
        assert (machine.export("a")["state"], machine.export("b")["state"]) == ("up", "down")
        machine.write("a fuse 0 ro", "b fuse 1")
        kept = machine.run("reload", code=2)
        assert f"{machine.home}/a keeps its old options: {machine.home}/a is in use" in kept.stderr
        machine.run("down", "--force")
    assert not machine.processes.strays()


def test_a_mount_that_is_ended_by_hand_stays_down_until_it_is_asked_for(machine: Machine) -> None:
    machine.write("a fuse 0")
    machine.run("up")
    machine.processes.run(isblk("umount", machine.home / "a"))
    until(lambda: machine.export("a")["state"] == "down", "the export to be down")
    assert machine.export("a")["reason"] == "ended in order, by somebody else"
    machine.run("up")
    assert is_mounted(machine.home / "a")
    machine.run("down")


def test_data_that_could_not_be_written_back_is_told_and_is_the_exit_code(machine: Machine) -> None:
    machine.write("a fuse 0", "b fuse 1")
    machine.run("up")
    put(machine.home / "a", 0, DATA)
    machine.target.kill()
    done = machine.run("down", code=6)
    (line,) = [line for line in done.stderr.splitlines() if "/a: " in line]
    assert "written data may be lost" in line
    assert "LUN 0" in line
    assert "/b" not in done.stderr
    assert not machine.processes.strays()


def test_up_waits_for_what_must_be_there_and_tells_what_is_not(machine: Machine) -> None:
    port = free_port()
    portal = f"127.0.0.1:{port}"
    machine.write("a fuse 0")
    good = machine.table.read_text()
    late = f"iqn.2026-11.test.isblk:late {machine.home}/late fuse portal={portal},retry=1"
    machine.table.write_text(f"{good}{late},nofail\niqn.2026-11.test.isblk:none {machine.home}/none fuse portal={machine.target.portal}\n")
    done = machine.run("up", code=3)
    assert [line.split()[1] for line in done.stdout.splitlines()[1:2]] == ["up"]
    assert f"isblk: {machine.home}/none is not up: " in done.stderr
    assert "; next try in " in done.stderr
    machine.table.write_text(f"{good}{late},timeout=2\n")
    machine.run("reload")
    done = machine.run("up", machine.home / "late", code=5)
    assert f"isblk: {machine.home}/late is not up: {portal} cannot be reached: Connection refused" in done.stderr
    settings: dict[str, Any] = {"name": "iqn.2026-11.test.isblk:late", "portals": (PortalConfig(port=port),)}
    with target_process([disk()], **settings):
        until(lambda: machine.export("late")["state"] == "up", "the late target to be found")
        assert (machine.home / "late").stat().st_size == 16 * MIB
        machine.run("down")


def test_a_terminal_that_goes_away_takes_nothing_with_it(machine: Machine) -> None:
    machine.write("a fuse 0")
    command = " ".join(isblk("up", "-f", machine.table))
    shell = machine.processes.start(["setsid", "sh", "-c", f"{command}; echo done; exec sleep 60"])
    shell.wait_for("done")
    os.killpg(shell.pid, signal.SIGHUP)
    shell.wait()
    assert machine.export("a")["state"] == "up"
    machine.run("down")


def test_a_supervisor_in_the_foreground_tells_each_event_in_a_line_and_ends_in_order(machine: Machine, images: list[Path]) -> None:
    machine.write("a fuse 0", "b.sock nbd 1")
    running = machine.processes.start(isblk("up", "-f", machine.table, "--foreground"))
    running.wait_for("/a is up")
    running.wait_for("/b.sock is up")
    put(machine.home / "a", 0, DATA)
    assert running.stop(signal.SIGTERM) == 0
    lines = running.stderr.splitlines()
    assert all(line.startswith("isblk: ") for line in lines)
    for text in ("supervisor keeps", "/a is starting", "/a is up", "/a is down", "the end of all exports was asked for"):
        assert len([line for line in lines if text in line]) == 1, text
    assert get(images[0], 0, len(DATA)) == DATA
    assert not machine.processes.strays()


def test_status_shows_the_supervisor_above_what_it_keeps(machine: Machine) -> None:
    machine.write("a fuse 0")
    machine.run("up")
    said = machine.processes.run(isblk("status")).stdout.splitlines()
    assert said[0].startswith(f"{machine.table}  supervisor  pid {machine.supervisor['pid']}  up 0:00:0")
    assert said[1].split() == ["EXPORT", "TYPE", "STATE", "FOR", "PID", "RESTARTS"]
    assert said[2].split()[:3] == [f"{machine.home}/a", "fuse", "up"]
    assert said[4].startswith(f"{machine.home}/a  {machine.target.name}")
    machine.run("down")


def test_an_automount_is_up_at_once_and_logs_in_when_it_is_used(machine: Machine) -> None:
    machine.write("a fuse 0")
    machine.run("up")
    put(machine.home / "a", 0, DATA)
    machine.run("down")
    machine.write("a fuse 0 automount,idle=1")
    machine.run("up")
    assert machine.export("a")["state"] == "up"
    assert machine.target.ask("sessions") == 0
    assert get(machine.home / "a", 0, len(DATA)) == DATA
    assert machine.target.ask("sessions") == 1
    until(lambda: machine.target.ask("sessions") == 0, "the session to be left")
    before = machine.pids()["a"]
    machine.write("a fuse 0 automount,idle=1,policy=round-robin")
    assert machine.run("reload").stdout.startswith("restarted")
    assert machine.pids()["a"] != before
    machine.run("down")


def test_a_secret_is_in_no_argument_and_in_no_log(processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    secret = "not-for-everyone-1"
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o600)
    with target_process([disk()], credentials=Credentials("me", secret.encode())) as target:
        machine = Machine(processes, target, tmp_path)
        machine.write("a fuse 0 user=me,secret-file=secret")
        machine.run("up")
        command = Path(f"/proc/{machine.pids()['a']}/cmdline").read_bytes().split(b"\0")
        assert f"--secret-file={tmp_path}/secret".encode() in command
        assert secret.encode() not in b" ".join(command)
        (tmp_path / "secret").write_text("not-the-right-one-1")
        os.kill(machine.pids()["a"], signal.SIGKILL)
        until(lambda: machine.export("a")["exit_code"] == 4, "the login to be refused")
        (tmp_path / "secret").write_text(secret)
        machine.run("up")
        assert secret not in machine.log.read_text()
        assert "not-the-right-one" not in machine.log.read_text()
        machine.run("down")


def test_the_words_of_an_export_are_in_the_log_of_the_supervisor(machine: Machine) -> None:
    machine.write("a fuse 0")
    machine.run("up")
    machine.target.ask("drop")
    get(machine.home / "a", 0, 512)
    until(lambda: "/a: " in machine.log.read_text(), "what the export says of its session")
    machine.run("down")
