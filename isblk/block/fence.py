"""The fence: when a change sent over a path that is lost may be repeated, and what must wait until then (RFC 7143 6.3.5, 7.14, 7.15).

Theory of operation. Its bytes may be on the network, or taken in by the target. The ladder, each rung waited for:

1. Its session is ended by reinstatement: the same ISID logged in again, through its own portal or a sibling (link/keeper.py tells).
   That stops what is on the network; whether it stops what was taken in depends on the target (LIO waits for it, tgt does not).
2. LOGICAL UNIT RESET over a path that lives, where the unit is ours alone: nobody else's key is registered and it is not configured shared.
   It is answered when everything older has ended. Our own requests are held and awaited first, so that it hits nothing of ours.
3. Where one of the two cannot be had, a bounded wait: before a reset alone `network_wait` after the loss, for what may still be under way;
   after a reinstatement alone `settle_wait`; with neither `fence_wait`.

Until then `holds` says which new changes overlap one that is unfenced. When all sessions were lost, the journal is done again before
anything else, and before the ladder, which may take long: what is unfenced is newer than what it overlaps in the journal, and will be
repeated; only reads of its bytes wait from then on, for they might see the newer state before the older.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from isblk.block import probe
from isblk.block.events import Kind
from isblk.block.policies import FencePolicy
from isblk.block.probe import Link
from isblk.block.replay import replay
from isblk.block.request import Op, Request
from isblk.errors import IsblkError, PathLost
from isblk.iscsi.pdu import TaskManagement, TaskManagementResponse
from isblk.scsi import cdb
from isblk.scsi.data import parse_reservation_keys
from isblk.scsi.sense import is_unsupported_command, is_unsupported_field

if TYPE_CHECKING:
    from isblk.block.multipath import Multipath
    from isblk.block.path import Path, Unit

_log = logging.getLogger(__name__)

QUIESCE_SECONDS = 5.0
"""How long requests of ours may take to come back before a reset; a session whose requests do not is dropped, and fenced too."""
RESET_SECONDS = 30.0
"""How long a LOGICAL UNIT RESET may take."""
KEYS_ALLOCATION = 8 + 8 * 64
_FREEZE = "fence"


@dataclass(eq=False)
class Unfenced:
    """A change that may still be done: bytes `start` to `end`, sent over a path's session that ended at `since` (seconds, trio's clock).

    `request` None when nobody waits for it any more: the range stays. `replayed`: it is an entry of the journal, over which the journal
    cannot be done again before it is fenced, for it may be older than what it overlaps. `beneath`: the journal was done again beneath it.
    """

    start: int
    end: int
    request: Request | None
    path: Path
    session: int
    since: float
    replayed: bool = False
    beneath: bool = False


class Fence:
    """What is unfenced on one device, and the one task that works on it."""

    def __init__(self, device: Multipath, spawn: Callable[..., None]) -> None:
        self.replay_needed = False
        self.fences = 0
        self._device = device
        self._spawn = spawn
        self._unfenced: list[Unfenced] = []
        self._working = False
        self._something = trio.Event()

    @property
    def active(self) -> bool:
        """Whether anything is unfenced or has to be done again first."""
        return bool(self._unfenced) or self.replay_needed

    @property
    def recovered(self) -> bool:
        """Whether new requests may go out over a path that came back."""
        return not self.replay_needed

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return sum(1 for item in self._unfenced if item.request is not None)

    def add(self, request: Request, path: Path, session: int, *, wanted: bool = True, replayed: bool = False) -> None:
        """A change was sent over a session that is lost now; it is repeated when it is fenced, if it is still `wanted`."""
        end, waits = request.offset + request.length, request if wanted else None
        self._unfenced.append(Unfenced(request.offset, end, waits, path, session, trio.current_time(), replayed))
        self._work()

    def holds(self, request: Request) -> bool:
        """Whether a request must wait: a change that overlaps one that may still land, or anything when the journal comes first."""
        if self.replay_needed:
            return True
        start, end, reads = request.offset, request.offset + request.length, request.op is Op.READ
        return any(item.start < end and start < item.end and (item.beneath or not reads) for item in self._unfenced)

    def changed(self) -> None:
        """A path came, or a session was reinstated."""
        self._something.set()
        if self.active:
            self._work()

    def take_requests(self) -> list[Request]:
        """Give the requests up to whoever fails them; their ranges stay closed."""
        taken = [item.request for item in self._unfenced if item.request is not None]
        for item in self._unfenced:
            item.request = None
        return taken

    def _work(self) -> None:
        if not self._working:
            self._working = True
            self._spawn(self._recover)

    async def _recover(self) -> None:
        """Until nothing is unfenced and nothing has to be done again."""
        device = self._device
        if self._unfenced:
            writes, portal = len(self._unfenced), str(self._unfenced[0].path.keeper.portal)
            device.tell(Kind.FENCING, f"{writes} writes sent over {portal} may still be done: they wait", path=portal, writes=writes)
        try:
            while self.active:
                items = list(self._unfenced)
                if self.replay_needed and not any(item.replayed for item in items):
                    await self._replay([])
                elif await self._climb(items) and (not self.replay_needed or await self._replay(items)):
                    self._release(items)
                device.thaw(_FREEZE)
        finally:
            self._working = False
            device.thaw(_FREEZE)

    def _release(self, items: list[Unfenced]) -> None:
        self._unfenced = [item for item in self._unfenced if item not in items]
        if items:
            self.fences += 1
            _log.info("%s: %d writes are fenced and repeated", self._device.name, len(items))
            self._device.tell(Kind.FENCED, f"{len(items)} writes are fenced and repeated", writes=len(items))
        self._device.fenced([item.request for item in items if item.request is not None])

    async def _climb(self, items: list[Unfenced]) -> bool:
        """The ladder for these; False when the path it leaned on was lost, and it has to be climbed anew."""
        policies = self._device.policies
        if policies.fence is FencePolicy.FAST:
            return True
        ended = await self._await_reinstatement(items, policies.fence_wait if policies.shared else policies.network_wait)
        path = await self._await_path()
        session, unit = path.session, path.unit
        if unit is not None and not policies.shared and await self._is_ours(path, unit):
            self._device.freeze(_FREEZE)
            if not await self._quiesce() or path.unit is None or path.session != session:
                return False
            if await self._reset(path, unit):
                return True
            self._device.thaw(_FREEZE)  # What overlaps nothing need not wait as well.
        if path.unit is None or path.session != session:
            return False
        if ended or await self._await_reinstatement(items, policies.fence_wait):
            await trio.sleep(policies.settle_wait)
        return True

    async def _await_reinstatement(self, items: list[Unfenced], wait: float) -> bool:
        """Wait until every lost session was ended, at most until `wait` seconds after the last of them was lost."""
        left = max(item.since for item in items) + wait - trio.current_time()
        with trio.move_on_after(max(0.0, left)):
            while not all(item.path.ended >= item.session for item in items):
                await self._wait()
            return True
        return False

    async def _await_path(self) -> Path:
        """A path that carries, or where none does any that lives: a standby port takes a reset at least (SPC-4 5.15.2.4.4)."""
        while not self._device.live:
            await self._wait()
        return next((path for path in self._device.live if path.carries), self._device.live[0])

    async def _wait(self) -> None:
        self._something = trio.Event()
        await self._something.wait()

    async def _is_ours(self, path: Path, unit: Unit) -> bool:
        """Whether a reset over this path hits nobody else."""
        try:
            return await is_alone(unit.link, unit.lun)
        except PathLost as error:
            self._device.lose(path, error, path.session if path.unit is unit else -1)
        except IsblkError as error:
            _log.info("%s: whether others use it cannot be read: %s", self._device.name, error)
        return False

    async def _reset(self, path: Path, unit: Unit) -> bool:
        """Reset the unit over `path`; nothing of ours is on its way."""
        device, response = self._device, None
        if path.connection is None:
            return False
        session = path.session
        try:
            with trio.move_on_after(RESET_SECONDS):
                response = await path.connection.manage(TaskManagement.LOGICAL_UNIT_RESET, lun=unit.lun)
        except PathLost as error:
            device.lose(path, error, session)  # At once: a path that is only refused to reset would be given time to settle.
        except IsblkError as error:
            _log.info("%s: the logical unit cannot be reset over %s: %s", device.name, path.keeper.portal, error)
        return response == TaskManagementResponse.COMPLETE

    async def _quiesce(self) -> bool:
        """Nothing of ours on its way, on sessions that are being left neither.

        Those that keep something are dropped, which makes what they keep a matter for the next round.
        """
        deadline = trio.current_time() + QUIESCE_SECONDS
        while any(path.in_flight for path in self._device.paths):
            if trio.current_time() >= deadline:
                for path in self._device.paths:
                    connection = path.connection or path.keeper.connection
                    if path.in_flight and connection is not None:
                        connection.fail(PathLost(f"{path.keeper.portal} kept requests while a lost path was fenced"))
                await trio.sleep(0.002)
                return False
            await trio.sleep(0.002)
        return True

    async def _replay(self, fenced: list[Unfenced]) -> bool:
        """Do the journal again; False when something was lost over it. `fenced` are the changes that will not land any more.

        A session that is being left still finishes changes, which are newer: they are awaited first.
        """
        device = self._device
        while not (path := await self._await_path()).carries:
            await self._wait()
        if not await self._quiesce() or any(item.replayed and item not in fenced for item in self._unfenced):
            return False
        session = path.session
        settled, left = await replay(device, path)
        for request in left:
            self.add(request, path, session, wanted=False, replayed=True)  # It may land later as any other change.
        if settled:
            self.replay_needed = False
            for item in self._unfenced:
                item.beneath = True
            device.fenced([])
        return settled


async def is_alone(link: Link, lun: bytes) -> bool:
    """Whether nobody has registered a key for the logical unit (SPC-4 6.15); one that knows no reservations is used by who it is given to.

    Raises PathLost, ProtocolError, and CommandFailed: then others must be expected.
    """
    try:
        answer = await probe.execute(link, lun, cdb.persistent_reserve_in_read_keys(KEYS_ALLOCATION), KEYS_ALLOCATION)
    except probe.CommandFailed as error:
        if is_unsupported_command(error.verdict.sense) or is_unsupported_field(error.verdict.sense):
            return True
        raise
    found = parse_reservation_keys(answer)
    return not found.keys and not found.clipped
