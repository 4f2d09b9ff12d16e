"""What every command that logs in does first: the target from its arguments, our name, an ISID slot, and a session on a running plane."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from isblk.capture import Capture
from isblk.cli.options import DIGESTS
from isblk.cli.running import trace_pdu
from isblk.config import LoginOptions, Target, make_access
from isblk.iscsi.names import Portal
from isblk.link.connection import Connection, Tap
from isblk.link.opening import Access, opened
from isblk.link.plane import Plane
from isblk.link.running import running_plane
from isblk.logs.output import level_of, to_stderr
from isblk.state import claim_slot, initiator_name, places

PORTAL_OPTIONS = ("portals", "all_portals", "verbose", "quiet", "log_level", "trace", "pcap", "initiator_name", "digest")


def login_options(options: dict[str, Any]) -> LoginOptions:
    """The shared options of a command (cli/options.py) as they concern the login; sets up logging on the way."""
    to_stderr(level_of(options["verbose"], options["quiet"], options["log_level"]), options["trace"])
    rest = {name: value for name, value in options.items() if name not in PORTAL_OPTIONS}
    return LoginOptions(digests=DIGESTS[options["digest"]], **rest)


@asynccontextmanager
async def logged_in(target: Target | None, portals: Sequence[Portal], options: dict[str, Any]) -> AsyncIterator[tuple[Plane, Connection]]:
    """A session (a discovery session without a target) for the length of a block."""
    target_name = target.name if target is not None else None
    wanted = login_options(options)
    state = places().state
    name = initiator_name(state, options["initiator_name"])
    with claim_slot(state, f"{target_name or 'discovery'} at {portals[0]}") as slot:
        trace = trace_pdu if options["trace"] else None
        access = make_access(name, slot.isid, wanted, target=target, trace=trace)
        with capturing(options["pcap"], access) as heard:
            async with running_plane() as plane, opened(plane, portals, target_name, heard) as connection:
                yield plane, connection


@contextmanager
def capturing(path: str | None, access: Access) -> Iterator[Access]:
    """The same access, whose connections are captured in the file for the length of the block where one is named. Raises UsageError."""
    with capture_taps(path) as tap:
        yield access if tap is None else replace(access, tap=tap)


@contextmanager
def capture_taps(path: str | None) -> Iterator[Callable[[socket.socket], Tap] | None]:
    """What taps connections into the file for the length of the block; None where none is named. Raises UsageError."""
    if path is None:
        yield None
        return
    with closing(Capture(Path(path))) as capture:
        yield capture.tap


def to_target(target: Target, options: dict[str, Any]) -> Any:
    """`logged_in` for a parsed TARGET."""
    return logged_in(target, target.portals, options)
