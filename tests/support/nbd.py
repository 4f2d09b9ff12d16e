"""`isblk nbd` for tests: a server that is ended with the test, certificates made by openssl, scripts for libnbd's Python binding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.commands import Commands, ended
from support.processes import Started
from support.trees import check
from support.waiting import until

LIBNBD_PYTHON = "/usr/bin/python3"
"""Debian's interpreter: its package python3-libnbd is for that one, not for a virtual environment's."""


class Served:
    """A running server: `uri` of its default export, `where` as `isblk umount` takes it."""

    def __init__(self, commands: Commands, uri: str, where: str, pid: int) -> None:
        self.commands = commands
        self.uri = uri
        self.where = where
        self.pid = pid

    def export(self, name: str) -> str:
        """The URI of one export."""
        return self.uri.replace(":///?", f":///{name}?") if ":///?" in self.uri else f"{self.uri}/{name}"

    def status(self) -> dict[str, Any]:
        """What `isblk status --json` says of it."""
        (found,) = [one for one in self.commands.status() if one["pid"] == self.pid]
        return found

    def info(self, *options: str) -> dict[str, Any]:
        """The default export as nbdinfo sees it."""
        (export,) = json.loads(check("nbdinfo", "--json", *options, self.uri))["exports"]
        assert isinstance(export, dict)
        return export

    def end(self) -> None:
        """`isblk umount`, after which nothing is left."""
        self.commands.run("umount", self.where)
        assert ended(self.pid), "isblk umount returned before the daemon had ended"


def serve(commands: Commands, place: Path, *options: str | Path, target: tuple[str, ...] = ()) -> Served:
    """`isblk nbd` at the unix socket `place`."""
    said = commands.run("nbd", *(target or commands.there), "--socket", place, *options).stdout.split()
    assert said == [f"{said[0].split(':')[0]}:///?socket={place}"], said
    (found,) = [one for one in commands.status() if one["where"] == str(place)]
    return Served(commands, said[0], str(place), found["pid"])


def serve_tcp(commands: Commands, *options: str | Path) -> Served:
    """`isblk nbd` at a free port of localhost."""
    said = commands.run("nbd", *commands.there, "--listen", "127.0.0.1:0", *options).stdout.split()
    (found,) = [one for one in commands.status() if said[0].endswith(one["where"])]
    return Served(commands, said[0].replace("127.0.0.1", "localhost"), found["where"], found["pid"])


@contextmanager
def served(commands: Commands, place: Path, *options: str | Path) -> Iterator[Served]:
    """The same for the length of a block, behind which it ends in order and the target has no session of it."""
    server = serve(commands, place, *options)
    yield server
    server.end()
    assert not place.exists()


def libnbd(script: str, *arguments: str | Path, seconds: float = 60) -> str:
    """Run a script with `nbd` and `h = nbd.NBD()` at hand; what it printed. It fails by an exception."""
    head = "import errno, os, random, sys\nimport nbd\nh = nbd.NBD()\n"
    return check(LIBNBD_PYTHON, "-W", "error", "-c", head + script, *arguments, seconds=seconds)


def libnbd_running(commands: Commands, script: str, *arguments: str | Path, **options: Any) -> Started:
    """The same in the background; `options` go to Popen."""
    head = "import errno, os, random, sys\nimport nbd\nh = nbd.NBD()\n"
    return commands.processes.start([LIBNBD_PYTHON, "-c", head + script, *map(str, arguments)], **options)


def certificates(place: Path) -> tuple[Path, Path]:
    """A certificate authority; directories for a server and for a client with one of its certificates each, by the usual file names."""
    place.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True, timeout=60)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=authority", "-days", "2")
    for who, names in (("server", "subjectAltName=DNS:localhost,IP:127.0.0.1"), ("client", "subjectAltName=DNS:client")):
        (place / who).mkdir()
        (place / "names").write_text(names)
        openssl("req", *key, "-keyout", f"{who}/{who}-key.pem", "-out", "request.pem", "-subj", f"/CN={who}")
        signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", "request.pem", "-out", f"{who}/{who}-cert.pem", *signed)
        (place / who / f"{who}-key.pem").chmod(0o600)
        (place / who / "ca-cert.pem").write_bytes((place / "ca-cert.pem").read_bytes())
    return place / "server", place / "client"


def activated(argv: list[str], descriptors: int) -> list[str]:
    """`argv` with LISTEN_FDS and LISTEN_PID of the process it becomes; its descriptors from 3 on are there already."""
    setup = (
        f"import os, sys; os.environ.update(LISTEN_FDS='{descriptors}', LISTEN_PID=str(os.getpid())); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", setup, *argv]


def gone(commands: Commands, pid: int) -> None:
    """Return when a server has ended by itself and the target has no session."""
    until(lambda: ended(pid), f"the NBD server {pid} to end")
    assert commands.target.ask("sessions") == 0
