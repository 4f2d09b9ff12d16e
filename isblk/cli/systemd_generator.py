"""`isblk systemd-generator`: units of systemd for the exports of the table."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from isblk.cli.running import errors_as_sentences
from isblk.cli.tables import table_option
from isblk.errors import UsageError
from isblk.systemdunits import units
from isblk.table.check import read
from isblk.table.entry import Table, parse
from isblk.table.problems import Problems


@click.command("systemd-generator")
@click.argument("normal", type=click.Path(path_type=Path), metavar="NORMAL")
@click.argument("early", required=False, metavar="EARLY")
@click.argument("late", required=False, metavar="LATE")
@table_option
def command(normal: Path, early: str | None, late: str | None, path: Path) -> None:
    """Write units for the exports of isblktab into the directory NORMAL, as systemd wants it from a generator.

    \b
    isblk install-helper --systemd
    systemctl daemon-reload

    \b
    isblk systemd-generator ./units
    systemd-analyze verify ./units/*.service

    systemd runs it when it starts and at each daemon-reload. EARLY and LATE are for units that overrule others, and stay empty. A line that
    is wrong is told, and left out; the others are what they are.
    """
    with errors_as_sentences():
        table = _table(path)
        program = str(Path(sys.executable).with_name("isblk"))
        try:
            for file in units(table.entries, program, str(path.absolute())):
                file.write(normal)
        except OSError as error:
            raise UsageError(f"units cannot be written to {normal}: {error.strerror}") from None
        for problem in table.problems.in_order():
            click.echo(f"isblk: {problem}", err=True)


def _table(path: Path) -> Table:
    """What can be known without the files it names: at this time in the boot, not all of them need to be there."""
    problems = Problems(str(path))
    if not path.exists():
        return Table(str(path), (), problems)
    text = read(path, problems)
    return Table(str(path), (), problems) if text is None or problems else parse(str(path), text)
