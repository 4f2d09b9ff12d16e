"""Captures of isblk under tshark, Wireshark's own dissectors: iSCSI from login to logout, nothing malformed, no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from isblk.iscsi.chap import Credentials
from support.processes import Processes, isblk
from support.targets import TargetProcess, target_process
from support.waiting import until

SECRET = "a secret of twenty two"
LOGIN, LOGIN_RESPONSE, COMMAND, DATA_IN, LOGOUT, LOGOUT_RESPONSE = 0x03, 0x23, 0x01, 0x25, 0x06, 0x26


def asked(processes: Processes, capture: Path, target: TargetProcess, *arguments: str) -> str:
    port = target.portal.rpartition(":")[2]
    return processes.run(["tshark", "-n", "-r", str(capture), "-d", f"tcp.port=={port},iscsi", *arguments]).stdout


@pytest.mark.parametrize("digest", ["none", "both"])
def test_a_session_from_login_to_logout(processes: Processes, tmp_path: Path, digest: str) -> None:
    secret, capture = tmp_path / "secret", tmp_path / "wire.pcapng"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    with target_process(credentials=Credentials("me", SECRET.encode())) as target:
        login = ["-p", target.portal, target.name, "--user", "me", "--secret-file", str(secret), "--digest", digest]
        processes.run(isblk("ls", *login, "--pcap", str(capture)))
    opcodes = {
        int(word, 0) for line in asked(processes, capture, target, "-T", "fields", "-e", "iscsi.opcode").split() for word in line.split(",")
    }
    assert {LOGIN, LOGIN_RESPONSE, COMMAND, DATA_IN, LOGOUT, LOGOUT_RESPONSE} <= opcodes
    assert not asked(processes, capture, target, "-Y", "_ws.malformed or _ws.expert.severity == error")
    shown = asked(processes, capture, target, "-V", "-Y", "iscsi.opcode == 0x03")
    assert f"TargetName={target.name}" in shown and "CHAP_N=me" in shown
    (response,) = {line.split("CHAP_R=")[1].split()[0] for line in shown.splitlines() if "CHAP_R=" in line}
    assert response == "0x" + "0" * (len(response) - 2)
    assert SECRET.encode() not in capture.read_bytes()


def test_every_session_of_a_daemon_goes_into_its_capture(processes: Processes, tmp_path: Path) -> None:
    capture, socket = tmp_path / "wire.pcapng", tmp_path / "disk.sock"
    with target_process() as target:
        processes.run(isblk("nbd", "-p", target.portal, target.name, "--socket", str(socket), "--pcap", str(capture)))
        processes.run(["nbdcopy", f"nbd+unix:///?socket={socket}", "null:"])
        target.ask("drop")
        until(lambda: target.ask("sessions") == 1, "the session to come back")
        processes.run(isblk("umount", str(socket)))
    logins = asked(processes, capture, target, "-Y", "iscsi.opcode == 0x23", "-T", "fields", "-e", "tcp.stream").split()
    assert len(set(logins)) == 2
    assert not asked(processes, capture, target, "-Y", "_ws.malformed")
