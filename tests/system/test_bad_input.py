"""Bad input, line by line: one clear sentence, the right exit code, nothing left mounted, no session left, never a traceback."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isblk.iscsi.chap import Credentials
from support import hostile
from support.commands import Commands
from support.mounts import Mounts
from support.processes import Processes, isblk
from support.targets import MIB, TargetProcess, disk, target_process
from support.waiting import free_port, until

SECRET = b"a-secret-of-16-b"
NOWHERE = "iqn.2026-11.test.isblk:nobody-home"
LOGGING_IN = ("ls", "perf", "mount")
WORD = b"\x23\x87\0\0"  # the first word of a login answer that ends the login


@pytest.fixture
def demanding(tmp_path: Path) -> Iterator[TargetProcess]:
    """A target that asks for CHAP."""
    with target_process([disk()], credentials=Credentials("me", SECRET)) as running:
        yield running


def refused(
    processes: Processes, mounts: Mounts, *arguments: str | Path, code: int, words: str, target: TargetProcess | None = None, **env: str
) -> None:
    """The command ends with `code` and one sentence that has `words` in it; nothing is mounted, no session and no daemon is left."""
    ended = processes.run(isblk(*arguments), code=code, seconds=30, env=env)
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("isblk: ") and words in lines[0]
    assert not ended.stdout
    assert not mounts.points()
    assert not (mounts.home / "disk").exists()
    until(lambda: not processes.strays(), "the daemon to end", 5)
    if target is not None:
        assert target.ask("sessions") == 0


def place(command: str, home: Path) -> list[Path]:
    return [home / "disk"] if command == "mount" else []


@pytest.mark.parametrize("arguments", [["discover"], ["ls"], ["mount"], ["mount", "-p", "127.0.0.1"], ["perf"], ["umount"]])
def test_nothing_said(processes: Processes, mounts: Mounts, arguments: list[str]) -> None:
    refused(processes, mounts, *arguments, code=2, words="missing argument")


@pytest.mark.parametrize(
    "name", ["disks", "iqn.2001", "iqn.2001-05.com.example:a b", "eui.12", "naa.0g", "iqn." + "x" * 230, "", "\x1b[31m"]
)
def test_a_malformed_target_name(processes: Processes, mounts: Mounts, name: str) -> None:
    refused(processes, mounts, "ls", "-p", "127.0.0.1", name, code=2, words="iSCSI name")


@pytest.mark.parametrize("command", LOGGING_IN)
def test_no_portal(processes: Processes, mounts: Mounts, tmp_path: Path, command: str) -> None:
    refused(processes, mounts, command, NOWHERE, *place(command, tmp_path), code=2, words="no portal for")


@pytest.mark.parametrize("portal", ["127.0.0.1:0", "127.0.0.1:65536", "[::1", "a b", "127.0.0.1:iscsi"])
def test_a_malformed_portal(processes: Processes, mounts: Mounts, portal: str) -> None:
    refused(processes, mounts, "discover", portal, code=2, words="not a portal")


@pytest.mark.parametrize("command", LOGGING_IN)
def test_a_portal_that_refuses(processes: Processes, mounts: Mounts, tmp_path: Path, fuse: None, command: str) -> None:
    portal = f"127.0.0.1:{free_port()}"
    refused(processes, mounts, command, "-p", portal, NOWHERE, *place(command, tmp_path), code=5, words=f"{portal} cannot be reached")


@pytest.mark.parametrize("command", LOGGING_IN)
def test_a_portal_that_accepts_and_says_nothing(processes: Processes, mounts: Mounts, tmp_path: Path, fuse: None, command: str) -> None:
    with hostile.server(hostile.silent) as portal:
        arguments = [command, "-p", portal, "--login-timeout", "0.4", NOWHERE, *place(command, tmp_path)]
        refused(processes, mounts, *arguments, code=5, words="did not finish the login within 0.4 s")


@pytest.mark.parametrize("command", LOGGING_IN)
def test_a_target_that_is_not_there(commands: Commands, mounts: Mounts, tmp_path: Path, command: str) -> None:
    target = commands.target
    arguments = [command, "-p", target.portal, NOWHERE, *place(command, tmp_path)]
    refused(commands.processes, mounts, *arguments, code=3, words="there is no such target", target=target)


@pytest.mark.parametrize("command", LOGGING_IN)
@pytest.mark.parametrize(
    ("options", "secret", "code", "words"),
    [
        ((), None, 4, "it wants authentication"),
        (("--user", "me"), None, 2, "no secret for the CHAP user me"),
        (("--user", "me"), "a-wrong-secret-16", 4, "authentication failed"),
        (("--user", "you"), SECRET.decode(), 4, "authentication failed"),
        (("--user", "me"), "short", 2, "it needs 12 (96 bits) at least"),
    ],
)
def test_credentials_missing_wrong_or_too_short(
    processes: Processes,
    mounts: Mounts,
    fuse: None,
    tmp_path: Path,
    demanding: TargetProcess,
    command: str,
    options: tuple[str, ...],
    secret: str | None,
    code: int,
    words: str,
) -> None:
    env = {} if secret is None else {"ISBLK_SECRET": secret}
    arguments = [command, "-p", demanding.portal, *options, demanding.name, *place(command, tmp_path)]
    refused(processes, mounts, *arguments, code=code, words=words, target=demanding, **env)


def test_a_target_that_cannot_prove_who_it_is(processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    mutual = Credentials("nas", b"secret-of-the-target")
    with target_process([disk()], credentials=Credentials("me", SECRET), mutual=mutual) as target:
        env = {"ISBLK_SECRET": SECRET.decode(), "ISBLK_TARGET_SECRET": "another-than-it-has"}
        arguments = ["ls", "-p", target.portal, target.name, "--user", "me", "--target-user", "nas"]
        refused(processes, mounts, *arguments, code=4, words="target", target=target, **env)
        env["ISBLK_TARGET_SECRET"] = SECRET.decode()
        refused(processes, mounts, *arguments, code=2, words="secret", target=target, **env)


def test_a_secret_that_others_can_read(processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secret").chmod(0o644)
    arguments = ["ls", "-p", "127.0.0.1:1", NOWHERE, "--user", "me", "--secret-file", tmp_path / "secret"]
    refused(processes, mounts, *arguments, code=2, words="chmod 600")


@pytest.mark.parametrize("command", ["perf", "mount"])
@pytest.mark.parametrize("lun", ["5", "255", "16383", "0xffffffffffffffff"])
def test_a_lun_that_is_not_there(commands: Commands, mounts: Mounts, tmp_path: Path, command: str, lun: str) -> None:
    arguments = [command, *commands.there, *place(command, tmp_path), "--lun", lun]
    refused(commands.processes, mounts, *arguments, code=3, words=f"the target has no LUN {lun}", target=commands.target)


def test_a_lun_that_is_no_disk(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    with target_process([disk(0, device_type=0x0C), disk(1, read_only=True)]) as target:
        there = ["-p", target.portal, target.name]
        refused(processes, mounts, "mount", *there, tmp_path / "disk", "--lun", "0", code=2, words="LUN 0 is no disk", target=target)
        refused(processes, mounts, "perf", *there, "--rw", "write", "--destructive", code=2, words="write-protected", target=target)


def test_a_target_without_a_disk(processes: Processes, mounts: Mounts, fuse: None, tmp_path: Path) -> None:
    with target_process([disk(0, device_type=0x0C)]) as target:
        arguments = ["mount", "-p", target.portal, target.name, tmp_path / "disk"]
        refused(processes, mounts, *arguments, code=3, words="no disk to use", target=target)


def test_mountpoints_that_cannot_be_used(commands: Commands, mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for name, words in [
        ("missing/disk", "is not there; make that directory first"),
        ("dangling", "link to nowhere"),
        ("file/disk", "below a file"),
    ]:
        arguments = ["mount", *commands.there, tmp_path / name]
        refused(commands.processes, mounts, *arguments, code=2, words=words, target=commands.target)
    directory = tmp_path / "directory"
    directory.mkdir()
    arguments = ["mount", *commands.there, directory, "--lun", "0"]
    commands.mount(directory)
    assert "is a mountpoint already" in commands.refused("mount", *commands.there, directory, code=2)
    commands.umount(directory)


def test_an_empty_mountpoint_is_not_the_current_directory(commands: Commands, mounts: Mounts) -> None:
    """As of a variable that is not set: it would be mounted over, or unmounted."""
    refused(commands.processes, mounts, "mount", *commands.there, "", code=2, words="MOUNTPOINT is empty", target=commands.target)
    refused(commands.processes, mounts, "umount", "", code=2, words="MOUNTPOINT is empty", target=commands.target)


def test_no_dev_fuse(root: None, commands: Commands, mounts: Mounts, tmp_path: Path) -> None:
    """In a mount namespace of its own, whose /dev has nothing but null."""
    hide = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", hide, "sh", *isblk("mount", *commands.there, tmp_path / "disk")]
    ended = commands.processes.run(argv, code=2)
    assert ended.stderr.startswith("isblk: /dev/fuse is not there; load the module")
    assert ended.stderr.count("\n") == 1
    assert commands.target.ask("sessions") == 0


# -------------------------------------------------------------------------------------------------- peers that break the protocol


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet_logging: None) -> CliRunner:
    """Commands within this process, hundreds of them."""
    monkeypatch.setenv("ISBLK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ISBLK_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ISBLK_INITIATOR_NAME", "iqn.2026-11.test.isblk:bad-input")
    return CliRunner()


def sentence(result: Result, *codes: int) -> str:
    assert result.exit_code in codes, (result.exit_code, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("isblk: "), result.stderr
    return lines[0].removeprefix("isblk: ")


def discover(runner: CliRunner, portal: str, *options: str) -> Result:
    from isblk.cli import main

    return runner.invoke(main, ["discover", portal, "--login-timeout", "2", *options])


def ls(runner: CliRunner, portal: str, name: str, *options: str) -> Result:
    from isblk.cli import main

    return runner.invoke(main, ["ls", "-p", portal, name, "--login-timeout", "2", *options])


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: not-iscsi\r\nContent-Length: 0\r\n\r\n" + b" " * 300, 6),
        (b"\x00" * 48, 6),
        (b"\xff" * 48, 6),
        (WORD + b"\xff\xff\xff\xff" + b"\0" * 40, 6),  # 16 MiB of data, 1020 bytes of AHS
        (WORD + b"\x00\x00\x20\x01" + b"\0" * 40, 6),  # one byte more than a login may have
        (b"\x23\x87\0\0" + b"\0\0\0\4" + b"\0" * 40 + b"\xff\xfe=\0", 6),  # text that is no text
        (b"\x3f\x80\x04\0" + b"\0" * 44, 6),  # Reject
    ],
)
def test_answers_that_are_no_login_answers(in_process: CliRunner, said: bytes, code: int) -> None:
    with hostile.server(hostile.saying(said)) as portal:
        assert portal in sentence(discover(in_process, portal), code)


def test_a_portal_that_hangs_up(in_process: CliRunner) -> None:
    with hostile.server(hostile.closing) as portal:
        assert "closed the connection in the middle of the login" in sentence(discover(in_process, portal), 4)


def test_an_answer_that_is_cut_at_each_byte(in_process: CliRunner) -> None:
    """A discovery from login to logout, once for each length that the target's answers can be cut to."""
    with target_process([disk()]) as target:
        size = 0

        def count(pdu: bytearray) -> bytes:
            nonlocal size
            size += len(pdu)
            return bytes(pdu)

        with hostile.server(hostile.spoiling(target.portal, count)) as portal:
            whole = discover(in_process, portal)
        assert whole.exit_code == 0 and size > 300
        listed = whole.stdout
        logout = size - 48
        for length in range(size):
            with hostile.server(hostile.spoiling(target.portal, limit=length)) as portal:
                result = discover(in_process, portal)
            if length >= logout:  # the list is whole: what becomes of the logout is nobody's loss
                assert (result.exit_code, result.stdout) == (0, listed), length
            else:
                assert portal in sentence(result, 4, 5, 6), length
                assert not result.stdout
        until(lambda: target.ask("sessions") == 0, "the sessions to end")


@pytest.mark.parametrize(("limit", "code"), [(0, 4), (100, 4), (600, 6), (900, 6), (1100, 6)])
def test_a_mount_whose_session_breaks_before_the_file_is_there(
    commands: Commands, mounts: Mounts, tmp_path: Path, limit: int, code: int
) -> None:
    """In the login, and while the logical unit is probed."""
    with hostile.server(hostile.spoiling(commands.target.portal, limit=limit)) as portal:
        arguments = ["mount", "-p", portal, commands.target.name, tmp_path / "disk"]
        refused(commands.processes, mounts, *arguments, code=code, words=portal, target=commands.target)


@pytest.mark.parametrize("bits", [0x00, 0x40], ids=["F=0", "C=1"])
def test_a_text_answer_that_never_ends(in_process: CliRunner, bits: int) -> None:
    """Each answer says that more is to come."""

    def more(pdu: bytearray) -> bytes:
        pdu[1] = bits
        pdu[20:24] = b"\0\0\0\7"  # a Target Transfer Tag to go on with
        return bytes(pdu)

    def forever(connection: socket.socket) -> None:
        answers = 0

        def endless(pdu: bytearray) -> bytes:
            nonlocal answers
            answers += 1
            return more(pdu) if pdu[0] == hostile.TEXT_RESPONSE else bytes(pdu)

        hostile.spoiling(target.portal, endless)(connection)

    with target_process([disk()]) as target, hostile.server(forever) as portal:
        result = discover(in_process, portal)
        assert result.exit_code in (4, 5, 6) and not result.stdout
        sentence(result, 4, 5, 6)
        until(lambda: target.ask("sessions") == 0, "the session to end")


@pytest.mark.parametrize("opcode", [hostile.SCSI_RESPONSE, hostile.DATA_IN])
@pytest.mark.parametrize("where", ["header", "data"])
def test_wrong_digests(in_process: CliRunner, opcode: int, where: str) -> None:
    def damage(pdu: bytearray) -> bytes:
        pdu[51 if where == "header" else len(pdu) - 1] ^= 0x10
        return bytes(pdu)

    with target_process([disk()]) as target:
        script = hostile.spoiling(target.portal, hostile.only(opcode, damage), digests=True)
        with hostile.server(script) as portal:
            text = sentence(ls(in_process, portal, target.name, "--digest", "both"), 6)
        assert "digest" in text.lower()
        until(lambda: target.ask("sessions") == 0, "the session to end")


def test_sense_data_cut_short(in_process: CliRunner) -> None:
    """The unit attention of a fresh session, with fewer and fewer bytes of it: never a traceback, at the most an error."""
    with target_process([disk()]) as target:
        for length in range(20):

            def cut(pdu: bytearray, length: int = length) -> bytes:
                whole = int.from_bytes(pdu[5:8], "big")
                keep = min(length, whole)
                pdu[5:8] = keep.to_bytes(3, "big")
                return bytes(pdu[: 48 + keep]) + b"\0" * (-keep % 4)

            with hostile.server(hostile.spoiling(target.portal, hostile.only(hostile.SCSI_RESPONSE, cut))) as portal:
                result = ls(in_process, portal, target.name)
            if result.exit_code:
                sentence(result, 6)
            else:
                assert "VIRTUAL-DISK" in result.stdout and not result.stderr
        until(lambda: target.ask("sessions") == 0, "the sessions to end")


def test_a_header_with_any_byte_changed_never_ends_in_a_traceback(in_process: CliRunner) -> None:
    """Of the first Data-In: whatever the byte means, the end is an answer or one sentence.

    Bytes 1, 7 and 24 are left out: with them both sides wait for each other until the keep-alive ends it, seconds later.
    """
    with target_process([disk(size=MIB)]) as target:
        for at in sorted(set(range(1, 48)) - {1, 7, 24}):
            changed: list[int] = []

            def once(pdu: bytearray, at: int = at, changed: list[int] = changed) -> bytes:
                if pdu[0] == hostile.DATA_IN and not changed:
                    changed.append(at)
                    pdu[at] ^= 0xFF
                return bytes(pdu)

            with hostile.server(hostile.spoiling(target.portal, once)) as portal:
                result = ls(in_process, portal, target.name)
            assert changed
            if result.exit_code:
                sentence(result, 6)
            else:
                assert result.stdout
        until(lambda: target.ask("sessions") == 0, "the sessions to end")


def test_the_machine_has_what_these_tests_need() -> None:
    for tool in ("unshare", "mknod", "setpriv"):
        assert shutil.which(tool), tool
