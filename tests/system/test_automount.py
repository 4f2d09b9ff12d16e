"""`isblk mount --automount` as it is installed: the file is there at once, the session when it is used, and never another disk's blocks."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from isblk import control
from isblk.target.config import LunConfig, PortalConfig
from support.commands import Commands, ended, get, put
from support.mounts import Mounts
from support.processes import Processes
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import free_port, until

NAME = "iqn.2026-11.test.isblk:comes-and-goes"
DATA = bytes(range(256)) * 256
SIZE = 16 * MIB


class Rig:
    """A target that is started when the test says so, always at the same place, and mounts of it that idle soon."""

    def __init__(self, processes: Processes, tmp_path: Path, engine: str) -> None:
        self.processes = processes
        self.home = tmp_path
        self.engine = engine
        self.port = free_port()
        self.target: TargetProcess | None = None
        self._running: AbstractContextManager[TargetProcess] | None = None
        self.commands = Commands(processes, TargetProcess(NAME, [f"127.0.0.1:{self.port}"], None))  # type: ignore[arg-type]
        self.log = tmp_path / "log"

    def start(self, *luns: LunConfig) -> None:
        """The target listens from now on."""
        luns = luns or (disk(0, SIZE, path=str(self.home / "image")),)
        self._running = target_process(luns, name=NAME, portals=(PortalConfig(port=self.port),))
        self.target = self.commands.target = self._running.__enter__()

    def stop(self) -> None:
        """kill -9: it is not there any more."""
        if self._running is not None and self.target is not None:
            self.target.kill()
            self._running.__exit__(None, None, None)
        self.target = self._running = None

    def mount(self, *options: str, idle: str = "0.6", place: str = "disk", **more: Any) -> Path:
        words = ["--automount", "--idle", idle, "--fuse-engine", self.engine, "--log-file", str(self.log)]
        return self.commands.mount(self.home / place, *words, *options, **more)

    @property
    def sessions(self) -> int:
        assert self.target is not None
        return int(self.target.ask("sessions"))

    def automount(self) -> dict[str, Any]:
        """What `isblk status --json` says of it."""
        return dict(self.status()["automount"])

    def status(self) -> dict[str, Any]:
        """What the daemon says, asked as `isblk status` does."""
        (daemon,) = control.daemons(self.home / "run")
        return control.ask(daemon.path, "status")

    def sleeps(self) -> None:
        """Return when nobody is logged in."""
        until(lambda: self.sessions == 0 and self.automount()["state"] == "no session", "the session to be logged out")

    def said(self, text: str) -> bool:
        return text in self.log.read_text()


@pytest.fixture
def engine() -> str:
    """The one that caches, for what is the same with both."""
    return "direct"


either = pytest.mark.parametrize("engine", ["direct", "pyfuse3"])


@pytest.fixture
def rig(engine: str, fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path) -> Iterator[Rig]:
    """Mounts with one engine."""
    rig = Rig(processes, tmp_path, engine)
    yield rig
    rig.stop()


def in_background(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that waits in the kernel, and what came of it."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(function())
        except OSError as error:
            results.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


@either
def test_it_logs_in_when_it_is_used_and_out_when_it_is_not(rig: Rig) -> None:
    rig.start()
    place = rig.mount()
    rig.sleeps()  # It had never been seen, so that its size had to be asked.
    for turn in range(2):
        assert place.stat().st_size == SIZE
        assert rig.engine == "pyfuse3" or os.getxattr(place, "user.isblk.lun") == b"0"
        assert (rig.sessions, rig.automount()["logins"]) == (0, 1 + turn), "looking at it is not using it"
        put(place, 0, DATA[turn:])
        assert rig.sessions == 1 and rig.automount()["state"] == "logged in"
        rig.sleeps()
        assert get(rig.home / "image", 0, len(DATA) - turn) == DATA[turn:], "flushed before the session was left"
    assert get(place, 0, len(DATA) - 1) == DATA[1:]
    pid = rig.status()["pid"]
    rig.commands.umount(place)
    rig.commands.gone(pid)


@either
def test_it_is_there_before_its_target_and_requests_wait_for_it(rig: Rig) -> None:
    rig.start()
    rig.commands.umount(rig.mount())
    put(rig.home / "image", 4096, DATA)
    rig.stop()
    place = rig.mount()
    assert place.stat().st_size == SIZE
    mount = rig.status()
    assert mount["automount"]["state"] == "no session" and mount["sessions"] == [] and not mount["automount"]["error"]
    assert (mount["devices"][0]["size"], mount["devices"][0]["block_size"]) == (SIZE, 512) and mount["devices"][0]["wwid"]
    text = rig.commands.run("status").stdout
    assert "no session for 0:00:0" in text and "16.0 MiB" in text and "PATH" not in text
    reader, read = in_background(lambda: get(place, 4096, len(DATA)))
    until(lambda: rig.automount()["error"], "the first login to fail")
    assert "1 request waits" in rig.commands.run("status").stdout
    assert place.stat().st_size == SIZE, "whoever looks at it does not wait"
    rig.start()
    reader.join(20)
    assert read == [DATA]
    rig.sleeps()
    rig.commands.umount(place)


def test_its_policies_bound_the_wait_and_the_next_use_tries_again(rig: Rig) -> None:
    rig.start()
    rig.commands.umount(rig.mount())
    rig.stop()
    place = rig.mount("--no-path-retry", "1")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            get(place, 0, 512)
    assert rig.said("cannot be logged in to; requests that failed for it: 1")
    rig.start()
    assert get(place, 0, 512) == bytes(512)
    rig.commands.umount(place)


@either
def test_what_was_never_seen_is_empty_until_its_target_comes(rig: Rig) -> None:
    place = rig.mount("--no-path-retry", "60")
    assert place.stat().st_size == 0 and rig.automount()["seen"] is False
    assert "never seen yet" in rig.commands.run("status").stdout
    reader, read = in_background(lambda: get(place, 0, 1 << 20))
    until(lambda: rig.automount()["waiting"] == 1, "the open to wait")
    rig.start()
    reader.join(20)
    assert read == [bytes(1 << 20)]
    assert place.stat().st_size == SIZE
    rig.sleeps()
    rig.commands.umount(place)


def test_what_was_never_seen_grows_without_being_used(rig: Rig) -> None:
    place = rig.mount()
    rig.start()
    until(lambda: place.stat().st_size == SIZE, "its size to be known")
    rig.sleeps()
    rig.commands.umount(place)


def test_another_disk_behind_the_same_name_is_refused(rig: Rig) -> None:
    rig.start()
    rig.commands.umount(rig.mount())
    rig.stop()
    other = rig.home / "other"
    other.write_bytes(b"foreign" * 1000 + bytes(SIZE - 7000))
    place = rig.mount()
    rig.start(disk(0, SIZE, path=str(other), product="ANOTHER-DISK"))
    for use in (lambda: get(place, 0, 512), lambda: put(place, 0, DATA)):
        with pytest.raises(OSError, match="Input/output error"):
            use()
    assert rig.said("LUN 0 is a ANOTHER-DISK now, not the VIRTUAL-DISK that is remembered: nothing is read from it or written to it")
    assert "VIRTUAL-DISK" in rig.automount()["error"]
    rig.sleeps()
    assert other.read_bytes()[:7000] == b"foreign" * 1000
    rig.commands.umount(place)
    rig.commands.umount(rig.commands.mount(place, "--no-automount"))
    place = rig.mount()
    assert get(place, 0, 7) == b"foreign", "it was mounted once by somebody who meant it"
    rig.commands.umount(place)


@either
def test_what_others_wrote_meanwhile_is_seen(rig: Rig) -> None:
    """Also through a file that stayed open and a mapping that stayed mapped, whatever the kernel had cached of it."""
    rig.start(disk(0, SIZE, path=str(rig.home / "image"), write_cache=False))
    place = rig.mount()
    with place.open("rb", buffering=0) as file:
        view = mmap.mmap(file.fileno(), MIB, mmap.MAP_SHARED if rig.engine == "direct" else mmap.MAP_PRIVATE, mmap.PROT_READ)
        with closing(view):
            assert os.pread(file.fileno(), len(DATA), 0) == bytes(len(DATA))
            assert view[:16] == bytes(16)
            rig.sleeps()
            put(rig.home / "image", 0, DATA)
            assert os.pread(file.fileno(), len(DATA), 0) == DATA
            if rig.engine == "direct":
                assert view[:256] == DATA[:256]
            assert rig.automount()["logins"] == 2
    rig.commands.umount(place)


def test_a_resize_while_it_idles_shows_with_the_next_use_and_is_remembered(rig: Rig) -> None:
    rig.start()
    place = rig.mount()
    rig.sleeps()
    assert rig.target is not None
    rig.target.ask(f"resize 0 {2 * SIZE}")
    assert place.stat().st_size == SIZE
    get(place, 0, 512)
    until(lambda: place.stat().st_size == 2 * SIZE, "the new size")
    rig.commands.umount(place)
    rig.stop()
    assert rig.mount().stat().st_size == 2 * SIZE
    rig.commands.umount(place)


def isblk_umount(rig: Rig, place: Path, pid: int) -> None:
    rig.commands.umount(place)


def umount(rig: Rig, place: Path, pid: int) -> None:
    subprocess.run(["umount", place], check=True)


def terminate(rig: Rig, place: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [isblk_umount, umount, terminate])
def test_it_ends_at_once_while_it_idles_even_without_a_target(rig: Rig, end: Callable[[Rig, Path, int], None]) -> None:
    rig.start()
    place = rig.mount()
    put(place, 0, DATA)
    rig.sleeps()
    rig.stop()
    pid = rig.status()["pid"]
    end(rig, place, pid)
    until(lambda: ended(pid), "the daemon to end", 2.5)
    assert not place.exists()


def test_it_ends_soon_while_requests_wait_for_a_login(rig: Rig) -> None:
    rig.start()
    rig.commands.umount(rig.mount())
    rig.stop()
    place = rig.mount()
    reader, read = in_background(lambda: get(place, 0, 512))
    until(lambda: rig.automount()["waiting"], "the read to wait")
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGTERM)
    until(lambda: ended(pid), "the daemon to end", 10)
    reader.join(5)
    assert len(read) == 1 and isinstance(read[0], int), "told, with an error"


def test_a_directory_is_remembered_too(rig: Rig) -> None:
    (rig.home / "luns").mkdir()
    words = ["--automount", "--fuse-engine", rig.engine]
    sentence = rig.commands.refused("mount", *rig.commands.there, rig.home / "luns", *words, code=5)
    assert "what is in the directory is not known before the target has been seen once" in sentence
    luns = [disk(0, SIZE), disk(3, 2 * SIZE, read_only=True)]
    rig.start(*luns)
    rig.commands.umount(rig.mount(place="luns"))
    rig.stop()
    place = rig.mount(place="luns")
    sizes = {one.name: (one.stat().st_size, one.stat().st_mode & 0o777) for one in place.iterdir()}
    assert sizes == {"lun0": (SIZE, 0o600), "lun3": (2 * SIZE, 0o400)}
    rig.start(*luns)
    assert get(place / "lun3", 2 * SIZE - 10, 100) == bytes(10)
    put(place / "lun0", 1, b"odd")
    assert rig.sessions == 1
    rig.sleeps()
    assert get(place / "lun0", 0, 5) == b"\0odd\0"
    rig.commands.umount(place)


def test_a_file_system_on_it_survives_its_comings_and_goings(root: None, rig: Rig, mounts: Mounts) -> None:
    rig.start()
    place = rig.mount(idle="0.3")
    subprocess.run(["mkfs.ext4", "-q", "-F", place], check=True)
    mounts.loop_mount(place, rig.home / "fs")
    for turn in range(3):
        (rig.home / "fs" / f"file{turn}").write_bytes(DATA)
        os.sync()
        until(lambda: rig.automount()["state"] == "no session", "the session to be logged out", 30)
    subprocess.run(["sysctl", "-q", "vm.drop_caches=3"], check=False)
    assert all((rig.home / "fs" / f"file{turn}").read_bytes() == DATA for turn in range(3))
    mounts.unmount(rig.home / "fs")
    rig.sleeps()
    rig.commands.umount(place)
    subprocess.run(["e2fsck", "-fn", rig.home / "image"], check=True, capture_output=True)


def test_several_paths_come_and_go_together(fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    with target_process(portals=(PortalConfig(port=0), PortalConfig(port=0))) as target:
        commands = Commands(processes, target)
        place = commands.mount(tmp_path / "disk", "-p", target.portals[1], "--automount", "--idle", "0.5")
        until(lambda: target.ask("sessions") == 0, "both to be logged out")
        put(place, 0, DATA)
        until(lambda: target.ask("sessions") == 2, "both to be logged in")
        until(lambda: target.ask("sessions") == 0, "both to be logged out")
        assert get(place, 0, len(DATA)) == DATA
        commands.umount(place)
        until(lambda: target.ask("sessions") == 0, "both to be logged out")


def test_what_a_write_back_cache_holds_is_written_before_the_session_is_left(
    fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path
) -> None:
    with target_process([disk(0, SIZE, path=str(tmp_path / "image"))]) as target:
        commands = Commands(processes, target)
        words = ["--fuse-engine", "direct", "-o", "writeback", "--automount", "--idle", "0.5"]
        place = commands.mount(tmp_path / "disk", *words)
        with place.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), DATA, 0)
            until(lambda: target.ask("sessions") == 0, "the session to be logged out")
            os.pread(file.fileno(), 512, MIB)
            until(lambda: target.ask("sessions") == 0, "the session to be logged out")
            assert get(tmp_path / "image", 0, len(DATA)) == DATA
        commands.umount(place)


def test_a_lost_memory_is_made_good_by_one_login(rig: Rig) -> None:
    rig.start()
    rig.commands.umount(rig.mount())
    (memory,) = (rig.home / "state" / "disks").glob("*.json")
    assert memory.stat().st_mode & 0o777 == 0o600
    memory.write_text("{")
    place = rig.mount()
    assert place.stat().st_size == SIZE
    assert json.loads(memory.read_text())["luns"]["0"]["geometry"]["size"] == SIZE
    rig.commands.umount(place)
