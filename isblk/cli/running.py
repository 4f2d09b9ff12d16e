"""Running a command: trio, signals, errors as one sentence with an exit code."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
import trio

from isblk.errors import ExitCode, Interrupted, IsblkError
from isblk.logs.storm import TRACE

_trace = logging.getLogger(TRACE)


def trace_pdu(direction: str, text: str) -> None:
    """A PDU in one line, for `--trace`."""
    _trace.info("%s %s", direction, text)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Expected failures end the process with one sentence and their exit code; anything else is a bug and says so with its trace."""
    try:
        yield
    except IsblkError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            fail(f"the output cannot be written: {error.strerror}; make room where it goes", ExitCode.IO_ERROR)
        traceback.print_exc()
        fail("this is a bug in isblk; please report it with the lines above", ExitCode.BUG)


def _drop_output() -> None:
    """Let what is still buffered go nowhere: it would fail once more when the interpreter ends, with words and a code of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def fail(sentence: str, code: int) -> NoReturn:
    """Say why on standard error and exit."""
    click.echo(f"isblk: {sentence}", err=True)
    sys.exit(int(code))


def run(main: Callable[[], Awaitable[None]], *, until_signal: bool = False) -> None:
    """Run an async command to its end; SIGINT and SIGTERM cancel it, so that its sessions are logged out first.

    `until_signal` is for a server: a signal is how it is meant to end, and its exit code is 0.
    """
    with errors_as_sentences():
        trio.run(_interruptible, main, until_signal)


async def _interruptible(main: Callable[[], Awaitable[None]], until_signal: bool) -> None:
    caught: list[int] = []
    failure: BaseException | None = None

    async def listen(scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                caught.append(number)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(listen, scope)
            # Kept for after the nursery: an exception that crosses one comes out in a group.
            try:
                await main()
            except (IsblkError, OSError, click.ClickException, click.exceptions.Exit) as error:
                failure = error
        nursery.cancel_scope.cancel()
    if caught and not until_signal:
        raise Interrupted(f"interrupted by {signal.Signals(caught[0]).name}")
    if failure is not None:
        raise failure
