"""The whole examination in its order: this machine, the network, discovery, login, logical units, paths, speed.

A check that failed ends only those that stand on it, and these say so. Everything has a deadline, and all of it together too: what there
was no time for is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from isblk.block.probe import Description
from isblk.block.stack import Disk, stack
from isblk.doctor import disks, machine, network, running, sessions, speed
from isblk.doctor.findings import Report
from isblk.doctor.sentences import SECTIONS
from isblk.doctor.sessions import Opened, Who
from isblk.doctor.speed import Bounds
from isblk.iscsi.names import Portal
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from isblk.scsi.lun_number import lun_text, lun_to_bytes

MOST_ANNOUNCED = 16
"""Portals that a target reports which are tried."""
Update = Callable[[float, str], None]
Bar = Callable[[str], AbstractContextManager[Update]]
"""Shows how far something is for the length of a block; it is given a label, and what it yields is told the share done, and words."""


@contextmanager
def no_bar(_label: str) -> Iterator[Update]:
    """For nobody."""
    yield lambda _done, _text: None


@dataclass
class Examination:
    """What to examine, and what is known by now. `lun` is the number that is meant (None: any disk); `deadline` in seconds for all."""

    report: Report
    who: Who
    run: Path
    lun: int | None = None
    all_portals: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    deadline: float = 120.0
    bar: Bar = no_bar
    daemons: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[Opened, dict[bytes, Description]]] = field(default_factory=list)
    _section: str = "configuration"
    _portals: list[Portal] = field(default_factory=list)

    async def run_all(self) -> None:
        """Every check. An expected failure becomes a finding, none is raised."""
        self._portals = list(self.who.target.portals)
        with trio.move_on_after(self.deadline) as scope:
            async with running_plane() as plane, AsyncExitStack() as opened:
                await self._all(plane, opened)
        if scope.cancelled_caught:
            order = list(SECTIONS)
            rest = [SECTIONS[name] for name in order[order.index(self._section) : -1]]
            self.report.say("out-of-time", seconds=f"{self.deadline:g}", rest=", ".join(rest))

    async def _all(self, plane: Plane, opened: AsyncExitStack) -> None:
        report = self.report
        can_log_in = sessions.credentials(report, self.who)
        self._section = "running"
        self.daemons = await trio.to_thread.run_sync(running.daemons, report, self.run, self.who.target.name, abandon_on_cancel=True)
        self._section = "network"
        answering = await self._network(self._portals)
        self._section = "discovery"
        more = await self._discovery(plane, answering, can_log_in)
        if self.all_portals:
            self._portals += more
            answering += await self._network(more)
        else:
            await sessions.announced(report, more)
        self._section = "login"
        inside = await self._login(plane, opened, answering, can_log_in)
        self._section = "disks"
        await self._disks(inside)
        self._section = "paths"
        if self.seen:
            disks.compare(report, [(one.portal, units) for one, units in self.seen])
            await disks.access(report, [(one.portal, one.connection, units) for one, units in self.seen])
        self._section = "speed"
        await self._speed(inside)

    async def _network(self, portals: list[Portal]) -> list[Portal]:
        """Those that answer."""
        answering = []
        for portal in portals:
            if not await network.resolve(self.report, portal):
                self.report.say("network-skipped", portal=portal)
            elif await network.answers(self.report, portal):
                answering.append(portal)
        return answering

    async def _discovery(self, plane: Plane, answering: list[Portal], can_log_in: bool) -> list[Portal]:
        """The portals that the target reports and nobody named."""
        found: list[Portal] = []
        for portal in self._portals:
            if portal not in answering:
                self.report.say("discovery-skipped", portal=portal, why="its port does not answer")
            elif not can_log_in:
                self.report.say("discovery-skipped", portal=portal, why="the credentials cannot be used")
            else:
                found += await sessions.discover(self.report, plane, self.who, portal)
        known = {(portal.host, portal.port) for portal in self._portals}
        known |= {address for portal in answering for address in await sessions.addresses(portal)}
        rest = {(one.host, one.port): replace(one, tpgt=None) for one in found if (one.host, one.port) not in known}
        return list(rest.values())[:MOST_ANNOUNCED]

    async def _login(self, plane: Plane, opened: AsyncExitStack, answering: list[Portal], can_log_in: bool) -> list[Opened]:
        inside: list[Opened] = []
        for portal in self._portals:
            if portal not in answering:
                self.report.say("login-skipped", portal=portal, why="its port does not answer")
            elif not can_log_in:
                self.report.say("login-skipped", portal=portal, why="the credentials cannot be used")
            else:
                one = await sessions.log_in(self.report, plane, self.who, portal, opened, inside[0] if inside else None)
                if one is not None:
                    inside.append(one)
        return inside

    async def _disks(self, inside: list[Opened]) -> None:
        if not inside:
            self.report.say("disks-skipped")
            return
        wanted = lun_to_bytes(self.lun) if self.lun is not None else None
        for one in inside:
            units = await disks.list_units(self.report, one.portal, one.connection)
            if units is not None:
                if not self.seen:
                    disks.describe(self.report, one.portal, units, wanted, self.who.name)
                self.seen.append((one, units))

    async def _speed(self, inside: list[Opened]) -> None:
        if not inside:
            self.report.say("speed-nowhere")
            return
        shown, rates = {one.portal: units for one, units in self.seen}, []
        for one in inside:
            rate = await self._speed_of(one, shown.get(one.portal, {}))
            if rate is not None:
                rates.append((one.portal, rate))
            network.losses(self.report, one.portal, one.conversation.tcp())
        speed.compare(self.report, rates)
        if not self.bounds.seconds:
            self.report.say("probe-declined")

    async def _speed_of(self, one: Opened, units: dict[bytes, Description]) -> float | None:
        ping = await speed.pings(self.report, one.portal, one.connection)
        disk = self._disk(one, units)
        if ping is None or disk is None:
            why = "it does not answer pings" if ping is None else "no disk to read is shown there"
            self.report.say("speed-skipped", portal=one.portal, why=why)
            return None
        lun = lun_text(disk.description.lun)
        if not await speed.small_reads(self.report, one.portal, lun, disk.gate, ping) or not self.bounds.seconds:
            return None
        with self.bar(f"reading from {one.portal} ") as update:
            probe = speed.Probe(disk.gate, self.bounds, update)
            await probe.run()
        return speed.tell(self.report, one.portal, lun, probe)

    def _disk(self, one: Opened, units: dict[bytes, Description]) -> Disk | None:
        """The disk that is meant, or the first that can be read."""
        usable = [unit for unit in units.values() if unit.refusal is None and unit.size]
        if self.lun is not None:
            usable = [unit for unit in usable if unit.lun == lun_to_bytes(self.lun)]
        return stack(one.connection, usable[0]) if usable else None


def look_around(report: Report, state: Path, option: str | None) -> str | None:
    """This machine and its configuration, before anything is asked of anybody; our name, None when there is none to use."""
    machine.look(report)
    running.settings(report)
    return running.our_name(report, state, option, os.environ)
