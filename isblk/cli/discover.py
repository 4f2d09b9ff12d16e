"""`isblk discover`: SendTargets at a portal, printed as iscsiadm prints it (RFC 7143 4.3, appendix C)."""

from __future__ import annotations

import json
from typing import Any

import click

from isblk.cli.configured import Configured
from isblk.cli.options import discovery_options, json_option
from isblk.cli.running import run
from isblk.cli.session import logged_in
from isblk.discover.sendtargets import TargetRecord, send_targets
from isblk.iscsi.names import Portal, printable


@click.command("discover", cls=Configured)
@click.argument("portal", metavar="PORTAL")
@discovery_options
@json_option
def command(portal: str, as_json: bool, **options: Any) -> None:
    """List the targets that PORTAL (HOST[:PORT], port 3260 if left out) offers: one line for each target and portal.

    \b
    isblk discover 10.0.0.5
    isblk discover '[fd00::5]:3260' --json
    isblk discover nas.example --user me --secret-file ~/.isblk-secret

    The address a target reports may be one that is not reachable from here (behind NAT): then give `mount` the portal with -p.
    """
    run(lambda: _discover(portal, as_json, options))


async def _discover(text: str, as_json: bool, options: dict[str, Any]) -> None:
    portal = Portal.parse(text)
    async with logged_in(None, [portal], options) as (_, connection):
        records = await send_targets(connection, portal)
    if as_json:
        click.echo(json.dumps([_as_dict(record) for record in records], indent=2))
    else:
        for record in records:
            click.echo(str(record))
    if not records:
        click.echo(f"isblk: {portal} offers no target to this initiator; its access list may not have our name", err=True)


def _as_dict(record: TargetRecord) -> dict[str, Any]:
    portals = [{"host": portal.host, "port": portal.port, "tpgt": portal.tpgt} for portal in record.portals]
    return {"name": printable(record.name), "portals": portals}
