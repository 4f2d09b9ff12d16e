"""Everything that `isblk check` can say, each provoked by a table; and what it does not say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from isblk.errors import UsageError
from isblk.settings import FILE_VARIABLE
from isblk.table import check as module
from isblk.table.check import check, load
from isblk.table.entry import Table
from isblk.table.problems import Say

NAME = "iqn.2001-05.com.example:disks"
ENVIRONMENT = {FILE_VARIABLE: ""}

LINES: dict[Say, tuple[str, int]] = {
    Say.MISSING_FIELD: (f"{NAME} /a", 34),
    Say.EXTRA_FIELD: (f"{NAME} /a fuse portal=a # why", 48),
    Say.BAD_ESCAPE: (f"{NAME} /a\\b fuse portal=a", 33),
    Say.BAD_TARGET: ("disks /a fuse portal=a", 1),
    Say.URL_PORTAL: (f"iscsi://a/{NAME} /a fuse portal=b", 56),
    Say.URL_LUN: (f"iscsi://a/{NAME}/1 /a fuse lun=2", 55),
    Say.RELATIVE_WHERE: (f"{NAME} mnt/a fuse portal=a", 31),
    Say.BAD_LISTEN: (f"{NAME} localhost:http nbd portal=a", 31),
    Say.NOT_A_DEVICE: (f"{NAME} any attach portal=a", 31),
    Say.A_DEVICE: (f"{NAME} /dev/nbd0 nbd portal=a", 31),
    Say.SAME_WHERE: (f"{NAME} /a fuse portal=a\n{NAME} /./a fuse portal=b", 31),
    Say.UNKNOWN_TYPE: (f"{NAME} /a fsue portal=a", 34),
    Say.EMPTY_OPTION: (f"{NAME} /a fuse portal=a,,ro", 48),
    Say.UNKNOWN_OPTION: (f"{NAME} /a fuse portal=a,fence_policy=fast,read-only", 48),
    Say.OTHER_TYPE: (f"{NAME} /a fuse portal=a,connections=4", 48),
    Say.FSTAB_OPTION: (f"{NAME} /a fuse portal=a,_netdev", 48),
    Say.PLACE_OPTION: (f"{NAME} /a nbd portal=a,listen=0.0.0.0", 47),
    Say.SECRET_IN_TABLE: (f"{NAME} /a fuse portal=a,password=abcdefghijkl", 48),
    Say.TWICE: (f"{NAME} /a fuse portal=a,lun=1,lun=1", 54),
    Say.NO_VALUE: (f"{NAME} /a fuse portal", 39),
    Say.VALUE_OF_FLAG: (f"{NAME} /a fuse portal=a,shared=yes", 55),
    Say.BAD_VALUE: (f"{NAME} /a fuse portal=a,policy=robin", 55),
    Say.CONTRADICTION: (f"{NAME} /a fuse portal=a,auto,noauto", 53),
    Say.NEEDS: (f"{NAME} /a fuse portal=a,secret-file=b", 60),
    Say.WRITEBACK_ENGINE: (f"{NAME} /a fuse portal=a,writeback,fuse-engine=pyfuse3", 48),
    Say.SAME_PORTAL: (f"{NAME} /a fuse portal=a,portal=a", 55),
    Say.NO_PORTAL: (f"{NAME} /a fuse", 1),
    Say.NO_PINGS: (f"{NAME} /a fuse portal=a,portal=b,noop-interval=0", 71),
    Say.TWO_RETRIES: (f"{NAME} /a fuse portal=a,no-path-retry=fail,replacement-timeout=1", 87),
    Say.SHORT_DEVICE_TIMEOUT: (f"{NAME} /dev/nbd0 attach portal=a,device-timeout=60", 72),
    Say.OPEN_TO_ALL: (f"{NAME} 0.0.0.0:10809 nbd portal=a", 31),
    Say.NO_SECRET: (f"{NAME} /a fuse portal=a,user=me", 53),
    Say.BAD_SECRET: (f"{NAME} /a fuse portal=a,user=me,secret-file=absent", 68),
    Say.SAME_SECRETS: (f"{NAME} /a fuse portal=a,user=me,secret-file=one,target-user=it,target-secret-file=two", 106),
    Say.BAD_TLS: (f"{NAME} 0.0.0.0:1 nbd portal=a,tls-certificates=absent", 71),
}
"""Of what a line can provoke: a table, and the column that is named, in its last line."""


def write(tmp_path: Path, text: str) -> Path:
    for name, secret in (("one", "abcdefghijkl"), ("two", "abcdefghijkl\r\n")):
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "isblktab"
    path.write_text(text)
    path.chmod(0o644)
    return path


def absent(tmp_path: Path) -> Table:
    return check(tmp_path / "isblktab", ENVIRONMENT)


def a_directory(tmp_path: Path) -> Table:
    return check(tmp_path, ENVIRONMENT)


def not_text(tmp_path: Path) -> Table:
    path = write(tmp_path, "")
    path.write_bytes(b"# one\n\xff\n")
    return check(path, ENVIRONMENT)


def too_large(tmp_path: Path) -> Table:
    return check(write(tmp_path, "#" * (module.LARGEST + 1)), ENVIRONMENT)


def for_all_to_write(tmp_path: Path) -> Table:
    path = write(tmp_path, f"{NAME} /a fuse portal=a")
    path.chmod(0o664)
    return check(path, ENVIRONMENT)


def with_a_wrong_configuration(tmp_path: Path) -> Table:
    (tmp_path / "conf").write_text("polcy = 1\n")
    return check(write(tmp_path, f"{NAME} /a fuse portal=a"), {FILE_VARIABLE: str(tmp_path / "conf")})


FILES: dict[Say, Callable[[Path], Table]] = {
    Say.NO_TABLE: absent,
    Say.UNREADABLE: a_directory,
    Say.NOT_TEXT: not_text,
    Say.TOO_LARGE: too_large,
    Say.OTHERS_CAN_WRITE: for_all_to_write,
    Say.CONFIGURATION: with_a_wrong_configuration,
}


def test_every_sentence_is_provoked_below() -> None:
    assert LINES.keys() | FILES.keys() == set(Say)
    assert not LINES.keys() & FILES.keys()


@pytest.mark.parametrize("say", LINES, ids=lambda say: say.kind)
def test_a_line_provokes_its_sentence_and_no_other(say: Say, tmp_path: Path) -> None:
    text, column = LINES[say]
    found = check(write(tmp_path, text), ENVIRONMENT).problems.in_order()
    expected = [say] * 2 if say is Say.UNKNOWN_OPTION else [say]
    assert [problem.say for problem in found] == expected, found
    assert (found[0].line, found[0].column) == (len(text.split("\n")), column)
    assert "{" not in found[0].sentence


@pytest.mark.parametrize("say", FILES, ids=lambda say: say.kind)
def test_a_file_provokes_its_sentence_and_no_other(say: Say, tmp_path: Path) -> None:
    (problem,) = FILES[say](tmp_path).problems
    assert problem.say is say
    assert problem.column == 0


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path: Path) -> None:
    (problem,) = not_text(tmp_path).problems
    assert (problem.line, problem.sentence) == (2, "the table is not UTF-8 at byte 6")


def test_what_is_right_is_not_complained_of(tmp_path: Path) -> None:
    text = f"{NAME} /a fuse portal=a,user=me,secret-file=one,automount,idle=60\n{NAME} /b nbd portal=a\n{NAME} /dev/nbd0 attach portal=a\n"
    table = check(write(tmp_path, text), ENVIRONMENT)
    assert not table.problems
    assert [entry.where for entry in table.entries] == ["/a", "/b", "/dev/nbd0"]


def test_the_configuration_may_say_the_rest(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text(f'[target."{NAME}"]\nportal = "a"\nuser = "me"\nsecret-file = "one"\n')
    path = write(tmp_path, f"{NAME} /a fuse")
    assert not check(path, {FILE_VARIABLE: str(tmp_path / "conf")}).problems
    (tmp_path / "one").chmod(0o644)
    (problem,) = check(path, {FILE_VARIABLE: str(tmp_path / "conf")}).problems
    assert problem.say is Say.BAD_SECRET
    assert f"others can read the secret file {tmp_path}/one" in problem.sentence


def test_the_environment_may_have_the_secret(tmp_path: Path) -> None:
    path = write(tmp_path, f"{NAME} /a fuse portal=a,user=me")
    assert not check(path, {**ENVIRONMENT, "ISBLK_SECRET": "abcdefghijkl"}).problems
    (problem,) = check(path, {**ENVIRONMENT, "ISBLK_SECRET": "short"}).problems
    assert problem.sentence.startswith("ISBLK_SECRET cannot be used: the CHAP secret of 'me' has 5 bytes")


def test_a_credential_of_systemd_is_there_only_when_it_starts_the_unit(tmp_path: Path) -> None:
    path = write(tmp_path, f"{NAME} /a fuse portal=a,user=me,secret-file=credential:disk")
    assert not check(path, ENVIRONMENT).problems
    assert [problem.say for problem in check(path, {**ENVIRONMENT, "CREDENTIALS_DIRECTORY": str(tmp_path)}).problems] == [Say.BAD_SECRET]


def test_everything_wrong_with_a_line_is_told_at_once(tmp_path: Path) -> None:
    table = check(write(tmp_path, f"{NAME} /a fuse portal=a,user=me,secret-file=absent,policy=robin,idle=5\n"), ENVIRONMENT)
    assert {problem.say for problem in table.problems} == {Say.BAD_VALUE, Say.BAD_SECRET, Say.NEEDS}


def test_a_table_is_not_used_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, FILE_VARIABLE, "")
    path = write(tmp_path, f"{NAME} /a fuse portal=a\n{NAME} /b fuse portl=a\n{NAME} /c fuse prtal=a\n")
    with pytest.raises(UsageError, match=rf"{path}:2:39: there is no option 'portl'.*and 1 more: isblk check -f {path}"):
        load(path)
    assert [entry.where for entry in load(write(tmp_path, f"{NAME} /a fuse portal=a\n")).entries] == ["/a"]
