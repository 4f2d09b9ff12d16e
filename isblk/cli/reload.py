"""`isblk reload`: let the supervisor follow a table that was changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from isblk import control
from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.supervising import follow, is_ended, is_started, needed, run_directory, tell_started
from isblk.cli.tables import table_option
from isblk.errors import ExitCode
from isblk.table.check import load

DEEDS = {"stop": "stopped", "restart": "restarted", "start": "started", "change": "changed", "keep": "unchanged", "leave_down": "down"}
"""The lists of a plan (supervisor/plan.py), in the order they are told, and a word for each."""


@click.command("reload")
@table_option
@json_option
def command(path: Path, as_json: bool) -> None:
    """Follow the table: start what is new, stop what is gone, change what is different, leave the rest alone.

    \b
    isblk reload

    Returns when what was started is there, as `isblk up` does. A table with a mistake changes nothing.
    """
    with errors_as_sentences():
        path, run = path.absolute(), run_directory()
        entries = {entry.where: entry for entry in load(path).entries}
        running = needed(path, run)
        plan: dict[str, Any] = control.ask(running, "reload")
        told = follow(running, dict.fromkeys(plan["change"], control.DEADLINE), lambda export: not export.get("changing"))
        replaced = [where for where, export in told.items() if export["state"] == "stopping"]  # They could not be told, after all.
        begun = [*plan["restart"], *plan["start"], *replaced]
        stopped = follow(running, dict.fromkeys((*plan["stop"], *plan["restart"]), control.STOP_DEADLINE + 5), is_ended)
        started = follow(running, {where: entries[where].patience for where in begun}, is_started)
        codes = [tell_started(started, entries)]
        for where, export in stopped.items():
            if export["exit_code"] and where not in begun:
                click.echo(f"isblk: {where}: {export['reason']}", err=True)
                codes.append(export["exit_code"])
            elif export["state"] == "up" and export["exit_code"]:
                click.echo(f"isblk: {where} keeps its old options: {export['reason']}", err=True)
                codes.append(export["exit_code"])
        _show(plan, as_json)
    sys.exit(max(codes, default=ExitCode.DONE))


def _show(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"version": 1, **{name: plan[name] for name in DEEDS}}, indent=2))
        return
    for name, word in DEEDS.items():
        for where in plan[name]:
            click.echo(f"{word:<10}{where}")
