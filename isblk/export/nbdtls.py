"""TLS of the NBD server: settings from files, and a socket's two calls with TLS between (NBD protocol, TLS support).

A TlsSocket has the same `recv_into` and `sendmsg` as a non-blocking socket, over ssl.MemoryBIO, so that the plane and its rules (no await,
no thread) stay as they are. What differs: a plaintext accepted by `sendmsg` may still wait here as ciphertext (`pending`), and a
handshake costs the plane a signature (about a millisecond).

Only TLS 1.2 and later. Certificates by the names that qemu, libnbd and nbdkit use: server-cert.pem, server-key.pem, and ca-cert.pem; when
that is there, every client must have a certificate from it. Pre-shared keys need Python 3.13.
"""

from __future__ import annotations

import hmac
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isblk.errors import ProtocolError, UsageError

CIPHERTEXT = 256 * 1024
"""Bytes received or encrypted at a time."""
PLAINTEXT = 128 * 1024
"""Bytes encrypted before they are sent: more would only wait here."""
PSK_CIPHERS = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES128-CBC-SHA256:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256"
_PSK_LIMIT = 1 << 20


@dataclass(frozen=True)
class TlsSettings:
    """Where certificates or pre-shared keys are (one of the two); `required`: nothing but STARTTLS and ABORT is answered before TLS."""

    certificates: Path | None = None
    psk_file: Path | None = None
    required: bool = True

    def context(self) -> ssl.SSLContext:
        """What each connection is wrapped with. Raises UsageError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if (self.certificates is None) is (self.psk_file is None):
            raise UsageError("TLS needs a directory of certificates or a file of pre-shared keys, one of the two")
        if self.certificates is not None:
            _load_certificates(context, self.certificates)
        elif self.psk_file is not None:
            _load_keys(context, self.psk_file)
        return context


def _load_certificates(context: ssl.SSLContext, directory: Path) -> None:
    certificate, key, authority = (directory / name for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"))
    _check_secret(key)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        if authority.exists():
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise UsageError(f"the certificates in {directory} cannot be used: {_reason(error)}") from None


def _no_password() -> str:
    raise ValueError("server-key.pem is encrypted, and nobody is here to type its password; store it without one")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)


def _check_secret(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise UsageError(f"{path} may be read by others than its owner: chmod 600 it, and replace what it holds if that was seen")


def _load_keys(context: ssl.SSLContext, path: Path) -> None:
    """Lines of NAME:KEY, the key in hexadecimal, as psktool(1) writes them."""
    set_callback = getattr(context, "set_psk_server_callback", None)
    if set_callback is None:
        raise UsageError("TLS with pre-shared keys needs Python 3.13 or later; use certificates here, or another Python")
    keys = read_keys(path)

    def key_of(identity: str | None) -> bytes:
        found = b""
        for name, key in keys.items():
            if hmac.compare_digest(name, (identity or "").encode()):
                found = key
        return found  # empty: no such client, which OpenSSL answers as a wrong key

    context.maximum_version = ssl.TLSVersion.TLSv1_2  # Python's callback is that of 1.2
    context.set_ciphers(PSK_CIPHERS)
    set_callback(key_of)


def read_keys(path: Path) -> dict[bytes, bytes]:
    """The names and keys of a PSK file. Raises UsageError; its text never shows a key."""
    _check_secret(path)
    try:
        with path.open("rb") as file:
            lines = file.read(_PSK_LIMIT).splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    keys: dict[bytes, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        name, _, digits = line.strip().rpartition(b":")
        try:
            key = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            key = b""
        if not name or len(key) < 16:
            raise UsageError(f"{path}, line {number}, is not NAME:KEY with a hexadecimal key of 16 bytes or more")
        keys[name] = key
    if not keys:
        raise UsageError(f"{path} holds no key")
    return keys


class TlsSocket:
    """The server's end of TLS over a non-blocking socket. Raises BlockingIOError as the socket does, ProtocolError where TLS fails."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._cipher = memoryview(b"")
        self._eof = False
        self._ready = False

    @property
    def pending(self) -> bool:
        """Whether ciphertext waits for the socket to be writable."""
        return bool(self._cipher) or bool(self._outgoing.pending)

    @property
    def version(self) -> str:
        """'TLSv1.3'."""
        return self._tls.version() or "none"

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done. A client that fails it gets the alert, as far as the socket takes it."""
        try:
            while not self._ready:
                self._step()
            self.flush()
        except BlockingIOError:
            pass
        except ssl.SSLError as error:
            self._try_flush()
            raise ProtocolError(f"a client's TLS handshake failed: {_reason(error)}") from None
        return self._ready

    def _step(self) -> None:
        try:
            self._tls.do_handshake()
            self._ready = True
        except ssl.SSLWantReadError:
            self.flush()
            self._fetch()
            if self._eof:
                raise ProtocolError("a client left in the middle of the TLS handshake") from None

    def recv_into(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as possible: fewer bytes mean that the socket is drained. 0 at the end."""
        count = 0
        while count < len(buffer):
            try:
                got = self._tls.read(len(buffer) - count, buffer[count:])
            except ssl.SSLWantReadError:
                if self._eof:
                    break
                try:
                    self._fetch()
                except BlockingIOError:
                    if count:
                        break
                    raise
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # with or without a goodbye: what is not whole is not done
                break
            except ssl.SSLError as error:
                raise ProtocolError(f"a client broke TLS: {_reason(error)}") from None
            else:
                if not got:
                    break
                count += int(got)
        return count

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Encrypt and send; how many bytes of plaintext were taken. With no buffers it only sends what is `pending`."""
        taken = 0
        while True:
            if self._cipher or self._outgoing.pending:
                try:
                    self.flush()
                except BlockingIOError:
                    if taken:
                        return taken
                    raise
            portion = _portion(buffers, taken)
            if not portion:
                return taken
            self._encrypt(portion)
            taken += len(portion)

    def _encrypt(self, portion: bytes) -> None:
        rest = memoryview(portion)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]  # one record at a time
        except ssl.SSLError as error:
            raise ProtocolError(f"a client broke TLS: {_reason(error)}") from None

    def flush(self) -> None:
        """Send what is encrypted. Raises BlockingIOError while some of it is left."""
        while self.pending:
            if not self._cipher:
                self._cipher = memoryview(self._outgoing.read(CIPHERTEXT))
            self._cipher = self._cipher[self._socket.send(self._cipher) :]

    def close_notify(self) -> None:
        """Say goodbye as TLS wants it, as far as the socket takes it."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it wants to see the client's goodbye, which nobody waits for
        self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush()
        except OSError:
            pass

    def _fetch(self) -> None:
        data = self._socket.recv(CIPHERTEXT)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
            self._eof = True


def _portion(buffers: Sequence[bytes | memoryview], skip: int) -> bytes:
    """The next PLAINTEXT bytes behind `skip`, joined: a TLS record for each small reply would cost more than the copy."""
    parts: list[bytes | memoryview] = []
    room = PLAINTEXT
    for buffer in buffers:
        if skip >= len(buffer):
            skip -= len(buffer)
            continue
        part = memoryview(buffer)[skip : skip + room]
        skip = 0
        parts.append(part)
        room -= len(part)
        if not room:
            break
    return b"".join(parts)
