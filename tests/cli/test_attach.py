"""`isblk attach`: what is refused before anything is logged in, and what reaches the device; the device itself is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import Result

from isblk import control
from isblk.blockdevice import LONGEST_TIMEOUT, DeviceSpec
from isblk.cli import attach as cli
from isblk.cli import detach as serving
from isblk.detach import Outcome
from isblk.errors import NotFound, UsageError
from isblk.export import nbddevice, nbdnetlink
from isblk.link.opening import Access

Run = Callable[..., Result]
NAME = "iqn.2026-11.test.isblk:x"


@dataclass
class Asked:
    """What would have been served, and how."""

    spec: DeviceSpec | None = None
    failure: Exception | None = None
    apart: bool = False

    async def serve(self, spec: DeviceSpec, kernel: Any, access: Access, stop: trio.Event, started: Callable[[str], None]) -> None:
        assert kernel is nbdnetlink
        self.spec = spec
        if self.failure is not None:
            raise self.failure
        started(nbddevice.path(11 if spec.index is None else spec.index))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Stands in for the device, on a kernel that has NBD; with -f the command runs in this process."""
    found = Asked()
    monkeypatch.setattr(cli, "serve_device", found.serve)
    monkeypatch.setattr(nbdnetlink, "check", lambda: None)
    monkeypatch.setattr(nbddevice, "owner", lambda _index: None)
    monkeypatch.setattr(cli, "stand_apart", lambda: setattr(found, "apart", True))
    return found


def test_the_device_is_printed_and_served(run: Run, asked: Asked) -> None:
    said = run("attach", "-f", "-p", "h", NAME, "/dev/nbd4")
    assert said.stdout == "/dev/nbd4\n" and not said.stderr
    found = asked.spec
    assert found is not None
    assert (found.index, found.lun, found.read_only, found.timeout, found.dead_connection_timeout) == (4, None, False, 0, 30)
    assert asked.apart, "memory is written out through it"
    assert found.connections == 1 and len(found.isids) == 1


@pytest.mark.parametrize("word", ["any", "/dev/nbd"])
def test_a_free_device_is_printed_too(run: Run, asked: Asked, word: str) -> None:
    assert run("attach", "-f", "-p", "h", NAME, word).stdout == "/dev/nbd11\n"
    assert asked.spec is not None and asked.spec.index is None


def test_the_daemon_tells_the_command_which_device_it_is(run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isblk.cli.service.run_detached", lambda work, log_file: Outcome(0, "/dev/nbd5"))
    assert run("attach", "-p", "h", NAME, "any").stdout == "/dev/nbd5\n"


def test_what_is_said_reaches_the_device(run: Run, asked: Asked) -> None:
    words = ["--lun", "3", "-o", "ro", "--connections", "9", "--timeout", "77", "--dead-connection-timeout", "0", "--no-path-retry", "20"]
    run("attach", "-f", "-p", "h", "-p", "i", NAME, "/dev/nbd0", *words, "--policy", "round-robin")
    found = asked.spec
    assert found is not None
    assert (found.lun, found.read_only, found.connections, found.timeout, found.dead_connection_timeout) == (3, True, 9, 77, 0)
    assert (found.policies.policy.value, [portal.host for portal in found.target.portals]) == ("round-robin", ["h", "i"])


@pytest.mark.parametrize(("retry", "timeout"), [("fail", 300), ("60", 360), ("queue", LONGEST_TIMEOUT)])
def test_the_kernel_is_more_patient_than_the_paths(run: Run, asked: Asked, retry: str, timeout: int) -> None:
    run("attach", "-f", "-p", "h", NAME, "/dev/nbd0", "--no-path-retry", retry, "--connections", "2")
    assert asked.spec is not None and asked.spec.timeout == timeout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/dev/sda"], "'/dev/sda' is no NBD device: it looks like /dev/nbd0, or `any`"),
        (["nbd0"], "'nbd0' is no NBD device"),
        ([""], "is no NBD device"),
        (["/dev/nbd0", "-o", "what"], "unknown mount option 'what'"),
        (["/dev/nbd0", "--timeout", "120"], "--timeout 120 is not longer than requests wait for a path (--no-path-retry 120)"),
        (["/dev/nbd0", "--timeout", "900", "--no-path-retry", "queue"], "--no-path-retry queue"),
        (["/dev/nbd0", "--timeout", "0"], "--timeout"),
        (["/dev/nbd0", "--connections", "0"], "--connections"),
        (["/dev/nbd0", "--policy", "best"], "policy"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(run: Run, asked: Asked, tmp_path: Path, words: list[str], why: str) -> None:
    assert why in run("attach", "-p", "h", NAME, *words, code=2).stderr
    assert asked.spec is None and not (tmp_path / "state").exists()


def test_a_kernel_without_nbd_is_found_out_first(run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UsageError("this kernel has no NBD client")

    monkeypatch.setattr(nbdnetlink, "check", refuse)
    assert run("attach", "-p", "h", NAME, "/dev/nbd0", code=2).stderr == "isblk: this kernel has no NBD client\n"
    assert asked.spec is None


def test_a_device_in_use_is_found_out_before_the_login(run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbddevice, "owner", lambda _index: os.getpid())
    said = run("attach", "-f", "-p", "h", NAME, "/dev/nbd0", code=2).stderr
    assert said == f"isblk: /dev/nbd0 is in use, by process {os.getpid()}: name another, or `any` for one that is free\n"
    monkeypatch.setattr(cli, "serving", lambda path: control.Daemon(Path("x"), 42) if path == "/dev/nbd0" else None)
    said = run("attach", "-f", "-p", "h", NAME, "/dev/nbd0", code=2).stderr
    assert said == "isblk: /dev/nbd0 is attached already, by process 42: name another, or `any` for one that is free\n"
    assert asked.spec is None
    run("attach", "-f", "-p", "h", NAME, "any")


def test_a_process_that_ended_holds_no_device(run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbddevice, "owner", lambda _index: 1 << 30)
    run("attach", "-f", "-p", "h", NAME, "/dev/nbd0")
    assert asked.spec is not None


def test_a_failure_is_its_own_exit_code(run: Run, asked: Asked) -> None:
    asked.failure = NotFound("there is no such target")
    assert run("attach", "-p", "h", NAME, "/dev/nbd0", code=3).stderr == "isblk: there is no such target\n"
    assert serving.serving("/dev/nbd0") is None
