"""What mount(8) and umount(8) say to their helpers for a file system type: the call, and of its options those that every type has.

Theory of operation. For an fstab(5) line of the type isblk, mount(8) runs mount.isblk SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t
TYPE]; it has kept x-*, comment=, auto, noauto and the like to itself, and made `defaults`, `user` and `owner` into what they stand for.
umount(8) sees the type that the kernel shows, fuse.isblk, and runs umount.fuse.isblk DIR [-flnrv] [-N NAMESPACE] [-t TYPE]. People who run
a helper by hand may give it anything that an fstab line can hold.

Options that every file system has are in three lists: those that the kernel does (fuseoptions.KERNEL_FLAGS), those that say nothing about a
disk shown as a file, and those that cannot be meant. Everything else is a setting, which is for others to know.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from getopt import GetoptError, gnu_getopt

from isblk.errors import ExitCode, UsageError
from isblk.export.fuseoptions import KERNEL_FLAGS
from isblk.table.entry import Entry, parse_options
from isblk.table.fields import Piece, escaped
from isblk.table.options import OPTIONS, PLACES, SECRETS, Kind, of
from isblk.table.problems import Problems, hint

FSTAB_FILE = "/etc/fstab"

MOUNT_USAGE = "mount.isblk SPEC DIR [-sfnvN] [-o OPTION[,...]] [-t TYPE]"
UMOUNT_USAGE = "umount.fuse.isblk DIR [-flnrv] [-N NAMESPACE] [-t TYPE]"

MOUNTER = ("auto", "noauto", "user", "nouser", "users", "owner", "group", "nogroup", "_netdev", "defaults", "nofail", "fail")
"""For mount(8), systemd and who may mount; of these only nofail is the helper's as well."""
WITHOUT_MEANING = (
    *("suid", "nosuid", "dev", "nodev", "exec"),  # A disk's file is none of these things.
    *("async", "atime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"),  # Nor keeps times.
    *("iversion", "noiversion", "mand", "nomand", "silent", "loud"),
)
IMPOSSIBLE = {
    "remount": "a disk cannot be mounted again in another way: unmount it first",
    "sync": "give sync to the file system that lies in the file: it is its writes that it is about",
    "dirsync": "give dirsync to the file system that lies in the file: it is its directories that it is about",
    "loop": "loop belongs to the line of the file system that lies in the file",
}
PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=")
"""Of words that are for others."""

_KNOWN = (*(name for name in of(Kind.FUSE) if OPTIONS[name].argument), *KERNEL_FLAGS, *MOUNTER, *WITHOUT_MEANING)
_CODES = {ExitCode.DONE: 0, ExitCode.USAGE: 1, ExitCode.BUG: 4, ExitCode.INTERRUPTED: 8}


@dataclass(frozen=True)
class Call:
    """One call of a helper. `words` are the options, taken apart; `read_only` asks an unmount that fails to make it read-only at least."""

    spec: str
    place: str
    words: tuple[str, ...] = ()
    fake: bool = False
    sloppy: bool = False
    verbose: bool = False
    lazy: bool = False
    force: bool = False
    read_only: bool = False
    namespace: str | None = None


def parse_mount(arguments: Sequence[str]) -> Call:
    """What mount(8) asks for. Raises UsageError."""
    flags, rest = _getopt(arguments, "sfnvN:o:t:", 2, MOUNT_USAGE)
    words = tuple(word for name, value in flags if name == "-o" for word in split(value))
    named = dict(flags)
    return Call(rest[0], rest[1], words, "-f" in named, "-s" in named, "-v" in named, namespace=named.get("-N"))


def parse_umount(arguments: Sequence[str]) -> Call:
    """What umount(8) asks for. Raises UsageError."""
    flags, rest = _getopt(arguments, "flnrvN:t:", 1, UMOUNT_USAGE)
    named = dict(flags)
    return Call(
        "", rest[0], verbose="-v" in named, lazy="-l" in named, force="-f" in named, read_only="-r" in named, namespace=named.get("-N")
    )


def _getopt(arguments: Sequence[str], letters: str, count: int, usage: str) -> tuple[list[tuple[str, str]], list[str]]:
    """-n (no /etc/mtab, which nobody keeps any more) and -t (the type, which is why the helper was called) ask for nothing."""
    try:
        flags, rest = gnu_getopt(list(arguments), letters)
    except GetoptError as error:
        raise UsageError(f"{error}: it is called as {usage}") from None
    if len(rest) != count:
        raise UsageError(f"it is called as {usage}")
    return flags, rest


def split(text: str) -> list[str]:
    """Options taken apart at the commas; one in double quotes keeps its commas and loses the quotes, as in mount(8). Raises UsageError."""
    words, quoted = [""], False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            words.append("")
        else:
            words[-1] += character
    if quoted:
        raise UsageError(f'the options {text} have a " without another')
    return [word for word in words if word]


def _own(words: Sequence[str]) -> list[str]:
    """The words that say something to isblk. Raises UsageError for what a disk cannot be."""
    for word in words:
        if word in IMPOSSIBLE:
            raise UsageError(f"the option {word} is not for isblk: {IMPOSSIBLE[word]}")
    return [word for word in words if word not in MOUNTER and word not in WITHOUT_MEANING and not word.startswith(PREFIXES)]


def arguments(call: Call) -> list[str]:
    """What `isblk mount` is to be called with. Raises UsageError for an option that is not known or not right."""
    words = _own(call.words)
    unknown = [name for name in (word.partition("=")[0] for word in words) if name not in (*OPTIONS, *KERNEL_FLAGS, *SECRETS, *PLACES)]
    if unknown and not call.sloppy:
        raise UsageError(f"there is no option {unknown[0]!r}: {hint(unknown[0], _KNOWN)}")
    words = [word for word in words if word.partition("=")[0] not in unknown]
    kernel = [word for word in words if word in KERNEL_FLAGS]
    field = ",".join(escaped(word) for word in words if word not in KERNEL_FLAGS)
    problems = Problems(FSTAB_FILE)
    given = parse_options(Piece(field, 1), 1, Kind.FUSE, problems) if field else ()
    if problems:
        raise UsageError(problems[0].sentence)
    for one in given:
        if not OPTIONS[one.name].argument:
            raise UsageError(f"{one.name} is an option of isblktab(5), and says nothing to mount(8): leave it out")
    command = Entry(call.spec, os.path.abspath(call.place), Kind.FUSE, given).command()
    shown = ",".join([f"fsname={call.spec}", *kernel])
    assert command[:2] == ["mount", "--foreground"]
    return ["-o", shown, *command[2:]]


def exit_code(code: int) -> int:
    """mount(8)'s exit code for one of ours."""
    return _CODES.get(ExitCode(code), 32) if code in list(ExitCode) else 32
