"""Sockets to accept from: names that appear when somebody listens, what is in the way, TCP in every spelling, and what systemd passes."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from isblk import listening
from isblk.errors import UsageError
from isblk.listening import FIRST_DESCRIPTOR, Listener, activated, at_address, at_path, check_free, parse_place


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    found = at_path(tmp_path / "disk.sock")
    yield found
    found.withdraw()
    found.sock.close()


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


# --------------------------------------------------------------------------------------------------------------------- unix sockets


def test_a_socket_appears_when_it_is_published_and_only_its_user_can_open_it(listener: Listener, tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    assert not path.exists() and listener.where == str(path)
    listener.publish()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.sock"]
    connect(path).close()
    listener.withdraw()
    assert not list(tmp_path.iterdir())
    listener.withdraw()


def test_what_was_never_published_leaves_nothing(listener: Listener, tmp_path: Path) -> None:
    listener.withdraw()
    assert not list(tmp_path.iterdir())


def test_the_umask_of_the_process_is_as_before(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        at_path(tmp_path / "x").sock.close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_the_socket_of_a_dead_server_is_replaced(listener: Listener, tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    listener.publish()
    connect(path).close()


def test_a_live_one_is_refused_and_not_connected_to(listener: Listener, tmp_path: Path) -> None:
    listener.publish()
    with pytest.raises(UsageError, match=r"a server listens at .* already"):
        at_path(tmp_path / "disk.sock")
    listener.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.sock.accept()
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.sock"]


def test_one_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    first, second = (
        at_path(tmp_path / "s"),
        Listener(socket.socket(socket.AF_UNIX), str(tmp_path / "s"), tmp_path / "s", tmp_path / "draft"),
    )
    first.publish()
    with pytest.raises(UsageError, match="already"):
        second.publish()
    second.withdraw()
    assert (tmp_path / "s").exists()
    first.withdraw()
    for one in (first, second):
        one.sock.close()


def test_the_name_of_another_is_left_alone(listener: Listener, tmp_path: Path) -> None:
    listener.publish()
    (tmp_path / "disk.sock").unlink()
    (tmp_path / "disk.sock").write_text("mine")
    listener.withdraw()
    assert (tmp_path / "disk.sock").read_text() == "mine"


def test_what_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path):
        with pytest.raises(UsageError, match="is there and no socket"):
            check_free(path)


@pytest.mark.parametrize("place", ["missing/disk.sock", "file/disk.sock"])
def test_a_place_where_no_socket_can_be(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be made: (No such|Not a) "):
        at_path(tmp_path / place)


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    long = at_path(deep / "disk.sock")
    long.publish()
    assert (deep / "disk.sock").is_socket()
    with pytest.raises(UsageError, match="already"):
        check_free(deep / "disk.sock")
    long.withdraw()
    long.sock.close()


# ------------------------------------------------------------------------------------------------------------------------------- TCP


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1", ("127.0.0.1", 10809)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("LOCALHOST:99", ("localhost", 99)),
        ("::1", ("::1", 10809)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]:0", ("::1", 0)),
        ("[::]", ("::", 10809)),
        ("::", ("::", 10809)),
    ],
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert parse_place(text, 10809) == place


@pytest.mark.parametrize("text", ["", ":10809", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "a b", "[::1", "127.0.0.1,3", ":0"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(UsageError):
        parse_place(text, 10809)


def test_a_free_port_is_told() -> None:
    (found,) = at_address("127.0.0.1", 0)
    with closing(found.sock):
        port = found.sock.getsockname()[1]
        assert (found.where, found.is_local, found.uri(False)) == (f"127.0.0.1:{port}", True, f"nbd://127.0.0.1:{port}")
        assert found.uri(True).startswith("nbds://")
        found.publish()
        found.withdraw()
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"):
            at_address("127.0.0.1", port)


def test_every_address_of_a_name_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(
        listening.socket,
        "getaddrinfo",
        lambda *_, **__: [(*entry, ("192.0.2.1", 0)), (*entry, ("127.0.0.1", 0)), (*entry, ("127.0.0.2", 0))],
    )
    found = at_address("somewhere", 0)
    try:
        assert [one.sock.getsockname()[0] for one in found] == ["127.0.0.1", "127.0.0.2"], "192.0.2.1 is no address of this machine"
        assert len({one.sock.getsockname()[1] for one in found}) == 1
    finally:
        for one in found:
            one.sock.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(UsageError, match=r"cannot listen at|no address to listen at"):
        at_address(host, 0)


def test_what_everybody_reaches_is_not_local() -> None:
    (found,) = at_address("0.0.0.0", 0)
    with closing(found.sock):
        assert not found.is_local


def test_a_uri_escapes_what_a_path_may_hold(tmp_path: Path) -> None:
    odd = at_path(tmp_path / "a b&c")
    with closing(odd.sock):
        assert odd.uri(False).endswith("/a%20b%26c") and odd.uri(True).startswith("nbds+unix:///?socket=/") and odd.is_local
        odd.withdraw()


# ----------------------------------------------------------------------------------------------------------------- socket activation


def passing(*sockets: int, pid: int | None = None, count: str | None = None) -> list[str]:
    """In a child: its descriptors from 3 on are `sockets`; what it makes of them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        kept = os.dup2(writer, 200)
        for number, source in enumerate([os.dup2(one, 100 + at) for at, one in enumerate(sockets)]):
            os.dup2(source, FIRST_DESCRIPTOR + number)
        environment = {"LISTEN_FDS": count or str(len(sockets)), "LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDNAMES": "nbd", "A": "b"}
        try:
            found = activated(environment)
            told = [one.where for one in found] or ["none"]
            told.append("inherited" if any(os.get_inheritable(3 + at) for at in range(len(sockets))) else "closed on exec")
            told.append(" ".join(environment))
        except UsageError as error:
            told = [str(error)]
        except BaseException as error:
            told = [f"{type(error)}: {error}"]
        os.write(kept, "\n".join(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read().splitlines()
    os.waitpid(child, 0)
    return said


def test_sockets_of_systemd(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as unix, closing(socket.create_server(("127.0.0.1", 0))) as tcp:
        unix.bind(str(tmp_path / "passed.sock"))
        unix.listen()
        said = passing(unix.fileno(), tcp.fileno())
        assert said == [str(tmp_path / "passed.sock"), f"127.0.0.1:{tcp.getsockname()[1]}", "closed on exec", "A"]


def test_sockets_for_another_process_are_not_ours(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp:
        said = passing(tcp.fileno(), pid=1)
        assert said[0] == "none" and "LISTEN_FDS" in said[2]
    assert activated({}) == []


def test_a_withdrawn_socket_of_systemd_stays(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(str(tmp_path / "s"))
        Listener(unix, str(tmp_path / "s")).withdraw()
        assert (tmp_path / "s").exists()


def test_descriptors_that_cannot_be_accepted_from(tmp_path: Path) -> None:
    with closing(socket.socket()) as deaf, closing(socket.socket(type=socket.SOCK_DGRAM)) as datagram, (tmp_path / "f").open("w") as file:
        for one in (deaf.fileno(), datagram.fileno()):
            assert "no socket that accepts connections" in passing(one)[0]
        assert "descriptor 3 of LISTEN_FDS is no socket" in passing(file.fileno())[0]
        assert "cannot be used: Bad file descriptor" in passing(deaf.fileno(), count="200")[0] or "no socket" in passing(deaf.fileno())[0]
        for count in ("0", "-1", "many", "999"):
            assert "no number of sockets" in passing(deaf.fileno(), count=count)[0]
