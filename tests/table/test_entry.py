"""Entries of a table: what a line means, the command it becomes, and what is told of a line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isblk.table.entry import DEFAULT_RETRY, DEFAULT_TIMEOUT, Entry, parse, parse_options
from isblk.table.fields import Piece
from isblk.table.options import IN_PLACE, Kind
from isblk.table.problems import Problems, Say

NAME = "iqn.2001-05.com.example:disks"


def only(text: str) -> Entry:
    table = parse("/etc/isblk/isblktab", text)
    assert not table.problems, [str(problem) for problem in table.problems]
    (entry,) = table.entries
    return entry


def test_a_line_of_each_type() -> None:
    table = parse(
        "/etc/isblk/isblktab",
        f"# disks\n{NAME} /mnt/lun0 fuse portal=10.0.0.5,lun=0\n{NAME}\t/run/disk.sock  nbd\n"
        f"ISCSI://10.0.0.5/{NAME}/2 /dev/nbd0 attach -\n",
    )
    assert not table.problems
    assert [(entry.where, entry.kind, entry.line, entry.columns) for entry in table.entries] == [
        ("/mnt/lun0", Kind.FUSE, 2, (1, 31, 41, 46)),
        ("/run/disk.sock", Kind.NBD, 3, (1, 31, 47, 51)),
        ("/dev/nbd0", Kind.ATTACH, 4, (1, 50, 60, 67)),
    ]
    assert [entry.name for entry in table.entries] == [NAME] * 3


def test_the_command_of_a_mount_has_every_option_and_paths_from_the_tables_directory() -> None:
    entry = only(
        f"{NAME} /mnt/a\\040b fuse portal=a,portal=[::1]:1,lun=3,ro,user=me,secret-file=own,policy=round-robin,shared,noauto,retry=5"
    )
    assert entry.command() == [
        "mount",
        "--foreground",
        *("--portal=a", "--portal=[::1]:1", "--lun=3", "-o", "ro", "--user=me", "--secret-file=/etc/isblk/own"),
        *("--policy=round-robin", "--shared"),
        *("--", NAME, "/mnt/a b"),
    ]


def test_the_command_of_an_nbd_server_says_where_to_listen() -> None:
    assert only(f"{NAME} /run/a.sock nbd").command() == ["nbd", "--foreground", "--socket", "/run/a.sock", "--", NAME]
    assert only(f"{NAME} localhost:1 nbd").command() == ["nbd", "--foreground", "--listen", "localhost:1", "--", NAME]


def test_the_command_of_a_block_device_tells_its_two_timeouts_apart() -> None:
    entry = only(f"{NAME} /dev/nbd3 attach timeout=5,device-timeout=500,connections=2")
    assert entry.command() == ["attach", "--foreground", "--timeout=500", "--connections=2", "--", NAME, "/dev/nbd3"]
    assert entry.patience == 5


@pytest.mark.parametrize(
    ("written", "where"),
    [
        ("/mnt//a/../b/", "/mnt/b"),
        ("//mnt/a", "/mnt/a"),
    ],
)
def test_where_is_kept_in_its_shortest_form(written: str, where: str) -> None:
    assert only(f"{NAME} {written} fuse").where == where


@pytest.mark.parametrize(
    ("written", "where"),
    [("127.0.0.1:99", "127.0.0.1:99"), ("[::1]:99", "[::1]:99"), ("::1", "[::1]:10809"), ("[::1]", "[::1]:10809")],
)
def test_an_nbd_server_at_an_address_has_its_port(written: str, where: str) -> None:
    entry = only(f"{NAME} {written} nbd")
    assert entry.where == where
    assert not entry.is_path


def test_a_command_without_what_can_change_in_place() -> None:
    entry = only(f"{NAME} /a fuse portal=a,policy=round-robin,ro,no-path-retry=queue")
    assert entry.in_place == IN_PLACE
    assert entry.command(entry.in_place) == only(f"{NAME} /a fuse portal=a,ro,fence=fast").command(entry.in_place)
    assert only(f"{NAME} /a fuse automount").in_place == ()


def test_what_up_waits_for() -> None:
    plain, may_fail = only(f"{NAME} /a fuse"), only(f"{NAME} /a fuse nofail")
    assert (plain.patience, plain.nofail, plain.noauto, plain.automount) == (DEFAULT_TIMEOUT, False, False, False)
    assert (may_fail.patience, may_fail.nofail) == (0, True)
    assert only(f"{NAME} /a fuse nofail,timeout=7,noauto,automount").patience == 7
    assert (plain.retry, only(f"{NAME} /a fuse retry=5").retry, only(f"{NAME} /a fuse retry=never").retry) == (DEFAULT_RETRY, 5, None)


def test_a_url_says_where_the_target_is_and_by_whom_it_is_asked() -> None:
    entry = only(f"iscsi://me@10.0.0.5:99/{NAME}/2 /a fuse")
    assert entry.url is not None
    assert (entry.name, str(entry.url.portal), entry.url.user, entry.url.lun) == (NAME, "10.0.0.5:99", "me", 2)
    assert entry.names == (NAME, NAME)


def test_a_name_is_looked_up_as_it_is_written_too() -> None:
    assert only("IQN.2001-05.com.example:Disks /a fuse").names == (NAME, "IQN.2001-05.com.example:Disks")


def test_a_secret_of_systemd_and_of_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert only(f"{NAME} /a fuse user=a,secret-file=credential:disk").value("secret-file") == "credential:disk"
    assert only(f"{NAME} /a fuse user=a,secret-file=~/disk").value("secret-file") == "/home/me/disk"


def test_a_relative_table_has_its_paths_from_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (entry,) = parse("tab", f"{NAME} /a fuse user=a,secret-file=b").entries
    assert entry.value("secret-file") == str(tmp_path / "b")


def test_every_mistake_of_a_line_is_told_and_the_next_line_is_read_all_the_same() -> None:
    table = parse("tab", f"{NAME} disk nbdd portl=10.0.0.5,ro=1,timeout=soon,,user\n{NAME} /b fuse\n")
    assert [str(problem) for problem in table.problems.in_order()] == [
        "tab:1:31: WHERE is 'disk', but must be an absolute path, such as /disk",
        "tab:1:36: there is no type 'nbdd': is nbd meant?",
        "tab:1:41: there is no option 'portl': is portal meant?",
        "tab:1:59: ro takes no value: leave '1' out",
        "tab:1:69: timeout cannot be 'soon': it is a number of seconds from 1 to 86400",
        "tab:1:74: an option is empty: take one of the two commas away",
        "tab:1:75: user needs a value: user=NAME",
    ]
    assert [entry.where for entry in table.entries] == ["/b"]


def test_a_line_that_is_wrong_still_has_its_place() -> None:
    table = parse("tab", f"{NAME} /a fuse x=1\n{NAME} /a fuse\n")
    assert [problem.say for problem in table.problems] == [Say.UNKNOWN_OPTION, Say.SAME_WHERE]
    assert [entry.line for entry in table.doubtful] == [1, 2]


def test_the_options_of_another_table_are_read_the_same_way() -> None:
    problems = Problems("fstab")
    found = parse_options(Piece("portal=10.0.0.5,ro,idle=1", 20), 3, Kind.NBD, problems)
    assert [(given.name, given.value, given.column) for given in found] == [("portal", "10.0.0.5", 27), ("ro", None, 36)]
    assert [(problem.say, problem.line, problem.column) for problem in problems] == [(Say.OTHER_TYPE, 3, 39)]


@pytest.mark.parametrize("secret", ["secret=hunter2hunter2", "Target-Password=hunter2hunter2", "password=hunter2\\x"])
def test_a_secret_in_a_table_is_not_repeated(secret: str) -> None:
    for line in (f"{NAME} /a fuse {secret}", f"{NAME} /a fuse ro {secret}", f"iscsi://me%hunter2@a/{NAME} /a fuse"):
        table = parse("tab", line)
        assert table.problems
        assert not [str(problem) for problem in table.problems if "hunter2" in str(problem)]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(st.sampled_from("abc =,\\0147#\t\n:/"), max_size=60))
def test_any_text_is_entries_and_problems(one: str, other: str) -> None:
    for text in (one, f"{NAME} /a fuse {other}", f"{NAME} {one} nbd {other}", other):
        table = parse("tab", text)
        for entry in table.entries:
            assert entry.command()
        for problem in table.problems:
            assert problem.line >= 1
            assert problem.sentence
