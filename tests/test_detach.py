"""detach.py: commands that leave a daemon behind, each in a process of its own, and what they return."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isblk.detach import Outcome, Report, check_log_file
from isblk.errors import ExitCode, UsageError
from support.processes import Processes
from support.waiting import until

HEAD = """
import json, os, signal, sys
from pathlib import Path
from isblk.detach import run_detached
from isblk.errors import Unreachable
home = Path(sys.argv[1])
def facts():
    (home / "facts.new").write_text(json.dumps({
        "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0), "cwd": os.getcwd(),
        "fds": [os.readlink(f"/proc/self/fd/{n}") for n in range(3)],
    }))
    (home / "facts.new").rename(home / "facts")
def live():
    signal.sigtimedwait({signal.SIGUSR1}, 30)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
"""
TAIL = """
outcome = run_detached(work, deadline=float(sys.argv[2]), log_file=home / "log")
print(outcome.message)
sys.exit(outcome.exit_code)
"""


def command(body: str, home: Path, deadline: float = 20) -> list[str]:
    return [sys.executable, "-c", HEAD + body + TAIL, str(home), str(deadline)]


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Any]:
    """What the daemon wrote about itself; ends the daemon."""
    seen: list[int] = []

    def read() -> dict[str, Any]:
        path = tmp_path / "facts"
        until(path.exists, "the daemon's facts")
        found: dict[str, Any] = json.loads(path.read_text())
        seen.append(found["pid"])
        return found

    yield read
    for pid in seen:
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            pass


def test_the_command_returns_and_the_daemon_lives_on(processes: Processes, tmp_path: Path, facts: Any) -> None:
    ran = processes.run(command("def work(report):\n    facts(); report.ready(); live(); return 0", tmp_path))
    found = facts()
    assert found["pid"] not in (ran.pid, found["sid"])
    assert found["sid"] != os.getsid(0)
    assert found["cwd"] == "/"
    assert found["fds"] == ["/dev/null"] * 3
    assert found["pid"] in processes.strays()


def test_nothing_of_the_daemon_holds_the_commands_output(tmp_path: Path, facts: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    body = "def work(report):\n    facts(); report.ready(); live(); return 0"
    done = subprocess.run(command(body, tmp_path), capture_output=True, timeout=20, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    os.kill(facts()["pid"], 0)


def test_an_expected_failure_is_its_sentence_and_exit_code(processes: Processes, tmp_path: Path) -> None:
    ran = processes.run(command("def work(report):\n    raise Unreachable('no answer from 10.0.0.1')", tmp_path), code=5)
    assert ran.stdout == "no answer from 10.0.0.1\n"
    assert "ERROR" in (tmp_path / "log").read_text()


def test_a_bug_is_its_traceback_and_exit_code_1(processes: Processes, tmp_path: Path) -> None:
    ran = processes.run(command("def work(report):\n    return {}['missing']", tmp_path), code=1)
    assert "KeyError: 'missing'" in ran.stdout
    until(lambda: "KeyError" in (tmp_path / "log").read_text(), "the traceback in the log")


def test_an_end_before_it_was_ready_is_a_failure(processes: Processes, tmp_path: Path) -> None:
    for returned, code in ((0, 1), (3, 3)):
        ran = processes.run(command(f"def work(report):\n    return {returned}", tmp_path), code=code)
        assert "ended before it was ready" in ran.stdout


def test_a_death_without_a_word_is_noticed(processes: Processes, tmp_path: Path) -> None:
    ran = processes.run(command("def work(report):\n    os.kill(os.getpid(), signal.SIGKILL)", tmp_path), code=1)
    assert "died before it was ready" in ran.stdout


def test_a_daemon_that_is_late_is_told_to_end(processes: Processes, tmp_path: Path) -> None:
    body = "def work(report):\n    facts(); live(); return 0"
    ran = processes.run(command(body, tmp_path, deadline=0.5), code=5)
    assert "not ready within" in ran.stdout
    until(lambda: not processes.strays(), "the daemon to be gone")


def test_interrupting_the_command_ends_the_daemon(processes: Processes, tmp_path: Path) -> None:
    body = "def work(report):\n    facts(); live(); return 0"
    started = processes.start(command(body, tmp_path))
    until((tmp_path / "facts").exists, "the daemon")
    assert started.stop(signal.SIGINT) == ExitCode.INTERRUPTED
    until(lambda: not processes.strays(), "the daemon to be gone")


def test_what_fails_later_is_in_the_log_and_not_in_the_command(processes: Processes, tmp_path: Path) -> None:
    processes.run(command("def work(report):\n    report.ready(); raise Unreachable('cut off later')", tmp_path))
    until(lambda: "cut off later" in (tmp_path / "log").read_text(), "the log line")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_log_file_that_cannot_be_written_is_refused_before_the_fork(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--log-file"):
        check_log_file(tmp_path / "absent" / "log")


def test_only_the_first_word_counts() -> None:
    reader, writer = os.pipe()
    report = Report(writer)
    report.ready("what it is")
    report.ready("another")
    report.failed("too late", 3)
    with open(reader, "rb") as pipe:
        assert [json.loads(line) for line in pipe] == [{"exit_code": 0, "message": "what it is"}]


def test_a_command_that_was_killed_does_not_end_the_daemon() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Report(writer).ready()


def test_an_outcome_says_why() -> None:
    assert Outcome(ExitCode.DONE) == Outcome(0, "")
