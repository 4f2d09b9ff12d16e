"""What mount(8) and umount(8) run for an isblk mount: `mount.isblk` and `umount.fuse.isblk`, installed by `isblk install-helper`.

The words are theirs (isblk/fstab.py), the work is that of `isblk mount` and `isblk umount`; the exit code is translated.
"""

from __future__ import annotations

import ctypes
import os
import pkgutil
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

import isblk
from isblk import control, fstab
from isblk.cli.configured import apply_places, fill
from isblk.cli.running import errors_as_sentences
from isblk.config import parse_target
from isblk.errors import ExitCode, UsageError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are, when whoever calls a helper does not say so."""
_NEW_MOUNT_NAMESPACE = 0x00020000  # CLONE_NEWNS of setns(2)


def mount() -> NoReturn:
    """mount.isblk SPEC DIR: returns when the disk is there."""
    _end(_mount)


def umount() -> NoReturn:
    """umount.fuse.isblk DIR: returns when everything is written back and the session logged out."""
    _end(_umount)


def generate() -> NoReturn:
    """isblk-generator NORMAL EARLY LATE: what systemd runs (systemd.generator(7))."""
    from isblk.cli import main

    sys.exit(main.main(["systemd-generator", *sys.argv[1:]], prog_name="isblk"))


def _end(work: Callable[[], None]) -> NoReturn:
    """Do it, and end with the exit code that mount(8) understands."""
    os.environ.setdefault("PATH", PATH)
    code: object = 0
    try:
        with errors_as_sentences():
            work()
    except SystemExit as end:
        code = end.code
    sys.exit(fstab.exit_code(code if isinstance(code, int) else 0))


def _mount() -> None:
    call = fstab.parse_mount(sys.argv[1:])
    _enter(call.namespace)
    apply_places()
    arguments = fstab.arguments(call)
    if call.fake:
        _check(arguments)
        return
    try:
        _command("mount").main(arguments, prog_name="isblk mount", standalone_mode=False)
    except click.UsageError as error:
        raise UsageError(_sentence(error)) from None
    except SystemExit as end:
        if "nofail" in call.words and end.code in (ExitCode.NOT_FOUND, ExitCode.UNREACHABLE):
            return  # Said it has: mount(8) is not to fail for what is not there.
        raise
    if call.verbose:
        click.echo(f"isblk: {call.spec} is mounted at {call.place}", err=True)


def _check(arguments: list[str]) -> None:
    """Everything but the mount, as far as that goes without asking the target. Raises UsageError."""
    try:
        context = _command("mount").make_context("isblk mount", arguments)
        fill(context)
    except click.UsageError as error:
        raise UsageError(_sentence(error)) from None
    parse_target(context.params["target"], context.params["portals"])


def _sentence(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:]


def _umount() -> None:
    call = fstab.parse_umount(sys.argv[1:])
    _enter(call.namespace)
    apply_places()
    from isblk.cli.umount import end_mount
    from isblk.export import mountpoint

    try:
        end_mount(call.place, control.STOP_DEADLINE, lazy=call.lazy, force=call.force)
    except UsageError:
        if not call.read_only or not mountpoint.make_read_only(call.place):
            raise
        click.echo(f"isblk: {call.place} is in use, and is read-only from now on", err=True)
        return
    if call.verbose:
        click.echo(f"isblk: {call.place} is unmounted", err=True)


def _command(name: str) -> click.Command:
    command = import_module(f"isblk.cli.{name}").command
    assert isinstance(command, click.Command)
    return command


def _enter(namespace: str | None) -> None:
    """Go on in another mount namespace. Modules are read before that, since there they may not be found. Raises UsageError."""
    if namespace is None:
        return
    for found in pkgutil.walk_packages(isblk.__path__, "isblk."):
        if found.name.endswith("__main__"):  # To import it is to run it.
            continue
        with suppress(ImportError):  # Of a package that is not needed here.
            import_module(found.name)
    for name in ("encodings.idna", "stringprep", "difflib"):
        import_module(name)
    try:
        with open(namespace, "rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), _NEW_MOUNT_NAMESPACE) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise UsageError(f"the mount namespace {namespace} cannot be entered: {error.strerror}") from None
