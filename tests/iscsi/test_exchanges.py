"""Requests that are no SCSI commands: ping, task management, text, logout; and answers that nobody should believe."""

from __future__ import annotations

import pytest

from isblk.errors import IsblkError, PathLost, ProtocolError, RequestFailed
from isblk.iscsi import exchanges as module
from isblk.iscsi.exchanges import FIRST_TAG, PING_ECHO, TEXT_ANSWERS, UNSENT_PONGS, Exchanges
from isblk.iscsi.pdu import LogoutReason, TaskManagement
from isblk.iscsi.session import State
from isblk.iscsi.task import Exchange, Task
from isblk.iscsi.wire import Wire
from support.scripts import LUN_1, NO_TAG, Script, Sent, login_result, taken_apart, words


def only(script: Script) -> Sent:
    (sent,) = script.said()
    return sent


# ------------------------------------------------------------------------------------------------------------------------------ NOP


def test_a_ping_is_these_bytes() -> None:
    script = Script(cmd_sn=7, stat_sn=3)
    script.session.ping(script.answers.append)
    assert only(script).bhs == bytes.fromhex("4080000000000000") + bytes(8) + words(FIRST_TAG, NO_TAG, 7, 3, 0, 0, 0, 0)


def test_the_answer_to_a_ping_is_told_once_and_advances_stat_sn() -> None:
    script = Script()
    script.session.ping(script.answers.append)
    script.hear(script.nop_in(only(script).itt))
    assert len(script.answers) == 1 and script.answers[0].error is None
    assert script.session.wire.exp_stat_sn == 2


def test_each_ping_has_a_tag_of_its_own_and_answers_may_come_in_any_order() -> None:
    script = Script()
    told: list[str] = []
    script.session.ping(lambda _exchange: told.append("first"))
    script.session.ping(lambda _exchange: told.append("second"))
    first, second = script.said()
    script.hear(script.nop_in(second.itt), script.nop_in(first.itt))
    assert told == ["second", "first"]


def test_a_ping_of_the_target_is_answered_with_its_tag_lun_and_data() -> None:
    script = Script(cmd_sn=9)
    script.hear(script.nop_in(ttt=0x1234, data=b"are you there", lun=LUN_1))
    pong = only(script)
    assert (pong.opcode, pong.immediate, pong.final, pong.itt, pong.ttt, pong.lun) == (0, True, True, NO_TAG, 0x1234, LUN_1)
    assert (pong.data, pong.cmd_sn, pong.exp_stat_sn) == (b"are you there", 9, 1)


def test_a_ping_of_the_target_does_not_advance_stat_sn() -> None:
    script = Script()
    script.hear(script.nop_in(ttt=1), script.nop_in(ttt=2), script.nop_in())
    assert script.session.wire.exp_stat_sn == 1
    assert [pong.ttt for pong in script.said()] == [1, 2]


@pytest.mark.parametrize("segment, echoed", [(512, 512), (65536, PING_ECHO)])
def test_ping_data_is_echoed_up_to_what_the_target_takes(segment: int, echoed: int) -> None:
    script = Script(target_max_recv_data_segment_length=segment)
    script.hear(script.nop_in(ttt=1, data=bytes(range(250)) * 40))
    assert only(script).data == (bytes(range(250)) * 40)[:echoed]


def test_a_bare_nop_in_is_an_update_and_is_not_answered() -> None:
    script = Script()
    script.max_cmd_sn = 99
    script.hear(script.nop_in())
    assert script.said() == [] and script.session.wire.window.max_cmd_sn == 99


def test_pings_that_are_never_read_do_not_fill_the_memory() -> None:
    script = Script()
    script.hear(*(script.nop_in(ttt=1) for _ in range(UNSENT_PONGS)))
    with pytest.raises(ProtocolError, match="without reading"):
        script.hear(script.nop_in(ttt=1))


def test_pings_that_are_read_may_go_on_for_ever() -> None:
    script = Script()
    for turn in range(10 * UNSENT_PONGS):
        script.hear(script.nop_in(ttt=turn))
        assert only(script).ttt == turn


def test_a_ping_answered_by_another_kind_of_answer_is_an_error_that_still_tells_whoever_waits() -> None:
    script = Script()
    script.session.ping(script.answers.append)
    itt = only(script).itt
    with pytest.raises(ProtocolError, match="was not asked that"):
        script.hear(script.text(itt, b""))
    script.session.fail(PathLost("gone"))
    assert len(script.answers) == 1 and isinstance(script.answers[0].error, PathLost)


@pytest.mark.parametrize("kind", ["nop_in", "managed", "text", "logged_out"])
def test_an_answer_to_nothing_is_a_protocol_error(kind: str) -> None:
    script = Script()
    if kind == "logged_out":
        script.session.logout(script.answers.append)
    with pytest.raises(ProtocolError):
        script.hear(script.text(0xC0001000, b"") if kind == "text" else getattr(script, kind)(0xC0001000))


# ------------------------------------------------------------------------------------------------------------------ task management


def test_abort_task_is_these_bytes() -> None:
    script = Script(cmd_sn=0x10)
    task = script.read(512)
    script.said()
    script.session.manage(TaskManagement.ABORT_TASK, script.answers.append, task=task)
    assert only(script).bhs == bytes.fromhex("4281000000000000") + LUN_1 + words(FIRST_TAG, task.itt, 0x11, 1, 0x10, 0, 0, 0)


def test_a_function_on_a_unit_refers_to_no_task() -> None:
    script = Script()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    sent = only(script)
    assert (sent.flags, sent.lun, sent.word(20), sent.word(32)) == (0x85, LUN_1, NO_TAG, 0)


def test_the_response_code_is_told() -> None:
    script = Script()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.hear(script.managed(only(script).itt, 5))
    assert script.answers[0].response == 5


def test_a_duplicate_response_is_dropped() -> None:
    script = Script()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    answer = script.managed(only(script).itt)
    script.hear(answer, answer)
    assert len(script.answers) == 1


# ----------------------------------------------------------------------------------------------------------------------------- text


def ask(script: Script, data: bytes = b"SendTargets=All\0") -> int:
    script.session.text(data, script.answers.append)
    return only(script).itt


def test_a_text_request_is_these_bytes() -> None:
    script = Script(cmd_sn=5, discovery=True)
    script.session.text(b"SendTargets=All\0", script.answers.append)
    sent = only(script)
    assert sent.bhs == bytes.fromhex("4480000000000010") + bytes(8) + words(FIRST_TAG, NO_TAG, 5, 1, 0, 0, 0, 0)
    assert sent.data == b"SendTargets=All\0"


def test_a_whole_answer_is_told() -> None:
    script = Script()
    script.hear(script.text(ask(script), b"TargetName=iqn.x\0"))
    assert bytes(script.answers[0].text or b"") == b"TargetName=iqn.x\0"


@pytest.mark.parametrize("flags", [0x00, 0x40], ids=["by F=0", "by the C bit"])
def test_a_long_answer_is_asked_for_piece_by_piece(flags: int) -> None:
    script = Script()
    itt = ask(script)
    script.hear(script.text(itt, b"TargetNa", ttt=0x42, flags=flags, lun=LUN_1))
    more = only(script)
    assert (more.opcode, more.immediate, more.final, more.itt, more.ttt, more.lun) == (4, True, True, itt, 0x42, LUN_1)
    assert more.data == b"" and not script.answers
    script.hear(script.text(itt, b"me=iqn.x\0", ttt=0x43, flags=flags))
    assert only(script).ttt == 0x43
    script.hear(script.text(itt, b"TargetAddress=1\0"))
    assert [bytes(exchange.text or b"") for exchange in script.answers] == [b"TargetName=iqn.x\0TargetAddress=1\0"]


@pytest.mark.parametrize(
    "flags, ttt, words_of_it", [(0xC0, 5, "to be continued"), (0x00, NO_TAG, "no Target Transfer Tag"), (0x40, NO_TAG, "no Target")]
)
def test_a_text_answer_that_contradicts_itself_ends_the_session_and_the_wait(flags: int, ttt: int, words_of_it: str) -> None:
    script = Script()
    itt = ask(script)
    with pytest.raises(ProtocolError, match=words_of_it) as caught:
        script.hear(script.text(itt, b"x", ttt=ttt, flags=flags))
    script.session.fail(caught.value)
    assert [type(exchange.error) for exchange in script.answers] == [PathLost]


def test_an_answer_that_never_ends_in_empty_parts_is_given_up_and_the_waiter_told() -> None:
    script = Script()
    itt = ask(script)
    for _ in range(TEXT_ANSWERS):
        script.hear(script.text(itt, b"", ttt=1, flags=0))
        script.said()
    with pytest.raises(ProtocolError, match="does not end") as caught:
        script.hear(script.text(itt, b"", ttt=1, flags=0))
    script.session.fail(caught.value)
    assert len(script.answers) == 1 and script.answers[0].error is not None


@pytest.mark.source_form("replaces a constant that is compiled in")
def test_an_answer_that_never_ends_in_large_parts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXT_LIMIT", 100_000)
    script = Script()
    itt = ask(script)
    script.hear(script.text(itt, bytes(60_000), ttt=1, flags=0))
    with pytest.raises(ProtocolError, match="120000 bytes in 2 parts"):
        script.hear(script.text(itt, bytes(60_000), ttt=1, flags=0))


# --------------------------------------------------------------------------------------------------------------------------- logout


@pytest.mark.parametrize("reason", list(LogoutReason))
def test_a_logout_is_these_bytes(reason: LogoutReason) -> None:
    script = Script(cmd_sn=5)
    script.session.logout(script.answers.append, reason)
    flags = (0x80 | reason).to_bytes(1, "big")
    assert only(script).bhs == b"\x46" + flags + bytes(14) + words(FIRST_TAG, 0, 5, 1, 0, 0, 0, 0)


def test_a_logout_response_tells_its_code_and_times() -> None:
    script = Script()
    script.session.logout(script.answers.append)
    script.hear(script.logged_out(only(script).itt, 3, time2wait=7, time2retain=20))
    (exchange,) = script.answers
    assert (exchange.response, exchange.time2wait, exchange.time2retain, exchange.error) == (3, 7, 20, None)


def test_after_a_logout_nothing_new_is_asked() -> None:
    script = Script()
    script.session.logout(script.answers.append)
    script.said()
    script.session.ping(script.answers.append)
    script.session.text(b"a=b\0", script.answers.append)
    script.session.logout(script.answers.append)
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append)
    task = script.command()
    assert script.said() == []
    assert [type(exchange.error) for exchange in script.answers] == [PathLost] * 4
    assert isinstance(task.error, PathLost) and script.session.state is State.IN_LOGOUT


# ----------------------------------------------------------------------------------------------------------------- tags and endings


def test_tags_wrap_before_the_reserved_one_and_step_over_open_ones() -> None:
    wire = Wire(login_result())
    exchanges = Exchanges(wire, 8192)
    exchanges.ping(lambda _: None)
    exchanges._next_itt = NO_TAG - 1
    for _ in range(3):
        exchanges.ping(lambda _: None)
    tags = [sent.itt for sent in taken_apart(b"".join(bytes(piece) for piece in wire.out))]
    assert tags == [FIRST_TAG, NO_TAG - 1, FIRST_TAG + 1, FIRST_TAG + 2]


def test_a_failure_ends_every_exchange_in_order_even_when_a_callback_raises() -> None:
    exchanges = Exchanges(Wire(login_result()), 8192)
    told: list[tuple[int, IsblkError | None]] = []

    def bad(exchange: Exchange) -> None:
        told.append((1, exchange.error))
        raise RuntimeError("a bug above")

    exchanges.ping(bad)
    exchanges.ping(lambda exchange: told.append((2, exchange.error)))
    error = PathLost("gone")
    with pytest.raises(RuntimeError):
        exchanges.fail(error)
    assert told == [(1, error), (2, error)]


def test_a_rejected_exchange_ends_with_that_error() -> None:
    exchanges = Exchanges(Wire(login_result()), 8192)
    told: list[Exchange] = []
    exchanges.ping(told.append)
    error = RequestFailed("rejected")
    assert not exchanges.reject(FIRST_TAG + 1, 0x04, error)
    assert exchanges.reject(FIRST_TAG, 0x04, error)
    assert told[0].error is error
    assert not exchanges.reject(FIRST_TAG, 0x04, error)


TOO_MANY_IMMEDIATE = 0x06


@pytest.mark.parametrize("kind", ["ping", "text", "manage", "logout"])
def test_one_of_too_many_immediate_requests_is_sent_once_more_in_its_turn(kind: str) -> None:
    script = Script(cmd_sn=5)
    asks = {
        "ping": lambda: script.session.ping(script.answers.append),
        "text": lambda: script.session.text(b"SendTargets=All\0", script.answers.append),
        "manage": lambda: script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1),
        "logout": lambda: script.session.logout(script.answers.append),
    }
    asks[kind]()
    first = only(script)
    script.hear(script.reject(TOO_MANY_IMMEDIATE, first.bhs))
    second = only(script)
    assert (first.immediate, second.immediate, second.cmd_sn) == (True, False, 5)
    assert (second.bhs[1:28], second.bhs[32:], second.data) == (first.bhs[1:24] + words(5), first.bhs[32:], first.data)
    assert not script.answers and script.session.wire.window.cmd_sn == 6
    script.hear(script.reject(TOO_MANY_IMMEDIATE, second.bhs))
    assert len(script.answers) == 1 and isinstance(script.answers[0].error, RequestFailed)
    plug = only(script)
    assert (plug.opcode, plug.immediate, plug.cmd_sn) == (0, False, 5), "its place in the order is filled"
    script.hear(script.reject(0x04, plug.bhs))
    assert script.said() == []


def test_a_reset_sent_once_more_covers_what_was_sent_before_it() -> None:
    script = Script()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    first = only(script)
    task = script.command()
    script.hear(script.reject(TOO_MANY_IMMEDIATE, first.bhs))
    script.hear(script.managed(script.said()[-1].itt))
    assert script.finished == [task]


def test_with_the_window_closed_one_of_too_many_immediate_requests_fails() -> None:
    script = Script(window=0)
    script.session.ping(script.answers.append)
    script.hear(script.reject(TOO_MANY_IMMEDIATE, only(script).bhs))
    assert script.said() == [] and len(script.answers) == 1


def test_the_continuation_of_a_text_is_not_begun_again() -> None:
    script = Script()
    itt = ask(script)
    script.hear(script.text(itt, b"x", ttt=1, flags=0))
    script.hear(script.reject(TOO_MANY_IMMEDIATE, only(script).bhs))
    assert script.said() == [] and isinstance(script.answers[0].error, RequestFailed)


def test_a_plug_is_a_nop_out_in_the_place_of_a_command() -> None:
    wire = Wire(login_result(cmd_sn=9))
    Exchanges(wire, 8192).plug(4)
    (sent,) = taken_apart(b"".join(bytes(piece) for piece in wire.out))
    assert (sent.opcode, sent.immediate, sent.cmd_sn, sent.ttt) == (0, False, 4, NO_TAG)
    assert wire.window.cmd_sn == 9


def test_duplicates_of_text_and_logout_responses_are_dropped() -> None:
    script = Script()
    text = script.text(ask(script), b"a=b\0")
    script.hear(text, text)
    script.session.logout(script.answers.append)
    logged_out = script.logged_out(only(script).itt)
    script.hear(logged_out, logged_out)
    assert [exchange.error for exchange in script.answers] == [None, None]


def test_an_exchange_may_begin_another_from_its_answer() -> None:
    script = Script()

    def again(exchange: Exchange) -> None:
        script.answers.append(exchange)
        script.session.ping(script.answers.append)

    script.session.ping(again)
    script.hear(script.nop_in(only(script).itt))
    script.hear(script.nop_in(only(script).itt))
    assert len(script.answers) == 2


def test_a_management_function_knows_which_commands_came_before_it() -> None:
    script = Script(cmd_sn=5)
    script.command()
    script.session.manage(TaskManagement.LOGICAL_UNIT_RESET, script.answers.append, lun=LUN_1)
    script.hear(script.managed(script.said()[-1].itt))
    assert script.answers[0].cmd_sn == 6
    assert isinstance(script.finished[0], Task)
