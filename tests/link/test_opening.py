"""Opening and closing sessions over real loopback sockets: portals in order, redirects, CHAP, digests, and no session left in the end."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from isblk.discover.sendtargets import send_targets
from isblk.errors import IsblkError, LoginRefused, NotFound, ProtocolError, Unreachable
from isblk.iscsi import chap
from isblk.iscsi.chap import Algorithm, Credentials
from isblk.iscsi.login import AuthenticationFailed
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection, Timing
from isblk.link.opening import REDIRECTS, Access, log_in, opened
from isblk.link.running import running_plane
from isblk.scsi import cdb
from isblk.target.config import Offer, PortalConfig, Redirect
from isblk.target.core import Connection as TargetConnection
from isblk.target.login import Login
from support.scripts import NO_TAG, Sent, pdu_bytes, taken_apart, target_bhs, words
from support.targets import AWKWARD, RunningTarget, disk, running_target
from support.waiting import free_port

ISID = Isid.from_random(0x123456, 1)
QUICK = Timing(login_timeout=0.3, logout_timeout=1)
ACCESS = Access("iqn.2026-11.test.isblk:opening", ISID, timing=QUICK)
OURS = Credentials("me", b"a-secret-of-16-b")
THEIRS = Credentials("nas", b"secret-of-the-target")
LUN_0 = bytes(8)


def portal(text: str) -> Portal:
    return Portal.parse(text)


@asynccontextmanager
async def session(*portals: str, name: str | None, access: Access = ACCESS) -> AsyncIterator[Connection]:
    async with running_plane() as plane, opened(plane, [portal(text) for text in portals], name, access) as connection:
        yield connection


async def refused(*portals: str, name: str | None, access: Access = ACCESS) -> IsblkError:
    with pytest.raises(IsblkError) as caught:
        async with session(*portals, name=name, access=access):
            raise AssertionError("it let us in")
    return caught.value


async def no_session(target: RunningTarget) -> None:
    with trio.fail_after(5):
        while target.sessions or target.server.connections:  # The target tells nobody.
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def listening(script: Any) -> AsyncIterator[str]:
    """A server that runs the coroutine function `script` on each connection; its portal."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, script, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


class Resolver(trio.abc.HostnameResolver):
    """A name service of the test's own, for this run of trio."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        found = self.names.get(host.decode() if isinstance(host, bytes) else host)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise AssertionError("nobody asks for names")


async def silent(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def closing(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def test_a_session_carries_commands_and_is_logged_out() -> None:
    async with running_target() as target:
        async with session(target.portal, name=target.name) as connection:
            assert target.sessions == 1
            assert (await connection.execute(LUN_0, cdb.inquiry(36), 36)).data[:1] == b"\0"
        assert connection.error is None and connection.closed.is_set()
        await no_session(target)


async def test_a_logout_requested_right_behind_the_login_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    entering = TargetConnection._enter_full_feature

    def and_leaving(connection: TargetConnection, session: Any) -> None:
        entering(connection, session)
        connection.request_logout(2)

    monkeypatch.setattr(TargetConnection, "_enter_full_feature", and_leaving)
    async with running_target() as target, session(target.portal, name=target.name) as connection:
        await connection.closed.wait()
        assert [event.event for event in connection.events] == [1]


async def test_a_discovery_session_names_no_target() -> None:
    async with running_target() as target:
        async with session(target.portal, name=None) as connection:
            assert ("TargetName", target.name) in await connection.text([("SendTargets", "All")])
        await no_session(target)


async def test_the_first_portal_that_answers_is_used() -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with running_target() as target, session(dead, target.portal, name=target.name) as connection:
        assert connection.portal == portal(target.portal)
    async with running_target() as first, running_target() as second, session(first.portal, second.portal, name=first.name):
        assert (first.sessions, second.sessions) == (1, 0)


async def test_a_target_that_says_no_is_believed() -> None:
    """It is not asked elsewhere: the next portal would be another target's."""
    async with running_target() as without, running_target() as target:
        error = await refused(without.portal, target.portal, name="iqn.2026-11.test.isblk:other")
        assert isinstance(error, NotFound) and without.portal in str(error)
        await no_session(without)


async def test_portals_that_cannot_be_reached_are_all_named() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver({}))
    dead = [f"127.0.0.1:{free_port()}", "no-such-host.invalid:3260"]
    error = await refused(*dead, name="iqn.2026-11.test.isblk:any")
    assert isinstance(error, Unreachable)
    assert "Connection refused" in str(error) and "no-such-host.invalid does not resolve" in str(error)
    (one,) = dead[:1]
    assert str(await refused(one, name="iqn.2026-11.test.isblk:any")).startswith(f"{one} cannot be reached: Connection refused; check")


async def test_a_silent_portal_is_given_up_and_stepped_over() -> None:
    async with listening(silent) as quiet, running_target() as target:
        error = await refused(quiet, name=target.name)
        assert isinstance(error, Unreachable) and "did not finish the login within 0.3 s" in str(error)
        async with session(quiet, target.portal, name=target.name) as connection:
            assert connection.portal == portal(target.portal)


async def test_a_portal_that_hangs_up_during_the_login() -> None:
    async with listening(closing) as rude:
        error = await refused(rude, name="iqn.2026-11.test.isblk:any")
    assert rude in str(error) and "closed the connection" in str(error)


async def test_a_portal_that_resets_during_the_login() -> None:
    async def resetting(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with listening(resetting) as rude:
        error = await refused(rude, name="iqn.2026-11.test.isblk:any")
    assert isinstance(error, Unreachable) and "broke the connection during the login: Connection reset" in str(error)


async def test_rubbish_is_a_protocol_error_that_names_the_portal() -> None:
    async def rubbish(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\0" * 48)
        await silent(stream)

    async with listening(rubbish) as odd:
        error = await refused(odd, name="iqn.2026-11.test.isblk:any")
    assert isinstance(error, ProtocolError) and odd in str(error)


@pytest.mark.parametrize("permanent", [False, True])
async def test_a_redirect_is_followed(permanent: bool) -> None:
    async with running_target() as target:
        door = PortalConfig(port=0, redirect=Redirect(target.portal, permanent))
        async with running_target(portals=(door,), name=target.name) as front:
            async with session(front.portal, name=target.name) as connection:
                assert connection.portal == portal(target.portal)
                assert (front.sessions, target.sessions) == (0, 1)
            await no_session(front)


async def test_a_redirect_to_nowhere_is_unreachable() -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with running_target(portals=(PortalConfig(port=0, redirect=Redirect(dead)),)) as front:
        error = await refused(front.portal, name=front.name)
        assert isinstance(error, Unreachable) and dead in str(error)


async def test_redirects_that_lead_round_and_round_end() -> None:
    port = free_port()
    round_and_round = PortalConfig(port=port, redirect=Redirect(f"127.0.0.1:{port}"))
    async with running_target(portals=(round_and_round,)) as target:
        error = await refused(target.portal, name=target.name)
        assert isinstance(error, LoginRefused) and f"more than {REDIRECTS} times" in str(error)
        await no_session(target)


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_chap_in_both_directions(algorithm: Algorithm) -> None:
    access = replace(ACCESS, credentials=OURS, target_credentials=THEIRS, algorithms=(algorithm,))
    async with running_target(credentials=OURS, mutual=THEIRS) as target:
        async with session(target.portal, name=target.name, access=access) as connection:
            agreed = {line.key: line.agreed for line in connection.session.login.agreements}
            assert agreed["AuthMethod"] == "CHAP"
        await no_session(target)


@pytest.mark.parametrize(
    "change",
    [
        {"credentials": None},
        {"credentials": Credentials("me", b"another-secret-16")},
        {"credentials": Credentials("you", OURS.secret)},
        {"target_credentials": Credentials("nas", b"not-what-it-knows")},
        {"target_credentials": Credentials("other", THEIRS.secret)},
    ],
)
async def test_chap_that_proves_nothing_is_refused(change: dict[str, Credentials | None]) -> None:
    access = replace(ACCESS, credentials=OURS, target_credentials=None)
    async with running_target(credentials=OURS, mutual=THEIRS) as target:
        error = await refused(target.portal, name=target.name, access=replace(access, **change))
        assert isinstance(error, LoginRefused)
        for secret in (OURS.secret, THEIRS.secret):
            assert secret.decode() not in str(error)
        await no_session(target)


async def test_with_credentials_a_target_that_asks_for_none_is_not_trusted() -> None:
    async with running_target() as target:
        error = await refused(target.portal, name=target.name, access=replace(ACCESS, credentials=OURS))
        assert isinstance(error, LoginRefused)
        await no_session(target)


async def test_a_target_that_fails_at_strong_algorithms_gets_one_login_with_md5_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tgt does it: it takes an algorithm of the list and computes another."""
    honest, agreed = chap.verified, []

    def as_if_md5(response: bytes, algorithm: Algorithm, *rest: Any) -> bool:
        agreed.append(algorithm)
        return honest(response, Algorithm.MD5, *rest)

    monkeypatch.setattr(chap, "verified", as_if_md5)
    async with running_target(credentials=OURS) as target:
        access = replace(ACCESS, credentials=OURS)
        async with session(target.portal, name=target.name, access=access):
            assert agreed == [Algorithm.SHA3_256, Algorithm.MD5]
        agreed.clear()
        assert isinstance(await refused(target.portal, name=target.name, access=replace(access, md5_retry=False)), LoginRefused)
        assert agreed == [Algorithm.SHA3_256]
        await no_session(target)


@pytest.mark.parametrize(
    ("asked", "offered", "agreed"),
    [
        ("none", ("None", "CRC32C"), False),
        ("allow", ("None", "CRC32C"), False),
        ("allow", ("CRC32C",), True),
        ("prefer", ("None", "CRC32C"), True),
        ("prefer", ("None",), False),
        ("crc32c", ("None", "CRC32C"), True),
        ("crc32c", ("None",), None),
        ("none", ("CRC32C",), None),
    ],
)
async def test_digests_are_negotiated(asked: str, offered: tuple[str, ...], agreed: bool | None) -> None:
    access = replace(ACCESS, header_digest=asked, data_digest=asked)
    async with running_target(offer=Offer(header_digest=offered, data_digest=offered)) as target:
        if agreed is None:
            assert isinstance(await refused(target.portal, name=target.name, access=access), LoginRefused | ProtocolError)
        else:
            async with session(target.portal, name=target.name, access=access) as connection:
                assert (connection.negotiated.header_digest, connection.negotiated.data_digest) == (agreed, agreed)
                assert len((await connection.execute(LUN_0, cdb.inquiry(36), 36)).data) == 36
        await no_session(target)


async def test_an_error_of_the_block_logs_out_and_comes_out_as_itself() -> None:
    async with running_target() as target:
        with pytest.raises(LookupError):
            async with session(target.portal, name=target.name):
                raise LookupError
        await no_session(target)


async def test_a_cancelled_block_still_logs_out() -> None:
    async with running_target() as target:
        with trio.CancelScope() as scope:
            async with session(target.portal, name=target.name) as connection:
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught and connection.error is None
        await no_session(target)


async def test_a_login_cancelled_at_any_moment_leaves_no_session() -> None:
    async with running_target([disk()], credentials=OURS) as target:
        access = replace(ACCESS, credentials=OURS)
        for checkpoints in range(60):
            with trio.CancelScope() as scope:
                async with running_plane() as plane, trio.open_nursery() as nursery:

                    async def cancel_later(scope: trio.CancelScope = scope, count: int = checkpoints) -> None:
                        for _ in range(count):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel_later)
                    connection = await log_in(plane, [portal(target.portal)], target.name, access)
                    nursery.cancel_scope.cancel()
                    await connection.logout()
            await no_session(target)


async def test_the_same_identity_ends_the_session_that_was_left_behind() -> None:
    """Reinstatement (RFC 7143 6.3.5): a restart after a crash takes its own session over."""
    async with running_target() as target, running_plane() as plane:
        left = await log_in(plane, [portal(target.portal)], target.name, ACCESS)
        async with session(target.portal, name=target.name):
            assert target.sessions == 1
            with trio.fail_after(5):
                await left.closed.wait()
        await no_session(target)


async def test_a_name_that_the_target_spells_otherwise_is_tried_as_it_was_written() -> None:
    async with running_target() as target:
        access = replace(ACCESS, spelled=target.name)
        async with session(target.portal, name="iqn.2026-11.test.isblk:normalized", access=access) as connection:
            assert connection.session.login is not None
        error = await refused(target.portal, name="iqn.2026-11.test.isblk:a", access=replace(ACCESS, spelled="iqn.2026-11.test.isblk:A"))
        assert isinstance(error, NotFound)


async def test_a_reply_that_never_comes_to_the_logout_does_not_keep_us() -> None:
    async with running_target() as target:
        async with session(target.portal, name=target.name) as connection:
            for one in list(target.server.connections):
                one.drop("gone without a word")
        assert connection.closed.is_set()


def test_no_repr_shows_a_secret() -> None:
    text = repr(replace(ACCESS, credentials=OURS, target_credentials=THEIRS))
    assert "me" in text
    assert OURS.secret.decode() not in text and THEIRS.secret.decode() not in text


# ------------------------------------------------------------------------------------------------ what no correct target ever does

NAME = "iqn.2026-11.test.isblk:target"


class Hand:
    """One connection of a target written by hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.stat_sn = 0x7FFFFFFF
        self._rest = b""

    async def hear(self, digests: bool = False) -> Sent:
        """The next PDU."""
        while True:
            if len(self._rest) >= 48:
                length = int.from_bytes(self._rest[5:8], "big")
                whole = 48 + length + -length % 4 + (4 + (4 if length else 0) if digests else 0)
                if len(self._rest) >= whole:
                    (sent,) = taken_apart(self._rest[:whole], digests)
                    self._rest = self._rest[whole:]
                    return sent
            received = await self.stream.receive_some()
            assert received, "the initiator closed the connection"
            self._rest += received

    def response(self, request: Sent, flags: int, data: bytes = b"", status: int = 0, tsih: int = 0) -> bytes:
        """A Login Response (RFC 7143 11.13)."""
        identity = request.bhs[8:14] + tsih.to_bytes(2, "big")
        tail = words(0, self.stat_sn, request.cmd_sn, request.cmd_sn + 31, status << 16)
        self.stat_sn = (self.stat_sn + 1) % 2**32
        return pdu_bytes(target_bhs(0x23, flags, lun=identity, itt=request.itt, tail=tail), data)

    async def security(self) -> None:
        """The security stage without authentication, and on to the operational one."""
        await self.stream.send_all(self.response(await self.hear(), 0x81, b"AuthMethod=None\0TargetPortalGroupTag=1\0"))

    async def operational(self) -> bytes:
        """Take the first choice of everything that is proposed; the response that ends the login, not sent yet."""
        request = await self.hear()
        offers = (pair.partition("=") for pair in request.data.decode().rstrip("\0").split("\0"))
        answers = "".join(f"{key}={value.split(',')[0]}\0" for key, _, value in offers if key != "MaxRecvDataSegmentLength")
        return self.response(request, 0x87, answers.encode(), tsih=1)

    async def logged_out(self, digests: bool = False) -> None:
        """Hear everything until a Logout, and answer that."""
        while (request := await self.hear(digests)).opcode != 0x06:
            pass
        tail = words(0, self.stat_sn, request.cmd_sn, request.cmd_sn + 31)
        await self.stream.send_all(pdu_bytes(target_bhs(0x26, itt=request.itt, tail=tail), digests=digests))


def by_hand(talk: Callable[[Hand], Awaitable[None]]) -> Any:
    """`listening` for a coroutine function that gets a Hand."""

    async def script(stream: trio.SocketStream) -> None:
        await talk(Hand(stream))

    return listening(script)


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("chunk", [1, 47, 1 << 20])
async def test_what_comes_right_behind_the_login_belongs_to_the_session(digests: bool, chunk: int) -> None:
    """The last login response and a ping in one stream, cut anywhere: digests begin between the two (RFC 7143 13.1)."""
    answered = trio.Event()

    async def talk(hand: Hand) -> None:
        await hand.security()
        last = await hand.operational()
        ping = pdu_bytes(target_bhs(0x20, itt=NO_TAG, tail=words(0x77, hand.stat_sn, 1, 32)), b"ping", digests=digests)
        stream = last + ping
        for at in range(0, len(stream), chunk):
            await hand.stream.send_all(stream[at : at + chunk])
        echo = await hand.hear(digests)
        assert (echo.opcode, echo.ttt, echo.itt, echo.data) == (0x00, 0x77, NO_TAG, b"ping")
        answered.set()
        await hand.logged_out(digests)

    wanted = "crc32c" if digests else "none"
    access = replace(ACCESS, header_digest=wanted, data_digest=wanted, timing=Timing())
    async with by_hand(talk) as where:
        async with session(where, name=NAME, access=access) as connection:
            await answered.wait()
        assert connection.error is None


async def test_rubbish_right_behind_the_login_ends_it() -> None:
    async def talk(hand: Hand) -> None:
        await hand.security()
        await hand.stream.send_all(await hand.operational() + b"\x3e".ljust(48, b"\0"))
        await silent(hand.stream)

    async with by_hand(talk) as where:
        assert where in str(await refused(where, name=NAME))


@pytest.mark.parametrize("hops", [1, REDIRECTS])
async def test_redirects_are_followed_up_to_a_bound(hops: int) -> None:
    came = 0

    async def talk(hand: Hand) -> None:
        nonlocal came
        came += 1
        if came <= hops:
            await hand.stream.send_all(hand.response(await hand.hear(), 0, f"TargetAddress={where}\0".encode(), 0x0101))
            await silent(hand.stream)
            return
        await hand.security()
        await hand.stream.send_all(await hand.operational())
        await hand.logged_out()

    async with by_hand(talk) as where, session(where, name=NAME):
        assert came == hops + 1


@pytest.mark.parametrize("text", [b"", b"TargetAddress=\0", b"TargetAddress=no address\0", b"TargetAddress=h:99999\0", b"\xff=\0"])
async def test_a_redirect_without_a_usable_address(text: bytes) -> None:
    async def talk(hand: Hand) -> None:
        await hand.stream.send_all(hand.response(await hand.hear(), 0, text, 0x0101))
        await silent(hand.stream)

    async with by_hand(talk) as where:
        error = await refused(where, name=NAME)
        assert isinstance(error, ProtocolError) and str(error).startswith(f"{where}: ")


async def test_a_target_that_hangs_up_over_the_list_of_algorithms_gets_one_retry() -> None:
    offered: list[bytes] = []

    async def talk(hand: Hand) -> None:
        await hand.stream.send_all(hand.response(await hand.hear(), 0, b"AuthMethod=CHAP\0TargetPortalGroupTag=1\0"))
        offered.append((await hand.hear()).data)

    async with by_hand(talk) as where:
        assert isinstance(await refused(where, name=NAME, access=replace(ACCESS, credentials=OURS)), LoginRefused)
    assert offered == [b"CHAP_A=8,7,6,5\0", b"CHAP_A=5\0"]


async def test_a_portal_that_falls_silent_between_the_stages(autojump_clock: MockClock) -> None:
    async def talk(hand: Hand) -> None:
        await hand.security()
        await silent(hand.stream)

    start = trio.current_time()
    async with by_hand(talk) as where:
        error = await refused(where, name=NAME, access=replace(ACCESS, timing=Timing()))
    assert isinstance(error, Unreachable) and "within 15 s" in str(error) and "--login-timeout" in str(error)
    assert trio.current_time() - start == pytest.approx(15)


async def test_a_web_server_is_no_portal() -> None:
    async def talk(hand: Hand) -> None:
        await hand.hear()
        await hand.stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with by_hand(talk) as where:
        assert where in str(await refused(where, name=NAME))


# ------------------------------------------------------------------------------------- names, addresses, credentials, discovery


async def test_a_cancelled_login_closes_its_connection() -> None:
    waiting, gone = trio.Event(), trio.Event()

    async def talk(hand: Hand) -> None:
        await hand.security()
        await hand.hear()
        waiting.set()
        await silent(hand.stream)
        gone.set()

    async with by_hand(talk) as where:
        async with running_plane() as plane, trio.open_nursery() as nursery:
            nursery.start_soon(log_in, plane, [portal(where)], NAME, replace(ACCESS, timing=Timing()))
            await waiting.wait()
            nursery.cancel_scope.cancel()
        await gone.wait()


async def test_every_address_of_a_name_is_tried() -> None:
    async with running_target() as target:
        port = portal(target.portal).port
        trio.socket.set_custom_hostname_resolver(Resolver({"nas.example": ["127.0.0.2", "127.0.0.1"], "void.example": []}))
        async with session(f"nas.example:{port}", name=target.name) as connection:
            assert str(connection.portal) == f"nas.example:{port}"
        assert "it has no address" in str(await refused(f"void.example:{port}", name=target.name))
        await no_session(target)


async def test_an_ipv6_portal() -> None:
    if not _has_loopback_v6():
        pytest.skip("this machine has no address ::1")
    async with running_target(portals=(PortalConfig("::1", 0),)) as target:
        assert target.portal.startswith("[::1]:")
        async with session(target.portal, name=target.name) as connection:
            assert str(connection.portal) == target.portal
        await no_session(target)


def _has_loopback_v6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_login_in_pieces_of_an_awkward_target() -> None:
    alias = "a long alias " * 10
    async with running_target(alias=alias, offer=AWKWARD, credentials=OURS, mutual=THEIRS) as target:
        access = replace(ACCESS, credentials=OURS, target_credentials=THEIRS)
        async with session(target.portal, name=target.name, access=access) as connection:
            assert connection.session.login.target_alias == alias
            await connection.ping()
        await no_session(target)


async def test_a_trace_shows_every_pdu_of_the_session() -> None:
    lines: list[tuple[str, str]] = []
    access = replace(ACCESS, trace=lambda *line: lines.append(line))
    async with running_target() as target, session(target.portal, name=target.name, access=access) as connection:
        await connection.ping()
    assert [direction for direction, _ in lines] == ["->", "<-"] * 4, "two stages of the login, a ping, a logout"
    assert [text.split()[0] for _, text in lines] == ["Login", "Login"] * 2 + ["NOP-Out", "NOP-In", "Logout", "Logout"]


async def test_with_credentials_none_is_not_taken_even_when_it_was_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Login, "_choose_method", lambda self, methods: "None")
    async with running_target() as target:
        error = await refused(target.portal, name=target.name, access=replace(ACCESS, credentials=OURS))
        assert isinstance(error, AuthenticationFailed) and "does not authenticate with CHAP (None)" in str(error)
        assert target.node.logins == 0
        await no_session(target)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (Credentials(THEIRS.name, b"what an impostor guesses"), "could not prove who it is"),
        (Credentials("another", THEIRS.secret), "in CHAP, not 'nas'"),
        (Credentials(THEIRS.name, OURS.secret), "with our own secret"),
    ],
)
async def test_a_target_that_cannot_prove_itself_is_left(known: Credentials, words: str) -> None:
    access = replace(ACCESS, credentials=OURS, target_credentials=THEIRS)
    async with running_target(credentials=OURS, mutual=known) as target:
        error = await refused(target.portal, name=target.name, access=access)
        assert isinstance(error, AuthenticationFailed) and words in str(error)
        assert target.node.logins == 0
        await no_session(target)


@pytest.mark.parametrize("there", ["stra\u00dfe", "strasse"])
async def test_the_normal_form_of_a_name_is_tried_first(there: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    prefix = "iqn.2026-11.test.isblk:"
    async with running_target(name=prefix + there) as target:
        access = replace(ACCESS, spelled=prefix + "stra\u00dfe")
        async with session(target.portal, name=prefix + "strasse", access=access):
            assert ("trying the name as it was written" in caplog.text) is (there != "strasse")
        await no_session(target)


@pytest.mark.parametrize("offer", [Offer(), Offer(text_chunk=16), Offer(text_chunk=16, text_by_c_bit=True), AWKWARD])
async def test_a_discovery_session_tells_the_targets_however_long_the_answer(offer: Offer) -> None:
    many = tuple(PortalConfig(port=0, tpgt=number, announced=f"nas-{number}.example:{3000 + number}") for number in range(1, 30))
    async with running_target(portals=many, offer=offer) as target:
        async with session(target.portal, name=None) as connection:
            assert [each.session_type for each in target.node.sessions.values()] == ["Discovery"]
            for _ in range(2):
                (record,) = await send_targets(connection, connection.portal)
                assert record.name == target.name
                assert list(map(str, record.portals)) == [f"nas-{n}.example:{3000 + n},{n}" for n in range(1, 30)]
        await no_session(target)


async def test_a_discovery_session_may_have_to_authenticate() -> None:
    async with running_target(credentials=OURS, mutual=THEIRS, discovery_auth=True) as target:
        error = await refused(target.portal, name=None)
        assert "the discovery service" in str(error) and "wants authentication" in str(error)
        access = replace(ACCESS, credentials=OURS, target_credentials=THEIRS)
        async with session(target.portal, name=None, access=access) as connection:
            assert [record.name for record in await send_targets(connection, connection.portal)] == [target.name]
        await no_session(target)
