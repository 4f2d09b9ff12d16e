"""`isblk nbd` as it is installed: it returns when it listens, every way to end it writes back and logs out, and TLS means TLS."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from support.commands import Commands, ended, get
from support.nbd import Served, activated, certificates, gone, libnbd, libnbd_running, serve, serve_tcp, served
from support.processes import Processes, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.trees import check
from support.waiting import until

DATA = bytes(range(256)) * 4096


@pytest.fixture
def commands(target: TargetProcess, processes: Processes) -> Commands:
    """isblk's commands against `target`; nothing is mounted here."""
    return Commands(processes, target)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "disk.sock"


def write(server: Served, flush: bool = False) -> None:
    """DATA at the start of the disk, through libnbd."""
    script = "h.connect_uri(sys.argv[1])\nh.pwrite(bytes(range(256)) * 4096, 0)\n" + ("h.flush()\n" if flush else "") + "h.shutdown()"
    libnbd(script, server.uri)


def hold(commands: Commands, server: Served) -> Callable[[], int]:
    """A client that stays until the function is called."""
    script = "h.connect_uri(sys.argv[1])\nprint('here', flush=True)\nsys.stdin.read()\nh.shutdown()"
    client = libnbd_running(commands, script, server.uri, stdin=subprocess.PIPE)
    client.wait_for("here")

    def leave() -> int:
        assert client.process.stdin is not None
        client.process.stdin.close()
        return client.wait()

    return leave


# ------------------------------------------------------------------------------------------------------------------ start and status


def test_it_returns_when_it_listens_and_only_this_user_can_connect(commands: Commands, place: Path) -> None:
    server = serve(commands, place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 and place.is_socket()
    assert [path.name for path in place.parent.iterdir() if ".sock" in path.name] == ["disk.sock"]
    found = server.info()
    assert found["export-size"] == 64 * MIB and found["is_read_only"] is False
    assert os.getsid(server.pid) != os.getsid(0)
    assert {os.readlink(f"/proc/{server.pid}/fd/{number}") for number in (0, 1, 2)} == {os.devnull}
    server.end()
    assert commands.target.ask("sessions") == 0
    assert commands.run("status").stderr == "isblk: nothing is mounted\n"


def test_status_lists_exports_clients_and_what_each_negotiated(commands: Commands, place: Path) -> None:
    with served(commands, place, "-o", "ro") as server:
        leave = hold(commands, server)
        found = server.status()
        assert (found["kind"], found["where"], found["uris"], found["read_only"]) == ("nbd", str(place), [server.uri], True)
        (export,), (client,) = found["exports"], found["clients"]
        assert (export["name"], export["size"], export["read_only"]) == ("0", 64 * MIB, True)
        assert client["export"] in ("0", "") and client["negotiated"] and isinstance(client["counters"], dict)
        text = commands.run("status").stdout
        assert text.startswith(f"{place}  {commands.target.name}  read-only  pid {server.pid}  up 0:00:0")
        assert server.uri in text and "EXPORT" in text and "CLIENT" in text and "structured" in text
        assert leave() == 0
        until(lambda: not server.status()["clients"], "the client to be forgotten")
        assert "no clients" in commands.run("status").stdout


def test_every_disk_is_an_export(processes: Processes, place: Path) -> None:
    luns = [
        disk(0, device_type=0x0C, size=MIB),
        disk(1, size=2 * MIB),
        disk(7, size=8 * MIB, block_size=4096),
        disk(300, size=MIB, read_only=True),
    ]
    with target_process(luns) as target:
        commands = Commands(processes, target)
        with served(commands, place) as server:
            exports = {one["name"]: one for one in server.status()["exports"]}
            assert set(exports) == {"1", "7", "300"}
            for name, size in (("1", 2), ("7", 8), ("300", 1), ("", 2), (exports["7"]["wwid"], 8)):
                assert int(check("nbdinfo", "--size", server.export(name))) == size * MIB
            assert libnbd("h.connect_uri(sys.argv[1]); print(h.is_read_only())", server.export("300")) == "True\n"
        with served(commands, place, "--lun", "7") as server:
            assert int(check("nbdinfo", "--size", server.uri)) == 8 * MIB
            assert [one["name"] for one in server.status()["exports"]] == ["7"]
        assert target.ask("sessions") == 0


def test_the_log_goes_where_it_is_sent(commands: Commands, place: Path, tmp_path: Path) -> None:
    server = serve(commands, place, "--log-file", tmp_path / "log", "-v")
    server.end()
    assert (tmp_path / "log").stat().st_size > 0


def test_large_writes_that_a_crash_of_the_target_took_are_written_again_from_their_own_memory(
    commands: Commands, place: Path, image: Path
) -> None:
    """They are not copied for that; so the memory of a write that is not durable must not be lent again."""
    script = "h.connect_uri(sys.argv[1])\nfor at in range(int(sys.argv[2]), int(sys.argv[3])): h.pwrite(bytes([at + 1]) * %d, at * %d)"
    with served(commands, place) as server:
        libnbd(script % (MIB, MIB), server.uri, "0", "20")  # Less than half of the journal: nothing has been flushed yet.
        assert get(image, 0, 20 * MIB) == bytes(20 * MIB)
        commands.target.ask("crash")
        libnbd(script % (MIB, MIB), server.uri, "20", "50")
    commands.target.ask("crash")
    assert get(image, 0, 50 * MIB) == b"".join(bytes([at + 1]) * MIB for at in range(50))


# ----------------------------------------------------------------------------------------------------------------------------- the end


def isblk_umount(commands: Commands, server: Served) -> None:
    server.end()


def terminate(commands: Commands, server: Served) -> None:
    os.kill(server.pid, signal.SIGTERM)


@pytest.mark.parametrize("end", [isblk_umount, terminate])
@pytest.mark.parametrize("connected", [False, True])
def test_every_way_out_writes_back_and_logs_out(
    commands: Commands, image: Path, place: Path, end: Callable[[Commands, Served], None], connected: bool
) -> None:
    server = serve(commands, place)
    write(server)
    leave = hold(commands, server) if connected else None
    assert get(image, 0, len(DATA)) == bytes(len(DATA)), "the target's cache is volatile until it is synchronized"
    end(commands, server)
    gone(commands, server.pid)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA
    assert not place.exists() and not list((place.parent / "run").iterdir())
    if leave is not None:
        leave()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_foreground_ends_with_a_signal_and_everything_written_back(
    commands: Commands, processes: Processes, image: Path, place: Path, number: int
) -> None:
    running = processes.start(isblk("nbd", "-f", *commands.there, "--socket", place))
    running.wait_for("nbd+unix:///?socket=")
    server = Served(commands, running.stdout.strip(), str(place), running.pid)
    write(server)
    assert running.stop(number) == 0
    gone(commands, running.pid)
    commands.target.ask("crash")
    assert get(image, 0, len(DATA)) == DATA and not running.stderr


def test_what_was_flushed_outlives_the_cache_of_the_target(commands: Commands, image: Path, place: Path) -> None:
    with served(commands, place) as server:
        write(server, flush=True)
        libnbd("h.connect_uri(sys.argv[1])\nh.pwrite(b'fua' * 512, 1 << 20, nbd.CMD_FLAG_FUA)", server.uri)
        commands.target.ask("crash")
        assert get(image, 0, len(DATA)) == DATA
        assert get(image, MIB, 1536) == b"fua" * 512


def test_data_that_could_not_be_written_back_is_told_by_umount(processes: Processes, place: Path) -> None:
    with target_process([disk()]) as target:
        commands = Commands(processes, target)
        server = serve(commands, place)
        write(server)
        target.process.kill()
        target.process.wait()
        sentence = commands.refused("umount", place, code=6)
        assert "written data may be lost" in sentence and "LUN 0" in sentence
    assert ended(server.pid) and not place.exists()
    assert "nothing is mounted at" in commands.refused("umount", place, code=2)


def test_exit_on_last_ends_with_the_last_client_and_not_before_the_first(commands: Commands, image: Path, place: Path) -> None:
    server = serve(commands, place, "--exit-on-last")
    first, second = hold(commands, server), hold(commands, server)
    first()
    assert not ended(server.pid)
    libnbd("h.connect_uri(sys.argv[1])\nh.pwrite(b'x' * 4096, 0)", server.uri)
    assert not ended(server.pid)
    second()
    gone(commands, server.pid)
    commands.target.ask("crash")
    assert get(image, 0, 4096) == b"x" * 4096
    assert not place.exists()


def test_a_client_that_never_reads_its_answers_does_not_keep_it_from_ending(commands: Commands, place: Path) -> None:
    server = serve(commands, place)
    with closing(socket.socket(socket.AF_UNIX)) as deaf:
        deaf.connect(str(place))
        assert deaf.recv(18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
        deaf.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 0))  # EXPORT_NAME of the default export
        assert len(deaf.recv(10, socket.MSG_WAITALL)) == 10
        for cookie in range(64):
            deaf.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, cookie, 0, MIB))
        os.kill(server.pid, signal.SIGTERM)
        gone(commands, server.pid)


def test_sigterm_under_load_loses_nothing_that_was_acknowledged(commands: Commands, image: Path, place: Path) -> None:
    server = serve(commands, place)
    script = """
h.connect_uri(sys.argv[1])
try:
    for number in range(1, 16000):
        h.pwrite(number.to_bytes(4, "big") * 1024, number * 4096)
        print(number, flush=True)
except nbd.Error:
    print("end", flush=True)
"""
    writer = libnbd_running(commands, script, server.uri)
    writer.wait_for("\n20\n")
    os.kill(server.pid, signal.SIGTERM)
    writer.wait()
    gone(commands, server.pid)
    commands.target.ask("crash")
    *numbers, last = writer.stdout.split()
    assert last == "end" and 20 <= len(numbers) < 15999
    for number in map(int, numbers):
        assert get(image, number * 4096, 4) == number.to_bytes(4, "big")


# -------------------------------------------------------------------------------------------------------------------------- the socket


def test_the_socket_of_a_killed_server_is_replaced_and_its_session_taken_over(commands: Commands, place: Path) -> None:
    server = serve(commands, place)
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: ended(server.pid), "it to die")
    assert place.is_socket()
    assert "serves the socket" in commands.refused("umount", place, code=2)
    with served(commands, place) as again:
        assert again.info()["export-size"] == 64 * MIB
        assert commands.target.ask("sessions") == 1


def test_a_live_socket_is_refused_and_its_server_not_disturbed(commands: Commands, place: Path) -> None:
    server = serve(commands, place, "--exit-on-last")
    assert f"a server listens at {place} already" in commands.refused("nbd", *commands.there, "--socket", place, code=2)
    assert commands.target.ask("sessions") == 1 and not ended(server.pid)
    server.end()


def test_sockets_of_systemd(commands: Commands, processes: Processes, place: Path) -> None:
    """The descriptors as systemd leaves them: 3 and 4, with LISTEN_PID that of the process."""
    with closing(socket.socket(socket.AF_UNIX)) as unix, closing(socket.create_server(("127.0.0.1", 0))) as tcp:
        unix.bind(str(place))
        unix.listen()
        kept = [os.dup2(one.fileno(), 200 + at) for at, one in enumerate((unix, tcp))]
        shell = ["bash", "-c", 'exec 3<&200 4<&201 200<&- 201<&-; exec "$@"', "bash"]
        try:
            argv = [*shell, *activated(isblk("nbd", "-f", *commands.there), 2)]
            running = processes.start(argv, pass_fds=kept)
        finally:
            for one in kept:
                os.close(one)
        port = tcp.getsockname()[1]
        running.wait_for(f"nbd://127.0.0.1:{port}")
        for uri in (f"nbd+unix:///?socket={place}", f"nbd://localhost:{port}"):
            assert int(check("nbdinfo", "--size", uri)) == 64 * MIB
        commands.run("umount", f"127.0.0.1:{port}")
        assert running.wait() == 0 and place.exists(), "the socket is systemd's"


# --------------------------------------------------------------------------------------------------------------------------------- TCP


def test_tcp_on_loopback_is_ended_by_its_place(commands: Commands) -> None:
    server = serve_tcp(commands)
    assert server.info()["export-size"] == 64 * MIB
    assert "cannot listen at" in commands.refused("nbd", *commands.there, "--listen", server.where, code=2)
    server.end()


def test_tls_with_certificates_is_required_and_works(commands: Commands, tmp_path: Path) -> None:
    ours, theirs = certificates(tmp_path / "pki")
    server = serve_tcp(commands, "--tls-certificates", ours)
    assert server.uri.startswith("nbds://localhost:")
    uri = f"{server.uri}/?tls-certificates={theirs}"
    assert int(check("nbdinfo", "--size", uri)) == 64 * MIB
    script = """
h.set_uri_allow_local_file(True)
h.set_tls(nbd.TLS_REQUIRE)
h.connect_uri(sys.argv[1])
assert h.get_tls_negotiated()
data = bytes(range(256)) * 16384
h.pwrite(data, 4096)
assert h.pread(len(data), 4096) == data
print("tls")
"""
    assert libnbd(script, uri) == "tls\n"
    plain = subprocess.run(["nbdinfo", server.uri.replace("nbds", "nbd")], capture_output=True, text=True, timeout=20, check=False)
    assert plain.returncode and "not supported" in plain.stderr
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "ca-cert.pem").write_bytes((theirs / "ca-cert.pem").read_bytes())
    stranger = subprocess.run(
        ["nbdinfo", f"{server.uri}/?tls-certificates={tmp_path}/stranger"], capture_output=True, timeout=20, check=False
    )
    assert stranger.returncode, "without a certificate of the authority nobody is let in"
    credentials = ["--object", f"tls-creds-x509,id=tls,dir={theirs},endpoint=client"]
    port = server.where.rpartition(":")[2]
    image = f"driver=nbd,host=localhost,port={port},tls-creds=tls"
    assert "virtual size: 64 MiB" in check("qemu-img", "info", *credentials, "--image-opts", image)
    server.end()


def test_a_unix_socket_can_ask_for_tls_as_well(commands: Commands, place: Path, tmp_path: Path) -> None:
    ours, _ = certificates(tmp_path / "pki")
    server = serve(commands, place, "--tls-certificates", ours)
    assert server.uri.startswith("nbds+unix:") and server.status()["tls"] is True
    plain = subprocess.run(["nbdinfo", server.uri.replace("nbds", "nbd")], capture_output=True, text=True, timeout=20, check=False)
    assert plain.returncode and "not supported" in plain.stderr
    server.end()


# ---------------------------------------------------------------------------------------------------------------------------- bad usage


def test_certificates_that_cannot_be_used(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    listen = ["nbd", *commands.there, "--listen", "127.0.0.1:0"]
    assert "empty" in commands.refused(*listen, "--tls-certificates", tmp_path / "empty", code=2)
    ours, _ = certificates(tmp_path / "pki")
    (ours / "server-key.pem").chmod(0o644)
    assert "chmod 600" in commands.refused(*listen, "--tls-certificates", ours, code=2)
    (ours / "server-key.pem").chmod(0o600)
    (ours / "server-cert.pem").write_text("rubbish")
    assert "cannot be used" in commands.refused(*listen, "--tls-certificates", ours, code=2)
    assert commands.target.ask("sessions") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--lun", "9"), 3, "LUN 9"),
        (("--login-timeout", "0"), 2, "--login-timeout"),
        (("-o", "rx"), 2, "unknown mount option 'rx'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    commands: Commands, place: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    assert why in commands.refused("nbd", *commands.there, "--socket", place, *arguments, code=code)
    assert not [path for path in place.parent.iterdir() if ".sock" in path.name]
    assert commands.target.ask("sessions") == 0


def test_strangers_are_kept_out_unless_somebody_insists(commands: Commands) -> None:
    assert "anybody who reaches 0.0.0.0:" in commands.refused("nbd", *commands.there, "--listen", "0.0.0.0:0", code=2)
    said = commands.run("nbd", *commands.there, "--listen", "0.0.0.0:0", "--insecure").stdout.strip()
    commands.run("umount", said.removeprefix("nbd://"))


def test_a_target_that_is_gone_says_so(processes: Processes, place: Path) -> None:
    done = processes.run(isblk("nbd", "-p", "127.0.0.1:1", "iqn.2026-11.test.isblk:none", "--socket", place), code=5)
    assert done.stderr.count("\n") == 1 and "127.0.0.1:1" in done.stderr and not done.stdout
    assert not place.exists()


def test_a_socket_below_nothing(commands: Commands, tmp_path: Path) -> None:
    assert "cannot be made" in commands.refused("nbd", *commands.there, "--socket", tmp_path / "no" / "s", code=2)
    (tmp_path / "file").write_text("mine")
    assert "is there and no socket" in commands.refused("nbd", *commands.there, "--socket", tmp_path / "file", code=2)
    assert (tmp_path / "file").read_text() == "mine"
