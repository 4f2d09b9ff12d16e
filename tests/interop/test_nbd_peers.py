"""NBD clients of others against `isblk nbd`: libnbd's tools and binding, nbdkit, qemu, fio and nbd-client, also while the target fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from support.commands import Commands
from support.nbd import Served, libnbd, serve, served
from support.processes import Processes
from support.targets import MIB, TargetProcess, disk, target_process
from support.tgt import Tgtd
from support.trees import check
from support.waiting import until

NAME = "iqn.2026-11.test.isblk.tgt:nbd"
SIZE = 64 * MIB


@pytest.fixture
def target(tmp_path: Path) -> TargetProcess:
    """A target with one thin disk of 64 MiB and a volatile write cache."""
    with target_process([disk(0, SIZE, path=str(tmp_path / "disk.img"))]) as running:
        yield running  # type: ignore[misc]


@pytest.fixture
def commands(target: TargetProcess, processes: Processes) -> Commands:
    return Commands(processes, target)


@pytest.fixture
def server(commands: Commands, tmp_path: Path) -> Served:
    """A server that must still be there, and end in order, behind each test."""
    with served(commands, tmp_path / "disk.sock") as running:
        yield running  # type: ignore[misc]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of the disk's size with data, holes and data that is no multiple of a block."""
    path = tmp_path / "source"
    chance = random.Random(4)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in (0, 3 * MIB + 512, 20 * MIB, 40 * MIB + 1, SIZE - 70_000):
            file.seek(offset)
            file.write(chance.randbytes(70_000 if offset else 9 * MIB)[: SIZE - offset])
    return path


# ------------------------------------------------------------------------------------------------------------------------------ libnbd


def test_nbdinfo_sees_what_there_is(server: Served) -> None:
    found = server.info()
    size = {
        key: found[key]
        for key in ("export-size", "is_read_only", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df")
    }
    assert size == {"export-size": SIZE, "is_read_only": False, **dict.fromkeys(list(size)[2:], True)}
    assert (found["block_size_minimum"], found["block_size_maximum"]) == (1, 32 * MIB) and found["block_size_preferred"] >= 512
    assert "base:allocation" in found["contexts"] and not found["is_rotational"]
    listed = json.loads(check("nbdinfo", "--json", "--list", server.uri))["exports"]
    (export,) = server.status()["exports"]
    assert listed[0]["export-name"] == "0" and {one["export-size"] for one in listed} == {SIZE}
    assert export["wwid"] in listed[0]["description"] and "VIRTUAL-DISK" in listed[0]["description"]
    assert int(check("nbdinfo", "--size", server.export(export["wwid"]))) == SIZE
    none = subprocess.run(["nbdinfo", server.export("9")], capture_output=True, text=True, timeout=20, check=False)
    assert none.returncode and "9" in none.stderr


def test_nbdinfo_maps_what_is_allocated(server: Served) -> None:
    libnbd("h.connect_uri(sys.argv[1])\nh.pwrite(b'x' * (1 << 20), 4 << 20)", server.uri)
    extents = json.loads(check("nbdinfo", "--map", "--json", server.uri))
    assert sum(one["length"] for one in extents) == SIZE and extents[0]["offset"] == 0
    types = {one["offset"]: one["type"] for one in extents}
    assert types[0] == 3 and types[4 * MIB] == 0 and types[5 * MIB] == 3, "3 is a hole that reads as zeroes, 0 is data"


def test_nbdcopy_there_and_back(server: Served, source: Path, tmp_path: Path) -> None:
    for options in ((), ("--connections=1",), ("--connections=4", "--requests=64", "--request-size=4194304"), ("--synchronous",)):
        check("nbdcopy", "--flush", *options, source, server.uri)
        check("nbdcopy", *options, server.uri, tmp_path / "back")
        check("cmp", source, tmp_path / "back")
        (tmp_path / "back").unlink()
        libnbd("h.connect_uri(sys.argv[1])\nfor at in range(2):\n    h.zero(32 << 20, at * (32 << 20))", server.uri)


def test_nbdcopy_from_server_to_server(commands: Commands, server: Served, source: Path, tmp_path: Path) -> None:
    with target_process([disk(0, SIZE)]) as other:
        second = Commands(commands.processes, other)
        with served(second, tmp_path / "second.sock") as copy:
            check("nbdcopy", source, server.uri)
            check("nbdcopy", server.uri, copy.uri)
            assert check("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, copy.uri) == "Images are identical.\n"


def test_many_requests_at_once_are_each_answered_rightly(server: Served) -> None:
    """512 in flight of every size and alignment over four connections, in areas of their own, checked against a copy."""
    said = libnbd(
        """
connections = [h] + [nbd.NBD() for _ in range(3)]
for one in connections:
    one.connect_uri(sys.argv[1])
chance, area, like = random.Random(11), 96 * 1024, {}
def wait(cookies):
    while cookies:
        for one, cookie in list(cookies):
            if one.aio_command_completed(cookie):
                cookies.remove((one, cookie))
            elif not one.aio_peek_command_completed():
                one.poll(1000)
for turn in range(3):
    cookies, buffers = [], {}
    for at in range(512):
        offset = at * area + chance.randrange(4096)
        data = chance.randbytes(chance.choice((1, 511, 512, 4096, 10001, 65536)))
        like[at] = (offset, data)
        one = connections[at % 4]
        cookies.append((one, one.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset)))
    wait(cookies)
    for at in chance.sample(range(512), 512):
        offset, data = like[at]
        one, buffers[at] = connections[(at + turn) % 4], nbd.Buffer(len(data))
        cookies.append((one, one.aio_pread(buffers[at], offset)))
    wait(cookies)
    for at, buffer in buffers.items():
        assert bytes(buffer.to_bytearray()) == like[at][1], (turn, at)
print("right")
""",
        server.uri,
    )
    assert said == "right\n"


def test_a_flush_on_one_connection_covers_all(commands: Commands, server: Served, tmp_path: Path) -> None:
    script = """
other = nbd.NBD()
h.connect_uri(sys.argv[1])
other.connect_uri(sys.argv[1])
assert h.can_multi_conn()
h.pwrite(b"a" * 4096, 0)
other.flush()
"""
    libnbd(script, server.uri)
    commands.target.ask("crash")
    with (tmp_path / "disk.img").open("rb") as file:
        assert file.read(4096) == b"a" * 4096


EDGES = """
h.set_strict_mode(0)
h.set_request_structured_replies(sys.argv[2] == "structured")
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
size = h.get_size()
def fails(number, function, *arguments):
    try:
        function(*arguments)
    except nbd.Error as error:
        assert error.errno == errno.errorcode[number], (error, function, arguments)
    else:
        raise AssertionError((function, arguments))
for offset, length in ((size, 1), (size - 1, 2), (size, 512), (1 << 62, 4096), (size - 512, 1 << 20)):
    fails(errno.EINVAL, h.pread, length, offset)
    fails(errno.ENOSPC, h.pwrite, bytes(length), offset)
    fails(errno.ENOSPC, h.zero, length, offset)
    fails(errno.EINVAL, h.trim, length, offset)
large = random.Random(1).randbytes(32 << 20)
h.pwrite(large, 512)
assert h.pread(len(large), 512) == large
h.pwrite(b"!", size - 1)
assert h.pread(1, size - 1) == b"!"
h.pwrite(b"odd" * 333, 1001, nbd.CMD_FLAG_FUA)
assert h.pread(999 + 2, 1000)[1:-1] == b"odd" * 333
h.zero(2 << 20, 1 << 20)
assert h.pread(2 << 20, 1 << 20) == bytes(2 << 20)
h.pwrite(b"z" * (1 << 20), 1 << 20)
h.zero(1001, (1 << 20) + 7, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(1001 + 8, 1 << 20) == b"z" * 7 + bytes(1001) + b"z"
h.trim(1 << 20, 1 << 20)
h.trim(5, 3, nbd.CMD_FLAG_FUA)
if h.can_cache():
    h.cache(1 << 20, 0)
if h.can_df():
    chunks = []
    h.pread_structured(4096, 8 << 20, lambda data, offset, status, error: chunks.append((offset, status)) and 0 or 0, nbd.CMD_FLAG_DF)
    assert chunks == [(8 << 20, nbd.READ_DATA)], chunks
h.flush()
if sys.argv[2] == "structured":
    extents = []
    h.block_status(8 << 20, 0, lambda context, offset, entries, error: extents.extend(entries) and 0 or 0)
    assert extents and len(extents) % 2 == 0 and sum(extents[::2]) >= 1
    one = []
    h.block_status(8 << 20, 0, lambda context, offset, entries, error: one.extend(entries) and 0 or 0, nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2 and one[0] <= 8 << 20
assert h.pread(4096, 8 << 20) == large[(8 << 20) - 512 : (8 << 20) - 512 + 4096], "the connection is as good as before"
h.shutdown()
print("done")
"""


@pytest.mark.parametrize("replies", ["structured", "simple"])
def test_edges_of_every_command(server: Served, replies: str) -> None:
    assert libnbd(EDGES, server.uri, replies) == "done\n"


def test_nothing_is_written_to_what_is_read_only(commands: Commands, tmp_path: Path) -> None:
    with served(commands, tmp_path / "ro.sock", "--read-only") as server:
        script = """
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
for change in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        change()
    except nbd.Error as error:
        assert error.errno == "EPERM", error
    else:
        raise AssertionError("it was done")
assert h.pread(512, 0) == bytes(512)
"""
        libnbd(script, server.uri)


def test_an_old_client_uses_the_export_by_name_alone(server: Served) -> None:
    """NBD_OPT_EXPORT_NAME, without the fixed newstyle, and with the 124 zeroes behind it."""
    script = """
for flags in (0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    one = nbd.NBD()
    one.set_handshake_flags(flags)
    one.connect_uri(sys.argv[1])
    assert one.get_protocol() == ("newstyle-fixed" if flags == 1 else "newstyle")
    one.pwrite(b"old", 5)
    assert one.pread(3, 5) == b"old"
    one.shutdown()
"""
    libnbd(script, server.uri)


# ------------------------------------------------------------------------------------------------------------------------ other clients


def test_nbdkit_in_front(server: Served, source: Path, tmp_path: Path) -> None:
    """nbdkit's own client, with a filter that cuts requests to odd sizes, exported once more to nbdcopy."""
    run = f"nbdcopy {source} $uri && nbdcopy $uri {tmp_path}/back && cmp {source} {tmp_path}/back && nbdinfo --size $uri"
    assert int(check("nbdkit", "-U", "-", "nbd", f"uri={server.uri}", "--run", run).split()[-1]) == SIZE
    shared = "nbdcopy --connections=4 $uri null: && nbdinfo --map $uri"
    said = check("nbdkit", "-U", "-", "--filter=blocksize", "nbd", f"uri={server.uri}", "shared=true", "maxdata=12345", "--run", shared)
    assert said.split()[0] == "0"


def test_qemu_img_converts_compares_maps_and_benches(server: Served, source: Path, tmp_path: Path) -> None:
    uri = server.uri
    check("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t", "none", source, uri)
    assert check("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri) == "Images are identical.\n"
    check("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "back.qcow2")
    assert check("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "back.qcow2", uri) == "Images are identical.\n"
    assert (tmp_path / "back.qcow2").stat().st_size < SIZE // 2, "what reads as zeroes was not copied"
    extents = json.loads(check("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert sum(one["length"] for one in extents) == SIZE
    assert extents[0]["data"] and any(not one["data"] and one["zero"] for one in extents)
    for write in ((), ("-w",), ("-w", "--flush-interval=64")):
        assert "Run completed" in check("qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4k", *write, uri)


def test_qemu_io_writes_patterns_and_reads_them_back(server: Served) -> None:
    words = [
        *("write -P 0x5a 0 1M", "write -P 0x33 -f 1M 4k", "writev -P 0x11 513 1000", "read -P 0x11 513 1000", "read -P 0x5a 2k 900k"),
        *("read -P 0x33 1M 4k", "write -z 64k 64k", "read -P 0 64k 64k", "write -z -u 128k 64k", "read -P 0 128k 64k", "discard 256k 256k"),
        *("aio_write -P 0x77 2M 1M", "aio_write -P 0x78 3M 1M", "aio_flush", "read -P 0x77 2M 1M", "read -P 0x78 3M 1M", "flush"),
    ]
    said = check("qemu-io", "-f", "raw", "-t", "none", *(part for word in words for part in ("-c", word)), server.uri)
    assert "failed" not in said and "error" not in said.lower()


@pytest.mark.deadline(120)
def test_fio_verifies_what_several_jobs_wrote(server: Served) -> None:
    argv = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=1"]
    argv += ["--size=12m", "--offset_increment=16m", "--numjobs=4", "--thread", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1"]
    check(*argv, "--do_verify=1", "--verify_state_save=0", "--fsync=64", seconds=100)
    (device,) = server.status()["devices"]
    assert device["counters"]["errors"] == 0 and device["counters"]["write_bytes"] > 40 * MIB


def test_nbd_client_lists(commands: Commands) -> None:
    said = commands.run("nbd", *commands.there, "--listen", "127.0.0.1:0").stdout.strip()
    where = said.removeprefix("nbd://")
    client = shutil.which("nbd-client", path="/usr/sbin:/usr/bin")
    assert client is not None
    listed = check(client, "-l", "127.0.0.1", where.rpartition(":")[2])
    assert "\n0" in listed
    commands.run("umount", where)


# ------------------------------------------------------------------------------------------------------------------------------ failover


class Peer:
    """A tgtd of two portals whose one disk outlives it."""

    def __init__(self, tgt: Tgtd, size: int) -> None:
        self.tgt = tgt
        self.name = NAME
        self.image = tgt.home / "outlives.img"
        with self.image.open("wb") as file:
            file.truncate(size)
        self.portals = [tgt.portal]
        self.describe()
        self.portals.append(tgt.add_portal())

    @property
    def portal(self) -> str:
        return self.tgt.portal

    def describe(self) -> None:
        """The target as it is each time; nobody is let in before the disk is there."""
        self.tgt.admin("--mode", "target", "--op", "new", "--tid", "1", "--targetname", NAME)
        self.tgt.admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "--backing-store", str(self.image))
        self.tgt.admin("--mode", "target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL")

    def restart(self) -> None:
        """Kill it and start it again, with both portals."""
        self.tgt.stop()
        self.tgt.start()
        self.describe()
        self.tgt.add_portal(int(self.portals[1].rpartition(":")[2]))


@pytest.mark.deadline(150)
def test_nbdcopy_notices_nothing_of_a_target_that_is_killed(tgt: Tgtd, processes: Processes, tmp_path: Path) -> None:
    """In the middle of a copy to the disk, and of one from it: both compare equal, and no request has failed."""
    size = 1024 * MIB
    peer = Peer(tgt, size)
    commands, source, back = Commands(processes, peer), tmp_path / "large", tmp_path / "back"  # type: ignore[arg-type]
    piece = random.Random(5).randbytes(MIB)
    with source.open("wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big") + piece[8:])
    portals = [word for portal in peer.portals for word in ("-p", portal)]
    there = (*portals, NAME, "--lun", "1", "--noop-interval", "1", "--noop-timeout", "1", "--login-timeout", "2")
    server = serve(commands, tmp_path / "disk.sock", target=there)

    def moved(kind: str) -> int:
        return int(server.status()["devices"][0]["counters"][f"{kind}_bytes"])

    for kind, argv in (("write", ["nbdcopy", "--flush", str(source), server.uri]), ("read", ["nbdcopy", server.uri, str(back)])):
        before, copying = moved(kind), processes.start(argv)
        until(lambda before=before, kind=kind: moved(kind) > before, "the copy to begin")
        peer.restart()
        assert copying.process.poll() is None, "the copy was over before the target was killed"
        assert copying.wait(60) == 0, copying.stderr
    check("cmp", source, back)
    check("cmp", source, peer.image)
    (device,) = server.status()["devices"]
    assert device["counters"]["errors"] == 0
    assert sum(path["losses"] for path in device["paths"]) >= 2
    server.end()
    assert tgt.sessions(1) == 0


def test_nbdcopy_notices_nothing_of_paths_that_are_cut(processes: Processes, tmp_path: Path, source: Path) -> None:
    with target_process([disk(0, SIZE, path=str(tmp_path / "disk.img"))]) as target:
        commands = Commands(processes, target)
        server = serve(commands, tmp_path / "disk.sock")
        there_and_back = (
            f"nbdcopy --flush {source} '{server.uri}' && nbdcopy '{server.uri}' {tmp_path}/back && cmp {source} {tmp_path}/back"
        )
        enough = tmp_path / "enough"
        copying = processes.start(["sh", "-c", f"until [ -e {enough} ]; do {there_and_back} || exit 1; done"])
        for _cut in range(5):
            before = server.status()["devices"][0]["counters"]["write_bytes"]
            target.ask("drop")
            until(
                lambda before=before: (
                    copying.process.poll() is not None or server.status()["devices"][0]["counters"]["write_bytes"] > before
                ),
                "it to go on",
            )
        enough.touch()
        assert copying.wait(60) == 0, copying.stderr
        assert server.status()["devices"][0]["counters"]["errors"] == 0
        server.end()


def test_the_machine_has_what_these_tests_need() -> None:
    path = f"{os.environ['PATH']}:/usr/sbin"
    for tool in ("nbdinfo", "nbdcopy", "nbdkit", "nbd-client", "qemu-img", "qemu-io", "fio", "openssl"):
        assert shutil.which(tool, path=path), tool
