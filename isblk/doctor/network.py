"""Names, ports and packets: does a name resolve, does a port answer, how large are the packets on the way (tcp(7), ip(7))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping
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
RESENT_SHARE = 0.001
"""Of the segments, beyond which it matters."""

# struct tcp_info of linux/tcp.h: eight bytes of flags, the sixth of them the options in use, then words.
_TCP_INFO = struct.Struct("5xB2x24I")
_WORDS = ("rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets", "last_data_sent", "last_ack_sent")
_MORE = ("last_data_recv", "last_ack_recv", "pmtu", "rcv_ssthresh", "rtt", "rttvar", "snd_ssthresh", "snd_cwnd", "advmss", "reordering")
_LAST = ("rcv_rtt", "rcv_space", "total_retrans")


@dataclass(frozen=True)
class TcpInfo:
    """What the kernel knows of a connection, sizes in bytes. `own_mss` is what this side's interface allows."""

    mss: int
    own_mss: int
    path_mtu: int
    resent: int


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Of a connected socket; None where the kernel does not tell."""
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return None
    return parse_tcp_info(data)


def parse_tcp_info(data: bytes) -> TcpInfo | None:
    """The bytes of TCP_INFO; None when there are too few."""
    if len(data) < _TCP_INFO.size:
        return None
    options, *values = _TCP_INFO.unpack_from(data)
    words: Mapping[str, int] = dict(zip((*_WORDS, *_MORE, *_LAST), values, strict=True))
    own_mss = words["advmss"] + (_TIMESTAMPS_LENGTH if options & _TIMESTAMPS else 0)
    return TcpInfo(mss=words["snd_mss"], own_mss=own_mss, path_mtu=words["pmtu"], resent=words["total_retrans"])


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
        data = connected.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
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
    report.say("packets", portal=portal, mtu=min(mtu, info.path_mtu) if info.path_mtu else mtu, mss=info.mss)
    if info.path_mtu and info.path_mtu < mtu:
        report.say("packets-narrow", portal=portal, path=info.path_mtu, mtu=mtu)
    elif mtu > JUMBO and info.mss < ORDINARY:
        report.say("packets-jumbo-here", portal=portal, mtu=mtu, mss=info.mss)


def resent(report: Report, portal: Portal, info: TcpInfo | None, received: int) -> None:
    """Say when too much was lost on the way, of a connection that received so many bytes.

    The kernel counts what this side had to send again; requests are small, so their number stands for that of what it sent.
    """
    if info is None or not info.mss:
        return
    segments = max(1, received // info.mss)
    if info.resent > max(1, segments * RESENT_SHARE):
        report.say("resent", portal=portal, resent=info.resent, segments=segments)


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
