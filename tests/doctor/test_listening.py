"""What is heard of a login: the keys of both sides, in whatever pieces they come, and none of their secrets."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest

from isblk.doctor.listening import HEARD_LIMIT, SECRET, Conversation, Listener, LoginOnly
from isblk.iscsi import pdu
from isblk.iscsi.framer import frame
from isblk.iscsi.text import encode_pairs


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as found:
        yield found


def login(opcode: int, pairs: Sequence[tuple[str, str]] | bytes, flags: int = 0, status: tuple[int, int] = (0, 0)) -> bytes:
    """A login PDU as it goes over the wire."""
    text = pairs if isinstance(pairs, bytes) else encode_pairs(pairs)
    bhs = bytes((opcode, flags, 0, 0, 0)) + len(text).to_bytes(3, "big") + bytes(28) + bytes(status) + bytes(10)
    assert len(bhs) == pdu.BHS_LENGTH
    return b"".join(bytes(part) for part in frame(bhs, text))


OURS = login(pdu.LOGIN | pdu.IMMEDIATE, [("AuthMethod", "CHAP"), ("CHAP_A", "8,7,5"), ("CHAP_N", "me"), ("CHAP_R", "0x1234")])
THEIRS = login(pdu.LOGIN_RESPONSE, [("CHAP_A", "7"), ("CHAP_I", "9"), ("CHAP_C", "0xabcdef")], status=(2, 1))


@pytest.mark.parametrize("chunk", [1, 7, 48, 10_000])
def test_both_sides_are_heard_in_whatever_pieces(connection: socket.socket, chunk: int) -> None:
    heard = Conversation(connection)
    for start in range(0, len(OURS), chunk):
        heard.sent([OURS[start : start + chunk]], len(OURS[start : start + chunk]))
    for start in range(0, len(THEIRS), chunk):
        heard.received(THEIRS[start : start + chunk])
    assert heard.ours.keys == {"AuthMethod": "CHAP", "CHAP_A": "8,7,5", "CHAP_N": "me", "CHAP_R": SECRET}
    assert heard.theirs.keys == {"CHAP_A": "7", "CHAP_I": SECRET, "CHAP_C": SECRET}
    assert heard.status == (2, 1) and heard.algorithm == 7 and heard.offered == [8, 7, 5]
    assert "1234" not in repr(vars(heard.ours)) and "abcdef" not in repr(vars(heard.theirs))


def test_a_text_that_goes_on_in_the_next_pdu(connection: socket.socket) -> None:
    heard = Conversation(connection)
    heard.received(login(pdu.LOGIN_RESPONSE, b"CHAP_A=7\0CHAP_C=0xab", pdu.CONTINUE))
    assert heard.algorithm is None
    heard.received(login(pdu.LOGIN_RESPONSE, b"cdef\0"))
    assert heard.algorithm == 7 and heard.theirs.keys["CHAP_C"] == SECRET


def test_what_makes_no_sense_is_passed_over(connection: socket.socket) -> None:
    heard = Conversation(connection)
    heard.received(login(pdu.LOGIN_RESPONSE, b"no pair\0"))
    heard.received(login(pdu.NOP_IN, b"CHAP_A=5\0"))
    heard.received(login(pdu.LOGIN_RESPONSE, [("CHAP_A", "12345678")]))
    assert heard.algorithm is None
    heard.received(b"\x3f" + bytes(3) + b"\xff" * 44)
    heard.received(bytes(HEARD_LIMIT + 1))
    assert len(heard.theirs.held) < 100


def test_nothing_is_heard_behind_the_login(connection: socket.socket) -> None:
    heard = Conversation(connection)
    heard.logged_in()
    heard.received(THEIRS)
    assert heard.status is None and not heard.theirs.heard


class Also:
    """Another tap."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def sent(self, buffers: Sequence[bytes | memoryview], count: int) -> None:
        self.events.append(f"sent {count}")

    def received(self, data: bytes | memoryview) -> None:
        self.events.append(f"received {len(data)}")

    def logged_in(self) -> None:
        self.events.append("logged in")


def test_others_hear_the_same_and_one_may_hear_the_login_alone(connection: socket.socket) -> None:
    whole, part = Also(), Also()
    listener = Listener([lambda _sock: whole, lambda _sock: LoginOnly(part)])
    assert listener.last is None
    tap = listener(connection)
    tap.sent([b"abc"], 2)
    tap.received(b"abcd")
    tap.logged_in()
    tap.sent([b"data"], 4)
    tap.received(b"data!")
    tap.logged_in()
    assert part.events == ["sent 2", "received 4", "logged in"]
    assert whole.events == [*part.events, "sent 4", "received 5", "logged in"]
    assert listener.last is tap


def test_the_kernel_is_asked_while_the_connection_is_there(connection: socket.socket) -> None:
    heard = Conversation(connection)
    assert heard.tcp() is not None
    connection.close()
    assert heard.tcp() is None
