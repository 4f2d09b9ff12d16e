"""`isblk up`: start what isblktab says, under a supervisor that outlives the command, or is it with --foreground."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from isblk import control, notify
from isblk.cli.options import json_option, log_options
from isblk.cli.running import errors_as_sentences
from isblk.cli.supervising import follow, is_started, run_directory, serve, show, started, supervisor, tell_started
from isblk.cli.tables import named, table_option
from isblk.errors import UsageError
from isblk.logs.output import level_of, to_stderr
from isblk.table.check import load


@click.command("up")
@click.argument("where", nargs=-1, metavar="[WHERE]...")
@table_option
@click.option("--foreground", is_flag=True, help="Be the supervisor, until Ctrl-C or SIGTERM; for service managers.")
@click.option(
    "--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Log of the supervisor, instead of syslog."
)
@log_options
@json_option
def command(where: tuple[str, ...], path: Path, foreground: bool, log_file: Path | None, as_json: bool, **levels: Any) -> None:
    """Start what the table says, all but noauto or each WHERE, and keep it up. Returns when it is there.

    \b
    isblk up
    isblk up /srv/lun0
    isblk up -f ./isblktab --foreground

    A supervisor runs each export in a process of its own and starts again what ends without being asked. What is up already is left alone.
    An export that cannot be started is told, and tried further; the exit code is that of the worst without nofail.
    """
    with errors_as_sentences():
        # A supervisor tells every event, wherever its log goes, unless somebody wants it otherwise.
        to_stderr(level_of(levels["verbose"] and levels["verbose"] + 1, levels["quiet"], levels["log_level"] or "info"))
        path, run = path.absolute(), run_directory()
        table = load(path)
        entries = {entry.where: entry for entry in named(table.entries, where, str(path))} if where else None
        wanted = entries if entries is not None else {entry.where: entry for entry in table.entries if not entry.noauto}
        names = None if entries is None else list(entries)
        running = supervisor(path, run)
        if foreground and log_file is not None:
            raise UsageError("--log-file is for a supervisor in the background: in the foreground its log is standard error")
        if foreground:
            if running is not None:
                raise UsageError(f"a supervisor runs already, process {running.stem}: `isblk reload` lets it follow the table")
            sys.exit(serve(path, run, names, notify.ready))
        if running is not None:
            control.ask(running, "up", where=names)
        elif not table.entries:
            click.echo(f"isblk: {path} has no exports", err=True)
            return
        else:
            running = started(path, run, names, log_file)
        found = follow(running, {each: entry.patience for each, entry in wanted.items()}, is_started)
        show(found, as_json)
        code = tell_started(found, wanted)
    sys.exit(code)
