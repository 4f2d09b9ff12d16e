"""What went over the wire, as a pcapng file that Wireshark and tshark take apart; CHAP responses are blotted out (RFC 7143 11.12, 12.1.3).

A user-space initiator has no packets of its own to show: the bytes of each connection are put into made-up TCP segments, in the order they
were sent and received, with true addresses, ports and times. A response to a CHAP challenge would let whoever sees it guess the secret at
leisure, so its digits become zeros, which changes no length. Everything else is as it was, what was read and written included.

Capturing must never hold up or end I/O: when the file cannot be written any more, the log says so once and the capture ends.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isblk.errors import UsageError
from isblk.iscsi import pdu

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

SEGMENT = 60_000
"""Bytes of one made-up TCP segment: an IP packet has room for 65535."""
LINK_TYPE_RAW = 101
"""LINKTYPE_RAW: packets begin with their IP header."""
LOGIN_LIMIT = 1 << 20
"""Bytes of a login that are held until their PDU is whole; a peer that sends more makes no sense."""
_RESPONSE = re.compile(rb"(?<![^\0])CHAP_R=([^\0]*)")


class Capture:
    """A pcapng file that is written as things happen. Raises UsageError where it cannot be made."""

    def __init__(self, path: Path) -> None:
        dpkt = _library()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"the capture {path} cannot be written: {error.strerror}; give --pcap another file") from None
        self.path = path
        self._dpkt = dpkt
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        interface = dpkt.pcapng.InterfaceDescriptionBlockLE(linktype=LINK_TYPE_RAW, snaplen=0)
        self._writer = dpkt.pcapng.Writer(self._file, idb=interface)
        self._identification = 0

    def tap(self, sock: socket.socket) -> Tap:
        """Listen at a connected socket from now on, whose login comes first."""
        return Tap(self, sock.getsockname()[:2], sock.getpeername()[:2])

    def write(self, source: tuple[str, int], target: tuple[str, int], number: int, acknowledged: int, data: bytes) -> None:
        """One segment: `number` and `acknowledged` are its sequence numbers."""
        if self._file.closed:
            return
        dpkt, flags = self._dpkt, self._dpkt.tcp.TH_ACK | self._dpkt.tcp.TH_PUSH
        segment = dpkt.tcp.TCP(
            sport=source[1], dport=target[1], seq=number & 0xFFFFFFFF, ack=acknowledged & 0xFFFFFFFF, flags=flags, win=65535, data=data
        )
        try:
            self._writer.writepkt(bytes(self._packet(source[0], target[0], segment)), time.time())
        except OSError as error:
            log.warning("the capture %s ends here: it cannot be written: %s", self.path, error.strerror)
            self.close()

    def _packet(self, source: str, target: str, segment: Any) -> Any:
        dpkt, addresses = self._dpkt, (ip_address(source.split("%")[0]).packed, ip_address(target.split("%")[0]).packed)
        if len(addresses[0]) == 16:
            return dpkt.ip6.IP6(src=addresses[0], dst=addresses[1], nxt=dpkt.ip.IP_PROTO_TCP, hlim=64, plen=len(segment), data=segment)
        self._identification = (self._identification + 1) & 0xFFFF
        return dpkt.ip.IP(
            src=addresses[0], dst=addresses[1], p=dpkt.ip.IP_PROTO_TCP, ttl=64, id=self._identification, len=20 + len(segment), data=segment
        )

    def close(self) -> None:
        """Write no more; harmless when it is closed."""
        self._file.close()


def _library() -> ModuleType:
    try:
        import dpkt
    except ImportError:
        raise UsageError("--pcap needs the Python package dpkt: install it with pip install 'isblk[pcap]'") from None
    found: ModuleType = dpkt
    return found


class Tap:
    """One connection. What belongs to the login is held until its PDU is whole, so that no response slips through in pieces."""

    def __init__(self, capture: Capture, ours: tuple[str, int], theirs: tuple[str, int]) -> None:
        self._capture = capture
        self._ours = ours
        self._theirs = theirs
        self._numbers = [1, 1]  # what comes next from us, from them
        self._logins: list[_Blotter] | None = [_Blotter(), _Blotter()]

    def sent(self, buffers: Sequence[bytes | memoryview], count: int) -> None:
        """The first `count` bytes of these went out."""
        self._take(0, b"".join(buffers)[:count])

    def received(self, data: bytes | memoryview) -> None:
        """These came in."""
        self._take(1, bytes(data))

    def logged_in(self) -> None:
        """The login is over: nothing has to be blotted out from here on."""
        if self._logins is not None:
            rest = [blotter.rest() for blotter in self._logins]
            self._logins = None
            for way, data in enumerate(rest):
                self._put(way, data)

    def _take(self, way: int, data: bytes) -> None:
        self._put(way, data if self._logins is None else self._logins[way].take(data))

    def _put(self, way: int, data: bytes) -> None:
        source, target = (self._ours, self._theirs) if way == 0 else (self._theirs, self._ours)
        for start in range(0, len(data), SEGMENT):
            piece = data[start : start + SEGMENT]
            self._capture.write(source, target, self._numbers[way], self._numbers[1 - way], piece)
            self._numbers[way] += len(piece)


class _Blotter:
    """Login PDUs of one direction, whole ones only, with the digits of every CHAP_R turned into zeros, also where it spans PDUs (C bit)."""

    def __init__(self) -> None:
        self._held = b""
        self._begun = b""

    def take(self, data: bytes) -> bytes:
        """What may be shown by now."""
        self._held += data
        shown = b""
        while len(self._held) >= pdu.BHS_LENGTH:
            (lengths,) = pdu.LENGTHS.unpack_from(self._held, 4)
            start = pdu.BHS_LENGTH + (lengths >> 24) * 4
            length = lengths & 0xFFFFFF
            end = start + pdu.padded(length)
            if len(self._held) < end and end <= LOGIN_LIMIT:
                break
            whole, self._held = self._held[:end], self._held[end:]
            shown += whole[:start] + self._blot(whole[start : start + length], whole[1]) + whole[start + length :]
        return shown

    def rest(self) -> bytes:
        """What is held when the login is over: the beginning of the next PDU, which is none of a login's."""
        rest, self._held = self._held, b""
        return rest

    def _blot(self, text: bytes, flags: int) -> bytes:
        combined = self._begun + text
        blotted = _RESPONSE.sub(lambda found: b"CHAP_R=" + _zeros(found[1]), combined)[len(self._begun) :]
        # Of a pair that goes on in the next PDU its beginning tells whether it is one of these.
        self._begun = combined[combined.rfind(b"\0") + 1 :][: len(b"CHAP_R=0x")] if flags & pdu.CONTINUE else b""
        return blotted


def _zeros(value: bytes) -> bytes:
    """A binary value (RFC 7143 6.1) of the same length that says nothing; 0x or 0b stays, so that it is still one."""
    kept = 2 if value[:2].lower() in (b"0x", b"0b") else 0
    return value[:kept] + (b"A" if value[:2].lower() == b"0b" else b"0") * (len(value) - kept)
