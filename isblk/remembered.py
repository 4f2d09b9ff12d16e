"""What is remembered of each target's disks between runs, so that a file can be shown before the target has been asked (block/known.py).

One file for each target in the state directory, JSON: its disks by LUN, which of them it was when only the target was named (`only`), and
which there were for a directory (`all`). It is replaced as a whole (a reader sees the old or the new), 0600, and written under a lock, for
several mounts of one target add to it. What cannot be read, or makes no sense, is as good as never seen; what cannot be written is said,
and costs no mount.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from isblk.block.known import Known
from isblk.block.request import Geometry
from isblk.errors import UsageError
from isblk.state import durable_draft, make_directory

VERSION = 1
LARGEST_FILE = 1 << 22
_MOST_LUN = (1 << 64) - 1

_log = logging.getLogger(__name__)


@dataclass
class _Memory:
    """The contents of a file."""

    luns: dict[int, Known] = field(default_factory=dict)
    only: int | None = None
    all: list[int] | None = None


def recall(state: Path, target_name: str, lun: int | None, several: bool = False) -> list[Known]:
    """The disk of that number, or without one the only disk, or with `several` all of them; empty where that has never been seen."""
    memory = _read(_path(state, target_name))
    if lun is not None:
        numbers: Sequence[int] | None = [lun]
    elif several:
        numbers = memory.all
    else:
        numbers = [memory.only] if memory.only is not None else None
    if not numbers or not all(number in memory.luns for number in numbers):
        return []
    return [memory.luns[number] for number in numbers]


def remember(state: Path, target_name: str, found: Sequence[Known], lun: int | None, several: bool = False) -> None:
    """Keep what a login has found, asked for as in `recall`. Never fails: without a usable state directory the log says so."""
    try:
        directory = make_directory(make_directory(state) / "disks")
        with _locked(directory):
            path = _path(state, target_name)
            memory = _read(path)
            memory.luns.update({one.number: one for one in found})
            if several:
                memory.all = [one.number for one in found]
            if lun is None and len(found) == 1:
                memory.only = found[0].number
            elif lun is None:
                memory.only = None  # There are several now, so that one has to be chosen.
            with durable_draft(path, json.dumps(_as_plain(target_name, memory), indent=1) + "\n") as draft:
                draft.replace(path)
    except (OSError, UsageError) as error:
        _log.warning("what %s has cannot be remembered in %s: %s", target_name, state, error)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Only one at a time writes; the kernel gives the lock up with the process, however that ends."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _path(state: Path, target_name: str) -> Path:
    """The target's file. An iSCSI name is a file name, but for one that somebody wrote down wrongly."""
    return state / "disks" / f"{target_name.replace('/', '_')}.json"


def _as_plain(target_name: str, memory: _Memory) -> dict[str, Any]:
    luns = {str(number): {key: value for key, value in asdict(one).items() if key != "number"} for number, one in memory.luns.items()}
    return {"version": VERSION, "target": target_name, "only": memory.only, "all": memory.all, "luns": luns}


def _read(path: Path) -> _Memory:
    try:
        with path.open("rb") as file:
            return _from_plain(json.loads(file.read(LARGEST_FILE)))
    except FileNotFoundError:
        return _Memory()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _log.warning("%s tells nothing (%s): its disks count as never seen", path, error)
        return _Memory()


def _from_plain(found: Any) -> _Memory:
    """Raises ValueError, TypeError, KeyError, AttributeError for what this module does not write."""
    if found["version"] != VERSION:
        raise ValueError(f"version {found['version']!r}")
    luns = {_number(int(text)): _known(int(text), one) for text, one in found["luns"].items()}
    only, every = found["only"], found["all"]
    return _Memory(luns, None if only is None else _number(only), None if every is None else [_number(one) for one in every])


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_LUN:
        raise ValueError(f"{value!r} is no LUN")
    return value


def _known(number: int, found: Any) -> Known:
    texts = {name: found[name] for name in ("vendor", "product", "serial")}
    wwid, geometry = found["wwid"], found["geometry"]
    if not all(isinstance(one, str) for one in (*texts.values(), wwid or "")):
        raise ValueError("a name that is no text")
    kinds = get_type_hints(Geometry)
    if set(geometry) != set(kinds) or not all(type(geometry[name]) is kind for name, kind in kinds.items()):
        raise ValueError("another geometry than isblk's")
    made = Geometry(**geometry)
    if made.size < 0 or made.block_size < 1 or made.block_size & (made.block_size - 1):
        raise ValueError("a size that no disk has")
    return Known(number, made, wwid=wwid, **texts)
