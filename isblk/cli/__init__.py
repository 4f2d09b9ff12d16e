"""The command line: one module a command, found by name and imported only when it is used, so that `isblk --help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from isblk import __version__

COMMANDS = {
    "discover": "List the targets that a portal offers.",
    "ls": "List the logical units of a target.",
    "mount": "Show a logical unit as a local file.",
    "nbd": "Export logical units over NBD.",
    "attach": "Make a logical unit a block device of the kernel.",
    "detach": "Detach a block device, write back and log out.",
    "umount": "Unmount, write back and log out.",
    "status": "Show what runs: devices, paths, counters.",
    "top": "Watch the disks live: rates, latencies, faults.",
    "events": "Tell what happened: paths, failovers, clients.",
    "metrics": "Print or serve metrics for Prometheus.",
    "up": "Start what isblktab says, and keep it up.",
    "down": "End what isblktab says, in order.",
    "reload": "Follow a table that was changed.",
    "check": "Tell what is wrong with isblktab.",
    "config": "Show the settings that hold, and where they come from.",
    "doctor": "Examine a target and the way to it, with remedies.",
    "perf": "Measure a logical unit.",
    "target": "Run the embedded iSCSI target.",
    "serve": "Serve one export of isblktab, as a unit of systemd.",
    "systemd-generator": "Make units of systemd of isblktab.",
    "install-helper": "Let mount(8) know isblk, for lines in /etc/fstab.",
    "completion": "Print a completion script for bash, zsh or fish.",
}
"""Every command with its line in `isblk --help`; the module of a command is `isblk.cli.NAME`, the function in it `command`."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for a word that is no command."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"isblk.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names without importing anything: whoever presses the tabulator waits."""
        named = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, with what it has to say about usage in one sentence like every other error."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(args, prog_name, complete_var, standalone_mode=False, **extra))
        except click.UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                command = error.ctx.command_path if error.ctx is not None else "isblk"
                message = " ".join(error.format_message().split()).rstrip(".")
                click.echo(f"isblk: {message[:1].lower()}{message[1:]}; `{command} --help` shows how", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("isblk: interrupted", err=True)
            sys.exit(130)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="isblk")
def main() -> None:
    """An iSCSI initiator in user space: shows logical units as local files, without a kernel module.

    \b
    isblk discover 10.0.0.5
    isblk mount -p 10.0.0.5 iqn.2001-05.com.example:disks ./lun0
    mkfs.ext4 ./lun0
    isblk umount ./lun0

    Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 not found, 4 login refused, 5 unreachable, 6 I/O error, 130 interrupted.
    """
    from isblk.cli.configured import apply_places
    from isblk.cli.running import errors_as_sentences

    with errors_as_sentences():
        apply_places()
