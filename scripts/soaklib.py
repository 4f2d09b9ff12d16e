"""The soak: worlds of one target, two relays and one device each, in which one random fault follows the other while all I/O is verified.

Theory of operation. A world is a target with a volatile cache, reached through two relays; on its device some workers read, write, trim,
zero and flush at random, and every request is checked (support/oracle.py). A prober reads one block after the other: how long it waits is
how long I/O stood still. Faults come one at a time: the next when both paths are back. Now and then everything stops, is flushed, and the
target's medium, without its cache, must hold every write. Worlds differ in policy, portal groups, digests, and in what their target does
about commands of sessions that are reinstated; several run at once, for those that wait for a silence to be noticed need no processor.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from isblk.block.attach import Where, attached
from isblk.block.choose import QUEUE, Policy
from isblk.block.multipath import Multipath
from isblk.block.policies import FencePolicy, Policies
from isblk.block.request import Op
from isblk.errors import IsblkError
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import BackOff
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.link.sweeper import Timing
from isblk.target.config import AccessState, PortalConfig, Reinstatement
from support.faultline import Fault, Relay, Way
from support.oracle import BLOCK, Oracle
from support.targets import Offer, RunningTarget, disk, running_target
from support.waiting import eventually
from support.workload import Workload

BLOCKS, WORKERS = 512, 5
WRITE_10 = 0x2A
HANG_SECONDS = 40.0
CHECK_EVERY = 25
"""Faults between two looks at the medium."""
SETTLE_SECONDS = 5.0
EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0)
NOOP_SECONDS = 1.0
"""Interval and timeout both."""


@dataclass(frozen=True)
class Setting:
    """What is special about a world."""

    groups: tuple[int, int]
    policy: Policy
    reinstatement: Reinstatement
    digest: str = "none"


SETTINGS = (
    Setting((1, 1), Policy.FAILOVER, Reinstatement.AT_ONCE),
    Setting((1, 2), Policy.QUEUE_LENGTH, Reinstatement.WAIT),
    Setting((1, 2), Policy.FAILOVER, Reinstatement.REFUSE, "crc32c"),
    Setting((1, 1), Policy.ROUND_ROBIN, Reinstatement.TERMINATE, "crc32c"),
)


@dataclass(frozen=True)
class Plan:
    """What is asked of all worlds: `seconds`, or `most` faults in each; `kinds` of faults, all of them when empty."""

    seconds: float
    most: float = math.inf
    kinds: Sequence[str] = ()
    fence: FencePolicy = FencePolicy.STRICT


@dataclass
class Report:
    """What all worlds have met. Stalls in seconds, by kind of fault; `problems` are sentences."""

    faults: Counter[str] = field(default_factory=Counter)
    stalls: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    waits: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    requests: Counter[Op] = field(default_factory=Counter)
    verified: int = 0
    replays: int = 0
    lost: int = 0
    resurrected: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        total = self.faults.total()
        said = [f"{total} faults: " + ", ".join(f"{count} {kind}" for kind, count in self.faults.most_common())]
        said.append(
            f"{self.requests.total()} requests: "
            + ", ".join(f"{count} {op.name.lower()}" for op, count in self.requests.most_common())
            + f"; {self.verified} blocks verified"
        )
        for kinds, title in ((("reset", "cut"), "RST"), (("silence",), "silence")):
            stalls = [stall for kind in kinds for stall in self.stalls[kind]]
            said.append(f"stalls after {title}: {histogram(stalls)}")
        for name, found in (("stall", self.stalls), ("wait of one write", self.waits)):
            longest = max(((max(times), kind) for kind, times in found.items() if times), default=(0.0, "nothing"))
            said.append(f"longest {name}: {longest[0]:.2f} s, by {longest[1]}")
        said.append(f"lost writes: {self.lost}; resurrected writes: {self.resurrected}; problems: {len(self.problems)}")
        return said


def histogram(stalls: list[float]) -> str:
    """How many were at most so long."""
    if not stalls:
        return "none"
    counts = Counter(next((edge for edge in EDGES if stall <= edge), None) for stall in stalls)
    named = [f"<= {edge:g} s: {counts[edge]}" for edge in EDGES if counts[edge]]
    return ", ".join(named + ([f"more: {counts[None]}"] if counts[None] else [])) + f" (longest {max(stalls):.2f} s)"


class World:
    """One target, two paths, one device."""

    def __init__(self, number: int, setting: Setting, seed: int, report: Report, plan: Plan) -> None:
        self.number = number
        self.setting = setting
        self.random = random.Random(seed * 1000 + number)
        self.report = report
        self._plan = plan
        self._target: RunningTarget
        self._relays: list[Relay] = []
        self._device: Multipath
        self._oracle = Oracle(BLOCKS)
        self._work: Workload
        self._probe_longest = 0.0

    async def run(self) -> None:
        """Faults until the plan is done; what goes wrong is in the report."""
        end, done = trio.current_time() + self._plan.seconds, 0
        try:
            async with self._set_up():
                while trio.current_time() < end and done < self._plan.most:
                    await self._one_fault()
                    done += 1
                    if done % CHECK_EVERY == 0:
                        await self._look_at_medium()
                await self._look_at_medium()
                self._count()
            await self._nothing_left()
        except (IsblkError, AssertionError, trio.TooSlowError) as error:
            self._problem(str(error) or repr(error))
        except ExceptionGroup as group:  # A bug: where it is from is worth more than going on.
            self._problem(repr(group))
            raise

    def _problem(self, text: str) -> None:
        self.report.problems.append(f"world {self.number} ({self.setting}): {text}")

    @asynccontextmanager
    async def _set_up(self) -> AsyncIterator[None]:
        setting = self.setting
        portals = tuple(PortalConfig(port=0, tpgt=tag) for tag in setting.groups)
        async with AsyncExitStack() as stack:
            self._target = await stack.enter_async_context(
                running_target(
                    [disk(0, BLOCKS * BLOCK)], portals=portals, reinstatement=setting.reinstatement, offer=Offer(default_time2wait=0)
                )
            )
            for portal in self._target.portals:
                self._relays.append(await stack.enter_async_context(Relay(int(portal.rpartition(":")[2])).running()))
            plane = await stack.enter_async_context(running_plane())
            stack.enter_context(plane.impatient())  # the target runs in this thread
            places = tuple(Portal.parse(relay.portal) for relay in self._relays)
            isids = (Isid.from_random(self.number, 0), Isid.from_random(self.number, 1))
            timing = Timing(login_timeout=1.5, logout_timeout=1, noop_interval=NOOP_SECONDS, noop_timeout=NOOP_SECONDS)
            access = Access(
                f"iqn.2026-11.test.isblk:soak{self.number}",
                isids[0],
                header_digest=setting.digest,
                data_digest=setting.digest,
                timing=timing,
                time2wait=0,
            )
            policies = Policies(policy=setting.policy, no_path=QUEUE, fence=self._plan.fence, fence_wait=20, settle_wait=1, poll_interval=5)
            attachment = await stack.enter_async_context(
                attached(plane, Where(self._target.name, places, isids, 0), access, policies, BackOff(0.01, 0.1, 0.05))
            )
            (self._device,) = attachment.paths.devices.values()
            self._work = Workload(attachment.disks[0].gate, self._oracle, self.random.randrange(1 << 30))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work.run, WORKERS)
                nursery.start_soon(self._probe)
                await self._healthy()
                yield
                nursery.cancel_scope.cancel()

    async def _probe(self) -> None:
        """Read one block after the other; how long one takes is how long I/O stood still."""
        while True:
            began = trio.current_time()
            await self._work.request(Op.READ, 0, 1)
            self._probe_longest = max(self._probe_longest, trio.current_time() - began)
            await trio.sleep(0.002)

    async def _healthy(self) -> None:
        """Until both paths are there, nothing waits, and requests end."""
        device, before = self._device, self._work.requests.total()
        with trio.move_on_after(HANG_SECONDS) as scope:
            await eventually(lambda: len(device.live) == 2 and not device.stuck and not device.waiting)
            await eventually(lambda: self._work.requests.total() >= before + WORKERS)
        if scope.cancelled_caught:
            raise AssertionError(f"hung for {HANG_SECONDS:g} s: {device.paths}, {device.waiting} wait, fence active {device.fence.active}")

    async def _one_fault(self) -> None:
        names = [name for name in self._plan.kinds or FAULTS if name != "access" or self.setting.groups[0] != self.setting.groups[1]]
        (kind,) = self.random.choices(names, [FAULTS[name][1] for name in names])
        self._work.forget()
        self._probe_longest = 0.0
        with trio.move_on_after(HANG_SECONDS) as scope:
            await FAULTS[kind][0](self)
        if scope.cancelled_caught:
            raise AssertionError(f"the fault {kind} did not come about in {HANG_SECONDS:g} s: {self._device.paths}")
        await self._healthy()
        self.report.faults[kind] += 1
        self.report.stalls[kind].append(self._probe_longest)
        self.report.waits[kind].append(self._work.longest)
        await trio.sleep(self.random.random() * 0.02)

    async def _look_at_medium(self) -> None:
        """With nothing on its way and a flush behind it, the medium without its cache holds what was written, and so do both paths."""
        with trio.fail_after(HANG_SECONDS), self._work.paused():
            await self._work.quiet()
            await self._work.request(Op.FLUSH)
            self._oracle.check(0, self._target.unit().store.durable(0, BLOCKS * BLOCK))
            await self._work.verify()
        with trio.move_on_after(SETTLE_SECONDS):  # What a half-closed path has coming may come only now.
            await eventually(lambda: self._target.sessions == 2)
        if self._target.sessions != 2:
            self._problem(f"{self._target.sessions} sessions on the target, not 2")

    async def _nothing_left(self) -> None:
        if self._target.sessions:
            self._problem(f"{self._target.sessions} sessions are left on the target")

    def _count(self) -> None:
        report, work = self.report, self._work
        report.requests.update(work.requests)
        report.verified += self._oracle.verified
        report.lost += self._oracle.lost
        report.resurrected += self._oracle.resurrected
        for text in [*work.errors[:5], *map(str, self._oracle.wrong[:5])]:
            self._problem(text)
        if self._device.cache_losses:
            self._problem(f"{self._device.cache_losses} times acknowledged writes were given up")

    # ------------------------------------------------------------------ faults

    @property
    def _relay(self) -> Relay:
        return self.random.choice(self._relays)

    async def _reset(self) -> None:
        """RST on one path."""
        self._relay.reset()

    async def _cut(self) -> None:
        """RST on one path, within a PDU."""
        await self._at_a_byte(Fault.RESET)

    async def _half_close(self) -> None:
        """FIN from one side, within a PDU."""
        await self._at_a_byte(Fault.HALF_CLOSE)

    async def _corrupt(self) -> None:
        """One bit is wrong, which the digests tell."""
        await self._at_a_byte(Fault.CORRUPT if self.setting.digest == "crc32c" else Fault.RESET)

    async def _client_reset(self) -> None:
        """RST to the initiator alone; the rest of what it had sent reaches the target later."""
        relay = await self._at_a_byte(Fault.CLIENT_RESET, Way.TO_TARGET)
        await trio.sleep(self.random.random() * 0.3)
        relay.heal()

    async def _at_a_byte(self, fault: Fault, way: Way | None = None) -> Relay:
        """Let a fault happen soon, at an exact byte; at once where nothing goes that way any more."""
        relay = self._relay
        relay.arm(self.random.choice(list(Way)) if way is None else way, self.random.randrange(20000), fault)
        with trio.move_on_after(0.3) as scope:
            await relay.fired.wait()
        if scope.cancelled_caught:  # A path that idles.
            relay.disarm()
            relay.reset()
        return relay

    async def _silence(self) -> None:
        """Nothing goes through one path, and nobody says so; later everything that was sent arrives."""
        relay = self._relay
        relay.black_hole()
        if self.random.random() < 0.5:
            relay.refuse()
        await trio.sleep(2 * NOOP_SECONDS + 0.5 + self.random.random())
        await relay.accept()
        relay.heal()

    async def _stall(self) -> None:
        """One path is slow, but lives."""
        relay, way = self._relay, self.random.choice(list(Way))
        relay.stall(way)
        await trio.sleep(self.random.random() * 0.3)
        relay.heal()

    async def _refuse(self) -> None:
        """A portal is gone for a moment."""
        relay = self._relay
        relay.refuse()
        relay.reset()
        await trio.sleep(self.random.random() * 0.5)
        await relay.accept()

    async def _both(self) -> None:
        """RST on both paths."""
        for relay in self._relays:
            relay.reset()

    async def _none(self) -> None:
        """Both portals are gone for a moment."""
        for relay in self._relays:
            relay.refuse()
            relay.reset()
        await trio.sleep(self.random.random() * 0.3)
        for relay in self._relays:
            await relay.accept()

    async def _crash(self) -> None:
        """The target loses power, and what was not synchronized."""
        if len(self._device.journal):
            self.report.replays += 1
        self._target.server.crash_cache()

    async def _power_on(self) -> None:
        """The unit loses power and what was not synchronized, behind a target whose sessions live on."""
        self._target.unit().crash()

    async def _drop(self) -> None:
        """The target drops its connections."""
        self._target.server.drop_all()

    async def _logout(self) -> None:
        """The target asks one session to log out."""
        connections = [one for one in self._target.server.connections if one.session is not None]
        if not connections:  # All of them have just gone.
            return
        connection = self.random.choice(connections)
        connection.request_logout(2)
        await eventually(lambda: connection not in self._target.server.connections)

    async def _access(self) -> None:
        """A portal group goes to standby and comes back. (With one group alone the target has no access states.)"""
        groups, tag = self._target.unit().groups, self.random.choice(self.setting.groups)
        for state in (AccessState.STANDBY, AccessState.OPTIMIZED):
            groups.change(tag, state)
            await trio.sleep(self.random.random() * 0.2)

    async def _late(self) -> None:
        """The target keeps complete writes of a path that is cut, and does them later."""
        node, left = self._target.node, self.random.randrange(1, 4)

        def hold(lun: bytes, cdb: bytes) -> bool:
            nonlocal left
            left -= cdb[0] == WRITE_10
            return cdb[0] == WRITE_10 and left >= 0

        node.hold = hold
        with trio.move_on_after(0.3):
            await eventually(lambda: node.held)
        self._relay.reset()
        await trio.sleep(self.random.random() * 0.1)
        node.hold = None
        await trio.sleep(self.random.choice((0.05, 0.3, 1.2)))
        node.release()


FAULTS: dict[str, tuple[Callable[[World], Awaitable[None]], int]] = {
    "reset": (World._reset, 30),
    "cut": (World._cut, 30),
    "half-close": (World._half_close, 8),
    "corrupt": (World._corrupt, 8),
    "client-reset": (World._client_reset, 8),
    "silence": (World._silence, 3),
    "stall": (World._stall, 3),
    "refuse": (World._refuse, 4),
    "both": (World._both, 8),
    "none": (World._none, 3),
    "crash": (World._crash, 8),
    "power-on": (World._power_on, 5),
    "drop": (World._drop, 4),
    "logout": (World._logout, 4),
    "access": (World._access, 4),
    "late": (World._late, 5),
}
"""Each with how often it comes."""


# ---------------------------------------------------------------------------------------------------------------------- the command


async def soak(plan: Plan, seed: int, worlds: int = len(SETTINGS), *, tell: bool = False) -> Report:
    """Run worlds side by side."""
    report = Report()
    async with trio.open_nursery() as telling:
        if tell:
            telling.start_soon(_tell, report)
        async with trio.open_nursery() as nursery:
            for number in range(worlds):
                nursery.start_soon(World(number, SETTINGS[number % len(SETTINGS)], seed, report, plan).run)
        telling.cancel_scope.cancel()
    return report


async def _tell(report: Report) -> None:
    while True:
        await trio.sleep(30)
        print(f"{report.faults.total()} faults, {len(report.problems)} problems", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Random faults and verified I/O over two paths, in process.")
    parser.add_argument("minutes", type=float, help="how long")
    parser.add_argument("--seed", type=int, default=None, help="of everything random but timing (default: a new one, which is printed)")
    parser.add_argument("--worlds", type=int, default=len(SETTINGS), help="how many targets with two paths each at once (%(default)s)")
    parser.add_argument("--faults", type=int, default=None, metavar="N", help="stop after N faults in each world")
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="only this kind of fault (may be repeated)")
    fences = [fence.value for fence in FencePolicy]
    parser.add_argument("--fence", choices=fences, default="strict", help="with 'fast' writes do come back: the soak can fail")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    level = logging.INFO if options.verbose else logging.CRITICAL
    logging.basicConfig(level=level, format="%(relativeCreated)8.0f %(name)s: %(message)s")
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}, {options.worlds} worlds, {options.minutes:g} minutes", flush=True)
    plan = Plan(options.minutes * 60, options.faults or math.inf, options.only or (), FencePolicy(options.fence))
    report = trio.run(partial(soak, plan, seed, options.worlds, tell=True))
    for problem in report.problems:
        print(f"PROBLEM {problem}")
    for line in report.lines():
        print(line)
    sys.exit(1 if report.problems or report.lost or report.resurrected else 0)


if __name__ == "__main__":
    main()
