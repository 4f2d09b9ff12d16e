"""`isblk ls`: the logical units of a target, disks or not."""

from __future__ import annotations

import json
from typing import Any

import click

from isblk.block.probe import Description, probe, probe_all
from isblk.cli.configured import Configured
from isblk.cli.options import json_option, session_options
from isblk.cli.running import run
from isblk.cli.session import to_target
from isblk.cli.text import size_text, table
from isblk.config import parse_target
from isblk.scsi.lun_number import lun_from_bytes, lun_text, lun_to_bytes

HEADINGS = ("LUN", "TYPE", "SIZE", "BLOCK", "VENDOR", "PRODUCT", "SERIAL", "WWID")


@click.command("ls", cls=Configured)
@click.argument("target", metavar="TARGET")
@session_options
@json_option
def command(target: str, as_json: bool, **options: Any) -> None:
    """List the logical units of TARGET: number, type, size, block size, vendor, product, serial number, WWID.

    \b
    isblk ls -p 10.0.0.5 iqn.2001-05.com.example:disks
    isblk ls iscsi://10.0.0.5/iqn.2001-05.com.example:disks --json
    """
    run(lambda: _ls(target, as_json, options))


async def _ls(text: str, as_json: bool, options: dict[str, Any]) -> None:
    target = parse_target(text, options["portals"])
    async with to_target(target, options) as (_, connection):
        units = await probe_all(connection) if target.lun is None else [await probe(connection, lun_to_bytes(target.lun))]
    if as_json:
        click.echo(json.dumps([as_dict(unit) for unit in units], indent=2))
    else:
        click.echo(table(HEADINGS, [_row(unit) for unit in units]))


def _row(unit: Description) -> tuple[str, ...]:
    size = size_text(unit.size) if unit.capacity else "-"
    block = str(unit.block_size) if unit.capacity else "-"
    identity = unit.identity
    return (lun_text(unit.lun), identity.type_text, size, block, identity.vendor, identity.product, unit.serial or "-", unit.wwid or "-")


def as_dict(unit: Description) -> dict[str, Any]:
    """One logical unit for `--json`; sizes in bytes."""
    return {
        "lun": lun_from_bytes(unit.lun),
        "type": unit.identity.type_text,
        "disk": unit.is_disk,
        "usable": unit.refusal is None,
        "why_not": unit.refusal,
        "size": unit.size,
        "block_size": unit.block_size,
        "vendor": unit.identity.vendor,
        "product": unit.identity.product,
        "revision": unit.identity.revision,
        "serial": unit.serial or None,
        "wwid": unit.wwid,
        "read_only": unit.mode.write_protected,
        "write_cache": unit.mode.write_cache,
    }
