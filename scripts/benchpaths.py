"""The benchmark of paths, in process: what two healthy paths cost beside one, and what they bring where the target limits each session.

In process, since a mount costs so much more per request than choosing a path that it would hide the difference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from statistics import median
from typing import NamedTuple

import trio

from isblk.block.attach import Where, attached
from isblk.block.choose import Policy
from isblk.block.policies import Policies
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.perf import Runner, Workload
from support.targets import MIB, Offer, PortalConfig, RunningTarget, disk, running_target
from support.waiting import eventually

INITIATOR = "iqn.2026-11.test.isblk:bench"
WINDOW, SERVICE_SECONDS = 2, 0.005
"""Of the target that limits each session: commands let in at once, and how long each takes."""


class Comparison(NamedTuple):
    """I/O per second over one path and over two, each run of each."""

    name: str
    one: list[float]
    two: list[float]

    @property
    def ratio(self) -> float:
        """Of the medians: two to one."""
        return median(self.two) / median(self.one)

    def row(self) -> str:
        """For the table."""
        spread = (f"{median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})" for rates in (self.two, self.one))
        return f"| {self.name} | {' | '.join(spread)} | {self.ratio:.2f} |"


async def measure(name: str, portals: Sequence[str], lun: int, policy: Policy, seconds: float, near: bool = False) -> float:
    """4 KiB random reads, 32 at once, over these portals: I/O per second. `near`: the target runs in this thread."""
    places = tuple(Portal.parse(portal) for portal in portals)
    isids = tuple(Isid.from_random(17, slot) for slot in range(len(places)))
    access = Access(INITIATOR, isids[0], time2wait=0)
    policies = Policies(policy=policy, poll_interval=0)
    async with running_plane() as plane, attached(plane, Where(name, places, isids, lun), access, policies) as attachment:
        (device,) = attachment.paths.devices.values()
        with trio.fail_after(10), plane.impatient() if near else nullcontext():
            await eventually(lambda: len(device.live) == len(places))
        with plane.impatient() if near else nullcontext():
            result = await Runner(attachment.disks[0].gate, Workload("randread", 4096, 32, seconds)).run()
    if result.errors or not result.requests:
        raise SystemExit(f"bench: {result.requests} requests over {portals}, {result.errors} errors: {result.first_error}")
    return result.requests / result.seconds


async def compared(
    title: str, name: str, portals: Sequence[str], lun: int, policy: Policy, rounds: int, seconds: float, near: bool = False
) -> Comparison:
    """One path and two in turn, so that both meet the same noise."""
    found = Comparison(title, [], [])
    for _ in range(rounds):
        found.one.append(await measure(name, portals[:1], lun, policy, seconds, near))
        found.two.append(await measure(name, portals[:2], lun, policy, seconds, near))
    return found


@asynccontextmanager
async def limited_target() -> AsyncIterator[RunningTarget]:
    """A target of two portals that lets WINDOW commands of a session in at once, and works SERVICE_SECONDS on each read."""
    portals = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))
    async with running_target([disk(0, 64 * MIB)], portals=portals, offer=Offer(window=WINDOW)) as target, trio.open_nursery() as nursery:

        def hold(lun: bytes, cdb: bytes) -> bool:
            if cdb[0] != 0x28:  # READ(10)
                return False
            nursery.start_soon(release)
            return True

        async def release() -> None:
            await trio.sleep(SERVICE_SECONDS)
            target.node.release(1)

        target.node.hold = hold
        yield target
        target.node.hold = None
        target.node.release()
        nursery.cancel_scope.cancel()


async def healthy(name: str, portals: Sequence[str], lun: int, rounds: int, seconds: float) -> list[Comparison]:
    """What a second healthy path costs, by policy; at most 5 % is the promise."""
    shown = (Policy.FAILOVER, Policy.ROUND_ROBIN, Policy.QUEUE_LENGTH, Policy.SERVICE_TIME)
    return [await compared(f"two paths, {policy.value}, null", name, portals, lun, policy, rounds, seconds) for policy in shown]


async def limited(rounds: int, seconds: float) -> Comparison:
    """What it brings at a target that lets two commands of each session in; more than 1 is the promise."""
    async with limited_target() as target:
        title = f"two paths, queue-length, sessions of {WINDOW} commands"
        return await compared(title, target.name, target.portals, 0, Policy.QUEUE_LENGTH, rounds, seconds, near=True)
