"""LIO, the target of the Linux kernel, as a foreign peer in a virtual machine (interop/lio/vm); this machine's own kernel is left alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import machines
from support.waiting import free_port

VM = Path(__file__).parents[1] / "interop" / "lio" / "vm"


@dataclass(frozen=True)
class Lio:
    """What the machine offers. Each target has the same two disks, LUN 0 (512 MiB, 512-byte blocks) and LUN 1 (256 MiB, 4096-byte blocks),
    both with a volatile write cache, UNMAP and WRITE SAME. It reports its portals as 10.0.2.15, which only it can reach.
    """

    control: Path  # the socket of the guest's shell
    portals: tuple[str, str]  # of portal groups 1 and 2 (ALUA target port groups 0 and 16); only `open` has the second
    open: str = "iqn.2026-11.test.isblk.lio:open"
    chap: str = "iqn.2026-11.test.isblk.lio:chap"
    mutual: str = "iqn.2026-11.test.isblk.lio:mutual"
    user: str = "initiator"
    secret: str = "what-the-initiator-knows"
    mutual_user: str = "target"
    mutual_secret: str = "what-the-target-knows"

    def shell(self, command: str) -> None:
        """Run a line in the guest's shell, in configfs' directory of targets; AssertionError when it fails (why is on the console)."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(self.control))
            line.sendall(command.encode() + b"\n")
            said = b""
            while not said.endswith(b"\n"):
                part = line.recv(64)
                assert part, "the guest has closed its shell"
                said += part
        assert said.strip() == b"=0", f"{command}: {said!r}"

    def set_access(self, group: int, state: int, lun: int = 0) -> None:
        """Change the access state (SPC-4 5.15.2, its code) of a disk's portal group, 1 or 2, as an array's controllers would."""
        name = ("default_tg_pt_gp", "second")[group - 1]
        self.shell(f"echo {state} >core/fileio_0/disk{lun}/alua/{name}/alua_access_state")

    def words(self) -> list[str]:
        """Kernel command line for interop/lio/init."""
        ours = [f"chap_user={self.user}", f"chap_secret={self.secret}"]
        return [*ours, f"mutual_user={self.mutual_user}", f"mutual_secret={self.mutual_secret}"]


@contextmanager
def boot_lio(home: Path) -> Iterator[Lio]:
    """Boot the machine, wait until LIO is set up, end it by its process id; AssertionError with its console when it does not come up."""
    ports = free_port(), free_port()
    lio = Lio(home / "control", (f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"))
    argv = [str(VM), str(home), *map(str, ports), *lio.words()]
    with machines.boot(home, argv, "LIO-READY"):
        yield lio
