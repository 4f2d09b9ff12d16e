"""The command line as a whole: what it lists, what it imports, how it speaks of usage, and with which code each failure ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from isblk import __version__
from isblk.cli import COMMANDS, main
from isblk.iscsi.chap import Credentials
from support.logs import restored_logging
from support.processes import Processes, isblk
from support.targets import TargetProcess, disk, target_process
from support.waiting import until

HEAVY = """
import sys
from isblk.cli import main
main([{arguments}], prog_name="isblk", standalone_mode=False)
print(*sorted(sys.modules), file=sys.stderr)
"""

every_command = pytest.mark.parametrize("name", COMMANDS)


def command(name: str) -> click.Command:
    found = import_module(f"isblk.cli.{name.replace('-', '_')}").command
    assert isinstance(found, click.Command)
    return found


def test_help_names_every_command_and_every_exit_code() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0 and not result.stderr
    for name, line in COMMANDS.items():
        assert f"  {name}" in result.stdout and line in result.stdout
    for word in ("isblk mount", "mkfs.ext4", "isblk umount", "3 not found", "130 interrupted"):
        assert word in " ".join(result.stdout.split())
    assert CliRunner().invoke(main, ["-h"]).stdout == result.stdout


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout == f"isblk, version {__version__}\n"


@pytest.mark.parametrize("arguments", ["'--help'", "'--version'"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    argv = [sys.executable, "-c", HEAVY.format(arguments=arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    imported = set(done.stderr.split())
    assert "click" in imported and "isblk.cli" in imported
    assert not imported & {"trio", "pyfuse3", "crc32c", "asyncio", "tabulate", "isblk.errors", "isblk.link.plane"}


@every_command
def test_a_command_is_where_the_list_says(name: str) -> None:
    assert command(name).name == name
    assert COMMANDS[name].endswith(".") and len(COMMANDS[name]) < 60


@every_command
def test_help_teaches_by_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"], prog_name="isblk")
    assert result.exit_code == 0 and not result.stderr
    examples = [line for line in result.stdout.splitlines() if line.startswith(f"  isblk {name}")]
    assert examples and all("..." not in line for line in examples), "a line that can be typed"


@every_command
def test_every_option_is_explained(name: str) -> None:
    options = [one for one in command(name).params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []
    assert not any("secret" in one.opts[0] and "file" not in one.opts[0] for one in options), "no secret on a command line"


@pytest.mark.parametrize("name", ["discover", "ls", "perf", "status", "target"])
def test_what_prints_for_people_prints_json_too(name: str) -> None:
    assert any("--json" in one.opts for one in command(name).params)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["frobnicate"], "isblk: no such command 'frobnicate'; `isblk --help` shows how\n"),
        (["ls"], "isblk: missing argument 'TARGET'; `isblk ls --help` shows how\n"),
        (["--nonsense"], "isblk: no such option"),
        (["perf", "iqn.2001-04.com.example:x", "--bs", "lots"], "is not a size; it looks like 4096, 4k, 1M or 10GiB; `isblk perf"),
        (["mount", "iqn.2001-04.com.example:x", "/x", "--lun", "one"], "`isblk mount --help` shows how"),
        (["ls", "--digest", "perhaps", "x"], "`isblk ls --help` shows how"),
        (["umount", "/x", "--timeout", "0"], "`isblk umount --help` shows how"),
        (["status", "superfluous"], "`isblk status --help` shows how"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: list[str], match: str) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="isblk")
    assert result.exit_code == 2 and not result.stdout
    assert match in result.stderr and result.stderr.count("\n") == 1 and result.stderr.startswith("isblk: ")


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(main, [], prog_name="isblk")
    assert "discover" in result.output and "isblk: " not in result.output


def test_an_interrupt_of_click_itself_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def abort(*arguments: object) -> None:
        raise click.Abort

    monkeypatch.setattr("isblk.cli.import_module", abort)
    result = CliRunner().invoke(main, ["ls", "x"])
    assert (result.exit_code, result.stderr) == (130, "isblk: interrupted\n")


# ---------------------------------------------------------------------------------------------- the code that each failure ends with

SECRET = "the initiator's own secret"


@pytest.fixture(scope="module")
def guarded() -> Iterator[TargetProcess]:
    """A target that wants CHAP."""
    with target_process([disk(0)], credentials=Credentials("me", SECRET.encode())) as served:
        yield served


@pytest.fixture
def closed() -> Iterator[str]:
    """A portal where nobody listens, and nobody else will meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A portal that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with restored_logging():
        yield {
            "ISBLK_STATE_DIR": str(tmp_path / "state"),
            "ISBLK_RUN_DIR": str(tmp_path / "run"),
            "ISBLK_INITIATOR_NAME": "iqn.2026-11.test.isblk:usage",
            "ISBLK_SECRET": SECRET,
        }


def sentence(environment: dict[str, str], code: int, *arguments: str) -> str:
    """What a command that must fail with `code` says; one sentence in which no secret stands."""
    result = CliRunner().invoke(main, arguments, prog_name="isblk", env=environment)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("isblk: ") and result.stderr.count("\n") == 1 and not result.stdout
    assert SECRET not in result.stderr
    return result.stderr


NAME = "iqn.2026-11.test.isblk:target"
LOGGING_IN = pytest.mark.parametrize("words", [("ls",), ("perf", "--runtime", "0.1")], ids=lambda words: words[0])


@LOGGING_IN
def test_5_for_a_portal_that_refuses_or_stays_silent(environment: dict[str, str], closed: str, silent: str, words: tuple[str, ...]) -> None:
    assert f"{closed} cannot be reached: Connection refused" in sentence(environment, 5, *words, "-p", closed, NAME)
    said = sentence(environment, 5, *words, "-p", silent, NAME, "--login-timeout", "0.1")
    assert f"{silent} did not finish the login within 0.1 s" in said


def test_5_for_a_discovery_that_finds_nobody(environment: dict[str, str], closed: str) -> None:
    assert "Connection refused" in sentence(environment, 5, "discover", closed)


@LOGGING_IN
def test_4_for_credentials_that_are_missing_or_wrong(environment: dict[str, str], guarded: TargetProcess, words: tuple[str, ...]) -> None:
    assert "wants authentication" in sentence(environment, 4, *words, guarded.url())
    wrong = {**environment, "ISBLK_SECRET": "something else altogether"}
    assert "authentication failed" in sentence(wrong, 4, *words, guarded.url(user="me"))
    assert guarded.ask("sessions") == 0


def test_0_with_the_right_credentials(environment: dict[str, str], guarded: TargetProcess) -> None:
    result = CliRunner().invoke(main, ["ls", guarded.url(user="me")], env=environment)
    assert result.exit_code == 0 and "disk" in result.stdout and not result.stderr
    assert guarded.ask("sessions") == 0


def test_3_for_a_target_or_a_lun_that_is_not_there(environment: dict[str, str], guarded: TargetProcess) -> None:
    assert "no such target" in sentence(environment, 3, "ls", "-p", guarded.portal, NAME + "2", "--user", "me")
    assert "LUN 9" in sentence(environment, 3, "perf", guarded.url(9, user="me"), "--runtime", "0.1")
    assert guarded.ask("sessions") == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["ls", NAME], "no portal for"),
        (["ls", "-p", "h", "disk1"], "not an iSCSI name"),
        (["ls", "-p", "10.0.0.300", NAME], "not a portal"),
        (["discover", "h:0"], "not a portal"),
        (["ls", "-p", "h", NAME, "--user", "me", "--secret-file", "/nowhere/at/all"], "cannot be read"),
        (["ls", "-p", "h", NAME, "--user", "me", "--chap-algorithms", "rot13"], "not a list of CHAP algorithms"),
        (["ls", "-p", "h", NAME, "--initiator-name", "me"], "not an iSCSI name"),
        (["perf", "-p", "h", NAME, "--rw", "write"], "add --destructive"),
        (["mount", "-p", "h", NAME, "/x", "-o", "fast"], "unknown mount option 'fast'"),
        (["mount", "-p", "h", NAME, "/x", "-o", "ro,rw"], "contradict each other"),
        (["mount", NAME, "/x"], "no portal for"),
        (["target", "--lun", "/nowhere/at/all"], "there is no such file; give the size to make it"),
        (["target", "--lun", "mem:1M", "--set", "MaxBurstLength"], "is not KEY=VALUE"),
    ],
)
def test_2_for_what_cannot_be(environment: dict[str, str], words: list[str], match: str) -> None:
    assert match in sentence(environment, 2, *words)


def test_2_for_a_secret_that_is_too_short(environment: dict[str, str]) -> None:
    said = sentence({**environment, "ISBLK_SECRET": "short"}, 2, "ls", "-p", "h", NAME, "--user", "me")
    assert "has 5 bytes: it needs 12" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_130_for_a_signal_after_the_logout(processes: Processes, guarded: TargetProcess, number: int) -> None:
    argv = isblk("perf", guarded.url(user="me"), "--runtime", "600")
    running = processes.start(argv, env={"ISBLK_SECRET": SECRET})
    until(lambda: guarded.ask("sessions"), "the session")
    assert running.stop(number, seconds=10) == 130
    assert running.stderr == f"isblk: interrupted by {signal.Signals(number).name}\n"
    assert guarded.ask("sessions") == 0, "logged out, not cut"


def test_6_for_output_that_finds_no_room(processes: Processes, guarded: TargetProcess) -> None:
    argv = isblk("ls", guarded.url(user="me"))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            argv, env={**processes.env, "ISBLK_SECRET": SECRET}, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
    assert "No space left on device" in done.stderr
    assert guarded.ask("sessions") == 0


def test_a_reader_that_went_away_is_no_failure(processes: Processes, guarded: TargetProcess) -> None:
    argv = isblk("ls", guarded.url(user="me"))
    env = {**processes.env, "ISBLK_SECRET": SECRET}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=20)
    assert said == ""
    assert process.returncode == 0
