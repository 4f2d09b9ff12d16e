"""`isblk detach`: a device in use is left alone, its daemon is ended and waited for, and one that died is cleared away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from isblk import control
from isblk.cli import detach as cli
from isblk.errors import Unreachable
from isblk.export import nbddevice, nbdnetlink

Run = Callable[..., Result]


class Machine:
    """What there is: a daemon for /dev/nbd0, who uses that, what the kernel shows; and what was done."""

    def __init__(self, run: Path) -> None:
        self.daemon = control.Daemon(control.socket_path(run, 4242), 4242)
        self.alive = True
        self.users: list[str] = []
        self.backend = "isblk iqn.x naa.1"
        self.done: list[tuple[object, ...]] = []


@pytest.fixture
def machine(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    (tmp_path / "run").mkdir()
    found = Machine(tmp_path / "run")
    monkeypatch.setattr(control, "daemons", lambda _run: [found.daemon] if found.alive else [])
    monkeypatch.setattr(control, "ask", lambda _path, _request: {"kind": "attach", "where": "/dev/nbd0"})
    monkeypatch.setattr(control, "stop", lambda path, timeout: found.done.append(("stop", path, timeout)))
    monkeypatch.setattr(nbddevice, "users", lambda _index: found.users)
    monkeypatch.setattr(nbddevice, "backend", lambda index: found.backend if index == 0 else "")
    monkeypatch.setattr(nbdnetlink, "disconnect", lambda index: found.done.append(("disconnect", index)))
    return found


@pytest.mark.parametrize("command", ["detach", "umount"])
def test_the_daemon_is_told_to_end_and_waited_for(run: Run, machine: Machine, command: str) -> None:
    assert run(command, "/dev/nbd0", "--timeout", "7").output == ""
    assert machine.done == [("stop", machine.daemon.path, 7.0)]


@pytest.mark.parametrize("command", ["detach", "umount"])
def test_a_device_in_use_is_left_alone(run: Run, machine: Machine, command: str) -> None:
    machine.users = ["mounted at /mnt"]
    said = run(command, "/dev/nbd0", code=2).stderr
    assert said == "isblk: /dev/nbd0 is mounted at /mnt: end that first, or detach it with --force and lose what is not written back\n"
    machine.users = ["mounted at /mnt", "open in process 7 (dd)", "used as swap"]
    assert "mounted at /mnt and 2 more: end that" in run(command, "/dev/nbd0", code=2).stderr
    assert machine.done == []


def test_force_is_force(run: Run, machine: Machine) -> None:
    machine.users = ["mounted at /mnt"]
    run("detach", "--force", "/dev/nbd0")
    assert machine.done == [("stop", machine.daemon.path, control.STOP_DEADLINE)]


@pytest.mark.parametrize("command", ["detach", "umount"])
def test_a_device_whose_daemon_died_is_cleared_away(run: Run, machine: Machine, command: str) -> None:
    machine.alive = False
    machine.users = ["mounted at /mnt"]
    run(command, "/dev/nbd0", code=2)
    machine.users = []
    run(command, "/dev/nbd0")
    assert machine.done == [("disconnect", 0)]


def test_a_device_of_another_program_is_left_alone(run: Run, machine: Machine) -> None:
    assert "no isblk of this user serves /dev/nbd3" in run("detach", "--force", "/dev/nbd3", code=2).stderr
    machine.alive = False
    machine.backend = "somebody else's"
    assert "no isblk of this user serves /dev/nbd0" in run("detach", "/dev/nbd0", code=2).stderr
    assert machine.done == []


@pytest.mark.parametrize(
    ("device", "why"), [("any", "no device to detach: name one"), ("/dev/sda", "no NBD device"), ("", "no NBD device")]
)
def test_what_is_no_device(run: Run, machine: Machine, device: str, why: str) -> None:
    assert why in run("detach", device, code=2).stderr


def test_what_could_not_be_written_back_is_told_once(run: Run, machine: Machine) -> None:
    control.failure_note(machine.daemon.path.parent, machine.daemon.pid).write_text("written data may be lost: this and that")
    assert run("detach", "/dev/nbd0", code=6).stderr == "isblk: written data may be lost: this and that\n"
    run("detach", "/dev/nbd0")


def test_a_daemon_that_does_not_answer_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(_path: Path, _request: str) -> dict[str, str]:
        raise Unreachable("the daemon 4242 does not answer")

    monkeypatch.setattr(control, "ask", silent)
    assert cli.serving("/dev/nbd0") is None
    assert capsys.readouterr().err == "isblk: the daemon 4242 does not answer\n"
