"""Names and places: iqn, eui and naa names, portals, ISIDs and iscsi:// URLs (RFC 7143 4.2.7, 11.12.5, 13.8; RFC 3722).

What a user typed is checked and normalized, and refused with UsageError. What a peer sent is decoded and refused with ProtocolError only
where nothing could be done with it: an odd name must not stop a discovery, so it is carried as it came and escaped when printed.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import stringprep
from dataclasses import dataclass, field
from unicodedata import ucd_3_2_0

from isblk.errors import ProtocolError, UsageError
from isblk.iscsi.text import parse_number, quoted

MAX_NAME_LENGTH = 223
DEFAULT_PORT = 3260
ISID_LENGTH = 6

_IQN = re.compile(r"iqn\.[0-9]{4}-(?:0[1-9]|1[0-2])\.[^:.]+(?:\.[^:.]+)*(?::.*)?\Z", re.ASCII)
_EUI = re.compile(r"eui\.[0-9a-f]{16}\Z", re.ASCII)
_NAA = re.compile(r"naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})\Z", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z", re.ASCII)
_LUN = re.compile(r"[0-9]{1,20}\Z", re.ASCII)

# RFC 3722 6: the tables of RFC 3454, and of ASCII everything but letters, digits, dash, dot and colon.
_PROHIBITED_TABLES = (
    stringprep.in_table_c11_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
_ALLOWED_ASCII = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.:")
_IDEOGRAPHIC_FULL_STOP = "\u3002"


def normalize_name(text: str) -> str:
    """The normal form of an iSCSI name, lower case, to be compared as bytes. Raises UsageError (RFC 7143 4.2.7, RFC 3722)."""
    name = _stringprep(text)
    if len(name.encode()) > MAX_NAME_LENGTH:
        raise UsageError(f"the iSCSI name {quoted(text)} is longer than {MAX_NAME_LENGTH} bytes (RFC 7143 4.2.7)")
    if not (_IQN.match(name) or _EUI.match(name) or _NAA.match(name)):
        raise UsageError(
            f"not an iSCSI name: {quoted(text)}; it looks like iqn.2001-04.com.example:disk1, eui.<16 hex digits> "
            "or naa.<16 or 32 hex digits>"
        )
    return name


def target_name(text: str) -> str:
    """The name of somebody else's target: normalized, but with the underscores that some storage systems put there. Raises UsageError.

    RFC 3722 has no underscore; refusing it would only make such a target unreachable.
    """
    name = normalize_name(text.replace("_", "-"))
    return name if "_" not in text else text.strip()


def is_normal_name(text: str) -> bool:
    """Whether `text` is an iSCSI name in its normal form."""
    try:
        return normalize_name(text) == text
    except UsageError:
        return False


def decode_name(text: str) -> str:
    """A name that a peer sent, however odd, for printing with `printable`. Raises ProtocolError if it is empty or too long to be one."""
    if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= MAX_NAME_LENGTH:
        raise ProtocolError(f"the peer sent a name that is empty or longer than {MAX_NAME_LENGTH} bytes: {quoted(text)}")
    return text


def printable(text: str) -> str:
    """`text` on one line and without anything that drives a terminal: unprintable characters and spaces escaped, the rest as it is."""
    return "".join(one if one.isprintable() and one != " " else _escaped(one) for one in text)


@dataclass(frozen=True)
class Portal:
    """Where a target listens: host (DNS name, IPv4, IPv6 without brackets), TCP port, and its portal group where it is known."""

    host: str
    port: int = DEFAULT_PORT
    tpgt: int | None = None

    @classmethod
    def parse(cls, text: str) -> Portal:
        """HOST, HOST:PORT, [V6]:PORT, a bare V6 address, each with ',TPGT' where wanted. Raises UsageError."""
        try:
            return cls._parse(text)
        except ProtocolError as error:
            raise UsageError(f"not a portal: {quoted(text)}: {error}; it looks like HOST, HOST:PORT or [IPV6]:PORT") from error

    @classmethod
    def from_target_address(cls, text: str) -> Portal:
        """The value of a TargetAddress key (RFC 7143 13.8). Raises ProtocolError."""
        try:
            return cls._parse(text)
        except ProtocolError as error:
            raise ProtocolError(f"the target sent an address that is none: {quoted(text)}: {error} (RFC 7143 13.8)") from error

    @classmethod
    def _parse(cls, text: str) -> Portal:
        address, comma, tag = text.partition(",")
        host, port = _split_address(address)
        return cls(
            _check_host(host),
            parse_number(port, 1, 65535) if port is not None else DEFAULT_PORT,
            parse_number(tag, 0, 65535) if comma else None,
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + ("" if self.tpgt is None else f",{self.tpgt}")


@dataclass(frozen=True)
class TargetUrl:
    """The parts of iscsi://[USER@]HOST[:PORT]/NAME[/LUN]; `name` is normalized, `spelled` as it stood there."""

    portal: Portal
    name: str
    lun: int | None = None
    user: str | None = None
    spelled: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user is not None else ""
        lun = f"/{self.lun}" if self.lun is not None else ""
        return f"iscsi://{user}{self.portal}/{self.name}{lun}"


def parse_target_url(text: str) -> TargetUrl:
    """Parse iscsi://[USER@]HOST[:PORT]/NAME[/LUN]. A password in it is refused: arguments are public. Raises UsageError."""
    scheme, separator, rest = text.partition("://")
    authority, _, path = rest.partition("/")
    user, at, place = authority.rpartition("@")
    # Before anything that could quote the text: what is in front of the '@' may hold a secret.
    if at and (not user or set(user) & set("%:@")):
        raise UsageError("a URL must not hold a secret, every user of the machine can read it: give the user alone, the secret in a file")
    if not separator or scheme.lower() != "iscsi" or not place or not path or "," in place:
        raise UsageError("not a target URL: it looks like iscsi://[USER@]HOST[:PORT]/NAME[/LUN]")
    spelled, slash, lun = path.partition("/")
    if slash and (not _LUN.match(lun) or int(lun) >= 2**64):
        raise UsageError(f"not a LUN at the end of the URL: {quoted(lun)}; it is a number such as 0 or 1")
    return TargetUrl(Portal.parse(place), target_name(spelled), int(lun) if slash else None, user if at else None, spelled)


@dataclass(frozen=True)
class Isid:
    """The initiator's part of a session's identity: 6 bytes, of which the first two bits say how the rest is made (RFC 7143 11.12.5)."""

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != ISID_LENGTH or self.value[0] >> 6 == 3:
            raise UsageError(f"not an ISID: {self.value.hex()!r}; it is 6 bytes of format 00b, 01b or 10b (RFC 7143 11.12.5)")

    @classmethod
    def from_random(cls, random: int, qualifier: int = 0) -> Isid:
        """Format 10b: a random number of 24 bits, kept by the host, and a qualifier of 16 bits, such as the path slot."""
        return cls(b"\x80" + random.to_bytes(3, "big") + qualifier.to_bytes(2, "big"))

    @classmethod
    def from_oui(cls, oui: int, qualifier: int = 0) -> Isid:
        """Format 00b: an OUI of 22 bits (without its I/G and U/L bits) and a qualifier of 24 bits."""
        if oui >> 22:
            raise OverflowError("an OUI in an ISID has 22 bits")
        return cls(oui.to_bytes(3, "big") + qualifier.to_bytes(3, "big"))

    @classmethod
    def from_enterprise_number(cls, number: int, qualifier: int = 0) -> Isid:
        """Format 01b: an IANA enterprise number of 24 bits and a qualifier of 16 bits."""
        return cls(b"\x40" + number.to_bytes(3, "big") + qualifier.to_bytes(2, "big"))

    @classmethod
    def parse(cls, text: str) -> Isid:
        """Twelve hex digits, 0x in front or not. Raises UsageError."""
        digits = text.removeprefix("0x")
        if not re.fullmatch(r"[0-9A-Fa-f]{12}", digits, re.ASCII):
            raise UsageError(f"not an ISID: {quoted(text)}; it is twelve hex digits (RFC 7143 11.12.5)")
        return cls(bytes.fromhex(digits))

    def __bytes__(self) -> bytes:
        return self.value

    def __str__(self) -> str:
        return self.value.hex()


def new_random() -> int:
    """24 random bits for `Isid.from_random`, to be made once on a host and kept."""
    return secrets.randbits(24)


def _escaped(one: str) -> str:
    return f"\\x{ord(one):02x}" if one < "\x80" else one.encode("unicode_escape").decode()


def _stringprep(text: str) -> str:
    """The profile of RFC 3722: map (B.1, B.2), normalize (NFKC), prohibit, check directions, refuse what Unicode 3.2 did not know."""
    mapped = "".join(stringprep.map_table_b2(one) for one in text if not stringprep.in_table_b1(one))
    name: str = ucd_3_2_0.normalize("NFKC", mapped)
    for one in name:
        if _prohibited(one):
            raise UsageError(f"the character {quoted(one)} is not allowed in an iSCSI name: {quoted(text)} (RFC 3722)")
    if any(map(stringprep.in_table_d1, name)) and not _right_to_left(name):
        raise UsageError(f"the iSCSI name {quoted(text)} mixes writing directions (RFC 3722 5)")
    return name


def _prohibited(one: str) -> bool:
    if one < "\x80":
        return one not in _ALLOWED_ASCII
    return one == _IDEOGRAPHIC_FULL_STOP or stringprep.in_table_a1(one) or any(table(one) for table in _PROHIBITED_TABLES)


def _right_to_left(name: str) -> bool:
    """RFC 3454 6: right-to-left text has no left-to-right character, and begins and ends right-to-left."""
    ends = stringprep.in_table_d1(name[0]) and stringprep.in_table_d1(name[-1])
    return ends and not any(map(stringprep.in_table_d2, name))


def _split_address(address: str) -> tuple[str, str | None]:
    """Host and port, in brackets or not; more than one colon without brackets is an IPv6 address without a port."""
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise ProtocolError("brackets belong around an IPv6 address, a port behind them")
        return host, rest[1:] if rest else None
    if address.count(":") == 1:
        host, _, port = address.partition(":")
        return host, port
    return address, None


def _check_host(host: str) -> str:
    """The host in one spelling: addresses as the standard library writes them, names in lower case."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    # A last label of digits alone is a mistyped IPv4 address, which resolvers guess at.
    if len(host) > 253 or not all(map(_LABEL.match, labels)) or labels[-1].isdigit():
        raise ProtocolError("neither an address nor a host name")
    return host.lower()
