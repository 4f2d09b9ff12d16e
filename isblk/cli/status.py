"""`isblk status`: every daemon of this user, asked over its control socket."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from isblk import control
from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.text import size_text, table
from isblk.errors import IsblkError
from isblk.state import places

DEVICES = ("LUN", "SIZE", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "ERRORS", "IN FLIGHT", "WWID")
NEGOTIATED = ("KEY", "ASKED", "AGREED", "DECIDED BY")


@click.command("status")
@click.option("--negotiated", is_flag=True, help="Also what the login agreed on: each key, asked and agreed.")
@json_option
def command(negotiated: bool, as_json: bool) -> None:
    """Show what runs: each mount with its session, devices and counters.

    \b
    isblk status
    isblk status --negotiated
    isblk status --json
    """
    with errors_as_sentences():
        found = _ask_all()
        if as_json:
            click.echo(json.dumps({"version": control.VERSION, "mounts": found}, indent=2))
        elif not found:
            click.echo("isblk: nothing is mounted", err=True)
        else:
            click.echo("\n\n".join(_text(mount, negotiated) for mount in found))


def _ask_all() -> list[dict[str, Any]]:
    found = []
    for daemon in control.daemons(places().run):
        try:
            found.append(control.ask(daemon.path, "status"))
        except IsblkError as error:
            click.echo(f"isblk: {error}", err=True)
    return found


def _text(mount: dict[str, Any], negotiated: bool) -> str:
    lines = [
        f"{mount['where']}  {mount['target']}{'  read-only' if mount['read_only'] else ''}  pid {mount['pid']}  {_age(mount['since'])}"
    ]
    for session in mount["sessions"]:
        state = f"{session['state']}: {session['error']}" if session["error"] else session["state"]
        lines.append(f"  {session['portal']}  portal group {session['portal_group']}  isid {session['isid']}  {state}")
    lines.append(_indented(table(DEVICES, [_device(device) for device in mount["devices"]])))
    if negotiated:
        for session in mount["sessions"]:
            rows = [(line["key"], line["asked"] or "-", line["agreed"], line["decided"]) for line in session["negotiated"]]
            lines.append(_indented(table(NEGOTIATED, rows)))
    return "\n".join(lines)


def _device(device: dict[str, Any]) -> tuple[object, ...]:
    counters = device["counters"]
    read, written = size_text(counters["read_bytes"]), size_text(counters["write_bytes"])
    return (
        device["lun"],
        size_text(device["size"]),
        counters["read_requests"],
        read,
        counters["write_requests"],
        written,
        counters["flush_requests"],
        counters["errors"],
        device["in_flight"],
        device["wwid"] or "-",
    )


def _age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    days, rest = divmod(seconds, 86400)
    return f"up {days} d {rest // 3600} h" if days else f"up {rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
