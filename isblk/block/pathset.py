"""The paths of one target: a keeper for each portal, and over them a Multipath for each logical unit that is used.

It looks at every new connection before it is used: the same logical unit must be behind the number (identity is pinned when the device is
made, and compared after every login), and where acknowledged writes are not yet flushed, another session must have lived through, or the
target may have restarted and lost them (SPC-4 7.8.5, reliability: identity, flush).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from isblk.block.choose import PathState
from isblk.block.events import Events, Kind
from isblk.block.fence import is_alone
from isblk.block.gate import Gate
from isblk.block.lun import LogicalUnit
from isblk.block.multipath import Multipath
from isblk.block.path import CARRYING, Path, Unit, port_group
from isblk.block.policies import Policies
from isblk.block.probe import CommandFailed, Description, Link, execute, geometry, probe
from isblk.errors import DATA_LOSS, IsblkError, NotFound, PathLost
from isblk.iscsi.names import Portal
from isblk.link.connection import Connection
from isblk.link.keeper import Keeper, Phase
from isblk.link.plane import Plane
from isblk.scsi import cdb
from isblk.scsi.data import AccessState, parse_target_port_groups
from isblk.scsi.lun_number import lun_from_bytes, lun_text
from isblk.scsi.sense import Attention

_log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
GROUPS_ALLOCATION = 4096
TRANSITION_SECONDS = 1.0
"""How often a port group in transition is asked again."""
STANDBY_SECONDS = 2.0
"""How often one that carries nothing is."""


class WrongUnit(NotFound):
    """Another logical unit than before is behind the number: nothing may be read from it, nothing written."""


@dataclass(frozen=True)
class _Prepared:
    """One logical unit of a new connection, ready to be used."""

    unit: LogicalUnit
    access: AccessState
    preferred: bool


class PathSet:
    """Owner of the keepers (link/keeper.Owner). `devices` by 8-byte LUN; `gates` in front of them are given the time too.

    `events` are told what happens; those of a daemon outlive its sessions.
    """

    def __init__(self, plane: Plane, policies: Policies, events: Events | None = None) -> None:
        self.keepers: list[Keeper] = []
        self.devices: dict[bytes, Multipath] = {}
        self.gates: list[Gate] = []
        self.events = Events() if events is None else events
        self._pinned: dict[bytes, Description] = {}
        self._plane = plane
        self._policies = policies
        self._prepared: dict[Keeper, dict[bytes, _Prepared]] = {}
        self._asked: dict[Path, bool] = {}
        self._contradicted: dict[Path, float] = {}

    def add_keeper(self, keeper: Keeper) -> None:
        """A path slot; before any device is added."""
        self.keepers.append(keeper)

    def add_device(self, found: Description) -> Multipath:
        """A device over all keepers, pinned to this identity; its paths are down until their keepers bring them up."""
        lun = lun_from_bytes(found.lun)
        device = Multipath(f"LUN {lun_text(found.lun)}", geometry(found), self._policies, self._plane.start_soon, lun)
        device.events = self.events
        device.paths = [Path(number, keeper, self._policies.queue_depth) for number, keeper in enumerate(self.keepers)]
        for path in device.paths:
            path.on_change = partial(_tell_path, device)
        device.on_no_path = self._hurry
        device.on_access_changed = partial(self.spawn_access, device)
        self.devices[found.lun] = device
        self._pinned[found.lun] = found
        return device

    def follow(self, policies: Policies) -> None:
        """From now on, use the paths of every device like this."""
        self._policies = policies
        for device in self.devices.values():
            device.follow(policies)

    @property
    def policies(self) -> Policies:
        """How the paths are used."""
        return self._policies

    def _hurry(self) -> None:
        for keeper in self.keepers:
            keeper.hurry()

    # ------------------------------------------------------------------ the keepers' owner

    async def prepare(self, keeper: Keeper, connection: Connection) -> None:
        """Probe every unit over a new connection and compare it with what was pinned. Raises WrongUnit, RequestFailed, PathLost."""
        ready, alone = {}, not self._policies.shared
        for lun, device in list(self.devices.items()):
            found = await probe(connection, lun)
            self.check_identity(found)
            await self._check_size(device, found)
            unit = LogicalUnit(connection, found, splits=self._policies.queue_depth is None)
            access, preferred = await self._access(connection, found)
            ready[lun] = _Prepared(unit, access, preferred)
            alone = alone and await self._alone(connection, lun)
        connection.may_reset = alone
        await self._confirm_others(keeper)
        self._prepared[keeper] = ready

    def check_identity(self, found: Description) -> None:
        """Raise WrongUnit unless it is the logical unit that was pinned: its designators, where it has none serial number and names."""
        pinned = self._pinned[found.lun]
        where = f"LUN {lun_text(found.lun)}"
        if found.refusal is not None:
            raise WrongUnit(found.refusal)
        if found.block_size != pinned.block_size:
            raise WrongUnit(f"{where} has blocks of {found.block_size} bytes now, not of {pinned.block_size}; mount it again")
        if (found.wwid, found.serial) != (pinned.wwid, pinned.serial):
            ours, theirs = pinned.wwid or pinned.serial, found.wwid or found.serial
            raise WrongUnit(f"{where} is another logical unit ({theirs}) than the one that was mounted ({ours}); check the target")
        if pinned.wwid is None and len(self.keepers) > 1:
            raise WrongUnit(f"{where} has no identifier (VPD 83), so two paths cannot be known to lead to the same; use one portal")
        if found.wwid != pinned.wwid or found.identity.product != pinned.identity.product:
            raise WrongUnit(f"{where} is a {found.identity.product} now, not the {pinned.identity.product} that was mounted")

    async def _check_size(self, device: Multipath, found: Description) -> None:
        """Paths of one unit agree on its size, once those that live have been asked again: it may have been resized meanwhile."""
        if device.live and device.geometry.size != found.size:
            await self.refresh(device)
        if device.live and device.geometry.size != found.size:
            theirs, ours = found.size, device.geometry.size
            raise WrongUnit(f"{device.name} has {theirs} bytes here and {ours} over the other paths; check the target")

    async def _alone(self, connection: Connection, lun: bytes) -> bool:
        try:
            return await is_alone(connection, lun)
        except CommandFailed:
            return False

    async def _confirm_others(self, keeper: Keeper) -> None:
        """With unflushed writes, see that another session outlived this login; one that is dead unnoticed counts as lost from here on.

        A target that restarted answers nothing on an old session. Without this, the path that came back first would read the state before
        the writes, and nobody would know. Writes on their way count: their answers may have left the target before it restarted.
        Units are asked, not only the session: one that lost power behind it has told the session that was lost, perhaps, or none yet.
        """
        if not any(len(device.journal) or any(path.in_flight for path in device.paths) for device in self.devices.values()):
            return
        for other in self.keepers:
            if other is keeper or other.phase is not Phase.UP or other.connection is None:
                continue
            try:
                await other.connection.ping()
                for device in self.devices.values():
                    unit = self._path(device, other).unit
                    if unit is not None:
                        await unit.listen()
            except PathLost as error:
                self.down(other, error)
            else:
                return

    def up(self, keeper: Keeper, connection: Connection) -> None:
        """Let the devices use the connection."""
        self.events.add(Kind.LOGIN, f"logged in to {keeper.portal}", path=str(keeper.portal), portal_group=keeper.portal_group)
        for lun, ready in self._prepared.pop(keeper, {}).items():
            device = self.devices[lun]
            path = self._path(device, keeper)
            path.unit, path.connection = ready.unit, connection
            path.access, path.preferred = ready.access, ready.preferred
            ready.unit.on_attention = self._attention_of(device, path)
            ready.unit.on_full = partial(device.full, path)
            self._take_capacity(device, ready.unit)
            device.gain(path)

    def leaving(self, keeper: Keeper) -> None:
        """The target asked for a logout: what is on its way may end, nothing new is sent."""
        for device in self.devices.values():
            device.lose(self._path(device, keeper), PathLost(f"{keeper.portal} asked for a logout", sent=False))
            device.again()

    def down(self, keeper: Keeper, error: IsblkError) -> None:
        """A session has ended."""
        lost = not isinstance(error, PathLost) or error.sent
        self.events.add(Kind.SESSION_LOST if lost else Kind.LOGOUT, str(error), path=str(keeper.portal))
        for device in self.devices.values():
            device.lose(self._path(device, keeper), error)

    def reinstated(self, keeper: Keeper) -> None:
        """The target has ended the old session of this slot."""
        for device in self.devices.values():
            path = self._path(device, keeper)
            if path.unit is None:
                path.ended = path.session
            device.fence.changed()

    def refused(self, keeper: Keeper, error: IsblkError) -> None:
        """A login failed, or what is behind it may not be used; said once for each reason."""
        kind = Kind.WRONG_UNIT if keeper.phase is Phase.WRONG else Kind.LOGIN_FAILED
        self.events.add(kind, str(error), path=str(keeper.portal), error=error.kind)

    def siblings(self, keeper: Keeper) -> Sequence[Portal]:
        """Portals of the same portal group."""
        if keeper.portal_group is None:
            return []
        return [other.portal for other in self.keepers if other is not keeper and other.portal_group == keeper.portal_group]

    def _path(self, device: Multipath, keeper: Keeper) -> Path:
        return next(path for path in device.paths if path.keeper is keeper)

    # ------------------------------------------------------------------ what units announce

    def _attention_of(self, device: Multipath, path: Path) -> AttentionHandler:
        return AttentionHandler(self, device, path)

    async def refresh(self, device: Multipath) -> None:
        """Ask each live path for the capacity, and take it up."""
        for path in list(device.live):
            unit = path.unit
            if unit is None:
                continue
            try:
                await unit.refresh()
            except IsblkError as error:
                _log.info("%s: the capacity cannot be read over %s: %s", device.name, path.keeper.portal, error)
            else:
                self._take_capacity(device, unit)

    def _take_capacity(self, device: Multipath, unit: Unit) -> None:
        now, new = device.geometry, unit.geometry
        if new.size == now.size:
            if new != now:
                device.resize(new)
            return
        device.resize(new)
        device.tell(Kind.RESIZED, f"its size is {new.size} bytes now, not {now.size}", before=now.size, after=new.size)
        if new.size > now.size:
            _log.warning("%s has grown from %d to %d bytes", device.name, now.size, new.size)
        else:
            _log.error(
                "%s has shrunk from %d to %d bytes: requests beyond its end are refused", device.name, now.size, new.size, extra=DATA_LOSS
            )

    async def read_access(self, device: Multipath, path: Path) -> None:
        """Read the access state of a path, and go on while it carries nothing; once at a time, however many requests found that out."""
        session = path.session
        self._asked[path] = False
        try:
            if trio.current_time() < self._contradicted.get(path, -math.inf) + TRANSITION_SECONDS:
                # It refused requests, said that it carries, and refuses again: believed at once each time, requests would be spent on it.
                await trio.sleep(TRANSITION_SECONDS)
            while path.connection is not None and path.unit is not None and path.session == session:
                self._asked[path] = False
                try:
                    access, preferred = await self._access(path.unit.link, path.unit.description)
                except IsblkError as error:
                    _log.info("%s: the access state of %s cannot be read: %s", device.name, path.keeper.portal, error)
                else:
                    if path.unit is not None and path.session == session:
                        refused = path.state is PathState.STANDBY and path.access in CARRYING
                        device.take_access(path, access, preferred)
                        if refused and path.carries:
                            self._contradicted[path] = trio.current_time()
                if path.carries and not self._asked[path]:
                    return
                await trio.sleep(TRANSITION_SECONDS if path.access is AccessState.TRANSITIONING or self._asked[path] else STANDBY_SECONDS)
        finally:
            del self._asked[path]

    async def _access(self, link: Link, found: Description) -> tuple[AccessState, bool]:
        """The asymmetric access state of the port we came through (SPC-4 5.15); a unit without ALUA is active/optimized everywhere."""
        group = port_group(found)
        if not found.identity.target_port_group_support or group is None:
            return AccessState.OPTIMIZED, False
        answer = await execute(link, found.lun, cdb.report_target_port_groups(GROUPS_ALLOCATION), GROUPS_ALLOCATION)
        for one in parse_target_port_groups(answer):
            if one.identifier == group:
                return one.state, one.preferred
        return AccessState.OPTIMIZED, False

    # ------------------------------------------------------------------ running

    async def tick(self) -> None:
        """Time for the devices, until cancelled: failback, giving up, the capacity poll."""
        polled = trio.current_time()
        while True:
            await trio.sleep(TICK_SECONDS)
            now = trio.current_time()
            for device in self.devices.values():
                device.tick(now)
            for gate in self.gates:
                gate.tick()
            if self._policies.poll_interval and now - polled >= self._policies.poll_interval:
                polled = now
                for device in self.devices.values():
                    await self._poll(device)

    async def _poll(self, device: Multipath) -> None:
        """What units announce may reach a command of control, which only asks again: so ask now and then anyhow."""
        for path in list(device.live):
            self.spawn_access(device, path)
        with trio.move_on_after(self._policies.poll_interval):
            await self.refresh(device)

    def spawn_refresh(self, device: Multipath) -> None:
        """Read the capacity soon."""
        self._plane.start_soon(self.refresh, device)

    def spawn_access(self, device: Multipath, path: Path) -> None:
        """Read the access state soon, or once more when it is being read."""
        if path in self._asked:
            self._asked[path] = True
        else:
            self._asked[path] = False
            self._plane.start_soon(self.read_access, device, path)


_PATH_KINDS = {
    PathState.UP: Kind.PATH_UP,
    PathState.STANDBY: Kind.PATH_STANDBY,
    PathState.FENCING: Kind.PATH_FENCING,
    PathState.DOWN: Kind.PATH_DOWN,
}


def _tell_path(device: Multipath, path: Path) -> None:
    """A path of a device is in another state."""
    reason = f": {path.reason}" if path.reason else ""
    device.tell(_PATH_KINDS[path.state], f"path {path.keeper.portal} is {path.state.value}{reason}", path=str(path.keeper.portal))


class AttentionHandler:
    """What a unit announces, for its device: a callable that LogicalUnit calls."""

    def __init__(self, paths: PathSet, device: Multipath, path: Path) -> None:
        self._paths = paths
        self._device = device
        self._path = path

    def __call__(self, kind: Attention) -> None:
        """Act on it."""
        if kind is Attention.CAPACITY_CHANGED:
            self._paths.spawn_refresh(self._device)
        elif kind in (Attention.MODE_CHANGED, Attention.RESET, Attention.POWER_ON) and self._path.unit is not None:
            # There may be a cache now: it is believed in until the mode has been read, and the next poll takes up what that said.
            self._device.resize(replace(self._device.geometry, write_cache=True))
            if kind is Attention.POWER_ON:
                self._device.powered_on()
        elif kind is Attention.PATHS_CHANGED:
            for path in list(self._device.live):
                self._paths.spawn_access(self._device, path)
        elif kind in (Attention.IDENTITY_CHANGED, Attention.LUNS_CHANGED) and self._path.connection is not None:
            # Whether it is still the same unit is found out as after a login: by logging in again.
            self._path.connection.leave(f"{self._device.name} announced that it may be another logical unit", 2)
