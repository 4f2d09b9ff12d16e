"""What is sent to the kernel's NBD client, as literal bytes, and what its answers become; the client itself: interop/test_attach.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from isblk.errors import IsblkError, RequestFailed, UsageError
from isblk.export import nbdnetlink

SETTINGS: dict[str, Any] = {"timeout": 300, "dead_connection_timeout": 30, "backend": "x"}


class Kernel:
    """Stands in for the netlink socket: keeps what is sent, and answers or refuses."""

    prid = 0x1D

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.answers: list[Any] = []
        self.refusal = 0

    def nlm_request(self, message: Any, msg_type: int, msg_flags: int) -> list[Any]:
        assert (msg_type, msg_flags) == (self.prid, 5)  # REQUEST and ACK: without the latter nobody would hear of an error
        message.encode()
        self.sent.append(bytes(message.data[16:]))  # behind the header, which is the socket's
        if self.refusal:
            raise NetlinkError(self.refusal)
        return self.answers


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()

    @contextmanager
    def opened() -> Iterator[Kernel]:
        yield found

    monkeypatch.setattr(nbdnetlink, "_opened", opened)
    return found


def answer(command: int, *attributes: tuple[str, Any]) -> Any:
    """A message of the kernel, decoded from its bytes."""
    message = nbdnetlink.nbdmsg()
    message["cmd"], message["version"], message["attrs"] = command, 1, list(attributes)
    message.encode()
    decoded = nbdnetlink.nbdmsg(message.data)
    decoded.decode()
    return decoded


def test_connect_says_everything_the_kernel_can_be_told(kernel: Kernel) -> None:
    kernel.answers = [answer(1, ("NBD_ATTR_INDEX", 5))]
    assert nbdnetlink.connect(5, [7, 8], 1 << 20, 512, 0x12D, **SETTINGS) == 5
    assert kernel.sent == [
        bytes.fromhex(
            "01 01 0000"  # CONNECT, version 1
            "0800 0100 05000000"  # index 5
            "0c00 0200 0000100000000000"  # 1 MiB
            "0c00 0300 0002000000000000"  # blocks of 512
            "0c00 0400 2c01000000000000"  # timeout 300 s
            "0c00 0800 1e00000000000000"  # dead connection timeout 30 s
            "0c00 0500 2d01000000000000"  # server flags: HAS_FLAGS FLUSH FUA TRIM MULTI_CONN
            "0c00 0600 0000000000000000"  # client flags: none
            "1c00 0700 0c00 0100 0800 0100 07000000 0c00 0100 0800 0100 08000000"  # sockets 7 and 8
            "0600 0a00 7800 0000"  # backend "x"
        )
    ]


def test_without_an_index_the_kernel_chooses(kernel: Kernel) -> None:
    kernel.answers = [answer(1, ("NBD_ATTR_INDEX", 11))]
    assert nbdnetlink.connect(None, [3], 512, 512, 1, **SETTINGS) == 11
    assert kernel.sent[0][:8] == bytes.fromhex("01010000 0c000200")
    kernel.answers = []
    with pytest.raises(RequestFailed, match="did not say which"):
        nbdnetlink.connect(None, [3], 512, 512, 1, **SETTINGS)


def test_a_device_is_reconnected_resized_and_disconnected_by_its_index(kernel: Kernel) -> None:
    nbdnetlink.reconnect(2, [9], "x")
    nbdnetlink.resize(2, 4096, "x")
    nbdnetlink.disconnect(2)
    backend = "0600 0a00 7800 0000"
    assert kernel.sent == [
        bytes.fromhex(f"03 01 0000 0800 0100 02000000 {backend} 1000 0700 0c00 0100 0800 0100 09000000"),
        bytes.fromhex(f"03 01 0000 0800 0100 02000000 {backend} 0c00 0200 0010000000000000"),
        bytes.fromhex("02 01 0000 0800 0100 02000000"),
    ]


@pytest.mark.parametrize(
    ("number", "kind", "why"),
    [
        (errno.EPERM, UsageError, "/dev/nbd4 cannot be attached or detached by this user: it needs root (CAP_SYS_ADMIN)"),
        (errno.EBUSY, UsageError, "/dev/nbd4 is in use: name another, or `any`"),
        (errno.EINVAL, UsageError, "/dev/nbd4 cannot be: the kernel has no device of that number"),
        (errno.ENOMEM, RequestFailed, "Cannot allocate memory"),
    ],
)
def test_a_refusal_is_a_sentence(kernel: Kernel, number: int, kind: type[IsblkError], why: str) -> None:
    kernel.refusal = number
    with pytest.raises(kind) as refused:
        nbdnetlink.connect(4, [3], 512, 512, 1, **SETTINGS)
    assert why in str(refused.value)


def test_another_disk_is_not_reconfigured(kernel: Kernel) -> None:
    kernel.refusal = errno.EINVAL
    with pytest.raises(UsageError, match="/dev/nbd4 is not connected, or serves another disk"):
        nbdnetlink.resize(4, 512, "another")


def test_a_kernel_without_the_module_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for real, over netlink, for a family that no kernel has; nothing is left open (filterwarnings)."""
    monkeypatch.setattr(nbdnetlink, "FAMILY", "no-such-family")
    with pytest.raises(UsageError, match="this kernel has no NBD client: `modprobe nbd` loads it") as refused:
        nbdnetlink.check()
    assert "\n" not in str(refused.value)


def test_a_kernel_with_the_family_wants_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbdnetlink, "FAMILY", "nlctrl")  # which every kernel has
    monkeypatch.setattr(nbdnetlink, "_capable", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    nbdnetlink.check()
    monkeypatch.setattr(nbdnetlink, "_capable", lambda: False)
    with pytest.raises(UsageError, match="needs root"):
        nbdnetlink.check()


def test_what_this_process_may_do_is_read_from_proc(root: None) -> None:
    assert nbdnetlink._capable() in (True, False)
