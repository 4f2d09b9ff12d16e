"""tgtd, the Linux target in user space, as a foreign peer: several at once, each with a control socket and a portal of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path
from types import TracebackType

from support.waiting import answers, free_port, until

# tgtd takes an exclusive socket per control port. TGT_IPC_SOCKET puts it into the caller's directory instead of /var/run/tgtd, so neither a
# running service nor another test is in the way, no file is left behind, and root is not needed.
_control_ports = itertools.count(os.getpid() % 30000 + 1)


class Tgtd:
    """One tgtd at 127.0.0.1:`port`; `home` holds its control socket and its log."""

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home
        self.port = port or free_port()
        self.control = next(_control_ports)
        self.log = home / f"tgtd.{self.control}.log"
        self._environment = {**os.environ, "TGT_IPC_SOCKET": str(home / "tgt")}
        self._process: subprocess.Popen[bytes] | None = None
        self._targets = 0

    @property
    def portal(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and return once it listens and can be configured."""
        argv = ["tgtd", "-f", "-C", str(self.control), "--iscsi", f"portal={self.portal}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment)
        until(self._ready, f"tgtd at {self.portal}, see {self.log}")

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"tgtd ended at once: {self.log.read_text()}"
        return answers(self.port) and self._run("--mode", "system", "--op", "show").returncode == 0

    def stop(self) -> None:
        """End it, as a crash would: tgtd ignores SIGTERM, and its files die with the test's directory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["tgtadm", "-C", str(self.control), "--lld", "iscsi", *arguments]
        return subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=20, check=False)

    def admin(self, *arguments: str) -> str:
        """Run tgtadm and return what it printed; AssertionError with its words when it fails."""
        done = self._run(*arguments)
        assert done.returncode == 0, f"tgtadm {arguments}: {done.stderr or done.stdout}"
        return done.stdout

    def target(self, name: str, **parameters: str | int) -> int:
        """Make a target open to every initiator and return its number; `parameters` are its keys (MaxBurstLength=65536, ...)."""
        self._targets += 1
        number = str(self._targets)
        self.admin("--mode", "target", "--op", "new", "--tid", number, "--targetname", name)
        for key, value in parameters.items():
            self.update(self._targets, key, value)
        self.admin("--mode", "target", "--op", "bind", "--tid", number, "--initiator-address", "ALL")
        return self._targets

    def add_portal(self, port: int | None = None) -> str:
        """Listen at one more port of 127.0.0.1; 'host:port'. Every target is reached through every portal."""
        portal = f"127.0.0.1:{port or free_port()}"
        self.admin("--mode", "portal", "--op", "new", "--param", f"portal={portal}")
        return portal

    def update(self, target: int, key: str, value: str | int) -> None:
        """Set a parameter of a target, by its RFC 7143 name."""
        self.admin("--mode", "target", "--op", "update", "--tid", str(target), "--name", key, "--value", str(value))

    def disk(self, target: int, lun: int, size: int, block_size: int = 512) -> Path:
        """Add a disk of `size` bytes over a sparse file and return the file."""
        image = self.home / f"tgt{self.control}-{target}-{lun}.img"
        with image.open("wb") as file:
            file.truncate(size)
        self._unit(target, lun, "--backing-store", str(image), "--blocksize", str(block_size))
        return image

    def null(self, target: int, lun: int) -> None:
        """Add a disk of a tebibyte that answers at once, keeps nothing and reads whatever its buffer holds (--bstype null)."""
        self._unit(target, lun, "--backing-store", "1g", "--bstype", "null")

    def _unit(self, target: int, lun: int, *arguments: str) -> None:
        self.admin("--mode", "logicalunit", "--op", "new", "--tid", str(target), "--lun", str(lun), *arguments)

    def unit_params(self, target: int, lun: int, params: str) -> None:
        """Change a logical unit ("readonly=1", "thin_provisioning=1", "vendor_id=...", "online=0")."""
        self.admin("--mode", "logicalunit", "--op", "update", "--tid", str(target), "--lun", str(lun), "--params", params)

    def account(self, target: int, user: str, secret: str, *, outgoing: bool = False) -> None:
        """Ask initiators of this target for CHAP as `user`; `outgoing`: answer as `user` when they ask back (mutual CHAP)."""
        self.admin("--mode", "account", "--op", "new", "--user", user, "--password", secret)
        self.admin("--mode", "account", "--op", "bind", "--tid", str(target), "--user", user, *(["--outgoing"] if outgoing else []))

    def sessions(self, target: int) -> int:
        """How many sessions the target has."""
        return self.admin("--mode", "target", "--op", "show").split(f"Target {target}: ")[1].split("\nTarget ")[0].count("I_T nexus: ")

    def __enter__(self) -> Tgtd:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
