"""`isblk mount`: a logical unit as a file, served by a daemon that outlives the command, or in the foreground with -f."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import trio

from isblk.cli.options import lun_option, path_options, session_options
from isblk.cli.running import errors_as_sentences, fail, trace_pdu
from isblk.cli.session import logged_in, login_options
from isblk.config import LoginOptions, PathOptions, Target, make_access, make_policies, parse_target
from isblk.control import failure_note
from isblk.daemon import MountSpec
from isblk.daemon import mount as serve_mount
from isblk.detach import run_detached
from isblk.discover.sendtargets import send_targets
from isblk.errors import Interrupted, IsblkError, NotFound, UsageError
from isblk.iscsi.names import Portal
from isblk.link.sweeper import Timing
from isblk.state import claim_slot, initiator_name, make_directory, places

OPTIONS = ("ro", "rw", "allow_other")
PATH_OPTIONS = tuple(field.name for field in fields(PathOptions))


@click.command("mount")
@click.argument("target", metavar="TARGET")
@click.argument("mountpoint", metavar="MOUNTPOINT")
@lun_option
@click.option("-o", "mount_options", multiple=True, metavar="OPTION[,...]", help="ro, rw or allow_other, as for mount(8).")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Log of the daemon, instead of syslog.")
@session_options
@path_options
def command(
    target: str, mountpoint: str, lun: int | None, mount_options: tuple[str, ...], foreground: bool, log_file: Path | None, **options: Any
) -> None:
    """Show a logical unit of TARGET as the file MOUNTPOINT, or all its disks as lun0, lun1, ... in the directory MOUNTPOINT.

    \b
    isblk mount -p 10.0.0.5 iqn.2001-05.com.example:disks ./disk
    mkfs.ext4 ./disk
    isblk umount ./disk

    \b
    isblk mount iscsi://10.0.0.5/iqn.2001-05.com.example:disks/2 ./disk -o ro
    mkdir luns; isblk mount -p 10.0.0.5 iqn.2001-05.com.example:disks luns

    \b
    isblk mount -p 10.0.0.5 -p 10.0.1.5 iqn.2001-05.com.example:disks ./disk
    isblk mount -p 10.0.0.5 --all-portals --policy queue-length iqn.2001-05.com.example:disks ./disk

    Each -p is a path: the disk can be used while one of them works.

    MOUNTPOINT is made when it is not there. The command returns when the file is there; a daemon serves it from then on.
    """
    with errors_as_sentences():
        words = {name: options.pop(name) for name in PATH_OPTIONS}
        wanted = login_options(options)
        found = parse_target(target, options["portals"])
        policies, timing = make_policies(PathOptions(**words), found.portals, wanted.login_timeout, options["all_portals"])
        flags = _mount_options(mount_options)
        if not mountpoint:
            raise UsageError("MOUNTPOINT is empty; name a path that is not there yet, a file, or a directory")
        run = make_directory(places().run)
        spec = MountSpec(found, lun, os.path.abspath(mountpoint), run, "ro" in flags, "allow_other" in flags, policies)
        work = _Work(spec, wanted, timing, options)
        if foreground:
            work(lambda: click.echo(f"isblk: {mountpoint} is mounted; Ctrl-C unmounts", err=True))
            return
        outcome = run_detached(lambda report: work(report.ready), log_file=log_file)
    if outcome.exit_code:
        fail(outcome.message, outcome.exit_code)


class _Work:
    """What runs in the daemon, or in the foreground: names and the ISID slot are taken there, since a slot's lock must not cross a fork."""

    def __init__(self, spec: MountSpec, wanted: LoginOptions, timing: Timing, options: dict[str, Any]) -> None:
        self._spec = spec
        self._wanted = wanted
        self._timing = timing
        self._options = options

    def __call__(self, ready: Callable[[], None]) -> int:
        is_ready = False

        def ready_once() -> None:
            nonlocal is_ready
            is_ready = True
            ready()

        try:
            trio.run(self._run, ready_once)
        except IsblkError as error:
            if is_ready:
                failure_note(self._spec.run_directory, os.getpid()).write_text(str(error))
            raise
        return 0

    async def _run(self, ready: Callable[[], None]) -> None:
        state = places().state
        name = initiator_name(state, self._options["initiator_name"])
        trace = trace_pdu if self._options["trace"] else None
        target = await self._with_all_portals(self._spec.target) if self._options["all_portals"] else self._spec.target
        with ExitStack() as slots:
            isids = tuple(slots.enter_context(claim_slot(state, f"{target.name} at {portal}")).isid for portal in target.portals)
            access = make_access(name, isids[0], self._wanted, target=target, trace=trace)
            access = replace(access, time2wait=0, timing=self._timing)
            spec, stop = replace(self._spec, target=target, isids=isids), trio.Event()
            await interruptible(stop, ready, lambda started: serve_mount(spec, access, stop, started))

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


async def _addresses(portal: Portal) -> set[tuple[str, int]]:
    """Where a portal is, by whatever name; a name that does not resolve stands for itself."""
    try:
        found = await trio.socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM)
    except OSError:
        return {(portal.host, portal.port)}
    return {(str(address[4][0]), portal.port) for address in found}


async def interruptible(stop: trio.Event, ready: Callable[[], None], main: Callable[[Callable[[], None]], Any]) -> None:
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


def _mount_options(words: tuple[str, ...]) -> set[str]:
    flags = {word for group in words for word in group.split(",") if word}
    unknown = sorted(flags - set(OPTIONS))
    if unknown:
        raise UsageError(f"unknown mount option {unknown[0]!r}: there are {', '.join(OPTIONS)}")
    if {"ro", "rw"} <= flags:
        raise UsageError("-o ro and -o rw contradict each other: give one of them")
    return flags
