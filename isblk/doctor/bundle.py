"""A bug report as one file: findings, versions, status and log of the daemons, settings; without secrets, readable by its owner alone."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isblk import __version__, control
from isblk.config import CREDENTIAL, SECRET_FILE_LIMIT, SECRET_VARIABLE, TARGET_SECRET_VARIABLE
from isblk.doctor.findings import Report
from isblk.doctor.scrub import Scrubber
from isblk.errors import IsblkError, UsageError
from isblk.settings import File, Settings

FOLDER = "isblk-report"
PACKAGES = ("trio", "pyfuse3", "click", "crc32c", "pyroute2", "tabulate", "dpkt")
OS_RELEASE = Path("/etc/os-release")
JOURNAL_COMMAND = ("journalctl", "--identifier=isblk", "--lines=400", "--no-pager", "--output=short-iso")
JOURNAL_SECONDS = 10.0
ASK_SECONDS = 2.0
SECRET_SETTINGS = ("secret-file", "target-secret-file")
_SECRET_WORDS = ("SECRET", "PASSWORD", "PASSWD", "TOKEN")

Members = Mapping[str, str | bytes]


def check(path: Path) -> None:
    """Raise UsageError where the file cannot be made: before anything is examined."""
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already; remove it, or name another file with --bundle")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be made: {path.absolute().parent} is no directory")


def secrets(environment: Mapping[str, str], settings: Settings, files: Sequence[str | None]) -> list[bytes]:
    """Every secret that this command could get at: in the environment, in credentials, in the files that options and settings name."""
    found = [os.fsencode(value) for name, value in environment.items() if any(word in name.upper() for word in _SECRET_WORDS)]
    named = [*(Path(name) for name in files if name is not None and not name.startswith(CREDENTIAL)), *_of_settings(settings)]
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if directory is not None:
        with suppress(OSError):
            named += sorted(Path(directory).iterdir())
    for path in named:
        with suppress(OSError), path.open("rb") as file:
            found += [line for line in file.read(SECRET_FILE_LIMIT).splitlines() if line]
    return found


def _of_settings(settings: Settings) -> Iterator[Path]:
    for file in settings.files:
        for section in _sections(file):
            for name in SECRET_SETTINGS:
                value = section.get(name)
                if isinstance(value, str) and not value.startswith(CREDENTIAL):
                    yield file.path.parent / Path(value).expanduser()


def _sections(file: File) -> list[Mapping[str, Any]]:
    return [file.top, file.discovery, *file.targets.values()]


def system() -> str:
    """Versions, kernel and distribution; no host name."""
    kernel = os.uname()
    lines = [f"isblk {__version__}", f"Python {sys.version.split()[0]} ({platform.python_implementation()})"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines += [f"{kernel.sysname} {kernel.release} {kernel.version} {kernel.machine}", _distribution(), f"user id {os.geteuid()}"]
    for name in sorted(name for name in os.environ if name.startswith("ISBLK_")):
        lines.append(f"${name} is set" if name in (SECRET_VARIABLE, TARGET_SECRET_VARIABLE) else f"${name}={os.environ[name]}")
    return "\n".join([*lines, f"made at {time.strftime('%Y-%m-%d %H:%M:%S %z')}", ""])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _distribution() -> str:
    with suppress(OSError):
        for line in OS_RELEASE.read_text(errors="replace").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip('"')
    return "unknown distribution"


def logs(run: Path) -> dict[str, str]:
    """What the daemons of this user logged last, what those that failed left behind, and the journal where it can be read."""
    found = {}
    for daemon in control.daemons(run):
        try:
            found[f"log-{daemon.pid}.txt"] = "\n".join([*control.ask(daemon.path, "log", ASK_SECONDS)["lines"], ""])
        except (IsblkError, KeyError) as error:
            found[f"log-{daemon.pid}.txt"] = f"not to be had: {error}\n"
    for note in sorted(run.glob("*.failed")):
        with suppress(OSError):
            found[f"failed-{note.stem}.txt"] = note.read_text(errors="replace")
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(JOURNAL_COMMAND, capture_output=True, text=True, errors="replace", timeout=JOURNAL_SECONDS)
        if done.returncode == 0 and done.stdout.strip() and "-- No entries --" not in done.stdout:
            found["journal.txt"] = done.stdout
    return found


def findings(report: Report) -> str:
    """The report as text."""
    lines = []
    for one in report.findings:
        lines.append(f"{one.section:<14} {one.severity.value:<9} {one.text}" + (f"\n{'':<25}-> {one.remedy}" if one.remedy else ""))
    return "\n".join([*lines, f"exit code {int(report.exit_code)}", ""])


def members(report: Report, daemons: Sequence[Mapping[str, Any]], run: Path, configuration: str) -> dict[str, str | bytes]:
    """Everything but a capture, not scrubbed yet."""
    return {
        "findings.txt": findings(report),
        "findings.json": json.dumps(report.as_dict(), indent=2),
        "system.txt": system(),
        "configuration.txt": configuration,
        "status.json": json.dumps(list(daemons), indent=2),
        **logs(run),
    }


def pack(path: Path, contents: Members, scrubber: Scrubber) -> list[tuple[str, int]]:
    """Make the file, 0600, with every member scrubbed; their names and sizes in bytes. Raises UsageError where it cannot be made."""
    clean = {name: _clean(data, scrubber) for name, data in contents.items()}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, data in clean.items():
                    archive.addfile(_header(name, data), io.BytesIO(data))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"the bundle {path} cannot be written: {error.strerror}; name another file with --bundle") from None
    return [(name, len(data)) for name, data in clean.items()]


def _clean(data: str | bytes, scrubber: Scrubber) -> bytes:
    return scrubber.data(data) if isinstance(data, bytes) else scrubber.text(data).encode(errors="replace")


def _header(name: str, data: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo(f"{FOLDER}/{name}")
    header.size, header.mode, header.mtime = len(data), 0o600, int(time.time())
    return header
