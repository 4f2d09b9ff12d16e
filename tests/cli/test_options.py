"""What the shared options take and refuse."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from isblk.cli.options import DIGESTS, Lun, Size, discovery_options, json_option, lun_option, parse_size, session_options
from isblk.iscsi.terms import DIGEST_OFFERS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        (" 512 ", 512),
        ("512B", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4KB", 4096),
        ("4KiB", 4096),
        ("1M", 1 << 20),
        ("10gib", 10 << 30),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    "text", ["", " ", "k", "B", "1.5G", "-1", "4x", "4kk", "4 4", "0x10", "1e3", "\u0664k", "\u00b2", "1iB2", "1KiBiB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)
    with pytest.raises(click.BadParameter, match="is not a size; it looks like 4096, 4k, 1M or 10GiB"):
        Size().convert(text, None, None)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("255", 255), ("16383", 16383), ("0x0", 0)])
def test_luns(text: str, number: int) -> None:
    assert Lun().convert(text, None, None) == number
    assert Lun().convert(number, None, None) == number


@pytest.mark.parametrize("text", ["", "one", "-1", "1.0", "99999999999999999999999"])
def test_what_is_no_lun(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Lun().convert(text, None, None)


def test_every_digest_choice_is_one_that_a_login_knows() -> None:
    assert all(one in DIGEST_OFFERS for pair in DIGESTS.values() for one in pair)
    assert DIGESTS["both"] == ("crc32c", "crc32c") and DIGESTS["header"] == ("crc32c", "none")


def parsed(decorate: Any, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command()
    @decorate
    def command(**options: Any) -> None:
        found.update(options)

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return found


def test_defaults_of_a_session() -> None:
    assert parsed(session_options) == {
        "portals": (),
        "user": None,
        "secret_file": None,
        "target_user": None,
        "target_secret_file": None,
        "chap_algorithms": None,
        "no_md5_retry": False,
        "digest": "allow",
        "initiator_name": None,
        "login_timeout": 15.0,
        "verbose": 0,
        "quiet": False,
        "log_level": None,
        "trace": False,
        "pcap": None,
    }


def test_a_discovery_has_the_same_without_portals() -> None:
    assert set(parsed(session_options)) - set(parsed(discovery_options)) == {"portals"}


def test_portals_and_verbosity_add_up() -> None:
    found = parsed(session_options, "-p", "one", "--portal", "two:3261", "-vv")
    assert (found["portals"], found["verbose"]) == (("one", "two:3261"), 2)


def test_single_options() -> None:
    assert parsed(json_option, "--json") == {"as_json": True}
    assert parsed(lun_option, "--lun", "7") == {"lun": 7}
    assert parsed(lun_option) == {"lun": None}
