"""Which FLUSH is served by which SYNCHRONIZE CACHE."""

from __future__ import annotations

from isblk.block.flush import Flushes
from isblk.block.request import Op, Request
from support.memorydevice import broken


def test_a_flush_that_arrives_after_the_send_is_served_by_the_next_one() -> None:
    sent: list[Request] = []
    flushes = Flushes(sent.append)
    first, *later = [Request(Op.FLUSH) for _ in range(4)]
    flushes.submit(first)
    for request in later:
        flushes.submit(request)
    assert len(sent) == 1
    sent[0].finish()
    assert first.finished and not any(request.finished for request in later)
    assert len(sent) == 2, "all that waited are served by one"
    sent[1].finish()
    assert all(request.finished for request in later)
    assert len(sent) == 2


def test_an_error_reaches_those_it_was_sent_for_and_no_others() -> None:
    sent: list[Request] = []
    flushes = Flushes(sent.append)
    first, second = Request(Op.FLUSH), Request(Op.FLUSH)
    flushes.submit(first)
    flushes.submit(second)
    error = broken()
    sent[0].finish(error)
    sent[1].finish()
    assert first.error is error and second.finished and second.error is None


def test_flushes_that_finish_at_once_are_each_sent() -> None:
    sent: list[Request] = []

    def send(sync: Request) -> None:
        sent.append(sync)
        sync.finish()

    flushes = Flushes(send)
    requests = [Request(Op.FLUSH, done=lambda _request: None) for _ in range(3)]
    for request in requests:
        flushes.submit(request)
    assert len(sent) == 3 and all(request.finished for request in requests)


def test_a_flush_submitted_while_others_are_told_is_served() -> None:
    sent: list[Request] = []
    flushes = Flushes(sent.append)
    again = Request(Op.FLUSH)
    flushes.submit(Request(Op.FLUSH, done=lambda _request: flushes.submit(again)))
    sent[0].finish()
    assert len(sent) == 2
    sent[1].finish()
    assert again.finished
