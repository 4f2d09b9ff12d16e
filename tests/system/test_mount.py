"""`isblk mount` as it is installed: it returns when the file is there, and every way to end it writes back and logs out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from isblk.export.mountpoint import is_mounted
from support.commands import Commands, ended, get, put
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.targets import MIB, disk, target_process
from support.trees import check
from support.waiting import until

NAME = "iqn.2026-11.test.isblk:nobody-home"
DATA = bytes(range(256)) * 4096
NOT_DURABLE = b"\0" * len(DATA)


@pytest.fixture(params=["direct", "pyfuse3"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def commands(commands: Commands, engine: str) -> Commands:
    """What is mounted by `commands.mount` is mounted by either engine."""
    commands.mount_options = ["--fuse-engine", engine]
    return commands


def isblk_umount(commands: Commands, place: Path, pid: int) -> None:
    commands.umount(place)
    assert ended(pid), "isblk umount returned before the daemon had ended"


def umount(commands: Commands, place: Path, pid: int) -> None:
    subprocess.run(["umount", place], check=True)


def fusermount(commands: Commands, place: Path, pid: int) -> None:
    subprocess.run(["fusermount3", "-u", place], check=True)


def terminate(commands: Commands, place: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [isblk_umount, umount, fusermount, terminate])
def test_every_way_out_writes_back_logs_out_and_takes_the_mountpoint_away(
    commands: Commands, image: Path, tmp_path: Path, end: Callable[[Commands, Path, int], None]
) -> None:
    place = commands.mount(tmp_path / "disk")
    assert place.stat().st_size == 64 * MIB
    assert commands.target.ask("sessions") == 1
    (mount,) = commands.status()
    put(place, 1000, DATA)
    assert get(image, 1000, len(DATA)) == NOT_DURABLE, "the target's cache is volatile until it is synchronized"
    end(commands, place, mount["pid"])
    commands.gone(mount["pid"])
    commands.target.ask("crash")
    assert get(image, 1000, len(DATA)) == DATA
    assert not place.exists(), "a mountpoint that isblk made is taken away again"
    assert not list((tmp_path / "run").iterdir()), "neither a socket nor a note is left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_foreground_ends_with_a_signal_and_everything_written_back(
    commands: Commands, processes: Processes, image: Path, tmp_path: Path, number: int
) -> None:
    place = tmp_path / "disk"
    running = processes.start(isblk("mount", "-f", *commands.there, place))
    running.wait_for("is mounted; Ctrl-C unmounts")
    put(place, 0, DATA)
    assert running.stop(number) == 0
    commands.gone(running.pid)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA
    assert running.stderr.count("\n") == 1


def test_the_foreground_ends_when_somebody_unmounts(commands: Commands, processes: Processes, tmp_path: Path) -> None:
    running = processes.start(isblk("mount", "-f", *commands.there, tmp_path / "disk"))
    running.wait_for("is mounted")
    commands.umount(tmp_path / "disk")
    assert running.wait() == 0


def test_fsync_makes_durable_what_a_crash_of_the_target_would_lose(commands: Commands, image: Path, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    put(place, 0, DATA, sync=True)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA
    commands.umount(place)


def test_data_that_could_not_be_written_back_is_told_by_umount(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    put(place, 0, DATA)
    commands.target.kill()
    sentence = commands.refused("umount", place, code=6)
    assert "written data may be lost" in sentence and "LUN 0" in sentence
    assert commands.refused("umount", place, code=2).startswith(f"nothing is mounted at {place}")


def test_what_a_crash_of_the_target_took_is_written_again_before_the_end(commands: Commands, image: Path, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    put(place, 0, DATA)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == NOT_DURABLE
    commands.umount(place)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA


def test_so_are_large_writes_whose_memory_would_have_been_used_again(commands: Commands, image: Path, tmp_path: Path) -> None:
    place, pieces = commands.mount(tmp_path / "disk"), [os.urandom(MIB // 2) for _ in range(100)]
    for number, piece in enumerate(pieces):
        put(place, number * len(piece), piece)
        if number == 40:  # Less than half of the journal: nothing has been flushed yet.
            commands.target.ask("crash")
    commands.umount(place)
    commands.target.ask("crash")
    assert get(image, 0, 50 * MIB) == b"".join(pieces)


def test_without_retry_a_lost_session_fails_requests_at_once_and_can_be_unmounted(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk", "--no-path-retry", "fail")
    commands.target.kill()
    with pytest.raises(OSError, match="Input/output error"):
        get(place, 0, 512)
    (mount,) = commands.status()
    assert commands.target.portal in mount["sessions"][0]["error"]
    assert mount["devices"][0]["paths"][0]["state"] == "down"
    commands.umount(place)


def test_a_dropped_session_is_logged_in_again_and_nobody_notices(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    put(place, 0, DATA)
    commands.target.ask("drop")
    assert get(place, 0, len(DATA)) == DATA
    (mount,) = commands.status()
    assert (mount["sessions"][0]["state"], mount["sessions"][0]["logins"]) == ("up", 2)
    assert commands.target.ask("sessions") == 1
    commands.umount(place)


def test_sigterm_under_load_loses_nothing_that_was_acknowledged(commands: Commands, image: Path, tmp_path: Path) -> None:
    """A writer that keeps the file open is cut off; every block whose fsync returned is on the medium."""
    place = commands.mount(tmp_path / "disk")
    (mount,) = commands.status()
    acknowledged = 0

    def write_until_it_ends() -> None:
        nonlocal acknowledged
        with place.open("r+b", buffering=0) as file:
            for number in range(1, 16000):
                os.pwrite(file.fileno(), number.to_bytes(4, "big") * 1024, number * 4096)
                os.fsync(file.fileno())
                acknowledged = number

    writer = threading.Thread(target=lambda: suppressed(write_until_it_ends))
    writer.start()
    until(lambda: acknowledged > 20, "the writer to get going")
    os.kill(mount["pid"], signal.SIGTERM)
    writer.join(30)
    assert not writer.is_alive()
    commands.gone(mount["pid"])
    commands.target.ask("crash")
    assert 20 < acknowledged < 15999
    for number in range(1, acknowledged + 1):
        assert get(image, number * 4096, 4) == number.to_bytes(4, "big")


def suppressed(function: Callable[[], None]) -> None:
    with suppress(OSError):
        function()


def test_a_lazy_unmount_ends_with_the_last_user_of_the_file(commands: Commands, image: Path, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    (mount,) = commands.status()
    with place.open("r+b", buffering=0) as file:
        subprocess.run(["umount", "-l", place], check=True)
        assert not place.exists() or place.stat().st_size == 0
        os.pwrite(file.fileno(), DATA, 0)
        assert not ended(mount["pid"])
    commands.gone(mount["pid"])
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA


def test_the_blocks_of_the_file_are_those_that_the_disk_has_allocated(commands: Commands, tmp_path: Path) -> None:
    """As du, cp and tar want to know; also of a disk that is written meanwhile, and never none, for GNU tar does not read such a file."""
    place, direct = commands.mount(tmp_path / "disk"), commands.mount_options[-1] == "direct"
    assert place.stat().st_blocks * 512 == 4096
    put(place, 0, DATA)
    if direct:  # through the other, which knows no SEEK_HOLE, tar reads 512 bytes at a time
        check("tar", "-C", tmp_path, "-Scf", tmp_path / "tar", "disk")
        (tmp_path / "out").mkdir()
        check("tar", "-C", tmp_path / "out", "-xf", tmp_path / "tar")
        assert get(tmp_path / "out" / "disk", 0, 2 * MIB) == DATA + bytes(MIB)
    put(place, 30 * MIB, DATA * 4, sync=True)
    until(lambda: place.stat().st_blocks * 512 == 5 * MIB, "the blocks to be counted again")
    assert check("du", "--block-size=1", place).split()[0] == str(5 * MIB)
    commands.umount(place)
    commands.mount(place)
    assert place.stat().st_blocks * 512 == 5 * MIB, "it is known from the beginning"
    if direct:
        check("cp", place, tmp_path / "copy")
        check("cmp", place, tmp_path / "copy")
        until(lambda: _punched(place), "what was given back not to be counted any more")
    commands.umount(place)


def _punched(place: Path) -> bool:
    check("fallocate", "--punch-hole", "--offset", "30MiB", "--length", "4MiB", place)
    return place.stat().st_blocks * 512 == MIB


def test_an_existing_file_is_mounted_over_and_stays(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.write_text("mine")
    commands.mount(place)
    assert place.stat().st_size == 64 * MIB
    commands.umount(place)
    assert place.read_text() == "mine"


def test_a_directory_shows_every_disk_by_its_number(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    luns = [disk(0, device_type=0x0C, size=MIB), disk(1), disk(7, size=8 * MIB, block_size=4096), disk(300, size=MIB, read_only=True)]
    with target_process(luns) as target:
        commands = Commands(processes, target)
        place = tmp_path / "luns"
        place.mkdir()
        commands.mount(place, "--log-file", str(tmp_path / "log"))
        shown = {entry.name: (oct(entry.stat().st_mode & 0o777), entry.stat().st_size) for entry in place.iterdir()}
        assert shown == {"lun1": ("0o600", 16 * MIB), "lun7": ("0o600", 8 * MIB), "lun300": ("0o400", MIB)}
        assert "LUN 0 is no disk" in (tmp_path / "log").read_text()
        put(place / "lun7", 1001, b"not a whole block")
        assert get(place / "lun7", 1000, 19) == b"\0not a whole block\0"
        commands.umount(place)
        assert not list(place.iterdir())


def test_one_disk_beside_a_controller_needs_no_number(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    with target_process([disk(0, device_type=0x0C), disk(1, size=3 * MIB)]) as target:
        commands = Commands(processes, target)
        assert commands.mount(tmp_path / "disk").stat().st_size == 3 * MIB
        commands.umount(tmp_path / "disk")


def test_several_disks_are_listed_when_none_is_chosen(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    with target_process([disk(1), disk(4, size=MIB)]) as target:
        commands = Commands(processes, target)
        sentence = commands.refused("mount", *commands.there, tmp_path / "disk", code=2)
        assert "several disks (LUN 1, 4)" in sentence and "--lun" in sentence and "directory" in sentence
        assert target.ask("sessions") == 0
        assert commands.mount(tmp_path / "disk", "--lun", "4").stat().st_size == MIB
        commands.umount(tmp_path / "disk")


def test_read_only_is_refused_by_the_kernel_and_shown(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk", "-o", "ro")
    assert place.stat().st_mode & 0o777 == 0o400
    with pytest.raises(OSError, match="Read-only file system"):
        put(place, 0, b"x")
    assert commands.status()[0]["read_only"]
    assert "read-only" in commands.run("status").stdout
    commands.umount(place)


def test_a_second_mount_on_a_mountpoint_is_refused_and_harms_nothing(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    assert "is a mountpoint already" in commands.refused("mount", *commands.there, place, code=2)
    assert commands.target.ask("sessions") == 1
    assert get(place, 0, 4) == b"\0\0\0\0"
    commands.umount(place)


def test_two_mounts_of_one_target_have_sessions_of_their_own(commands: Commands, tmp_path: Path) -> None:
    one, two = commands.mount(tmp_path / "one"), commands.mount(tmp_path / "two")
    assert commands.target.ask("sessions") == 2
    assert len({mount["sessions"][0]["isid"] for mount in commands.status()}) == 2
    put(one, 0, b"through one")
    assert get(two, 0, 11) == b"through one"
    commands.umount(one)
    assert get(two, 0, 11) == b"through one"
    commands.umount(two)


def test_a_mount_in_use_is_not_unmounted(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk")
    with place.open("rb"):
        assert "is in use" in commands.refused("umount", place, code=2)
        assert get(place, 0, 1) == b"\0"
    commands.umount(place)


def test_after_kill_9_the_mountpoint_is_clear_and_the_session_taken_over(commands: Commands, engine: str, tmp_path: Path) -> None:
    """The direct engine's mount goes with its daemon; what pyfuse3 leaves is cleared by `isblk umount`."""
    place = commands.mount(tmp_path / "disk")
    (before,) = commands.status()
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: ended(before["pid"]), "the daemon to be gone")
    assert commands.status() == []
    if engine == "direct":
        until(lambda: not is_mounted(place), "the mount to be gone")
    else:
        assert "an earlier mount left when its daemon died" in commands.refused("mount", *commands.there, place, code=2)
        commands.umount(place)
    commands.mount(place)
    (after,) = commands.status()
    assert after["sessions"][0]["isid"] == before["sessions"][0]["isid"], "the same identity, so that the target ends the dead session"
    assert commands.target.ask("sessions") == 1
    commands.umount(place)


def test_mount_of_a_relative_path_survives_the_daemons_change_of_directory(commands: Commands, tmp_path: Path) -> None:
    commands.run("mount", *commands.there, "disk", "--log-file", "log", cwd=tmp_path)
    assert (tmp_path / "disk").stat().st_size == 64 * MIB
    commands.run("umount", "disk", cwd=tmp_path)
    assert (tmp_path / "log").exists()


def test_the_command_does_not_keep_a_pipe_open(commands: Commands, tmp_path: Path) -> None:
    """`$(isblk mount ...)` returns: the daemon has let go of the standard descriptors."""
    argv = isblk("mount", *commands.there, tmp_path / "disk")
    done = subprocess.run(argv, env=commands.processes.env, capture_output=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    commands.umount(tmp_path / "disk")


def test_umount_knows_a_mount_by_other_names_too(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(tmp_path)
    for name in ("way/disk", "link", "disk/"):
        place = commands.mount(tmp_path / "disk")
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(place)
        (mount,) = commands.status()
        commands.run("umount", f"{tmp_path}/{name}")
        assert ended(mount["pid"]), "it waits for the end only when it has found the daemon"


def test_an_ordinary_user_mounts_writes_and_unmounts(fuse_for_users: None, commands: Commands, image: Path, tmp_path: Path) -> None:
    home = tmp_path / "nobody"
    commands.as_nobody("status")
    place = home / "disk"
    commands.as_nobody("mount", *commands.there, place)
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    said = subprocess.run([*as_user, "stat", "-c", "%U %a %s", place], capture_output=True, text=True, check=True, timeout=20)
    assert said.stdout == f"nobody 600 {64 * MIB}\n"
    subprocess.run(
        [*as_user, "dd", "if=/dev/zero", f"of={place}", "bs=1M", "count=1", "conv=notrunc"], check=True, capture_output=True, timeout=20
    )
    assert "disk" in commands.as_nobody("status").stdout
    commands.as_nobody("umount", place)
    assert commands.target.ask("sessions") == 0
    subprocess.run([*as_user, "test", "!", "-e", place], check=True, timeout=20)


def test_an_interrupt_while_mounting_leaves_nothing(processes: Processes, fuse: None, tmp_path: Path) -> None:
    """A portal that says nothing keeps the login waiting; Ctrl-C ends the command and the daemon behind it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        portal = f"127.0.0.1:{silent.getsockname()[1]}"
        running = processes.start(isblk("mount", "-p", portal, NAME, tmp_path / "disk"))
        connection, _ = silent.accept()
        with connection:
            assert running.stop(signal.SIGINT) == 130
        until(lambda: not processes.strays(), "the daemon to end")
        assert running.stderr.startswith("isblk: ") and running.stderr.count("\n") == 1
    assert not (tmp_path / "disk").exists()
