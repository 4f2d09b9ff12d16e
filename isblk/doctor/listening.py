"""Hears a login as it goes over the wire, without its secrets: what each side said, turn by turn (RFC 7143 6.3, 11.12, 11.13).

A tap of the connection, for what is to be told of a login that failed is more than its exception says. Responses and challenges of CHAP
are forgotten as they come; that there was one is all that is kept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from isblk.doctor.network import TcpInfo, tcp_info
from isblk.errors import ProtocolError
from isblk.iscsi import pdu
from isblk.iscsi.text import decode_pairs
from isblk.link.connection import Tap

HEARD_LIMIT = 1 << 20
"""Bytes of one direction of a login that are listened to."""
HIDDEN = ("CHAP_R", "CHAP_C", "CHAP_I")
SECRET = "(not shown)"
MakeTap = Callable[[socket.socket], Tap]


@dataclass
class Side:
    """What one side said: its keys in their order, and how far its bytes have been taken apart."""

    keys: dict[str, str] = field(default_factory=dict)
    held: bytes = b""
    text: bytes = b""
    heard: int = 0


class Conversation:
    """One connection, from its first byte; `status` is the class and detail of the last login response (None: none came).

    `also` are other taps that want to hear the same.
    """

    def __init__(self, sock: socket.socket, also: Sequence[Tap] = ()) -> None:
        self.peer = sock.getpeername()[:2]
        self.ours, self.theirs = Side(), Side()
        self.status: tuple[int, int] | None = None
        self.is_over = False
        self._socket = sock
        self._also = also

    def sent(self, buffers: Sequence[bytes | memoryview], count: int) -> None:
        """Bytes went out."""
        for tap in self._also:
            tap.sent(buffers, count)
        if not self.is_over:
            self._take(self.ours, b"".join(buffers)[:count])

    def received(self, data: bytes | memoryview) -> None:
        """Bytes came in."""
        for tap in self._also:
            tap.received(data)
        if not self.is_over:
            self._take(self.theirs, bytes(data))

    def logged_in(self) -> None:
        """The login is over; what follows concerns nobody here."""
        self.is_over = True
        self.ours.held = self.theirs.held = b""
        for tap in self._also:
            tap.logged_in()

    def tcp(self) -> TcpInfo | None:
        """What the kernel knows of the connection; None when it is closed."""
        return tcp_info(self._socket) if self._socket.fileno() >= 0 else None

    @property
    def algorithm(self) -> int | None:
        """The CHAP algorithm that the target chose."""
        chosen = self.theirs.keys.get("CHAP_A", "")
        return int(chosen) if chosen.isdecimal() and len(chosen) < 4 else None

    @property
    def offered(self) -> list[int]:
        """The CHAP algorithms that we offered."""
        return [int(one) for one in self.ours.keys.get("CHAP_A", "").split(",") if one.isdecimal()]

    def _take(self, side: Side, data: bytes) -> None:
        side.heard += len(data)
        if side.heard > HEARD_LIMIT:
            return
        side.held += data
        while len(side.held) >= pdu.BHS_LENGTH:
            (lengths,) = pdu.LENGTHS.unpack_from(side.held, 4)
            start = pdu.BHS_LENGTH + (lengths >> 24) * 4
            end = start + pdu.padded(lengths & 0xFFFFFF)
            if len(side.held) < end:
                return
            whole, side.held = side.held[:end], side.held[end:]
            self._hear(side, whole, whole[start : start + (lengths & 0xFFFFFF)])

    def _hear(self, side: Side, whole: bytes, text: bytes) -> None:
        opcode = whole[0] & pdu.OPCODE_MASK
        if opcode not in (pdu.LOGIN, pdu.LOGIN_RESPONSE):
            return
        if opcode == pdu.LOGIN_RESPONSE:
            self.status = whole[36], whole[37]
        side.text += text
        if whole[1] & pdu.CONTINUE:
            return
        text, side.text = side.text, b""
        try:
            pairs = decode_pairs(text)
        except ProtocolError:
            return  # the login itself says what is wrong with it
        side.keys.update((name, SECRET if name in HIDDEN else value) for name, value in pairs)


class LoginOnly:
    """Lets another tap hear a login, and nothing of what is read and written afterwards."""

    def __init__(self, tap: Tap) -> None:
        self._tap: Tap | None = tap

    def sent(self, buffers: Sequence[bytes | memoryview], count: int) -> None:
        """Bytes went out."""
        if self._tap is not None:
            self._tap.sent(buffers, count)

    def received(self, data: bytes | memoryview) -> None:
        """Bytes came in."""
        if self._tap is not None:
            self._tap.received(data)

    def logged_in(self) -> None:
        """The login is over."""
        if self._tap is not None:
            self._tap.logged_in()
            self._tap = None


class Listener:
    """Makes the taps of one login, which may take several connections: redirects, and the retry with MD5 alone."""

    def __init__(self, also: Sequence[MakeTap] = ()) -> None:
        self.conversations: list[Conversation] = []
        self._also = also

    def __call__(self, sock: socket.socket) -> Conversation:
        """A tap, as link.opening.Access takes it."""
        conversation = Conversation(sock, [make(sock) for make in self._also])
        self.conversations.append(conversation)
        return conversation

    @property
    def last(self) -> Conversation | None:
        """The connection that decided."""
        return self.conversations[-1] if self.conversations else None
