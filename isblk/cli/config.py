"""`isblk config`: the settings that hold, for a target, for discovery or in general, and where each of them comes from."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from isblk.block.policies import Policies
from isblk.cli.configured import converted, names, setting
from isblk.cli.options import DEFAULT_IDLE, automount_options, json_option, path_options, session_options
from isblk.cli.running import errors_as_sentences
from isblk.cli.text import table
from isblk.config import ALGORITHMS, SECRET_VARIABLE, TARGET_SECRET_VARIABLE
from isblk.errors import UsageError
from isblk.iscsi.chap import STRONGEST_FIRST
from isblk.link.sweeper import Timing
from isblk.logs.output import DEFAULT_LEVEL
from isblk.settings import GLOBAL_SETTINGS, NOT_FOR_DISCOVERY, SETTINGS, Value, as_text, files, load
from isblk.state import NAME_VARIABLE, RUN_VARIABLE, STATE_VARIABLE, known_name, places

HEADINGS = ("SETTING", "VALUE", "FROM")
_IN_ENVIRONMENT = {"initiator-name": NAME_VARIABLE, "state-dir": STATE_VARIABLE, "run-dir": RUN_VARIABLE}


@click.command("config")
@click.argument("target", metavar="[TARGET]", required=False)
@click.option("--discovery", is_flag=True, help="What holds for discovery sessions.")
@json_option
def command(target: str | None, discovery: bool, as_json: bool) -> None:
    """Show the settings that hold and where each comes from: for TARGET, for discovery, or in general.

    \b
    isblk config
    isblk config iqn.2001-05.com.example:disks
    isblk config --discovery --json

    The files are ~/.config/isblk/isblk.conf and /etc/isblk/isblk.conf (isblk.conf(5)); every setting has the name of the option that comes
    before it. Secrets are not shown.
    """
    with errors_as_sentences():
        if target is not None and discovery:
            raise UsageError("TARGET and --discovery exclude each other: ask for one of them")
        rows = effective(target, discovery)
        if as_json:
            click.echo(json.dumps({name: {"value": value, "from": origin} for name, value, origin in rows}, indent=2))
        else:
            click.echo(table(HEADINGS, rows))


def effective(target: str | None, discovery: bool) -> list[tuple[str, str, str]]:
    """Every setting with its value and origin; no secret. Raises UsageError."""
    found = load()
    values = found.for_discovery() if discovery else found.for_target(*(names(target) if target is not None else ()))
    _check(values)
    shown = [name for name in (*SETTINGS, *GLOBAL_SETTINGS) if not (discovery and name in NOT_FOR_DISCOVERY)]
    rows = [(name, *_one(name, values)) for name in shown]
    secrets = [variable for variable in (SECRET_VARIABLE, TARGET_SECRET_VARIABLE) if variable in os.environ]
    rows += [(f"${variable}", "(set)", "environment") for variable in secrets]
    if not found.files:
        rows.append(("-", "-", f"no file is there: {' or '.join(map(str, files()))}"))
    return rows


def _check(values: dict[str, Value]) -> None:
    """Refuse here what a command would refuse. Raises UsageError."""
    probe = click.command()(automount_options(path_options(session_options(_nothing))))
    context = click.Context(probe)
    for parameter in probe.params:
        name = setting(parameter)
        if name in values:
            converted(context, parameter, name, values[name])


def _nothing(**_options: Any) -> None:
    """A command of which only the options are looked at."""


def _one(name: str, values: dict[str, Value]) -> tuple[str, str]:
    """What a setting is, and where that comes from."""
    variable = _IN_ENVIRONMENT.get(name)
    if variable is not None and os.environ.get(variable):
        text = os.environ[variable]  # where the configuration puts it, too (configured.apply_places)
        is_configured = name in GLOBAL_SETTINGS and name in values and text == values[name].value
        return text, values[name].origin if is_configured else f"${variable}"
    if name in values:
        return as_text(values[name].value), values[name].origin
    if name == "initiator-name":
        return known_name(places().state)
    return _default(name), "default"


def _default(name: str) -> str:
    policies, timing = Policies(), Timing()
    words = {algorithm: word for word, algorithm in ALGORITHMS.items()}
    defaults = {
        "chap-algorithms": ",".join(words[each] for each in STRONGEST_FIRST),
        "digest": "allow",
        "login-timeout": f"{timing.login_timeout:g}",
        "log-level": DEFAULT_LEVEL,
        "policy": policies.policy.value,
        "failback": str(policies.failback),
        "no-path-retry": str(policies.no_path),
        "noop-interval": f"{timing.noop_interval:g}",
        "noop-timeout": f"{timing.noop_timeout:g}",
        "fence": policies.fence.value,
        "idle": f"{DEFAULT_IDLE}",
        "state-dir": str(places().state),
        "run-dir": str(places().run),
    }
    return defaults.get(name, "no" if SETTINGS.get(name) is bool else "-")
