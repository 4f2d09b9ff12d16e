"""Entries of isblktab as units of systemd: what the generator writes (systemd.generator(7)).

Theory of operation. Each entry is an instance of one template, isblk@.service, and not a part of one service that supervises the table:
so systemd orders, restarts, watches, accounts and stops each export by itself, other units can require the one they need, and one that
fails is one red line. The templates are data (data/systemd); a drop-in beside them has what one entry changes, and links say what is
started at boot.

The template comes from the generator too, so that an upgrade of isblk brings the new one, and /etc/systemd/system overrules it as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isblk.table.entry import DEFAULT_TIMEOUT, Entry
from isblk.table.options import Kind

TEMPLATES = Path(__file__).with_name("data") / "systemd"
SERVICE, SOCKET = "isblk@.service", "isblk@.socket"
TARGET = "remote-fs.target"
LONGEST_PAUSE = 10.0
"""Seconds between two attempts at most; an entry's retry= can make it less."""
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")

# Options that need a mount namespace, which what mounts nothing may have.
_APART = """ProtectSystem=full
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes"""


@dataclass(frozen=True)
class File:
    """A file of the generator's directory: its path there, and its text or what it is a symbolic link to."""

    path: str
    text: str = ""
    link: str = ""

    def write(self, directory: Path) -> None:
        """Make it. Raises OSError."""
        place = directory / self.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if self.link:
            place.symlink_to(self.link)
        else:
            place.write_text(self.text)


def escape(where: str) -> str:
    """WHERE in the name of a unit, as `systemd-escape --path` does it; HOST:PORT as systemd-escape(1) does without that."""
    parts = [part for part in where.split("/") if part]
    text = "/".join(parts)
    if not text:
        return "-"
    return "".join("-" if one == "/" else _escaped(one, at) for at, one in enumerate(text))


def _escaped(character: str, at: int) -> str:
    if character in _PLAIN and not (character == "." and not at):
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def units(entries: Iterable[Entry], program: str, table: str) -> Iterator[File]:
    """Every file: the templates, and what each entry adds. `program` is the path of isblk, `table` that of the table."""
    service = (TEMPLATES / SERVICE).read_text()
    yield File(SERVICE, service.replace("@ISBLK@", _quoted(program)).replace("@TABLE@", _quoted(table)))
    yield File(SOCKET, (TEMPLATES / SOCKET).read_text())
    for entry in entries:
        yield from _of(entry)


def _of(entry: Entry) -> Iterator[File]:
    name = escape(entry.where)
    service, socket = f"isblk@{name}.service", f"isblk@{name}.socket"
    yield File(f"{service}.d/table.conf", _service(entry, socket))
    if entry.kind is Kind.FUSE:
        yield File(f"{name}.mount.d/isblk.conf", _mount(entry, service))
    if entry.kind is Kind.NBD:
        yield File(f"{socket}.d/table.conf", _socket(entry))
        if not entry.noauto:
            yield File(f"sockets.target.wants/{socket}", link=f"../{SOCKET}")
    if entry.noauto or (entry.kind is Kind.NBD and entry.nofail):
        return  # By its name, or by the first who connects.
    yield File(f"{TARGET}.{'wants' if entry.nofail else 'requires'}/{service}", link=f"../{SERVICE}")


def _service(entry: Entry, socket: str) -> str:
    waited_for = not entry.noauto and not entry.nofail
    unit = [
        f"Description=iSCSI export {_plain(entry.where)} of {_plain(entry.name)}",
        f"SourcePath={_plain(entry.file)}",
        *([f"Before={TARGET}"] if waited_for else []),
        *([f"Requires={_plain(socket)}", f"After={_plain(socket)}"] if entry.kind is Kind.NBD else []),
    ]
    pause = f"RestartSec={min(LONGEST_PAUSE, entry.retry):g}" if entry.retry is not None else "Restart=no"
    service = [f"TimeoutStartSec={entry.patience or DEFAULT_TIMEOUT:g}", pause, *([_APART] if entry.kind is not Kind.FUSE else [])]
    return _text(entry, {"Unit": unit, "Service": service})


def _mount(entry: Entry, service: str) -> str:
    """The mount unit that systemd makes of what the daemon mounts: of a network, and unmounted before the daemon is told to end.

    It has the type fuse.isblk and no _netdev, so systemd would take it for a local file system, and order it before local-fs.target.
    """
    lines = [
        "DefaultDependencies=no",
        f"After={_plain(service)}",
        f"Before=umount.target {TARGET}",
        "Conflicts=umount.target",
    ]
    return _text(entry, {"Unit": lines})


def _socket(entry: Entry) -> str:
    lines = [] if entry.is_path else ["ListenStream=", f"ListenStream={_plain(entry.where)}"]
    unit = [f"Description=NBD socket of the iSCSI export {_plain(entry.where)}", f"SourcePath={_plain(entry.file)}"]
    return _text(entry, {"Unit": unit, "Socket": lines})


def _text(entry: Entry, sections: dict[str, list[str]]) -> str:
    head = f"# Made by isblk systemd-generator of line {entry.line} of {entry.file}.\n"
    return head + "".join(f"\n[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items() if lines)


def _plain(text: str) -> str:
    """Text in which systemd sees no specifier."""
    return text.replace("%", "%%").replace("\n", " ")


def _quoted(text: str) -> str:
    """One word of a command line (systemd.service(5), COMMAND LINES)."""
    plain = _plain(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return plain if plain == text and " " not in text else f'"{plain}"'
