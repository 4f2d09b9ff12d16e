"""`isblk completion`: the script that makes a shell complete isblk's commands and options (click's own)."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ISBLK_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what makes SHELL (bash, zsh or fish) complete isblk's commands, options and paths.

    \b
    isblk completion bash >~/.local/share/bash-completion/completions/isblk
    isblk completion zsh >~/.zfunc/_isblk
    isblk completion fish >~/.config/fish/completions/isblk.fish

    The shell reads it when it starts anew.
    """
    from isblk.cli import main

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(main, {}, "isblk", VARIABLE).source())
