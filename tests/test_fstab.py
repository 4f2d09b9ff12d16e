"""What mount(8) and umount(8) say to their helpers, and what of it `isblk mount` is called with."""

from __future__ import annotations

import pytest

from isblk.errors import ExitCode, UsageError
from isblk.fstab import IMPOSSIBLE, MOUNTER, WITHOUT_MEANING, Call, arguments, exit_code, parse_mount, parse_umount, split

NAME = "iqn.2001-05.com.example:disks"


def mount(*words: str, sloppy: bool = False) -> list[str]:
    return arguments(Call(NAME, "/mnt/lun0", words, sloppy=sloppy))


def test_a_call_as_mount_makes_it() -> None:
    call = parse_mount(
        [NAME, "/mnt/lun0", "-f", "-n", "-v", "-s", "-N", "/proc/1/ns/mnt", "-o", "rw,portal=10.0.0.5,nofail", "-t", "isblk.x"]
    )
    assert call == Call(NAME, "/mnt/lun0", ("rw", "portal=10.0.0.5", "nofail"), True, True, True, namespace="/proc/1/ns/mnt")


def test_a_call_as_umount_makes_it() -> None:
    assert parse_umount(["/mnt/lun0", "-n", "-l", "-f", "-v", "-r", "-t", "fuse.isblk"]) == Call(
        "", "/mnt/lun0", verbose=True, lazy=True, force=True, read_only=True
    )
    assert parse_umount(["-N", "/ns", "/mnt/lun0"]).namespace == "/ns"


@pytest.mark.parametrize("argv", [[], [NAME], [NAME, "/mnt", "/more"], [NAME, "/mnt", "-x"], [NAME, "/mnt", "-o"]])
def test_another_call_is_told_how_it_is_made(argv: list[str]) -> None:
    with pytest.raises(UsageError, match=r"mount\.isblk SPEC DIR"):
        parse_mount(argv)


def test_umount_takes_one_place() -> None:
    with pytest.raises(UsageError, match=r"umount\.fuse\.isblk DIR"):
        parse_umount(["/one", "/two"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("rw", ["rw"]),
        ("rw,,portal=10.0.0.5,", ["rw", "portal=10.0.0.5"]),
        ('a="x,y",b', ["a=x,y", "b"]),
        ('portal="[::1]:3260"', ["portal=[::1]:3260"]),
    ],
)
def test_options_come_apart_at_commas_outside_of_quotes(text: str, words: list[str]) -> None:
    assert split(text) == words


def test_a_quote_without_another_is_an_error() -> None:
    with pytest.raises(UsageError, match="without another"):
        split('rw,portal="[::1]')


def test_what_isblk_mount_is_called_with() -> None:
    assert mount("rw", "portal=10.0.0.5", "portal=[::1]:3261", "lun=2", "noatime", "allow_other", "policy=round-robin", "shared") == [
        *("-o", f"fsname={NAME},noatime", "-o", "rw", "--portal=10.0.0.5", "--portal=[::1]:3261", "--lun=2", "-o", "allow_other"),
        *("--policy=round-robin", "--shared", "--", NAME, "/mnt/lun0"),
    ]


def test_a_place_is_made_absolute_since_the_daemon_leaves_this_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert arguments(Call(NAME, "lun0"))[-1] == "/usr/lun0"


def test_a_value_may_hold_commas_blanks_and_backslashes() -> None:
    assert "--chap-algorithms=sha256,md5" in mount("chap-algorithms=sha256,md5")
    assert "--user=a\\b c" in mount("user=a\\b c")


def test_what_every_file_system_has_says_nothing_to_isblk_mount() -> None:
    words = [*MOUNTER, *WITHOUT_MEANING, "x-systemd.requires=a.service", "X-mount.mkdir", "comment=ours", "uhelper=isblk"]
    assert mount(*words) == mount()


@pytest.mark.parametrize("word", IMPOSSIBLE)
def test_what_a_disk_cannot_be_says_what_to_do_instead(word: str) -> None:
    with pytest.raises(UsageError, match=f"the option {word} is not for isblk: .*{IMPOSSIBLE[word][-20:]}"):
        mount("rw", word)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("prtal=10.0.0.5", "is portal meant"),
        ("Portal=10.0.0.5", "is portal meant"),
        ("_netdv", "is _netdev meant"),
        ("notime", "is noatime meant"),
        ("nofial", "is nofail meant"),
        ("allow-other", "is allow_other meant"),
        ("zzzzzz", "there are noauto|there are .*portal"),
    ],
)
def test_an_unknown_option_is_an_error_with_the_nearest_word(word: str, near: str) -> None:
    with pytest.raises(UsageError, match=near) as raised:
        mount("rw", word)
    assert str(raised.value).startswith(f"there is no option {word.partition('=')[0]!r}: ")
    assert mount(word, sloppy=True) == mount()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("policy=fastest", "policy cannot be 'fastest'"),
        ("lun=x", "lun cannot be 'x'"),
        ("portal", "portal needs a value"),
        ("shared=yes", "shared takes no value"),
        ("secret=abc", "secret-file"),
        ("timeout=5", r"isblktab\(5\)"),
    ],
)
def test_a_value_that_is_not_right_is_an_error(word: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        mount(word)
    with pytest.raises(UsageError, match=sentence):
        mount(word, sloppy=True)


def test_exit_codes_are_those_of_mount() -> None:
    assert {code: exit_code(code) for code in ExitCode} == {
        ExitCode.DONE: 0,
        ExitCode.BUG: 4,
        ExitCode.USAGE: 1,
        ExitCode.NOT_FOUND: 32,
        ExitCode.REFUSED: 32,
        ExitCode.UNREACHABLE: 32,
        ExitCode.IO_ERROR: 32,
        ExitCode.INTERRUPTED: 8,
    }
    assert exit_code(77) == 32
