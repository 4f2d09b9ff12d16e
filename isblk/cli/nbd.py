"""`isblk nbd`: logical units as NBD exports, served by a daemon that outlives the command, or in the foreground with -f."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import trio

from isblk.cli.configured import Configured
from isblk.cli.options import Lun, option_words, path_options, session_options
from isblk.cli.running import errors_as_sentences
from isblk.cli.service import PATH_OPTIONS, Service, detach
from isblk.cli.session import login_options
from isblk.config import PathOptions, Target, make_policies, parse_target
from isblk.errors import UsageError
from isblk.export.nbdtls import TlsSettings
from isblk.iscsi.names import Isid
from isblk.link.opening import Access
from isblk.listening import Listener, activated, at_address, at_path, parse_place
from isblk.logs.output import tell
from isblk.nbdserver import NbdSpec
from isblk.nbdserver import serve as serve_nbd
from isblk.state import make_directory, places

PORT = 10809
"""Of NBD, by IANA."""


@dataclass(frozen=True)
class Places:
    """Where to listen, and what protects it."""

    socket: Path | None
    listen: str | None
    insecure: bool
    tls_certificates: Path | None
    tls_psk: Path | None


@click.command("nbd", cls=Configured)
@click.argument("target", metavar="TARGET")
@click.option(
    "--socket", type=click.Path(path_type=Path), metavar="PATH", help="Listen at this unix socket, which only this user can open."
)
@click.option("--listen", metavar="HOST[:PORT]", help="Listen at TCP (port 10809): without TLS on loopback only.")
@click.option("--lun", type=Lun(), metavar="N", help="Export this logical unit alone, not every disk.")
@click.option("-o", "words", multiple=True, metavar="ro|rw", help="ro: clients cannot write.")
@click.option("--read-only", is_flag=True, help="The same as -o ro.")
@click.option(
    "--tls-certificates",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Require TLS: DIR has server-cert.pem and server-key.pem; ca-cert.pem: clients need a certificate too.",
)
@click.option(
    "--tls-psk", type=click.Path(path_type=Path), metavar="FILE", help="Require TLS with a pre-shared key: lines NAME:HEX, mode 0600."
)
@click.option("--insecure", is_flag=True, help="Let --listen without TLS leave this machine: anybody can read and write then.")
@click.option("--max-connections", type=click.IntRange(1, 10000), default=128, show_default=True, metavar="N", help="Clients at once.")
@click.option("--exit-on-last", is_flag=True, help="End when the last client has gone.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; Ctrl-C ends it.")
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="The daemon's log, not the journal.")
@session_options
@path_options
def command(
    target: str,
    lun: int | None,
    words: tuple[str, ...],
    read_only: bool,
    max_connections: int,
    exit_on_last: bool,
    foreground: bool,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Export the disks of TARGET over NBD, each under its number and its WWID; the first is the default export.

    \b
    isblk nbd -p 10.0.0.5 iqn.2001-05.com.example:disks --socket ./disk.sock
    nbdinfo 'nbd+unix:///?socket=disk.sock'
    qemu-system-x86_64 -drive file='nbd+unix:///?socket=disk.sock',format=raw,if=virtio
    isblk umount ./disk.sock

    \b
    isblk nbd -p 10.0.0.5 iqn.2001-05.com.example:disks --listen 0.0.0.0 --tls-certificates /etc/isblk/nbd
    isblk nbd iscsi://10.0.0.5/iqn.2001-05.com.example:disks/2 --socket ./two.sock -o ro --exit-on-last

    The command prints an NBD URI and returns when it listens; a daemon serves from then on. `isblk umount`, or SIGTERM, ends it: requests
    in flight are answered, the target's write cache is synchronized, the session is logged out. Sockets of systemd (LISTEN_FDS) take the
    place of --socket and --listen.
    """
    with errors_as_sentences():
        paths = {name: options.pop(name) for name in PATH_OPTIONS}
        where = Places(**{name: options.pop(name) for name in Places.__dataclass_fields__})
        wanted = login_options(options)
        found = parse_target(target, options["portals"])
        policies, timing = make_policies(PathOptions(**paths), found.portals, wanted.login_timeout, options["all_portals"])
        is_read_only = read_only or "ro" in option_words(words, ("ro", "rw"))
        if read_only and "rw" in option_words(words, ("ro", "rw")):
            raise UsageError("--read-only and -o rw contradict each other: give one of them")
        tls = _tls(where)
        run = make_directory(places().run)
        listeners = _listeners(where)
        tell(where=listeners[0].where)
        spec = NbdSpec(found, lun, run, is_read_only, tls, max_connections, exit_on_last, policies)

        async def serve(target: Target, isids: tuple[Isid, ...], access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
            await serve_nbd(replace(spec, target=target, isids=isids), listeners, access, stop, started)

        def say() -> None:
            for listener in listeners:
                click.echo(listener.uri(tls is not None))

        service = Service(found, run, wanted, timing, options, serve)
        if foreground:
            service(say)
            return
        try:
            detach(service, log_file)
        except BaseException:
            for listener in listeners:
                listener.withdraw()
            raise
        finally:  # They are the daemon's now.
            for listener in listeners:
                listener.sock.close()
        say()


def _tls(where: Places) -> TlsSettings | None:
    if where.tls_certificates is None and where.tls_psk is None:
        return None
    if where.tls_certificates is not None and where.tls_psk is not None:
        raise UsageError("--tls-certificates and --tls-psk exclude each other: give one of them")
    settings = TlsSettings(where.tls_certificates, where.tls_psk)
    settings.context()  # Now, while somebody is there to be told what is wrong with the files.
    return settings


def _listeners(where: Places) -> list[Listener]:
    """The sockets, bound. Raises UsageError where that cannot be, or would let strangers in."""
    passed = activated()
    given = [name for name, value in (("--socket", where.socket), ("--listen", where.listen)) if value is not None]
    if passed and given:
        raise UsageError(f"systemd passes the sockets to listen at (LISTEN_FDS), so {given[0]} says nothing: leave it out")
    if len(given) == 2:
        raise UsageError("--socket and --listen exclude each other: give one of them")
    if not passed and not given:
        raise UsageError("nowhere to listen: give --socket PATH, or --listen HOST[:PORT]")
    listeners = passed
    if where.socket is not None:
        if not where.socket.name:
            raise UsageError("--socket is empty; name a path that is not there yet")
        listeners = [at_path(where.socket)]
    if where.listen is not None:
        listeners = at_address(*parse_place(where.listen, PORT))
    secure = where.tls_certificates is not None or where.tls_psk is not None or where.insecure
    open_ones = [listener.where for listener in listeners if not listener.is_local]
    if open_ones and not secure:
        for listener in listeners:
            listener.sock.close()
        raise UsageError(
            f"anybody who reaches {open_ones[0]} could read and write the disk: give --tls-certificates or --tls-psk, "
            "listen on loopback, or insist with --insecure"
        )
    return listeners
