"""`isblk umount`: unmount, end an NBD server, or detach a block device, and wait until its daemon has written back and logged out."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from isblk import control
from isblk.cli.detach import detach_device, tell_failure
from isblk.cli.running import errors_as_sentences
from isblk.errors import IsblkError, UsageError
from isblk.export import mountpoint as mountpoints
from isblk.export import nbddevice
from isblk.state import places


@click.command("umount")
@click.argument("mountpoint", type=click.Path(), metavar="MOUNTPOINT")
@click.option("--timeout", type=click.FloatRange(1, 86400), default=control.STOP_DEADLINE, show_default=True, help="Seconds to wait.")
def command(mountpoint: str, timeout: float) -> None:
    """Unmount MOUNTPOINT and return when everything is written back and the session is logged out.

    \b
    isblk umount ./disk

    An NBD server is ended by the socket or the HOST:PORT that it listens at:

    \b
    isblk umount ./disk.sock

    A block device is detached as `isblk detach` does it:

    \b
    isblk umount /dev/nbd0

    umount(8) and `fusermount3 -u` end a mount just as well, but do not wait for the end and do not tell what could not be written back.
    """
    with errors_as_sentences():
        if not mountpoint:
            raise UsageError("MOUNTPOINT is empty; 'isblk status' lists what is mounted")
        if nbddevice.is_device(mountpoint):
            index = nbddevice.parse(mountpoint)
            assert index is not None
            detach_device(index, False, timeout)
            return
        end_mount(mountpoint, timeout)


def end_mount(mountpoint: str, timeout: float, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount, or end an NBD server, and return when its daemon has ended, or at once with `lazy`; `force` fails requests that hang.

    Raises UsageError when that cannot be, RequestFailed for what could not be written back, Unreachable after `timeout` seconds.
    """
    found = _daemon_of(mountpoint)
    if found is None:
        _unmount_what_is_there(mountpoint, lazy, force)
        return
    daemon, kind = found
    if kind == "nbd":
        control.stop(daemon.path, timeout)
    elif lazy:
        mountpoints.unmount(mountpoint, lazy, force)
        return
    else:
        with control.watched(daemon.path) as ended:
            mountpoints.unmount(mountpoint, force=force)
            ended(timeout)
    tell_failure(daemon)


def _unmount_what_is_there(mountpoint: str, lazy: bool, force: bool) -> None:
    """A mountpoint without a daemon; a socket without one is cleared away by the next server."""
    is_socket = False
    with suppress(OSError):  # a dead mount cannot be looked at
        is_socket = Path(mountpoint).is_socket()
    if is_socket:
        raise UsageError(f"no isblk of this user serves the socket {mountpoint}; 'isblk status' lists what runs")
    mountpoints.unmount(mountpoint, lazy, force)


def _daemon_of(mountpoint: str) -> tuple[control.Daemon, str] | None:
    """The daemon that serves a mountpoint, socket or HOST:PORT, by whatever name, and of what kind it is.

    None when it is dead, or when the mount is not isblk's.
    """
    path = Path(os.path.abspath(mountpoint))
    wanted = {str(path), str(path.parent.resolve() / path.name), mountpoint}
    with suppress(OSError):  # a dead mount cannot be looked at
        wanted.add(str(path.resolve()))
    for daemon in control.daemons(places().run):
        try:
            status: dict[str, Any] = control.ask(daemon.path, "status")
        except IsblkError as error:  # It may be the one: then nobody waits for it, and the user has to know.
            click.echo(f"isblk: {error}", err=True)
            continue
        if wanted & {status.get("where"), *status.get("listens", ())}:
            return daemon, status.get("kind", "mount")
    return None
