"""Virtual machines of tests: a script beside the tests (interop/*/vm) boots one in the foreground, with its console on standard output."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.waiting import until

BOOT_SECONDS = 120.0


@dataclass(frozen=True)
class Machine:
    """A machine whose process has been started."""

    process: subprocess.Popen[bytes]
    console: Path

    @property
    def said(self) -> str:
        """Its console so far."""
        return self.console.read_text(errors="replace")

    def has_said(self, text: str) -> bool:
        """Whether `text` is on the console; AssertionError when the machine has ended and it is not."""
        said = self.said
        assert text in said or self.process.poll() is None, f"the machine ended: {said[-3000:]}"
        return text in said


@contextmanager
def boot(home: Path, argv: list[str], ready: str, seconds: float = BOOT_SECONDS) -> Iterator[Machine]:
    """Boot a machine, wait until `ready` is on its console, and end it by its process id; AssertionError when it does not come up."""
    console = home / "console"
    with console.open("wb") as log:
        machine = Machine(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT), console)
    try:
        until(lambda: machine.has_said(ready), f"a machine to come up, see {console}", seconds)
        yield machine
    finally:
        machine.process.kill()
        machine.process.wait()
