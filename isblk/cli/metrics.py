"""`isblk metrics`: OpenMetrics text of everything that runs, once or over HTTP; and the dashboard that goes with it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from isblk import control
from isblk.cli.running import errors_as_sentences
from isblk.errors import UsageError
from isblk.state import places

PORT = 9260


@click.command("metrics")
@click.option("--listen", metavar="HOST[:PORT]", help=f"Serve them over HTTP at an address of this machine; the usual port is {PORT}.")
@click.option("--socket", "path", type=click.Path(path_type=Path), metavar="PATH", help="Serve them over HTTP on a unix socket.")
@click.option("--insecure", is_flag=True, help="Let --listen leave this machine: anybody can read names and figures then.")
@click.option("--dashboard", is_flag=True, help="Print the Grafana dashboard, and ask nobody.")
def command(listen: str | None, path: Path | None, insecure: bool, dashboard: bool) -> None:
    """Print metrics of every daemon of this user as OpenMetrics text, or serve them to Prometheus until interrupted.

    \b
    isblk metrics
    isblk metrics --listen 127.0.0.1
    isblk metrics --socket /run/isblk/metrics
    isblk metrics --dashboard > isblk-dashboard.json
    """
    with errors_as_sentences():
        if dashboard:
            click.echo(dashboard_text(), nl=False)
        elif listen is None and path is None:
            click.echo(_metrics().text(_ask_and_tell), nl=False)
        else:
            _serve(listen, path, insecure)


def dashboard_text() -> str:
    """The dashboard as it is installed."""
    from importlib.resources import files

    return files("isblk").joinpath("data/dashboard.json").read_text()


def _metrics() -> ModuleType:
    """The module that needs prometheus-client. Raises UsageError where it is not installed."""
    try:
        from isblk import metrics
    except ImportError as error:
        raise UsageError(f"metrics need the package prometheus-client ({error}): pip install 'isblk[metrics]'") from None
    return metrics


def _ask() -> tuple[Sequence[Mapping[str, Any]], int]:
    answers, failures = control.ask_all(places().run)
    return [answer for _, answer in answers], len(failures)


def _ask_and_tell() -> tuple[Sequence[Mapping[str, Any]], int]:
    answers, failures = control.ask_all(places().run)
    for failure in failures:
        click.echo(f"isblk: {failure}", err=True)
    return [answer for _, answer in answers], len(failures)


def _serve(listen: str | None, path: Path | None, insecure: bool) -> None:
    """Until a signal, which is how it is meant to end."""
    registry = _metrics().registry(_ask)
    from isblk.metricsserver import Serving

    listeners = _listeners(listen, path, insecure)
    try:
        # Blocked before there are threads, which inherit it: then the signal can only come out of sigwait.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        with Serving(listeners, registry):
            for listener in listeners:
                listener.publish()
                click.echo(f"http+unix:{listener.where}:/metrics" if listener.path is not None else f"http://{listener.where}/metrics")
            with suppress(KeyboardInterrupt):
                signal.sigwait(_ENDS)
    finally:
        for listener in listeners:
            listener.withdraw()
            listener.sock.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)


_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def _listeners(listen: str | None, path: Path | None, insecure: bool) -> list[Any]:
    """The sockets, bound. Raises UsageError where that cannot be, or would let strangers look."""
    from isblk.listening import at_address, at_path, parse_place

    if listen is not None and path is not None:
        raise UsageError("--listen and --socket exclude each other: give one of them")
    if path is not None:
        if not path.name:
            raise UsageError("--socket is empty; name a path that is not there yet")
        return [at_path(path)]
    assert listen is not None
    listeners = at_address(*parse_place(listen, PORT))
    open_ones = [listener.where for listener in listeners if not listener.is_local]
    if open_ones and not insecure:
        for listener in listeners:
            listener.sock.close()
        raise UsageError(f"anybody who reaches {open_ones[0]} could read the metrics: listen on loopback, or insist with --insecure")
    return listeners
