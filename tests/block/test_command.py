"""Commands: how each end is judged, retried or told, and that retries have an end."""

from __future__ import annotations

import errno

import pytest

from isblk.block.command import Command, ModeSense, PathUnusable, Synchronize, Transfer, WriteSame
from isblk.block.probe import ATTENTION_LIMIT, BACK_OFF
from isblk.block.request import Op, Request
from isblk.errors import PathLost, RequestFailed
from isblk.scsi.sense import Attention, Verdict
from support.fakelink import BUSY, GOOD, UNKNOWN_COMMAND, UNKNOWN_FIELD, Answer, FakeDisk, FakeLink, attention, check
from support.memorydevice import broken

READ_2 = bytes.fromhex("28000000000400000200")


class FakeUnit:
    """Notes what commands tell their unit."""

    lun = bytes(8)
    retries = 0

    def __init__(self, *script: Answer | None) -> None:
        disk = FakeDisk()
        disk.content[:] = bytes(number // 512 % 251 for number in range(len(disk.content)))
        disk.script = list(script)
        self.link = FakeLink(disk)
        self.announced: list[Attention | None] = []
        self.refused: list[tuple[bytes, bool]] = []
        self.modes: list[bytes | None] = []
        self.asked = 0
        self.fulls = 0
        self.lost: Exception | None = None

    def attention(self, judged: Verdict, command: Command) -> None:
        self.announced.append(judged.attention)

    def write_lost(self) -> Exception | None:
        return self.lost

    def full(self) -> None:
        self.fulls += 1

    def write_same_refused(self, command: Command, forever: bool) -> None:
        self.refused.append((command.cdb, forever))

    def mode_asked(self) -> None:
        self.asked += 1

    def mode_came(self, answer: bytes | None) -> None:
        self.modes.append(answer)

    def run(self, kind: type[Command], cdb: bytes = READ_2) -> Request:
        data = memoryview(bytearray(1024))
        request = Request(Op.READ, 2048, 1024, data)
        self.link.submit(kind(self, cdb, request, data))
        self.link.kick()
        return request


def test_commands_that_are_sent_once_more_are_counted() -> None:
    unit = FakeUnit(attention(0x29, 0x00), BUSY)
    unit.run(Transfer)
    assert unit.retries == 1
    (_, again) = unit.link.timers.pop()
    again()
    assert unit.retries == 2


def error_of(request: Request) -> RequestFailed:
    assert isinstance(request.error, RequestFailed)
    return request.error


def test_a_good_read_finishes_with_its_data() -> None:
    request = FakeUnit().run(Transfer)
    assert request.finished and request.error is None
    assert request.data is not None and bytes(request.data) == b"\x04" * 512 + b"\x05" * 512


def test_a_recovered_error_is_good() -> None:
    unit = FakeUnit()
    data = unit.link.disks[unit.lun].answer(READ_2, b"")[2]
    unit.link.disks[unit.lun].script = [(0x02, check(1, 0x17, 0x01)[1], data)]
    assert unit.run(Transfer).error is None


@pytest.mark.parametrize(
    ("answer", "moved"), [((0, b"", bytes(1023)), "1023"), ((0, b"", b""), "0"), ((0, b"", bytes(1536)), "1024 of 1536")]
)
def test_a_transfer_that_is_not_whole_is_an_error(answer: Answer, moved: str) -> None:
    error = error_of(FakeUnit(answer).run(Transfer))
    assert error.errno == errno.EIO and f"moved {moved} bytes" in str(error)


def test_a_recovered_read_that_is_short_is_an_error() -> None:
    assert error_of(FakeUnit((0x02, check(1, 0x17, 0x01)[1], bytes(512))).run(Transfer)).errno == errno.EIO


def test_what_a_parameter_list_moved_is_not_looked_at() -> None:
    assert FakeUnit((0, b"", bytes(100))).run(Command).error is None


@pytest.mark.parametrize(
    ("answer", "error_number"),
    [
        (check(3, 0x11, 0x00), errno.EIO),
        (check(7, 0x27, 0x07), errno.ENOSPC),
        (check(7, 0x27, 0x00), errno.EROFS),
        (check(5, 0x24, 0x00), errno.EREMOTEIO),
        ((0x18, b"", b""), errno.EACCES),
        ((0x02, b"", b""), errno.EIO),
        ((0x99, b"", b""), errno.EIO),
    ],
)
def test_a_failure_is_told_with_its_errno_and_is_not_retried(answer: Answer, error_number: int) -> None:
    unit = FakeUnit(answer)
    error = error_of(unit.run(Transfer))
    assert error.errno == error_number and not isinstance(error, PathUnusable)
    assert "READ of 1024 bytes at 2048 on LUN 0 failed" in str(error)
    assert len(unit.link.sent) == 1 and not unit.link.timers


def test_a_path_that_cannot_is_told_apart() -> None:
    assert isinstance(error_of(FakeUnit(check(2, 0x04, 0x0B)).run(Transfer)), PathUnusable)


def test_a_lost_session_ends_the_request_with_that_error() -> None:
    unit = FakeUnit()
    gone = PathLost("gone")
    unit.link.lose(gone)
    assert unit.run(Transfer).error is gone


def test_a_lost_session_ends_a_request_that_waits_for_its_retry() -> None:
    unit = FakeUnit(BUSY)
    request = unit.run(Transfer)
    gone = PathLost("gone")
    unit.link.lose(gone)
    assert not request.finished
    unit.link.elapse()
    assert request.error is gone


def test_an_attention_is_announced_and_the_command_sent_again_at_once() -> None:
    unit = FakeUnit(attention(0x2A, 0x09), attention(0x29, 0x00))
    assert unit.run(Transfer).error is None
    assert unit.announced == [Attention.CAPACITY_CHANGED, Attention.RESET]
    assert unit.link.sent == [READ_2] * 3 and not unit.link.timers


def test_attentions_without_end_fail() -> None:
    unit = FakeUnit(*[attention(0x29, 0x00)] * (ATTENTION_LIMIT + 5))
    assert error_of(unit.run(Transfer)).errno == errno.EIO
    assert len(unit.link.sent) == ATTENTION_LIMIT + 1


@pytest.mark.parametrize("answer", [BUSY, (0x28, b"", b""), check(2, 0x04, 0x01), check(11, 0x47, 0x05)])
def test_a_busy_unit_is_given_growing_pauses_and_then_up(answer: Answer) -> None:
    unit = FakeUnit(*[answer] * 100)
    request = unit.run(Transfer)
    pauses = []
    while unit.link.timers:
        assert not request.finished
        pauses.append(unit.link.elapse())
    assert tuple(pauses) == BACK_OFF and list(BACK_OFF) == sorted(BACK_OFF)
    assert error_of(request).errno in (errno.EBUSY, errno.EIO)


def test_a_unit_that_recovers_is_forgiven() -> None:
    unit = FakeUnit(BUSY, attention(0x29, 0x00), BUSY)
    request = unit.run(Transfer)
    assert [unit.link.elapse(), unit.link.elapse()] == list(BACK_OFF[:2])
    assert request.error is None and request.data is not None and bytes(request.data[:1]) == b"\x04"


def test_synchronize_is_done_where_there_is_no_cache() -> None:
    assert FakeUnit(UNKNOWN_COMMAND).run(Synchronize).error is None
    assert error_of(FakeUnit(UNKNOWN_FIELD).run(Synchronize)).errno == errno.EREMOTEIO
    assert error_of(FakeUnit(check(3, 0x0C, 0)).run(Synchronize)).errno == errno.EIO


def test_synchronize_tells_what_was_lost() -> None:
    unit = FakeUnit(GOOD)
    unit.lost = broken()
    assert unit.run(Synchronize).error is unit.lost


@pytest.mark.parametrize(("answer", "forever"), [(UNKNOWN_COMMAND, True), (UNKNOWN_FIELD, False)])
def test_write_same_that_is_unknown_is_done_otherwise(answer: Answer, forever: bool) -> None:
    unit = FakeUnit(answer)
    request = unit.run(WriteSame)
    assert unit.refused == [(READ_2, forever)] and not request.finished


def test_write_same_that_fails_fails() -> None:
    unit = FakeUnit(check(7, 0x27, 0x07))
    assert error_of(unit.run(WriteSame)).errno == errno.ENOSPC
    assert not unit.refused


def test_mode_sense_hands_over_what_came() -> None:
    unit = FakeUnit((0, b"", b"mode"))
    unit.run(ModeSense)
    assert unit.modes == [b"mode"]


@pytest.mark.parametrize("answer", [UNKNOWN_FIELD, check(2, 0x04, 0x0B)])
def test_mode_sense_that_fails_says_so(answer: Answer) -> None:
    unit = FakeUnit(answer)
    unit.run(ModeSense)
    assert unit.modes == [None]


def test_mode_sense_sent_again_knows_of_what_made_it_necessary() -> None:
    unit = FakeUnit(attention(0x2A, 0x01), (0, b"", b"mode"))
    unit.run(ModeSense)
    assert (unit.asked, unit.modes) == (1, [b"mode"])


def test_a_full_task_set_is_told_and_a_busy_unit_is_not() -> None:
    unit = FakeUnit((0x28, b"", b""), BUSY)
    request = unit.run(Transfer)
    unit.link.elapse()
    assert unit.fulls == 1
    unit.link.elapse()
    assert unit.fulls == 1 and request.error is None
