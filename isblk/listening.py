"""Sockets that a server is given to accept from: a path of the file system, TCP, or what systemd hands over (sd_listen_fds(3)).

They are made before the process detaches, so that whoever typed the command is told at once what cannot be. A unix socket appears under its
name only when it is published: a path that is there is one that answers.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from isblk.control import address
from isblk.errors import UsageError
from isblk.iscsi.names import Portal

BACKLOG = 128
FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass
class Listener:
    """A listening socket. `where` names it for people and for `isblk umount`: a path, or HOST:PORT."""

    sock: socket.socket
    where: str
    path: Path | None = None
    _draft: Path | None = None
    _identity: tuple[int, int] | None = field(default=None, init=False)

    @property
    def is_local(self) -> bool:
        """Whether nobody beyond this machine can reach it."""
        return self.sock.family == socket.AF_UNIX or ipaddress.ip_address(self.sock.getsockname()[0].partition("%")[0]).is_loopback

    def uri(self, tls: bool) -> str:
        """The address of the default export, as libnbd and qemu take it (the NBD URI specification)."""
        scheme = "nbds" if tls else "nbd"
        if self.sock.family == socket.AF_UNIX:
            return f"{scheme}+unix:///?socket={quote(self.where)}"
        return f"{scheme}://{self.where}"

    def publish(self) -> None:
        """Let it appear under its name. Raises UsageError when a live server took the name meanwhile."""
        if self.path is None or self._draft is None:
            return
        check_free(self.path)
        found = self._draft.stat()
        self._draft.rename(self.path)
        self._draft, self._identity = None, (found.st_dev, found.st_ino)

    def withdraw(self) -> None:
        """Take the name away again, unless it is another's by now."""
        if self._draft is not None:
            self._draft.unlink(missing_ok=True)
        if self.path is None or self._identity is None:
            return
        try:
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        except OSError:  # It is gone, or its directory is.
            pass
        self._identity = None


def check_free(path: Path) -> None:
    """Raise UsageError unless a socket can have this name: nothing is there, or the socket of a server that is dead.

    The server is not connected to, which it would count as a client: a datagram socket cannot be connected to a stream socket
    (EPROTOTYPE), but only a live one can be told to be of the other type; one that nobody holds is refused (ECONNREFUSED).
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"the socket {path} cannot be made: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} is there and no socket: name a path that is not there yet")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe, address(path) as name:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise UsageError(f"the socket {path} cannot be looked at: {error.strerror}") from None
    raise UsageError(f"a server listens at {path} already: end it, or name another path")


def at_path(path: Path) -> Listener:
    """A unix socket, mode 0600, that will have this name. Raises UsageError."""
    path = Path(os.path.abspath(path))
    check_free(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)  # Around bind: a chmod behind it would leave a moment for others.
    try:
        draft.unlink(missing_ok=True)
        with address(draft) as name:
            sock.bind(name)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(f"the socket {path} cannot be made: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return Listener(sock, str(path), path, draft)


def parse_place(text: str, default_port: int) -> tuple[str, int]:
    """HOST, HOST:PORT, [V6]:PORT or a bare V6 address; port 0 takes a free one. Raises UsageError."""
    free = text.endswith(":0") and (text.count(":") == 1 or text.endswith("]:0"))
    portal = Portal.parse(text[:-1] + str(default_port) if free else text)
    has_port = (text.startswith("[") and not text.endswith("]")) or text.count(":") == 1
    if portal.tpgt is not None:
        raise UsageError(f"{text!r} is no place to listen at: it looks like HOST, HOST:PORT or [IPV6]:PORT")
    return portal.host, 0 if free else portal.port if has_port else default_port


def at_address(host: str, port: int) -> list[Listener]:
    """TCP sockets at every address of a host; port 0 takes a free one, the same for all. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{host} has no address to listen at: {getattr(error, 'strerror', None) or error}") from None
    listeners: list[Listener] = []
    failure: OSError | None = None
    for family, _, _, _, place in found:
        taken = listeners[0].sock.getsockname()[1] if listeners else port
        try:
            sock = _bound(family, (place[0], taken, *place[2:]))
        except OSError as error:
            failure = error
            if error.errno in _ABSENT:
                continue
            break
        listeners.append(Listener(sock, str(Portal(str(place[0]), sock.getsockname()[1]))))
    if not listeners or (failure is not None and failure.errno not in _ABSENT):
        for listener in listeners:
            listener.sock.close()
        raise UsageError(f"cannot listen at {Portal(host, port)}: {failure.strerror if failure is not None else 'no address'}") from None
    return listeners


def _bound(family: int, place: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def activated(environment: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """The sockets that systemd passed to this process, none where it passed none; what says so is taken out of the environment.

    Raises UsageError for anything that is no listening stream socket.
    """
    count, pid = environment.get("LISTEN_FDS", ""), environment.get("LISTEN_PID", "")
    if not count or pid != str(os.getpid()):  # Of a parent: not ours to use.
        return []
    for variable in _VARIABLES:
        environment.pop(variable, None)
    if not count.isdecimal() or not 1 <= int(count) <= 256:
        raise UsageError(f"LISTEN_FDS is {count[:20]!r}, which is no number of sockets")
    return [_adopted(number) for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))]


def _adopted(number: int) -> Listener:
    try:
        fcntl.fcntl(number, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise UsageError(f"descriptor {number} of LISTEN_FDS is no socket")
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise UsageError(f"descriptor {number} of LISTEN_FDS cannot be used: {error.strerror}") from None
    listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or sock.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        sock.detach()
        raise UsageError(f"descriptor {number} of LISTEN_FDS is no socket that accepts connections (ListenStream= with Accept=no)")
    place = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        name = os.fsdecode(place) if isinstance(place, bytes) else place
        return Listener(sock, f"@{name[1:]}" if name.startswith("\0") else os.path.abspath(name) if name else f"descriptor {number}")
    return Listener(sock, str(Portal(str(place[0]), int(place[1]))))
