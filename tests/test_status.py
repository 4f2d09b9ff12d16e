"""What runs, as plain values: everything JSON can hold, everything a person asks for, and no secret."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from isblk.block.attach import Attached, Where, attached
from isblk.block.policies import Policies
from isblk.block.request import read, write
from isblk.iscsi.chap import Credentials
from isblk.iscsi.names import Isid, Portal
from isblk.link.keeper import Keeper, Phase
from isblk.link.opening import Access
from isblk.link.running import running_plane
from isblk.status import device_status, in_one_line, session_status
from isblk.target.config import Offer, PortalConfig
from support.targets import MIB, RunningTarget, disk, running_target

INITIATOR = "iqn.2026-11.test.isblk:initiator"
OURS, THEIRS = Credentials("initiator", b"the initiator's own secret"), Credentials("target", b"what the target must know")
PLAIN = Access(INITIATOR, Isid.from_random(1))
OFFER = Offer(max_burst_length=65536, initial_r2t=True)
TWO = (PortalConfig(port=0), PortalConfig(port=0, tpgt=2))


@asynccontextmanager
async def attachment(target: RunningTarget, access: Access = PLAIN) -> AsyncIterator[Attached]:
    """The target's disk over all of its portals."""
    portals = tuple(Portal.parse(portal) for portal in target.portals)
    isids = tuple(Isid(bytes(access.isid)[:5] + bytes([5 + number])) for number in range(len(portals)))
    async with running_plane() as plane, attached(plane, Where(target.name, portals, isids), access, Policies()) as found:
        yield found


async def test_a_session_with_everything_that_was_negotiated() -> None:
    access = Access(INITIATOR, Isid.from_random(0xABCDEF, 5), OURS, THEIRS, header_digest="prefer")
    async with running_target(
        name="iqn.2026-11.test.isblk:target", alias="my disks", credentials=OURS, mutual=THEIRS, offer=OFFER
    ) as target:
        async with attachment(target, access) as there:
            (keeper,) = there.paths.keepers
            found = session_status(keeper)
            text = json.dumps(found)
            assert json.loads(text) == found
        after = session_status(keeper)
    expected = {
        "portal": target.portal,
        "portal_group": 1,
        "isid": "80abcdef0005",
        "state": "up",
        "error": None,
        "logins": 1,
        "failures": 0,
        "tsih": 1,
        "target_alias": "my disks",
        "open_tasks": 0,
        "command_window": 128,
    }
    assert {key: found[key] for key in expected} == expected
    assert (after["state"], "negotiated" in after) == ("ended", False), "a session that has been logged out is shown as such"
    lines = {line["key"]: line for line in found["negotiated"]}
    assert lines["MaxBurstLength"] == {"key": "MaxBurstLength", "asked": "16776192", "agreed": "65536", "decided": "target"}
    assert (lines["InitialR2T"]["asked"], lines["InitialR2T"]["agreed"]) == ("No", "Yes")
    assert (lines["HeaderDigest"]["agreed"], lines["HeaderDigest"]["decided"]) == ("CRC32C", "both")
    assert (lines["AuthMethod"]["agreed"], lines["CHAP_A"]["agreed"]) == ("CHAP", "8")
    assert not any(one.secret.decode() in text for one in (OURS, THEIRS))


@pytest.mark.logs("path .* is down")
async def test_a_lost_session_says_why() -> None:
    async with running_target() as target, attachment(target) as there:
        (keeper,), (disk_,) = there.paths.keepers, there.disks
        since = keeper.since
        target.server.drop_all()
        while keeper.phase is not Phase.DOWN:
            await trio.lowlevel.checkpoint()
        found, path = session_status(keeper), device_status(disk_)["paths"][0]
    assert (found["state"], path["state"], path["losses"]) == ("down", "down", 1)
    assert target.portal in found["error"] and target.portal in path["reason"]
    assert found["since"] > since


async def test_a_device_with_its_counters() -> None:
    async with running_target([disk(7, size=8 * MIB, block_size=4096)]) as target, attachment(target) as found_there:
        (there,) = found_there.disks
        await write(there.gate, 1001, b"odd")
        await read(there.gate, 0, 10_000)
        found = device_status(there)
        traffic = session_status(found_there.paths.keepers[0])["traffic"]
    assert json.loads(json.dumps(found)) == found
    expected = {"lun": 7, "vendor": "ISBLK", "product": "VIRTUAL-DISK", "size": 8 * MIB, "block_size": 4096, "physical_block_size": 4096}
    assert {key: found[key] for key in expected} == expected
    assert (found["read_only"], found["write_cache"], found["can_trim"], found["in_flight"]) == (False, True, True, 0)
    assert found["wwid"] and found["serial"]
    counted = {"read_requests": 1, "read_bytes": 10_000, "write_requests": 1, "write_bytes": 3, "flush_requests": 0, "errors": 0}
    assert {key: found["counters"][key] for key in counted} == counted
    assert traffic["bytes_received"] > 10_000 and traffic["sends"] > 0


async def test_the_paths_of_a_device_with_what_each_has_carried() -> None:
    async with running_target(portals=TWO) as target, attachment(target) as there:
        while any(keeper.phase is not Phase.UP for keeper in there.paths.keepers):
            await trio.lowlevel.checkpoint()
        await write(there.disks[0].gate, 0, bytes(4096))
        found = device_status(there.disks[0])
    one, two = found["paths"]
    assert [(path["portal"], path["portal_group"], path["state"]) for path in (one, two)] == [
        (target.portals[0], 1, "up"),
        (target.portals[1], 2, "up"),
    ]
    assert one["isid"] != two["isid"]
    assert (one["requests"], one["bytes"], two["requests"], two["bytes"]) == (1, 4096, 0, 0), "failover uses one path at a time"
    quiet = {"access": "optimized", "reason": None, "last_error": None, "damped": False, "in_flight": 0, "errors": 0, "losses": 0}
    assert all({key: path[key] for key in quiet} == quiet for path in (one, two))
    deeds = {"policy": "failover", "waiting": 0, "failed_over": 0, "fences": 0, "cache_losses": 0}
    assert {key: found[key] for key in deeds} == deeds
    assert found["journal_bytes"] >= 4096, "kept until a flush, for the target's cache is volatile"


@pytest.mark.parametrize(
    ("phases", "line"),
    [
        ([], "not in use, not logged in"),
        ([Phase.UP], "the path is up"),
        ([Phase.UP, Phase.UP], "2 of 2 paths up"),
        ([Phase.DOWN], "the path is not up, requests wait: no answer"),
        ([Phase.CONNECTING], "the path is not up, requests wait: 127.0.0.1:3260 is connecting"),
        ([Phase.UP, Phase.WRONG], "1 of 2 paths up: no answer"),
        ([Phase.DOWN, Phase.DOWN], "0 of 2 paths up, requests wait: no answer"),
    ],
)
def test_the_paths_in_one_line(phases: list[Phase], line: str) -> None:
    keepers = [
        SimpleNamespace(phase=phase, portal="127.0.0.1:3260", reason="" if phase in (Phase.UP, Phase.CONNECTING) else "no answer")
        for phase in phases
    ]
    assert in_one_line(cast(list[Keeper], keepers)) == line
