"""Running a command: trio, signals, errors as one sentence with an exit code, logging to standard error."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Iterator, NoReturn

import click
import trio

from isblk.errors import ExitCode, IsblkError

LOG_FORMAT = "isblk: %(message)s"
INTERRUPTED = {signal.SIGINT: 128 + signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}


class Interrupted(Exception):
    """A signal asked the command to stop; everything it had opened has been closed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = INTERRUPTED[signal.Signals(number)]


def logging_to_stderr(verbose: int) -> None:
    """Warnings always, what happens with -v, everything with -vv."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format=LOG_FORMAT, stream=sys.stderr, force=True)


def trace_to_stderr(direction: str, text: str) -> None:
    """A PDU in one line, for `--trace`."""
    click.echo(f"isblk: {direction} {text}", err=True)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Expected failures end the process with one sentence and their exit code; anything else is a bug and says so with its trace."""
    try:
        yield
    except IsblkError as error:
        fail(str(error), error.exit_code)
    except (Interrupted, KeyboardInterrupt) as error:
        fail(str(error) or "interrupted", getattr(error, "exit_code", ExitCode.INTERRUPTED))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception:
        traceback.print_exc()
        fail("this is a bug in isblk; please report it with the lines above", ExitCode.BUG)


def fail(sentence: str, code: int) -> NoReturn:
    """Say why on standard error and exit."""
    click.echo(f"isblk: {sentence}", err=True)
    sys.exit(int(code))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run an async command to its end; SIGINT and SIGTERM cancel it, so that its sessions are logged out first."""
    with errors_as_sentences():
        trio.run(_interruptible, main)


async def _interruptible(main: Callable[[], Awaitable[None]]) -> None:
    caught: list[int] = []
    failure: BaseException | None = None

    async def listen(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                caught.append(number)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(listen, scope)
            # Kept for after the nursery: an exception that crosses one comes out in a group.
            try:
                await main()
            except (IsblkError, OSError, click.ClickException, click.exceptions.Exit) as error:
                failure = error
        nursery.cancel_scope.cancel()
    if caught:
        raise Interrupted(caught[0])
    if failure is not None:
        raise failure
