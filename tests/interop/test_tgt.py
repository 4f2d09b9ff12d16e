"""isblk against tgtd, the Linux target in user space: the commands as installed, and the block stack in process where that is finer."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from isblk.block.mapping import Provisioning
from isblk.block.request import flush, read, trim, write, zero
from isblk.block.stack import open_disk
from isblk.errors import LoginRefused, PathLost
from isblk.iscsi import pdu
from isblk.iscsi.chap import Credentials
from isblk.iscsi.names import Isid, Portal
from isblk.link.connection import Connection
from isblk.link.opening import Access, opened
from isblk.link.running import running_plane
from support.commands import Commands, get, put
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.tgt import Tgtd
from support.trees import check, compare, fill, fio_verify
from support.waiting import until

NAME = "iqn.2026-11.test.isblk.tgt:disk"
MIB = 1 << 20
LETTERS = bytes(range(1, 129)) * 8192
SECRET, TARGET_SECRET, WRONG = "what-the-initiator-knows", "what-the-target-knows", "what-nobody-here-knows"
NO_SESSION_BEFORE_SECONDS = 5.0
AT_ONCE_SECONDS = 10.0  # for a lost connection to end every request; a timeout of the session takes longer (Timing.task_timeout)


class Peer:
    """A target of a tgtd, in the place of the embedded one that Commands was made for."""

    def __init__(self, tgt: Tgtd, name: str = NAME, **parameters: str | int) -> None:
        self.tgt = tgt
        self.name = name
        self.number = tgt.target(name, **parameters)

    @property
    def portal(self) -> str:
        return self.tgt.portal

    def disk(self, lun: int = 1, size: int = 64 * MIB, block_size: int = 512, **params: int) -> Path:
        """Add a disk; `params` as `tgtadm --params` names them. Returns the file behind it."""
        image = self.tgt.disk(self.number, lun, size, block_size)
        for name, value in params.items():
            self.tgt.unit_params(self.number, lun, f"{name}={value}")
        return image

    def sessions_end(self) -> None:
        """Return when the target has no session; a Logout leaves none, so this must not take long."""
        until(lambda: self.tgt.sessions(self.number) == 0, "tgtd to have no session", NO_SESSION_BEFORE_SECONDS)


@pytest.fixture
def peer(tgt: Tgtd) -> Peer:
    """A target without a disk yet."""
    return Peer(tgt)


@pytest.fixture
def commands(fuse: None, peer: Peer, processes: Processes, mounts: Mounts) -> Commands:
    """isblk's commands against `peer`."""
    return Commands(processes, peer)  # type: ignore[arg-type]


@asynccontextmanager
async def session(peer: Peer, slot: int = 1, portal: str | None = None, **settings: Any) -> AsyncIterator[Connection]:
    """A session in process, with the ISID of `slot`, at the target's portal unless another is given."""
    access = Access("iqn.2026-11.test.isblk:tests", Isid.from_random(7, slot), **settings)
    async with running_plane() as plane, opened(plane, [Portal.parse(portal or peer.portal)], peer.name, access) as connection:
        yield connection


class Relay:
    """A network between an initiator and a target that can hold back what the initiator sends, and deliver it late."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.portal = ""
        self.held = trio.Event()
        self.delivered = trio.Event()
        self._release: trio.Event | None = None

    def hold(self) -> None:
        """Keep everything that is sent from now on; `held` is set when there is something."""
        self._release = trio.Event()

    async def release(self) -> None:
        """Deliver it, or find that the target has closed the connection meanwhile."""
        assert self._release is not None
        self._release.set()
        await self.delivered.wait()

    async def _serve(self, client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as target, client, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, target, client)
            await self._send(client, target)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _send(self, client: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in client:
                release = self._release
                if release is not None:
                    self.held.set()
                    await release.wait()
                await target.send_all(data)
                if release is not None:
                    self.delivered.set()
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.delivered.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listen for the length of the block."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.portal = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            nursery.start_soon(trio.serve_listeners, self._serve, [listener])
            yield self
            nursery.cancel_scope.cancel()


def negotiated(commands: Commands) -> dict[str, str]:
    """What the login of the one mount agreed on, by key."""
    (mount,) = commands.status()
    return {line["key"]: line["agreed"] for line in mount["sessions"][0]["negotiated"]}


# ------------------------------------------------------------------------------------------------------------- finding and looking


def test_every_target_is_discovered(commands: Commands, peer: Peer, tgt: Tgtd) -> None:
    names = [NAME, *(f"{NAME}-{number:03}-{'x' * 180}" for number in range(60))]  # more than one PDU's 8 KiB
    for name in names[1:]:
        tgt.target(name)
    said = commands.run("discover", peer.portal).stdout
    assert sorted(said.splitlines()) == sorted(f"{peer.portal},1 {name}" for name in names)
    answer = json.loads(commands.run("discover", peer.portal, "--json").stdout)
    assert {"name": NAME, "portals": [{"host": "127.0.0.1", "port": tgt.port, "tpgt": 1}]} in answer
    peer.sessions_end()


def test_units_are_listed_as_they_are(commands: Commands, peer: Peer, tgt: Tgtd) -> None:
    peer.disk(1, 3 * MIB)
    peer.disk(2, 64 * MIB, 4096, readonly=1)
    tgt.null(peer.number, 3)
    units = json.loads(commands.run("ls", *commands.there, "--json").stdout)
    assert [(unit["lun"], unit["type"], unit["usable"]) for unit in units] == [
        (0, "storage array controller", False),
        *((number, "disk", True) for number in (1, 2, 3)),
    ]
    assert [(unit["size"], unit["block_size"], unit["read_only"]) for unit in units[1:3]] == [
        (3 * MIB, 512, False),
        (64 * MIB, 4096, True),
    ]
    assert len({unit["wwid"] for unit in units}) == 4
    assert "storage array controller" in commands.run("ls", *commands.there).stdout
    peer.sessions_end()


def test_what_is_not_there_is_not_found(commands: Commands, peer: Peer, tmp_path: Path) -> None:
    peer.disk()
    assert "nobody" in commands.refused("ls", "-p", peer.portal, "iqn.2026-11.test.isblk:nobody", code=3)
    assert "no LUN 9" in commands.refused("mount", *commands.there, "--lun", "9", tmp_path / "disk", code=3)
    assert "storage array controller" in commands.refused("mount", *commands.there, "--lun", "0", tmp_path / "disk", code=2)
    peer.sessions_end()


def test_a_target_with_nothing_but_its_controller_has_no_disk(commands: Commands, peer: Peer, tmp_path: Path) -> None:
    sentence = commands.refused("mount", *commands.there, tmp_path / "disk", code=3)
    assert "no disk to use" in sentence and "LUN 0 is no disk but a storage array controller" in sentence
    assert not (tmp_path / "disk").exists()
    peer.sessions_end()


# ------------------------------------------------------------------------------------------------------------------------- logging in


@pytest.mark.parametrize("algorithms", [None, "md5", "sha1,md5"])
def test_chap_both_ways(commands: Commands, peer: Peer, tgt: Tgtd, algorithms: str | None) -> None:
    """The default list begins with 8 and 7, and tgtd takes 7 for SHA1: the login succeeds by its retry with MD5 alone."""
    peer.disk()
    tgt.account(peer.number, "initiator", SECRET)
    tgt.account(peer.number, "target", TARGET_SECRET, outgoing=True)
    more = ["--chap-algorithms", algorithms] if algorithms else []
    one_way = [*commands.there, "--user", "initiator", *more]
    commands.run("ls", *one_way, env={"ISBLK_SECRET": SECRET})
    mutual = [*one_way, "--target-user", "target"]
    commands.run("ls", *mutual, env={"ISBLK_SECRET": SECRET, "ISBLK_TARGET_SECRET": TARGET_SECRET})
    commands.run("ls", f"iscsi://initiator@{peer.portal}/{NAME}/1", *more, env={"ISBLK_SECRET": SECRET})
    peer.sessions_end()


def test_wrong_secrets_are_refused_in_a_sentence(commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path) -> None:
    peer.disk()
    tgt.account(peer.number, "initiator", SECRET)
    tgt.account(peer.number, "target", TARGET_SECRET, outgoing=True)
    one_way = [*commands.there, "--user", "initiator"]
    mutual = [*one_way, "--target-user", "target"]
    wants = commands.refused("ls", *commands.there, code=4)
    assert "wants authentication" in wants and "give a CHAP name" in wants
    assert "authentication failed" in commands.refused("ls", *one_way, code=4, env={"ISBLK_SECRET": WRONG})
    assert "authentication failed" in commands.refused("mount", *one_way, tmp_path / "disk", code=4, env={"ISBLK_SECRET": WRONG})
    secrets = {"ISBLK_SECRET": SECRET, "ISBLK_TARGET_SECRET": WRONG}
    assert "could not prove who it is" in commands.refused("ls", *mutual, code=4, env=secrets)
    assert "could not prove who it is" in commands.refused("ls", *one_way, "--target-user", "else", code=4, env=secrets)
    assert not (tmp_path / "disk").exists()
    peer.sessions_end()


def test_a_target_that_takes_anyone_is_no_proof(commands: Commands, peer: Peer) -> None:
    """With credentials, None is never offered: the target must authenticate or refuse."""
    peer.disk()
    commands.refused("ls", *commands.there, "--user", "initiator", code=4, env={"ISBLK_SECRET": SECRET})
    peer.sessions_end()


async def test_without_the_retry_the_algorithm_that_tgtd_misnumbers_fails(peer: Peer, tgt: Tgtd) -> None:
    peer.disk()
    tgt.account(peer.number, "initiator", SECRET)
    ours = Credentials("initiator", SECRET.encode())
    with pytest.raises(LoginRefused, match="0x0200"):
        async with session(peer, credentials=ours, md5_retry=False):
            raise AssertionError("tgtd computes SHA1 where the registry has SHA-256")
    async with session(peer, credentials=ours) as connection:
        assert (await open_disk(connection, 1, "the target")).gate.geometry.size == 64 * MIB


@pytest.mark.parametrize(
    ("wish", "header", "data"),
    [
        ("none", "None", "None"),
        ("header", "CRC32C", "None"),
        ("data", "None", "CRC32C"),
        ("both", "CRC32C", "CRC32C"),
        ("prefer", "CRC32C", "CRC32C"),
    ],
)
def test_digests_are_negotiated_used_and_shown(
    commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path, wish: str, header: str, data: str
) -> None:
    for key in ("HeaderDigest", "DataDigest"):
        tgt.update(peer.number, key, "CRC32C,None")
    image = peer.disk()
    place = commands.mount(tmp_path / "disk", "--digest", wish)
    agreed = negotiated(commands)
    assert (agreed["HeaderDigest"], agreed["DataDigest"]) == (header, data)
    put(place, 1001, LETTERS, sync=True)
    assert get(place, 1000, len(LETTERS) + 2) == b"\0" + LETTERS + b"\0"
    commands.umount(place)
    assert get(image, 1001, len(LETTERS)) == LETTERS
    peer.sessions_end()


@pytest.mark.parametrize("initial_r2t", ["Yes", "No"])
@pytest.mark.parametrize("immediate_data", ["Yes", "No"])
async def test_writes_of_any_length_in_every_way_data_may_be_sent(tgt: Tgtd, initial_r2t: str, immediate_data: str) -> None:
    """Bursts small enough that most writes need several R2Ts; what the target finally has is read from its file."""
    small = {"MaxBurstLength": 16384, "FirstBurstLength": 8192, "MaxRecvDataSegmentLength": 4096, "MaxOutstandingR2T": 4}
    peer = Peer(tgt, InitialR2T=initial_r2t, ImmediateData=immediate_data, **small)
    image = peer.disk()
    async with session(peer) as connection:
        terms = connection.negotiated
        assert (terms.immediate_data, terms.initial_r2t) == (immediate_data == "Yes", initial_r2t == "Yes")
        disk = await open_disk(connection, 1, "the target")
        async with trio.open_nursery() as nursery:
            at = 0
            expected = bytearray(2 * MIB)
            for length in (1, 511, 512, 4096, 4097, 8192, 8704, 16384, 16896, 65536, 100_001, 262_144, 999_999):
                expected[at : at + length] = LETTERS[:length]
                nursery.start_soon(write, disk.gate, at, LETTERS[:length])
                at += length + 3
        await flush(disk.gate)
        assert await read(disk.gate, 0, len(expected)) == expected
    assert get(image, 0, len(expected)) == expected
    peer.sessions_end()


async def test_the_same_isid_takes_the_session_over_and_another_does_not(peer: Peer, tgt: Tgtd) -> None:
    """Reinstatement (RFC 7143 6.3.5): what keeps a late write of a dead session from landing."""
    peer.disk()
    async with session(peer) as first, session(peer, 2) as bystander:
        mine = await open_disk(first, 1, "the target")
        await write(mine.gate, 0, b"first")
        assert tgt.sessions(peer.number) == 2
        async with session(peer) as second:
            with trio.fail_after(AT_ONCE_SECONDS):
                await first.closed.wait()
            assert isinstance(first.error, PathLost)
            assert tgt.sessions(peer.number) == 2
            with pytest.raises(PathLost):
                await read(mine.gate, 0, 5)
            assert await read((await open_disk(second, 1, "the target")).gate, 0, 5) == b"first"
            assert await read((await open_disk(bystander, 1, "the target")).gate, 0, 5) == b"first"
    peer.sessions_end()


@pytest.mark.parametrize(("slot", "stands"), [(1, b"new"), (2, b"old")], ids=["same-isid", "another-isid"])
async def test_a_late_write_of_a_session_taken_over_never_lands(peer: Peer, tgt: Tgtd, slot: int, stands: bytes) -> None:
    """The network delivers an old write after a newer one was acknowledged and flushed. With another ISID, that is how data is lost."""
    image = peer.disk()
    outcome: list[str] = []

    async def late(connection: Connection) -> None:
        disk = await open_disk(connection, 1, "the target")
        relay.hold()
        try:
            await write(disk.gate, 0, b"old" + bytes(509))
            outcome.append("acknowledged")
        except PathLost:
            outcome.append("lost")

    async with Relay(tgt.port).running() as relay, session(peer, portal=relay.portal) as first, trio.open_nursery() as nursery:
        nursery.start_soon(late, first)
        await relay.held.wait()
        async with session(peer, slot) as second:
            disk = await open_disk(second, 1, "the target")
            await write(disk.gate, 0, b"new" + bytes(509))
            await flush(disk.gate)
            with trio.fail_after(AT_ONCE_SECONDS):
                await relay.release()
                while not outcome:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert await read(disk.gate, 0, 3) == stands
    assert outcome == ["lost" if stands == b"new" else "acknowledged"]
    assert get(image, 0, 3) == stands
    peer.sessions_end()


async def test_more_requests_than_the_command_window_holds(tgt: Tgtd) -> None:
    peer = Peer(tgt, MaxQueueCmd=4)
    image = peer.disk()
    async with session(peer) as connection:
        disk = await open_disk(connection, 1, "the target")
        assert connection.session.wire.window.room < 10
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(write, disk.gate, number * 8192, number.to_bytes(2, "big") * 4096)
        await flush(disk.gate)
    data = get(image, 0, 300 * 8192)
    assert data == b"".join(number.to_bytes(2, "big") * 4096 for number in range(300))
    peer.sessions_end()


async def test_a_reset_unit_goes_on_after_its_attention(peer: Peer) -> None:
    peer.disk()
    async with session(peer) as connection, session(peer, 2) as other:
        disk, neighbour = await open_disk(connection, 1, "the target"), await open_disk(other, 1, "the target")
        await write(disk.gate, 0, b"kept")
        assert await connection.manage(pdu.TaskManagement.LOGICAL_UNIT_RESET, lun=disk.device.lun) == 0
        assert await read(disk.gate, 0, 4) == b"kept"
        assert await read(neighbour.gate, 0, 4) == b"kept"
        await connection.ping()
    peer.sessions_end()


async def test_a_unit_that_is_not_ready_yet_is_waited_for(peer: Peer, tgt: Tgtd) -> None:
    peer.disk(online=0)
    sizes: list[int] = []

    async def probe() -> None:
        async with session(peer) as connection:
            sizes.append((await open_disk(connection, 1, "the target")).gate.geometry.size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe)
        with trio.fail_after(AT_ONCE_SECONDS):
            while not tgt.sessions(peer.number):
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert not sizes
        tgt.unit_params(peer.number, 1, "online=1")
    assert sizes == [64 * MIB]
    peer.sessions_end()


# ------------------------------------------------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize(
    ("make", "verify"),
    [(("mkfs.ext4", "-q"), ("fsck.ext4", "-fn")), (("mkfs.xfs", "-q"), ("xfs_repair", "-n"))],
    ids=["ext4", "xfs"],
)
def test_a_file_system_keeps_a_tree(
    root: None, commands: Commands, peer: Peer, mounts: Mounts, tmp_path: Path, make: tuple[str, ...], verify: tuple[str, ...]
) -> None:
    image = peer.disk(size=384 * MIB)
    place = commands.mount(tmp_path / "disk")
    check(*make, place)
    mounts.loop_mount(place, tmp_path / "mnt")
    tree = fill(tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    check(*verify, place)
    commands.umount(place)
    check(*verify, image)
    commands.mount(place, "-o", "ro")
    mounts.loop_mount(place, tmp_path / "mnt", "ro")
    compare(tree, tmp_path / "mnt" / "tree")
    mounts.unmount(tmp_path / "mnt")
    commands.umount(place)
    peer.sessions_end()


@pytest.mark.parametrize(("block_size", "digest"), [(512, "none"), (512, "both"), (4096, "none")])
def test_random_writes_read_back_as_they_were_written(
    commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path, block_size: int, digest: str
) -> None:
    for key in ("HeaderDigest", "DataDigest"):
        tgt.update(peer.number, key, "CRC32C,None")
    peer.disk(block_size=block_size)
    place = commands.mount(tmp_path / "disk", "--digest", digest)
    fio_verify(place, "24m", f"--aux-path={tmp_path}", "--verify_state_save=0", f"--blockalign={block_size}")
    (mount,) = commands.status()
    assert mount["devices"][0]["block_size"] == block_size and mount["devices"][0]["counters"]["errors"] == 0
    commands.umount(place)
    peer.sessions_end()


def test_a_file_takes_any_offset_on_blocks_of_4096_bytes(commands: Commands, peer: Peer, tmp_path: Path) -> None:
    image = peer.disk(size=MIB, block_size=4096)
    place = commands.mount(tmp_path / "disk")
    put(place, 4095, b"across")
    put(place, MIB - 3, b"end")
    assert get(place, 4094, 8) == b"\0across\0"
    with pytest.raises(OSError) as caught:
        put(place, MIB, b"x")
    assert caught.value.errno == errno.ENOSPC
    commands.umount(place)
    assert image.stat().st_size == MIB
    assert (get(image, 4095, 6), get(image, MIB - 3, 3)) == (b"across", b"end")
    peer.sessions_end()


def test_a_read_only_unit_is_a_read_only_file(commands: Commands, peer: Peer, tmp_path: Path) -> None:
    image = peer.disk(readonly=1)
    put(image, 0, b"kept")
    place = commands.mount(tmp_path / "disk")
    assert place.stat().st_mode & 0o777 == 0o400
    assert get(place, 0, 4) == b"kept"
    with pytest.raises(OSError) as caught:
        put(place, 0, b"lost")
    assert caught.value.errno == errno.EROFS
    assert commands.status()[0]["devices"][0]["read_only"]
    commands.umount(place)
    assert get(image, 0, 4) == b"kept"
    peer.sessions_end()


def test_a_directory_has_every_disk_and_says_what_it_leaves_out(commands: Commands, peer: Peer, tmp_path: Path) -> None:
    images = {"lun1": peer.disk(1, 3 * MIB), "lun2": peer.disk(2, 8 * MIB, 4096)}
    peer.disk(300, 4 * MIB, readonly=1)
    several = commands.refused("mount", *commands.there, tmp_path / "disk", code=2)
    assert "LUN 1, 2, 300" in several
    place = tmp_path / "luns"
    place.mkdir()
    commands.mount(place, "--log-file", str(tmp_path / "log"))
    assert {entry.name: entry.stat().st_size for entry in place.iterdir()} == {"lun1": 3 * MIB, "lun2": 8 * MIB, "lun300": 4 * MIB}
    assert "LUN 0 is no disk but a storage array controller" in (tmp_path / "log").read_text()
    for name in images:
        put(place / name, 700, name.encode())
    with pytest.raises(OSError) as caught:
        put(place / "lun300", 0, b"x")
    assert caught.value.errno in (errno.EROFS, errno.EACCES)
    commands.umount(place)
    for name, image in images.items():
        assert get(image, 700, 4) == name.encode()
    peer.sessions_end()


@pytest.mark.parametrize("pattern", ["read", "randread"])
def test_perf_measures_reads(commands: Commands, peer: Peer, tgt: Tgtd, pattern: str) -> None:
    tgt.null(peer.number, 1)
    said = json.loads(commands.run("perf", *commands.there, "--rw", pattern, "--bs", "16k", "--runtime", "0.3", "--json").stdout)
    assert said["requests"] > 50 and said["bytes"] == said["requests"] * 16384 and said["errors"] == 0
    peer.sessions_end()


def test_perf_writes_only_when_told_so(commands: Commands, peer: Peer) -> None:
    image = peer.disk()
    perf = ["perf", *commands.there, "--rw", "write", "--bs", "1M", "--iodepth", "4", "--runtime", "0.3"]
    assert "--destructive" in commands.refused(*perf, code=2)
    assert image.stat().st_blocks == 0
    commands.run(*perf, "--destructive")
    assert image.stat().st_blocks > 0
    peer.sessions_end()


def test_fsync_and_umount_make_the_target_synchronize_its_cache(commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path) -> None:
    """Read from tgtd's own account of the commands it has done: 0x35 is SYNCHRONIZE CACHE (10)."""

    def synchronized() -> int:
        lines = tgt.log.read_text(errors="replace").splitlines()
        return sum("io done" in line and line.split("io done")[1].split()[1:3] == ["35", "0"] for line in lines)

    peer.disk()
    tgt.admin("--mode", "system", "--op", "update", "--name", "debug", "--value", "on")
    place = commands.mount(tmp_path / "disk")
    put(place, 0, LETTERS)
    assert synchronized() == 0
    put(place, 0, LETTERS, sync=True)
    assert synchronized() == 1
    put(place, 0, LETTERS)
    commands.umount(place)
    assert synchronized() == 2
    peer.sessions_end()


async def test_thin_units_give_back_what_is_not_needed(peer: Peer) -> None:
    image = peer.disk(thin_provisioning=1)
    async with session(peer) as connection:
        disk = await open_disk(connection, 1, "the target")
        assert disk.gate.geometry.can_trim
        await write(disk.gate, 0, b"x" * (8 * MIB))
        await flush(disk.gate)
        held = image.stat().st_blocks
        assert held >= 8 * MIB // 512
        extents = await disk.device.lba_status(0, 16 * MIB)
        assert (extents[0].offset, extents[0].length, extents[0].provisioning) == (0, 8 * MIB, Provisioning.MAPPED)
        assert extents[1].provisioning is not Provisioning.MAPPED
        await trim(disk.gate, 2 * MIB, 4 * MIB)
        assert held - image.stat().st_blocks == 4 * MIB // 512
        assert [each.length for each in await disk.device.lba_status(0, 16 * MIB)] == [2 * MIB, 4 * MIB, 2 * MIB, 8 * MIB]
        await zero(disk.gate, 1000, 3 * MIB)
        await flush(disk.gate)
        assert await read(disk.gate, 0, 3 * MIB + 1000) == b"x" * 1000 + bytes(3 * MIB)
        assert await read(disk.gate, 6 * MIB, MIB) == b"x" * MIB
    assert get(image, 999, 2) == b"x\0"
    peer.sessions_end()


async def test_a_thick_unit_is_zeroed_and_refuses_to_discard(peer: Peer) -> None:
    peer.disk()
    async with session(peer) as connection:
        disk = await open_disk(connection, 1, "the target")
        await write(disk.gate, 0, LETTERS)
        sent = connection.traffic.bytes_sent
        await zero(disk.gate, 512, 700_000)
        assert connection.traffic.bytes_sent - sent < 8192, "zeroes are told with WRITE SAME, not sent"
        assert await read(disk.gate, 0, len(LETTERS)) == LETTERS[:512] + bytes(700_000) + LETTERS[700_512:]
        assert not disk.gate.geometry.can_trim
        assert [each.provisioning for each in await disk.device.lba_status(0, MIB)] == [Provisioning.MAPPED]
    peer.sessions_end()


# -------------------------------------------------------------------------------------------------------------- when the target dies


def test_a_killed_target_fails_everything_at_once_and_umount_tells_what_was_lost(
    commands: Commands, peer: Peer, tgt: Tgtd, processes: Processes, tmp_path: Path
) -> None:
    image = peer.disk()
    place = commands.mount(tmp_path / "disk", "--no-path-retry", "fail")
    job = ["--name=busy", f"--filename={place}", "--size=32m", "--rw=randwrite", "--bs=64k", "--direct=1", "--ioengine=libaio"]
    writer = processes.start(["fio", *job, "--iodepth=16", "--time_based", "--runtime=50", "--allow_file_create=0"], cwd=tmp_path)
    until(lambda: image.stat().st_blocks > 8 * MIB // 512, "the writes to be under way")
    tgt.stop()
    assert writer.wait(AT_ONCE_SECONDS) != 0
    assert "Input/output error" in writer.stdout + writer.stderr
    for attempt in (lambda: get(place, 0, 512), lambda: put(place, 0, b"x" * 512)):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EIO
    session = commands.status()[0]["sessions"][0]
    assert peer.portal in session["error"]
    assert "written data may be lost" in commands.refused("umount", place, code=6)
    assert not place.exists()


def test_perf_ends_with_its_target(commands: Commands, peer: Peer, tgt: Tgtd, processes: Processes) -> None:
    image = peer.disk()
    perf = processes.start(isblk("perf", *commands.there, "--rw", "randwrite", "--runtime", "50", "--destructive"))
    until(lambda: image.stat().st_blocks > MIB // 512, "the writes to be under way")
    tgt.stop()
    assert perf.wait(AT_ONCE_SECONDS) == 6
    assert f"{peer.portal} closed the connection" in perf.stderr or "Connection reset" in perf.stderr
    assert perf.stderr.startswith("isblk: ") and perf.stderr.count("\n") == 1


def test_a_loop_mount_on_a_killed_target_can_be_unmounted(
    root: None, commands: Commands, peer: Peer, tgt: Tgtd, mounts: Mounts, tmp_path: Path
) -> None:
    peer.disk()
    place = commands.mount(tmp_path / "disk", "--no-path-retry", "fail")
    check("mkfs.ext4", "-q", place)
    mounts.loop_mount(place, tmp_path / "mnt")
    (tmp_path / "mnt" / "file").write_bytes(LETTERS)
    tgt.stop()
    with (tmp_path / "mnt" / "file").open("rb+") as file, pytest.raises(OSError) as caught:
        os.fsync(file.fileno())
    assert caught.value.errno in (errno.EIO, errno.EROFS)  # what ext4 makes of EIO depends on what it was writing
    check("umount", tmp_path / "mnt", seconds=AT_ONCE_SECONDS)
    commands.processes.run(isblk("umount", place), code=None, seconds=AT_ONCE_SECONDS)  # 6 where ext4 had data in the target's cache
    assert not mounts.points() and not place.exists()


def test_nothing_is_lost_with_a_target_that_had_synchronized(commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path) -> None:
    image = peer.disk()
    place = commands.mount(tmp_path / "disk", "--no-path-retry", "fail")
    put(place, 0, LETTERS, sync=True)
    with place.open("rb", buffering=0) as file:
        tgt.stop()
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 4096, 0)
        assert caught.value.errno == errno.EIO
    commands.umount(place)
    assert get(image, 0, len(LETTERS)) == LETTERS


def test_a_target_that_came_back_is_mounted_again(commands: Commands, peer: Peer, tgt: Tgtd, tmp_path: Path) -> None:
    peer.disk()
    place = commands.mount(tmp_path / "disk")
    tgt.stop()
    commands.umount(place)
    assert "cannot be reached" in commands.refused("mount", *commands.there, place, code=5)
    tgt.start()
    again = Peer(tgt)  # a tgtd that starts knows nothing of the one before
    again.disk(2)
    commands.mount(place)
    assert get(place, 0, 4) == bytes(4)
    commands.umount(place)
