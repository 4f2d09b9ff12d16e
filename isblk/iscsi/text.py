"""Text of Login and Text PDUs: key=value pairs to and from bytes, continuation, and the simple values (RFC 7143 6.1).

Keys come back as they are written, in their order, repeated ones included: in an answer to SendTargets repetition is meaning, in a
negotiation it is an error, so refusing it is a function of its own (`unique_pairs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from isblk.errors import ProtocolError

MAX_KEY_LENGTH = 63
MAX_VALUE_LENGTH = 255
MAX_TEXT_LENGTH = 65536
MAX_TEXT_PDUS = 64
CHUNK_LENGTH = 8192

# Binary of up to 1024 bytes, in hex: "0x" and two digits a byte (RFC 7143 12.1.3).
LONG_VALUES = {"CHAP_C": 2 + 2 * 1024, "CHAP_R": 2 + 2 * 1024}

# A standard-label, loosened for two keys that break their own rule: X#NodeArchitecture and iSCSIProtocolLevel.
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}\Z", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,19})\Z", re.ASCII)
_HEX = re.compile(r"0[xX][0-9A-Fa-f]+\Z", re.ASCII)

Pairs = list[tuple[str, str]]


def quoted(value: str, limit: int = 80) -> str:
    """A peer's text in a form that is safe to print: quoted, everything unprintable escaped, cut at `limit` characters."""
    cut = value if len(value) <= limit else value[:limit] + "..."
    return repr(cut)


def encode_pairs(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Encode pairs, each ended by NUL, the last too. Raises ValueError for a key or value that cannot be sent."""
    out = bytearray()
    for key, value in pairs:
        encoded = value.encode()
        if not _KEY.match(key):
            raise ValueError(f"not a key: {key!r}")
        if b"\0" in encoded or _longest_item(encoded) > _value_limit(key):
            raise ValueError(f"the value of {key} cannot be sent: {len(encoded)} bytes")
        out += key.encode() + b"=" + encoded + b"\0"
    return bytes(out)


def decode_pairs(data: bytes | bytearray | memoryview) -> Pairs:
    """Decode one whole logical text data segment to the ordered list of its pairs. Raises ProtocolError.

    Empty pairs at the very end (padding counted into the length) are let pass; a missing last NUL is not: it means that text was cut.
    """
    raw = bytes(data)
    if not raw:
        return []
    if raw[-1] != 0:
        raise ProtocolError("the peer's text does not end with NUL (RFC 7143 6.1)")
    return [_decode_pair(item) for item in raw.rstrip(b"\0").split(b"\0")] if raw.strip(b"\0") else []


def unique_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs of a negotiation by key; a key declared twice is a ProtocolError (RFC 7143 6.3)."""
    unique: dict[str, str] = {}
    for key, value in pairs:
        if key in unique:
            raise ProtocolError(f"the peer declared the key {key} twice in one negotiation (RFC 7143 6.3)")
        unique[key] = value
    return unique


def split_text(data: bytes, limit: int = CHUNK_LENGTH) -> list[bytes]:
    """Cut encoded text into data segments of at most `limit` bytes, the C bit on all but the last; no text is one empty segment."""
    return [data[start : start + limit] for start in range(0, len(data), limit)] or [b""]


class TextAssembler:
    """Text that arrives over several PDUs (C bit, RFC 7143 6.1): one assembler a negotiation, bounded in bytes and PDUs over its life."""

    def __init__(self, max_length: int = MAX_TEXT_LENGTH, max_pdus: int = MAX_TEXT_PDUS) -> None:
        self._max_length = max_length
        self._max_pdus = max_pdus
        self._pending = bytearray()
        self.length = 0
        self.pdus = 0

    def add(self, data: bytes | bytearray | memoryview, more: bool) -> Pairs | None:
        """Take one data segment; None while `more` (the C bit) is set, then the pairs. Raises ProtocolError."""
        self.length += len(data)
        self.pdus += 1
        if self.length > self._max_length or self.pdus > self._max_pdus:
            raise ProtocolError(f"the peer's text does not end: more than {self._max_length} bytes or {self._max_pdus} PDUs")
        self._pending += data
        if more:
            return None
        whole, self._pending = self._pending, bytearray()
        return decode_pairs(whole)

    def __repr__(self) -> str:
        return f"<TextAssembler {self.length} bytes in {self.pdus} PDUs, {len(self._pending)} pending>"


def parse_number(text: str, low: int = 0, high: int = 2**64 - 1) -> int:
    """A numerical-value: decimal without leading zeros, or 0x hex, within `low` and `high`. Raises ProtocolError."""
    if _DECIMAL.match(text):
        number = int(text)
    elif _HEX.match(text):
        number = int(text[2:], 16)
    else:
        raise ProtocolError(f"not a number: {quoted(text)} (RFC 7143 6.1)")
    if not low <= number <= high:
        raise ProtocolError(f"the number {number} is not within {low} to {high}")
    return number


def parse_range(text: str, low: int = 0, high: int = 2**64 - 1) -> tuple[int, int]:
    """A numerical-range, 'LOW~HIGH'. Raises ProtocolError."""
    left, tilde, right = text.partition("~")
    if not tilde:
        raise ProtocolError(f"not a range: {quoted(text)} (RFC 7143 6.1)")
    bounds = parse_number(left, low, high), parse_number(right, low, high)
    if bounds[1] < bounds[0]:
        raise ProtocolError(f"the range {quoted(text)} ends below its start (RFC 7143 6.1)")
    return bounds


def parse_boolean(text: str) -> bool:
    """A boolean-value: exactly 'Yes' or 'No'. Raises ProtocolError."""
    if text not in ("Yes", "No"):
        raise ProtocolError(f"neither Yes nor No: {quoted(text)} (RFC 7143 6.1)")
    return text == "Yes"


def format_boolean(value: bool) -> str:
    """The boolean-value of `value`."""
    return "Yes" if value else "No"


def parse_list(text: str) -> list[str]:
    """A list-of-values: at least one item, none empty. Raises ProtocolError."""
    items = text.split(",")
    if not all(items):
        raise ProtocolError(f"a list with an empty item: {quoted(text)} (RFC 7143 6.1)")
    return items


def format_list(items: Sequence[str]) -> str:
    """The list-of-values of `items`, in order of preference."""
    return ",".join(items)


def _value_limit(key: str) -> int:
    return LONG_VALUES.get(key, MAX_VALUE_LENGTH)


def _longest_item(value: bytes) -> int:
    """The limit of 255 bytes is one of simple values, so each item of a list has its own (RFC 7143 6.1)."""
    return max(map(len, value.split(b",")))


def _decode_pair(item: bytes) -> tuple[str, str]:
    raw_key, equals, raw_value = item.partition(b"=")
    key = raw_key.decode("ascii", "backslashreplace")
    if not equals or not _KEY.match(key):
        raise ProtocolError(f"not a key=value pair: {quoted(item.decode('ascii', 'backslashreplace'))} (RFC 7143 6.1)")
    if _longest_item(raw_value) > _value_limit(key):
        raise ProtocolError(f"the value of {key} is too long: {len(raw_value)} bytes (RFC 7143 6.1)")
    # Refusing what is not UTF-8 was rejected: an alias in Latin-1 would make its target unreachable. A backslash is in no legal name.
    return key, raw_value.decode("utf-8", "backslashreplace")
