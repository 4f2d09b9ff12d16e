"""The configuration files: what comes first, what is refused and with which words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.cli.options import automount_options, discovery_options, path_options, session_options
from isblk.errors import UsageError
from isblk.settings import LARGEST_FILE, NOT_FOR_DISCOVERY, SETTINGS, Settings, as_text, files, load, parse

NAME = "iqn.2026-11.test.isblk:disks"
WHERE = Path("/etc/isblk/isblk.conf")


def values(settings: Settings, *names: str) -> dict[str, Any]:
    return {name: found.value for name, found in settings.for_target(*names).items()}


def written(place: Path, text: str | bytes, mode: int = 0o644) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    place.chmod(mode)
    return place


def test_the_special_comes_before_the_general_and_the_users_before_the_systems() -> None:
    system = parse(
        WHERE,
        f"""
        digest = "both"
        policy = "failover"
        user = "everybody"
        [target."{NAME}"]
        user = "named"
        [target."iqn.2026-11.test.isblk:*"]
        user = "longer"
        policy = "round-robin"
        [target."iqn.*"]
        policy = "queue-length"
        fence = "fast"
        """,
    )
    user = parse(Path("/home/me/isblk.conf"), 'digest = "none"\nuser = "mine"\nfence = "strict"\n')
    found = Settings([user, system])
    assert values(found, NAME) == {"user": "named", "policy": "round-robin", "fence": "fast", "digest": "none"}
    assert values(found, "eui.0123456789abcdef") == {"user": "mine", "policy": "failover", "fence": "strict", "digest": "none"}
    assert found.for_target(NAME)["user"].origin == f'/etc/isblk/isblk.conf [target."{NAME}"]'
    assert found.for_target(NAME)["digest"].origin == "/home/me/isblk.conf"
    assert found.for_target(NAME)["user"].directory == Path("/etc/isblk")


def test_of_two_equal_patterns_the_users_is_taken() -> None:
    found = Settings([parse(Path("/u"), '[target."iqn.*"]\nuser = "u"'), parse(Path("/s"), '[target."iqn.*"]\nuser = "s"')])
    assert values(found, NAME) == {"user": "u"}


def test_a_section_may_spell_a_name_as_the_command_line_does() -> None:
    found = Settings([parse(WHERE, f'[target."{NAME.upper()}"]\nuser = "me"')])
    assert values(found, NAME, NAME.upper()) == {"user": "me"} and values(found, NAME) == {}


def test_discovery_has_a_section_of_its_own_and_nothing_of_paths() -> None:
    text = 'user = "everybody"\npolicy = "round-robin"\nlogin-timeout = 3\nstate-dir = "/var/x"\n[discovery]\nuser = "looker"\n'
    found = Settings([parse(WHERE, text)])
    assert {name: one.value for name, one in found.for_discovery().items()} == {"user": "looker", "login-timeout": 3, "state-dir": "/var/x"}
    assert {name: one.value for name, one in found.of_the_host().items()} == {"state-dir": "/var/x"}


def test_every_setting_is_an_option_and_every_lasting_option_a_setting() -> None:
    @automount_options
    @path_options
    @session_options
    def command() -> None: ...

    @discovery_options
    def looking() -> None: ...

    def longs(function: Any) -> set[str]:
        return {text[2:] for one in function.__click_params__ for text in one.opts if text.startswith("--")}

    assert set(SETTINGS) == longs(command) - {"verbose", "quiet", "trace", "pcap"}
    assert {name for name in SETTINGS if name not in NOT_FOR_DISCOVERY} == longs(looking) - {"verbose", "quiet", "trace", "pcap"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('polcy = "failover"', "there is no setting 'polcy'; is policy meant"),
        ("login_timeout = 3", "is login-timeout meant"),
        ('[targets."x"]\nuser = "a"', "is target meant"),
        ("frobnicate = 1", "no setting 'frobnicate'; there are portal, user"),
        ('secret = "abc"', "not kept in this file: .* mode 0600, .* secret-file"),
        ('[target."x"]\ntarget-password = "abc"', "target-secret-file"),
        ('[target."x"]\nstate-dir = "/x"', "state-dir cannot be set here"),
        ('[discovery]\npolicy = "failover"', "policy cannot be set here"),
        ('[target."x".deep]\nuser = "a"', r'\[target."x"\] there is no setting'),
        ("[target]\nuser = 'a'", "user stands in .target., where only sections such as"),
        ("target = 'x'", r"target is a section, written \[target.NAME\]"),
        ("discovery = 1", r"discovery is a section, written \[discovery\]"),
        ("shared = 1", "shared is true or false, without quotes"),
        ("shared = 'yes'", "shared is true or false"),
        ("portal = 3260", "portal is a text, or several in brackets"),
        ("portal = []", "portal is a text"),
        ("portal = ['a', 1]", "portal is a text"),
        ("login-timeout = '15'", "login-timeout is a number"),
        ("policy = true", "policy is a text in quotes"),
        ("user = ['a']", "user is a text in quotes"),
        ("state-dir = {}", "state-dir is a text"),
        ("user = 'a\npolicy'", "is not TOML: .*line 1"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("user = 'a'\nuser = 'b'", "is not TOML"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_remedy(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        parse(WHERE, text)
    assert str(caught.value).startswith(str(WHERE)) and "\n" not in str(caught.value) and "abc" not in str(caught.value)


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        found = Settings([parse(WHERE, text)])
    except UsageError:
        return
    found.for_target(NAME)
    found.for_discovery()


def test_where_it_is_looked_for() -> None:
    assert files({"HOME": "/home/me"}) == [Path("/home/me/.config/isblk/isblk.conf"), WHERE]
    assert files({"HOME": "/home/me", "XDG_CONFIG_HOME": "/cfg"}) == [Path("/cfg/isblk/isblk.conf"), WHERE]
    assert files({}) == [WHERE] and files({"XDG_CONFIG_HOME": "relative"}) == [WHERE]
    assert files({"HOME": "/home/me", "ISBLK_CONFIG": "/x.conf"}) == [Path("/x.conf")]
    assert files({"HOME": "/home/me", "ISBLK_CONFIG": ""}) == []


def test_files_that_are_not_there_say_nothing_but_one_that_was_named_must_be(tmp_path: Path) -> None:
    assert load({"HOME": str(tmp_path)}, tmp_path / "none").files == ()
    assert load({"HOME": str(written(tmp_path / "file", ""))}, tmp_path / "none").files == ()
    with pytest.raises(UsageError, match=r"missing.conf, which \$ISBLK_CONFIG names, is not there"):
        load({"ISBLK_CONFIG": str(tmp_path / "missing.conf")})


def test_both_files_are_read(tmp_path: Path) -> None:
    system = written(tmp_path / "etc" / "isblk.conf", 'user = "s"\ndigest = "both"\n')
    written(tmp_path / ".config" / "isblk" / "isblk.conf", 'user = "u"\n', 0o600)
    assert values(load({"HOME": str(tmp_path)}, system)) == {"user": "u", "digest": "both"}


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "isblk.conf", "", mode)
    with pytest.raises(UsageError, match=r"others can change the configuration file .*chmod go-w"):
        load({"ISBLK_CONFIG": str(path)})


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, root: None) -> None:
    path = written(tmp_path / "isblk.conf", "")
    os.chown(path, 12345, 12345)
    with pytest.raises(UsageError, match="chown it to you or root"):
        load({"ISBLK_CONFIG": str(path)})


def test_a_file_that_cannot_be_one(tmp_path: Path) -> None:
    for data, match in ((b"\xff", "not UTF-8 at byte 0"), (b"#" * (LARGEST_FILE + 1), "is larger than")):
        with pytest.raises(UsageError, match=match):
            load({"ISBLK_CONFIG": str(written(tmp_path / "isblk.conf", data))})
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load({"ISBLK_CONFIG": str(tmp_path)})


def test_values_as_a_command_line_has_them() -> None:
    assert [as_text(value) for value in (True, False, 3, 2.5, "x", ["a", "b"])] == ["yes", "no", "3", "2.5", "x", "a b"]
