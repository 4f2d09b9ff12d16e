"""`isblk target`: the embedded target, for trying isblk out, for tests and for small shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import trio

from isblk.cli.options import json_option, log_options, parse_size
from isblk.cli.running import errors_as_sentences, run
from isblk.config import SECRET_VARIABLE, TARGET_SECRET_VARIABLE, credentials
from isblk.errors import UsageError
from isblk.iscsi.names import Portal, normalize_name
from isblk.logs.output import level_of, to_stderr


@click.command("target")
@click.option(
    "--lun", "luns", multiple=True, required=True, metavar="PATH[:SIZE]|mem:SIZE", help="A disk: a file (made at SIZE), or memory."
)
@click.option(
    "--portal", "portals", multiple=True, metavar="HOST:PORT[,TAG]", help="Where to listen; TAG: portal group. Default 127.0.0.1:3260."
)
@click.option("--name", metavar="NAME", help="The target's iSCSI name.")
@click.option("--user", metavar="NAME", help="Initiators must log in with CHAP as NAME; secret: --secret-file or $ISBLK_SECRET.")
@click.option("--secret-file", metavar="FILE", help="File (mode 0600) with the initiators' secret.")
@click.option("--target-user", metavar="NAME", help="The name the target proves to be when asked (mutual CHAP).")
@click.option("--target-secret-file", metavar="FILE", help="File with the target's own secret; or $ISBLK_TARGET_SECRET.")
@click.option("--discovery-auth", is_flag=True, help="Ask discovery sessions for CHAP as well.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), default="512", show_default=True, help="Bytes of a logical block.")
@click.option("--read-only", is_flag=True, help="Write-protect every disk.")
@click.option("--no-write-cache", is_flag=True, help="Make every write durable before it is acknowledged.")
@click.option(
    "--set", "values", multiple=True, metavar="KEY=VALUE", help="A negotiable value, e.g. InitialR2T=Yes or MaxBurstLength=65536."
)
@log_options
@json_option
def command(luns: tuple[str, ...], portals: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Run an iSCSI target in the foreground until Ctrl-C or SIGTERM; prints a line for each portal when it listens.

    \b
    isblk target --lun disk.img:1G --portal 127.0.0.1:3260
    isblk target --lun a.img:1G --lun mem:64M --portal 127.0.0.1:3260,1 --portal 127.0.0.1:3261,2
    isblk target --lun disk.img --portal '[::1]:3260' --user me --secret-file secret --name iqn.2001-05.com.example:disks

    The portals have no encryption: listen on addresses that only trusted machines reach. Port 0 takes a free port.
    """
    with errors_as_sentences():
        to_stderr(level_of(options["verbose"], options["quiet"], options["log_level"]))
    run(lambda: _serve(luns, portals or ("127.0.0.1:3260",), as_json, options), until_signal=True)


async def _serve(luns: tuple[str, ...], portals: tuple[str, ...], as_json: bool, options: dict[str, Any]) -> None:
    from isblk.target.server import running

    config = _config(luns, portals, options)
    async with running(config) as server:
        if as_json:
            click.echo(json.dumps({"name": server.name, "portals": server.portals}))
        else:
            for bound, portal in zip(server.portals, config.portals, strict=True):
                click.echo(f"{bound},{portal.tpgt} {server.name}")
        await trio.sleep_forever()


def _config(luns: tuple[str, ...], portals: tuple[str, ...], options: dict[str, Any]) -> Any:
    from isblk.target.config import DEFAULT_NAME, TargetConfig

    return TargetConfig(
        name=normalize_name(options["name"] or DEFAULT_NAME),
        portals=tuple(_portal(text) for text in portals),
        luns=tuple(_lun(number, text, options) for number, text in enumerate(luns)),
        credentials=credentials(options["user"], options["secret_file"], SECRET_VARIABLE, "--secret-file"),
        mutual=credentials(options["target_user"], options["target_secret_file"], TARGET_SECRET_VARIABLE, "--target-secret-file"),
        discovery_auth=options["discovery_auth"],
        offer=_offer(options["values"]),
    )


def _portal(text: str) -> Any:
    from isblk.target.config import PortalConfig

    # Port 0 takes a free one, which no initiator's portal may name: parsed with another in its place.
    address, comma, tag = text.partition(",")
    free = address.endswith(":0")
    portal = Portal.parse((address[:-1] + "3260" if free else address) + comma + tag)
    return PortalConfig(portal.host, 0 if free else portal.port, portal.tpgt if portal.tpgt is not None else 1)


def _lun(number: int, text: str, options: dict[str, Any]) -> Any:
    from isblk.target.config import LunConfig

    path, colon, size_text = text.rpartition(":")
    try:
        size = parse_size(size_text) if colon else None
    except ValueError:
        path, size = text, None
    if not colon:
        path = text
    if not path:
        raise UsageError(f"--lun {text!r} names no file: it looks like disk.img, disk.img:1G or mem:64M")
    if size is None and (path == "mem" or not Path(path).exists()):
        raise UsageError(f"--lun {text}: there is no such file; give the size to make it, such as {path}:1G")
    return LunConfig(
        number,
        None if path == "mem" else path,
        size,
        block_size=int(options["block_size"]),
        read_only=options["read_only"],
        write_cache=not options["no_write_cache"],
    )


def _offer(values: tuple[str, ...]) -> Any:
    from isblk.target.config import offer_from_keys

    pairs = []
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} is not KEY=VALUE, such as InitialR2T=Yes")
        pairs.append((key, value))
    return offer_from_keys(pairs)
