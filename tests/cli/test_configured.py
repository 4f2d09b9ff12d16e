"""Options that the configuration files set: what the command line says comes first, and what a file says is refused with its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from isblk.cli.configured import Configured, apply_places, names
from isblk.cli.options import path_options, session_options
from isblk.errors import UsageError
from isblk.iscsi.chap import Credentials
from support.targets import TargetProcess, target_process

Run = Callable[..., Result]
NAME = "iqn.2026-11.test.isblk:disks"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the configuration file that the test's commands read."""

    def write(text: str) -> Path:
        path = tmp_path / "isblk.conf"
        path.write_text(text)
        path.chmod(0o600)
        monkeypatch.setenv("ISBLK_CONFIG", str(path))
        return path

    return write


def options_of(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command(cls=Configured)
    @click.argument("target")
    @session_options
    @path_options
    def command(**options: Any) -> None:
        found.update(options)

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return found


def test_what_the_command_line_leaves_open_is_filled_in(config: Callable[[str], Path]) -> None:
    config(f'digest = "both"\nlogin-timeout = 3\nno-path-retry = 7\n[target."{NAME}"]\nportal = ["a", "b"]\nshared = true\nuser = "me"\n')
    found = options_of(NAME, "--digest", "none")
    assert (found["digest"], found["login_timeout"], found["no_path_retry"]) == ("none", 3.0, "7")
    assert (found["portals"], found["shared"], found["user"], found["all_portals"]) == (("a", "b"), True, "me", False)
    assert options_of(NAME, "-p", "c")["portals"] == ("c",)
    assert options_of("iqn.2026-11.test.isblk:other")["portals"] == ()


def test_a_url_says_where_the_target_is_and_the_files_the_rest(config: Callable[[str], Path]) -> None:
    config(f'[target."{NAME}"]\nportal = "a"\nuser = "me"\n')
    found = options_of(f"iscsi://h/{NAME.upper()}/3")
    assert (found["portals"], found["user"]) == ((), "me")


def test_the_environment_comes_before_the_files(config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config('initiator-name = "iqn.2026-11.test:file"\n')
    assert options_of(NAME)["initiator_name"] == "iqn.2026-11.test:file"
    monkeypatch.setenv("ISBLK_INITIATOR_NAME", "iqn.2026-11.test:environment")
    assert options_of(NAME)["initiator_name"] is None


def test_a_secret_file_is_named_from_where_the_configuration_is(config: Callable[[str], Path], tmp_path: Path) -> None:
    config('secret-file = "secret"\ntarget-secret-file = "credential:nas"\n')
    found = options_of(NAME)
    assert (found["secret_file"], found["target_secret_file"]) == (str(tmp_path / "secret"), "credential:nas")
    config('secret-file = "/run/secret"\ntarget-secret-file = "~/x"\n')
    found = options_of(NAME)
    assert (found["secret_file"], found["target_secret_file"]) == ("/run/secret", os.path.expanduser("~/x"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('digest = "maybe"', r"digest: 'maybe' is not one of 'none'"),
        ("login-timeout = 0", r"login-timeout: 0.0 is not in the range"),
        ('policy = "fastest"', "policy: .*failover"),
        ('fence = "no"', "fence: 'no' is no fence policy"),
        ("noop-timeout = 0", "noop-timeout: "),
        ('polcy = "failover"', "is policy meant"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_file(run: Run, config: Callable[[str], Path], text: str, match: str) -> None:
    path = config(f'[target."iqn.*"]\n{text}\n')
    said = run("mount", NAME, "/nowhere/disk", code=2).stderr
    assert str(path) in said and re.search(match, said), said


def test_a_configured_target_needs_its_name_alone(run: Run, config: Callable[[str], Path], target: TargetProcess) -> None:
    config(f'[target."{target.name}"]\nportal = "{target.portal}"\n')
    assert run("ls", target.name).stdout.startswith("LUN ")
    assert run("discover", target.portal).stdout.endswith(f"{target.name}\n")


def test_credentials_of_a_target_and_of_discovery(run: Run, config: Callable[[str], Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of twenty two\n")
    secret.chmod(0o600)
    with target_process(credentials=Credentials("me", b"a secret of twenty two"), discovery_auth=True) as guarded:
        config(f'[target."{guarded.name}"]\nuser = "me"\nsecret-file = "secret"\n[discovery]\nuser = "me"\nsecret-file = "secret"\n')
        assert guarded.name in run("discover", guarded.portal).stdout
        assert run("ls", "-p", guarded.portal, guarded.name).stdout.startswith("LUN ")
        run("ls", "-p", guarded.portal, guarded.name, "--user", "somebody", code=4)


def test_places_come_from_the_file_unless_the_environment_says(
    config: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ISBLK_STATE_DIR", "ISBLK_RUN_DIR"):
        monkeypatch.setenv(variable, "")  # so that what the call sets is undone behind the test
        monkeypatch.delenv(variable)
    monkeypatch.setenv("ISBLK_RUN_DIR", "/run/mine")
    config(f'state-dir = "{tmp_path}/s"\nrun-dir = "{tmp_path}/r"\n')
    apply_places()
    assert (os.environ["ISBLK_STATE_DIR"], os.environ["ISBLK_RUN_DIR"]) == (f"{tmp_path}/s", "/run/mine")
    config('state-dir = "relative"\n')
    with pytest.raises(UsageError, match="state-dir is an absolute path"):
        apply_places()


def test_names_a_section_may_have() -> None:
    assert names(NAME.upper()) == (NAME, NAME.upper())
    assert names(f"iscsi://h/{NAME.upper()}") == (NAME, NAME.upper())
    assert names("rubbish") == ("rubbish",) and names("http://x") == ("http://x",)
