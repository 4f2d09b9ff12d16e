"""`isblk attach`: a logical unit as a block device of the kernel (/dev/nbdN), served by a daemon that outlives the command, or with -f."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import trio

from isblk.blockdevice import DEAD_CONNECTION_TIMEOUT, LONGEST_TIMEOUT, DeviceSpec, default_timeout
from isblk.blockdevice import serve as serve_device
from isblk.cli.configured import Configured
from isblk.cli.detach import serving
from isblk.cli.options import lun_option, option_words, path_options, session_options
from isblk.cli.running import errors_as_sentences
from isblk.cli.service import PATH_OPTIONS, Service, detach
from isblk.cli.session import login_options
from isblk.config import PathOptions, Target, make_policies, parse_target
from isblk.errors import UsageError
from isblk.export import nbddevice
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.logs.output import tell
from isblk.reclaim import stand_apart
from isblk.state import make_directory, places

CONNECTIONS = 1
"""The one that the kernel never gives up (blockdevice.default_timeout). Several are several queues, which end in one thread here."""


@click.command("attach", cls=Configured)
@click.argument("target", metavar="TARGET")
@click.argument("device", metavar="DEVICE")
@lun_option
@click.option("-o", "words", multiple=True, metavar="ro|rw", help="ro: nobody can write to the device.")
@click.option(
    "--connections", type=click.IntRange(1, 64), default=CONNECTIONS, show_default=True, metavar="N", help="Queues of the device."
)
@click.option(
    "--timeout",
    type=click.IntRange(1, LONGEST_TIMEOUT),
    metavar="S",
    help="Seconds after which the kernel gives up waiting for an answer; default: never with one connection.",
)
@click.option(
    "--dead-connection-timeout",
    type=click.IntRange(0, LONGEST_TIMEOUT),
    default=DEAD_CONNECTION_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds that requests wait for a new daemon when this one has died.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C detaches.")
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The daemon's log, not the journal.")
@session_options
@path_options
def command(
    target: str,
    device: str,
    lun: int | None,
    words: tuple[str, ...],
    connections: int,
    timeout: int | None,
    dead_connection_timeout: int,
    foreground: bool,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Make a logical unit of TARGET the block device DEVICE, /dev/nbdN, through the kernel's NBD client. Needs root.

    \b
    modprobe nbd
    isblk attach -p 10.0.0.5 iqn.2001-05.com.example:disks /dev/nbd0
    mkfs.ext4 /dev/nbd0
    mount /dev/nbd0 /mnt
    umount /mnt
    isblk detach /dev/nbd0

    \b
    isblk attach iscsi://10.0.0.5/iqn.2001-05.com.example:disks/2 any -o ro
    isblk attach -p 10.0.0.5 -p 10.0.1.5 iqn.2001-05.com.example:disks /dev/nbd1 --policy queue-length

    `any` is a device that is free. The command prints the device and returns when it is there; a daemon serves it from then on. `isblk
    detach`, SIGTERM to the daemon, or `nbd-client -d` ends it. A daemon that died is replaced by the same command within the dead
    connection timeout: the device goes on as if nothing had been.
    """
    with errors_as_sentences():
        from isblk.export import nbdnetlink  # a tenth of a second

        paths = {name: options.pop(name) for name in PATH_OPTIONS}
        wanted = login_options(options)
        found = parse_target(target, options["portals"])
        policies, timing = make_policies(PathOptions(**paths), found.portals, wanted.login_timeout, options["all_portals"])
        flags = option_words(words, ("ro", "rw"))
        index = nbddevice.parse(device)
        if timeout is not None and timeout <= policies.no_path.seconds:
            raise UsageError(
                f"--timeout {timeout} is not longer than requests wait for a path (--no-path-retry {policies.no_path}): "
                "the kernel would repeat requests that are still on their way; give it more"
            )
        nbdnetlink.check()
        _check_free(index)
        run = make_directory(places().run)
        patience = timeout if timeout is not None else default_timeout(policies.no_path, connections)
        spec = DeviceSpec(found, lun, index, run, connections, patience, dead_connection_timeout, "ro" in flags, policies)
        attached: list[str] = []

        async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
            def there(path: str) -> None:
                stand_apart()
                attached.append(path)
                tell(where=path)
                started()

            await serve_device(replace(spec, target=target, isids=isids), nbdnetlink, access, stop, there)

        service = Service(found, run, wanted, timing, options, serve)
        if foreground:
            service(lambda: click.echo(attached[0]))
        else:
            click.echo(detach(service, log_file, lambda: attached[0]))


def _check_free(index: int | None) -> None:
    """Raise UsageError when a daemon serves the device, or another program's connection is alive there: before anything is logged in."""
    if index is None:
        return
    path = nbddevice.path(index)
    daemon = serving(path)
    if daemon is not None:
        raise UsageError(f"{path} is attached already, by process {daemon.pid}: name another, or `any` for one that is free")
    owner = nbddevice.owner(index)
    if owner is not None and os.path.exists(f"/proc/{owner}"):
        raise UsageError(f"{path} is in use, by process {owner}: name another, or `any` for one that is free")
