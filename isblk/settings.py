"""The configuration files: which settings there are, where each one's value comes from, and what is wrong with a file (isblk.conf(5)).

Theory of operation. A file is TOML: settings at the top level are for every target, those in a section [target."NAME OR PATTERN"] for the
targets it matches, those in [discovery] for discovery sessions. What is said of a target by its name comes before what a pattern says, the
longer pattern before the shorter, both before the top level; and of two files the user's comes before the system's, at each of these steps.
So a special case in /etc is not undone by a user's general wish.

Values stay as TOML has them; each command turns them into what its option of the same name takes (cli/configured.py), so that a file and a
command line mean the same and are refused with the same words.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from isblk.errors import UsageError

SYSTEM_FILE = Path("/etc/isblk/isblk.conf")
FILE_VARIABLE = "ISBLK_CONFIG"
"""Names the one file to be read in place of the usual two; empty: none."""
LARGEST_FILE = 1 << 20

SETTINGS: dict[str, type] = {
    "portal": list,
    "user": str,
    "secret-file": str,
    "target-user": str,
    "target-secret-file": str,
    "chap-algorithms": str,
    "no-md5-retry": bool,
    "digest": str,
    "initiator-name": str,
    "login-timeout": float,
    "log-level": str,
    "all-portals": bool,
    "policy": str,
    "failback": str,
    "no-path-retry": str,
    "replacement-timeout": str,
    "noop-interval": str,
    "noop-timeout": str,
    "fence": str,
    "shared": bool,
    "queue-depth": str,
    "automount": bool,
    "idle": float,
}
"""What may be set for a target, by the name of its option; str and float take a number or a text, list a text or several."""
GLOBAL_SETTINGS = ("state-dir", "run-dir")
"""What concerns all of isblk on this host: only at the top level."""
NOT_FOR_DISCOVERY = (
    "portal",
    "all-portals",
    "policy",
    "failback",
    "no-path-retry",
    "replacement-timeout",
    "noop-interval",
    "noop-timeout",
    "fence",
    "shared",
    "queue-depth",
    "automount",
    "idle",
)
_SECRETS = ("secret", "target-secret", "password", "target-password")
_SECTIONS = ("target", "discovery")


@dataclass(frozen=True)
class Value:
    """What a setting is, where that is written (for people), and the directory that file paths in it start from."""

    value: Any
    origin: str
    directory: Path


@dataclass(frozen=True)
class File:
    """One file that was read: `top` for every target, `targets` by name or pattern, `discovery`."""

    path: Path
    top: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    discovery: Mapping[str, Any]


class _Section(NamedTuple):
    values: Mapping[str, Any]
    origin: str
    directory: Path


class Settings:
    """The files, the first of which comes first."""

    def __init__(self, files: Sequence[File] = ()) -> None:
        self.files = tuple(files)

    def for_target(self, *names: str) -> dict[str, Value]:
        """Every setting that is written down for a target, by whichever of its `names` (normalized, and as it was spelled)."""
        return self._first([*self._target_sections(names), *self._top()])

    def for_discovery(self) -> dict[str, Value]:
        """Every setting that is written down for discovery sessions."""
        sections = [_Section(file.discovery, f"{file.path} [discovery]", file.path.parent) for file in self.files]
        found = self._first([*sections, *self._top()])
        return {name: value for name, value in found.items() if name not in NOT_FOR_DISCOVERY}

    def of_the_host(self) -> dict[str, Value]:
        """The settings that concern no target."""
        return {name: value for name, value in self._first(self._top()).items() if name in GLOBAL_SETTINGS}

    def _top(self) -> list[_Section]:
        return [_Section(file.top, str(file.path), file.path.parent) for file in self.files]

    def _target_sections(self, names: Sequence[str]) -> list[_Section]:
        found = []
        for order, file in enumerate(self.files):
            for pattern, section in file.targets.items():
                if any(fnmatchcase(name, pattern) for name in names):
                    rank = (pattern not in names, -len(pattern), order)
                    found.append((rank, _Section(section, f'{file.path} [target."{pattern}"]', file.path.parent)))
        return [section for _, section in sorted(found, key=lambda one: one[0])]

    @staticmethod
    def _first(sections: Sequence[_Section]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for section in sections:
            for name, value in section.values.items():
                values.setdefault(name, Value(value, section.origin, section.directory))
        return values


def files(environment: Mapping[str, str] = os.environ, system: Path = SYSTEM_FILE) -> list[Path]:
    """Where the configuration is looked for, what comes first in front."""
    if FILE_VARIABLE in environment:
        return [Path(environment[FILE_VARIABLE])] if environment[FILE_VARIABLE] else []
    base = environment.get("XDG_CONFIG_HOME") or (f"{environment['HOME']}/.config" if environment.get("HOME") else "")
    user = [Path(base) / "isblk" / "isblk.conf"] if os.path.isabs(base) else []
    return [*user, system]


def load(environment: Mapping[str, str] = os.environ, system: Path = SYSTEM_FILE) -> Settings:
    """Read what there is. A file that is named by ISBLK_CONFIG has to be there. Raises UsageError that names file, setting and remedy."""
    found = []
    for path in files(environment, system):
        try:
            found.append(parse(path, _text(path)))
        except FileNotFoundError:
            if FILE_VARIABLE in environment:
                raise UsageError(f"the configuration file {path}, which ${FILE_VARIABLE} names, is not there") from None
    return Settings(found)


def _text(path: Path) -> str:
    """A file that only its owner and root can change: it says who logs in where, and with which secret. Raises FileNotFoundError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(LARGEST_FILE + 1)
        if stat.S_ISREG(status.st_mode) and (status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid())):
            raise UsageError(f"others can change the configuration file {path}: chown it to you or root, and chmod go-w it")
        if len(data) > LARGEST_FILE:
            raise UsageError(f"the configuration file {path} is larger than {LARGEST_FILE} bytes; is it the right one?")
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the configuration file {path} is not UTF-8 at byte {error.start}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError from None
    except OSError as error:
        raise UsageError(f"the configuration file {path} cannot be read: {error.strerror}") from None


def parse(path: Path, text: str) -> File:
    """A file's settings, each of them known, in its place and of its kind. Raises UsageError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}") from None
    top = {name: value for name, value in document.items() if name not in _SECTIONS}
    _check(path, "", top, [*SETTINGS, *GLOBAL_SETTINGS], [*SETTINGS, *GLOBAL_SETTINGS, *_SECTIONS])
    targets = _tables(path, "target", document.get("target", {}))
    for pattern, section in targets.items():
        _check(path, f'[target."{pattern}"] ', _tables(path, f'target."{pattern}"', section, empty=True), SETTINGS)
    discovery = _tables(path, "discovery", document.get("discovery", {}), empty=True)
    _check(path, "[discovery] ", discovery, [name for name in SETTINGS if name not in NOT_FOR_DISCOVERY])
    return File(path, top, targets, discovery)


def _tables(path: Path, name: str, found: Any, empty: bool = False) -> dict[str, Any]:
    """The table `name`, which holds tables, or with `empty` none of them."""
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {name} is a section, written [{name}{'' if empty else '.NAME'}], and no setting")
    if not empty:
        for inner, section in found.items():
            if not isinstance(section, dict):
                raise UsageError(f'{path}: {inner} stands in [{name}], where only sections such as [{name}."iqn.2001-05.com.example:*"] do')
    return found


def _check(path: Path, where: str, section: Mapping[str, Any], known: Collection[str], words: Sequence[str] = ()) -> None:
    for name, value in section.items():
        if name not in known:
            raise UsageError(f"{path}: {where}{_unknown(name, list(words or known))}")
        problem = _wrong_kind(SETTINGS.get(name, str), value)
        if problem:
            raise UsageError(f"{path}: {where}{name} is {problem}")


def _unknown(name: str, known: Sequence[str]) -> str:
    if name in _SECRETS:
        option = f"{name.replace('password', 'secret')}-file"
        return f"{name} is not kept in this file: put it into a file of its own, mode 0600, and name that with {option}"
    if name in SETTINGS or name in GLOBAL_SETTINGS:
        return f"{name} cannot be set here: it stands at the top level, for it concerns more than this"
    (near,) = get_close_matches(name.replace("_", "-"), known, 1, 0.6) or ("",)
    return f"there is no setting {name!r}; " + (f"is {near} meant?" if near else f"there are {', '.join(known)}")


def _wrong_kind(kind: type, value: Any) -> str:
    """What a value is that it must not be; empty when it is right."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false, without quotes"
    if kind is list:
        is_right = isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(one, str) for one in value))
        return "" if is_right else 'a text, or several in brackets: ["10.0.0.5", "10.0.1.5"]'
    if kind is float:
        return "" if is_number else "a number, without quotes"
    return "" if isinstance(value, str) or is_number else 'a text in quotes, such as "prefer", or a number'


def as_text(value: Any) -> str:
    """A value as a command line would have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
