"""Multipath: one device over the paths to one logical unit; losing a path is a log line, not an event for whoever uses it.

Theory of operation. A request is carried by one path at a time, as a child request of that path's unit. When the path is lost before the
answer, what happens depends on what the target may have: a read, or a change of which no byte was sent, is repeated at once on another
path; a change that was sent is *unfenced* (fence.py): it may still be done later, so it is neither acknowledged nor repeated, no newer
change of the same bytes is sent, and no flush, until the target provably will not do it any more. Requests that find no usable path wait,
bounded by `no_path`.

Acknowledged changes that no flush has covered are kept in the journal when the unit has a volatile cache: when all sessions were lost the
target may have restarted, and they are done again before anything else.

The hot road is `submit`, `_send`, `passed`: everything unusual sets `_careful`, which is the only thing the hot road asks.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import trio

from isblk.block.choose import Chooser, PathState, transitioning
from isblk.block.command import PathUnusable
from isblk.block.events import NOBODY, Events, Kind
from isblk.block.fence import Fence
from isblk.block.journal import Journal
from isblk.block.path import Path
from isblk.block.policies import Policies
from isblk.block.request import Geometry, Op, Request, Witness
from isblk.errors import DATA_LOSS, IsblkError, NoPath, PathLost, RequestFailed, TaskAborted
from isblk.scsi.data import AccessState

_log: Final = logging.getLogger(__name__)

REPEATS: Final = 5
"""How often a request that ends with nothing done (aborted, a path that cannot) is tried again before its error is told."""
HURRY_SECONDS: Final = 1.0
"""How often paths are hurried while requests wait and there is none: what waits asks for nothing more, and a back-off grows long."""

_READ: Final = Op.READ
_FLUSH: Final = Op.FLUSH


class Carried(Request):
    """A request on its way over one session of a path; `witness` is told of its end, or `done`."""

    __slots__ = ("path", "request", "session", "started", "weight")

    def __init__(self, request: Request, path: Path, witness: Witness | None, done: Callable[[Request], None] | None = None) -> None:
        self.op = request.op  # Not super().__init__, which is one call more for each request.
        self.offset = request.offset
        self.length = request.length
        self.data = request.data
        self.fua = request.fua
        self.done = done
        self.gate = witness
        self.lock = None
        self.error = None
        self.finished = False
        self.request = request
        self.path = path
        self.session = path.session
        self.started = 0.0
        self.weight = 0


class Multipath(Witness):
    """A Device over Paths. `name` is for log lines, `number` the LUN's for events; `spawn` runs an async function beside the plane.

    `switches` counts how often other paths took over, `failed_over` requests that were repeated.
    """

    def __init__(self, name: str, geometry: Geometry, policies: Policies, spawn: Callable[..., None], number: int = 0) -> None:
        self.name = name
        self.number = number
        self.policies = policies
        self.paths: list[Path] = []
        self.live: list[Path] = []
        self.journal = Journal(policies.journal_limit)
        self.fence = Fence(self, spawn)
        self.events: Events = NOBODY
        self.failed_over = 0
        self.switches = 0
        self.cache_losses = 0
        self.power_ons = 0
        self.on_no_path: Callable[[], None] | None = None
        self._hurried = -math.inf
        self.on_access_changed: Callable[[Path], None] | None = None
        self._geometry = geometry
        self._chooser: Chooser[Path] = Chooser(policies.policy, policies.failback)
        self._timed = policies.measures_time
        self._sole: Path | None = None
        self._serving: set[int] = set()
        self._careful = True
        self._frozen: set[str] = set()
        self._queue: deque[Request] = deque()
        self._repeats: dict[Request, int] = {}
        self._pathless_since: float | None = None
        self._given_up = False
        self._cache_lost: str | None = None
        self._own_flush: Request | None = None
        self._ended: IsblkError | None = None

    # ------------------------------------------------------------------ the Device

    @property
    def geometry(self) -> Geometry:
        """The unit as it is now."""
        return self._geometry

    def resize(self, geometry: Geometry) -> None:
        """Take up what a path found out."""
        self._geometry = geometry

    def follow(self, policies: Policies) -> None:
        """From now on, use the paths like this; how much is kept for a lost cache (journal_limit) stays as it was."""
        self.policies = policies
        self._chooser.follow(policies.policy, policies.failback)
        self._timed = policies.measures_time
        self.again()

    def submit(self, request: Request) -> None:
        """Hot. Carry a request over a path, or keep it until one can."""
        if self._careful or request.op is _FLUSH:
            self._submit_carefully(request)
        else:
            self._send(request, self._sole or self._choose(request))

    def kick(self) -> None:
        """End of a batch."""
        for path in self.live:
            if path.unit is not None:
                path.unit.kick()

    @property
    def waiting(self) -> int:
        """Requests that are kept until a path or a fence lets them go."""
        return len(self._queue) + self.fence.waiting

    @property
    def stuck(self) -> bool:
        """Whether requests wait for a path or for the fence."""
        return bool(self.fence.active or self._pathless_since is not None)

    def _choose(self, request: Request) -> Path:
        path = self._chooser.choose(self.live, request.length)
        if path is None:
            raise AssertionError("the hot road was taken without a usable path")
        return path

    def _send(self, request: Request, path: Path) -> None:
        carried = Carried(request, path, self)
        path.in_flight += 1
        path.bytes_in_flight += request.length
        path.requests += 1
        if not path.requests % path.every:
            carried.weight = path.sample()
            carried.started = time.monotonic()
        elif self._timed:
            carried.started = time.monotonic()
        assert path.unit is not None
        path.unit.submit(carried)

    def passed(self, carried: Request) -> None:
        """Hot. A path has come back with a request."""
        assert isinstance(carried, Carried)
        path, request = carried.path, carried.request
        path.in_flight -= 1
        path.bytes_in_flight -= request.length
        if carried.error is not None:
            self._came_back(carried, carried.error)
            return
        path.bytes += request.length
        if carried.started:
            path.finished(request.length, time.monotonic() - carried.started, carried.weight)
        if request.op is not _READ and (self._geometry.write_cache or len(self.journal)):
            self._changed(request, path)
        if self._repeats:
            self._repeats.pop(request, None)
        request.finish()
        if path.depth is not None and self._queue and not path.is_full:
            self.submit(self._queue.popleft())
            self.kick()

    def _changed(self, request: Request, path: Path) -> None:
        """Keep a change that is about to be acknowledged and may be lost with the target's cache.

        One that is durable is kept as well while older ones are: done again without it, they would overwrite it.
        """
        if not request.fua:
            path.acknowledged += 1
        elif not len(self.journal):
            return
        filling = self.journal.append(request)
        if not self.live:  # Its session is being left, and nobody lives who would notice that the target restarts.
            self.fence.replay_needed = True
            self._reconsider()
        if filling:
            self._flush_journal()

    # ------------------------------------------------------------------ the careful road

    def _submit_carefully(self, request: Request) -> None:
        """Everything that is not the common case: no path, a fence, a flush, a full journal, the end."""
        refusal = self._refusal()
        if refusal is not None:
            self._finish(request, refusal)
        elif self._frozen or not self.live or self.fence.replay_needed or (self.journal.full and request.op not in (_READ, _FLUSH)):
            self._keep(request)
        elif request.op is _FLUSH:
            self._submit_flush(request)
        elif self.fence.active and self.fence.holds(request):
            self._keep(request)
        else:
            path = self._chooser.choose(self.live, request.length)
            if path is None or path.is_full:
                self._keep(request)
            else:
                self._send(request, path)

    def _refusal(self) -> IsblkError | None:
        """Why no request is taken any more."""
        if self._given_up and self._ended is None:
            return NoPath(f"{self.name} has no path left")
        return self._ended

    def _finish(self, request: Request, error: Exception | None) -> None:
        self._repeats.pop(request, None)
        request.finish(error)

    def _keep(self, request: Request) -> None:
        self._queue.append(request)
        if not self.live and self.on_no_path is not None:
            self.on_no_path()

    def again(self, requests: Iterable[Request] = ()) -> None:
        """Try what waits once more, `requests` first: something has changed."""
        self._queue.extendleft(reversed(list(requests)))
        self._reconsider()
        # One at a time, so that none is forgotten when what its end sets off calls this again, or raises.
        for _ in range(len(self._queue)):
            if not self._queue:
                break
            self.submit(self._queue.popleft())
        self.kick()

    def freeze(self, reason: str) -> None:
        """Send nothing new until `thaw` with the same reason."""
        self._frozen.add(reason)
        self._reconsider()

    def thaw(self, reason: str) -> None:
        """The reason is gone."""
        self._frozen.discard(reason)
        self.again()

    def _reconsider(self) -> None:
        """Work out whether the hot road may be taken, and by which path."""
        self._chooser.changed()
        best = self._chooser.choose(self.live, 0)
        self._sole = best if len(self.live) == 1 or not self.policies.spreads else None
        if best is not None and self._chooser.used != self._serving:
            self._serve_by(self._chooser.used)
        if best is not None or (self.live and self.fence.replay_needed) or transitioning(self.live):
            self._pathless_since = None
            self._given_up = False
        elif self._pathless_since is None:
            self._pathless_since = trio.current_time()
            if self._serving:
                self.tell(Kind.NO_PATH, f"no path is left: requests wait {self._patience()}")
        limited = any(path.depth is not None for path in self.live)
        special = limited or self._ended or self._given_up or self._frozen or self.fence.active or self.journal.full
        self._careful = bool(special) or best is None

    def _serve_by(self, numbers: set[int]) -> None:
        """Other paths carry requests from now on: a failover when none of those before them is left in use."""
        before, self._serving = self._serving, numbers
        if not before or before & numbers:
            return
        self.switches += 1
        kind = Kind.FAILBACK if all(path.carries for path in self.paths if path.number in before) else Kind.FAILOVER
        old, new = ([str(path.keeper.portal) for path in self.paths if path.number in each] for each in (before, numbers))
        self.tell(kind, f"requests go to {', '.join(new)} now, not to {', '.join(old)}", before=old, after=new)

    def _patience(self) -> str:
        seconds = self.policies.no_path.seconds
        return "until there is one" if math.isinf(seconds) else f"{seconds:g} s" if seconds else "not at all, they fail"

    def tell(self, kind: Kind, text: str, **about: object) -> None:
        """Something happened to this device."""
        self.events.add(kind, f"{self.name}: {text}", lun=self.number, **about)

    # ------------------------------------------------------------------ errors

    def _came_back(self, carried: Carried, error: Exception) -> None:
        """A path could not finish a request: repeat it, fence it, or tell the error."""
        path, request = carried.path, carried.request
        path.failed(error)
        if isinstance(error, PathLost):
            self.lose(path, error, carried.session)
            if error.sent and request.op not in (_READ, _FLUSH):
                self._unfenced(carried)
            else:
                self._repeat(request)
        elif isinstance(error, PathUnusable):
            self.unusable(path, error, carried.session)
            self._repeat_or_fail(request, error)
        elif isinstance(error, TaskAborted):
            self._repeat_or_fail(request, error)
        else:
            self._finish(request, error)

    def _unfenced(self, carried: Carried) -> None:
        """Keep a change that may still be done; when nobody waits any more its bytes stay closed all the same."""
        request, refusal = carried.request, self._refusal()
        self.fence.add(request, carried.path, carried.session, wanted=refusal is None)
        self._reconsider()
        if refusal is not None:
            self._finish(request, refusal)

    def _repeat(self, request: Request) -> None:
        self.failed_over += 1
        self.submit(request)
        self.kick()  # The front end has had its own kick already.

    def _repeat_or_fail(self, request: Request, error: Exception) -> None:
        """Nothing was done and the path may live on: a bounded number of times."""
        count = self._repeats.get(request, 0) + 1
        if count > REPEATS:
            self._finish(request, error)
            return
        self._repeats[request] = count
        self._repeat(request)

    def unusable(self, path: Path, error: Exception, session: int) -> None:
        """The path says that it cannot (04/0A-0C): not used until its access state has been read again."""
        if path.unit is None or path.session != session:
            return
        path.become(PathState.STANDBY, str(error))
        self._reconsider()
        if self.on_access_changed is not None:
            self.on_access_changed(path)

    def full(self, path: Path) -> None:
        """The target has said TASK SET FULL on a path: fewer requests from now on, more again as time goes by."""
        path.lower_depth()
        self._reconsider()

    def take_access(self, path: Path, access: AccessState, preferred: bool) -> None:
        """The access state of a path has been read."""
        path.access, path.preferred = access, preferred
        standby = access in (AccessState.STANDBY, AccessState.UNAVAILABLE, AccessState.OFFLINE)
        state = PathState.STANDBY if standby else PathState.UP if self.fence.recovered else PathState.FENCING
        path.become(state, access.name.lower().replace("_", " ") if standby else "")
        self.fence.changed()
        self.again()

    # ------------------------------------------------------------------ paths come and go

    def lose(self, path: Path, error: IsblkError, session: int | None = None) -> None:
        """A path's session is gone; harmless when that is known. `session` is the one that is meant: a request may come back late."""
        if path.unit is None or (session is not None and session != path.session):
            return
        path.retries += path.unit.retries
        path.unit = None
        path.connection = None
        path.count_loss(trio.current_time())
        path.become(PathState.DOWN, str(error))
        if path in self.live:
            self.live.remove(path)
        # A logout that was asked for, by us or by the target, is no news to wake anybody for.
        level = logging.INFO if isinstance(error, PathLost) and not error.sent else logging.WARNING
        left, all_paths = len(self.live), len(self.paths)
        about = {"portal": path.keeper.portal}
        _log.log(level, "%s: path %s is down: %s; %d of %d paths left", self.name, path.keeper.portal, error, left, all_paths, extra=about)
        if not self.live and len(self.journal):
            self.fence.replay_needed = True
        self._reconsider()
        if not self.live and self.on_no_path is not None:
            self.on_no_path()

    def powered_on(self) -> None:
        """The unit says that it lost power, on a session that lived on: so did its cache, with what was acknowledged and not flushed.

        What is on its way counts: it may have been done before, and be answered only now.
        """
        self.power_ons += 1
        self.tell(Kind.POWER_ON, "it was powered on: what its cache held is lost there")
        if len(self.journal) or any(path.in_flight for path in self.paths):
            self.fence.replay_needed = True
            self._reconsider()
            self.fence.changed()

    def gain(self, path: Path) -> None:
        """A path's unit is there (its `unit`, `connection` and `access` are set)."""
        if not self.live and len(self.journal):
            # Also where the last session that was lost acknowledged something after that: it had been told to leave, and was let finish.
            self.fence.replay_needed = True
        path.session += 1
        path.become(PathState.UP if self.fence.recovered else PathState.FENCING)
        if path not in self.live:
            self.live.append(path)
            self.live.sort(key=lambda one: one.number)
        level = logging.WARNING if path.losses else logging.INFO
        about = {"portal": path.keeper.portal}
        _log.log(level, "%s: path %s is up; %d of %d paths", self.name, path.keeper.portal, len(self.live), len(self.paths), extra=about)
        self._pathless_since = None
        self._given_up = False
        self.fence.changed()
        self._settle_states()
        self.again()

    def _settle_states(self) -> None:
        for path in self.live:
            if path.state is PathState.FENCING and self.fence.recovered:
                path.become(PathState.UP)

    def fenced(self, requests: Iterable[Request]) -> None:
        """The fence has let requests go: nothing old can land any more."""
        self._settle_states()
        self.again(requests)

    def tick(self, now: float) -> None:
        """A few times a second (`now` by trio's clock): failback after N seconds, and the end of waiting without a path."""
        limit = self.policies.no_path.seconds
        self._chooser.tick(now)
        for path in self.paths:
            path.tick()
        self._damp(now)
        self._raise_depths()
        self._reconsider()
        self.fence.changed()
        if not self.live and self.waiting and self.on_no_path is not None and now - self._hurried >= HURRY_SECONDS:
            self._hurried = now
            self.on_no_path()
        if self._pathless_since is not None and not self._given_up and now - self._pathless_since >= limit:
            self._given_up = True
            self.tell(Kind.GAVE_UP, f"there has been no path for {limit:g} s: requests fail now")
            self.give_up(NoPath(f"{self.name} has had no path for {limit:g} s"))

    def _raise_depths(self) -> None:
        limited = [path for path in self.live if path.depth is not None]
        for path in limited:
            path.raise_depth()
        if limited:
            self.again()

    def _damp(self, now: float) -> None:
        """A path that keeps coming and going is used only where there is no other, until it has held for a while."""
        for path in self.live:
            path.damped = path.flaps(now)

    def give_up(self, error: IsblkError) -> None:
        """Fail everything that waits. What is unfenced stays fenced: it may still land."""
        queue, self._queue = self._queue, deque()
        self._reconsider()
        for request in [*self.fence.take_requests(), *queue]:
            self._finish(request, error)

    def end(self, error: IsblkError) -> None:
        """No more requests, and an error for those that wait."""
        self._ended = error
        self.give_up(error)

    # ------------------------------------------------------------------ flush

    def _submit_flush(self, request: Request) -> None:
        """SYNCHRONIZE CACHE on each path that carried something since its last one; held while a change is unfenced."""
        if self._cache_lost is not None and request is not self._own_flush:
            reason, self._cache_lost = self._cache_lost, None
            request.finish(RequestFailed(reason, errno.EIO))
        elif self.fence.active:
            self._keep(request)
        else:
            _Flush(self, request, [path for path in self.live if path.dirty and path.carries] or self._any_path()).start()

    def _any_path(self) -> list[Path]:
        path = self._chooser.choose(self.live, 0)
        return [] if path is None else [path]

    def lose_cache(self, reason: str) -> None:
        """Acknowledged data is gone for good: the next flush says so, once."""
        lost = self.journal.clear()
        self.cache_losses += 1
        self._cache_lost = f"{self.name}: {lost} acknowledged writes are lost: {reason}"
        _log.error("%s", self._cache_lost, extra=DATA_LOSS)
        self.tell(Kind.WRITE_BACK_FAILED, f"{lost} acknowledged writes are lost: {reason}", writes=lost)

    def flush_ended(self, request: Request, failures: list[tuple[Carried, Exception]]) -> None:
        """A flush has come back from all its paths: once more where paths are to blame, but what a unit answered is told."""
        final: Exception | None = None
        repeated: Exception | None = None
        for carried, error in failures:
            path = carried.path
            path.failed(error)
            if isinstance(error, PathLost):
                self.lose(path, error, carried.session)
            elif isinstance(error, (PathUnusable, TaskAborted)):
                repeated = error
                if isinstance(error, PathUnusable):
                    self.unusable(path, error, carried.session)
            else:
                final = error
        if final is not None or not failures:
            self._finish(request, final)
        elif repeated is not None:
            self._repeat_or_fail(request, repeated)
        else:
            self._repeat(request)

    def _flush_journal(self) -> None:
        """A flush of our own, so that the journal stays bounded."""
        self._careful = self._careful or self.journal.full
        if self._own_flush is not None or self._ended is not None:
            return

        def done(request: Request) -> None:
            self._own_flush = None
            if request.error is not None and self.live:
                # Nobody asked for this one: whoever flushes next is told. (Without a path the journal is done again later.)
                self._cache_lost = self._cache_lost or f"{self.name}: a flush failed: {request.error}"
                if self.journal.full:
                    self.lose_cache(str(request.error))
            elif request.error is None and self.journal.filling:
                self._flush_journal()  # What came in meanwhile may have filled it, and nothing else would empty it then.
            self.again()

        self._own_flush = Request(Op.FLUSH, done=done)
        self._submit_carefully(self._own_flush)
        self._reconsider()


class _Flush:
    """One FLUSH over several paths."""

    def __init__(self, device: Multipath, request: Request, paths: list[Path]) -> None:
        self._device = device
        self._request = request
        self._paths = paths
        self._left = len(paths)
        self._failures: list[tuple[Carried, Exception]] = []
        self._mark = device.journal.mark

    def start(self) -> None:
        """Send to all of them."""
        if not self._paths:
            self._device._keep(self._request)
            return
        for path in self._paths:
            carried = Carried(self._request, path, None, self._done)
            carried.started = float(path.acknowledged)
            path.in_flight += 1
            path.requests += 1
            if path.unit is None:  # Lost by what the end of the one before set off.
                carried.finish(PathLost(path.reason, sent=False))
            else:
                path.unit.submit(carried)

    def _done(self, carried: Request) -> None:
        assert isinstance(carried, Carried)
        path = carried.path
        path.in_flight -= 1
        if carried.error is not None:
            self._failures.append((carried, carried.error))
        else:
            path.synchronized = max(path.synchronized, int(carried.started))
        self._left -= 1
        if self._left:
            return
        if not self._failures:
            self._device.journal.settle(self._mark)
        self._device.flush_ended(self._request, self._failures)
