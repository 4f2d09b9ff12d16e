"""A table with the files of this machine: itself, the configuration, secrets, certificates. Nothing is contacted.

`load` is what every command does with a table before anything else: one with a problem is not acted upon in part, since the line that is
wrong may be the one that says how a disk is not to be mounted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isblk.errors import UsageError
from isblk.iscsi.chap import Credentials
from isblk.settings import Settings
from isblk.settings import load as load_settings
from isblk.table.agreement import Effective, examine
from isblk.table.entry import Entry, Table, parse
from isblk.table.options import Kind
from isblk.table.problems import Problems, Say

DEFAULT = Path("/etc/isblk/isblktab")
LARGEST = 1 << 20
"""Bytes of a table."""
_DIRECTIONS = (
    ("user", "secret-file", "ISBLK_SECRET"),
    ("target-user", "target-secret-file", "ISBLK_TARGET_SECRET"),
)


def check(path: Path, environment: Mapping[str, str] = os.environ, settings: Settings | None = None) -> Table:
    """Everything that can be found wrong without contacting anything; `settings` None: those of this machine."""
    problems = Problems(str(path))
    text = read(path, problems)
    if text is None:
        return Table(str(path), (), problems)
    table = parse(str(path), text)
    table.problems.extend(problems)
    if settings is None:
        try:
            settings = load_settings(environment)
        except UsageError as error:
            table.problems.at(0, 0, Say.CONFIGURATION, reason=error)
            settings = Settings()
    for entry in (*table.entries, *table.doubtful):
        effective = configured(entry, settings)
        examine(effective, table.problems, doubtful=entry in table.doubtful)
        _check_secrets(effective, table.problems, environment)
        _check_tls(entry, table.problems)
    return table


def load(path: Path) -> Table:
    """The table, when nothing is wrong with it. Raises UsageError with the first problem, and how many there are."""
    table = check(path)
    if table.problems:
        first, *rest = table.problems.in_order()
        more = f" (and {len(rest)} more: isblk check -f {path})" if rest else ""
        raise UsageError(f"{first}{more}")
    return table


def read(path: Path, problems: Problems) -> str | None:
    """A table's text; None, and a problem, where there is none. Only its owner and root may change it: it says where this machine logs in,
    and with which secret.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(LARGEST + 1)
        if stat.S_ISREG(status.st_mode) and (status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid())):
            problems.at(0, 0, Say.OTHERS_CAN_WRITE)
        if len(data) > LARGEST:
            problems.at(0, 0, Say.TOO_LARGE, limit=LARGEST)
            return None
        return data.decode()
    except UnicodeDecodeError as error:
        problems.at(data[: error.start].count(b"\n") + 1, 0, Say.NOT_TEXT, byte=error.start)
    except (FileNotFoundError, NotADirectoryError):
        problems.at(0, 0, Say.NO_TABLE)
    except OSError as error:
        problems.at(0, 0, Say.UNREADABLE, reason=error.strerror)
    return None


def configured(entry: Entry, settings: Settings) -> Effective:
    """What holds for an entry. File names of the configuration start from its own directory, as when a command reads it."""
    found: dict[str, Any] = {}
    for name, value in settings.for_target(*entry.names).items():
        is_path = name in ("secret-file", "target-secret-file") and not str(value.value).startswith("credential:")
        found[name] = str(value.directory / Path(str(value.value)).expanduser()) if is_path else value.value
    return Effective(entry, found)


def _check_secrets(effective: Effective, problems: Problems, environment: Mapping[str, str]) -> None:
    """The secrets that a login would read, by the same code. Those of the environment are this process's, which `isblk up` passes on."""
    entry, found = effective.entry, []
    for user, option, variable in _DIRECTIONS:
        name, path = effective.text(user), effective.text(option)
        if name is None:
            continue
        if path is None and variable not in environment:
            problems.at(entry.line, entry.column(user), Say.NO_SECRET, user=name, option=option)
            continue
        if path is not None and path.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in environment:
            continue  # It is there when systemd starts the unit, and only then.
        credentials = _read(name, path, variable, entry, option, problems, environment)
        if credentials is not None:
            found.append(credentials.secret)
    if len(found) == 2 and found[0] == found[1]:
        problems.at(entry.line, entry.column("target-secret-file"), Say.SAME_SECRETS)


def _read(
    user: str, path: str | None, variable: str, entry: Entry, option: str, problems: Problems, environment: Mapping[str, str]
) -> Credentials | None:
    from isblk.config import credentials  # trio behind it: only for entries that log in with a secret

    try:
        return credentials(user, path, variable, option, environment)
    except UsageError as error:
        problems.at(entry.line, entry.column(option), Say.BAD_SECRET, name=option if path is not None else variable, reason=error)
    return None


def _check_tls(entry: Entry, problems: Problems) -> None:
    for name in ("tls-certificates", "tls-psk"):
        path = entry.value(name)
        if entry.kind is not Kind.NBD or path is None:
            continue
        from isblk.export.nbdtls import TlsSettings  # ssl: only for the entries that need it

        try:
            TlsSettings(Path(path), None).context() if name == "tls-certificates" else TlsSettings(None, Path(path)).context()
        except UsageError as error:
            problems.at(entry.line, entry.column(name), Say.BAD_TLS, name=name, reason=error)
