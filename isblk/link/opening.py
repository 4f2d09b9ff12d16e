"""Opening a session: resolve, connect, log in, follow redirects, retry CHAP with MD5 alone; and closing it (RFC 7143 6.3, 11.13.5).

Portals are tried in the order given; the first that logs in carries the session. A target that says no is believed at once: only portals
that cannot be reached are stepped over. Whatever ends the block that uses a session, the session is logged out before the block is left.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from isblk.errors import ExitCode, IsblkError, LoginRefused, Unreachable
from isblk.iscsi import pdu
from isblk.iscsi.chap import MD5_ALONE, STRONGEST_FIRST, Algorithm, Credentials
from isblk.iscsi.framer import Framer, frame
from isblk.iscsi.login import AuthenticationFailed, LoginConversation, LoginSettings, Redirect
from isblk.iscsi.names import Isid, Portal
from isblk.iscsi.session import Session
from isblk.link.connection import Connection, Tap
from isblk.link.plane import Plane
from isblk.link.sweeper import Timing

REDIRECTS = 5
"""Redirects followed in one login (reliability: parser limits); a loop ends here."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who logs in and how: names, credentials in both directions, digest preferences, deadlines. Holds secrets, which no repr shows.

    `spelled` is the target's name as the user wrote it, tried when there is no target of the normalized name: some compare bytes of
    names that are not normal (RFC 7143 4.2.7 forbids both).
    """

    initiator_name: str
    isid: Isid
    credentials: Credentials | None = None
    target_credentials: Credentials | None = None
    algorithms: tuple[Algorithm, ...] = STRONGEST_FIRST
    md5_retry: bool = True
    header_digest: str = "allow"
    data_digest: str = "allow"
    timing: Timing = field(default_factory=Timing)
    trace: Callable[[str, str], None] | None = None
    tap: Callable[[socket.socket], Tap] | None = None
    spelled: str | None = None
    time2wait: int = 2

    def with_isid(self, isid: Isid) -> Access:
        """The same for another path slot."""
        return replace(self, isid=isid)


@asynccontextmanager
async def opened(plane: Plane, portals: Sequence[Portal], target_name: str | None, access: Access) -> AsyncIterator[Connection]:
    """A session to `target_name` (None: a discovery session) for the length of a block.

    Raises Unreachable, LoginRefused, NotFound, ProtocolError.
    """
    connection = await log_in(plane, portals, target_name, access)
    plane.start_soon(connection.watch)
    try:
        yield connection
    finally:
        await connection.logout()


async def log_in(plane: Plane, portals: Sequence[Portal], target_name: str | None, access: Access) -> Connection:
    """Log in at the first portal that can be reached. Raises as `opened`; with several portals unreachable, names each."""
    unreachable: list[Unreachable] = []
    for portal in portals:
        try:
            return await _log_in_by_name(plane, portal, target_name, access)
        except Unreachable as error:
            _log.info("%s", error)
            unreachable.append(error)
    raise none_reachable(unreachable)


def none_reachable(errors: Sequence[Unreachable]) -> Unreachable:
    """What to raise when every portal was tried: the one error there is, or one that names each."""
    return errors[0] if len(errors) == 1 else Unreachable("no portal can be reached: " + "; ".join(map(str, errors)))


async def _log_in_by_name(plane: Plane, portal: Portal, target_name: str | None, access: Access) -> Connection:
    try:
        return await _log_in_somehow(plane, portal, target_name, access)
    except IsblkError as error:
        if error.exit_code is not ExitCode.NOT_FOUND or target_name is None or access.spelled in (None, target_name):
            raise
        _log.info("%s; trying the name as it was written", error)
        return await _log_in_somehow(plane, portal, access.spelled, access)


async def _log_in_somehow(plane: Plane, portal: Portal, target_name: str | None, access: Access) -> Connection:
    """One portal, with the one retry some targets need: they take the first algorithm of the list and compute another (protocol: traps)."""
    try:
        return await _follow(plane, portal, target_name, access)
    except AuthenticationFailed as error:
        if not error.retry_with_md5 or not access.md5_retry:
            raise
        _log.info("%s refused the login (%s); trying once more with MD5 alone", portal, error)
        return await _follow(plane, portal, target_name, replace(access, algorithms=MD5_ALONE))


async def _follow(plane: Plane, portal: Portal, target_name: str | None, access: Access) -> Connection:
    asked, lasting = portal, True
    for _ in range(REDIRECTS + 1):
        try:
            connection = await _log_in_at(plane, portal, target_name, access)
            connection.moved_to = portal if lasting and portal is not asked else None
            return connection
        except Redirect as redirect:
            _log.info("%s sends the login to %s (%s)", portal, redirect.portal, "permanently" if redirect.permanent else "for now")
            # Only an unbroken chain of permanent redirects may be remembered (11.13.5).
            portal, lasting = redirect.portal, lasting and redirect.permanent
    raise LoginRefused(f"{asked} redirected the login more than {REDIRECTS} times: the target's portals point at each other")


async def _log_in_at(plane: Plane, portal: Portal, target_name: str | None, access: Access) -> Connection:
    """Connect and log in at one portal within `login_timeout`."""
    limit = access.timing.login_timeout
    with trio.move_on_after(limit):
        sock = await _connect(portal)
        try:
            return await _converse(plane, sock, portal, _settings(target_name, access), access)
        except OSError as error:
            sock.close()
            raise Unreachable(
                f"{portal} broke the connection during the login: {error.strerror or error}; is it an iSCSI portal?"
            ) from error
        except BaseException:
            sock.close()
            raise
    raise Unreachable(f"{portal} did not finish the login within {limit:g} s; is it an iSCSI portal? (--login-timeout waits longer)")


def _settings(target_name: str | None, access: Access) -> LoginSettings:
    return LoginSettings(
        initiator_name=access.initiator_name,
        target_name=target_name,
        session_type="Normal" if target_name is not None else "Discovery",
        isid=bytes(access.isid),
        credentials=access.credentials,
        mutual=access.target_credentials,
        chap_algorithms=access.algorithms,
        header_digest=access.header_digest,
        data_digest=access.data_digest,
        default_time2wait=access.time2wait,
    )


async def _connect(portal: Portal) -> socket.socket:
    """A non-blocking socket connected to the first address that takes it. Raises Unreachable.

    Not trio's SocketStream: it sets TCP_NOTSENT_LOWAT to 16 KiB and costs a scheduler pass for each call (performance, rule 1).
    """
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"the portal's name {portal.host} does not resolve: {error.strerror or error}") from error
    failure: OSError | None = None
    for family, kind, protocol, _, address in found:
        trio_socket = trio.socket.socket(family, kind, protocol)
        try:
            trio_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await trio_socket.connect(address)
        except OSError as error:
            trio_socket.close()
            failure = error
        except BaseException:
            trio_socket.close()
            raise
        else:
            connected = socket.socket(family, kind, protocol, trio_socket.detach())
            connected.setblocking(False)
            return connected
    why = os.strerror(failure.errno) if failure is not None and failure.errno else failure or "it has no address"
    raise Unreachable(f"{portal} cannot be reached: {why}; check the address, the port and that the target runs") from failure


class _LoginSink:
    """Takes the framer's PDUs until the login ends; then, within that delivery, puts the session in its place (13.1: digests begin)."""

    def __init__(self, conversation: LoginConversation, access: Access, discovery: bool) -> None:
        self.framer = Framer(self)
        self.session: Session | None = None
        self.out: list[bytes | memoryview] = []
        self._conversation = conversation
        self._access = access
        self._discovery = discovery

    def say(self, bhs: bytes, text: bytes) -> None:
        """Queue a request in `out`."""
        if self._access.trace is not None:
            self._access.trace("->", pdu.describe(bhs))
        self.out.extend(frame(bhs, text))

    def place(self, bhs: memoryview, length: int) -> memoryview | None:
        return None

    def deliver(self, bhs: memoryview, ahs: memoryview, data: memoryview) -> None:
        if self._access.trace is not None:
            self._access.trace("<-", pdu.describe(bhs))
        for request, text in self._conversation.answer(bhs, data):
            self.say(request, text)
        result = self._conversation.result
        if result is not None:
            session = Session(result, self._discovery)
            session.wire.trace = self._access.trace
            negotiated = result.negotiated
            self.framer.switch(session, negotiated.max_recv_data_segment_length, session.run)
            self.framer.enable_digests(negotiated.header_digest, negotiated.data_digest)
            self.session = session


async def _converse(plane: Plane, sock: socket.socket, portal: Portal, settings: LoginSettings, access: Access) -> Connection:
    """The login, turn by turn; the socket joins the plane when it has succeeded."""
    conversation = LoginConversation(settings)
    sink = _LoginSink(conversation, access, settings.target_name is None)
    sink.say(*conversation.start())
    tap = access.tap(sock) if access.tap is not None else None
    try:
        while sink.session is None:
            await _send_all(sock, b"".join(sink.out), tap)
            sink.out.clear()
            await _receive_some(sock, sink.framer, conversation, tap)
    except Redirect:
        raise
    except IsblkError as error:
        error.args = (f"{portal}: {error}",)
        raise
    if tap is not None:
        tap.logged_in()
    return Connection(plane, sock, sink.framer, sink.session, portal, access.timing, tap)


async def _send_all(sock: socket.socket, data: bytes, tap: Tap | None) -> None:
    if tap is not None:
        tap.sent([data], len(data))
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


async def _receive_some(sock: socket.socket, framer: Framer, conversation: LoginConversation, tap: Tap | None) -> None:
    buffer = framer.receive_buffer()
    while True:
        try:
            count = sock.recv_into(buffer)
            break
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
    if not count:
        raise conversation.closed()
    if tap is not None:
        tap.received(buffer[:count])
    framer.received(count)
