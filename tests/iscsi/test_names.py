from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.errors import ProtocolError, UsageError
from isblk.iscsi import names
from isblk.iscsi.names import Isid, Portal, TargetUrl


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("iqn.2001-04.com.example", "iqn.2001-04.com.example"),
        ("iqn.2001-04.com.example:storage:diskarrays-sn-a8675309", "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309"),
        ("IQN.2001-04.COM.Example:Disk2", "iqn.2001-04.com.example:disk2"),
        ("iqn.2001-04.com.example:\u212b", "iqn.2001-04.com.example:\u00e5"),
        ("iqn.2001-04.com.example:a\u00adb", "iqn.2001-04.com.example:ab"),
        ("iqn.2001-04.com.example:stra\u00dfe", "iqn.2001-04.com.example:strasse"),
        ("eui.02004567A425678D", "eui.02004567a425678d"),
        ("naa.52004567BA64678D", "naa.52004567ba64678d"),
        ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
    ],
)
def test_names_have_one_normal_form(text: str, normal: str) -> None:
    assert names.normalize_name(text) == normal
    assert names.is_normal_name(normal)
    assert names.is_normal_name(text) == (text == normal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "iqn",
        "iqn.",
        "iqn.2001-13.com.example",
        "iqn.2001-00.com.example",
        "iqn.2001-4.com.example",
        "iqn.01-04.com.example",
        "iqn.2001-04",
        "iqn.2001-04.",
        "iqn.2001-04.com..example",
        "iqn.2001-04.com.example.",
        "iqn.2001-04.com.example:a b",
        "iqn.2001-04.com.example:a_b",
        "iqn.2001-04.com.example:a/b",
        "iqn.2001-04.com.example:a\n",
        "iqn.2001-04.com.example:a\0",
        "iqn.2001-04.com.example:\u3002",
        "iqn.2001-04.com.example:\uff61",
        "iqn.2001-04.com.example:\u05d0",
        "iqn.2001-04.com.example:\ud800",
        "iqn.2001-04.com.example:\u0221",
        "iqn.2001-04.com.example:\ue000",
        "iqn.2001-04.com.example:" + "x" * 200,
        "eui.02004567A425678",
        "eui.02004567A425678DD",
        "eui.02004567A425678G",
        "naa.52004567BA64678D0",
        "wwn.52004567BA64678D",
        "disk1",
    ],
)
def test_what_is_no_name_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.normalize_name(text)
    assert str(caught.value).isprintable()


def test_the_length_of_a_name_is_counted_in_bytes() -> None:
    stem = "iqn.2001-04.com.example:"
    assert names.normalize_name(stem + "x" * (223 - len(stem)))
    with pytest.raises(UsageError, match="223"):
        names.normalize_name(stem + "\u00e5" * (223 - len(stem)))


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    try:
        name = names.normalize_name("iqn.2001-04.com.example:" + text)
    except UsageError:
        return
    assert names.normalize_name(name) == name


def test_odd_names_of_peers_are_taken_and_escaped_for_printing() -> None:
    assert names.decode_name("My Disk\x1b[2J\u202e") == "My Disk\x1b[2J\u202e"
    assert names.printable("My Disk\x1b[2J\u202e") == "My\\x20Disk\\x1b[2J\\u202e"
    assert names.printable("iqn.2001-04.com.example:d\u00fc") == "iqn.2001-04.com.example:d\u00fc"
    for name in ("", "x" * 224):
        with pytest.raises(ProtocolError):
            names.decode_name(name)


@given(st.text(max_size=60))
def test_printable_text_is_one_word(text: str) -> None:
    shown = names.printable(text)
    assert shown.isprintable()
    assert " " not in shown


@pytest.mark.parametrize(
    ("text", "portal", "shown"),
    [
        ("192.0.2.1", Portal("192.0.2.1"), "192.0.2.1:3260"),
        ("192.0.2.1:5003", Portal("192.0.2.1", 5003), "192.0.2.1:5003"),
        ("10.0.0.1:5003,1", Portal("10.0.0.1", 5003, 1), "10.0.0.1:5003,1"),
        ("10.0.0.1,0x10", Portal("10.0.0.1", 3260, 16), "10.0.0.1:3260,16"),
        ("[1080:0:0:0:8:800:200C:417A],65", Portal("1080::8:800:200c:417a", 3260, 65), "[1080::8:800:200c:417a]:3260,65"),
        ("[1080::8:800:200C:417A]:5003,1", Portal("1080::8:800:200c:417a", 5003, 1), "[1080::8:800:200c:417a]:5003,1"),
        ("::1", Portal("::1"), "[::1]:3260"),
        ("[fe80::1%eth0]:3261", Portal("fe80::1%eth0", 3261), "[fe80::1%eth0]:3261"),
        ("computingcenter.example.com,23", Portal("computingcenter.example.com", 3260, 23), "computingcenter.example.com:3260,23"),
        ("LocalHost:1", Portal("localhost", 1), "localhost:1"),
        ("host,0", Portal("host", 3260, 0), "host:3260,0"),
    ],
)
def test_portals_round_trip(text: str, portal: Portal, shown: str) -> None:
    assert Portal.parse(text) == Portal.from_target_address(text) == portal
    assert str(portal) == shown
    assert Portal.parse(shown) == portal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":3260",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:x",
        "host:3260,",
        "host:3260,65536",
        "host:3260,1,2",
        "[::1",
        "[::1]3260",
        "[::1]:",
        "[host]:3260",
        "[]",
        "::1::2",
        "300.1.1.1",
        "1.2.3",
        "10.0.0.01",
        "a b",
        "a/b",
        "-a",
        "a..b",
        "x" * 64,
        "b\u00fccher.example",
        "host\n",
    ],
)
def test_what_is_no_portal_is_refused_by_whoever_wrote_it(text: str) -> None:
    with pytest.raises(UsageError):
        Portal.parse(text)
    with pytest.raises(ProtocolError):
        Portal.from_target_address(text)


@given(st.text(max_size=40))
def test_random_addresses_raise_only_protocol_error(text: str) -> None:
    try:
        portal = Portal.from_target_address(text)
    except ProtocolError:
        return
    assert Portal.parse(str(portal)) == portal


def test_target_urls() -> None:
    portal = Portal("::1", 3261)
    url = names.parse_target_url("iscsi://alice@[::1]:3261/iqn.2001-04.com.example:d/3")
    assert url == TargetUrl(portal, "iqn.2001-04.com.example:d", 3, "alice")
    assert names.parse_target_url("iscsi://h/iqn.2001-04.com.Example") == TargetUrl(Portal("h"), "iqn.2001-04.com.example")


@pytest.mark.parametrize("text", ["iscsi://alice@[::1]:3261/iqn.2001-04.com.example:d/3", "iscsi://h:3260/eui.02004567a425678d"])
def test_target_urls_round_trip(text: str) -> None:
    assert str(names.parse_target_url(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "iscsi:",
        "iscsi://",
        "iscsi://host",
        "iscsi://host/",
        "nbd://host/iqn.2001-04.com.example",
        "iscsi:///iqn.2001-04.com.example",
        "iscsi://@host/iqn.2001-04.com.example",
        "iscsi://host,1/iqn.2001-04.com.example",
        "iscsi://host/iqn.2001-04.com.example/",
        "iscsi://host/iqn.2001-04.com.example/x",
        "iscsi://host/iqn.2001-04.com.example/-1",
        "iscsi://host/iqn.2001-04.com.example/1/2",
        "iscsi://host/iqn.2001-04.com.example/18446744073709551616",
        "iscsi://host/iqn.2001-04.com.example?x=1",
        "iscsi://ho st/iqn.2001-04.com.example",
    ],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        names.parse_target_url(text)


@pytest.mark.parametrize("user", ["alice%hunter2hunter2", "alice:hunter2hunter2", "alice%hunter2@hunter2"])
def test_a_password_in_a_url_is_refused_and_not_repeated(user: str) -> None:
    with pytest.raises(UsageError, match="secret") as caught:
        names.parse_target_url(f"iscsi://{user}@host/iqn.2001-04.com.example")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=60))
def test_random_arguments_raise_only_usage_error(text: str) -> None:
    for parse in (names.normalize_name, Portal.parse, names.parse_target_url, Isid.parse):
        for prefix in ("", "iscsi://", "iscsi://h/iqn.2001-04.com.example/"):
            try:
                parse(prefix + text)
            except UsageError:
                pass


def test_isids_of_each_format_are_literal() -> None:
    assert bytes(Isid.from_random(0xABCDEF, 0x1234)) == bytes.fromhex("80abcdef1234")
    assert bytes(Isid.from_oui(0x023D5A, 0x000001)) == bytes.fromhex("023d5a000001")
    assert bytes(Isid.from_enterprise_number(0x0000A5, 2)) == bytes.fromhex("400000a50002")


def test_isids_round_trip_as_hex() -> None:
    isid = Isid.from_random(names.new_random(), 7)
    assert Isid.parse(str(isid)) == Isid.parse("0x" + str(isid).upper()) == isid
    for text in ("", "80abcdef12", "80abcdef123456", "c00000000000", "80abcdef123g", "80abcdef1234\n"):
        with pytest.raises(UsageError):
            Isid.parse(text)


def test_isid_parts_that_do_not_fit_are_the_callers_error() -> None:
    for make in (lambda: Isid.from_random(1 << 24), lambda: Isid.from_random(0, 1 << 16), lambda: Isid.from_oui(1 << 22)):
        with pytest.raises(OverflowError):
            make()
    with pytest.raises(UsageError):
        Isid(b"short")


def test_a_target_may_have_underscores_which_storage_systems_use() -> None:
    assert names.target_name("iqn.2000-01.com.example:my_nas") == "iqn.2000-01.com.example:my_nas"
    assert names.target_name("IQN.2000-01.com.example:Disk-1") == "iqn.2000-01.com.example:disk-1"
    with pytest.raises(UsageError):
        names.target_name("iqn.2000-01.com.example:my nas_1")


def test_a_url_keeps_the_name_as_it_was_spelled() -> None:
    url = names.parse_target_url("iscsi://10.0.0.5/iqn.2000-01.com.example:Disk-1/2")
    assert (url.name, url.spelled) == ("iqn.2000-01.com.example:disk-1", "iqn.2000-01.com.example:Disk-1")
