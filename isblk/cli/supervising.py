"""What `up`, `down` and `reload` share: the supervisor that runs, one that is started, and waiting for what was asked of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from isblk import control
from isblk.cli.running import fail
from isblk.cli.text import table
from isblk.detach import run_detached
from isblk.errors import ExitCode, UsageError
from isblk.state import make_directory, places
from isblk.supervisor import lock
from isblk.table.check import load
from isblk.table.entry import Entry

POLL = 0.1
"""Seconds between two looks at what has become of a request."""

COLUMNS = ("EXPORT", "TYPE", "STATE", "FOR", "PID", "RESTARTS")

Export = dict[str, Any]
"""As the supervisor's status has it (supervisor/keeper.py)."""


def run_directory() -> Path:
    """Where the supervisor and the exports have their control sockets."""
    return make_directory(places().run)


def supervisor(path: Path, run: Path) -> Path | None:
    """The control socket of the supervisor of this table. Raises UsageError when another table's runs."""
    end = time.monotonic() + control.DEADLINE
    while (found := lock.find(run)) is not None and not found.exists() and time.monotonic() < end:
        time.sleep(POLL)  # It begins just now, or ends.
    if found is None:
        return None
    kept = control.ask(found, "status").get("table")
    if kept != os.path.abspath(path):
        raise UsageError(
            f"the supervisor that runs, process {found.stem}, keeps {kept}: name that with -f, or end it with `isblk down -f {kept}`"
        )
    return found


def serve(path: Path, run: Path, where: Sequence[str] | None, ready: Callable[[], None]) -> int:
    """Be the supervisor of a table; the exit code."""
    import trio

    from isblk.supervisor.child import Processes
    from isblk.supervisor.run import Supervisor

    with lock.held(run):
        return trio.run(Supervisor(path, run, Processes(run), load).run, where, ready)


def started(path: Path, run: Path, where: Sequence[str] | None, log_file: Path | None) -> Path:
    """A supervisor in a process of its own; its control socket."""
    outcome = run_detached(lambda report: serve(path, run, where, report.ready), log_file=log_file)
    if outcome.exit_code:
        fail(outcome.message, outcome.exit_code)
    found = supervisor(path, run)
    if found is None:
        raise UsageError("the supervisor ended at once; its log says why")
    return found


def needed(path: Path, run: Path) -> Path:
    """The same; UsageError when none runs."""
    found = supervisor(path, run)
    if found is None:
        raise UsageError("no supervisor runs: `isblk up` starts one")
    return found


def exports(path: Path, wanted: Sequence[str]) -> dict[str, Export]:
    """The exports of these places; one that the supervisor no longer has is down."""
    found = {export["where"]: export for export in control.ask(path, "status")["exports"]}
    gone = {"state": "down", "reason": "", "exit_code": 0, "pid": None, "since": time.time()}
    return {where: found.get(where, {"where": where, **gone}) for where in wanted}


def follow(path: Path, patience: Mapping[str, float], settled: Callable[[Export], bool]) -> dict[str, Export]:
    """Look until each export is `settled`, or for so many seconds as `patience` has for it; how they are then."""
    begin = time.monotonic()
    while True:
        found = exports(path, list(patience))
        passed = time.monotonic() - begin
        if all(settled(export) or passed >= patience[where] for where, export in found.items()):
            return found
        time.sleep(POLL)


def is_started(export: Export) -> bool:
    """Whether there is no use in waiting any longer: it is up, or failed for a reason that time alone does not mend."""
    if export["state"] == "retrying":
        return bool(export["exit_code"] != ExitCode.UNREACHABLE)
    return export["state"] not in ("starting", "stopping") and not export.get("changing")


def is_ended(export: Export) -> bool:
    """Whether an end that was asked for has come, or was refused."""
    return bool(export["state"] != "stopping")


def tell_started(found: Mapping[str, Export], entries: Mapping[str, Entry]) -> int:
    """Say on standard error which are not up and why; the exit code of the worst of those that have to be."""
    codes = []
    for where, export in found.items():
        entry = entries[where]
        if export["state"] == "up" or (export["state"] in ("starting", "stopping") and not entry.patience):
            continue
        click.echo(f"isblk: {where} is not up: {_why(export, entry.patience)}", err=True)
        if not entry.nofail:
            codes.append(export["exit_code"] or ExitCode.UNREACHABLE)
    return max(codes, default=0)


def _why(export: Export, patience: float) -> str:
    reason = export["reason"] or f"it has not come within {patience:g} s"
    if export["state"] == "retrying":
        return f"{reason}; next try in {max(0.0, export['next_try'] - time.time()):.0f} s"
    return f"{reason}; it is tried further" if export["state"] in ("starting", "stopping") else str(reason)


def show(found: Mapping[str, Export], as_json: bool) -> None:
    """Print the states on standard output."""
    if as_json:
        click.echo(json.dumps({"version": 1, "exports": list(found.values())}, indent=2))
    elif found:
        click.echo(table(("WHERE", "STATE"), [(export["where"], export["state"]) for export in found.values()]))


def describe(status: Mapping[str, Any], age: Callable[[float], str]) -> str:
    """A supervisor for `isblk status`: its exports, and why those are not up that should be."""
    lines = [f"{status['table']}  supervisor  pid {status['pid']}  up {age(status['since'])}"]
    rows = [
        (each["where"], each["type"], each["state"], age(each["since"]), each["pid"] or "-", each["restarts"]) for each in status["exports"]
    ]
    lines += [f"  {line}".rstrip() for line in table(COLUMNS, rows).split("\n")] if rows else ["  no exports"]
    for export in status["exports"]:
        if export["reason"]:
            lines.append(f"  {export['where']}: {_why(export, export['timeout'])}")
    return "\n".join(lines)
