"""CHAP: the arithmetic of both sides, its binary values, secrets and challenges (RFC 7143 9.2.1, 12.1.3; RFC 1994; IANA PPP algorithms).

Nothing here prints, compares or keeps a secret in a way that shows it: `Credentials` hides it, comparison takes constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from isblk.errors import ProtocolError, UsageError

MAX_BINARY_LENGTH = 1024
MIN_SECRET_LENGTH = 12
CHALLENGE_LENGTH = 32
_REMEMBERED = 4096

_HEX = re.compile(r"0[xX]((?:[0-9A-Fa-f]{2})+)\Z", re.ASCII)
_BASE64 = re.compile(r"0[bB]([0-9A-Za-z+/]+={0,2})\Z", re.ASCII)


class Algorithm(IntEnum):
    """CHAP_A as registered with IANA. tgt computes SHA-1 for 7: the caller's one retry with MD5 alone is for that."""

    MD5 = 5
    SHA1 = 6
    SHA256 = 7
    SHA3_256 = 8


STRONGEST_FIRST = (Algorithm.SHA3_256, Algorithm.SHA256, Algorithm.SHA1, Algorithm.MD5)
MD5_ALONE = (Algorithm.MD5,)

_HASHES = {Algorithm.MD5: "md5", Algorithm.SHA1: "sha1", Algorithm.SHA256: "sha256", Algorithm.SHA3_256: "sha3_256"}


@dataclass(frozen=True)
class Credentials:
    """A CHAP name and its secret (at least 96 bits, RFC 7143 9.2.1). Raises UsageError."""

    name: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        try:
            encoded = self.name.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the CHAP name is not text in UTF-8") from error
        if not encoded or len(encoded) > 255 or b"\0" in encoded:
            raise UsageError("a CHAP name has 1 to 255 bytes and no NUL")
        if not MIN_SECRET_LENGTH <= len(self.secret) <= MAX_BINARY_LENGTH:
            raise UsageError(
                f"the CHAP secret of {self.name!r} has {len(self.secret)} bytes: it needs {MIN_SECRET_LENGTH} (96 bits) at least and "
                f"{MAX_BINARY_LENGTH} at most; set a longer one on both sides (RFC 7143 9.2.1)"
            )


def check_directions(credentials: Credentials | None, mutual: Credentials | None) -> None:
    """Refuse a configuration whose two directions cannot be safe: for use at load. Raises UsageError (RFC 7143 9.2.1)."""
    if mutual is None:
        return
    if credentials is None:
        raise UsageError("mutual CHAP needs the initiator's own name and secret too")
    if hmac.compare_digest(credentials.secret, mutual.secret):
        raise UsageError("the CHAP secrets of initiator and target are equal: they must differ (RFC 7143 9.2.1)")


def available(algorithms: Iterable[int]) -> tuple[Algorithm, ...]:
    """Those of `algorithms`, in their order, that this machine can compute (FIPS mode lacks MD5). Raises UsageError when none is left."""
    usable = tuple(Algorithm(number) for number in algorithms if _usable(number))
    if not usable:
        raise UsageError("none of the CHAP algorithms asked for can be computed on this machine (FIPS mode forbids MD5)")
    return usable


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """CHAP_R: hash(identifier byte, secret, challenge). Raises UsageError where the machine forbids the hash (FIPS)."""
    name = _HASHES[Algorithm(algorithm)]
    try:
        digest = hashlib.new(name, usedforsecurity=True)
    except ValueError as error:
        raise UsageError(f"{name} is not available on this machine (FIPS mode); use another CHAP algorithm on both sides") from error
    digest.update(bytes((identifier,)) + secret + challenge)
    return digest.digest()


def verified(received: bytes, algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bool:
    """Whether `received` is the response of one who knows `secret`. Asked with our own secret, it finds a peer that mirrors us."""
    return hmac.compare_digest(received, response(algorithm, identifier, secret, challenge))


def encode_binary(data: bytes) -> str:
    """A binary-value in hex."""
    return "0x" + data.hex()


def decode_binary(text: str) -> bytes:
    """A binary-value of 1 to 1024 bytes, hex or base64, strict: whole bytes, canonical padding. Raises ProtocolError."""
    if len(text) > 2 + 2 * MAX_BINARY_LENGTH:
        raise ProtocolError(f"a binary value of more than {MAX_BINARY_LENGTH} bytes (RFC 7143 12.1.3)")
    if match := _HEX.match(text):
        return bytes.fromhex(match[1])
    if match := _BASE64.match(text):
        return _decode_base64(match[1])
    raise ProtocolError("a binary value is neither whole bytes of 0x hex nor 0b base64 (RFC 7143 6.1)")


def new_identifier() -> int:
    """CHAP_I for a challenge of ours: one random byte."""
    return secrets.randbelow(256)


class Challenges:
    """The challenges that one role (all initiator sessions, or all connections of a target) has sent in this process.

    One that comes back is a reflection attack, on whichever connection (RFC 7143 9.2.1). The last few thousand are remembered instead
    of tracking which are outstanding: a login that is cut off then leaks nothing, and none is ever sent twice. A process that is both
    initiator and target has one for each role, else it would see its own target's challenges as reflected.
    """

    def __init__(self) -> None:
        self._sent: OrderedDict[bytes, None] = OrderedDict()

    def issue(self, length: int = CHALLENGE_LENGTH) -> bytes:
        """A new random challenge of `length` bytes, remembered."""
        challenge = secrets.token_bytes(length)
        while challenge in self._sent:
            challenge = secrets.token_bytes(length)
        self._sent[challenge] = None
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
        return challenge

    def reflected(self, challenge: bytes) -> bool:
        """Whether a peer's challenge is one that we sent."""
        return challenge in self._sent

    def __repr__(self) -> str:
        return f"<Challenges {len(self._sent)} remembered>"


def _usable(number: int) -> bool:
    try:
        hashlib.new(_HASHES[Algorithm(number)], usedforsecurity=True)
    except ValueError:
        return False
    return True


def _decode_base64(digits: str) -> bytes:
    try:
        data = base64.b64decode(digits, validate=True)
    except binascii.Error as error:
        raise ProtocolError("a binary value is not base64 (RFC 4648)") from error
    # Stray bits behind the last byte: two texts for one value are one too many for a challenge.
    if base64.b64encode(data).decode() != digits or not 1 <= len(data) <= MAX_BINARY_LENGTH:
        raise ProtocolError("a binary value is not canonical base64 of 1 to 1024 bytes (RFC 4648)")
    return data
