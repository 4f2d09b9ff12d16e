"""The server's side of the fixed newstyle handshake: bytes in, replies out, until an export is chosen (NBD protocol, Handshake).

Theory of operation. `receive` takes whatever came from the socket; `outgoing` is what must be sent. An option's data is collected only up
to OPTION_LIMIT, longer data is skipped as it comes; nothing is allocated for a length that a client merely states. When `phase` becomes
STARTTLS the caller sends what is outgoing, upgrades the connection and calls `secured`, which forgets everything negotiated before; plain
bytes that came behind STARTTLS end the session, for they would be taken for the client's after the upgrade. When it becomes TRANSMISSION,
`agreed` says on what, and `rest` holds what came behind it.

What ends a session here is ProtocolError; it says why, and the client is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from isblk.errors import ProtocolError
from isblk.export import nbdwire as wire
from isblk.export.nbdwire import HandshakeFlag, Info, Option, Reply, TransmissionFlag, option_reply

OPTION_LIMIT = 64 << 10
"""Bytes of one option's data that are looked at: a name of 4096 and many queries."""
MOST_OPTIONS = 1024
"""Options of one handshake."""
PREFERRED_LIMIT = 1 << 20
"""Bytes of the largest preferred block size told: it is a hint, and clients pad to it."""

GREETING = wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class Phase(Enum):
    """Where a handshake is."""

    FLAGS = "flags"
    OPTION = "option"
    DATA = "data"
    SKIP = "skip"
    STARTTLS = "starttls"
    TRANSMISSION = "transmission"
    ENDED = "ended"


class Tls(Enum):
    """What the server does about TLS (the specification's NOTLS, SELECTIVETLS and FORCEDTLS)."""

    NONE = "none"
    OFFERED = "offered"
    REQUIRED = "required"


@dataclass(frozen=True)
class Offer:
    """An export as it is shown now: `size` and block sizes in bytes, transmission `flags` without what is negotiated."""

    name: str
    description: str
    size: int
    flags: TransmissionFlag
    minimum_block: int = 1
    preferred_block: int = 4096


class Catalogue(Protocol):
    """The exports there are."""

    def offers(self) -> Sequence[Offer]:
        """All of them, the default one first."""

    def find(self, name: str) -> Offer | None:
        """The one of that name; the empty name is the default."""


@dataclass(frozen=True)
class Agreed:
    """What a handshake ended with; `export` is the canonical name."""

    export: str
    replies: wire.Replies
    allocation: bool
    tls: bool


class Handshake:
    """One client's handshake."""

    def __init__(self, catalogue: Catalogue, tls: Tls = Tls.NONE) -> None:
        self.phase = Phase.FLAGS
        self.agreed: Agreed | None = None
        self.rest = b""
        self.closing = False
        self.secure = False
        self._catalogue = catalogue
        self._tls = tls
        self._buffer = bytearray()
        self._out: list[bytes] = [GREETING]
        self._flags = HandshakeFlag(0)
        self._option = 0
        self._length = 0
        self._options = 0
        self._steps: dict[Phase, Callable[[], bool]] = {
            Phase.FLAGS: self._take_flags,
            Phase.OPTION: self._take_option,
            Phase.DATA: self._take_data,
            Phase.SKIP: self._skip_data,
        }
        self._forget()

    @classmethod
    def elsewhere(cls, catalogue: Catalogue, export: str) -> Handshake:
        """One that has been held already, as far as the client is concerned: the kernel's client is told by other means. Simple replies."""
        handshake = cls(catalogue)
        handshake._out.clear()
        handshake.agreed = Agreed(export, wire.SIMPLE, allocation=False, tls=False)
        handshake.phase = Phase.TRANSMISSION
        return handshake

    def _forget(self) -> None:
        """Everything that options negotiated."""
        self._replies: wire.Replies = wire.SIMPLE
        self._allocation_of: str | None = None

    def outgoing(self) -> list[bytes]:
        """What is to be sent, once."""
        out, self._out = self._out, []
        return out

    def receive(self, data: bytes | memoryview) -> None:
        """Bytes came. Raises ProtocolError when the session must end."""
        if self.phase in (Phase.STARTTLS, Phase.ENDED):
            raise ProtocolError(f"a client sent data in the handshake's phase {self.phase.value!r}, where it has nothing to say")
        self._buffer += data
        self._settle(self._run())

    def _run(self) -> Phase:
        while (step := self._steps.get(self.phase)) is not None and step():
            pass
        return self.phase

    def _settle(self, phase: Phase) -> None:
        if phase is Phase.TRANSMISSION:
            self.rest = bytes(self._buffer)
            self._buffer.clear()
        elif phase is Phase.STARTTLS and self._buffer:
            raise ProtocolError("a client sent plain data behind STARTTLS: it may be an injection, so the session ends")

    def secured(self) -> None:
        """The connection is encrypted now: start over, but for the client's flags."""
        if self.phase is not Phase.STARTTLS:
            raise AssertionError("TLS was started although the client did not ask for it")
        self.secure = True
        self._forget()
        self.phase = Phase.OPTION

    # ------------------------------------------------------------------ steps: each takes bytes, or returns False to wait for more

    def _take(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _take_flags(self) -> bool:
        data = self._take(wire.CLIENT_FLAGS.size)
        if data is None:
            return False
        (flags,) = wire.CLIENT_FLAGS.unpack(data)
        if flags & ~3:
            raise ProtocolError(f"a client set handshake flags {flags:#x}, of which some are unknown")
        self._flags = HandshakeFlag(flags)
        self.phase = Phase.OPTION
        return True

    def _take_option(self) -> bool:
        data = self._take(wire.OPTION.size)
        if data is None:
            return False
        magic, self._option, self._length = wire.OPTION.unpack(data)
        self._options += 1
        if magic != wire.IHAVEOPT:
            raise ProtocolError(f"a client sent {magic:#x} where an option was due")
        if self._options > MOST_OPTIONS:
            raise ProtocolError(f"a client sent more than {MOST_OPTIONS} options")
        if self._option == Option.EXPORT_NAME and self._length > wire.STRING_LIMIT:
            raise ProtocolError(f"a client asked for an export with a name of {self._length} bytes")
        if self._option != Option.EXPORT_NAME and not self._flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise ProtocolError(f"a client sent option {self._option} without having agreed to the fixed newstyle handshake")
        self.phase = Phase.DATA if self._length <= OPTION_LIMIT else Phase.SKIP
        return True

    def _skip_data(self) -> bool:
        """Options too long are answered like any other, but unread: behind all of their data."""
        skipped = min(self._length, len(self._buffer))
        del self._buffer[:skipped]
        self._length -= skipped
        if self._length:
            return False
        self.phase = Phase.OPTION
        refusal = self._refusal()
        if refusal is None and self._option == Option.ABORT:
            self._abort(b"")
        elif refusal is None and self._option not in _HANDLERS:
            self._answer(Reply.ERR_UNSUP, "this option is unknown here")
        elif refusal is None:
            self._answer(Reply.ERR_TOO_BIG, f"an option may have {OPTION_LIMIT} bytes of data")
        else:
            self._answer(*refusal)
        return True

    def _take_data(self) -> bool:
        data = self._take(self._length)
        if data is None:
            return False
        self.phase = Phase.OPTION
        refusal = self._refusal()
        handler = _HANDLERS.get(self._option)
        if refusal is not None:
            self._answer(*refusal)
        elif handler is None:
            self._answer(Reply.ERR_UNSUP, "this option is unknown here")
        else:
            try:
                handler(self, data)
            except _Refused as refused:
                self._answer(refused.kind, refused.why)
        return True

    def _refusal(self) -> tuple[Reply, str] | None:
        """Why an option is not even looked at; EXPORT_NAME cannot be refused, it ends the session."""
        refusal = None
        if self._option == Option.ABORT:
            return None
        if self._tls is Tls.REQUIRED and not self.secure and self._option != Option.STARTTLS:
            refusal = (Reply.ERR_TLS_REQD, "this server wants TLS first")
        elif self.closing:
            refusal = (Reply.ERR_SHUTDOWN, "this server is shutting down")
        if refusal is not None and self._option == Option.EXPORT_NAME:
            raise ProtocolError(f"a client asked for an export, but {refusal[1]}")
        return refusal

    def _answer(self, kind: Reply, data: bytes | str = b"") -> None:
        body = data if isinstance(data, bytes) else wire.cut_text(data)
        self._out.append(option_reply(self._option, kind, body))

    # ------------------------------------------------------------------ options

    def _export_name(self, data: bytes) -> None:
        try:
            offer = self._find(data)
        except _Refused as refused:
            raise ProtocolError(f"a client asked for an export that cannot be: {refused.why}") from None
        flags = self._transmission_flags(offer)
        zeroes = b"" if self._flags & HandshakeFlag.NO_ZEROES else bytes(124)
        self._out.append(wire.EXPORT_REPLY.pack(offer.size, flags) + zeroes)
        self._enter(offer)

    def _abort(self, data: bytes) -> None:
        self._answer(Reply.ACK)
        self.phase = Phase.ENDED
        self._buffer.clear()

    def _list(self, data: bytes) -> None:
        _no_data(data)
        for offer in self._catalogue.offers():
            name = offer.name.encode()
            self._answer(Reply.SERVER, wire.LONG.pack(len(name)) + name + wire.cut_text(offer.description))
        self._answer(Reply.ACK)

    def _starttls(self, data: bytes) -> None:
        if self._tls is Tls.NONE:
            raise _Refused(Reply.ERR_POLICY, "this server has no TLS")
        if self.secure:
            raise _Refused(Reply.ERR_INVALID, "TLS is on already")
        _no_data(data)
        self._answer(Reply.ACK)
        self.phase = Phase.STARTTLS

    def _info(self, data: bytes) -> Offer:
        fields = _Fields(data)
        offer = self._find(fields.string())
        wanted = [fields.short() for _ in range(fields.short())]
        fields.end()
        # DF depends on what was negotiated, so these answers are made from the state of now, at GO once more.
        self._answer(Reply.INFO, wire.INFO_EXPORT.pack(Info.EXPORT, offer.size, self._transmission_flags(offer)))
        if Info.NAME in wanted:
            self._answer(Reply.INFO, wire.SHORT.pack(Info.NAME) + offer.name.encode())
        if Info.DESCRIPTION in wanted:
            self._answer(Reply.INFO, wire.SHORT.pack(Info.DESCRIPTION) + wire.cut_text(offer.description))
        sizes = (offer.minimum_block, offer.preferred_block, wire.MAX_PAYLOAD)
        self._answer(Reply.INFO, wire.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        self._answer(Reply.ACK)
        return offer

    def _go(self, data: bytes) -> None:
        self._enter(self._info(data))

    def _structured_reply(self, data: bytes) -> None:
        _no_data(data)
        if self._replies is wire.EXTENDED:
            raise _Refused(Reply.ERR_EXT_HEADER_REQD, "extended headers were agreed on already")
        self._replies = wire.STRUCTURED
        self._answer(Reply.ACK)

    def _extended_headers(self, data: bytes) -> None:
        _no_data(data)
        self._replies = wire.EXTENDED
        self._answer(Reply.ACK)

    def _list_meta_context(self, data: bytes) -> None:
        _, queries = self._meta_query(data)
        if not queries or b"base:" in queries or wire.ALLOCATION in queries:
            self._answer(Reply.META_CONTEXT, wire.LONG.pack(0) + wire.ALLOCATION)
        self._answer(Reply.ACK)

    def _set_meta_context(self, data: bytes) -> None:
        self._allocation_of = None  # also when this one fails
        offer, queries = self._meta_query(data)
        if wire.ALLOCATION in queries:
            self._allocation_of = offer.name
            self._answer(Reply.META_CONTEXT, wire.LONG.pack(wire.ALLOCATION_ID) + wire.ALLOCATION)
        self._answer(Reply.ACK)

    def _meta_query(self, data: bytes) -> tuple[Offer, set[bytes]]:
        """The export and the queries. Those of unknown namespaces match nothing, which is no error."""
        if self._replies is wire.SIMPLE:
            raise _Refused(Reply.ERR_INVALID, "metadata contexts need structured replies first")
        fields = _Fields(data)
        offer = self._find(fields.string())
        queries = {fields.string() for _ in range(fields.long())}
        fields.end()
        return offer, queries

    def _find(self, name: bytes) -> Offer:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise _Refused(Reply.ERR_INVALID, "a name is UTF-8") from None
        if "\0" in text or len(name) > wire.STRING_LIMIT:
            raise _Refused(Reply.ERR_INVALID, f"a name has at most {wire.STRING_LIMIT} bytes, none of them zero")
        offer = self._catalogue.find(text)
        if offer is None:
            raise _Refused(Reply.ERR_UNKNOWN, "there is no such export here")
        return offer

    def _transmission_flags(self, offer: Offer) -> int:
        return int(offer.flags if self._replies is wire.SIMPLE else offer.flags | TransmissionFlag.SEND_DF)

    def _enter(self, offer: Offer) -> None:
        self.agreed = Agreed(offer.name, self._replies, self._allocation_of == offer.name, self.secure)
        self.phase = Phase.TRANSMISSION


class _Refused(Exception):
    """An option is answered with an error and the handshake goes on."""

    def __init__(self, kind: Reply, why: str) -> None:
        super().__init__(why)
        self.kind = kind
        self.why = why


class _Fields:
    """The data of one option, taken field by field; what is missing, or left, is ERR_INVALID."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Refused(Reply.ERR_INVALID, "the option's data ends before its fields do")
        taken, self._at = self._data[self._at : end], end
        return taken

    def short(self) -> int:
        return int.from_bytes(self._bytes(2), "big")

    def long(self) -> int:
        return int.from_bytes(self._bytes(4), "big")

    def string(self) -> bytes:
        return self._bytes(self.long())

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Refused(Reply.ERR_INVALID, "the option has data behind its fields")


def _no_data(data: bytes) -> None:
    if data:
        raise _Refused(Reply.ERR_INVALID, "this option has no data")


_HANDLERS: dict[int, Callable[[Handshake, bytes], object]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.LIST: Handshake._list,
    Option.STARTTLS: Handshake._starttls,
    Option.INFO: Handshake._info,
    Option.GO: Handshake._go,
    Option.STRUCTURED_REPLY: Handshake._structured_reply,
    Option.LIST_META_CONTEXT: Handshake._list_meta_context,
    Option.SET_META_CONTEXT: Handshake._set_meta_context,
    Option.EXTENDED_HEADERS: Handshake._extended_headers,
}
