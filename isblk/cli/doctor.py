"""`isblk doctor`: what works on the way to a target, what does not, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from isblk.cli.config import HEADINGS, effective
from isblk.cli.configured import Configured
from isblk.cli.options import Size, json_option, lun_option, session_options
from isblk.cli.progress import progress
from isblk.cli.running import errors_as_sentences, run, trace_pdu
from isblk.cli.session import capture_taps, login_options
from isblk.cli.text import size_text, table
from isblk.config import parse_target
from isblk.doctor import bundle as bundles
from isblk.doctor.examination import Examination, look_around
from isblk.doctor.findings import Finding, Report
from isblk.doctor.listening import LoginOnly, MakeTap
from isblk.doctor.scrub import Scrubber
from isblk.doctor.sentences import SECTIONS, Severity
from isblk.doctor.sessions import Who
from isblk.doctor.speed import Bounds
from isblk.errors import IsblkError, UsageError
from isblk.settings import load
from isblk.state import places

COLOURS = {Severity.OK: "green", Severity.HINT: "cyan", Severity.WARNING: "yellow", Severity.FAULT: "red", Severity.SKIPPED: "bright_black"}
WIDTH = max(len(severity.value) for severity in Severity)
README = """What `isblk doctor --bundle` found out, for a bug report. Secrets were removed, as far as they are known; names and addresses
were not: look through it before you send it.

findings       what was examined, as text and as JSON
system         versions of isblk and what it stands on, kernel, distribution
configuration  the settings that hold, and where they come from
status         what the daemons of this user told of themselves
log, journal   what they logged last; failed: what one that failed left behind
logins         the logins on the wire (only if asked for), without CHAP responses
"""
KEYS = ("KEY", "ASKED", "AGREED", "BECAUSE")


@click.command("doctor", cls=Configured)
@click.argument("target", metavar="TARGET")
@lun_option
@click.option("--all-portals", is_flag=True, help="Examine every portal that the target reports, too.")
@click.option(
    "--probe", type=click.FloatRange(0, 60), default=3, show_default=True, metavar="S", help="Seconds of reads per portal; 0: none."
)
@click.option("--probe-size", type=Size(), default="256M", show_default=True, help="Bytes read per portal at most.")
@click.option("--deadline", type=click.FloatRange(1, 3600), default=120, show_default=True, metavar="S", help="Seconds for all of it.")
@click.option(
    "--bundle", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.tar.gz", help="Put all that a bug report needs into a file."
)
@click.option("--with-capture", is_flag=True, help="The logins on the wire go into it, too (pcapng, without CHAP responses).")
@session_options
@json_option
def command(
    target: str,
    lun: int | None,
    all_portals: bool,
    probe: float,
    probe_size: int,
    deadline: float,
    bundle: Path | None,
    with_capture: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Examine TARGET: this machine, the network, discovery, login (each key, and CHAP), logical units, paths, speed.

    \b
    isblk doctor iscsi://10.0.0.5/iqn.2001-05.com.example:disks
    isblk doctor -p 10.0.0.5 -p 10.0.1.5 iqn.2001-05.com.example:disks
    isblk doctor -p 10.0.0.5 --probe 0 --json iqn.2001-05.com.example:disks
    isblk doctor -p 10.0.0.5 iqn.2001-05.com.example:disks --bundle report.tar.gz

    Each finding is ok, a hint, a warning or a fault, with what to do about it. Nothing is ever written to a logical unit, and no session
    that runs is disturbed. A bundle has the findings, versions, settings, and status and log of what runs, without secrets.

    Exit code: 0 without a fault; else that of the worst: 5 a portal cannot be reached, 4 a login was refused, 3 the target or a logical
    unit is not there, 6 something answers wrongly, 2 it is configured wrongly.
    """
    with errors_as_sentences():
        found = parse_target(target, options["portals"])
        wanted = login_options({**options, "all_portals": all_portals})
        if with_capture and bundle is None:
            raise UsageError("--with-capture puts the logins into a bundle: name it with --bundle FILE.tar.gz")
        if bundle is not None:
            bundles.check(bundle)
    report, place, daemons = Report(None if as_json else Printer().print), places(), []
    captured: list[bytes] = []

    async def main() -> None:
        name = look_around(report, place.state, options["initiator_name"])
        if name is None:
            return
        with ExitStack() as stack:
            taps = [tap for tap in (stack.enter_context(capture_taps(options["pcap"])),) if tap is not None]
            if with_capture:
                taps.append(stack.enter_context(_logins(captured)))
            who = Who(name, place.state, wanted, found, tuple(taps), trace_pdu if options["trace"] else None)
            number, bounds = lun if lun is not None else found.lun, Bounds(probe, probe_size)
            examination = Examination(report, who, place.run, number, all_portals, bounds, deadline, partial(progress, shown=not as_json))
            await examination.run_all()
            daemons.extend(examination.daemons)

    run(main)
    if as_json:
        click.echo(json.dumps({"target": found.name, **report.as_dict()}, indent=2))
    else:
        click.echo(f"\n{_summary(report)}")
    if bundle is not None:
        with errors_as_sentences():
            contents = bundles.members(report, daemons, place.run, _configuration(target))
            if captured:
                contents["logins.pcapng"] = captured[0]
            _pack(bundle, contents, [options["secret_file"], options["target_secret_file"]])
    sys.exit(int(report.exit_code))


@contextmanager
def _logins(captured: list[bytes]) -> Iterator[MakeTap]:
    """What taps logins alone; at the end of the block their capture is put into `captured`."""
    with TemporaryDirectory(prefix="isblk-") as directory:
        path = Path(directory) / "logins.pcapng"
        with capture_taps(str(path)) as tap:
            assert tap is not None
            yield lambda sock: LoginOnly(tap(sock))
        captured.append(path.read_bytes())


def _configuration(target: str) -> str:
    """The settings for the target, as `isblk config` shows them."""
    try:
        return table(HEADINGS, effective(target, False)) + "\n"
    except IsblkError as error:
        return f"{error}\n"


def _pack(path: Path, contents: dict[str, str | bytes], secret_files: list[str | None]) -> None:
    scrubber = Scrubber(bundles.secrets(os.environ, load(), secret_files))
    packed = bundles.pack(path, {"README.txt": README, **contents}, scrubber)
    listed = "\n".join(f"  {name:<24} {size_text(size)}" for name, size in packed)
    click.echo(
        f"\n{path} holds\n{listed}\nSecrets were removed; names and addresses were not: look through it before you send it.", err=True
    )


def is_terminal() -> bool:
    """Whether people look at standard output."""
    return sys.stdout.isatty()


class Printer:
    """Prints findings as they are made, under the heading of their section; in colour on a terminal unless NO_COLOR is set."""

    def __init__(self) -> None:
        self._section = ""
        self._colour = is_terminal() and not os.environ.get("NO_COLOR")

    def print(self, finding: Finding) -> None:
        """One finding, its remedy below."""
        if finding.section != self._section:
            click.echo(("\n" if self._section else "") + self._style(SECTIONS[finding.section], bold=True), color=self._colour)
            self._section = finding.section
        word = self._style(f"{finding.severity.value:<{WIDTH}}", fg=COLOURS[finding.severity])
        click.echo(f"  {word}  {finding.text}", color=self._colour)
        if finding.remedy:
            click.echo(f"  {'':<{WIDTH}}  -> {finding.remedy}", color=self._colour)
        if "negotiated" in finding.data:
            rows = [(row["key"], row["asked"] or "-", row["agreed"], row["why"]) for row in finding.data["negotiated"]]
            click.echo("\n".join(f"  {'':<{WIDTH}}  {line}".rstrip() for line in table(KEYS, rows).split("\n")))

    def _style(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self._colour else text


def _summary(report: Report) -> str:
    counts = {severity: report.count(severity) for severity in (Severity.FAULT, Severity.WARNING, Severity.HINT, Severity.SKIPPED)}
    words = [
        f"{count} {severity.value}{'s' if count != 1 and severity is not Severity.SKIPPED else ''}"
        for severity, count in counts.items()
        if count
    ]
    return f"{', '.join(words) or 'all is well'}; exit code {int(report.exit_code)}"
