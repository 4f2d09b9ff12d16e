"""Discovery and login at one portal: the findings, and for a login that succeeded the session, which lasts as long as its block.

Each login has an ISID slot of the doctor's own, for a purpose that no mount has: it never takes the identifier of a session that runs, nor
of one that a mount will come back for, so no session is ended by it (RFC 7143 6.3.5).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import trio

from isblk.config import LoginOptions, Target, make_access
from isblk.discover.sendtargets import TargetRecord, send_targets
from isblk.doctor import keys, network, proof
from isblk.doctor.findings import Report
from isblk.doctor.listening import Conversation, Listener, MakeTap
from isblk.errors import IsblkError, LoginRefused, Unreachable
from isblk.iscsi.login import Agreement, AuthenticationFailed
from isblk.iscsi.names import Isid, Portal, printable
from isblk.link.connection import Connection
from isblk.link.opening import Access, opened
from isblk.link.plane import Plane
from isblk.state import claim_slot

LOGOUT_SECONDS = 3.0
DISCOVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Who:
    """Who logs in, as a command line says it; `taps` and `trace` as in link.opening.Access."""

    name: str
    state: Path
    options: LoginOptions
    target: Target
    taps: tuple[MakeTap, ...] = ()
    trace: Callable[[str, str], None] | None = None

    def access(self, isid: Isid | None = None) -> Access:
        """How to log in. Raises UsageError for credentials that cannot be."""
        found = make_access(self.name, isid or Isid.from_random(0), self.options, target=self.target, trace=self.trace)
        return replace(found, timing=replace(found.timing, logout_timeout=LOGOUT_SECONDS))


@dataclass(frozen=True)
class Opened:
    """A session at one portal, and what was heard of its login."""

    portal: Portal
    connection: Connection
    conversation: Conversation


def credentials(report: Report, who: Who) -> bool:
    """Whether what is to be proved can be."""
    try:
        access = who.access()
    except IsblkError as error:
        report.say("secrets-wrong", reason=error)
        return False
    if access.credentials is not None:
        mutual = access.target_credentials
        report.say("secrets-ready", user=access.credentials.name, mutual=f", and the target must be {mutual.name}" if mutual else "")
    return True


async def discover(report: Report, plane: Plane, who: Who, portal: Portal) -> list[Portal]:
    """Ask a portal for its targets; returns the portals that it reports of ours."""
    try:
        records = await _records(report, plane, who, portal)
    except LoginRefused as error:
        report.say("discovery-refused", portal=portal, reason=_without(error, portal))
        return []
    except IsblkError as error:
        report.say("discovery-failed", portal=portal, reason=_without(error, portal))
        return []
    if not records:
        report.say("reported-nothing", portal=portal, initiator=who.name)
        return []
    found = [one for record in records if record.name in (who.target.name, who.target.spelled) for one in record.portals]
    if found:
        report.say("reported", portal=portal, portals=", ".join(map(str, found)))
    else:
        names = [printable(record.name) for record in records]
        near = get_close_matches(who.target.name, names, 1) or names[:1]
        report.say("reported-not", portal=portal, near=f", but {near[0]}", initiator=who.name)
    return found


async def _records(report: Report, plane: Plane, who: Who, portal: Portal) -> list[TargetRecord]:
    """Ask with the target's credentials, as --all-portals does, and where these are refused without."""
    with claim_slot(who.state, f"doctor: discovery at {portal}") as slot:
        access = who.access(slot.isid)
        try:
            return await _ask(plane, portal, access)
        except AuthenticationFailed as error:
            refusal = error
        if access.credentials is None:
            raise refusal
        try:
            records = await _ask(plane, portal, replace(access, credentials=None, target_credentials=None))
        except IsblkError:
            raise refusal from None
        report.say("discovery-open", portal=portal)
        return records


async def _ask(plane: Plane, portal: Portal, access: Access) -> list[TargetRecord]:
    with trio.move_on_after(DISCOVERY_SECONDS):
        async with opened(plane, [portal], None, access) as connection:
            return await send_targets(connection, portal)
    raise Unreachable(f"{portal}: no answer within {DISCOVERY_SECONDS:g} s")


async def announced(report: Report, found: list[Portal]) -> None:
    """Portals that the target reports and nobody named: are they to be reached?"""
    unused = []
    for portal in found:
        reason = await network.reason_not_reached(portal)
        if reason is None:
            unused.append(portal)
        else:
            report.say("portal-out-of-reach", portal=portal, reason=reason)
    if unused:
        report.say("portals-unused", portals=", ".join(map(str, unused)))


async def log_in(report: Report, plane: Plane, who: Who, portal: Portal, stack: AsyncExitStack, before: Opened | None) -> Opened | None:
    """Log in for as long as `stack` lasts, and say how that went; `before` is the session at an earlier portal."""
    slot = stack.enter_context(claim_slot(who.state, f"doctor: {who.target.name} at {portal}"))
    if slot.number is None and before is None:
        report.say("slot-of-chance", state=who.state)
    listener = Listener(who.taps)
    access = replace(who.access(slot.isid), tap=listener)
    try:
        connection = await stack.enter_async_context(opened(plane, [portal], who.target.name, access))
    except IsblkError as error:
        proof.refusal(report, portal, access, listener, error)
        return None
    last = listener.last
    assert last is not None
    _tell(report, portal, connection, before)
    if before is None:
        proof.explain(report, access, listener)
    return Opened(portal, connection, last)


async def addresses(portal: Portal) -> set[tuple[str, int]]:
    """Where a portal is, by whatever name."""
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(each[4][0]), portal.port) for each in found}


def _tell(report: Report, portal: Portal, connection: Connection, before: Opened | None) -> None:
    login = connection.session.login
    words = "".join(one if one.isprintable() else "?" for one in login.target_alias or "")
    alias = f", which calls itself {words}" if words else ""
    report.say("logged-in", portal=portal, group=login.tpgt, alias=alias)
    other = connection.portal
    if (other.host, other.port) != (portal.host, portal.port):
        report.say("login-moved", portal=portal, other=other)
    keys.explain(report, portal, _comparable(login.agreements), _comparable(before.connection.session.login.agreements) if before else None)
    if before is None:
        keys.costs(report, connection.negotiated, login.max_cmd_sn - login.exp_cmd_sn + 1 & 0xFFFFFFFF)


def _comparable(agreements: tuple[Agreement, ...]) -> list[Agreement]:
    """Without what is another for every portal."""
    return [one for one in agreements if not one.key.startswith(("TargetPortalGroupTag", "TargetAddress"))]


def _without(error: IsblkError, portal: Portal) -> str:
    """What failed, without where and without the advice."""
    return str(error).removeprefix(f"{portal}: ").partition("; ")[0]
