"""`isblk completion`: scripts that their shells can read, and completions that come of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from isblk.cli import COMMANDS
from isblk.cli.completion import SHELLS
from support.processes import isblk

Run = Callable[..., Result]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_each_shell(run: Run, shell: str) -> None:
    assert f"_ISBLK_COMPLETE={shell}_complete" in run("completion", shell).stdout


def test_another_shell_is_refused(run: Run) -> None:
    run("completion", "tcsh", code=2)


@pytest.fixture
def completed(run: Run, tmp_path: Path) -> Callable[..., list[str]]:
    """What bash would offer behind these words, from the script as it is printed."""
    script, bin_directory = tmp_path / "completion", tmp_path / "bin"
    script.write_text(run("completion", "bash").stdout)
    bin_directory.mkdir()
    (bin_directory / "isblk").write_text(f'#!/bin/sh\nexec {" ".join(isblk())} "$@"\n')
    (bin_directory / "isblk").chmod(0o755)

    def complete(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("isblk", *words))
        program = f'PATH="{bin_directory}:$PATH"; compopt() {{ printf "compopt %s\\n" "$@"; }}; . {script}'
        program += f"; COMP_WORDS=({line}); COMP_CWORD={len(words)}"
        program += f'; _isblk_completion isblk "{words[-1]}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[:-1]

    return complete


def test_commands_and_options(completed: Callable[..., list[str]]) -> None:
    assert completed("mo") == ["mount"]
    assert set(completed("")) == set(COMMANDS)
    assert completed("mount", "--no-path") == ["--no-path-retry"]
    assert completed("ls", "--digest", "b") == ["both"]


def test_paths_are_left_to_the_shell(completed: Callable[..., list[str]]) -> None:
    assert "compopt default" in completed("umount", "x")
    assert "compopt default" in completed("mount", "iqn.2026-11.test:x", "x")
