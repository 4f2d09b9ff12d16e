"""Discovery and login at one portal, with real targets: what is said, and that no other session is ended by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from isblk.config import LoginOptions
from isblk.doctor.sessions import LOGOUT_SECONDS
from isblk.iscsi.chap import Credentials
from isblk.link.opening import opened
from isblk.link.running import running_plane
from isblk.state import claim_slot
from isblk.target.config import PortalConfig, Redirect
from support.doctor import examined, names, text, who
from support.targets import RunningTarget, disk, running_target
from support.waiting import free_port

TWO = (PortalConfig(port=0, tpgt=1), PortalConfig(port=0, tpgt=2))


@pytest.mark.provokes("reported", "logged-in", "keys", "keys-same", "disk", "paths-same", "access-best", "ping", "read", "throughput")
async def test_a_target_over_two_portals_is_well(tmp_path: Path) -> None:
    async with running_target(portals=TWO, alias="the disks") as target:
        report = await examined(tmp_path, target)
        assert target.sessions == 0
    assert report.exit_code == 0 and names(report).count("logged-in") == 2 and names(report).count("throughput") == 2
    first, second = target.portals
    assert report.findings[-1].section == "speed"
    assert [finding.text for finding in report.findings if finding.name == "logged-in"] == [
        f"{first} lets us in: portal group 1, which calls itself the disks",
        f"{second} lets us in: portal group 2, which calls itself the disks",
    ]


async def test_a_session_that_runs_is_left_alone(tmp_path: Path) -> None:
    """The ISID of a mount that lives is locked, and that of one that crashed is kept for the mount that will come back."""
    async with running_target() as target:
        subject = who(tmp_path, target.name, target.portals)
        with claim_slot(subject.state, f"{target.name} at {target.portal}") as slot:
            crashed = slot.isid
            access, portals = subject.access(slot.isid), subject.target.portals
            async with (
                running_plane() as plane,
                opened(plane, portals, target.name, access) as connection,
            ):
                slot.close()  # As if the daemon had been killed: nobody holds the lock, and the target still has the session.
                report = await examined(tmp_path, target)
                await connection.ping()
                assert target.sessions == 1 and not connection.closed.is_set()
        with claim_slot(subject.state, f"{target.name} at {target.portal}") as slot:
            assert slot.isid == crashed
    assert report.said("logged-in") and report.exit_code == 0


@pytest.mark.provokes("portals-unused")
async def test_portals_that_nobody_named(tmp_path: Path) -> None:
    async with running_target(portals=TWO) as target:
        report = await examined(tmp_path, target, [target.portal])
        second = target.portals[1]
    assert text(report, "portals-unused").endswith(f": {second}") and names(report).count("logged-in") == 1


async def test_all_portals_are_examined_when_asked(tmp_path: Path) -> None:
    async with running_target(portals=TWO) as target:
        report = await examined(tmp_path, target, [target.portal], all_portals=True)
    assert names(report).count("logged-in") == 2 and not report.said("portals-unused")


@pytest.mark.provokes("portal-out-of-reach")
async def test_a_portal_that_is_reported_and_not_to_be_reached(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with running_target(portals=(PortalConfig(port=0), PortalConfig(port=0, tpgt=2, announced=dead))) as target:
        report = await examined(tmp_path, target, [target.portal])
    assert text(report, "portal-out-of-reach").endswith("Connection refused")


@pytest.mark.provokes("reported-not", "target-unknown")
async def test_a_target_of_another_name(tmp_path: Path) -> None:
    async with running_target() as target:
        report = await examined(tmp_path, target, name=f"{target.name}s")
    assert text(report, "reported-not").endswith(f", but {target.name}") and report.exit_code == 3


@pytest.mark.provokes("reported-nothing")
async def test_a_portal_that_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_connection: object, _portal: object) -> list[object]:
        await trio.lowlevel.checkpoint()
        return []

    monkeypatch.setattr("isblk.doctor.sessions.send_targets", nothing)
    async with running_target() as target:
        await examined(tmp_path, target)


def credentials(tmp_path: Path, secret: str) -> LoginOptions:
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o600)
    return LoginOptions(user="me", secret_file=str(tmp_path / "secret"), login_timeout=5)


@pytest.mark.provokes("discovery-refused")
async def test_discovery_that_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"credentials": Credentials("me", b"a secret of ours"), "discovery_auth": True}
    async with running_target(**settings) as target:
        report = await examined(tmp_path, target, options=credentials(tmp_path, "another secret"))
    assert "check" not in text(report, "discovery-refused")


@pytest.mark.provokes("discovery-open")
async def test_discovery_that_wants_no_credentials(tmp_path: Path) -> None:
    async with running_target(credentials=Credentials("me", b"a secret of ours")) as target:
        report = await examined(tmp_path, target, options=credentials(tmp_path, "a secret of ours"))
    assert report.said("reported") and report.exit_code == 0


@pytest.mark.provokes("discovery-refused", "login-closed")
async def test_a_portal_that_hangs_up(tmp_path: Path) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(10_000)

    async with running_target() as target, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, hang_up, 0)
        report = await examined(tmp_path, target, [f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"])
        nursery.cancel_scope.cancel()
    assert report.exit_code == 4


@pytest.mark.provokes("discovery-failed", "login-late")
async def test_a_portal_that_says_nothing(tmp_path: Path) -> None:
    async def say_nothing(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with running_target() as target, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, say_nothing, 0)
        portal = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        report = await examined(tmp_path, target, [portal], options=LoginOptions(login_timeout=0.2))
        nursery.cancel_scope.cancel()
    assert text(report, "login-late") == f"{portal} did not finish the login within 0.2 s" and report.exit_code == 5


@pytest.mark.provokes("login-moved")
async def test_a_login_that_is_sent_on(tmp_path: Path) -> None:
    async with running_target() as target:
        door = PortalConfig(port=0, redirect=Redirect(target.portal, True))
        async with running_target([disk()], name=target.name, portals=(door,)) as front:
            report = await examined(tmp_path, RunningTarget(front.server))
    assert text(report, "login-moved") == f"{front.portal} sends the login on to {target.portal}"


@pytest.mark.provokes("slot-of-chance")
@pytest.mark.logs("no ISID can be kept")
async def test_where_no_identifier_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    async with running_target() as target:
        report = await examined(tmp_path, target)
    assert report.said("logged-in")


def test_a_logout_is_not_waited_for_long(tmp_path: Path) -> None:
    access = who(tmp_path, "iqn.2001-05.com.example:disks", ["10.0.0.5"]).access()
    assert access.timing.logout_timeout == LOGOUT_SECONDS and access.timing.login_timeout == 5
