"""The session against a target spoken by hand: what goes out, what comes of each answer, and what it refuses to believe."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isblk.errors import DigestError, PathLost, ProtocolError, RequestFailed
from isblk.iscsi.pdu import Attribute, LogoutReason, TaskManagement
from isblk.iscsi.session import _HANDLERS, Session, State
from isblk.iscsi.task import AsyncMessage, Exchange, Task
from support.scripts import LUN_1, NO_TAG, READ_CDB, WRITE_CDB, Script, Sent, pdu_bytes, target_bhs, words

LAST = 2**32 - 1
UNDERFLOW, OVERFLOW = 0x02, 0x04
CHECK_CONDITION = 2
SENSE = bytes.fromhex("700005000000000a00000000200000000000")
UNSOLICITED = {"initial_r2t": False, "immediate_data": False}


@pytest.fixture(autouse=True, params=["run", "deliver"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken in a run must mean what it means when it is delivered."""
    monkeypatch.setattr(Script, "runs", request.param == "run")


def one(script: Script) -> Sent:
    (sent,) = script.said()
    return sent


def patterned(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def refused(script: Script, *pdus: bytes, match: str = "") -> None:
    """The PDUs break the protocol; the session then ends, and with it everything open, exactly once."""
    open_tasks = script.session.tasks()
    with pytest.raises(ProtocolError, match=match) as caught:
        script.hear(*pdus)
    script.session.fail(caught.value)
    assert script.session.open_tasks == 0
    for task in open_tasks:
        assert script.finished.count(task) == 1


# ------------------------------------------------------------------------------------------------------------------- commands sent


def test_a_read_is_these_bytes() -> None:
    script = Script(cmd_sn=0x21, stat_sn=0x43)
    task = script.read(4096)
    expected = bytes.fromhex("01c1000000000000") + LUN_1 + words(task.itt, 4096, 0x21, 0x43) + READ_CDB + bytes(6)
    assert one(script).bhs == expected


def test_a_run_takes_the_answers_that_are_as_they_should_be_and_leaves_the_first_other_one() -> None:
    script = Script()
    read, write, strange = script.read(512), script.write(b"x" * 512), script.read(512)
    script.said()
    common = script.data_in(read.itt, b"r" * 512, status=0) + script.response(write.itt)
    others = script.nop_in(ttt=7) + script.response(strange.itt, CHECK_CONDITION, sense=SENSE)
    stream = memoryview(common + others)
    assert script.session.run(stream, 0, len(stream), 1 << 20) == len(common)
    assert script.finished == [read, write] and bytes(read.read_into or b"") == b"r" * 512
    assert script.session.run(stream, len(common), len(stream), 1 << 20) == len(common)
    script.hear(others)
    assert script.finished[2:] == [strange] and strange.status == CHECK_CONDITION


def test_a_run_ends_with_the_session() -> None:
    script = Script()
    first, second = script.command(), script.command()
    script.said()
    first.done = lambda _: script.session.fail(PathLost("the test has had enough"))
    answers = script.response(first.itt)
    stream = memoryview(answers + script.response(second.itt))
    assert script.session.run(stream, 0, len(stream), 1 << 20) == len(answers)
    assert isinstance(second.error, PathLost)


def test_a_run_believes_no_length_and_no_number() -> None:
    for change in ({"data_sn": 1}, {"offset": 4}, {"flags": 2, "residual": 1}):
        script = Script()
        task = script.read(512)
        script.said()
        stream = memoryview(script.data_in(task.itt, bytes(512), status=0, **change))
        assert script.session.run(stream, 0, len(stream), 1 << 20) == 0 and not script.finished
    script = Script()
    task = script.read(1024)
    script.said()
    stream = memoryview(script.data_in(task.itt, bytes(1024), status=0))
    assert script.session.run(stream, 0, len(stream), 1023) == 0, "longer than we declared"
    assert script.session.run(stream, 0, len(stream) - 1, 1 << 20) == 0, "not whole yet"
    script.session.wire.exp_stat_sn += 1
    assert script.session.run(stream, 0, len(stream), 1 << 20) == 0, "a duplicate"
    assert not script.finished


def test_a_command_without_data_has_neither_r_nor_w() -> None:
    script = Script()
    script.command(bytes(6))
    sent = one(script)
    assert sent.flags == 0x80 | Attribute.SIMPLE and sent.word(20) == 0


def test_a_write_with_immediate_data_is_these_bytes() -> None:
    script = Script(cmd_sn=3)
    task = script.write(b"abcde")
    (sent,) = script.said()
    assert sent.bhs == bytes.fromhex("01a1000000000005") + LUN_1 + words(task.itt, 5, 3, 1) + WRITE_CDB + bytes(6)
    assert sent.data == b"abcde"


def test_the_login_command_number_is_used_by_the_first_command_and_each_takes_the_next() -> None:
    script = Script(cmd_sn=LAST - 1)
    for _ in range(3):
        script.command()
    assert [sent.cmd_sn for sent in script.said()] == [LAST - 1, LAST, 0]


def test_tags_differ_and_step_over_open_ones_at_the_wrap() -> None:
    script = Script()
    first = script.command()
    script.session._next_itt = 0xC0000000 - 1
    tasks = [script.command() for _ in range(3)]
    assert [task.itt for task in (first, *tasks)] == [1, 0xBFFFFFFF, 0, 2]


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize(
    "length, ahs", [(16, ""), (17, "0002010010000000"), (20, "0005010010111213"), (32, "00110100" + bytes(range(16, 32)).hex())]
)
def test_a_long_cdb_goes_into_an_additional_header(digests: bool, length: int, ahs: str) -> None:
    script = Script(header_digest=digests, data_digest=digests)
    cdb = bytes(range(length))
    script.read(512, cdb=cdb)
    script.write(b"abcd", cdb=cdb)
    read, write = script.said()
    assert read.bhs[32:48] == write.bhs[32:48] == cdb[:16]
    assert read.ahs.hex() == write.ahs.hex() == ahs
    assert write.data == b"abcd"


def test_every_command_acknowledges_what_was_heard() -> None:
    script = Script(stat_sn=10)
    task = script.command()
    assert one(script).exp_stat_sn == 10
    script.hear(script.response(task.itt))
    script.command()
    assert one(script).exp_stat_sn == 11


# ------------------------------------------------------------------------------------------------------------------------ the window


def test_a_closed_window_holds_new_commands_back_in_order() -> None:
    script = Script(window=2)
    tasks = [script.command() for _ in range(5)]
    assert [sent.itt for sent in script.said()] == [tasks[0].itt, tasks[1].itt]
    assert script.session.open_tasks == 5
    script.max_cmd_sn += 2
    script.hear(script.nop_in())
    assert [sent.cmd_sn for sent in script.said()] == [3, 4]
    script.max_cmd_sn += 2
    script.hear(script.response(tasks[0].itt))
    assert [sent.cmd_sn for sent in script.said()] == [5]


def test_immediate_requests_pass_a_closed_window() -> None:
    script = Script(window=0)
    task = script.command()
    script.session.ping(script.answers.append)
    assert [sent.opcode for sent in script.said()] == [0]
    script.max_cmd_sn += 1
    script.hear(script.nop_in())
    assert one(script).itt == task.itt


def test_a_new_command_does_not_overtake_a_waiting_one() -> None:
    script = Script(window=1)
    script.command()
    waiting = script.command()
    script.session.wire.window.room = 5
    late = script.command()
    script.hear(script.nop_in())
    script.said()
    assert waiting.cmd_sn < late.cmd_sn


def test_a_finished_command_opens_the_window_for_one_that_its_callback_submits() -> None:
    script = Script(window=1)

    def again(task: Task) -> None:
        script.finished.append(task)
        script.command()

    script.session.submit(Task(LUN_1, bytes(6), done=again))
    first = one(script)
    script.exp_cmd_sn, script.max_cmd_sn = 2, 2
    script.hear(script.response(first.itt))
    assert one(script).cmd_sn == 2


def test_status_and_command_numbers_survive_their_wrap() -> None:
    script = Script(cmd_sn=LAST, stat_sn=LAST, window=1)
    for _ in range(3):
        task = script.command()
        script.said()
        script.exp_cmd_sn = script.max_cmd_sn = (script.exp_cmd_sn + 1) % 2**32
        script.hear(script.response(task.itt))
    assert len(script.finished) == 3 and script.session.wire.exp_stat_sn == 2


# ------------------------------------------------------------------------------------------------------------------------------ reads


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("digests", [False, True])
def test_data_lands_and_the_response_finishes(digests: bool, chunk: int) -> None:
    script = Script(header_digest=digests, data_digest=digests)
    memory = bytearray(1000)
    task = script.read(1000, memoryview(memory))
    data = patterned(1000)
    pieces = [script.data_in(task.itt, data[:500]), script.data_in(task.itt, data[500:], data_sn=1, offset=500, final=True)]
    script.hear(*pieces, script.response(task.itt), chunk=chunk)
    assert script.finished == [task] and (task.error, task.status, task.transferred, task.residual) == (None, 0, 1000, 0)
    assert memory == data


def test_a_status_may_come_with_the_last_data() -> None:
    script = Script()
    task = script.read(600)
    script.hear(script.data_in(task.itt, patterned(600), status=0))
    assert script.finished == [task] and task.transferred == 600 and script.session.wire.exp_stat_sn == 2


@pytest.mark.parametrize("status", [0, 8])
def test_a_status_may_come_with_no_data_at_all(status: int) -> None:
    script = Script()
    task = script.read(600)
    script.hear(script.data_in(task.itt, b"", status=status, flags=UNDERFLOW, residual=600))
    assert script.finished == [task] and (task.status, task.transferred, task.residual) == (status, 0, 600)


def test_data_without_status_leaves_stat_sn_alone() -> None:
    script = Script()
    task = script.read(600)
    script.hear(script.data_in(task.itt, patterned(600), final=True))
    assert not script.finished and script.session.wire.exp_stat_sn == 1


def test_the_acknowledge_bit_means_nothing_at_level_zero() -> None:
    script = Script()
    task = script.read(600)
    script.hear(script.data_in(task.itt, patterned(600), flags=0x40, final=True), script.response(task.itt))
    assert script.finished == [task] and len(script.said()) == 1


def test_answers_of_several_tasks_interleave() -> None:
    script = Script()
    one_, two = script.read(8), script.read(8)
    script.hear(
        script.data_in(one_.itt, b"AAAA"),
        script.data_in(two.itt, b"CCCC"),
        script.data_in(two.itt, b"DDDD", data_sn=1, offset=4, status=0),
        script.data_in(one_.itt, b"BBBB", data_sn=1, offset=4, status=0),
    )
    assert script.finished == [two, one_]
    assert (bytes(one_.read_into or b""), bytes(two.read_into or b"")) == (b"AAAABBBB", b"CCCCDDDD")


@pytest.mark.parametrize("digests", [False, True])
def test_a_large_data_in_lands_in_the_tasks_own_memory_and_is_not_copied_again(digests: bool) -> None:
    script = Script(header_digest=digests, data_digest=digests)
    memory = bytearray(200_000)
    task = script.read(100_000, memoryview(memory)[50_000:150_000])
    data = patterned(100_000)
    stream = script.data_in(task.itt, data, status=0)
    script.hear(stream[:5000])
    landing = script.framer.receive_buffer()
    assert landing.obj is memory, "the next bytes land in the caller's memory"
    head = 48 + (4 if digests else 0)
    assert memory[50_000 : 50_000 + 5000 - head] == data[: 5000 - head]
    script.hear(stream[5000:])
    assert task in script.finished and memory[50_000:150_000] == data
    assert not any(memory[:50_000]) and not any(memory[150_000:])


def test_the_memory_of_a_finished_read_is_not_held() -> None:
    class Memory(bytearray):
        pass

    script = Script()
    memory = Memory(100_000)
    gone = weakref.ref(memory)
    task = script.read(100_000, memoryview(memory))
    stream = script.data_in(task.itt, patterned(100_000), status=0)
    script.hear(stream[:5000])
    script.hear(stream[5000:])
    script.finished.clear()
    del task, memory
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda s, t: s.data_in(t.itt, b"aaaa", data_sn=1), "DataSN 1 for 0"),
        (lambda s, t: s.data_in(t.itt, b"aaaa", offset=4), "offset 4 for 0"),
        (lambda s, t: s.data_in(t.itt, b"aaaa") + s.data_in(t.itt, b"aaaa"), "DataSN 0 for 1"),
        (lambda s, t: s.data_in(t.itt, b"aaaa") + s.data_in(t.itt, b"aaaa", data_sn=2, offset=4), "DataSN 2 for 1"),
        (lambda s, t: s.data_in(t.itt, b"aaaa") + s.data_in(t.itt, b"bbbb", data_sn=1, offset=2), "offset 2 for 4"),
        (lambda s, t: s.data_in(t.itt, bytes(17)), "17 bytes to a command that asked for 16"),
        (lambda s, t: s.data_in(t.itt, bytes(16)) + s.data_in(t.itt, b"x", data_sn=1, offset=16), "17 bytes"),
        (lambda s, t: s.data_in(t.itt, bytes(16), offset=LAST), "offset"),
        (lambda s, t: s.data_in(t.itt + 1, bytes(16)), "which reads nothing"),
        (lambda s, t: s.data_in(NO_TAG, bytes(16)), "which reads nothing"),
        (lambda s, t: s.data_in(t.itt, bytes(16), flags=0x01), "without being final"),
        (lambda s, t: s.data_in(t.itt, bytes(100_000)), "100000 bytes to a command"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_data_that_was_not_asked_for_like_that_is_refused(build: Callable[[Script, Task], bytes], text: str, chunk: int) -> None:
    script = Script()
    task = script.read(16)
    with pytest.raises(ProtocolError, match=text) as caught:
        script.hear(build(script, task), chunk=chunk)
    script.session.fail(caught.value)
    assert script.finished == [task] and isinstance(task.error, PathLost)


def test_a_whole_data_in_that_comes_twice_is_refused() -> None:
    script = Script()
    answer = script.data_in(script.read(16).itt, bytes(16))
    refused(script, answer, answer, match="DataSN 0 for 1")


def test_a_command_that_writes_is_sent_no_data() -> None:
    script = Script()
    refused(script, script.data_in(script.write(b"abcd").itt, b"abcd"), match="which reads nothing")


def test_a_damaged_data_in_is_not_delivered_and_ends_its_task() -> None:
    script = Script(header_digest=True, data_digest=True)
    task = script.read(8)
    stream = bytearray(script.data_in(task.itt, b"12345678", status=0))
    stream[-1] ^= 1
    with pytest.raises(DigestError) as caught:
        script.hear(bytes(stream))
    assert not any(task.read_into or b"x")
    script.session.fail(caught.value)
    assert isinstance(task.error, PathLost)


# ----------------------------------------------------------------------------------------------------------- residuals and statuses


@pytest.mark.parametrize(
    "came, flags, residual, expected",
    [
        (16, 0, 0, 0),
        (10, UNDERFLOW, 6, 6),
        (10, 0, 0, 6),
        (10, UNDERFLOW, 2, 6),
        (10, OVERFLOW, 100, 6),
        (16, OVERFLOW, 100, -100),
        (16, UNDERFLOW, 4, 4),
        (0, UNDERFLOW, 16, 16),
        (0, 0, 0, 16),
    ],
)
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_short_read_never_passes_as_a_whole_one(came: int, flags: int, residual: int, expected: int, collapsed: bool) -> None:
    script = Script()
    task = script.read(16)
    if collapsed:
        script.hear(script.data_in(task.itt, bytes(came), status=0, flags=flags, residual=residual))
    else:
        data = [script.data_in(task.itt, bytes(came), final=True)] if came else []
        script.hear(*data, script.response(task.itt, flags=flags, residual=residual))
    assert script.finished == [task] and (task.transferred, task.residual) == (came, expected)


@pytest.mark.parametrize("flags, residual, text", [(UNDERFLOW | OVERFLOW, 0, "at once"), (UNDERFLOW, 17, "residual of 17")])
@pytest.mark.parametrize("collapsed", [False, True])
def test_a_residual_that_cannot_be_ends_the_session_and_the_task_hears_of_it(flags: int, residual: int, text: str, collapsed: bool) -> None:
    script = Script()
    task = script.read(16)
    answer = (
        script.data_in(task.itt, bytes(16), status=0, flags=flags, residual=residual)
        if collapsed
        else script.response(task.itt, flags=flags, residual=residual)
    )
    refused(script, answer, match=text)
    assert script.finished == [task] and isinstance(task.error, PathLost)


def test_the_residual_of_a_data_in_without_status_means_nothing() -> None:
    script = Script()
    task = script.read(16)
    script.hear(script.data_in(task.itt, bytes(16), flags=UNDERFLOW, residual=99, final=True), script.response(task.itt))
    assert task.residual == 0 and task.error is None


@pytest.mark.parametrize(
    "segment, sense",
    [
        (b"", b""),
        (b"\0", b""),
        (b"\0\0", b""),
        (bytes([0, 18]) + SENSE, SENSE),
        (bytes([0, 18]) + SENSE + bytes(10), SENSE),
        (bytes([0, 18]) + SENSE[:7], SENSE[:7]),
        (bytes([0xFF, 0xFF]) + SENSE, SENSE),
        (bytes([0, 4]) + SENSE, SENSE[:4]),
    ],
)
def test_sense_is_as_long_as_both_its_length_and_its_bytes_allow(segment: bytes, sense: bytes) -> None:
    script = Script()
    task = script.command()
    script.hear(script.response(task.itt, CHECK_CONDITION, sense=segment))
    assert (task.status, task.sense, task.error) == (CHECK_CONDITION, sense, None)


def test_a_response_of_the_target_itself_makes_the_rest_of_it_meaningless() -> None:
    script = Script()
    task = script.read(16)
    script.hear(script.response(task.itt, CHECK_CONDITION, response=1, flags=UNDERFLOW | OVERFLOW, residual=99))
    assert script.finished == [task] and isinstance(task.error, RequestFailed) and "0x01" in str(task.error)


def test_a_duplicate_response_is_dropped() -> None:
    script = Script()
    task = script.command()
    answer = script.response(task.itt)
    script.hear(answer, answer)
    assert script.finished == [task]


def test_a_lost_status_is_noticed() -> None:
    script = Script()
    task = script.command()
    script.stat_sn += 1
    refused(script, script.response(task.itt), match="a status was lost")


def test_an_answer_to_an_unknown_tag_is_refused() -> None:
    script = Script()
    script.command()
    refused(script, script.response(0x4711), match="was not asked")


# ----------------------------------------------------------------------------------------------------------------------------- writes


@pytest.mark.parametrize("initial_r2t", [True, False])
@pytest.mark.parametrize("immediate_data", [True, False])
def test_the_four_ways_to_begin_a_write(initial_r2t: bool, immediate_data: bool) -> None:
    script = Script(
        initial_r2t=initial_r2t, immediate_data=immediate_data, first_burst_length=3000, target_max_recv_data_segment_length=1024
    )
    data = patterned(10_000)
    task = script.write(data)
    command, *outs = script.said()
    assert len(command.data) == (1024 if immediate_data else 0)
    assert command.final is (not outs)
    assert command.word(20) == 10_000 and command.flags & 0x20
    unasked = command.data + b"".join(out.data for out in outs)
    assert unasked == data[: 1024 * immediate_data if initial_r2t else 3000]
    assert all(out.ttt == NO_TAG for out in outs)
    at = len(unasked)
    script.hear(script.r2t(task.itt, at, 10_000 - at))
    answer = script.said()
    assert b"".join(out.data for out in answer) == data[at:]
    assert [out.final for out in answer] == [False] * (len(answer) - 1) + [True]
    assert {(out.ttt, out.lun, out.itt) for out in answer} == {(0x77, LUN_1, task.itt)}
    script.hear(script.response(task.itt))
    assert script.finished == [task] and (task.residual, task.transferred) == (0, 10_000)


def test_an_r2t_is_answered_with_exactly_what_it_asks_for_and_stat_sn_stays() -> None:
    script = Script(immediate_data=False)
    task = script.write(patterned(4096))
    script.said()
    script.hear(script.r2t(task.itt, 0, 1000, ttt=1), script.r2t(task.itt, 1000, 3096, ttt=2, r2t_sn=1))
    first, second = script.said()
    assert (first.ttt, first.word(40), first.data) == (1, 0, patterned(4096)[:1000])
    assert (second.ttt, second.word(40), second.data) == (2, 1000, patterned(4096)[1000:])
    assert script.session.wire.exp_stat_sn == 1


@pytest.mark.parametrize(
    "build, text",
    [
        (lambda s, t: s.r2t(t.itt, 0, 0), "burst of 0 bytes"),
        (lambda s, t: s.r2t(t.itt, 0, 2049), "burst of 2049 bytes where 1 to 2048"),
        (lambda s, t: s.r2t(t.itt, 0, LAST), "burst of"),
        (lambda s, t: s.r2t(t.itt, 0, 512, ttt=NO_TAG), "burst"),
        (lambda s, t: s.r2t(t.itt, 512, 512), "out of order"),
        (lambda s, t: s.r2t(t.itt, 0, 512, r2t_sn=1), "out of order"),
        (lambda s, t: s.r2t(t.itt, 0, 512) + s.r2t(t.itt, 0, 512), "out of order"),
        (lambda s, t: s.r2t(t.itt, 0, 512) + s.r2t(t.itt, 0, 512, r2t_sn=1), "out of order"),
        (lambda s, t: s.r2t(t.itt, 0, 2048) + s.r2t(t.itt, 2048, 2048, r2t_sn=1), "out of order"),
        (lambda s, t: s.r2t(t.itt + 9, 0, 512), "writes nothing"),
    ],
)  # fmt: skip
def test_an_r2t_that_asks_for_what_it_may_not_have_is_refused(build: Callable[[Script, Task], bytes], text: str) -> None:
    script = Script(immediate_data=False, max_burst_length=2048)
    task = script.write(patterned(4000))
    refused(script, build(script, task), match=text)


def test_a_read_is_asked_for_no_data() -> None:
    script = Script()
    refused(script, script.r2t(script.read(512).itt, 0, 512), match="writes nothing")


def test_a_good_write_whose_data_was_not_all_asked_for_is_a_short_one() -> None:
    script = Script(immediate_data=False)
    task = script.write(patterned(4096))
    script.hear(script.r2t(task.itt, 0, 1024))
    script.said()
    script.hear(script.response(task.itt))
    script.said()
    assert script.finished == [task] and (task.transferred, task.residual) == (1024, 3072)


def test_after_its_answer_a_write_is_asked_for_nothing_more() -> None:
    script = Script(immediate_data=False)
    task = script.write(patterned(4096))
    refused(script, script.response(task.itt, CHECK_CONDITION), script.r2t(task.itt, 0, 512), match="writes nothing")
    assert script.finished == [task] and task.status == CHECK_CONDITION


def test_write_payload_is_the_callers_memory_until_done() -> None:
    script = Script(**UNSOLICITED)
    memory = bytearray(patterned(20_000))
    script.write(memoryview(memory))
    lent = sum(len(piece) for piece in script.session.outgoing() if isinstance(piece, memoryview) and piece.obj is memory)
    assert lent == 20_000


def test_a_write_answered_with_data_still_queued_is_done_only_when_that_was_sent() -> None:
    script = Script(**UNSOLICITED)
    task = script.write(patterned(20_000))
    script.hear(script.response(task.itt, CHECK_CONDITION))
    assert not script.finished and script.session.open_tasks == 1
    assert len(script.said()) == 4
    assert not script.finished, "handed over is not sent"
    assert script.said() == []
    assert script.finished == [task] and task.status == CHECK_CONDITION and script.session.open_tasks == 0


def test_a_write_answered_while_its_data_is_on_the_way_is_done_when_the_owner_asks_for_more() -> None:
    script = Script(**UNSOLICITED)
    task = script.write(patterned(20_000))
    script.said()
    script.hear(script.response(task.itt, CHECK_CONDITION))
    other = script.command()
    assert not script.finished
    assert one(script).itt == other.itt
    assert not script.finished, "nothing tells whether the data behind the first answer was sent before this"
    script.said()
    assert script.finished == [task]


def test_a_write_answered_early_keeps_its_answer_when_the_session_fails() -> None:
    script = Script(**UNSOLICITED)
    task = script.write(patterned(20_000))
    script.hear(script.response(task.itt, CHECK_CONDITION))
    script.session.fail(PathLost("gone"))
    assert script.finished == [task] and task.error is None and task.status == CHECK_CONDITION


def test_answers_are_told_in_the_order_they_came() -> None:
    """A unit attention that a write was told concerns the read and the flush that were answered behind it."""
    script = Script(**UNSOLICITED)
    write, read, flush = script.write(patterned(20_000)), script.read(512), script.command()
    script.hear(
        script.response(write.itt, CHECK_CONDITION), script.data_in(read.itt, bytes(512), status=0, final=True), script.response(flush.itt)
    )
    assert not script.finished and script.session.tasks() == [] and script.session.unfinished() == [write, read, flush]
    behind: list[Task] = []
    write.done = lambda task: (script.finished.append(task), behind.extend(script.session.unfinished()))[0]
    script.said()
    script.said()
    assert script.finished == [write, read, flush] and script.session.open_tasks == 0
    assert behind == [read, flush], "whoever acts on the first can still tell which come behind it"


def test_a_good_write_is_done_within_the_delivery_of_its_answer() -> None:
    script = Script()
    task = script.write(b"abcd")
    script.hear(script.response(task.itt))
    assert script.finished == [task]


# --------------------------------------------------------------------------------------------------------------- task management


def abort(script: Script, task: Task) -> Sent:
    script.session.manage(TaskManagement.ABORT_TASK, script.answers.append, task=task)
    return script.said()[-1]


def test_an_aborted_task_finishes_before_whoever_asked_is_told() -> None:
    script = Script()
    order: list[str] = []
    task = Task(LUN_1, READ_CDB, memoryview(bytearray(8)), done=lambda _task: order.append("task"))
    script.session.submit(task)
    script.session.manage(TaskManagement.ABORT_TASK, lambda _exchange: order.append("abort"), task=task)
    script.hear(script.managed(script.said()[-1].itt))
    assert order == ["task", "abort"] and isinstance(task.error, RequestFailed)


@pytest.mark.parametrize("response, ended", [(0, True), (1, True), (5, False), (255, False)])
def test_only_an_abort_that_was_done_ends_its_task(response: int, ended: bool) -> None:
    script = Script()
    task = script.read(8)
    script.hear(script.managed(abort(script, task).itt, response))
    assert (task in script.finished) is ended
    assert script.answers[0].response == response


def test_an_answer_may_come_between_an_abort_and_its_response() -> None:
    script = Script()
    task = script.read(8)
    itt = abort(script, task).itt
    script.hear(script.data_in(task.itt, b"12345678", status=0), script.managed(itt, 1))
    assert script.finished == [task] and task.error is None and len(script.answers) == 1


def test_data_is_still_given_to_a_target_that_asks_for_it_between_abort_and_response() -> None:
    script = Script(immediate_data=False)
    task = script.write(patterned(1024))
    itt = abort(script, task).itt
    script.hear(script.r2t(task.itt, 0, 1024))
    assert one(script).data == patterned(1024)
    script.hear(script.managed(itt))
    assert script.finished == [task]


def test_a_tag_is_not_used_again_before_its_abort_is_answered() -> None:
    script = Script()
    task = script.command()
    itt = abort(script, task).itt
    script.session._next_itt = task.itt
    assert script.command().itt != task.itt
    script.hear(script.managed(itt))


def test_a_waiting_task_is_abandoned_without_a_word_to_the_target() -> None:
    script = Script(window=0)
    task = script.command()
    script.session.manage(TaskManagement.ABORT_TASK, script.answers.append, task=task)
    assert script.said() == [] and script.finished == [task] and isinstance(task.error, RequestFailed)
    assert script.answers[0].response == 0 and script.session.open_tasks == 0


def test_the_abort_of_a_finished_task_is_done_at_once() -> None:
    script = Script()
    task = script.command()
    script.hear(script.response(task.itt))
    script.said()
    script.session.manage(TaskManagement.ABORT_TASK, script.answers.append, task=task)
    assert script.said() == [] and script.finished == [task] and script.answers[0].response == 0


OTHER_LUN = bytes.fromhex("0002000000000000")


@pytest.mark.parametrize(
    "function, here, there",
    [
        (TaskManagement.ABORT_TASK_SET, True, False),
        (TaskManagement.CLEAR_TASK_SET, True, False),
        (TaskManagement.LOGICAL_UNIT_RESET, True, False),
        (TaskManagement.CLEAR_ACA, False, False),
        (TaskManagement.TARGET_WARM_RESET, True, True),
        (TaskManagement.TARGET_COLD_RESET, True, True),
    ],
)
def test_a_function_ends_what_it_covers(function: TaskManagement, here: bool, there: bool) -> None:
    script = Script()
    task, other = script.command(), script.command(lun=OTHER_LUN)
    script.session.manage(function, script.answers.append, lun=LUN_1)
    script.hear(script.managed(script.said()[-1].itt))
    assert [task in script.finished, other in script.finished] == [here, there]


def test_a_reset_does_not_end_commands_sent_behind_it() -> None:
    script = Script(cmd_sn=LAST)
    before = script.command()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    itt = script.said()[-1].itt
    behind = script.command()
    script.hear(script.managed(itt))
    assert script.finished == [before]
    script.hear(script.response(behind.itt))
    assert script.finished == [before, behind] and behind.error is None


def test_a_refused_reset_ends_nothing() -> None:
    script = Script()
    script.command()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.hear(script.managed(script.said()[-1].itt, 2))
    assert not script.finished and script.answers[0].response == 2


def test_a_callback_of_a_reset_may_end_the_session() -> None:
    script = Script()

    def enough(task: Task) -> None:
        script.finished.append(task)
        script.session.fail(PathLost("enough"))

    tasks = [Task(LUN_1, bytes(6), done=enough) for _ in range(3)]
    for task in tasks:
        script.session.submit(task)
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.hear(script.managed(script.said()[-1].itt))
    assert script.finished == tasks and len(script.answers) == 1


def test_a_callback_of_a_reset_may_submit_to_the_same_unit() -> None:
    script = Script()
    again: list[Task] = []
    for _ in range(2):
        script.session.submit(Task(LUN_1, bytes(6), done=lambda _task: again.append(script.command())))
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.hear(script.managed(script.said()[-1].itt))
    assert len(again) == 2 and not script.finished and len(script.said()) == 2


# ------------------------------------------------------------------------------------------------------------------------- rejects


def test_a_rejected_command_fails_and_its_place_is_plugged() -> None:
    script = Script(cmd_sn=5)
    task = script.command()
    sent = one(script)
    script.hear(script.reject(0x09, sent.bhs))
    assert script.finished == [task] and isinstance(task.error, RequestFailed) and "0x09" in str(task.error)
    plug = one(script)
    assert (plug.opcode, plug.immediate, plug.cmd_sn, plug.ttt) == (0, False, 5, NO_TAG)
    script.exp_cmd_sn = 6
    script.hear(script.nop_in(plug.itt))


def test_every_hole_is_plugged_when_several_commands_are_rejected() -> None:
    script = Script(cmd_sn=LAST)
    tasks = [script.command() for _ in range(3)]
    commands = script.said()
    script.hear(*(script.reject(0x09, command.bhs) for command in commands))
    assert [plug.cmd_sn for plug in script.said()] == [LAST, 0, 1]
    assert script.finished == tasks


def test_a_command_that_the_target_counted_before_it_rejected_it_leaves_no_hole() -> None:
    script = Script()
    script.command()
    sent = one(script)
    script.exp_cmd_sn = 2
    script.hear(script.reject(0x0A, sent.bhs))
    assert len(script.finished) == 1 and script.said() == []


def test_a_rejected_data_out_leaves_its_task_to_its_own_answer() -> None:
    script = Script(immediate_data=False)
    task = script.write(patterned(1000))
    script.said()
    script.hear(script.r2t(task.itt, 0, 1000))
    script.hear(script.reject(0x02, one(script).bhs))
    assert not script.finished
    script.hear(script.response(task.itt, CHECK_CONDITION))
    script.said()
    assert script.finished == [task] and task.error is None


@pytest.mark.parametrize("reason", [0x04, 0x09, 0x0C])
def test_a_rejected_exchange_tells_whoever_asked(reason: int) -> None:
    script = Script()
    script.session.text(b"SendTargets=All\0", script.answers.append)
    script.hear(script.reject(reason, one(script).bhs))
    assert isinstance(script.answers[0].error, RequestFailed) and f"0x{reason:02x}" in str(script.answers[0].error)
    assert script.session.state is State.LOGGED_IN


def test_a_rejected_pong_is_no_matter() -> None:
    script = Script()
    script.hear(script.nop_in(ttt=1))
    script.hear(script.reject(0x09, one(script).bhs))
    assert script.session.wire.exp_stat_sn == 2


def test_a_reject_that_quotes_a_stranger_is_no_matter() -> None:
    script = Script()
    task = script.command()
    script.hear(script.reject(0x09, bytes([0xC1]) + bytes([255]) * 47), script.response(task.itt))
    assert script.finished == [task]


@pytest.mark.parametrize("quoted", [b"", bytes(47)])
def test_a_reject_must_quote_a_whole_header(quoted: bytes) -> None:
    script = Script()
    refused(script, script.reject(0x09, quoted), match="without quoting")


def test_a_duplicate_reject_is_dropped() -> None:
    script = Script()
    script.command()
    answer = script.reject(0x09, one(script).bhs)
    script.hear(answer, answer)
    assert len(script.finished) == 1


# ------------------------------------------------------------------------------------------------------------------- async messages


def test_an_async_message_reaches_the_owner_as_it_came() -> None:
    script = Script()
    heard: list[AsyncMessage] = []
    script.session.listen(heard.append)
    script.hear(
        script.asynchronous(1, parameters=(0, 0, 5)),
        script.asynchronous(2, parameters=(1, 2, 3)),
        script.asynchronous(255, vendor=7, data=b"whatever"),
        script.asynchronous(0, data=bytes([0, 18]) + SENSE, lun=LUN_1),
        script.asynchronous(0, data=b"\0"),
    )
    nowhere = bytes(8)
    assert heard == [
        AsyncMessage(1, 0, (0, 0, 5), nowhere, b""),
        AsyncMessage(2, 0, (1, 2, 3), nowhere, b""),
        AsyncMessage(255, 7, (0, 0, 0), nowhere, b""),
        AsyncMessage(0, 0, (0, 0, 0), LUN_1, SENSE),
        AsyncMessage(0, 0, (0, 0, 0), nowhere, b""),
    ]
    assert script.session.wire.exp_stat_sn == 6


def test_async_messages_wait_for_whoever_listens_and_duplicates_are_dropped() -> None:
    """One may come in one piece with the login's last answer: a request to log out that nobody heard ends in a lost session."""
    script = Script()
    message = script.asynchronous(1)
    script.hear(message)
    heard: list[AsyncMessage] = []
    script.session.listen(heard.append)
    assert [one.event for one in heard] == [1]
    script.hear(message)
    assert len(heard) == 1 and script.session.wire.exp_stat_sn == 2


# ----------------------------------------------------------------------------------------------------------------- states and endings


@pytest.mark.parametrize("opcode", range(64))
@pytest.mark.parametrize("discovery", [False, True])
def test_an_opcode_that_has_no_business_here_is_refused(opcode: int, discovery: bool) -> None:
    script = Script(discovery=discovery)
    legal = {0x20, 0x32, 0x3F, 0x24} | (set() if discovery else {0x21, 0x22, 0x25, 0x31})
    assert set(_HANDLERS["discovery" if discovery else "normal", State.LOGGED_IN]) == legal
    if opcode not in legal:
        with pytest.raises(ProtocolError, match="that is logged in"):
            script.hear(pdu_bytes(target_bhs(opcode)))


def test_reserved_bits_of_a_targets_opcode_are_ignored() -> None:
    script = Script()
    task = script.command()
    answer = bytearray(script.response(task.itt))
    answer[0] |= 0xC0
    script.hear(bytes(answer))
    assert script.finished == [task]


def test_tasks_of_before_still_finish_while_logging_out() -> None:
    script = Script(window=1)
    task = script.read(8)
    waiting = script.command()
    script.session.logout(script.answers.append)
    itt = script.said()[-1].itt
    script.max_cmd_sn += 5
    script.hear(script.data_in(task.itt, b"12345678", status=0))
    assert script.finished == [task] and script.said() == [], "nothing new goes out behind a logout"
    script.hear(script.logged_out(itt))
    script.session.fail(PathLost("logged out"))
    assert script.finished == [task, waiting] and isinstance(waiting.error, PathLost)


def test_a_logout_response_that_was_not_asked_for_is_refused() -> None:
    script = Script()
    refused(script, script.logged_out(1), match="Logout Response")


@pytest.mark.parametrize("discovery", [False, True])
def test_a_discovery_session_logs_out_too(discovery: bool) -> None:
    script = Script(discovery=discovery)
    script.session.logout(script.answers.append, LogoutReason.CLOSE_SESSION)
    script.hear(script.logged_out(one(script).itt))
    assert len(script.answers) == 1


def test_large_data_to_a_discovery_session_is_refused() -> None:
    script = Script(discovery=True)
    with pytest.raises(ProtocolError, match="Data-In PDU to a discovery session"):
        script.hear(script.data_in(1, bytes(100_000)), chunk=1000)


def test_a_failure_ends_everything_once_and_is_final() -> None:
    script = Script(window=1)
    sent, waiting = script.read(8), script.write(b"abcd")
    assert len(script.said()) == 1
    script.session.ping(script.answers.append)
    error = PathLost("the cable is cut")
    script.session.fail(error)
    script.session.fail(PathLost("again"))
    assert script.finished == [sent, waiting]
    assert sent.error is script.answers[0].error is error and error.sent
    assert script.session.error is error and script.said() == []
    late = script.command()
    script.session.ping(script.answers.append)
    assert script.answers[1].error is error
    for unsent in (waiting, late):
        assert isinstance(unsent.error, PathLost) and not unsent.error.sent and "the cable is cut" in str(unsent.error)
    with pytest.raises(ProtocolError, match="that is ended"):
        script.hear(script.response(sent.itt))


@pytest.mark.parametrize("digests", [False, True])
def test_which_tasks_were_never_given_to_the_network(digests: bool) -> None:
    """By what the owner has not begun to send, and what is still queued here."""
    script = Script(header_digest=digests, data_digest=digests, initial_r2t=False, immediate_data=True, first_burst_length=8192)
    tasks = [script.write(bytes([1]) * 4096), script.read(8), script.write(bytes([1]) * 512), script.command()]
    handed = script.session.outgoing()
    queued = script.write(bytes(4))
    ours = {
        int.from_bytes(bytes(buffer[16:20]), "big"): at for at, buffer in enumerate(handed) if len(buffer) >= 48 and buffer[0] & 0x3F == 1
    }
    begun = ours[tasks[2].itt]
    # The owner was cut off within the header of the third.
    script.session.fail(PathLost("cut"), [memoryview(handed[begun])[5:], *handed[begun + 1 :]])
    assert [isinstance(task.error, PathLost) and task.error.sent for task in [*tasks, queued]] == [True, True, True, False, False]


def test_a_draining_session_finishes_what_it_has_and_takes_no_more() -> None:
    script = Script()
    task = script.command()
    script.said()
    script.session.drain()
    late = script.command()
    assert isinstance(late.error, PathLost) and not late.error.sent and task.error is None
    assert script.session.open_tasks == 1
    script.hear(script.response(task.itt))
    assert script.finished[-1] is task and task.error is None
    script.session.logout(script.answers.append)
    assert [sent.opcode for sent in script.said()] == [0x06]


def test_any_failure_reaches_tasks_as_a_lost_path() -> None:
    script = Script()
    task = script.command()
    script.session.fail(ProtocolError("it talks nonsense"))
    assert isinstance(task.error, PathLost) and "nonsense" in str(task.error)


def test_a_callback_that_submits_during_a_failure_is_told_at_once() -> None:
    script = Script()
    again: list[Task] = []
    for _ in range(3):
        script.session.submit(Task(LUN_1, bytes(6), done=lambda _task: again.append(script.command())))
    script.session.fail(PathLost("gone"))
    assert [type(task.error) for task in again] == [PathLost] * 3 and script.said() == []


def test_a_callback_that_raises_during_a_failure_leaves_no_other_task_waiting() -> None:
    script = Script()

    def bad(_task: Task) -> None:
        raise RuntimeError("a bug above")

    first = script.command()
    script.session.submit(Task(LUN_1, bytes(6), done=bad))
    last = script.command()
    script.session.ping(script.answers.append)
    with pytest.raises(RuntimeError):
        script.session.fail(PathLost("gone"))
    assert script.finished == [first, last] and len(script.answers) == 1


def test_a_session_may_be_failed_from_within_a_delivery() -> None:
    script = Script()
    task = Task(LUN_1, bytes(6), done=lambda _task: script.session.fail(PathLost("enough")))
    script.session.submit(task)
    other = script.read(8)
    script.hear(script.response(task.itt))
    assert script.finished == [other] and isinstance(other.error, PathLost)


def test_a_callback_may_submit_from_within_done_many_times_without_growing_the_stack() -> None:
    script = Script(window=1)
    count = 0

    def again(_task: Task) -> None:
        nonlocal count
        count += 1
        script.session.submit(Task(LUN_1, bytes(6), done=again))

    script.session.submit(Task(LUN_1, bytes(6), done=again))
    for _ in range(3000):
        (sent,) = script.said()
        script.exp_cmd_sn = script.max_cmd_sn = sent.cmd_sn + 1
        script.hear(script.response(sent.itt))
    assert count == 3000


def test_a_trace_hears_commands_and_answers() -> None:
    script = Script()
    heard: list[str] = []
    script.session.wire.trace = lambda direction, text: heard.append(f"{direction} {text.split()[0]}")
    script.hear(script.response(script.read(0).itt), script.data_in(script.read(4).itt, b"1234", status=0))
    assert heard == ["-> SCSI", "-> SCSI", "<- SCSI", "<- Data-In"]


def test_a_session_tells_its_state() -> None:
    script = Script(window=1)
    script.command()
    script.command()
    assert repr(script.session).startswith("<Session logged in tasks=1 waiting=1 <CommandWindow")


def test_unfinished_tasks_are_listed_oldest_first_with_the_epoch_of_their_submission() -> None:
    script = Script(window=2)
    script.session.epoch = 5
    first = script.command()
    script.session.epoch = 6
    rest = [script.command(), script.command()]
    assert script.session.tasks() == [first, *rest]
    assert [task.epoch for task in script.session.tasks()] == [5, 6, 6]


# ------------------------------------------------------------------------------------------------------------------- hostile bytes

target_opcodes = st.sampled_from([0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F])
small = st.one_of(st.integers(0, 6), st.integers(0, LAST), st.sampled_from([NO_TAG, 0xC0000000, 0xC0000001]))
hostile_pdu = st.builds(
    lambda opcode, flags, second, third, itt, tail, data: pdu_bytes(
        target_bhs(opcode, flags, second, third, itt=itt, tail=words(*tail)), data
    ),
    target_opcodes,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    small,
    st.tuples(small, small, small, small, small, small, small),
    st.one_of(st.binary(max_size=80), st.sampled_from([bytes(512), bytes(40_000)])),
)


def busy() -> tuple[Session, Script, list[Exchange]]:
    script = Script(window=4, immediate_data=False)
    for _ in range(2):
        script.read(512)
        script.write(bytes(2048))
    script.command()
    script.session.ping(script.answers.append)
    script.session.text(b"SendTargets=All\0", script.answers.append)
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.said()
    return script.session, script, script.answers


@settings(max_examples=200)
@given(st.lists(hostile_pdu, max_size=8), st.integers(1, 3000))
def test_whatever_a_target_says_raises_protocol_errors_only_and_every_task_ends_once(pdus: list[bytes], chunk: int) -> None:
    session, script, answers = busy()
    tasks = session.tasks()
    try:
        script.hear(*pdus, chunk=chunk)
        script.said()
    except ProtocolError as error:
        session.fail(error)
    else:
        session.fail(PathLost("the end"))
    assert sorted(map(id, script.finished)) == sorted(map(id, tasks))
    assert len(answers) == 3
    assert session.open_tasks == 0
