"""`isblk check`: everything that is wrong with a table, without contacting anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.tables import table_option
from isblk.cli.text import table as columns
from isblk.errors import ExitCode
from isblk.table.check import check
from isblk.table.entry import Entry, Table

HEADER = ("WHERE", "TYPE", "TARGET", "STARTED", "UP WAITS")


@click.command("check")
@table_option
@json_option
def command(path: Path, as_json: bool) -> None:
    """Read the table and everything it names, and tell all that is wrong, each with FILE:LINE:COLUMN. Nothing is contacted.

    \b
    isblk check
    isblk check -f ./isblktab

    What is right is listed as it would be started. The exit code is 2 when anything is wrong: then no other command uses the table either.
    """
    with errors_as_sentences():
        found = check(path)
        if as_json:
            click.echo(json.dumps(_json(found), indent=2))
        elif found.entries:
            click.echo(columns(HEADER, [_row(entry) for entry in found.entries]))
        elif found:
            click.echo(f"isblk: {path} has no exports", err=True)
        for problem in found.problems.in_order():
            click.echo(str(problem), err=True)
    sys.exit(ExitCode.USAGE if found.problems else ExitCode.DONE)


def _row(entry: Entry) -> tuple[str, ...]:
    started = "by name" if entry.noauto else "on first use" if entry.automount else "by up"
    waits = f"{entry.patience:g} s" if entry.patience else "no"
    return entry.where, entry.kind, entry.target, started, f"{waits}, may fail" if entry.nofail else waits


def _json(table: Table) -> dict[str, Any]:
    return {
        "version": 1,
        "table": table.file,
        "entries": [_entry(entry) for entry in table.entries],
        "problems": [problem.to_json() for problem in table.problems.in_order()],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "line": entry.line,
        "where": entry.where,
        "type": entry.kind,
        "target": entry.target,
        "noauto": entry.noauto,
        "nofail": entry.nofail,
        "automount": entry.automount,
        "timeout": entry.patience,
        "retry": entry.retry,
        "command": ["isblk", *entry.command()],
    }
