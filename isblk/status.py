"""What runs, as plain values for JSON: sessions with everything that was negotiated, devices with their counters. Never a secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from isblk.block.multipath import Multipath
from isblk.block.ondemand import OnDemand
from isblk.block.request import Device
from isblk.block.stack import Disk
from isblk.link.keeper import Keeper, Phase


def session_status(keeper: Keeper) -> dict[str, Any]:
    """One path slot and its session: portal, identity, state, traffic, and for each key what was asked and what was agreed."""
    connection = keeper.connection
    status: dict[str, Any] = {
        "portal": str(keeper.portal),
        "portal_group": keeper.portal_group,
        "isid": str(keeper.access.isid),
        "state": keeper.phase.value,
        "since": keeper.since,
        "error": keeper.reason or None,
        "logins": keeper.logins,
        "failures": keeper.failures,
        "reconnects": max(0, keeper.logins - 1),
        "ends": dict(keeper.ends),
        "digest_errors": keeper.ends["digest"],
    }
    if connection is None:
        return status
    session, login = connection.session, connection.session.login
    return {
        **status,
        "tsih": login.tsih,
        "target_alias": login.target_alias,
        "open_tasks": session.open_tasks,
        "command_window": session.wire.window.room,
        "traffic": asdict(connection.traffic),
        "negotiated": [{"key": line.key, "asked": line.asked, "agreed": line.agreed, "decided": line.decided} for line in login.agreements],
    }


def in_one_line(keepers: Sequence[Keeper]) -> str:
    """How the paths are, for a service manager: how many there are and are up, and what the first of the others has."""
    if not keepers:
        return "not in use, not logged in"
    down = [keeper for keeper in keepers if keeper.phase is not Phase.UP]
    up = len(keepers) - len(down)
    count = f"{up} of {len(keepers)} paths up" if len(keepers) > 1 else "the path is up" if up else "the path is not up"
    if not down:
        return count
    waits = "" if up else ", requests wait"
    reason = down[0].reason or f"{down[0].portal} is {down[0].phase.value}"
    return f"{count}{waits}: {reason}"


def device_status(disk: Disk) -> dict[str, Any]:
    """One disk: identity, geometry in bytes, counters. One that has no session now is as it is remembered, and has no paths."""
    geometry, found = disk.gate.geometry, disk.description
    below, block_size = disk.device, disk.device.geometry.block_size
    if isinstance(below, OnDemand):
        block_size = below.known.geometry.block_size if below.known is not None else 0
    return {
        "lun": disk.number,
        "vendor": found.identity.vendor,
        "product": found.identity.product,
        "serial": found.serial or None,
        "wwid": found.wwid,
        "size": geometry.size,
        "block_size": block_size,
        "physical_block_size": geometry.physical_block_size,
        "read_only": geometry.read_only,
        "write_cache": geometry.write_cache,
        "can_trim": geometry.can_trim,
        "in_flight": disk.gate.in_flight,
        "counters": disk.gate.counters.as_dict(),
        "error_kinds": dict(disk.gate.counters.error_kinds),
        "latency": disk.gate.latencies(),
        **_paths_status(below),
    }


def _paths_status(device: Device) -> dict[str, Any]:
    """The paths of a device that has any, or will have when it is used."""
    if not isinstance(device, OnDemand):
        return _multipath_status(device) if isinstance(device, Multipath) else {}
    if isinstance(device.below, Multipath):
        return _multipath_status(device.below)
    zeros = dict.fromkeys(("failed_over", "failovers", "fences", "power_ons", "journal_bytes"), 0)
    counts = {**zeros, "cache_losses": device.losses}
    return {"policy": None, "paths": [], "waiting": device.waiting, **counts}


def _multipath_status(device: Multipath) -> dict[str, Any]:
    """The paths of a device, and what multipath has done for it."""
    return {
        "policy": device.policies.policy.value,
        "paths": [path.status() for path in device.paths],
        "waiting": device.waiting,
        "failed_over": device.failed_over,
        "failovers": device.switches,
        "fences": device.fence.fences,
        "cache_losses": device.cache_losses,
        "power_ons": device.power_ons,
        "journal_bytes": device.journal.bytes,
    }
