"""What a command that serves disks runs, in a daemon or with -f: names and ISIDs, every portal, signals, failures that are told."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import trio

from isblk import notify
from isblk.cli.running import fail, trace_pdu
from isblk.cli.session import capturing, logged_in
from isblk.config import LoginOptions, PathOptions, Target, make_access
from isblk.control import failure_note
from isblk.detach import run_detached
from isblk.discover.sendtargets import send_targets
from isblk.errors import Interrupted, IsblkError, NotFound
from isblk.iscsi.names import Isid, Portal
from isblk.link.opening import Access
from isblk.link.sweeper import Timing
from isblk.logs.output import remember, tell
from isblk.state import claim_slot, initiator_name, places

PATH_OPTIONS = tuple(field.name for field in fields(PathOptions))
"""Of a command's options, those that concern the paths (cli/options.py, path_options)."""
Serve = Callable[[Target, tuple[Isid, ...], Access, trio.Event, Callable[[], None]], Awaitable[None]]
"""Log in to a target with an ISID for each portal, call the last argument when it is served, serve until the event, and end in order."""


class Service:
    """Calling it serves until a signal. Names and the ISID slots are taken then, since a slot's lock must not cross a fork."""

    def __init__(
        self, target: Target, run_directory: Path, wanted: LoginOptions, timing: Timing, options: dict[str, Any], serve: Serve
    ) -> None:
        self._target = target
        self._run_directory = run_directory
        self._wanted = wanted
        self._timing = timing
        self._options = options
        self._serve = serve

    def __call__(self, ready: Callable[[], None]) -> int:
        is_ready = False

        def ready_once() -> None:
            nonlocal is_ready
            is_ready = True
            _come_to_rest()
            ready()
            notify.ready()

        try:
            trio.run(self._run, ready_once)
        except IsblkError as error:
            if is_ready:
                failure_note(self._run_directory, os.getpid()).write_text(str(error))
            raise
        return 0

    async def _run(self, ready: Callable[[], None]) -> None:
        remember()
        tell(target=self._target.name)
        notify.send(f"STATUS=logging in to {self._target.name}")
        state = places().state
        name = initiator_name(state, self._options["initiator_name"])
        trace = trace_pdu if self._options["trace"] else None
        target = await self._with_all_portals(self._target) if self._options["all_portals"] else self._target
        with ExitStack() as slots:
            isids = tuple(slots.enter_context(claim_slot(state, f"{target.name} at {portal}")).isid for portal in target.portals)
            access = make_access(name, isids[0], self._wanted, target=target, trace=trace)
            access, stop = replace(access, time2wait=0, timing=self._timing), trio.Event()
            access = slots.enter_context(capturing(self._options["pcap"], access))
            await interruptible(stop, ready, lambda started: self._serve(target, isids, access, stop, started))

    async def _with_all_portals(self, target: Target) -> Target:
        """The target with the portals that it reports itself, behind those that were given (RFC 7143 4.3)."""
        async with logged_in(None, target.portals, self._options) as (_, connection):
            records = await send_targets(connection, target.portals[0])
        found = [portal for record in records if record.name in (target.name, target.spelled) for portal in record.portals]
        if not found:
            raise NotFound(f"{target.portals[0]} does not report {target.name}; `isblk discover {target.portals[0]}` shows what it has")
        known = {address for portal in target.portals for address in await _addresses(portal)}
        rest: list[Portal] = []
        for portal in found:
            addresses = await _addresses(portal)
            if not addresses & known:
                rest.append(replace(portal, tpgt=None))
                known |= addresses
        return replace(target, portals=(*target.portals, *rest))


def detach(service: Service, log_file: Path | None, said: Callable[[], str] = str) -> str:
    """Run it in a daemon and return when it serves; else end the command with the daemon's sentence and exit code.

    `said` is called in the daemon when it serves; returns what it returned there.
    """
    outcome = run_detached(lambda report: service(lambda: report.ready(said())), log_file=log_file)
    if outcome.exit_code:
        fail(outcome.message, outcome.exit_code)
    return outcome.message


def _come_to_rest() -> None:
    """What there is by now stays: the collector of garbage, which runs while requests wait, need not look at all of it again and again."""
    gc.collect()
    gc.freeze()


async def _addresses(portal: Portal) -> set[tuple[str, int]]:
    """Where a portal is, by whatever name; a name that does not resolve stands for itself."""
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    except OSError:
        return {(portal.host, portal.port)}
    return {(str(address[4][0]), portal.port) for address in found}


async def interruptible(stop: trio.Event, ready: Callable[[], None], main: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
    """Run `main(started)`: a signal before `started` cancels it, after that it sets `stop` and everything is written back."""
    caught: list[int] = []
    failure: Exception | None = None
    is_ready = False

    def started() -> None:
        nonlocal is_ready
        is_ready = True
        ready()

    async def listen(scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                caught.append(number)
                stop.set()
                if not is_ready:
                    scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(listen, scope)
            try:
                await main(started)
            except Exception as error:  # Kept until the nursery has closed: one that crosses it comes out in a group.
                failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if caught and not is_ready:
        raise Interrupted(f"interrupted by {signal.Signals(caught[0]).name}")
