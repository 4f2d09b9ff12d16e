"""Opening and closing sessions over real loopback sockets: portals in order, redirects, CHAP, digests, and no session left in the end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from isblk.errors import IsblkError, LoginRefused, NotFound, ProtocolError, Unreachable
from isblk.iscsi import chap
from isblk.iscsi.chap import Algorithm, Credentials
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection, Timing
from isblk.link.opening import REDIRECTS, Access, log_in, opened
from isblk.link.plane import running_plane
from isblk.scsi import cdb
from isblk.target.config import Offer, PortalConfig, Redirect
from support.targets import RunningTarget, disk, running_target
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
        while target.sessions or target.server.connections:  # noqa: ASYNC110 - the target tells nobody
            await trio.sleep(0.01)


@asynccontextmanager
async def listening(script: Any) -> AsyncIterator[str]:
    """A server that runs the coroutine function `script` on each connection; its portal."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, script, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


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
