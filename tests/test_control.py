"""control.py: the client against servers that answer, lie, stall, trickle and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.control import MESSAGE_LIMIT, address, ask, daemons, decode, encode, socket_path, stop
from isblk.errors import ProtocolError, Unreachable, UsageError


@contextmanager
def answering(path: Path, answer: Callable[[socket.socket, bytes], None]) -> Iterator[None]:
    """A server in a thread that calls `answer` with each request, one connection at a time."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                line = connection.recv(4096)
                try:
                    if line:
                        answer(connection, line)
                except OSError:
                    pass

    with socket.socket(socket.AF_UNIX) as listener:
        with address(path) as name:
            listener.bind(name)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()


def replying(*parts: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, line: bytes) -> None:
        for part in parts:
            connection.sendall(part)

    return answer


def test_a_request_is_a_line_of_json_and_so_is_the_answer(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def answer(connection: socket.socket, line: bytes) -> None:
        heard.append(line)
        connection.sendall(b'{"isblk":1,"answer":{"paths":[1,2],"na\xc3\xafve":true}}\n')

    with answering(tmp_path / "7.sock", answer):
        assert ask(tmp_path / "7.sock", "status") == {"paths": [1, 2], "na\u00efve": True}
    assert heard == [b'{"isblk":1,"request":"status"}\n']


def test_an_answer_may_come_in_pieces(tmp_path: Path) -> None:
    whole = encode({"answer": {"a": "b" * 100_000}})
    with answering(tmp_path / "7.sock", replying(*(whole[start : start + 999] for start in range(0, len(whole), 999)))):
        assert ask(tmp_path / "7.sock", "status") == {"a": "b" * 100_000}


@pytest.mark.parametrize(
    "line, error, words",
    [
        (b"rubbish\n", ProtocolError, "not a line of JSON"),
        (b"\xff\xfe\n", ProtocolError, "not a line of JSON"),
        (b"[" * 100_000 + b"\n", ProtocolError, "not a line of JSON"),
        (b"[]\n", ProtocolError, "not a JSON object"),
        (b'{"isblk":2,"answer":{}}\n', ProtocolError, "schema 2"),
        (b'{"answer":{}}\n', ProtocolError, "schema None"),
        (b'{"isblk":1}\n', ProtocolError, "neither an answer nor an error"),
        (b'{"isblk":1,"answer":[]}\n', ProtocolError, "neither an answer nor an error"),
        (b'{"isblk":1,"error":"not today"}\n', UsageError, "refuses 'status': not today"),
        (b"x" * (MESSAGE_LIMIT + 1), ProtocolError, "longer than"),
        (b'{"isblk":1', Unreachable, "ended while it was asked"),
        (b"", Unreachable, "ended while it was asked"),
    ],
)
def test_a_bad_answer_is_one_sentence(tmp_path: Path, line: bytes, error: type[Exception], words: str) -> None:
    with answering(tmp_path / "7.sock", replying(line)), pytest.raises(error, match=words):
        ask(tmp_path / "7.sock", "status")


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_protocol_errors(line: bytes) -> None:
    try:
        assert decode(line)["isblk"] == 1
    except ProtocolError:
        pass


def test_a_silent_daemon_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    over = threading.Event()
    with answering(tmp_path / "7.sock", lambda connection, line: over.wait(30) and None):
        with pytest.raises(Unreachable, match="does not answer"):
            ask(tmp_path / "7.sock", "status", deadline=0.1)
        over.set()


def test_a_trickle_does_not_move_the_deadline(tmp_path: Path) -> None:
    over = threading.Event()

    def trickle(connection: socket.socket, line: bytes) -> None:
        while not over.wait(0.02):
            connection.sendall(b" ")

    with answering(tmp_path / "7.sock", trickle):
        with pytest.raises(Unreachable, match="does not answer"):
            ask(tmp_path / "7.sock", "status", deadline=0.3)
        over.set()


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no daemon answers at"):
        ask(tmp_path / "7.sock", "status")


def test_sockets_of_the_dead_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "11.sock"))
    (tmp_path / "notes.sock").touch()
    (tmp_path / ".12.sock").touch()
    with answering(tmp_path / "30.sock", replying()), answering(tmp_path / "4.sock", replying()):
        assert [daemon.pid for daemon in daemons(tmp_path)] == [4, 30]
    assert {path.name for path in tmp_path.iterdir()} == {"notes.sock", ".12.sock", "30.sock", "4.sock"}
    assert daemons(tmp_path / "absent") == []


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    with answering(directory / "7.sock", replying(encode({"answer": {"far": 1}}))):
        assert ask(directory / "7.sock", "status") == {"far": 1}
        assert [daemon.pid for daemon in daemons(directory)] == [7]


STOPPABLE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
heard = []
while b'"stop"' not in b"".join(heard):
    connection, _ = listener.accept()
    connection.settimeout(0.1)
    try:
        heard.append(connection.recv(4096))
    except TimeoutError:
        heard.append(b"")  # somebody who only watches for the end
connection.sendall(b'{"isblk":1,"answer":{}}\\n')
connection.close()
listener.close()
if sys.argv[2] == "stays":
    sys.stdin.read()
"""


@contextmanager
def stoppable(path: Path, manner: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", STOPPABLE, str(path), manner]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process
        process.send_signal(signal.SIGKILL)


def test_stop_returns_when_the_process_has_ended(tmp_path: Path) -> None:
    with stoppable(tmp_path / "7.sock", "ends") as process:
        stop(tmp_path / "7.sock", deadline=20)
        assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_stop_says_when_the_process_does_not_end(tmp_path: Path) -> None:
    with stoppable(tmp_path / "7.sock", "stays"), pytest.raises(Unreachable, match="still runs"):
        stop(tmp_path / "7.sock", deadline=0.5)


def test_a_socket_is_named_after_its_process(tmp_path: Path) -> None:
    assert socket_path(tmp_path).name == f"{os.getpid()}.sock"
    assert socket_path(tmp_path, 5).name == "5.sock"


def test_asking_needs_no_trio() -> None:
    program = "import sys, isblk.control; sys.exit('trio' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
