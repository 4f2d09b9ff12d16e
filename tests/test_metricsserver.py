"""Metrics over HTTP: what is answered, and that slow, many and rude clients keep nobody from being served."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isblk import metrics, metricsserver
from isblk.listening import Listener, at_address, at_path
from isblk.metricsserver import CLIENTS, Serving
from support.waiting import until


@contextmanager
def serving(listener: Listener) -> Iterator[Any]:
    """A running server; where to connect."""
    try:
        with Serving([listener], metrics.registry(lambda: ([], 0))):
            listener.publish()
            yield listener.sock.getsockname() if listener.path is None else str(listener.path)
    finally:
        listener.withdraw()
        listener.sock.close()


@pytest.fixture
def place() -> Iterator[Any]:
    (listener,) = at_address("127.0.0.1", 0)
    with serving(listener) as where:
        yield where


def connected(place: Any) -> socket.socket:
    client = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
    client.settimeout(20)
    client.connect(place)
    return client


def answer(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def get(place: Any, what: str = "/metrics", *headers: str, verb: str = "GET") -> tuple[str, str]:
    with connected(place) as client:
        client.sendall("\r\n".join([f"{verb} {what} HTTP/1.0", *headers, "", ""]).encode())
        head, _, body = answer(client).decode().partition("\r\n\r\n")
        return head, body


def test_the_format_is_the_one_that_is_asked_for(place: Any) -> None:
    head, body = get(place, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
    assert head.startswith("HTTP/1.0 200 ") and "Content-Type: application/openmetrics-text" in head and body.endswith("# EOF\n")
    head, body = get(place)
    assert "Content-Type: text/plain" in head and "isblk_daemons 0.0" in body


@pytest.mark.parametrize(
    ("what", "verb", "code"),
    [("/", "GET", 200), ("/x", "GET", 404), ("/metrics?name[]=isblk_daemons", "GET", 200), ("/metrics", "POST", 501)],
)
def test_there_is_one_thing_to_get(place: Any, what: str, verb: str, code: int) -> None:
    assert get(place, what, verb=verb)[0].startswith(f"HTTP/1.0 {code} ")


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    with serving(at_path(tmp_path / "metrics")) as where:
        assert "isblk_daemons 0.0" in get(where)[1]


def test_more_clients_than_there_is_room_for_are_turned_away_and_the_next_are_served(place: Any) -> None:
    idle = [connected(place) for _ in range(CLIENTS)]
    for client in idle:
        client.sendall(b"GET /metrics HTTP/1.0\r\n")
    until(lambda: turned_away(place), "one to be turned away")
    for client in idle:
        client.close()
    until(lambda: not turned_away(place), "room again")


def turned_away(place: Any) -> bool:
    try:
        return not get(place)[0]
    except ConnectionError:
        return True


def test_a_client_that_trickles_is_cut_off_at_the_deadline(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    monkeypatch.setattr(metricsserver, "DEADLINE", 0.3)
    with connected(place) as client:
        over = threading.Event()

        def trickle() -> None:
            while not over.wait(0.02):
                try:
                    client.sendall(b"X")
                except OSError:
                    return

        client.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            try:
                said = answer(client)
            except ConnectionError:
                said = b""
            assert b"200" not in said
        finally:
            over.set()
            thread.join(10)


@pytest.mark.parametrize("rubbish", [b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", b""])
def test_rubbish_harms_nobody(place: Any, rubbish: bytes) -> None:
    with connected(place) as client:
        try:
            client.sendall(rubbish)
            client.shutdown(socket.SHUT_WR)
            assert b" 200 " not in answer(client)
        except ConnectionError:
            pass
    assert "isblk_daemons" in get(place)[1]
