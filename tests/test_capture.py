"""The capture: bytes as TCP segments of a pcapng file, and not one digit of a CHAP response among them."""

from __future__ import annotations

import builtins
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.capture import SEGMENT, Capture, _Blotter
from isblk.errors import UsageError
from isblk.iscsi import pdu

RESPONSE = b"0x0123456789abcdef0123456789abcdef"


class Pair:
    """Two connected sockets, of which one is ours."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_server((host, 0), family=family) as server:
            self.ours = socket.create_connection(server.getsockname()[:2])
            self.theirs, _ = server.accept()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


def segments(path: Path) -> list[Any]:
    """The IP packets of a capture."""
    with path.open("rb") as file:
        reader = dpkt.pcapng.Reader(file)
        assert reader.datalink() == 101
        return [(dpkt.ip6.IP6 if data[0] >> 4 == 6 else dpkt.ip.IP)(data) for _, data in reader]


def login(text: bytes, flags: int = 0) -> bytes:
    return bytes([0x43, flags, 0, 0, 0]) + len(text).to_bytes(3, "big") + bytes(40) + text.ljust(pdu.padded(len(text)), b"\0")


def test_what_went_each_way_with_true_addresses(pair: Pair, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "wire.pcapng")
    tap = capture.tap(pair.ours)
    tap.logged_in()
    tap.sent([b"abc", memoryview(b"defgh"), b"not any more"], 7)
    tap.received(b"answer")
    tap.sent([b"end"], 3)
    capture.close()
    first, second, third = segments(tmp_path / "wire.pcapng")
    assert [packet.data.data for packet in (first, second, third)] == [b"abcdefg", b"answer", b"end"]
    assert (first.data.sport, first.data.dport) == (pair.ours.getsockname()[1], pair.theirs.getsockname()[1])
    assert socket.inet_ntoa(first.src) == "127.0.0.1" and (second.data.sport, second.data.dport) == (first.data.dport, first.data.sport)
    assert [packet.data.seq for packet in (first, third)] == [1, 8]
    assert second.data.seq == 1 and second.data.ack == 8 and third.data.ack == 7
    assert stat.S_IMODE((tmp_path / "wire.pcapng").stat().st_mode) == 0o600


def test_a_large_piece_becomes_segments_that_fit_ip(pair: Pair, tmp_path: Path) -> None:
    capture = Capture(tmp_path / "wire")
    tap = capture.tap(pair.ours)
    tap.logged_in()
    data = bytes(range(256)) * 600
    tap.received(data)
    capture.close()
    found = segments(tmp_path / "wire")
    assert b"".join(packet.data.data for packet in found) == data and len(found) == -(-len(data) // SEGMENT)


def test_ipv6(tmp_path: Path) -> None:
    pair = Pair(socket.AF_INET6)
    capture = Capture(tmp_path / "wire")
    tap = capture.tap(pair.ours)
    tap.logged_in()
    tap.sent([b"six"], 3)
    capture.close()
    pair.close()
    (packet,) = segments(tmp_path / "wire")
    assert packet.data.data == b"six" and packet.src == bytes(15) + b"\1"


@pytest.mark.parametrize("chunk", [1, 7, 10000])
def test_no_response_gets_into_the_file(pair: Pair, tmp_path: Path, chunk: int) -> None:
    """However it comes in pieces, in both directions, and where the text goes on in the next PDU in the middle of it."""
    capture = Capture(tmp_path / "wire")
    tap = capture.tap(pair.ours)
    ours = login(b"CHAP_N=me\0CHAP_R=" + RESPONSE + b"\0X=CHAP_R=kept\0")
    theirs = login(b"CHAP_N=nas\0CHA", pdu.CONTINUE) + login(b"P_R=" + RESPONSE[:9], pdu.CONTINUE) + login(RESPONSE[9:] + b"\0More=1\0")
    for start in range(0, len(ours), chunk):
        tap.sent([ours[start : start + chunk]], chunk)
    for start in range(0, len(theirs), chunk):
        tap.received(theirs[start : start + chunk])
    tap.received(b"begun PDU of full feature")
    tap.logged_in()
    capture.close()
    found = segments(tmp_path / "wire")
    out = b"".join(packet.data.data for packet in found if packet.data.sport == pair.ours.getsockname()[1])
    back = b"".join(packet.data.data for packet in found if packet.data.sport != pair.ours.getsockname()[1])
    assert out == ours.replace(RESPONSE, b"0x" + b"0" * 32)
    hidden = theirs.replace(RESPONSE[:9], b"0x" + b"0" * 7).replace(RESPONSE[9:], b"0" * len(RESPONSE[9:]))
    assert back == hidden + b"begun PDU of full feature"


def test_base64_stays_base64() -> None:
    assert _Blotter().take(login(b"CHAP_R=0bq83vEjRW\0"))[48:66] == b"CHAP_R=0bAAAAAAAA\0"


@given(st.binary(max_size=300), st.integers(1, 64))
def test_any_bytes_come_out_as_many_as_went_in(data: bytes, chunk: int) -> None:
    blotter = _Blotter()
    shown = b"".join(blotter.take(data[start : start + chunk]) for start in range(0, len(data), chunk)) + blotter.rest()
    assert len(shown) == len(data)


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; give --pcap another file"):
        Capture(tmp_path / "missing" / "wire")


@pytest.mark.logs("the capture .* ends here: .*No space left")
def test_a_full_disk_ends_the_capture_and_nothing_else(pair: Pair) -> None:
    capture = Capture(Path("/dev/null"))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    capture._writer.writepkt = full
    tap = capture.tap(pair.ours)
    tap.logged_in()
    tap.sent([b"one"], 3)
    tap.sent([b"two"], 3)
    capture.close()


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    importing = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "dpkt":
            raise ImportError(name)
        return importing(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'isblk\[pcap\]'"):
        Capture(tmp_path / "wire")
