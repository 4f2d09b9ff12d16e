"""`isblk down`: end what isblktab started, in order, and tell what could not be written back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from isblk import control
from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.supervising import Export, follow, is_ended, is_started, run_directory, show, started, supervisor
from isblk.cli.tables import places_of, table_option
from isblk.errors import ExitCode
from isblk.supervisor.child import serving
from isblk.table.check import load

PATIENCE = control.STOP_DEADLINE + 5
"""Seconds for an end; the supervisor's own deadline comes first, and says more."""


@click.command("down")
@click.argument("where", nargs=-1, metavar="[WHERE]...")
@table_option
@click.option("--force", is_flag=True, help="End also what is in use: who uses it gets I/O errors from then on.")
@json_option
def command(where: tuple[str, ...], path: Path, force: bool, as_json: bool) -> None:
    """End everything that the supervisor keeps up, and then the supervisor; or each WHERE alone. Returns when all is written back.

    \b
    isblk down
    isblk down /srv/lun0

    What is in use stays up, and is told. The exit code is that of the worst: 6 when data could not be written back.
    """
    with errors_as_sentences():
        path, run = path.absolute(), run_directory()
        running = supervisor(path, run)
        if running is None:
            running = _find_what_was_left(path, run)
        if running is None:
            click.echo("isblk: no supervisor runs, and nothing that one has left", err=True)
            return
        code = _end(running, where, force, as_json)
    sys.exit(code)


def _end(running: Path, where: Sequence[str], force: bool, as_json: bool) -> int:
    """Ask for the end, wait for it, and tell; the supervisor ends too when everything was asked for and is down."""
    known = [export["where"] for export in control.ask(running, "status")["exports"]]
    wanted = places_of(where, known, "the supervisor") if where else known
    control.ask(running, "down", where=wanted, force=force)
    found = follow(running, dict.fromkeys(reversed(wanted), PATIENCE), is_ended)
    show(found, as_json)
    codes = [_tell(export) for export in found.values()]
    if not where and all(export["state"] == "down" for export in found.values()):
        control.stop(running)
    return max(codes, default=ExitCode.DONE)


def _tell(export: Export) -> int:
    """Say what went wrong with one export; its exit code."""
    code = int(export["exit_code"])
    if export["state"] != "down":
        click.echo(f"isblk: {export['where']} stays up: {export['reason'] or 'it does not end'}", err=True)
        return code or ExitCode.UNREACHABLE
    if code:
        click.echo(f"isblk: {export['where']}: {export['reason']}", err=True)
    return code


def _find_what_was_left(path: Path, run: Path) -> Path | None:
    """A supervisor over what one that was killed has left: to end it in order somebody has to know it. None when nothing was left."""
    left = [entry.where for entry in load(path).entries if serving(entry, run)[0]]
    if not left:
        return None
    running = started(path, run, left, None)
    follow(running, dict.fromkeys(left, PATIENCE), is_started)
    return running
