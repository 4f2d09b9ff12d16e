"""A path slot with logins that a test answers: back-off, Time2Wait, who is told of a reinstatement, redirects, leaving, the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from isblk.errors import IsblkError, NotFound, PathLost, RequestFailed, Unreachable
from isblk.iscsi.names import Isid, Portal
from isblk.link import keeper as keepers
from isblk.link.keeper import HASTE_SECONDS, BackOff, Keeper, Phase
from isblk.link.opening import Access
from isblk.link.running import running_plane

A, B = Portal("192.0.2.1", 3260), Portal("192.0.2.2", 3260)
ISID = Isid.from_random(1)
STEADY = BackOff(first=1, most=8, stable=10, jitter=0)


class Session:
    """A connection as the keeper sees it."""

    def __init__(self, portal: Portal, group: int) -> None:
        self.portal = portal
        self.session = SimpleNamespace(login=SimpleNamespace(tpgt=group))
        self.closed = trio.Event()
        self.error: IsblkError | None = None
        self.fault = ""
        self.time2wait = 2.0
        self.moved_to: Portal | None = None
        self.on_leaving: Callable[[], None] | None = None
        self.logouts = 0

    async def watch(self) -> None:
        await self.closed.wait()

    async def logout(self) -> None:
        self.logouts += 1
        await trio.lowlevel.checkpoint()
        if not self.closed.is_set():
            self.time2wait = 0.0
        self.closed.set()

    def lose(self) -> None:
        self.error = PathLost("reset by peer")
        self.closed.set()


class Network:
    """Answers logins: `groups` by portal; `dead` refuse, `mute` are silent for the login timeout. Is the keeper's owner too."""

    def __init__(self) -> None:
        self.groups = {A: 1, B: 1}
        self.dead: set[Portal] = set()
        self.mute: set[Portal] = set()
        self.moves: dict[Portal, Portal] = {}
        self.logins: list[tuple[float, Portal]] = []
        self.sessions: list[Session] = []
        self.told: list[tuple[float, str]] = []
        self.others: Sequence[Portal] = ()
        self.refusal: IsblkError | None = None
        self.refusals: list[str] = []
        self.preparing = 0.0

    async def log_in(self, plane: object, portals: Sequence[Portal], name: str, access: Access) -> Any:
        (portal,) = portals
        assert access.isid == ISID
        self.logins.append((trio.current_time(), portal))
        await trio.lowlevel.checkpoint()
        if portal in self.mute:
            await trio.sleep(access.timing.login_timeout)
        if portal in self.dead | self.mute:
            raise Unreachable(f"{portal} cannot be reached")
        reached = self.moves.get(portal, portal)
        session = Session(portal, self.groups[reached])
        session.moved_to = self.moves.get(portal)
        self.sessions.append(session)
        return session

    def note(self, what: str) -> None:
        self.told.append((trio.current_time(), what))

    @property
    def words(self) -> list[str]:
        return [what for _, what in self.told]

    async def prepare(self, keeper: Keeper, connection: Any) -> None:
        await trio.sleep(self.preparing)
        if self.refusal is not None:
            raise self.refusal

    def up(self, keeper: Keeper, connection: Any) -> None:
        self.note("up")

    def leaving(self, keeper: Keeper) -> None:
        self.note("leaving")

    def down(self, keeper: Keeper, error: IsblkError) -> None:
        self.note("down")

    def reinstated(self, keeper: Keeper) -> None:
        self.note("reinstated")

    def refused(self, keeper: Keeper, error: IsblkError) -> None:
        self.refusals.append(str(error))

    def siblings(self, keeper: Keeper) -> Sequence[Portal]:
        return self.others


@asynccontextmanager
async def kept(network: Network, monkeypatch: pytest.MonkeyPatch, back_off: BackOff = STEADY) -> AsyncIterator[Keeper]:
    """A running keeper for portal A."""
    monkeypatch.setattr(keepers, "log_in", network.log_in)
    async with running_plane() as plane, trio.open_nursery() as nursery:
        keeper = Keeper(plane, A, "iqn.2026-11.test:t", Access("iqn.2026-11.test:i", ISID), cast(Any, network), back_off)
        nursery.start_soon(keeper.run)
        await wait_all_tasks_blocked()
        yield keeper
        nursery.cancel_scope.cancel()


def times(network: Network, portal: Portal = A) -> list[float]:
    start = network.logins[0][0]
    return [round(when - start, 3) for when, where in network.logins if where == portal]


async def test_the_ladder_of_attempts(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.dead.add(A)
    async with kept(network, monkeypatch) as keeper:
        await trio.sleep(30)
        assert times(network) == [0, 1, 3, 7, 15, 23]
        assert (keeper.phase, keeper.failures) == (Phase.DOWN, 6) and "cannot be reached" in keeper.reason
        network.dead.clear()
        await trio.sleep(8)
        assert keeper.phase is Phase.UP and network.words == ["reinstated", "up"]


async def test_jitter_stays_within_its_bounds(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.dead.add(A)
    async with kept(network, monkeypatch, BackOff(first=1, most=1, jitter=0.2)):
        await trio.sleep(50)
        found = times(network)
        gaps = {round(later - earlier, 3) for earlier, later in pairwise(found)}
        assert all(0.8 <= gap <= 1.2 for gap in gaps) and len(gaps) > 10


async def test_impatience_shortens_a_pause_but_is_no_busy_loop(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.dead.add(A)
    async with kept(network, monkeypatch) as keeper:
        for _ in range(1000):
            await trio.sleep(0.01)
            keeper.hurry()
        assert 5 <= len(network.logins) <= 11


async def test_time2wait_is_honoured_and_the_reinstatement_told_after_the_login(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    async with kept(network, monkeypatch) as keeper:
        await trio.sleep(60)
        network.told.clear()
        start = trio.current_time()
        network.sessions[0].lose()
        await trio.sleep(5)
        assert [(round(when - start, 3), what) for when, what in network.told] == [(0, "down"), (2, "reinstated"), (2, "up")]
        assert keeper.logins == 2


async def test_a_session_that_does_not_live_long_is_not_tried_again_at_once(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    async with kept(network, monkeypatch):
        for _ in range(4):
            network.sessions[-1].lose()
            await trio.sleep(12)
            network.sessions[-1].lose()
            await trio.sleep(1)
        assert len(network.logins) < 8


async def test_another_portal_of_the_group_ends_the_session(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.others = [B]
    async with kept(network, monkeypatch) as keeper:
        await trio.sleep(60)
        network.mute.add(A)
        network.told.clear()
        start = trio.current_time()
        network.sessions[0].lose()
        await trio.sleep(4)
        assert [(round(when - start, 3), what) for when, what in network.told] == [(0, "down"), (2 + HASTE_SECONDS, "reinstated")]
        helper = network.sessions[-1]
        assert helper.portal == B and helper.logouts == 1 and keeper.phase is Phase.DOWN
        await trio.sleep(60)
        assert len([where for _, where in network.logins if where == B]) == 1, "once is enough"


async def test_another_group_ends_nothing(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.others = [B]
    network.groups[B] = 2
    async with kept(network, monkeypatch):
        await trio.sleep(60)
        network.dead.add(A)
        network.told.clear()
        network.sessions[0].lose()
        await trio.sleep(60)
        assert network.words == ["down"]


async def test_a_portal_that_moved_to_another_group_ends_nothing_either(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login succeeds, but with another nexus: the old session lives on (6.3.5)."""
    network = Network()
    async with kept(network, monkeypatch):
        await trio.sleep(60)
        network.groups[A] = 7
        network.told.clear()
        network.sessions[0].lose()
        await trio.sleep(5)
        assert network.words == ["down", "up"]


async def test_only_a_permanent_redirect_is_remembered(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    async with kept(network, monkeypatch) as keeper:
        assert keeper.portal == A
        network.moves[A] = B
        network.sessions[0].lose()
        await trio.sleep(5)
        assert keeper.portal == B
        network.sessions[-1].lose()
        await trio.sleep(5)
        assert network.logins[-1][1] == B


async def test_a_session_that_is_left_is_followed_by_another(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    async with kept(network, monkeypatch):
        await trio.sleep(60)
        session = network.sessions[0]
        assert session.on_leaving is not None
        network.told.clear()
        session.on_leaving()
        await session.logout()
        await trio.sleep(1)
        assert network.words == ["leaving", "down", "reinstated", "up"], "what it still had was ended by the logout: that is told as well"


async def test_the_wrong_unit_is_asked_for_slowly_whoever_is_impatient(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.refusal = NotFound("another logical unit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keepers._log, "error", lambda *arguments, **_: network.note("said"))
        async with kept(network, monkeypatch) as keeper:
            for _ in range(300):
                await trio.sleep(0.1)
                keeper.hurry()
            assert keeper.phase is Phase.WRONG and len(network.logins) <= 5 and network.words.count("said") == 1
            assert "up" not in network.words and all(session.logouts for session in network.sessions[:-1])
            network.refusal = None
            await trio.sleep(9)
            assert keeper.phase is Phase.UP


async def test_a_path_that_is_lost_while_it_is_looked_at(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.refusal = PathLost("gone")
    async with kept(network, monkeypatch) as keeper:
        network.refusal = None
        assert keeper.phase is Phase.DOWN
        await trio.sleep(5)
        assert keeper.phase is Phase.UP and "down" not in network.words


async def test_the_end_logs_out(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    async with kept(network, monkeypatch) as keeper:
        await trio.sleep(1)
    assert network.sessions[0].logouts == 1 and keeper.phase is Phase.ENDED and network.words[-1] == "down"


@pytest.mark.logs("is not used: it is another unit")
async def test_a_refusal_is_told_once_for_each_reason(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.dead.add(A)
    async with kept(network, monkeypatch) as keeper:
        await trio.sleep(30)
        assert len(network.refusals) == 1 and "cannot be reached" in network.refusals[0] and keeper.failures == 6
        network.dead.clear()
        network.refusal = RequestFailed("it is another unit")
        await trio.sleep(60)
        assert network.refusals[1:] == ["it is another unit"]


async def test_ends_of_sessions_are_counted_by_what_ended_them(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    async with kept(network, monkeypatch) as keeper:
        for fault in ("", "digest", "lost"):
            await trio.sleep(60)
            network.sessions[-1].fault = fault
            network.sessions[-1].lose()
        await trio.sleep(60)
        assert keeper.ends == {"lost": 2, "digest": 1} and keeper.logins == 4
