"""`isblk install-helper`: what mount(8), umount(8) and systemd look for, as symbolic links to this installation's commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from isblk.cli.running import errors_as_sentences
from isblk.errors import UsageError

DIRECTORY = Path("/sbin")
"""Where mount(8) looks for helpers."""
HELPERS = ("mount.isblk", "umount.fuse.isblk")
GENERATORS = "/etc/systemd/system-generators"
"""Where systemd looks for generators that an administrator has installed."""
GENERATOR = "isblk-generator"


@click.command("install-helper")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DIRECTORY,
    show_default=True,
    help="Where to; mount(8) looks in /sbin alone.",
)
@click.option(
    "--systemd",
    "generators",
    type=click.Path(file_okay=False, path_type=Path),
    is_flag=False,
    flag_value=GENERATORS,
    metavar="[DIRECTORY]",
    help=f"The generator too, which makes units of isblktab, into {GENERATORS}.",
)
@click.option("--remove", is_flag=True, help="Take them away again.")
def command(directory: Path, generators: Path | None, remove: bool) -> None:
    """Let mount(8) and umount(8) know isblk, so that lines of /etc/fstab with the type isblk work. Needs root.

    \b
    isblk install-helper
    mount -t isblk -o portal=10.0.0.5 iqn.2001-05.com.example:disks /mnt/lun0

    \b
    isblk install-helper --systemd
    systemctl daemon-reload

    \b
    isblk install-helper --systemd --remove

    Makes mount.isblk and umount.fuse.isblk, and isblk-generator for systemd: symbolic links to the commands of this installation. Prints
    what it made. Another file of that name is left alone, and is an error.
    """
    with errors_as_sentences():
        wanted = [directory / name for name in HELPERS] + ([] if generators is None else [generators / GENERATOR])
        links = {link: Path(sys.executable).with_name(link.name) for link in wanted}
        found = {link: _state(link) for link in links}  # All of them are looked at before one is touched.
        missing = [program for program in links.values() if not program.exists()]
        if missing and not remove:
            raise UsageError(f"{missing[0]} is not there: install isblk with pip or pipx, which makes it")
        for link, program in links.items():
            if remove and found[link] is not None:
                _remove(link)
            elif not remove and found[link] != os.fspath(program):
                _install(link, program)


def _install(link: Path, program: Path) -> None:
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        if link.name == GENERATOR:  # Nothing of Debian's makes that directory; /sbin is there.
            link.parent.mkdir(parents=True, exist_ok=True)
        draft.symlink_to(program)
        draft.replace(link)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{link} cannot be made: {error.strerror}; run this as root, or name another --directory") from None
    click.echo(link)


def _remove(link: Path) -> None:
    try:
        link.unlink()
    except OSError as error:
        raise UsageError(f"{link} cannot be removed: {error.strerror}; run this as root") from None
    click.echo(link)


def _state(link: Path) -> str | None:
    """Where a link of isblk's leads, perhaps of another installation or one that is gone; None when nothing is there.

    Raises UsageError for what is not isblk's.
    """
    try:
        found = os.readlink(link)
    except FileNotFoundError:
        return None
    except OSError:
        found = ""
    if Path(found).name != link.name:
        raise UsageError(f"{link} is there and is not isblk's: move it away first")
    return found
