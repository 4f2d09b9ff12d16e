"""A virtual machine that boots Debian's systemd (interop/boot/vm): this machine's files and isblk, but /etc, /var and /tmp of its own."""

from __future__ import annotations

import compileall
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import machines
from support.guest import Guest
from support.processes import isblk

VM = Path(__file__).parents[1] / "interop" / "boot" / "vm"
CHECKOUT = Path(__file__).parents[2]
BOOT_SECONDS = 240.0
END_SECONDS = 150.0


@dataclass(frozen=True)
class Debian(Guest):
    """Runs shell commands, as root, one at a time."""

    machine: machines.Machine

    def power_off(self) -> str:
        """As an administrator does it; the console, once the machine is off."""
        self.run("systemctl poweroff --no-block")
        assert self.machine.process.wait(END_SECONDS) == 0
        return self.machine.said


@contextmanager
def boot_debian(home: Path, files: Mapping[str, str]) -> Iterator[Debian]:
    """Boot with `files` (path: text) and what `isblk install-helper` makes, up to multi-user.target; end the machine by its process id."""
    root = home / "files"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    sbin = root / "usr" / "sbin"
    sbin.mkdir(parents=True)
    install = isblk("install-helper", "--directory", sbin, "--systemd", root / "etc" / "systemd" / "system-generators")
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    compileall.compile_dir(CHECKOUT / "isblk", quiet=2)  # Nothing that it compiles would be kept, and a service begins with that.
    with machines.boot(home, [str(VM), str(home)], "GUEST-READY", BOOT_SECONDS) as machine:
        yield Debian(home / "control", machine)
