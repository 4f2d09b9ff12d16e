"""`isblk detach`: end a block device of the kernel in order, unless somebody uses it."""

from __future__ import annotations

import click

from isblk import control
from isblk.cli.running import errors_as_sentences
from isblk.errors import IsblkError, RequestFailed, UsageError
from isblk.export import nbddevice
from isblk.state import places


@click.command("detach")
@click.argument("device", metavar="DEVICE")
@click.option("--force", is_flag=True, help="Detach although it is mounted or open: who uses it gets I/O errors from then on.")
@click.option("--timeout", type=click.FloatRange(1, 86400), default=control.STOP_DEADLINE, show_default=True, help="Seconds to wait.")
def command(device: str, force: bool, timeout: float) -> None:
    """Detach DEVICE, /dev/nbdN, and return when everything is written back and the session is logged out.

    \b
    umount /mnt
    isblk detach /dev/nbd0

    A device that is mounted or open is left alone. With --force what programs have written by now is written back, and then it is detached.
    """
    with errors_as_sentences():
        index = nbddevice.parse(device)
        if index is None:
            raise UsageError(f"{device!r} is no device to detach: name one, such as /dev/nbd0; `isblk status` lists them")
        detach_device(index, force, timeout)


def detach_device(index: int, force: bool, timeout: float) -> None:
    """End what serves a device, or clear one away whose daemon has died. Raises UsageError when it is in use, or nobody's."""
    path = nbddevice.path(index)
    daemon = serving(path)
    if daemon is None and not nbddevice.backend(index).startswith("isblk "):
        raise UsageError(f"no isblk of this user serves {path}; `isblk status` lists what runs")
    users = [] if force else nbddevice.users(index)
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise UsageError(f"{path} is {users[0]}{more}: end that first, or detach it with --force and lose what is not written back")
    if daemon is None:
        from isblk.export import nbdnetlink  # a tenth of a second

        nbdnetlink.disconnect(index)
        return
    control.stop(daemon.path, timeout)
    tell_failure(daemon)


def serving(path: str) -> control.Daemon | None:
    """The daemon of this user that serves a device."""
    for daemon in control.daemons(places().run):
        try:
            if control.ask(daemon.path, "status").get("where") == path:
                return daemon
        except IsblkError as error:  # It may be the one: the user has to know.
            click.echo(f"isblk: {error}", err=True)
    return None


def tell_failure(daemon: control.Daemon) -> None:
    """What the daemon left behind when it could not write back (cli/service.py). Raises RequestFailed."""
    note = control.failure_note(daemon.path.parent, daemon.pid)
    try:
        text = note.read_text()
        note.unlink()
    except OSError:
        return
    raise RequestFailed(text)
