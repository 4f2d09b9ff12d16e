"""`isblk status`: every daemon of this user, asked over its control socket."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from shutil import get_terminal_size
from typing import Any

import click

from isblk import control
from isblk.cli.options import json_option
from isblk.cli.running import errors_as_sentences
from isblk.cli.supervising import describe
from isblk.cli.text import age_text, has_colours, paint, size_text, table
from isblk.state import places

PATHS = ("PATH", "GROUP", "ISID", "STATE", "FOR", "ACCESS", "REQUESTS", "CARRIED", "IN FLIGHT")
SESSIONS = ("PATH", "GROUP", "ISID", "SESSION", "FOR", "LOGINS", "SENT", "RECEIVED")
PATHS_OF_LUNS = ("LUN", "PATH", "STATE", "FOR", "ACCESS", "REQUESTS", "CARRIED", "IN FLIGHT")
DEVICES = ("LUN", "SIZE", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "ERRORS", "IN FLIGHT", "WWID")
GONE = ("down", "wrong unit")
DEEDS = (
    ("waiting", "waiting"),
    ("failed_over", "repeated"),
    ("fences", "fences"),
    ("cache_losses", "cache losses"),
)
"""What is told of a device when it is not zero."""
NEGOTIATED = ("KEY", "ASKED", "AGREED", "DECIDED BY")


STATE_COLOURS = {"up": "green", "standby": "cyan", "fencing": "yellow", "connecting": "yellow", "down": "red", "wrong unit": "red"}
WATCH_SECONDS = 2.0

EXPORTS = ("EXPORT", "LUN", "ALSO", "ACCESS")
CLIENTS = ("CLIENT", "EXPORT", "NEGOTIATED", "READS", "READ", "WRITES", "WRITTEN", "OTHERS", "ERRORS")


@click.command("status")
@click.option("--negotiated", is_flag=True, help="Also what the login agreed on: each key, asked and agreed.")
@click.option(
    "--watch",
    type=click.FloatRange(0.1, 3600),
    is_flag=False,
    flag_value=WATCH_SECONDS,
    metavar="[SECONDS]",
    help="Again and again, until interrupted; default: every 2 seconds.",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of what --json prints, and ask nobody.")
@json_option
def command(negotiated: bool, watch: float | None, schema: bool, as_json: bool) -> None:
    """Show what runs: each mount, NBD server and block device with its devices, its paths, its clients, and their counters.

    A path is up, standby (the target lets nothing through there), fencing (old writes are made harmless first), down, or leads to a wrong
    unit; under the table stands why.

    \b
    isblk status
    isblk status --negotiated
    isblk status --watch
    isblk status --json
    """
    with errors_as_sentences():
        if schema:
            click.echo(schema_text(), nl=False)
        elif watch is None:
            _show(_ask_all(), negotiated, as_json)
        else:
            _watch(watch, negotiated, as_json)


def schema_text() -> str:
    """The schema as it is installed."""
    from importlib.resources import files  # 30 ms

    return files("isblk").joinpath("data/status.schema.json").read_text()


def _document(every: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json prints: the supervisor apart from what it keeps up."""
    found = [each for each in every if each.get("kind") != "supervisor"]
    supervisor = next((each for each in every if each.get("kind") == "supervisor"), None)
    return {"version": control.VERSION, "mounts": found, **({"supervisor": supervisor} if supervisor else {})}


def _screen(every: list[dict[str, Any]], negotiated: bool) -> str:
    """The same for people."""
    told = _document(every)
    first = [describe(told["supervisor"], age_text)] if "supervisor" in told else []
    return "\n\n".join([*first, *(_text(mount, negotiated) for mount in told["mounts"])])


def _show(every: list[dict[str, Any]], negotiated: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_document(every), indent=2))
    elif not every:
        click.echo("isblk: nothing is mounted", err=True)
    else:
        click.echo(_screen(every, negotiated))


def _watch(seconds: float, negotiated: bool, as_json: bool) -> None:
    """A screen each time where there is one, else a text behind the other, JSON as a line each; Ctrl-C is how this is meant to end."""
    try:
        while True:
            every = _ask_all()
            if as_json:
                click.echo(json.dumps({"time": time.time(), **_document(every)}))
            else:
                _show_screen(_screen(every, negotiated) or "nothing is mounted", seconds)
            sys.stdout.flush()
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass


def _show_screen(text: str, seconds: float) -> None:
    title = f"isblk status, every {seconds:g} s, {time.strftime('%H:%M:%S')}"
    if not sys.stdout.isatty():
        click.echo(f"{title}\n\n{text}\n")
        return
    height = get_terminal_size().lines
    lines = [paint(title, "bright_black"), "", *text.split("\n")]
    if len(lines) > height:
        lines[height - 1 :] = [paint(f"and {len(lines) - height + 1} lines more", "bright_black")]
    # Home, each line cleared to its end, then the rest of the screen: without a blank moment in between. Long lines are cut off.
    print("\x1b[H\x1b[?7l" + "\x1b[K\n".join(lines) + "\x1b[J\x1b[?7h", end="")


def _ask_all() -> list[dict[str, Any]]:
    answers, failures = control.ask_all(places().run)
    for failure in failures:
        click.echo(f"isblk: {failure}", err=True)
    return [answer for _, answer in answers]


def _text(mount: dict[str, Any], negotiated: bool) -> str:
    devices = mount.get("devices", ())
    where, read_only = paint(str(mount.get("where", mount.get("kind", "isblk"))), "bold"), "read-only" if mount.get("read_only") else ""
    said = (where, mount.get("target", ""), read_only, f"pid {mount['pid']}", f"up {age_text(mount['since'])}" if "since" in mount else "")
    lines = [
        "  ".join(filter(None, said)),
        *([_indented(_table(DEVICES, [_device(device) for device in devices]))] if devices else []),
        *map(_indented, _paths(mount) if devices else ()),
        *(f"  {note}" for note in dict.fromkeys(note for device in devices for note in _notes(device, len(devices) > 1))),
        *map(_indented, _FRONT_ENDS.get(mount.get("kind", "mount"), _nothing)(mount)),
    ]
    if negotiated:
        for session in mount.get("sessions", ()):
            rows = [(line["key"], line["asked"] or "-", line["agreed"], line["decided"]) for line in session.get("negotiated", ())]
            lines.append(_indented(f"{session['portal']}\n{table(NEGOTIATED, rows)}" if rows else f"{session['portal']}  no session"))
    return "\n".join(lines)


def _nbd(server: dict[str, Any]) -> Iterator[str]:
    """What an NBD server offers, and who is there."""
    yield "\n".join(server["uris"])
    rows = [
        (each["name"], each["lun"], each["wwid"] or "-", "read-only" if each["read_only"] else "read-write") for each in server["exports"]
    ]
    yield _table(EXPORTS, rows)
    yield from _clients(server)


def _attached(server: dict[str, Any]) -> Iterator[str]:
    """A block device of the kernel, and its connections."""
    device = server["block_device"]
    replaced = f", {device['replaced_connections']} replaced" if device["replaced_connections"] else ""
    connections = "1 connection" if device["connections"] == 1 else f"{device['connections']} connections"
    patience = f"timeout {device['timeout']} s" if device["timeout"] else "no timeout"
    yield (
        f"{size_text(device['size'])} in blocks of {device['block_size']}, {connections}{replaced}, "
        f"{patience}, dead connection timeout {device['dead_connection_timeout']} s"
    )
    yield from _clients(server)


def _nothing(_mount: dict[str, Any]) -> Iterator[str]:
    yield from ()


_FRONT_ENDS = {"nbd": _nbd, "attach": _attached}


def _clients(server: dict[str, Any]) -> Iterator[str]:
    clients = [_client(each) for each in server["clients"]]
    yield _table(CLIENTS, clients) if clients else "no clients"


def _client(client: dict[str, Any]) -> tuple[object, ...]:
    """One client of an NBD server. Of what was negotiated, what is there: `allocation` when true, `replies` by its value."""
    counters: dict[str, int] = client["counters"]
    agreed = {name: value for name, value in client["negotiated"].items() if value not in (False, "none", "transmission")}
    words = ", ".join(name if value is True else f"{name} {value}" for name, value in agreed.items()) or "-"
    read, written = (size_text(counters.get(name, 0)) for name in ("bytes_read", "bytes_written"))
    counted = counters.get("reads", 0), read, counters.get("writes", 0), written, counters.get("others", 0), counters.get("errors", 0)
    return client["address"], client["export"] or "-", words, *counted


def _paths(mount: dict[str, Any]) -> Iterator[str]:
    """The paths, and of an automount whether there are any now."""
    automount, devices = mount.get("automount"), mount["devices"]
    if automount:
        yield _automount(automount)
    if mount["sessions"] or not automount:
        yield from _paths_of_one(devices[0]) if len(devices) == 1 else _paths_of_several(mount)


def _automount(automount: dict[str, Any]) -> str:
    """One line: is it logged in to, why, and until when."""
    state, count = automount["state"], automount["waiting"]
    told = [f"automount: {state} for {age_text(automount['since'])}"]
    if state == "no session":
        told.append("the target is logged in to when the file is used")
    elif state == "logged in":
        told.append(f"logged out after {automount['idle']:g} s without use" if automount["idle"] else "never logged out")
    if not automount["seen"]:
        told.append("never seen yet, so its size is not known")
    if count:
        told.append("1 request waits" if count == 1 else f"{count} requests wait")
    if automount["error"]:
        told.append(f"the last login failed: {automount['error']}")
    return "; ".join(told)


def _paths_of_one(device: dict[str, Any]) -> Iterator[str]:
    """A path of the only device is a session: one row for both."""
    rows = [(path["portal"], _group(path), path["isid"], *_path(path)) for path in device["paths"]]
    yield _table(PATHS, rows)


def _paths_of_several(mount: dict[str, Any]) -> Iterator[str]:
    """What is the same for every device once, and each device's paths below."""
    yield _table(SESSIONS, [_session(session) for session in mount["sessions"]])
    rows = []
    for device in mount["devices"]:
        for number, path in enumerate(device["paths"]):
            rows.append(("" if number else device["lun"], path["portal"], *_path(path)))
    yield _table(PATHS_OF_LUNS, rows)


def _path(path: dict[str, Any]) -> tuple[object, ...]:
    """What differs from device to device. What the target said of a path that is gone holds no more."""
    access = path["access"] if path["state"] not in GONE else "-"
    return _state(path), age_text(path["since"]), access, path["requests"], size_text(path["bytes"]), path["in_flight"]


def _session(session: dict[str, Any]) -> tuple[object, ...]:
    traffic = session.get("traffic") or {"bytes_sent": 0, "bytes_received": 0}
    moved = size_text(traffic["bytes_sent"]), size_text(traffic["bytes_received"])
    return session["portal"], _group(session), session["isid"], _state(session), age_text(session["since"]), session["logins"], *moved


def _group(one: dict[str, Any]) -> object:
    """The portal group; unknown before the first login."""
    return "-" if one["portal_group"] is None else one["portal_group"]


def _notes(device: dict[str, Any], several: bool) -> Iterator[str]:
    """Why paths are as they are, and what multipath had to do; nothing where there is nothing to say."""
    lun = f"LUN {device['lun']} " if several else ""
    for path in device["paths"]:
        portal = path["portal"]
        if path["reason"] and path["reason"] != path["access"]:
            yield path["reason"] if portal in path["reason"] else f"{portal} {path['state']}: {path['reason']}"
        elif path["last_error"]:
            yield f"{lun}{portal} last error: {path['last_error']}"
        if path["damped"]:
            yield f"{portal} comes and goes too often: it is used when there is no other"
    ways = sum(path["state"] == "up" for path in device["paths"])
    told = [f"{lun}{device['policy']}, {ways} of {len(device['paths'])} paths up"]
    counts = [f"{word} {device[key]}" for key, word in DEEDS if device[key]]
    kept = [f"kept until the next flush {size_text(device['journal_bytes'])}"] if device["journal_bytes"] else []
    if len(device["paths"]) > 1 or (counts and device["paths"]):
        yield ", ".join(told + counts + kept)


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
        paint(str(counters["errors"]), "red" if counters["errors"] else None),
        device["in_flight"],
        device["wwid"] or "-",
    )


def _state(one: dict[str, Any]) -> str:
    return paint(one["state"], STATE_COLOURS.get(one["state"]))


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose headings stand back where there are colours."""
    first, *rest = table(headings, rows).split("\n")
    return "\n".join([paint(first, "bright_black") if has_colours() else first, *rest])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
