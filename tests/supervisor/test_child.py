"""Children that are processes: what they are started with, when they can be used, how they ended, and how one is found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from isblk.errors import UsageError
from isblk.supervisor import child as module
from isblk.supervisor.child import Differs, Ended, Process, Processes, serving
from isblk.table.entry import Entry, parse
from support.processes import Processes as Started

NAME = "iqn.2001-05.com.example:disks"
LISTENS = """
import json, os, socket, sys
path, answer = sys.argv[1:3]
name = f"{path}/{os.getpid()}.sock"
listener = socket.socket(socket.AF_UNIX)
listener.bind(name)
listener.listen()
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    if connection.recv(4096):
        connection.sendall(json.dumps({"isblk": 1, "answer": json.loads(answer)}).encode() + b"\\n")
    connection.close()
"""
"""A daemon of which nothing but the control socket is there."""


def entry(line: str = "/srv/a fuse") -> Entry:
    (found,) = parse("/etc/isblk/isblktab", f"{NAME} {line}").entries
    return found


def started(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE)


def cat() -> subprocess.Popen[bytes]:
    """A process that ends when it is told, or when its input does."""
    return started("cat")


@contextmanager
def watched(child: Process) -> Iterator[Process]:
    try:
        yield child
    finally:
        child.close()


async def how_ended(code: str, tmp_path: Path) -> Ended:
    process = started(sys.executable, "-c", code)
    with watched(Process(entry(), tmp_path, process.pid, process)) as child:
        how = await child.ended()
    process.communicate()
    return how


async def test_a_childs_exit_code_is_how_it_ended(tmp_path: Path) -> None:
    assert await how_ended("", tmp_path) == Ended(0)
    assert (await how_ended("", tmp_path)).in_order
    assert await how_ended("raise SystemExit(5)", tmp_path) == Ended(5)
    assert await how_ended("import os; os.kill(os.getpid(), 9)", tmp_path) == Ended(None, "it was killed by SIGKILL")
    assert await how_ended("import os; os.kill(os.getpid(), 40)", tmp_path) == Ended(None, "it was killed by signal 40")


async def test_what_it_could_not_write_back_is_told_once(tmp_path: Path) -> None:
    code = f"import os; open('{tmp_path}/%d.failed' % os.getpid(), 'w').write('lost'); raise SystemExit(6)"
    how = await how_ended(code, tmp_path)
    assert how == Ended(6, "", "lost")
    assert not how.in_order
    assert not os.listdir(tmp_path)


async def test_how_a_found_one_ended_is_told_by_what_it_left(tmp_path: Path) -> None:
    for left, how in (
        ([], Ended(0)),
        (["failed"], Ended(6, "", "lost")),
        (["sock"], Ended(None, "it was killed")),
    ):
        process = cat()
        with watched(Process(entry(), tmp_path, process.pid)) as child:
            assert child.is_adopted
            for kind in left:
                (tmp_path / f"{process.pid}.{kind}").write_text("lost")
            process.kill()
            assert await child.ended() == how
        process.communicate()


async def test_a_child_is_asked_to_end_by_sigterm_and_one_that_has_ended_is_not(tmp_path: Path) -> None:
    process = cat()
    with watched(Process(entry("/srv/a nbd"), tmp_path, process.pid, process)) as child:
        await child.end(force=False)
        assert await child.ended() == Ended(None, "it was killed by SIGTERM")
        await child.end(force=False)
    process.communicate()


async def test_a_mount_is_unmounted_and_by_force_or_when_it_is_not_there_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(module.mountpoint, "unmount", unmounted.append)
    process = cat()
    with watched(Process(entry(), tmp_path, process.pid, process)) as child:
        await child.end(force=False)
        assert unmounted == ["/srv/a"]
        assert process.poll() is None
        monkeypatch.setattr(module.mountpoint, "unmount", _busy)
        with pytest.raises(UsageError, match="in use"):
            await child.end(force=False)
        assert process.poll() is None
        await child.end(force=True)
        assert await child.ended() == Ended(None, "it was killed by SIGTERM")
    process.communicate()


async def test_what_is_no_mount_any_more_is_signalled(tmp_path: Path) -> None:
    process = cat()
    with watched(Process(entry(f"{tmp_path}/absent fuse"), tmp_path, process.pid, process)) as child:
        await child.end(force=False)
        assert await child.ended() == Ended(None, "it was killed by SIGTERM")
    process.communicate()


def _busy(where: str) -> None:
    raise UsageError(f"{where} is in use")


async def test_a_device_that_is_used_is_left_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.nbddevice, "users", lambda index: ["mounted at /mnt", "used as swap"])
    process = cat()
    with watched(Process(entry("/dev/nbd7 attach"), tmp_path, process.pid, process)) as child:
        with pytest.raises(UsageError, match="/dev/nbd7 is mounted at /mnt and 1 more: end that first"):
            await child.end(force=False)
        await child.end(force=True)
        assert (await child.ended()).code is None
        monkeypatch.setattr(module.nbddevice, "users", lambda index: [])
        await child.end(force=False)
    process.communicate()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


async def test_it_can_be_used_when_its_place_is_there(processes: Started, run: Path, tmp_path: Path) -> None:
    where = tmp_path / "a.sock"
    daemon = processes.start([sys.executable, "-c", LISTENS, str(run), f'{{"where": "{where}"}}'])
    with watched(Process(entry(f"{where} nbd"), run, daemon.pid)) as child:
        is_ready = trio.Event()

        async def wait() -> None:
            await child.ready()
            is_ready.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.to_thread.run_sync(daemon.wait_for, "listens")
            with trio.move_on_after(0.3):
                await is_ready.wait()
            assert not is_ready.is_set()
            where.touch()
            await is_ready.wait()


async def test_an_address_is_there_as_soon_as_its_server_answers(processes: Started, run: Path) -> None:
    daemon = processes.start([sys.executable, "-c", LISTENS, str(run), '{"where": "127.0.0.1:10809"}'])
    with watched(Process(entry("127.0.0.1:10809 nbd"), run, daemon.pid)) as child:
        await child.ready()


def test_a_daemon_is_found_by_its_command_line_or_by_its_place(processes: Started, run: Path) -> None:
    answer = f'{{"kind": "mount", "where": "/srv/a", "target": "{NAME}"}}'
    assert serving(entry("/srv/a fuse ro"), run) == (0, Differs.NOT)
    own = [*entry("/srv/a fuse ro").command()]
    daemon = processes.start([sys.executable, "-c", LISTENS, str(run), answer, "isblk", *own])
    daemon.wait_for("listens")
    assert serving(entry("/srv/a fuse ro"), run) == (daemon.pid, Differs.NOT)
    assert serving(entry("/srv/a fuse ro,policy=round-robin,fence=fast"), run) == (daemon.pid, Differs.IN_PLACE)
    assert serving(entry("/srv/a fuse portal=b"), run) == (daemon.pid, Differs.MORE)
    assert serving(entry("/srv/b fuse ro"), run) == (0, Differs.NOT)
    assert serving(entry("/srv/a nbd"), run) == (0, Differs.NOT)
    (other,) = parse("tab", "iqn.2001-05.com.example:other /srv/a fuse ro").entries
    assert serving(other, run) == (0, Differs.NOT)
    daemon.stop(signal.SIGKILL)
    assert serving(entry("/srv/a fuse ro"), run) == (0, Differs.NOT)


def test_one_that_somebody_started_by_hand_is_taken_as_it_is(processes: Started, run: Path) -> None:
    answer = f'{{"kind": "mount", "where": "/srv/a", "target": "{NAME}"}}'
    for words in (["mount", NAME, "/srv/a"], ["serve", "/srv/a"], ["mount", "-f", NAME, "a"]):
        daemon = processes.start([sys.executable, "-c", LISTENS, str(run), answer, "isblk", *words])
        daemon.wait_for("listens")
        assert serving(entry("/srv/a fuse ro"), run) == (daemon.pid, Differs.UNKNOWN)
        daemon.stop(signal.SIGKILL)


def test_an_nbd_server_is_found_by_any_of_its_addresses_and_a_mount_through_a_link(processes: Started, run: Path, tmp_path: Path) -> None:
    answer = f'{{"kind": "nbd", "where": "x", "listens": ["[::1]:1", "127.0.0.1:1"], "target": "{NAME}"}}'
    processes.start([sys.executable, "-c", LISTENS, str(run), answer, "nbd"]).wait_for("listens")
    assert serving(entry("127.0.0.1:1 nbd"), run)[0]
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    answer = f'{{"kind": "mount", "where": "{tmp_path}/real/a", "target": "{NAME}"}}'
    processes.start([sys.executable, "-c", LISTENS, str(run), answer, "mount"]).wait_for("listens")
    assert serving(entry(f"{tmp_path}/link/a fuse"), run)[0]


def test_a_daemon_that_does_not_answer_is_found_by_its_command_line_alone(
    processes: Started, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = processes.start([sys.executable, "-c", LISTENS, str(run), "[]", "isblk", *entry().command()])
    daemon.wait_for("listens")
    assert serving(entry(), run) == (daemon.pid, Differs.NOT)
    assert serving(entry("/srv/a fuse ro"), run) == (0, Differs.NOT)


async def test_a_child_leads_a_session_of_its_own_and_its_words_go_where_they_are_sent(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "os.getsid(0) == os.getpid(), os.getcwd(), sys.argv[1:4], 'NOTIFY_SOCKET' in os.environ, os.environ.get('ISBLK_SECRET')"
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\nimport os, sys\nprint([{told}], file=sys.stderr)\nsys.exit(2)\n")
    interpreter.chmod(0o700)
    monkeypatch.setattr(module.sys, "executable", str(interpreter))
    for name in ("NOTIFY_SOCKET", "LISTEN_FDS", "ISBLK_SECRET"):
        monkeypatch.setenv(name, "kept?")
    reader, writer = os.pipe()
    child = await Processes(run).start(entry("/srv/a nbd portal=127.0.0.1:1"), writer)
    os.close(writer)
    assert isinstance(child, Process)
    with watched(child):
        assert await child.ended() == Ended(2)
    assert os.read(reader, 4096).decode() == "[True, '/', ['-P', '-m', 'isblk'], False, 'kept?']\n"
    os.close(reader)


async def test_a_child_is_told_its_options_with_what_the_configuration_says_of_the_rest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").write_text('failback = "manual"\nno-path-retry = 30\npolicy = "queue-length"\n')
    monkeypatch.setenv("ISBLK_CONFIG", str(tmp_path / "conf"))
    told: list[object] = []
    monkeypatch.setattr(module.control, "ask", lambda path, request, paths: told.append((path, request, paths)))
    process = cat()
    with watched(Process(entry(), run, process.pid)) as child:
        await child.change(entry("/srv/a fuse policy=round-robin"))
    process.communicate()
    words = {"policy": "round-robin", "failback": "manual", "no-path-retry": "30", "replacement-timeout": None, "fence": None}
    assert told == [(run / f"{process.pid}.sock", "change", words)]


async def test_what_a_mount_left_that_was_killed_is_taken_away_first(
    fuse: None, processes: Started, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[tuple[str, bool]] = []

    def gone(path: str) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(module.os, "statvfs", gone)
    monkeypatch.setattr(module.mountpoint, "unmount", lambda where, lazy: cleared.append((where, lazy)))
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    child = await Processes(run).start(entry(), 2)
    assert cleared == [("/srv/a", True)]
    assert isinstance(child, Process)
    with watched(child):
        assert (await child.ended()).code == 1
