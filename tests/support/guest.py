"""A virtual machine whose kernel has an NBD client (interop/nbd/vm): this machine's files and checkout, another kernel."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import machines

VM = Path(__file__).parents[1] / "interop" / "nbd" / "vm"
CHECKOUT = Path(__file__).parents[2]
HOST = "10.0.2.2"
"""This machine's loopback, as the guest reaches it."""
_END = re.compile(rb"\n=([0-9]+|again)\n\Z")
_AGAIN = "\0again"


@dataclass(frozen=True)
class Said:
    """What a command in the guest printed, both streams together, and its exit code."""

    text: str
    code: int


@dataclass(frozen=True)
class Guest:
    """Runs bash commands in the checkout, as root, one at a time; `isblk` is that of the checkout. /run and /mnt are the guest's own."""

    control: Path

    def run(self, command: str, code: int | None = 0, seconds: float = 60.0) -> str:
        """What a command prints; AssertionError unless its exit code is `code` (None: any)."""
        said = self.ask(command, seconds)
        assert code is None or said.code == code, f"{command}: exit code {said.code}, not {code}: {said.text}"
        assert "Traceback" not in said.text, said.text
        return said.text

    def ask(self, command: str, seconds: float = 60.0) -> Said:
        """The same without judging. Sent once more when it did not come whole over the serial line."""
        command = command.strip()  # as the guest's `read` does
        assert command.isascii() and "\n" not in command
        while (said := self._exchange(f"{len(command)} {command}\n".encode(), seconds)).text == _AGAIN:
            pass
        return said

    def _exchange(self, line: bytes, seconds: float) -> Said:
        with socket.socket(socket.AF_UNIX) as serial:
            serial.settimeout(seconds)
            serial.connect(str(self.control))
            serial.sendall(line)
            said = b"\n"
            while (end := _END.search(said)) is None:
                part = serial.recv(65536)
                assert part, f"the guest has closed its shell: {said!r}"
                said += part
        if end[1] == b"again":
            return Said(_AGAIN, 0)
        return Said(said[1 : end.start()].decode(), int(end[1]))


@contextmanager
def boot_guest(home: Path) -> Iterator[Guest]:
    """Boot the machine, wait for its shell, end it by its process id; AssertionError with its console when it does not come up."""
    with machines.boot(home, [str(VM), str(home), str(CHECKOUT)], "GUEST-READY"):
        yield Guest(home / "control")
