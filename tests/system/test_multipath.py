"""Several paths with the commands as installed: what is shown, what a lost portal or target does to programs, the end without a path."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from isblk.target.config import PortalConfig
from support.commands import Commands, ended, get, put
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import free_port, until

DATA = bytes(range(256)) * 4096
END_SECONDS = 10.0
GROWTH_SECONDS = 5.0


class Setup:
    """A target with two portals, at ports that stay the same when it is started again."""

    def __init__(self, image: Path, tags: tuple[int, int] = (1, 2)) -> None:
        self._portals = tuple(PortalConfig(port=free_port(), tpgt=tag) for tag in tags)
        self._image = image

    def target(self) -> Any:
        return target_process([disk(0, 64 * MIB, path=str(self._image))], portals=self._portals)


@pytest.fixture
def setup(image: Path, request: pytest.FixtureRequest) -> Setup:
    """Two portal groups, unless the test is parametrized with others."""
    return Setup(image, getattr(request, "param", (1, 2)))


@pytest.fixture
def target(setup: Setup) -> Iterator[TargetProcess]:
    with setup.target() as running:
        yield running


def mount(commands: Commands, place: Path, *options: str) -> Path:
    """Mount over both portals, and return when both paths are up."""
    one, two = commands.target.portals
    commands.run("mount", "-p", one, "-p", two, commands.target.name, place, "--log-file", place.with_suffix(".log"), *options)
    until(lambda: states(commands) == ["up", "up"], "both paths to be up")
    return place


def device(commands: Commands) -> dict[str, Any]:
    ((found,),) = (one["devices"] for one in commands.status())
    return dict(found)


def states(commands: Commands) -> list[str]:
    return [path["state"] for path in device(commands)["paths"]]


class Verifier:
    """A program that writes blocks with fsync now and then and reads them back, all the time; an error or a wrong byte fails the test."""

    def __init__(self, place: Path) -> None:
        self.rounds = 0
        self._place = place
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with self._place.open("r+b", buffering=0) as file:
                while not self._stop.is_set():
                    self._round(file.fileno())
        except BaseException as error:
            self._failure = error

    def _round(self, file: int) -> None:
        number = self.rounds
        block = number.to_bytes(8, "big") * 2048
        offset = number % 256 * len(block)
        assert os.pwrite(file, block, offset) == len(block)
        if number % 16 == 0:
            os.fsync(file)
        back = max(0, number - number * 7 % 256)
        assert os.pread(file, len(block), back % 256 * len(block)) == back.to_bytes(8, "big") * 2048, f"round {back} seen from {number}"
        self.rounds += 1

    def goes_on(self) -> None:
        """Return when it has done some more."""
        goal = self.rounds + 50
        until(lambda: self.rounds >= goal or self._failure is not None, "the program to go on")
        assert self._failure is None, repr(self._failure)

    def __enter__(self) -> Verifier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(40)
        assert not self._thread.is_alive()
        assert self._failure is None, repr(self._failure)


def test_both_paths_are_shown_and_used(commands: Commands, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk", "--policy", "round-robin")
    put(place, 0, DATA, sync=True)
    assert get(place, 0, len(DATA)) == DATA
    (one,) = commands.status()
    paths = device(commands)["paths"]
    assert [path["portal"] for path in paths] == commands.target.portals
    assert [path["portal_group"] for path in paths] == [1, 2]
    assert all(path["requests"] and path["bytes"] and not path["losses"] for path in paths)
    assert len({path["isid"] for path in paths}) == 2 and commands.target.ask("sessions") == 2
    said = commands.run("status").stdout
    assert "round-robin, 2 of 2 paths up" in said and all(portal in said for portal in commands.target.portals)
    commands.umount(place)
    commands.gone(one["pid"])


def test_all_portals_are_found_by_one(commands: Commands, tmp_path: Path) -> None:
    one, two = commands.target.portals
    commands.run("mount", "--all-portals", "-p", two, commands.target.name, tmp_path / "disk")
    until(lambda: states(commands) == ["up", "up"], "both paths to be up")
    assert [path["portal"] for path in device(commands)["paths"]] == [two, one], "the one given comes first"
    commands.umount(tmp_path / "disk")


def test_one_portal_is_enough_to_begin_with(commands: Commands, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    commands.run("mount", "-p", nobody, *commands.there, tmp_path / "disk")
    put(tmp_path / "disk", 0, DATA, sync=True)
    assert states(commands) == ["down", "up"]
    said = " ".join(commands.run("status").stdout.split())
    assert f"{nobody} cannot be reached: Connection refused" in said and "failover, 1 of 2 paths up" in said
    commands.umount(tmp_path / "disk")


def test_another_unit_behind_the_second_portal_gets_nothing(commands: Commands, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    with target_process([disk(0, 32 * MIB, path=str(other))]) as stranger:
        commands.run("mount", *commands.there, "-p", stranger.portal, tmp_path / "disk", "--policy", "round-robin")
        until(lambda: states(commands) == ["up", "wrong unit"], "the other unit to be found out")
        put(tmp_path / "disk", 0, DATA, sync=True)
        said = commands.run("status").stdout
        sizes = f"LUN 0 has {32 * MIB} bytes here and {64 * MIB} over the other paths"
        assert f"{stranger.portal} wrong unit: {sizes}; check the target" in said
        assert get(tmp_path / "disk", 0, len(DATA)) == DATA
        commands.umount(tmp_path / "disk")
        assert get(other, 0, len(DATA)) == bytes(len(DATA))


@pytest.mark.parametrize("setup", [(1, 1)], indirect=True, ids=["one portal group"])
def test_a_portal_that_goes_away_is_not_noticed_by_who_writes(commands: Commands, image: Path, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk")
    with Verifier(place) as work:
        work.goes_on()
        commands.target.ask("close 0")
        until(lambda: states(commands) == ["down", "up"], "the loss to be shown")
        work.goes_on()
    path = device(commands)["paths"][0]
    assert "cannot be reached: Connection refused" in path["reason"] or commands.target.portal in path["reason"]
    assert f"{commands.target.portal} " in commands.run("status").stdout
    put(place, 0, DATA)
    commands.umount(place)
    assert get(image, 0, len(DATA)) == DATA
    assert commands.target.ask("sessions") == 0


def test_a_target_killed_and_started_again_costs_a_pause_and_no_data(commands: Commands, setup: Setup, image: Path, tmp_path: Path) -> None:
    """Its volatile cache dies with it each time: what was acknowledged is written again."""
    place = mount(commands, tmp_path / "disk")
    put(place, 32 * MIB, DATA)
    with ExitStack() as targets:
        with Verifier(place) as work:
            for _ in range(2):
                work.goes_on()
                commands.target.kill()
                until(lambda: states(commands) == ["down", "down"], "the loss to be shown")
                commands.target = targets.enter_context(setup.target())
                until(lambda: states(commands) == ["up", "up"], "both paths to be up again")
                work.goes_on()
        assert get(place, 32 * MIB, len(DATA)) == DATA
        assert [path["losses"] for path in device(commands)["paths"]] == [2, 2]
        commands.umount(place)
        commands.target.ask("crash")
        assert get(image, 32 * MIB, len(DATA)) == DATA


def test_growth_shows_in_the_size_of_the_file(commands: Commands, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk")
    commands.target.ask(f"resize 0 {96 * MIB}")
    get(place, 0, 512)  # whatever is asked next is told of it
    until(lambda: place.stat().st_size == 96 * MIB, "the new size", GROWTH_SECONDS)
    put(place, 90 * MIB, DATA, sync=True)
    assert get(place, 90 * MIB, len(DATA)) == DATA
    assert device(commands)["size"] == 96 * MIB
    commands.umount(place)


def test_after_kill_9_each_path_takes_its_session_over(commands: Commands, image: Path, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk")
    put(place, 0, DATA, sync=True)
    (before,) = commands.status()
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: ended(before["pid"]), "the daemon to be gone")
    until(lambda: place not in Mounts(place.parent).points(), "the dead mount to be cleared")
    mount(commands, place)
    (after,) = commands.status()
    assert [one["isid"] for one in after["sessions"]] == [one["isid"] for one in before["sessions"]]
    assert commands.target.ask("sessions") == 2, "one for each path"
    assert get(place, 0, len(DATA)) == DATA
    commands.umount(place)


def umount(commands: Commands, place: Path, pid: int) -> None:
    sentence = commands.refused("umount", place, code=6)
    assert "written data may be lost" in sentence and "LUN 0" in sentence


def terminate(commands: Commands, place: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    until(lambda: ended(pid), "the daemon to end", END_SECONDS)
    assert "written data may be lost" in place.with_suffix(".log").read_text()


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("end", [umount, terminate])
def test_an_end_without_a_path_comes_soon_and_tells_what_is_lost(commands: Commands, tmp_path: Path, end: Any, silent: bool) -> None:
    place = mount(commands, tmp_path / "disk", "--no-path-retry", "queue")
    put(place, 0, DATA)
    (one,) = commands.status()
    if silent:  # It neither answers nor closes: only a ping finds that out.
        os.kill(commands.target.process.pid, signal.SIGSTOP)
    else:
        commands.target.kill()
    began = time.monotonic()
    try:
        end(commands, place, one["pid"])
        assert time.monotonic() - began < END_SECONDS
        assert ended(one["pid"]) and not place.exists()
    finally:
        if silent:
            os.kill(commands.target.process.pid, signal.SIGCONT)


def test_the_end_lets_go_of_a_program_that_waits_for_the_disk(commands: Commands, processes: Processes, tmp_path: Path) -> None:
    place = mount(commands, tmp_path / "disk", "--no-path-retry", "queue")
    (one,) = commands.status()
    commands.target.kill()
    until(lambda: states(commands) == ["down", "down"], "the loss to be shown")
    reader = processes.start(["dd", f"if={place}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
    until(lambda: device(commands)["waiting"] == 1, "its request to wait")
    assert "waiting 1" in commands.run("status").stdout
    began = time.monotonic()
    os.kill(one["pid"], signal.SIGTERM)
    assert reader.wait(END_SECONDS) == 1
    assert "Input/output error" in reader.stderr
    until(lambda: ended(one["pid"]), "the daemon to end", END_SECONDS)
    assert time.monotonic() - began < END_SECONDS


def test_the_end_does_not_wait_for_a_fence_that_takes_long(commands: Commands, processes: Processes, tmp_path: Path) -> None:
    """The portal of a write under way is gone, and no other portal of its group can end the session: that write stays unfenced."""
    place = mount(commands, tmp_path / "disk")
    (one,) = commands.status()
    job = ["--name=busy", f"--filename={place}", "--size=32m", "--rw=randwrite", "--bs=256k", "--direct=1", "--ioengine=libaio"]
    writer = processes.start(["fio", *job, "--iodepth=8", "--time_based", "--runtime=50", "--allow_file_create=0"], cwd=tmp_path)
    until(lambda: device(commands)["paths"][0]["in_flight"], "writes to be under way")
    commands.target.ask("hold")  # else all of them may have been answered when the portal goes
    until(lambda: device(commands)["paths"][0]["in_flight"], "writes to be kept by the target")
    commands.target.ask("close 0")
    commands.target.ask("release")
    until(lambda: device(commands)["waiting"], "writes to wait for the fence")
    began = time.monotonic()
    os.kill(one["pid"], signal.SIGTERM)
    assert writer.wait(END_SECONDS) != 0
    until(lambda: ended(one["pid"]), "the daemon to end", END_SECONDS)
    assert time.monotonic() - began < END_SECONDS
    assert "Input/output error" in writer.stdout + writer.stderr, "what was not written is not acknowledged"
    until(lambda: commands.target.ask("sessions") == 0, "the sessions to end")


def test_the_foreground_ends_with_6_for_what_could_not_be_written(commands: Commands, processes: Processes, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    words = [word for portal in commands.target.portals for word in ("-p", portal)]
    running = processes.start(isblk("mount", "-f", *words, commands.target.name, place))
    running.wait_for("is mounted")
    put(place, 0, DATA)
    commands.target.kill()
    assert running.stop(signal.SIGINT, END_SECONDS) == 6
    assert "written data may be lost" in running.stderr
