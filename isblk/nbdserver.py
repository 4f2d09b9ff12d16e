"""One NBD server from login to logout: what `isblk nbd` runs, in the foreground or detached.

The order of the end: no more connections, the clients' requests in flight finish, SYNCHRONIZE CACHE, Logout. It holds for `isblk umount
SOCKET`, SIGTERM, Ctrl-C, and the last client's leaving with --exit-on-last.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from isblk.block.attach import Attached, Where, attached
from isblk.block.blockstatus import lba_status
from isblk.block.events import Events, Kind
from isblk.block.policies import Policies
from isblk.block.stack import Disk
from isblk.changing import changes
from isblk.config import Target
from isblk.ending import controlled, written_back
from isblk.export.nbd import ClientStatus, Export, NbdServer
from isblk.export.nbdclient import Client
from isblk.export.nbdtls import TlsSettings
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.listening import Listener
from isblk.scsi.lun_number import lun_text
from isblk.status import device_status, session_status

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 6.0
"""How long, once the end was asked for, clients may take to have their requests answered; those that do not read are cut off then."""


@dataclass(frozen=True)
class NbdSpec:
    """What to export how. `run_directory` is where the control socket goes; `lun` None exports every disk."""

    target: Target
    lun: int | None
    run_directory: Path
    read_only: bool = False
    tls: TlsSettings | None = None
    max_connections: int = 128
    exit_on_last: bool = False
    policies: Policies = field(default_factory=Policies)
    isids: tuple[Isid, ...] = ()


@dataclass
class Running:
    """A server that is there, as `isblk status` shows it."""

    spec: NbdSpec
    access: Access
    attachment: Attached
    server: NbdServer
    exports: list[Export]
    listeners: list[Listener]
    since: float = field(default_factory=time.time)

    def status(self) -> dict[str, Any]:
        """The answer of the control socket."""
        tls = self.spec.tls is not None
        return {
            "pid": os.getpid(),
            "kind": "nbd",
            "where": self.listeners[0].where,
            "listens": [listener.where for listener in self.listeners],
            "uris": [listener.uri(tls) for listener in self.listeners],
            "target": self.spec.target.name,
            "read_only": self.spec.read_only,
            "tls": tls,
            "since": self.since,
            "initiator_name": self.access.initiator_name,
            "sessions": [session_status(keeper) for keeper in self.attachment.paths.keepers],
            "devices": [device_status(disk) for disk in self.attachment.disks],
            "exports": [export_status(export, self.spec.read_only) for export in self.exports],
            "clients": [client_status(client) for client in self.server.clients],
            "accepted": self.server.accepted,
            "refused": self.server.refused,
            "buffers": buffers_status(self.server),
        }


async def serve(spec: NbdSpec, listeners: list[Listener], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
    """Log in, export the disks, serve until `stop` (or the last client has gone), write back, log out. `started` is called when it listens.

    The listeners are this function's own from now on. Raises IsblkError: before `started` no session is left; after it, data could not be
    written back.
    """
    number = spec.lun if spec.lun is not None else spec.target.lun
    where = Where(spec.target.name, spec.target.portals, spec.isids, number, several=True)
    try:
        async with (
            running_plane() as plane,
            attached(plane, where, access, spec.policies) as attachment,
            written_back(plane, attachment, stop),
        ):
            exports = [export_of(disk) for disk in attachment.disks]
            server = NbdServer(plane, exports, spec.tls, spec.read_only, spec.max_connections)
            running = Running(spec, access, attachment, server, exports, listeners)
            try:
                events = attachment.paths.events
                server.on_opened, server.on_gone = partial(_came, events), partial(_went, events)
                async with controlled(spec.run_directory, running.status, stop, changes(attachment.paths), events):
                    for listener in listeners:
                        listener.publish()
                        server.add_listener(listener.sock)
                    started()
                    await until_any(stop, server.last_client_gone if spec.exit_on_last else stop)
            finally:
                stop.set()
                await _end(server, listeners)
    finally:
        for listener in listeners:
            listener.withdraw()
            listener.sock.close()


def _came(events: Events, client: Client, export: str) -> None:
    events.add(Kind.CLIENT_CAME, f"NBD client {client.address} uses export {export}", client=client.address, export=export)


def _went(events: Events, client: Client) -> None:
    """Who has not chosen an export was none: a probe of a port is no news."""
    if client.session is not None:
        events.add(Kind.CLIENT_WENT, f"NBD client {client.address} has gone: {client.why}", client=client.address)


async def until_any(*events: trio.Event) -> None:
    """Return when one of the events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)


async def _end(server: NbdServer, listeners: list[Listener]) -> None:
    """No new connections, and an answer to every request that was taken."""
    for listener in listeners:
        listener.withdraw()
    server.close()
    with trio.move_on_after(DRAIN_SECONDS, shield=True) as scope:
        await server.drained()
    if scope.cancelled_caught:
        _log.warning("%d NBD clients did not take their answers within %.0f s and were cut off", len(server.clients), DRAIN_SECONDS)
        server.abort()


def export_of(disk: Disk) -> Export:
    """How NBD clients see a disk."""
    found, name = disk.description, lun_text(disk.description.lun)
    identity = " ".join(part for part in (found.identity.vendor, found.identity.product, found.wwid) if part)
    return Export(
        name=name,
        description=f"LUN {name}: {identity}",
        gate=disk.gate,
        number=disk.number,
        rotational=disk.gate.geometry.rotational,
        wwid=found.wwid,
        lba_status=lba_status(disk),
    )


def export_status(export: Export, read_only: bool) -> dict[str, Any]:
    """One export, for status."""
    geometry = export.gate.geometry
    return {
        "name": export.name,
        "wwid": export.wwid,
        "lun": export.number,
        "description": export.description,
        "size": geometry.size,
        "read_only": read_only or geometry.read_only,
        "rotational": export.rotational,
        "block_status": export.lba_status is not None,
    }


def buffers_status(server: NbdServer) -> dict[str, int]:
    """The memory of all clients' requests in bytes."""
    return {"in_use": server.memory.used, "limit": server.memory.budget}


def client_status(client: ClientStatus) -> dict[str, Any]:
    """One client, for status."""
    return {"address": client.address, "export": client.export, "negotiated": client.negotiated, "counters": client.counters}
