"""What every test gets: trio for coroutine tests, a deadline, an ear for warnings in the log, and an end for all that a test started.

An `async def test_...` runs in trio; with the fixture `autojump_clock` its time is virtual and no wait costs any. A test that logs
WARNING or worse fails unless it declared the line (`@pytest.mark.logs("pattern")`), for daemons fail quietly. Each test ends with a
garbage collection, so that a socket or file left open is reported (ResourceWarning) by the test that left it.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import re
import signal
import stat
from collections.abc import Callable, Generator, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import trio
import trio.testing
from hypothesis import settings

from isblk.iscsi import session
from support.guest import Guest, boot_guest
from support.lio import Lio, boot_lio
from support.mounts import Mounts
from support.processes import Processes
from support.tgt import Tgtd

DEADLINE = 60.0  # seconds of real time for one test; marker `deadline` for the few that need more
FUSE = Path("/dev/fuse")

# Found examples must be found again on the next machine; a slow machine is no bug of the test.
settings.register_profile("isblk", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("isblk")


# ---------------------------------------------------------------------------------------------------------------- coroutine tests


def _in_trio(function: Callable[..., Any], clock: trio.abc.Clock | None, seconds: float) -> Callable[..., None]:
    @wraps(function)
    def run(**arguments: Any) -> None:
        async def main() -> None:
            if clock is not None:  # virtual time jumps to any deadline: only the alarm below can tell that real time has passed
                await function(**arguments)
                return
            with trio.fail_after(seconds):
                await function(**arguments)

        trio.run(main, clock=clock)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the compiled form of isblk some tests have nothing to take hold of."""
    if find_compiled():
        for item in items:
            marker = item.get_closest_marker("source_form")
            if marker is not None:
                item.add_marker(pytest.mark.skip(reason=f"compiled form: {marker.args[0]}"))


def pytest_report_header() -> str:
    return f"isblk: {'compiled' if find_compiled() else 'source'} form"


def find_compiled() -> bool:
    """Whether the hot path that is imported here has been compiled (setup.py)."""
    return not str(session.__file__).endswith(".py")


def _deadline(item: pytest.Item) -> float:
    marker = item.get_closest_marker("deadline")
    return DEADLINE if marker is None else float(marker.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    function = pyfuncitem.obj
    runner = partial(_in_trio, clock=pyfuncitem.funcargs.get("autojump_clock"), seconds=_deadline(pyfuncitem))
    if getattr(function, "is_hypothesis_test", False):
        if inspect.iscoroutinefunction(function.hypothesis.inner_test):
            function.hypothesis.inner_test = runner(function.hypothesis.inner_test)
    elif inspect.iscoroutinefunction(function):
        pyfuncitem.obj = runner(function)
    return (yield)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Virtual time that jumps to the next deadline whenever every task waits."""
    return trio.testing.MockClock(autojump_threshold=0)


# ------------------------------------------------------------------------------------------------------- deadline, log and garbage


class _Ear(logging.Handler):
    """Keeps what was logged at WARNING or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")


def _judge(lines: list[str], patterns: list[str]) -> None:
    undeclared = [line for line in lines if not any(re.search(pattern, line) for pattern in patterns)]
    missed = [pattern for pattern in patterns if not any(re.search(pattern, line) for line in lines)]
    if undeclared:
        pytest.fail("logged, but not declared with @pytest.mark.logs: " + "; ".join(undeclared), pytrace=False)
    if missed:
        pytest.fail("declared with @pytest.mark.logs, but never logged: " + "; ".join(missed), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"{item.nodeid} took more than {seconds:.0f} s")

    seconds = _deadline(item) + 10  # trio's own deadline first, for it ends a test in order
    ear = _Ear()
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    logging.getLogger().addHandler(ear)
    try:
        with patch.object(gc, "freeze"):  # By what serves in this process: what it left open would never be seen.
            result = yield
    finally:
        logging.getLogger().removeHandler(ear)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()
    _judge(ear.lines, [pattern for marker in item.iter_markers("logs") for pattern in marker.args])
    return result


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As for what a script starts with &; children would never hear of Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported by now stays: a collection after each test then costs 1 ms instead of 30


# ------------------------------------------------------------------------------------------------------------ what a machine can do


@pytest.fixture(scope="session")
def root() -> None:
    """For tests that mount through a loop device or change to another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root: this process runs as an ordinary user")


@pytest.fixture(scope="session")
def fuse() -> None:
    """For tests that mount."""
    if not FUSE.exists():
        pytest.skip("this machine has no /dev/fuse")
    if not os.access(FUSE, os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/fuse")


@pytest.fixture
def fuse_for_users(root: None, fuse: None) -> Iterator[None]:
    """For tests that mount as an ordinary user: containers without udev keep /dev/fuse at mode 0600, elsewhere it is 0666."""
    before = stat.S_IMODE(FUSE.stat().st_mode)
    FUSE.chmod(0o666)
    yield
    FUSE.chmod(before)


@pytest.fixture(scope="session", autouse=True)
def short_patience() -> Iterator[None]:
    """Targets of tests run in the thread of the plane, which would wait for their answers while they wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isblk.link.plane.PATIENCE_SECONDS", 0.0005)
        yield


# -------------------------------------------------------------------------------------------------------------- what a test starts


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts commands; none outlives the test, daemons included, and none may have printed a traceback."""
    with Processes(tmp_path) as starter:
        yield starter


@pytest.fixture
def mounts(processes: Processes, tmp_path: Path) -> Iterator[Mounts]:
    """Undoes every mount and loop device below tmp_path before the processes behind them are ended."""
    with Mounts(tmp_path) as ledger:
        yield ledger


@pytest.fixture
def tgt(tmp_path: Path) -> Iterator[Tgtd]:
    """A tgtd of this test's own: a foreign target in user space."""
    with Tgtd(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def lio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lio]:
    """The Linux kernel's target in a virtual machine; one for the whole run, for it takes seconds to boot."""
    with boot_lio(tmp_path_factory.mktemp("lio")) as machine:
        yield machine


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A virtual machine whose kernel has an NBD client, on this machine's files; one for the whole run, for it takes seconds to boot."""
    with boot_guest(tmp_path_factory.mktemp("guest")) as machine:
        yield machine
