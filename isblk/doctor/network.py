"""Names, ports and packets: does a name resolve, does a port answer, how large are the packets on the way (tcp(7), ip(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from isblk.doctor.findings import Report
from isblk.iscsi.names import Portal

RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
SLOW_SECONDS = 1.0
HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}
"""Bytes of IP and TCP headers without options."""
JUMBO = 4000
"""Bytes: an MTU above this was raised on purpose."""
ORDINARY = 1500
_TIMESTAMPS, _TIMESTAMPS_LENGTH = 1, 12
LOST_SHARE = 0.001
"""Of the segments, beyond which it matters."""

# struct tcp_info of linux/tcp.h: where its fields lie. What was added to it later (Linux 5.4 has all of these) may be missing.
_OPTIONS, _MSS, _PATH_MTU, _OWN_MSS, _RESENT, _LENGTH = 5, 16, 60, 84, 100, 104
_SEGMENTS_OUT, _SEGMENTS_IN, _LATE, _LONG_LENGTH = 136, 152, 224, 228
_WORD = struct.Struct("I")


@dataclass(frozen=True)
class TcpInfo:
    """What the kernel knows of a connection, sizes in bytes. `own_mss` is what this side's interface allows.

    Of `sent` segments, `resent` went out once more; of `received` ones with data, `late` came after some that were sent behind them.
    """

    mss: int
    own_mss: int
    path_mtu: int
    resent: int = 0
    sent: int = 0
    late: int = 0
    received: int = 0


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Of a connected socket; None where the kernel does not tell."""
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LONG_LENGTH)
    except OSError:
        return None
    return parse_tcp_info(data)


def parse_tcp_info(data: bytes) -> TcpInfo | None:
    """The bytes of TCP_INFO; None when there are too few."""
    if len(data) < _LENGTH:
        return None

    def word(offset: int) -> int:
        return int(_WORD.unpack_from(data, offset)[0])

    own_mss = word(_OWN_MSS) + (_TIMESTAMPS_LENGTH if data[_OPTIONS] & _TIMESTAMPS else 0)
    counts = (0, 0, 0) if len(data) < _LONG_LENGTH else (word(_SEGMENTS_OUT), word(_LATE), word(_SEGMENTS_IN))
    return TcpInfo(word(_MSS), own_mss, word(_PATH_MTU), word(_RESENT), *counts)


async def resolve(report: Report, portal: Portal, seconds: float = RESOLVE_SECONDS) -> bool:
    """Whether the portal's name has an address."""
    if _is_address(portal.host):
        return True
    began = trio.current_time()
    found = None
    with trio.move_on_after(seconds):
        try:
            found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
        except OSError as error:
            report.say("name-unknown", host=portal.host, reason=error.strerror or error)
            return False
    if found is None:
        report.say("name-late", host=portal.host, seconds=f"{seconds:g}")
        return False
    report.say("name-resolves", host=portal.host, addresses=", ".join(dict.fromkeys(str(each[4][0]) for each in found)))
    took = trio.current_time() - began
    if took > SLOW_SECONDS:
        report.say("name-slow", host=portal.host, seconds=f"{took:.1f}")
    return True


async def answers(report: Report, portal: Portal, seconds: float = CONNECT_SECONDS) -> bool:
    """Whether the portal accepts a connection; says how large packets to it are."""
    began = trio.current_time()
    connected: trio.SocketStream | None = None
    with trio.move_on_after(seconds):
        try:
            connected = await trio.open_tcp_stream(portal.host, portal.port)
        except OSError as error:
            _refused(report, portal, error)
            return False
    if connected is None:
        report.say("port-silent", portal=portal, seconds=f"{seconds:g}")
        return False
    took = trio.current_time() - began
    with connected.socket:
        report.say("port-answers", portal=portal, milliseconds=f"{took * 1000:.1f}")
        data = connected.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LONG_LENGTH)
        packets(report, portal, parse_tcp_info(data), connected.socket.family)
    return True


async def reason_not_reached(portal: Portal, seconds: float = CONNECT_SECONDS) -> str | None:
    """Why a portal does not accept a connection; None when it does."""
    with trio.move_on_after(seconds):
        try:
            connected = await trio.open_tcp_stream(portal.host, portal.port)
        except OSError as error:
            return _words(_cause(error))
        await trio.aclose_forcefully(connected)
        return None
    return f"no answer within {seconds:g} s"


def packets(report: Report, portal: Portal, info: TcpInfo | None, family: int = socket.AF_INET) -> None:
    """Say what fits a packet, and where this side and the way do not agree."""
    if info is None:
        return
    mtu = info.own_mss + HEADERS.get(socket.AddressFamily(family), 40)
    smaller = min(mtu, info.path_mtu) if info.path_mtu else mtu
    data = {"portal": str(portal), "interface_mtu": mtu, "path_mtu": info.path_mtu, "mss": info.mss}
    report.say("packets", data, portal=portal, mtu=smaller, mss=info.mss)
    if info.path_mtu and info.path_mtu < mtu:
        report.say("packets-narrow", portal=portal, path=info.path_mtu, mtu=mtu)
    elif mtu > JUMBO and info.mss < ORDINARY:
        report.say("packets-jumbo-here", portal=portal, mtu=mtu, mss=info.mss)


def losses(report: Report, portal: Portal, info: TcpInfo | None) -> None:
    """Say when too much was lost on the way, either way: what the target had to send again shows here as what came late."""
    if info is None:
        return
    if info.resent > max(1, info.sent * LOST_SHARE):
        report.say("resent", portal=portal, count=info.resent, segments=info.sent)
    if info.late > max(1, info.received * LOST_SHARE):
        report.say("late-segments", portal=portal, count=info.late, segments=info.received)


def _refused(report: Report, portal: Portal, error: OSError) -> None:
    cause = _cause(error)
    if cause.errno == errno.ECONNREFUSED:
        report.say("port-refuses", portal=portal)
    else:
        report.say("port-unreachable", portal=portal, reason=_words(cause), host=portal.host)


def _cause(error: OSError) -> OSError:
    """The first of the errors behind one of trio's, which tries every address."""
    inner: BaseException | None = error.__cause__
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner if isinstance(inner, OSError) else error


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.split("%")[0].strip("[]"))
    except ValueError:
        return False
    return True
