"""What isblk keeps between runs and where: its directories, the initiator name, and an ISID per slot (RFC 7143 4.2.7, 10.1.1, 11.12.5).

Theory of operation: a session's identity is (initiator name, ISID). A restart after a crash must log in with the ISID it had, so that
the target ends the dead session by reinstatement (6.3.5); two mounts at once must never have the same, or each would end the other. So
ISIDs are numbered slots, each a file. Who uses a slot holds flock(2) on its file, which the kernel gives up with the process however that
ends, kill -9 included. The file's text is the slot's purpose (target and portal), so that a restart finds its own among several free ones.

An ISID is of the random type (11.12.5, T = 10b): 24 random bits made once on this host, and the slot's number as qualifier. With no place
to keep it isblk goes on with an ISID of chance and says so, for a session works without; a name of chance for the initiator would be
refused by the next target's access list for no visible reason, so that is an error.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from isblk.errors import UsageError
from isblk.iscsi.names import Isid, new_random, normalize_name

log = logging.getLogger(__name__)

NAME_VARIABLE = "ISBLK_INITIATOR_NAME"
STATE_VARIABLE = "ISBLK_STATE_DIR"
RUN_VARIABLE = "ISBLK_RUN_DIR"

SYSTEM_NAME_FILE = Path("/etc/iscsi/initiatorname.iscsi")
"""Where open-iscsi keeps the host's name; using it keeps the access lists that were made for this host."""

NAME_PREFIX = "iqn.2026-11.invalid.isblk:"
"""Of a made name. 'invalid' is reserved (RFC 2606), so no naming authority is claimed that somebody may own; naa. type 3 (locally assigned)
would be as honest, but several arrays take only iqn. and eui. into their access lists."""

MAX_SLOTS = 256
"""Slots kept for their old purposes; the least recently used free one is taken over when they are all there."""

MAX_PURPOSE = 1024
MAX_NAME_FILE = 65536


@dataclass(frozen=True)
class Places:
    """Directories: `state` survives a reboot, `run` holds the sockets of what runs now. Both 0700."""

    state: Path
    run: Path


def places(environment: Mapping[str, str] = os.environ, uid: int | None = None) -> Places:
    """Where this user's isblk keeps things. Nothing is made yet. Raises UsageError when there is no home directory to put it in.

    Root: /var/lib/isblk and /run/isblk, whatever XDG says, so that a root shell and a system service see each other. Others: the XDG base
    directories. ISBLK_STATE_DIR and ISBLK_RUN_DIR come before both (absolute paths).
    """
    uid = os.geteuid() if uid is None else uid
    home_state = None if uid == 0 else _base(environment, "XDG_STATE_HOME", ".local/state")
    state = _absolute(environment, STATE_VARIABLE) or (Path("/var/lib/isblk") if home_state is None else home_state / "isblk")
    run = _absolute(environment, RUN_VARIABLE)
    if run is None and uid == 0:
        run = Path("/run/isblk")
    if run is None:
        runtime = _absolute(environment, "XDG_RUNTIME_DIR", strict=False)
        run = state / "run" if runtime is None else runtime / "isblk"
    return Places(state, run)


def make_directory(path: Path) -> Path:
    """Make `path` and what is missing above it, 0700; an existing one must be ours and is made 0700. Raises UsageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise UsageError(f"{path} belongs to another user (uid {found.st_uid}); remove it, or set {STATE_VARIABLE} and {RUN_VARIABLE}")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}; set {STATE_VARIABLE} and {RUN_VARIABLE} to writable places") from None
    return path


def initiator_name(
    state: Path, option: str | None = None, environment: Mapping[str, str] = os.environ, system_file: Path = SYSTEM_NAME_FILE
) -> str:
    """Our iSCSI name, normalized: the option, else ISBLK_INITIATOR_NAME, else the host's (open-iscsi), else one made once and kept.

    Raises UsageError for a malformed name and where one has to be made and cannot be kept.
    """
    if option is not None:
        return normalize_name(option)
    if environment.get(NAME_VARIABLE):
        return normalize_name(environment[NAME_VARIABLE])
    return _name_from(system_file) or _kept_name(state)


def known_name(state: Path, system_file: Path = SYSTEM_NAME_FILE) -> tuple[str, str]:
    """The name that `initiator_name` would find without option and environment, and where; nothing is made. Raises UsageError."""
    for path in (system_file, state / "initiatorname.iscsi"):
        name = _name_from(path)
        if name is not None:
            return name, str(path)
    return "-", f"made when it is first needed, and kept in {state}"


def _kept_name(state: Path) -> str:
    path = state / "initiatorname.iscsi"
    name = _name_from(path)
    if name is None:
        name = NAME_PREFIX + secrets.token_hex(8)
        try:
            make_directory(state)
            _write_once(path, f"# Made by isblk when it was first needed. Targets know this host by it.\nInitiatorName={name}\n")
        except (OSError, UsageError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"no initiator name is configured and none can be kept at {path} ({reason}); give --initiator-name") from None
        name = _name_from(path)  # of whoever was first
    if name is None:
        raise UsageError(f"{path} holds no line 'InitiatorName=NAME'; add it, or remove the file to have a name made")
    return name


def _name_from(path: Path) -> str | None:
    """The name in a file of open-iscsi's form; None where there is no such file for us or no name in it (Debian's GenerateName=yes)."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_NAME_FILE)
    except OSError:
        return None
    found = re.search(r"^[ \t]*InitiatorName[ \t]*=[ \t]*(\S+)[ \t]*$", text, re.MULTILINE)
    if found is None:
        return None
    try:
        return normalize_name(found[1])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


class Slot:
    """An ISID that is ours until `close` (or the process ends, however it ends)."""

    def __init__(self, isid: Isid, number: int | None, descriptor: int | None) -> None:
        self.isid = isid
        self.number = number
        self._descriptor = descriptor

    def close(self) -> None:
        """Let another process have the slot; call it when the session has been logged out."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Slot {'of chance' if self.number is None else self.number} isid {self.isid}>"


def claim_slot(state: Path, purpose: str) -> Slot:
    """An ISID for one session, kept for `purpose` (target name and portal). Never fails: without a usable state directory it is random.

    Call it in the process that logs in, after any fork: a forked child shares the lock and would hold it as well.
    """
    purpose = purpose.replace("\n", " ")[:MAX_PURPOSE]
    try:
        directory = make_directory(make_directory(state) / "isid")
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held only while choosing
            number, descriptor = _choose(directory, purpose)
            return Slot(Isid.from_random(_host_number(directory), number), number, descriptor)
        finally:
            os.close(lock)
    except (OSError, UsageError) as error:
        log.warning("no ISID can be kept in %s (%s): after a crash the target will keep the old session until it times out", state, error)
        return Slot(Isid.from_random(new_random(), secrets.randbits(16)), None, None)


def _choose(directory: Path, purpose: str) -> tuple[int, int]:
    """The number and the locked descriptor of a free slot: the one that had this purpose last, else a new one, else the oldest."""
    numbers = sorted(int(path.stem) for path in directory.glob("*.slot") if path.stem.isdecimal() and int(path.stem) < 1 << 16)
    by_purpose = [number for number in numbers if _purpose(directory, number) == purpose]
    new = next(number for number in range(1 << 16) if number not in set(numbers))
    oldest = sorted(numbers, key=lambda number: _path(directory, number).stat().st_mtime_ns)
    rest = [new, *oldest] if len(numbers) < MAX_SLOTS else [*oldest, new]
    for number in [*by_purpose, *rest]:
        descriptor = _lock(_path(directory, number))
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, purpose.encode(errors="replace"), 0)
            return number, descriptor
    raise AssertionError("the new slot is nobody's: the directory is locked")


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number}.slot"


def _purpose(directory: Path, number: int) -> str:
    return _path(directory, number).read_bytes()[: 4 * MAX_PURPOSE].decode(errors="replace")


def _lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _host_number(directory: Path) -> int:
    """The 24 random bits of this host, made once; a file that does not hold them is replaced, and the log says what that costs."""
    path = directory / "host"
    text = path.read_bytes()[:64].decode(errors="replace").strip() if path.exists() else None
    if text is not None and re.fullmatch(r"[0-9a-f]{6}", text):
        return int(text, 16)
    if text is not None:
        log.warning("%s does not hold six hex digits; new ones were made, so a session that crashed before is not reinstated", path)
        path.unlink()
    number = new_random()
    _write_once(path, f"{number:06x}\n")
    return number


def _write_once(path: Path, text: str) -> None:
    """Make the file with its whole text, 0600 and durable, unless it is there: link(2) never shows half a file and never replaces one."""
    with durable_draft(path, text) as draft, suppress(FileExistsError):
        os.link(draft, path)


@contextmanager
def durable_draft(path: Path, text: str) -> Iterator[Path]:
    """The whole text under another name beside `path`, 0600 and durable, for the length of a block that links or renames it."""
    draft = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}")  # short: a target's name may take all that a file name can have
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _base(environment: Mapping[str, str], variable: str, below_home: str) -> Path:
    """A base directory of the XDG specification, which says that a relative path in a variable is to be ignored."""
    given = _absolute(environment, variable, strict=False)
    if given is not None:
        return given
    home = environment.get("HOME")
    if not home or not os.path.isabs(home):
        try:
            home = str(Path("~").expanduser())
        except RuntimeError:
            home = None
    if home is None or not os.path.isabs(home):
        raise UsageError(f"no home directory to keep anything in; set HOME, or {STATE_VARIABLE} and {RUN_VARIABLE}")
    return Path(home) / below_home


def _absolute(environment: Mapping[str, str], variable: str, strict: bool = True) -> Path | None:
    value = environment.get(variable)
    if not value:
        return None
    if os.path.isabs(value):
        return Path(value)
    if strict:
        raise UsageError(f"{variable} is {value!r}, but it must be an absolute path")
    return None
