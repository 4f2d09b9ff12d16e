"""`isblk perf`: a workload on a logical unit, through the stack that a mount has, without its front end."""

from __future__ import annotations

import json
from typing import Any

import click

from isblk.block.stack import Disk, open_disk
from isblk.cli.configured import Configured
from isblk.cli.options import Size, json_option, lun_option, session_options
from isblk.cli.progress import progress
from isblk.cli.running import run
from isblk.cli.session import to_target
from isblk.cli.text import size_text
from isblk.config import Target, parse_target
from isblk.errors import RequestFailed, UsageError
from isblk.link.connection import Connection
from isblk.perf import PATTERNS, Result, Runner, Sample, Workload


@click.command("perf", cls=Configured)
@click.argument("target", metavar="TARGET")
@lun_option
@click.option("--rw", "pattern", type=click.Choice(PATTERNS), default="randread", show_default=True, help="What to do.")
@click.option("--bs", type=Size(), default="4k", show_default=True, help="Bytes of a request.")
@click.option("--iodepth", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N", help="Requests in flight.")
@click.option("--runtime", type=click.FloatRange(0.1, 86400), default=10, show_default=True, metavar="S", help="Seconds.")
@click.option("--destructive", is_flag=True, help="Really write: what is on the logical unit is lost.")
@session_options
@json_option
def command(
    target: str, lun: int | None, pattern: str, bs: int, iodepth: int, runtime: float, destructive: bool, as_json: bool, **options: Any
) -> None:
    """Measure a logical unit of TARGET: requests per second, MB/s, latency percentiles.

    \b
    isblk perf -p 10.0.0.5 iqn.2001-05.com.example:disks --lun 1
    isblk perf iscsi://10.0.0.5/iqn.2001-05.com.example:disks/1 --rw read --bs 1M --iodepth 8
    isblk perf iscsi://10.0.0.5/iqn.2001-05.com.example:scratch/1 --rw randwrite --destructive

    A pattern that writes destroys what is on the logical unit, so it needs --destructive too.
    """
    workload = Workload(pattern, bs, iodepth, runtime)
    run(lambda: _perf(target, lun, workload, destructive, as_json, options))


async def _perf(text: str, lun: int | None, workload: Workload, destructive: bool, as_json: bool, options: dict[str, Any]) -> None:
    target = parse_target(text, options["portals"])
    if workload.writes and not destructive:
        raise UsageError(f"--rw {workload.pattern} overwrites the logical unit: add --destructive if nothing on it is needed")
    if not workload.block_size:
        raise UsageError("--bs must be at least one byte")
    async with to_target(target, options) as (_, connection):
        disk = await _disk(connection, target, lun)
        with progress(f"{workload.pattern} ", shown=not as_json) as update:
            result = await Runner(disk.gate, workload).run(lambda sample: update(sample.seconds / workload.runtime, _live(sample)))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else _text(disk, workload, result))
    if result.errors:
        raise RequestFailed(f"{result.errors} requests failed, the first because: {result.first_error}")


async def _disk(connection: Connection, target: Target, lun: int | None) -> Disk:
    return await open_disk(connection, lun if lun is not None else target.lun, target.name)


def _live(sample: Sample) -> str:
    rate = f"{sample.requests_per_second:,.0f} I/O per second  {sample.bytes_per_second / 1e6:,.1f} MB/s"
    return f"{sample.seconds:.0f} s  {rate}  {sample.errors} errors"


def _text(disk: Disk, workload: Workload, result: Result) -> str:
    values = result.as_dict()
    head = f"{workload.pattern}, {size_text(workload.block_size)} requests, {workload.iodepth} in flight, LUN {disk.number}"
    latency = "  ".join(f"{name.replace('_', '.')} {value:,.0f}" for name, value in result.latency.items())
    rates = f"{values['iops']:,} I/O per second  {values['mb_per_s']:,} MB/s"
    return f"{head}\n{rates}  {result.requests:,} requests in {result.seconds:.1f} s\nlatency in microseconds: {latency or '-'}"
