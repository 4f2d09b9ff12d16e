"""Commands whose options the configuration files may set: what the command line leaves open is looked up for the target it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from isblk.cli.running import errors_as_sentences
from isblk.config import CREDENTIAL, PathOptions, make_policies
from isblk.errors import IsblkError, UsageError
from isblk.iscsi.names import parse_target_url, target_name
from isblk.settings import SETTINGS, Value, as_text, load
from isblk.state import NAME_VARIABLE, RUN_VARIABLE, STATE_VARIABLE

_FILES = ("secret-file", "target-secret-file")
_PLACES = {"state-dir": STATE_VARIABLE, "run-dir": RUN_VARIABLE}


class Configured(click.Command):
    """A command with the session options, the path options, or both; TARGET, or PORTAL of a discovery, is its first argument."""

    def invoke(self, ctx: click.Context) -> Any:
        """Fill in what the command line has left open, then as ever."""
        with errors_as_sentences():
            fill(ctx)
        return super().invoke(ctx)


def fill(ctx: click.Context) -> None:
    """Give every option that was not given the value of the configuration. Raises UsageError that names the file."""
    found, text = load(), ctx.params.get("target")
    values = found.for_discovery() if text is None else found.for_target(*names(text))
    for parameter in ctx.command.params:
        name, key = setting(parameter), parameter.name or ""
        is_open = ctx.get_parameter_source(key) is ParameterSource.DEFAULT
        if name in values and is_open and not _overruled(name, text):
            ctx.params[key] = converted(ctx, parameter, name, values[name])


def names(text: str) -> tuple[str, ...]:
    """What a section for this TARGET may be called: its name, normalized and as it was written. (What is no TARGET is told later.)"""
    try:
        if "://" not in text:
            return (target_name(text), text)
        url = parse_target_url(text)
    except IsblkError:
        return (text,)
    return (url.name, url.spelled or url.name)


def setting(parameter: click.Parameter) -> str:
    """The setting that is an option, by the option's long name; empty for what no file sets."""
    long = [text.removeprefix("--") for text in parameter.opts if text.startswith("--")] if isinstance(parameter, click.Option) else []
    return next((name for name in long if name in SETTINGS), "")


def _overruled(name: str, text: str | None) -> bool:
    """By the environment, or by TARGET itself: a URL says where the target is."""
    return (name == "initiator-name" and bool(os.environ.get(NAME_VARIABLE))) or (name == "portal" and "://" in (text or ""))


def converted(ctx: click.Context, parameter: click.Parameter, name: str, found: Value) -> Any:
    """The value as the option has it. Raises UsageError with where it stands."""
    value = found.value
    if SETTINGS[name] is bool:
        return value
    if SETTINGS[name] is list:
        return tuple(value) if isinstance(value, list) else (value,)
    if name in _FILES and not str(value).startswith(CREDENTIAL):
        return str(found.directory / Path(str(value)).expanduser())
    try:
        key = name.replace("-", "_")
        if key in PathOptions.__dataclass_fields__:
            words: dict[str, Any] = {key: as_text(value)}
            make_policies(PathOptions(**words), (), 15)
        return parameter.type_cast_value(ctx, as_text(value))
    except (click.BadParameter, UsageError) as error:
        raise UsageError(f"{found.origin}: {name}: {error.message if isinstance(error, click.BadParameter) else error}") from None


def apply_places(environment: Mapping[str, str] = os.environ) -> None:
    """Let state and run-time files be where the configuration says, for this command and the daemon it starts; the environment wins."""
    for name, value in load(environment).of_the_host().items():
        if not Path(str(value.value)).is_absolute():
            raise UsageError(f"{value.origin}: {name} is an absolute path, not {value.value!r}")
        os.environ.setdefault(_PLACES[name], str(value.value))
