"""`isblk serve`: one export of the table in the foreground, as a service manager runs it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from isblk.cli.running import errors_as_sentences
from isblk.cli.tables import named, table_option
from isblk.errors import UsageError
from isblk.export import mountpoint
from isblk.table.check import check
from isblk.table.entry import Entry
from isblk.table.options import Kind


@click.command("serve")
@click.argument("where", metavar="WHERE")
@table_option
def command(where: str, path: Path) -> None:
    """Serve the export at WHERE, as its line in isblktab says, in the foreground: what a unit of systemd runs.

    \b
    isblk serve /mnt/lun0

    It tells a service manager (sd_notify) when it serves, how the paths are, that it lives, and that it ends. Sockets of systemd take the
    place of an nbd export's own. A mount that a killed daemon has left is cleared away before. What is wrong with other lines is none of
    its business.
    """
    with errors_as_sentences():
        entry = _entry(path, where)
        arguments = entry.command()
        if entry.kind is Kind.NBD and os.environ.get("LISTEN_PID") == str(os.getpid()):
            at = arguments.index("--socket" if entry.is_path else "--listen")
            del arguments[at : at + 2]
        if entry.kind is Kind.FUSE:
            mountpoint.clear_dead(entry.where)
    from isblk.cli import main

    main.main(arguments, prog_name="isblk")


def _entry(path: Path, where: str) -> Entry:
    """The entry. A systemd unit calls it by a path, also when it is HOST:PORT. Raises UsageError for what is wrong with it, NotFound."""
    found = check(path)
    meant = [entry for entry in (*found.entries, *found.doubtful) if entry.where in (where, where.lstrip("/"))]
    for problem in found.problems.in_order():
        if problem.line in (0, *(entry.line for entry in meant)):
            raise UsageError(str(problem))
    return meant[0] if meant else named(found.entries, [where], str(path))[0]
