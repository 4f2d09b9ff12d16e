"""TLS: settings from files, the upgrade, who is let in, injection, large transfers, clients that stop in the middle."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from isblk.errors import ProtocolError, UsageError
from isblk.export.nbdtls import PSK_CIPHERS, TlsSettings, TlsSocket, read_keys
from support import rawnbd as raw
from support.memorydevice import MemoryDevice
from support.nbdserving import SIZE, Serving, serving, until
from support.rawnbd import RawClient


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass(frozen=True)
class Certificates:
    """`server`: what the server is given, with an authority for clients; `open`: the same without; `client`, `stranger`: (cert, key)."""

    server: Path
    open: Path
    authority: Path
    client: tuple[Path, Path]
    stranger: tuple[Path, Path]


def _signed(directory: Path, name: str, authority: Path | None) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}-cert.pem", directory / f"{name}-key.pem"
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", f"/CN={name}")
    by = ("-CA", authority / "ca-cert.pem", "-CAkey", authority / "ca-key.pem") if authority else ()
    alternative = ("-addext", "subjectAltName=DNS:localhost") if authority else ()
    openssl(*new, *by, *alternative, "-keyout", key, "-out", certificate)
    key.chmod(0o600)
    return certificate, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    home = tmp_path_factory.mktemp("certificates")
    _signed(home, "ca", None)
    _signed(home, "server", home)
    stranger = tmp_path_factory.mktemp("stranger")
    bare = tmp_path_factory.mktemp("open")
    for name in ("server-cert.pem", "server-key.pem"):
        (bare / name).write_bytes((home / name).read_bytes())
        (bare / name).chmod(0o600)
    return Certificates(home, bare, home / "ca-cert.pem", _signed(home, "client", home), _signed(stranger, "stranger", None))


def client_context(certificates: Certificates, identity: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    if identity is not None:
        context.load_cert_chain(*identity)
    return context


async def upgraded(here: Serving, context: ssl.SSLContext) -> RawClient:
    """A client that has TLS and is back in the handshake."""
    client = await here.connect()
    await client.hello()
    assert (await client.ask(raw.option(raw.STARTTLS)))[-1][1] == raw.ACK
    stream = trio.SSLStream(client.stream, context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    return RawClient(stream)


# ------------------------------------------------------------------ settings


def test_certificates_make_a_context(certificates: Certificates) -> None:
    context = TlsSettings(certificates.server).context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert TlsSettings(certificates.open).context().verify_mode is ssl.CERT_NONE


def copied(certificates: Certificates, to: Path) -> Path:
    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        (to / name).write_bytes((certificates.server / name).read_bytes())
        (to / name).chmod(0o600)
    return to


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("cannot be read: No such file", lambda where: (where / "server-key.pem").unlink()),
    ("cannot be used: No such file", lambda where: (where / "server-cert.pem").unlink()),
    ("cannot be used", lambda where: (where / "server-cert.pem").write_text("nonsense")),
    ("cannot be used", lambda where: (where / "ca-cert.pem").write_text("nonsense")),
    ("may be read by others", lambda where: (where / "server-key.pem").chmod(0o644)),
    ("encrypted", lambda where: openssl("genpkey", "-algorithm", "rsa", "-aes256", "-pass", "pass:x", "-out", where / "server-key.pem")),
]


@pytest.mark.parametrize(("words", "damage"), DAMAGE, ids=[words for words, _ in DAMAGE])
def test_certificates_that_cannot_be_used_are_a_sentence(
    certificates: Certificates, tmp_path: Path, words: str, damage: Callable[[Path], object]
) -> None:
    damage(copied(certificates, tmp_path))
    if words == "encrypted":
        (tmp_path / "server-key.pem").chmod(0o600)
    with pytest.raises(UsageError, match=words):
        TlsSettings(tmp_path).context()


def test_certificates_or_keys_not_both_not_neither(tmp_path: Path) -> None:
    for settings in (TlsSettings(), TlsSettings(tmp_path, tmp_path)):
        with pytest.raises(UsageError, match="one of the two"):
            settings.context()


KEY = "00112233445566778899aabbccddeeff"


def keys(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys.psk"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_read_from_lines(tmp_path: Path) -> None:
    found = read_keys(keys(tmp_path, f"# comment\nalice:{KEY}\n\nbob:smith:{KEY}ff\n"))
    assert found == {b"alice": bytes.fromhex(KEY), b"bob:smith": bytes.fromhex(KEY + "ff")}


@pytest.mark.parametrize("text", ["", "alice\n", f":{KEY}\n", "alice:0011\n", "alice:zz\n", f"alice:{KEY[:-1]}\n"])
def test_keys_that_are_none_are_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_keys(keys(tmp_path, text))
    assert "0011" not in str(caught.value)


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="others"):
        read_keys(keys(tmp_path, f"alice:{KEY}\n", 0o640))
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "nothing")


def test_pre_shared_keys_work_where_python_has_them_and_are_refused_in_words_elsewhere(tmp_path: Path) -> None:
    settings = TlsSettings(psk_file=keys(tmp_path, f"alice:{KEY}\n"))
    if sys.version_info < (3, 13):
        with pytest.raises(UsageError, match=r"Python 3\.13"):
            settings.context()
        return
    for name, right in (("alice", True), ("mallory", False)):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(PSK_CIPHERS)
        client.set_psk_client_callback(lambda _hint, name=name: (name, bytes.fromhex(KEY)))
        assert _agree(settings.context(), client) is right


def _agree(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Whether two ends come to terms, without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
    return not ends


# ------------------------------------------------------------------ the upgrade


async def test_a_conversation_over_tls(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.server)) as here:
        client = await upgraded(here, client_context(certificates, certificates.client))
        assert (await client.ask(raw.option(raw.STRUCTURED_REPLY)))[-1][1] == raw.ACK
        assert (await client.ask(raw.option(raw.STARTTLS)))[-1][1] == raw.ERR_INVALID
        assert (await client.ask(raw.go()))[-1][1] == raw.ACK
        assert (await client.do(raw.WRITE, 0, 6, 0, 1, b"secret")).error == 0
        assert (await client.do(raw.READ, 0, 6)).data == b"secret"
        assert here.server.clients[0].negotiated["tls"] == "TLSv1.3"
        await client.send(raw.request(raw.DISC))
        assert await client.rest() == b"", "with TLS's own goodbye"


async def test_required_tls_lets_nobody_in_without(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await here.connect()
        await client.hello()
        for option in (raw.option(raw.LIST), raw.go(), raw.option(raw.STRUCTURED_REPLY), raw.option(99)):
            assert [kind for _, kind, _ in await client.ask(option)] == [raw.ERR_TLS_REQD]
        await client.send(raw.option(raw.EXPORT_NAME, b"0"))
        assert await client.rest() == b""


async def test_offered_tls_lets_others_in(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open, required=False)) as here:
        assert (await (await here.client()).do(raw.FLUSH)).error == 0
        client = await upgraded(here, client_context(certificates))
        assert (await client.ask(raw.go()))[-1][1] == raw.ACK


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_a_client_must_have_a_certificate_of_the_authority(tmp_path: Path, certificates: Certificates, who: str) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.server)) as here:
        context = client_context(certificates, certificates.stranger if who == "stranger" else None)
        with pytest.raises((trio.BrokenResourceError, AssertionError)):  # TLS 1.3 tells a client only after its handshake
            await (await upgraded(here, context)).ask(raw.option(raw.LIST))
        good = await upgraded(here, client_context(certificates, certificates.client))
        assert (await good.ask(raw.go()))[-1][1] == raw.ACK


@pytest.mark.parametrize("behind", [raw.go(), b"\x16\x03\x01"])
async def test_plain_data_behind_starttls_ends_the_connection(tmp_path: Path, certificates: Certificates, behind: bytes) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await here.connect()
        await client.hello()
        await client.send(raw.option(raw.STARTTLS) + behind)
        assert await client.rest() == b"", "not even the answer"


@pytest.mark.parametrize("instead", [b"", b"\x16\x03\x01", bytes(600), raw.go()])
async def test_a_handshake_of_tls_that_is_none_ends_the_connection_only(tmp_path: Path, certificates: Certificates, instead: bytes) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await here.connect()
        await client.hello()
        assert (await client.ask(raw.option(raw.STARTTLS)))[-1][1] == raw.ACK
        await client.send(instead)
        await client.stream.send_eof()
        await client.rest()
        await until(lambda: not here.server.clients)
        good = await upgraded(here, client_context(certificates))
        assert (await good.ask(raw.go()))[-1][1] == raw.ACK


async def test_everything_is_one_record(tmp_path: Path, certificates: Certificates) -> None:
    """What comes in the same record as GO is decrypted already, and no event of the socket tells of it."""
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await upgraded(here, client_context(certificates))
        many = b"".join(raw.request(raw.FLUSH, cookie=cookie) for cookie in range(400))
        await client.send(raw.option(raw.LIST) * 3 + raw.go() + many + raw.request(raw.DISC))
        data = await client.rest()
        assert len(raw.option_replies(data[: -400 * 16])) == 3 * 2 + 3
        assert len(raw.Replies().feed(data[-400 * 16 :])) == 400


async def test_large_transfers_both_ways(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await upgraded(here, client_context(certificates))
        await client.ask(raw.go())
        data = bytes(range(256)) * (SIZE // 256)
        client.replies.reads = dict.fromkeys(range(10, 20), SIZE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"".join(raw.request(raw.WRITE, 0, SIZE, 0, cookie, data) for cookie in range(4)))
            assert [answer.error for answer in await client.answers(4)] == [0] * 4
        await client.send(b"".join(raw.request(raw.READ, 0, SIZE, 0, cookie) for cookie in range(10, 20)))
        await trio.sleep(0.1)  # the server gets stuck, ciphertext and all
        assert all(answer.data == data for answer in await client.answers(10))
        assert here.server.memory.used == 0


async def test_a_client_that_never_reads_over_tls_is_bounded_too(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, tls=TlsSettings(certificates.open)) as here:
        client = await upgraded(here, client_context(certificates))
        await client.ask(raw.go())
        with trio.move_on_after(0.3):
            while True:
                await client.send(raw.request(raw.READ, 0, 65536) * 50)
        assert here.server.memory.used <= 257 * 65536
        polls = here.plane.polls
        await trio.sleep(0.05)
        assert here.plane.polls - polls < 20
        other = await upgraded(here, client_context(certificates))
        assert (await other.ask(raw.go()))[-1][1] == raw.ACK


async def test_requests_in_flight_outlive_a_client_over_tls(tmp_path: Path, certificates: Certificates) -> None:
    device = MemoryDevice(SIZE, 1, hold=True)
    async with serving(tmp_path, device, tls=TlsSettings(certificates.open)) as here:
        client = await upgraded(here, client_context(certificates))
        await client.ask(raw.go())
        await client.send(raw.request(raw.READ, 0, 512) * 3)
        await until(lambda: len(device.pending) == 3)
        here.streams[0].socket.close()
        await here.server.drained()
        device.complete_all()
        assert here.server.memory.used == 0


# ------------------------------------------------------------------ the socket alone


def test_a_socket_tells_what_is_wrong(certificates: Certificates) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        tls = TlsSocket(ours, TlsSettings(certificates.open).context())
        assert tls.handshake() is False
        assert not tls.pending
        theirs.sendall(b"\x16\x03\x03\x00\x04\x63\x00\x00\x00")  # a handshake message of no known type
        with pytest.raises(ProtocolError, match="handshake failed"):
            tls.handshake()
        theirs.settimeout(5)
        assert theirs.recv(100)[:1] == b"\x15", "an alert"


def test_a_client_that_leaves_in_the_handshake_is_told_of(certificates: Certificates) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        tls = TlsSocket(ours, TlsSettings(certificates.open).context())
        theirs.close()
        with pytest.raises(ProtocolError, match="left"):
            tls.handshake()
        tls.close_notify()
