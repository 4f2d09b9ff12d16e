"""What runs, as plain values for JSON: sessions with everything that was negotiated, devices with their counters. Never a secret."""

from __future__ import annotations

from typing import Any

from isblk.block.stack import Disk
from isblk.link.connection import Connection
from isblk.link.opening import Access


def session_status(connection: Connection, access: Access) -> dict[str, Any]:
    """One session: portal, identity, state, traffic, and for each key what was asked and what was agreed."""
    session, login = connection.session, connection.session.login
    return {
        "portal": str(connection.portal),
        "portal_group": login.tpgt,
        "initiator_name": access.initiator_name,
        "isid": str(access.isid),
        "tsih": login.tsih,
        "target_alias": login.target_alias,
        "state": session.state.value,
        "error": str(connection.error) if connection.error is not None else None,
        "open_tasks": session.open_tasks,
        "command_window": session.wire.window.room,
        "traffic": vars(connection.traffic),
        "negotiated": [{"key": line.key, "asked": line.asked, "agreed": line.agreed, "decided": line.decided} for line in login.agreements],
    }


def device_status(disk: Disk) -> dict[str, Any]:
    """One disk: identity, geometry in bytes, counters."""
    geometry, found = disk.gate.geometry, disk.description
    return {
        "lun": disk.number,
        "vendor": found.identity.vendor,
        "product": found.identity.product,
        "serial": found.serial or None,
        "wwid": found.wwid,
        "size": geometry.size,
        "block_size": disk.unit.geometry.block_size,
        "physical_block_size": geometry.physical_block_size,
        "read_only": geometry.read_only,
        "write_cache": geometry.write_cache,
        "can_trim": geometry.can_trim,
        "in_flight": disk.gate.in_flight,
        "counters": disk.gate.counters.as_dict(),
    }
