"""The mounted file over two relays to tgtd, under fio's verified writes, while everything between and behind them fails at random."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.commands import Commands, get, put
from support.faultline import Relay
from support.mounts import Mounts
from support.processes import Processes
from support.tgt import Tgtd
from support.trees import fio_verify
from support.waiting import eventually, until

NAME = "iqn.2026-11.test.isblk.tgt:failover"
MIB = 1 << 20
SIZE = 64 * MIB
SEED = 20261120
FAULTS = 56
MORE = ("--direct=1", "--time_based", "--runtime=30", "--ioengine=libaio", "--iodepth=8", "--allow_file_create=0")
RETURN_SECONDS = 20.0  # for both paths to be up again when the faults are over: the longest back-off, and a login


class Peer:
    """A tgtd whose one disk outlives it, and relays to it."""

    def __init__(self, tgt: Tgtd, relays: list[Relay]) -> None:
        self.tgt = tgt
        self.relays = relays
        self.name = NAME
        self.image = tgt.home / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(SIZE)
        self._describe()

    @property
    def portal(self) -> str:
        return self.relays[0].portal

    def _describe(self) -> None:
        """The target as it is each time; nobody is let in before the disk is there."""
        self.tgt.admin("--mode", "target", "--op", "new", "--tid", "1", "--targetname", NAME)
        self.tgt.update(1, "DefaultTime2Wait", 0)  # the test's time is compressed
        self.tgt.admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "--backing-store", str(self.image))
        self.tgt.admin("--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL")

    def restart(self) -> None:
        """Kill it and start it again; the disk has the same identity and the same file."""
        self.tgt.stop()
        self.tgt.start()
        self._describe()

    def sessions(self) -> int:
        return self.tgt.sessions(1)


@asynccontextmanager
async def relayed(tgt: Tgtd) -> AsyncIterator[Peer]:
    """Two relays to one tgtd."""
    async with Relay(tgt.port).running() as one, Relay(tgt.port).running() as other:
        yield Peer(tgt, [one, other])


async def in_thread(function: Callable[..., object], *arguments: object) -> None:
    """Run what blocks, while the relays go on."""
    await trio.to_thread.run_sync(lambda: function(*arguments))


def mount(commands: Commands, peer: Peer, place: Path, *options: str) -> None:
    portals = [word for relay in peer.relays for word in ("-p", relay.portal)]
    timing = ("--noop-interval", "1", "--noop-timeout", "1", "--login-timeout", "2")
    commands.run("mount", *portals, NAME, place, "--lun", "1", *timing, *options)


class Faults:
    """A random sequence of them, from a seed."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self.peer = peer
        self.random = random.Random(seed)
        self.done: list[str] = []
        self._kinds: dict[Callable[[], Awaitable[None]], int] = {
            self.reset: 26,
            self.reset_both: 5,
            self.refuse: 7,
            self.silence: 7,
            self.stop_and_continue: 7,
            self.kill_target: 4,
        }

    async def one(self) -> None:
        """The next."""
        (kind,) = self.random.choices(list(self._kinds), list(self._kinds.values()))
        await kind()
        self.done.append(kind.__name__)  # type: ignore[attr-defined]
        await trio.sleep(self.random.uniform(0, 0.6))

    async def relay(self) -> Relay:
        """One with a session: a path that keeps failing is tried less and less often, and a fault on it would be none."""
        await eventually(lambda: any(relay.connections for relay in self.peer.relays))
        return self.random.choice([relay for relay in self.peer.relays if relay.connections])

    async def reset(self) -> None:
        (await self.relay()).reset()

    async def reset_both(self) -> None:
        for relay in self.peer.relays:
            relay.reset()

    async def refuse(self) -> None:
        """A portal is gone for a while."""
        relay = await self.relay()
        relay.refuse()
        relay.reset()
        await trio.sleep(self.random.uniform(0.2, 2.5))
        await relay.accept()

    async def silence(self) -> None:
        """Nothing goes through any more, in either direction, and nobody says so."""
        relay = await self.relay()
        relay.black_hole()
        await trio.sleep(self.random.uniform(1, 4))
        relay.heal()

    async def stop_and_continue(self) -> None:
        """Both paths are silent, and then what was sent is done after all."""
        os.kill(self.peer.tgt.pid, signal.SIGSTOP)
        await trio.sleep(self.random.choice((0.3, 1.0, 3.5)))
        os.kill(self.peer.tgt.pid, signal.SIGCONT)

    async def kill_target(self) -> None:
        await in_thread(self.peer.restart)


@pytest.mark.deadline(150)
async def test_fio_notices_nothing(fuse: None, tgt: Tgtd, processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    async with relayed(tgt) as peer:
        commands, place, faults = Commands(processes, peer), tmp_path / "disk", Faults(peer, SEED)  # type: ignore[arg-type]
        await in_thread(mount, commands, peer, place)
        over, passes = trio.Event(), 0

        async def work() -> None:
            nonlocal passes
            while not over.is_set():
                await in_thread(fio_verify, place, "16m", "--end_fsync=1", f"--randseed={passes}")
                passes += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            while len(faults.done) < FAULTS:
                await faults.one()
            over.set()
        assert passes >= 2, "the faults left no time to write"
        await in_thread(both_up, commands, peer)
        (shown,) = await trio.to_thread.run_sync(commands.status)
        device = shown["devices"][0]
        assert device["counters"]["errors"] == 0
        assert sum(path["losses"] for path in device["paths"]) >= FAULTS // 2, faults.done
        await in_thread(commands.umount, place)
        assert await trio.to_thread.run_sync(peer.sessions) == 0


def both_up(commands: Commands, peer: Peer) -> None:
    """Return when both paths are up, and the target has a session for each and no more."""
    until(lambda: all(path["state"] == "up" for path in commands.status()[0]["devices"][0]["paths"]), "both paths", RETURN_SECONDS)
    assert peer.sessions() == 2


@pytest.mark.deadline(90)
async def test_what_was_flushed_outlives_isblk_killed_while_it_writes(
    fuse: None, tgt: Tgtd, processes: Processes, mounts: Mounts, tmp_path: Path
) -> None:
    async with relayed(tgt) as peer:
        commands, place = Commands(processes, peer), tmp_path / "disk"  # type: ignore[arg-type]
        for number in range(3):
            await in_thread(kill_while_writing, commands, peer, place, number)


def kill_while_writing(commands: Commands, peer: Peer, place: Path, number: int) -> None:
    """Mount, see what is there, flush some, and kill the daemon while more is written; the target counts the sessions of one mount."""
    mount(commands, peer, place)
    both_up(commands, peer)
    flushed = bytes((number + 1,)) * MIB
    if number:
        assert get(place, 0, MIB) == bytes((number,)) * MIB
    put(place, 0, flushed, sync=True)
    writer = commands.processes.start(
        ["fio", "--name=more", f"--filename={place}", "--offset=8m", "--size=16m", "--rw=randwrite", "--bs=64k", *MORE]
    )
    before = commands.status()[0]["devices"][0]["counters"]["write_requests"]
    until(lambda: commands.status()[0]["devices"][0]["counters"]["write_requests"] > before + 50, "fio to write")
    os.kill(commands.status()[0]["pid"], signal.SIGKILL)
    assert writer.wait() != 0, "fio did not notice that its file was gone"
    until(lambda: place not in Mounts(place.parent).points(), "the dead mount to be cleared")
    mount(commands, peer, place)
    both_up(commands, peer)
    assert get(place, 0, MIB) == flushed
    commands.umount(place)
    assert peer.sessions() == 0
