"""What runs, as plain values: everything JSON can hold, everything a person asks for, and no secret."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from isblk.block.request import read, write
from isblk.block.stack import open_disk
from isblk.iscsi.chap import Credentials
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection
from isblk.link.opening import Access, opened
from isblk.link.plane import running_plane
from isblk.status import device_status, session_status
from isblk.target.config import Offer
from support.targets import MIB, RunningTarget, disk, running_target

INITIATOR = "iqn.2026-11.test.isblk:initiator"
OURS, THEIRS = Credentials("initiator", b"the initiator's own secret"), Credentials("target", b"what the target must know")
PLAIN = Access(INITIATOR, Isid.from_random(1))
OFFER = Offer(max_burst_length=65536, initial_r2t=True)


@asynccontextmanager
async def session(target: RunningTarget, access: Access = PLAIN) -> AsyncIterator[Connection]:
    async with running_plane() as plane, opened(plane, [Portal.parse(target.portal)], target.name, access) as connection:
        yield connection


async def test_a_session_with_everything_that_was_negotiated() -> None:
    access = Access(INITIATOR, Isid.from_random(0xABCDEF, 5), OURS, THEIRS, header_digest="prefer")
    async with running_target(
        name="iqn.2026-11.test.isblk:target", alias="my disks", credentials=OURS, mutual=THEIRS, offer=OFFER
    ) as target:
        async with session(target, access) as connection:
            found = session_status(connection, access)
            text = json.dumps(found)
            assert json.loads(text) == found
        after = session_status(connection, access)
    expected = {
        "portal": target.portal,
        "portal_group": 1,
        "initiator_name": INITIATOR,
        "isid": "80abcdef0005",
        "tsih": 1,
        "target_alias": "my disks",
        "error": None,
        "open_tasks": 0,
        "command_window": 128,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["state"] != after["state"], "a session that has been logged out is shown as such"
    lines = {line["key"]: line for line in found["negotiated"]}
    assert lines["MaxBurstLength"] == {"key": "MaxBurstLength", "asked": "16776192", "agreed": "65536", "decided": "target"}
    assert (lines["InitialR2T"]["asked"], lines["InitialR2T"]["agreed"]) == ("No", "Yes")
    assert (lines["HeaderDigest"]["agreed"], lines["HeaderDigest"]["decided"]) == ("CRC32C", "both")
    assert (lines["AuthMethod"]["agreed"], lines["CHAP_A"]["agreed"]) == ("CHAP", "8")
    assert not any(one.secret.decode() in text for one in (OURS, THEIRS))


async def test_a_lost_session_says_why() -> None:
    async with running_target() as target, session(target) as connection:
        target.server.drop_all()
        await connection.closed.wait()
        assert target.portal in session_status(connection, PLAIN)["error"]


async def test_a_device_with_its_counters() -> None:
    async with running_target([disk(7, size=8 * MIB, block_size=4096)]) as target, session(target) as connection:
        there = await open_disk(connection, 7)
        await write(there.gate, 1001, b"odd")
        await read(there.gate, 0, 10_000)
        found = device_status(there)
        traffic = session_status(connection, PLAIN)["traffic"]
    assert json.loads(json.dumps(found)) == found
    expected = {"lun": 7, "vendor": "ISBLK", "product": "VIRTUAL-DISK", "size": 8 * MIB, "block_size": 4096, "physical_block_size": 4096}
    assert {key: found[key] for key in expected} == expected
    assert (found["read_only"], found["write_cache"], found["can_trim"], found["in_flight"]) == (False, True, True, 0)
    assert found["wwid"] and found["serial"]
    counted = {"read_requests": 1, "read_bytes": 10_000, "write_requests": 1, "write_bytes": 3, "flush_requests": 0, "errors": 0}
    assert {key: found["counters"][key] for key in counted} == counted
    assert traffic["bytes_received"] > 10_000 and traffic["sends"] > 0
