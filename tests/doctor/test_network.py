"""Names, ports and packets: each answer, with a name service and a network that do as they are told."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from isblk.doctor import network
from isblk.doctor.findings import Report
from isblk.doctor.network import TcpInfo, parse_tcp_info, tcp_info
from isblk.iscsi.names import Portal
from support.doctor import PORTAL, names, text
from support.waiting import free_port

NAMED = Portal("nas.example", 3260)
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.5", 3260))]


def naming(monkeypatch: pytest.MonkeyPatch, seconds: float, answer: list[Any] | OSError) -> None:
    """A name service that answers after so many seconds."""

    async def getaddrinfo(*_arguments: Any, **_options: Any) -> list[Any]:
        await trio.sleep(seconds)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)


def connecting(monkeypatch: pytest.MonkeyPatch, open_stream: Callable[..., Awaitable[Any]]) -> None:
    monkeypatch.setattr(trio, "open_tcp_stream", open_stream)


def refusing(number: int) -> Callable[..., Awaitable[Any]]:
    """As trio does, which tries every address and tells of all of them."""

    async def open_stream(_host: str, _port: int) -> Any:
        await trio.lowlevel.checkpoint()
        raise OSError("all attempts to connect failed") from ExceptionGroup("x", [OSError(number, "so")])

    return open_stream


@pytest.mark.provokes("name-resolves")
async def test_a_name_that_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    naming(monkeypatch, 0, [*FOUND, *FOUND])
    report = Report()
    assert await network.resolve(report, NAMED)
    assert [finding.text for finding in report.findings] == ["nas.example is 10.0.0.5"]


@pytest.mark.parametrize("host", ["10.0.0.5", "fd00::5", "fe80::1%eth0"])
async def test_an_address_is_no_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    naming(monkeypatch, 0, OSError("asked for an address"))
    report = Report()
    assert await network.resolve(report, Portal(host, 3260))
    assert not report.findings


@pytest.mark.provokes("name-slow")
async def test_a_slow_name_service(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    naming(monkeypatch, 3, FOUND)
    report = Report()
    assert await network.resolve(report, NAMED)
    assert text(report, "name-slow") == "nas.example took 3.0 s to resolve, as every login will"


@pytest.mark.provokes("name-unknown")
async def test_a_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    naming(monkeypatch, 0, OSError(-2, "Name or service not known"))
    report = Report()
    assert not await network.resolve(report, NAMED)
    assert report.exit_code == 5


@pytest.mark.provokes("name-late")
async def test_a_name_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    naming(monkeypatch, 60, FOUND)
    report, began = Report(), trio.current_time()
    assert not await network.resolve(report, NAMED)
    assert trio.current_time() - began == network.RESOLVE_SECONDS


@pytest.mark.provokes("port-answers", "packets")
async def test_a_port_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        report, portal = Report(), Portal("127.0.0.1", listener.getsockname()[1])
        assert await network.answers(report, portal)
        assert await network.reason_not_reached(portal) is None
    assert text(report, "packets").startswith(f"{portal}: packets of 65535 bytes")


@pytest.mark.provokes("port-refuses")
async def test_a_port_that_refuses() -> None:
    report, portal = Report(), Portal("127.0.0.1", free_port())
    assert not await network.answers(report, portal)
    assert names(report) == ["port-refuses"] and report.exit_code == 5
    assert await network.reason_not_reached(portal) == "Connection refused"


@pytest.mark.provokes("port-silent")
async def test_a_port_that_is_silent(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    async def never(_host: str, _port: int) -> Any:
        await trio.sleep_forever()

    connecting(monkeypatch, never)
    report = Report()
    assert not await network.answers(report, PORTAL)
    assert text(report, "port-silent") == f"{PORTAL} does not answer within 5 s"
    assert await network.reason_not_reached(PORTAL) == "no answer within 5 s"


@pytest.mark.provokes("port-unreachable")
async def test_a_host_that_no_route_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting(monkeypatch, refusing(errno.EHOSTUNREACH))
    report = Report()
    assert not await network.answers(report, PORTAL)
    assert text(report, "port-unreachable") == f"{PORTAL} cannot be reached: No route to host"
    connecting(monkeypatch, refusing(errno.ECONNREFUSED))
    assert not await network.answers(report, PORTAL)
    assert names(report) == ["port-unreachable", "port-refuses"]


def info(mss: int = 1448, own_mss: int = 1460, path_mtu: int = 1500, **counts: int) -> TcpInfo:
    return TcpInfo(mss, own_mss, path_mtu, **counts)


@pytest.mark.provokes("packets-narrow", "packets-jumbo-here")
def test_packets_of_a_way_that_is_narrower_than_its_ends() -> None:
    report = Report()
    network.packets(report, PORTAL, info())
    network.packets(report, PORTAL, info(path_mtu=1400, mss=1348))
    network.packets(report, PORTAL, info(own_mss=8960, path_mtu=9000, mss=8948))
    network.packets(report, PORTAL, info(own_mss=8960, path_mtu=9000, mss=1448))
    network.packets(report, PORTAL, info(own_mss=1440, mss=1428), socket.AF_INET6)
    network.packets(report, PORTAL, None)
    assert names(report) == ["packets", "packets", "packets-narrow", "packets", "packets", "packets-jumbo-here", "packets"]
    assert text(report, "packets-narrow") == f"{PORTAL}: the way takes packets of 1400 bytes, the interface 1500"


@pytest.mark.provokes("resent", "late-segments")
def test_segments_that_were_lost_on_the_way() -> None:
    report = Report()
    network.losses(report, PORTAL, info(resent=1, sent=5, late=1, received=5))
    network.losses(report, PORTAL, info(resent=100, sent=100_000, late=100, received=100_000))
    network.losses(report, PORTAL, None)
    assert not report.findings
    network.losses(report, PORTAL, info(resent=101, sent=100_000, late=2, received=900))
    assert names(report) == ["resent", "late-segments"] and report.exit_code == 0
    assert text(report, "late-segments").startswith(f"{PORTAL}: 2 of 900 segments came late")


def test_what_the_kernel_tells_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as connection:
        before = tcp_info(connection)
        with listener.accept()[0] as other:
            other.sendall(bytes(100_000))
            connection.sendall(b"so")
            while len(connection.recv(100_000, socket.MSG_PEEK)) < 100_000:
                pass
            after = tcp_info(connection)
    assert before is not None and after is not None
    assert after.path_mtu == 65535 and 0 < after.mss <= after.own_mss <= 65535 and not after.resent and not after.late
    assert 0 < after.sent - before.sent < 20 and 0 < after.received - before.received < 20
    with socket.socket(socket.AF_UNIX) as other:
        assert tcp_info(other) is None


def test_too_few_bytes_tell_nothing_or_less() -> None:
    assert parse_tcp_info(b"") is None and parse_tcp_info(bytes(103)) is None
    words = bytearray(struct.pack("57I", *range(57)))
    words[5] = 1
    assert parse_tcp_info(words) == TcpInfo(mss=4, own_mss=21 + 12, path_mtu=15, resent=25, sent=34, late=56, received=38)
    words[5] = 0
    assert parse_tcp_info(words[:104]) == TcpInfo(mss=4, own_mss=21, path_mtu=15, resent=25)
