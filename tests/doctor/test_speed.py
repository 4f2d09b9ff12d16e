"""Pings, small reads and the throughput probe: what is said of every outcome, and that no bound is overstepped and nothing written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from isblk.block.request import Op
from isblk.doctor import speed
from isblk.doctor.findings import Report
from isblk.doctor.speed import Bounds, Probe
from isblk.errors import PathLost, RequestFailed
from support.doctor import names, text
from support.memorydevice import MemoryDevice

MIB = 1 << 20


class Pinged:
    """A connection whose pings take so many seconds each, the last one again and again."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    async def ping(self) -> None:
        await trio.sleep(self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0])


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """The stopwatch goes by trio's clock."""
    monkeypatch.setattr(speed, "perf_counter", trio.current_time)


@pytest.mark.provokes("ping")
async def test_pings(virtual: None, autojump_clock: MockClock) -> None:
    report = Report()
    assert await speed.pings(report, "p", Pinged(0.001)) == pytest.approx(1)
    assert text(report, "ping") == "p: a ping takes 1.00 ms, 1 of 100 more than 1.00 ms"
    assert report.findings[0].data["count"] == speed.ROUNDS


@pytest.mark.provokes("ping-uneven")
async def test_pings_of_which_some_are_late(virtual: None, autojump_clock: MockClock) -> None:
    report = Report()
    assert await speed.pings(report, "p", Pinged(0.2, 0.001)) == pytest.approx(1)
    assert text(report, "ping-uneven") == "p: pings take 1.00 ms, but some 200.00 ms"


@pytest.mark.provokes("ping-unanswered")
async def test_pings_that_nobody_answers(virtual: None, autojump_clock: MockClock) -> None:
    report, began = Report(), trio.current_time()
    assert await speed.pings(report, "p", Pinged(3600)) is None
    assert trio.current_time() - began == speed.ROUND_SECONDS and report.exit_code == 6


@pytest.mark.provokes("ping-unanswered")
async def test_pings_over_a_connection_that_breaks() -> None:
    class Broken(Pinged):
        async def ping(self) -> None:
            await trio.lowlevel.checkpoint()
            raise PathLost("p closed the connection")

    report = Report()
    assert await speed.pings(report, "p", Broken(0)) is None
    assert "p closed the connection" in report.findings[0].text


@pytest.mark.provokes("read")
async def test_small_reads(virtual: None, autojump_clock: MockClock) -> None:
    report, device = Report(), MemoryDevice(MIB, delay=0.002)
    assert await speed.small_reads(report, "p", 0, device, 1.0)
    assert names(report) == ["read"] and {(seen.op, seen.length) for seen in device.requests} == {(Op.READ, 4096)}


async def test_a_disk_smaller_than_a_small_read() -> None:
    device = MemoryDevice(512)
    assert await speed.small_reads(Report(), "p", 0, device, None)
    assert {seen.length for seen in device.requests} == {512}


@pytest.mark.provokes("read-slow")
async def test_a_disk_slower_than_the_network(virtual: None, autojump_clock: MockClock) -> None:
    report = Report()
    assert await speed.small_reads(report, "p", 0, MemoryDevice(MIB, delay=0.03), 1.0)
    assert text(report, "read-slow") == "p: a small read takes 30.0 ms, a ping 1.0 ms"


@pytest.mark.provokes("read-failed")
@pytest.mark.parametrize("way", ["refused", "silent"])
async def test_small_reads_that_fail(way: str, virtual: None, autojump_clock: MockClock) -> None:
    report, device = Report(), MemoryDevice(MIB, hold=way == "silent")
    device.failing = lambda _request: RequestFailed("medium error")
    assert not await speed.small_reads(report, "p", 3, device, 1.0)
    assert report.exit_code == 6 and ("medium error" in report.findings[0].text) is (way == "refused")


@pytest.mark.provokes("throughput")
async def test_a_probe_ends_with_its_bytes(virtual: None, autojump_clock: MockClock) -> None:
    report, device, told = Report(), MemoryDevice(8 * MIB, delay=0.01), []
    probe = Probe(device, Bounds(60, 4 * MIB), lambda done, said: told.append((done, said)))
    assert await probe.run()
    assert probe.bytes == 4 * MIB == sum(seen.length for seen in device.requests)
    assert {seen.op for seen in device.requests} == {Op.READ}
    assert speed.tell(report, "p", 0, probe) == pytest.approx(4 * MIB / 0.02 / 1e6)
    assert text(report, "throughput") == "p: 210 MB/s (4 MB read in 0.0 s, 262144 bytes each, 8 in flight)"
    assert told[-1][0] == pytest.approx(1) and told[-1][1] == "210 MB/s"


async def test_a_probe_ends_with_its_time(virtual: None, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    probe = Probe(MemoryDevice(8 * MIB, delay=0.5), Bounds(2.25, 1 << 40))
    assert await probe.run()
    assert trio.current_time() - began == 2.25
    assert probe.bytes == 4 * 8 * speed.LARGE_READ and probe.seconds == pytest.approx(2.0)


@pytest.mark.provokes("read-swallowed")
async def test_large_reads_that_are_swallowed(virtual: None, autojump_clock: MockClock) -> None:
    report, began = Report(), trio.current_time()
    probe = Probe(MemoryDevice(8 * MIB, hold=True), Bounds(1, 1 << 40))
    assert not await probe.run()
    assert trio.current_time() - began == speed.STALL_SECONDS
    assert speed.tell(report, "p", 0, probe) is None and report.exit_code == 6


@pytest.mark.provokes("read-failed")
async def test_a_probe_whose_reads_fail() -> None:
    report, device = Report(), MemoryDevice(8 * MIB)
    device.fail_next.append(RequestFailed("medium error"))
    probe = Probe(device, Bounds(60, 1 << 40))
    await probe.run()
    assert speed.tell(report, "p", 0, probe) is None and len(device.requests) <= 2 * speed.DEPTH


async def test_a_small_disk_is_read_again_and_again() -> None:
    device = MemoryDevice(MIB + 512)
    await Probe(device, Bounds(60, 3 * MIB)).run()
    assert {seen.offset for seen in device.requests} == {number * speed.LARGE_READ for number in range(4)}
    tiny = MemoryDevice(512)
    probe = Probe(tiny, Bounds(60, 5120))
    await probe.run()
    assert probe.bytes == 5120 and {seen.offset for seen in tiny.requests} == {0}


@pytest.mark.provokes("throughput-uneven")
def test_a_portal_that_is_slower_by_far() -> None:
    report = Report()
    speed.compare(report, [("a", 300.0), ("b", 160.0), ("c", 90.0)])
    speed.compare(report, [])
    assert [finding.text for finding in report.findings] == ["c is slower by far than the best portal: 90 of 300 MB/s"]


def test_the_stopwatch_is_patched_in_every_test_that_needs_it() -> None:
    ask: Callable[[], Awaitable[object]] = Pinged(0).ping
    assert trio.run(speed._timed, ask)
