"""What a target is made of: its name, portals, logical units, credentials and negotiable values. Nothing here opens or listens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from isblk.errors import ProtocolError, UsageError
from isblk.iscsi.chap import Credentials
from isblk.iscsi.keys import KEYS

DEFAULT_NAME = "iqn.2026-11.invalid.isblk:target"
DEFAULT_ALGORITHMS = (5, 6, 7, 8)


class Addressing(Enum):
    """How REPORT LUNS writes a LUN down (SAM-5 4.7); every method is accepted in a command, whichever is reported."""

    NATURAL = "natural"
    """Peripheral device addressing below 256, flat space above, extended flat space from 16384."""
    FLAT = "flat"
    EXTENDED = "extended"


class AccessState(Enum):
    """Asymmetric access states of a portal group (SPC-4 5.15.2); the value is the code in REPORT TARGET PORT GROUPS."""

    OPTIMIZED = 0x0
    NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    TRANSITIONING = 0xF


class Reinstatement(Enum):
    """What becomes of an initiator port's old session, and of commands of it that its unit still works on, when it logs in again.

    RFC 7143 6.3.5 asks for TERMINATE; the others are what targets do, for tests of initiators. In all but TERMINATE a command that
    `Node.hold` keeps outlives its connection, and takes effect when it is released unless task management has aborted it.
    """

    TERMINATE = "terminate"
    """The old session ends with all its commands, and the login is answered."""
    WAIT = "wait"
    """The old session ends, and the login is answered when the last of its commands has ended (as LIO)."""
    AT_ONCE = "at-once"
    """The old session ends and the login is answered, whatever the unit still works on (as tgt)."""
    REFUSE = "refuse"
    """The login is refused while the old session, or a command of it, is there."""


@dataclass(frozen=True)
class LunConfig:
    """One logical unit. `path` None is memory; `size` in bytes creates a missing file (None: the size it has). Block sizes in bytes.

    `thin` offers UNMAP, WRITE SAME with UNMAP and GET LBA STATUS. `write_cache` is WCE: writes without FUA are lost by a crash before
    SYNCHRONIZE CACHE. `max_transfer` in bytes bounds one READ or WRITE (VPD B0); `cache_limit` in bytes is where the cache destages itself.
    """

    number: int
    path: str | None = None
    size: int | None = None
    block_size: int = 512
    physical_block_size: int = 4096
    read_only: bool = False
    thin: bool = True
    write_cache: bool = True
    device_type: int = 0
    max_transfer: int = 16 << 20
    cache_limit: int = 64 << 20
    vendor: str = "ISBLK"
    product: str = "VIRTUAL-DISK"
    fresh_attention: tuple[int, int] | None = (0x29, 0x00)
    """(ASC, ASCQ) of the unit attention that each new nexus finds; None for none."""


@dataclass(frozen=True)
class Redirect:
    """A login that is sent elsewhere (RFC 7143 11.13.5): `address` as in TargetAddress, '[v6]:port' or 'host:port', without a tag."""

    address: str
    permanent: bool = False


@dataclass(frozen=True)
class PortalConfig:
    """Where to listen. Port 0 takes a free one. `announced` is told in SendTargets instead of the address bound (a target behind NAT)."""

    host: str = "127.0.0.1"
    port: int = 3260
    tpgt: int = 1
    redirect: Redirect | None = None
    announced: str | None = None


@dataclass(frozen=True)
class Offer:
    """The target's side of every negotiation (RFC 7143 13). Lengths in bytes, times in seconds.

    `header_digest` and `data_digest` list what is acceptable. `window` is the number of commands let in at once, `propose` makes the
    target propose its own operational values when the initiator did not (as LIO does). `login_chunk` bounds the text bytes of one login
    answer, so that small values force continuation by the C bit. `text_chunk` does the same for SendTargets, by F=0 and a TTT at whole
    pairs, or with `text_by_c_bit` anywhere. `max_recv_data_segment_length` None is not declared (as tgt), and RFC 7143's 8192 holds.
    `max_connections` is answered, but a session has one connection here.
    """

    header_digest: tuple[str, ...] = ("None", "CRC32C")
    data_digest: tuple[str, ...] = ("None", "CRC32C")
    max_recv_data_segment_length: int | None = 262144
    max_burst_length: int = 16776192
    first_burst_length: int = 262144
    initial_r2t: bool = False
    immediate_data: bool = True
    max_outstanding_r2t: int = 8
    max_connections: int = 1
    default_time2wait: int = 2
    default_time2retain: int = 0
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    window: int = 128
    collapsed_status: bool = True
    propose: bool = False
    initial_stat_sn: int = 1
    login_chunk: int = 8192
    text_chunk: int = 8192
    text_by_c_bit: bool = False


@dataclass(frozen=True)
class TargetConfig:
    """One target: one name, any number of portals in portal groups, the same logical units through all of them.

    `credentials` is what an initiator must prove, `mutual` what the target proves when asked (only ever together with `credentials`).
    `discovery_auth` demands the same of discovery sessions. `lun_reset` False: LOGICAL UNIT RESET is not supported.
    """

    name: str = DEFAULT_NAME
    alias: str = ""
    portals: tuple[PortalConfig, ...] = (PortalConfig(),)
    luns: tuple[LunConfig, ...] = ()
    credentials: Credentials | None = None
    mutual: Credentials | None = None
    chap_algorithms: tuple[int, ...] = DEFAULT_ALGORITHMS
    discovery_auth: bool = False
    addressing: Addressing = Addressing.NATURAL
    offer: Offer = field(default_factory=Offer)
    reinstatement: Reinstatement = Reinstatement.TERMINATE
    lun_reset: bool = True


_OFFER_FIELDS = {
    "HeaderDigest": "header_digest",
    "DataDigest": "data_digest",
    "MaxRecvDataSegmentLength": "max_recv_data_segment_length",
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "InitialR2T": "initial_r2t",
    "ImmediateData": "immediate_data",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "DefaultTime2Wait": "default_time2wait",
    "DefaultTime2Retain": "default_time2retain",
}


def offer_from_keys(pairs: Iterable[tuple[str, str]]) -> Offer:
    """An Offer from keys of RFC 7143 13 as a person writes them (digests as a list). Raises UsageError."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in _OFFER_FIELDS:
            raise UsageError(f"{name!r} is no value of the target that can be set: there are {', '.join(_OFFER_FIELDS)}")
        key = KEYS[name]
        try:
            checked = [key.check(item) for item in text.split(",")] if name.endswith("Digest") else [key.check(text)]
        except ProtocolError as error:
            raise UsageError(f"{name}={text} cannot be: it is out of range (RFC 7143 13)") from error
        values[_OFFER_FIELDS[name]] = _from_text(name, checked)
    offer = Offer(**values)
    if offer.first_burst_length > offer.max_burst_length:
        raise UsageError("FirstBurstLength cannot be above MaxBurstLength (RFC 7143 13.14): set both")
    return offer


def _from_text(name: str, checked: list[str]) -> Any:
    if name.endswith("Digest"):
        return tuple(checked)
    if checked[0] in ("Yes", "No"):
        return checked[0] == "Yes"
    return int(checked[0])
