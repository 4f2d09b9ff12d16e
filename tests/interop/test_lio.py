"""isblk against LIO, the target of the Linux kernel, in a virtual machine: the commands as installed, and the block stack in process.

The machine is one for the whole run, so every test makes what it finds on a disk; nothing relies on what another left there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk.block.mapping import Provisioning
from isblk.block.request import flush, read, trim, write, zero
from isblk.block.stack import open_disk
from isblk.errors import LoginRefused, PathLost
from isblk.iscsi import pdu
from isblk.iscsi.chap import MD5_ALONE, Algorithm, Credentials
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection
from isblk.link.opening import Access, opened
from isblk.link.running import running_plane
from isblk.scsi import cdb
from support.commands import Commands, get, put
from support.lio import Lio
from support.mounts import Mounts
from support.processes import Processes
from support.trees import check, compare, fill, fio_verify

MIB = 1 << 20
SIZES = {0: (512 * MIB, 512), 1: (256 * MIB, 4096)}  # of each LUN, and of its blocks
LETTERS = bytes(range(1, 129)) * 8192
WRONG = "what-nobody-here-knows"
AT_ONCE_SECONDS = 10.0


@dataclass(frozen=True)
class Peer:
    """One of the machine's targets through one portal, in the place of the embedded one that Commands was made for."""

    portal: str
    name: str


Chosen = Callable[[str], Commands]


@pytest.fixture
def chosen(fuse: None, lio: Lio, processes: Processes, mounts: Mounts) -> Chosen:
    """isblk's commands against a target by its name in Lio."""
    return lambda which: Commands(processes, Peer(lio.portals[0], getattr(lio, which)))  # type: ignore[arg-type]


@pytest.fixture
def commands(chosen: Chosen) -> Commands:
    """isblk's commands against the target that takes anyone."""
    return chosen("open")


@asynccontextmanager
async def session(lio: Lio, slot: int = 1, which: str = "open", portal: int = 0, **settings: Any) -> AsyncIterator[Connection]:
    """A session in process, with the ISID of `slot`."""
    access = Access("iqn.2026-11.test.isblk:tests", Isid.from_random(7, slot), **settings)
    async with running_plane() as plane, opened(plane, [Portal.parse(lio.portals[portal])], getattr(lio, which), access) as connection:
        yield connection


# ------------------------------------------------------------------------------------------------------------- finding and looking


def test_targets_are_discovered_with_the_portals_they_report(commands: Commands, lio: Lio) -> None:
    said = commands.run("discover", lio.portals[0]).stdout.splitlines()
    assert sorted(said) == sorted(
        [
            f"10.0.2.15:3260,1 {lio.open}",
            f"10.0.2.15:3261,2 {lio.open}",
            f"10.0.2.15:3260,1 {lio.chap}",
            f"10.0.2.15:3260,1 {lio.mutual}",
        ]
    )
    (record,) = [each for each in json.loads(commands.run("discover", lio.portals[1], "--json").stdout) if each["name"] == lio.open]
    assert [(portal["port"], portal["tpgt"]) for portal in record["portals"]] == [(3260, 1), (3261, 2)]


def test_units_are_listed_as_they_are(commands: Commands) -> None:
    units = json.loads(commands.run("ls", *commands.there, "--json").stdout)
    assert [(unit["lun"], unit["size"], unit["block_size"]) for unit in units] == [(0, *SIZES[0]), (1, *SIZES[1])]
    assert all(unit["usable"] and unit["write_cache"] and not unit["read_only"] for unit in units)
    assert [unit["serial"] for unit in units] == ["isblk-test-0", "isblk-test-1"]
    assert len({unit["wwid"] for unit in units}) == 2


def test_a_unit_is_the_same_through_both_portal_groups(commands: Commands, lio: Lio) -> None:
    there = [json.loads(commands.run("ls", "-p", portal, lio.open, "--json").stdout) for portal in lio.portals]
    assert there[0] == there[1]


def test_what_is_not_there_is_not_found(commands: Commands, lio: Lio, tmp_path: Path) -> None:
    assert "nobody" in commands.refused("ls", "-p", lio.portals[0], "iqn.2026-11.test.isblk.lio:nobody", code=3)
    assert "no LUN 9" in commands.refused("mount", *commands.there, "--lun", "9", tmp_path / "disk", code=3)
    assert "LUN 0, 1" in commands.refused("mount", *commands.there, tmp_path / "disk", code=2)
    assert not (tmp_path / "disk").exists()


# ------------------------------------------------------------------------------------------------------------------------- logging in


@pytest.mark.parametrize("algorithms", [(Algorithm.MD5,), (Algorithm.SHA1,), (Algorithm.SHA256,), (Algorithm.SHA3_256,)])
async def test_chap_both_ways_with_each_algorithm(lio: Lio, algorithms: tuple[Algorithm, ...]) -> None:
    ours = Credentials(lio.user, lio.secret.encode())
    theirs = Credentials(lio.mutual_user, lio.mutual_secret.encode())
    only = {"algorithms": algorithms, "md5_retry": False, "credentials": ours}
    async with session(lio, which="chap", **only) as connection:
        assert (await open_disk(connection, 1, "the target")).gate.geometry.size == SIZES[1][0]
    async with session(lio, which="mutual", target_credentials=theirs, **only) as connection:
        assert (await open_disk(connection, 0, "the target")).gate.geometry.size == SIZES[0][0]
    wrong = Credentials(lio.mutual_user, WRONG.encode())
    with pytest.raises(LoginRefused, match="could not prove who it is"):
        async with session(lio, which="mutual", target_credentials=wrong, **only):
            raise AssertionError("logged in to a target that did not prove itself")


def test_chap_with_the_commands_and_secrets_from_files(chosen: Chosen, lio: Lio, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path, secret in ((ours, lio.secret), (theirs, lio.mutual_secret)):
        path.touch(0o600)
        path.write_text(secret + "\n")
    one_way = ["--user", lio.user, "--secret-file", str(ours)]
    mutual = [*one_way, "--target-user", lio.mutual_user, "--target-secret-file", str(theirs)]
    chap, both = chosen("chap"), chosen("mutual")
    place = chap.mount(tmp_path / "disk", "--lun", "1", *one_way)
    assert place.stat().st_size == SIZES[1][0]
    chap.umount(place)
    both.run("ls", *both.there, *mutual)


def test_wrong_secrets_are_refused_in_a_sentence(chosen: Chosen, lio: Lio, tmp_path: Path) -> None:
    chap, mutual = chosen("chap"), chosen("mutual")
    ours = ["--user", lio.user]
    # LIO closes the connection without a word when its only method is not offered.
    assert "it may want a CHAP name and secret" in chap.refused("ls", *chap.there, code=4)
    assert "authentication failed" in chap.refused("ls", *chap.there, *ours, code=4, env={"ISBLK_SECRET": WRONG})
    assert "authentication failed" in chap.refused("ls", *chap.there, "--user", "else", code=4, env={"ISBLK_SECRET": lio.secret})
    secrets = {"ISBLK_SECRET": lio.secret, "ISBLK_TARGET_SECRET": WRONG}
    theirs = ["--target-user", lio.mutual_user]
    assert "could not prove who it is" in mutual.refused("ls", *mutual.there, *ours, *theirs, code=4, env=secrets)
    for each in (chap, mutual):
        place = tmp_path / "disk"
        each.refused("mount", *each.there, "--lun", "0", place, *ours, code=4, env={"ISBLK_SECRET": WRONG})
        assert not place.exists()


async def test_a_target_that_takes_anyone_is_no_proof(lio: Lio) -> None:
    said: list[str] = []
    ours = Credentials(lio.user, lio.secret.encode())
    with pytest.raises(LoginRefused, match="0x0201"):
        async with session(lio, credentials=ours, algorithms=MD5_ALONE, trace=lambda _, text: said.append(text)):
            raise AssertionError("logged in without the authentication that was configured")
    assert said[0].startswith("Login immediate") and f"isid={Isid.from_random(7, 1)} tsih=0" in said[0]
    assert said[-1].startswith("Login Response") and "status=0x0201" in said[-1]


@pytest.mark.parametrize(
    ("wish", "header", "data"),
    [("none", "None", "None"), ("header", "CRC32C", "None"), ("data", "None", "CRC32C"), ("both", "CRC32C", "CRC32C")],
)
def test_digests_are_negotiated_used_and_shown(commands: Commands, tmp_path: Path, wish: str, header: str, data: str) -> None:
    place = commands.mount(tmp_path / "disk", "--lun", "1", "--digest", wish)
    (mount,) = commands.status()
    agreed = {line["key"]: line["agreed"] for line in mount["sessions"][0]["negotiated"]}
    assert (agreed["HeaderDigest"], agreed["DataDigest"]) == (header, data)
    put(place, 0, bytes(2 * MIB))
    put(place, 1001, LETTERS, sync=True)
    assert get(place, 1000, len(LETTERS) + 2) == b"\0" + LETTERS + b"\0"
    commands.umount(place)


async def test_the_same_isid_takes_the_session_over_and_another_does_not(lio: Lio) -> None:
    """Reinstatement (RFC 7143 6.3.5): what keeps a late write of a dead session from landing."""
    async with session(lio) as first, session(lio, 2) as bystander:
        mine = await open_disk(first, 0, "the target")
        await write(mine.gate, 0, b"first")
        async with session(lio) as second:
            with trio.fail_after(AT_ONCE_SECONDS):
                await first.closed.wait()
            assert isinstance(first.error, PathLost)
            with pytest.raises(PathLost):
                await read(mine.gate, 0, 5)
            assert await read((await open_disk(second, 0, "the target")).gate, 0, 5) == b"first"
            assert await read((await open_disk(bystander, 0, "the target")).gate, 0, 5) == b"first"


async def test_the_same_isid_at_another_portal_group_is_another_session(lio: Lio) -> None:
    """An ISID names a session within one portal group (RFC 7143 4.4.3.1): two paths with one ISID live side by side."""
    async with session(lio) as first, session(lio, portal=1) as second:
        assert (first.session.login.tpgt, second.session.login.tpgt) == (1, 2)
        one, two = await open_disk(first, 0, "the target"), await open_disk(second, 0, "the target")
        await write(one.gate, 0, b"through one")
        assert await read(two.gate, 0, 11) == b"through one"
        assert one.description.wwid == two.description.wwid


# ------------------------------------------------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize(
    ("lun", "make", "verify"),
    [(1, ("mkfs.ext4", "-q", "-F"), ("fsck.ext4", "-fn")), (0, ("mkfs.xfs", "-q", "-f"), ("xfs_repair", "-n"))],
    ids=["ext4-on-4096", "xfs-on-512"],
)
def test_a_file_system_keeps_a_tree(
    root: None, commands: Commands, mounts: Mounts, tmp_path: Path, lun: int, make: tuple[str, ...], verify: tuple[str, ...]
) -> None:
    place = commands.mount(tmp_path / "disk", "--lun", str(lun))
    check(*make, place)
    mounts.loop_mount(place, tmp_path / "mnt")
    tree = fill(tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    commands.umount(place)
    commands.mount(place, "--lun", str(lun), "-o", "ro")
    check(*verify, place)
    mounts.loop_mount(place, tmp_path / "mnt", "ro")
    compare(tree, tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    commands.umount(place)


@pytest.mark.parametrize(("lun", "digest"), [(0, "none"), (1, "both")])
def test_random_writes_read_back_as_they_were_written(commands: Commands, tmp_path: Path, lun: int, digest: str) -> None:
    place = commands.mount(tmp_path / "disk", "--lun", str(lun), "--digest", digest)
    fio_verify(place, "16m", f"--aux-path={tmp_path}", "--verify_state_save=0")
    (mount,) = commands.status()
    assert mount["devices"][0]["block_size"] == SIZES[lun][1] and mount["devices"][0]["counters"]["errors"] == 0
    commands.umount(place)


def test_a_file_takes_any_offset_on_blocks_of_4096_bytes(commands: Commands, tmp_path: Path) -> None:
    place = commands.mount(tmp_path / "disk", "--lun", "1")
    put(place, 0, bytes(3 * 4096))
    put(place, 4095, b"across")
    assert get(place, 0, 3 * 4096) == bytes(4095) + b"across" + bytes(3 * 4096 - 4101)
    put(place, SIZES[1][0] - 3, b"end")
    assert get(place, SIZES[1][0] - 3, 100) == b"end"
    commands.umount(place)


def test_a_directory_has_every_disk(commands: Commands, tmp_path: Path) -> None:
    place = tmp_path / "luns"
    place.mkdir()
    commands.mount(place)
    assert {entry.name: entry.stat().st_size for entry in place.iterdir()} == {f"lun{lun}": size for lun, (size, _) in SIZES.items()}
    for lun in SIZES:
        put(place / f"lun{lun}", 700, f"this is LUN {lun}".encode(), sync=True)
    commands.umount(place)
    commands.mount(place)
    for lun in SIZES:
        assert get(place / f"lun{lun}", 700, 13) == f"this is LUN {lun}".encode()
    commands.umount(place)


def test_perf_measures_reads(commands: Commands) -> None:
    said = json.loads(commands.run("perf", *commands.there, "--lun", "1", "--runtime", "0.5", "--json").stdout)
    assert said["requests"] > 50 and said["bytes"] == said["requests"] * 4096 and said["errors"] == 0


@pytest.mark.parametrize("lun", [0, 1])
async def test_units_give_back_what_is_not_needed(lio: Lio, lun: int) -> None:
    async with session(lio) as connection:
        disk = await open_disk(connection, lun, "the target")
        assert disk.gate.geometry.can_trim and disk.description.provisioning.unmap
        await write(disk.gate, 0, b"x" * (8 * MIB))
        sent = connection.traffic.bytes_sent
        await trim(disk.gate, 2 * MIB, 4 * MIB)
        assert 0 < connection.traffic.bytes_sent - sent < 4096
        assert await read(disk.gate, 0, 2 * MIB) == b"x" * (2 * MIB)
        # A file with a hole reads as zeroes; but LIO has no LBPRZ, and so nothing here may count on it.
        assert await read(disk.gate, 2 * MIB, 4 * MIB) == bytes(4 * MIB)
        assert not disk.gate.geometry.trim_reads_zero
        assert await read(disk.gate, 6 * MIB, 2 * MIB) == b"x" * (2 * MIB)


@pytest.mark.parametrize("lun", [0, 1])
async def test_zeroing_any_range_leaves_its_neighbours(lio: Lio, lun: int) -> None:
    async with session(lio) as connection:
        disk = await open_disk(connection, lun, "the target")
        await write(disk.gate, 0, b"x" * (4 * MIB))
        sent = connection.traffic.bytes_sent
        await zero(disk.gate, 1000, 3 * MIB, fua=True)
        assert connection.traffic.bytes_sent - sent < 64 * 1024, "zeroes are told with WRITE SAME, not sent"
        assert await read(disk.gate, 0, 4 * MIB) == b"x" * 1000 + bytes(3 * MIB) + b"x" * (MIB - 1000)


async def test_what_the_unit_does_not_tell_counts_as_mapped(lio: Lio) -> None:
    """LIO has no GET LBA STATUS."""
    async with session(lio) as connection:
        disk = await open_disk(connection, 0, "the target")
        await trim(disk.gate, 0, MIB)
        (extent,) = await disk.device.lba_status(0, 4 * MIB)
        assert (extent.offset, extent.length, extent.provisioning) == (0, 4 * MIB, Provisioning.MAPPED)


async def test_a_flush_is_a_synchronize_cache_and_the_end_a_logout(lio: Lio) -> None:
    said: list[str] = []
    async with session(lio, trace=lambda direction, text: said.append(f"{direction} {text}")) as connection:
        disk = await open_disk(connection, 0, "the target")
        await write(disk.gate, 0, LETTERS)
        assert disk.gate.unflushed == 1
        del said[:]
        await flush(disk.gate)
        assert disk.gate.unflushed == 0
        assert [line.split(" flags")[0] for line in said] == ["-> SCSI Command", "<- SCSI Response"]
        assert f"cdb={cdb.synchronize_cache_10().hex()}" in said[0]
        assert "response=0x00 status=0x00" in said[1]
        del said[:]
    assert [line.split(" flags")[0] for line in said] == ["-> Logout immediate", "<- Logout Response"]
    assert connection.error is None


async def test_more_requests_than_the_command_window_holds(lio: Lio) -> None:
    async with session(lio) as connection:
        disk = await open_disk(connection, 1, "the target")
        assert connection.session.wire.window.room < 300
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(write, disk.gate, number * 8192, number.to_bytes(2, "big") * 4096)
        data = await read(disk.gate, 0, 300 * 8192)
    assert data == b"".join(number.to_bytes(2, "big") * 4096 for number in range(300))


async def test_a_reset_unit_goes_on_after_its_attention(lio: Lio) -> None:
    async with session(lio) as connection, session(lio, 2) as other:
        disk, neighbour = await open_disk(connection, 0, "the target"), await open_disk(other, 0, "the target")
        await write(disk.gate, 0, b"kept")
        assert await connection.manage(pdu.TaskManagement.LOGICAL_UNIT_RESET, lun=disk.device.lun) == 0
        assert await read(disk.gate, 0, 4) == b"kept"
        assert await read(neighbour.gate, 0, 4) == b"kept"
        await connection.ping()
