"""`isblk mount`: a logical unit as a file, served by a daemon that outlives the command, or in the foreground with -f."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import trio
from click.core import ParameterSource

from isblk.cli.configured import Configured
from isblk.cli.options import automount_options, lun_option, option_words, path_options, session_options
from isblk.cli.running import errors_as_sentences
from isblk.cli.service import PATH_OPTIONS, Service, detach
from isblk.cli.session import login_options
from isblk.config import PathOptions, Target, make_policies, parse_target
from isblk.daemon import MountSpec
from isblk.daemon import mount as serve_mount
from isblk.errors import UsageError
from isblk.export.fuseoptions import DEFAULT_ENGINE, KERNEL_FLAGS, Caching, Engine
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.logs.output import tell
from isblk.state import make_directory, places

OPTIONS = ("ro", "rw", "allow_other", "direct_io", "writeback", *KERNEL_FLAGS)
SOURCE = "fsname="


@click.command("mount", cls=Configured)
@click.argument("target", metavar="TARGET")
@click.argument("mountpoint", type=click.Path(), metavar="MOUNTPOINT")
@lun_option
@click.option(
    "-o",
    "mount_options",
    multiple=True,
    metavar="OPTION[,...]",
    help="ro, rw; allow_other; direct_io (no page cache), writeback; noexec, noatime; fsname=NAME (what mount(8) shows).",
)
@click.option(
    "--fuse-engine",
    "engine",
    type=click.Choice([engine.value for engine in Engine]),
    default=DEFAULT_ENGINE.value,
    show_default=True,
    help="Who speaks to the kernel.",
)
@automount_options
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C unmounts.")
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The daemon's log, not the journal.")
@session_options
@path_options
def command(
    target: str,
    mountpoint: str,
    lun: int | None,
    mount_options: tuple[str, ...],
    engine: str,
    automount: bool,
    idle: float,
    foreground: bool,
    log_file: Path | None,
    **options: Any,
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
    isblk mount -p 10.0.0.5 iqn.2001-05.com.example:disks ./disk -o writeback

    \b
    isblk mount -p 10.0.0.5 iqn.2001-05.com.example:disks ./disk --automount --idle 60

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
        if automount and options["all_portals"]:
            raise UsageError("--automount asks the target nothing at the start, so it cannot ask for --all-portals: name each with -p")
        if not automount and _is_given("idle"):
            raise UsageError("--idle says when an automount logs out: give --automount too, or leave it out")
        policies, timing = make_policies(PathOptions(**words), found.portals, wanted.login_timeout, options["all_portals"])
        flags, source = _mount_options(mount_options)
        if not mountpoint:
            raise UsageError("MOUNTPOINT is empty; name a path that is not there yet, a file, or a directory")
        state, run = places().state, make_directory(places().run)
        place, is_read_only, is_for_others = os.path.abspath(mountpoint), "ro" in flags, "allow_other" in flags
        spec = MountSpec(found, lun, place, run, is_read_only, is_for_others, _caching(flags, Engine(engine)), Engine(engine), policies)
        spec = replace(spec, automount=idle if automount else None, state_directory=state)
        spec = replace(spec, source=source, kernel=frozenset(flags & KERNEL_FLAGS.keys()))

        async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
            await serve_mount(replace(spec, target=target, isids=isids), access, stop, started)

        tell(where=place)
        service = Service(found, run, wanted, timing, options, serve)
        if foreground:
            service(lambda: click.echo(f"isblk: {mountpoint} is mounted; Ctrl-C unmounts", err=True))
        else:
            detach(service, log_file)


def _is_given(name: str) -> bool:
    """Whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _mount_options(groups: tuple[str, ...]) -> tuple[set[str], str | None]:
    """The words, and the source if one is named. Raises UsageError."""
    words = [word for group in groups for word in group.split(",")]
    sources = [word.removeprefix(SOURCE) for word in words if word.startswith(SOURCE)]
    if sources and not sources[-1]:
        raise UsageError("-o fsname= is empty: name what mount(8) is to show, or leave it out")
    return option_words(tuple(word for word in words if not word.startswith(SOURCE)), OPTIONS), sources[-1] if sources else None


def _caching(flags: set[str], engine: Engine) -> Caching:
    if {"direct_io", "writeback"} <= flags:
        raise UsageError("-o direct_io and -o writeback contradict each other: give one of them")
    if "writeback" in flags and engine is Engine.PYFUSE3:
        raise UsageError("-o writeback is not for the pyfuse3 engine, which caches nothing: leave out --fuse-engine pyfuse3")
    return Caching.NONE if "direct_io" in flags else Caching.WRITEBACK if "writeback" in flags else Caching.WRITE_THROUGH
