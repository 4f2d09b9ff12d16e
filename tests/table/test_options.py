"""The options of a table against the commands they are for: none is missing, none is made up, and every example is taken."""

from __future__ import annotations

import re
from importlib import import_module

import click
import pytest

from isblk.settings import SETTINGS
from isblk.table.options import COMMANDS, FSTAB, IGNORED, OPTIONS, SECRETS, Kind, of

LEFT_OUT = {
    "--foreground",  # each is served in the foreground, by the supervisor
    "--exit-on-last",  # would end what the table says should be there
    "--log-file",  # the supervisor logs for all
    "--verbose",
    "--quiet",
    "--trace",
    "--pcap",
    "--help",
    "--read-only",  # -o ro
    "--socket",  # WHERE
    "--listen",  # WHERE
}
RIGHT = {
    "portal": "10.0.0.5:3260",
    "lun": "0x0001000000000000",
    "chap-algorithms": "sha256,sha1",
    "replacement-timeout": "-1",
    "noop-interval": "0",
    "failback": "manual",
    "no-path-retry": "queue",
    "login-timeout": "0.5",
    "secret-file": "/dev/null",
}
BARELY_WRONG = {
    "timeout": ("0", "86401", "1.0001", "soon", "-1", "1e3"),
    "retry": ("0", "Never", "86401"),
    "idle": ("-1", "never"),
    "lun": ("0x", "1.0", "18446744073709551616", "²"),
    "portal": ("10.0.0.5:0", "10.0.0.5:65536", "::1:2:", "a b", "[::1"),
    "digest": ("crc32c", "Both"),
    "chap-algorithms": ("md5,md5", "sha512", "md5,"),
    "initiator-name": ("host", "iqn.2001"),
    "log-level": ("all", "Warning"),
    "login-timeout": ("0", "3601", "0.09"),
    "policy": ("roundrobin",),
    "failback": ("immediately", "-1"),
    "no-path-retry": ("never", "-1"),
    "replacement-timeout": ("-2", "queue"),
    "noop-interval": ("0.5", "-1"),
    "noop-timeout": ("0", "0.9"),
    "fence": ("loose",),
    "queue-depth": ("0", "1.5"),
    "fuse-engine": ("libfuse",),
    "max-connections": ("0", "10001", "1.5"),
    "connections": ("0", "65"),
    "device-timeout": ("0", "2000001", "1.5"),
    "dead-connection-timeout": ("-1", "2000001"),
}


def command(kind: Kind) -> click.Command:
    found = import_module(f"isblk.cli.{COMMANDS[kind]}").command
    assert isinstance(found, click.Command)
    return found


def arguments(kind: Kind) -> set[str]:
    return {word for parameter in command(kind).params for word in parameter.opts if word.startswith("--")}


@pytest.mark.parametrize("kind", Kind)
def test_every_option_of_a_command_is_one_of_the_table_or_left_out_on_purpose(kind: Kind) -> None:
    known = {option.argument for option in OPTIONS.values() if kind in option.kinds}
    assert arguments(kind) - known - LEFT_OUT == set()


@pytest.mark.parametrize("kind", Kind)
def test_every_option_of_the_table_is_one_of_its_command(kind: Kind) -> None:
    named = {OPTIONS[name].argument for name in of(kind) if OPTIONS[name].argument.startswith("--")}
    assert named - arguments(kind) == set()


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.argument.startswith("--")])
def test_a_right_value_is_right_for_the_command_too(name: str) -> None:
    option = OPTIONS[name]
    value = RIGHT.get(name, option.value.example if option.value is not None else None)
    if option.value is not None:
        assert value is not None
        assert option.value.is_right(value)
    for kind in option.kinds:
        line = [option.argument if value is None else f"{option.argument}={value}", "--", "iqn.2001-05.com.example:a"]
        command(kind).make_context("isblk", [*line, *([] if kind is Kind.NBD else ["/where"])])


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.value is not None])
def test_a_wrong_value_is_not(name: str) -> None:
    value = OPTIONS[name].value
    assert value is not None
    assert not value.is_right("")
    for text in BARELY_WRONG.get(name, ()):
        assert not value.is_right(text), text


def test_every_setting_of_the_configuration_is_an_option_of_every_type_it_concerns() -> None:
    assert set(SETTINGS) <= set(OPTIONS)
    for name, kind in SETTINGS.items():
        assert (OPTIONS[name].value is None) is (kind is bool), name
        assert OPTIONS[name].is_repeatable is (kind is list), name
        assert OPTIONS[name].argument == f"--{name}"


def test_words_for_what_is_no_option_are_none() -> None:
    assert not {*SECRETS, *IGNORED} & set(OPTIONS)
    assert set(SECRETS.values()) <= set(OPTIONS)
    assert not [name for name in OPTIONS if FSTAB.fullmatch(name)]
    assert FSTAB.fullmatch("x-systemd.requires=a")
    assert re.fullmatch(FSTAB, "_netdev")
