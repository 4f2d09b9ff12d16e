"""The embedded target for other tests: in this process (async), or in a process of its own (for commands and foreign initiators)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isblk.iscsi.chap import Credentials
from isblk.target.config import Addressing, LunConfig, Offer, PortalConfig, Redirect, Reinstatement, TargetConfig
from isblk.target.server import Server, running
from isblk.target.unit import Unit

MIB = 1 << 20
AWKWARD = Offer(
    max_recv_data_segment_length=512,
    max_burst_length=4096,
    first_burst_length=1024,
    max_outstanding_r2t=3,
    window=4,
    initial_stat_sn=0xFFFFFFF8,
    login_chunk=64,
    text_chunk=64,
)
"""Values that nobody would choose: small segments and bursts, several R2Ts, a window of four, sequence numbers about to wrap."""


def disk(number: int = 0, size: int = 16 * MIB, **settings: Any) -> LunConfig:
    """A memory disk of `size` bytes."""
    return LunConfig(number, size=size, **settings)


def configuration(luns: tuple[LunConfig, ...] | list[LunConfig] | None = None, **settings: Any) -> TargetConfig:
    """A target on a free port of 127.0.0.1 with one memory disk at LUN 0, unless told otherwise; `settings` are TargetConfig's fields."""
    settings.setdefault("portals", (PortalConfig(port=0),))
    return TargetConfig(luns=tuple(luns) if luns is not None else (disk(),), **settings)


class RunningTarget:
    """A target in this process: everything that `server` and its node can do is at hand."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.node = server.node

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def portal(self) -> str:
        return self.server.portals[0]

    @property
    def portals(self) -> list[str]:
        return self.server.portals

    @property
    def sessions(self) -> int:
        return self.server.sessions

    def unit(self, number: int = 0) -> Unit:
        return self.node.units.units[number]

    def url(self, lun: int = 0) -> str:
        return f"iscsi://{self.portal}/{self.name}/{lun}"


@asynccontextmanager
async def running_target(luns: tuple[LunConfig, ...] | list[LunConfig] | None = None, **settings: Any) -> AsyncIterator[RunningTarget]:
    """A target in this process, on a free port, for the length of the block."""
    async with running(configuration(luns, **settings)) as server:
        yield RunningTarget(server)


@dataclass(frozen=True)
class TargetProcess:
    """A target in a process of its own."""

    name: str
    portals: list[str]
    process: subprocess.Popen[str]

    @property
    def portal(self) -> str:
        return self.portals[0]

    def url(self, lun: int = 0, user: str = "") -> str:
        """The iscsi:// URL of a LUN; `user` may be NAME or NAME%SECRET as libiscsi has it."""
        return f"iscsi://{user + '@' if user else ''}{self.portal}/{self.name}/{lun}"

    def kill(self) -> None:
        """kill -9: what was in its write cache is gone, and nobody listens any more."""
        self.process.kill()
        self.process.wait()

    def ask(self, question: str) -> Any:
        """'sessions' (how many there are), 'crash' (lose power, go on), 'drop' (cut every connection), 'resize LUN BYTES', 'hold' and
        'release' (of writes), 'held' (how many are), 'close N' (the N-th portal is gone with what was connected there), or 'endings' (why
        each connection that is over has ended).

        The answer is how many sessions there are, but for 'held' and 'endings'.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def target_process(luns: tuple[LunConfig, ...] | list[LunConfig] | None = None, **settings: Any) -> Iterator[TargetProcess]:
    """A target in a process of its own for the length of the block, with the settings of `running_target`; it ends with its input."""
    described = json.dumps(_describe(configuration(luns, **settings)))
    script = Path(__file__).with_name("target_process.py")
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(described + "\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        yield TargetProcess(told["name"], told["portals"], process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _describe(config: TargetConfig) -> dict[str, Any]:
    """A configuration as JSON; secrets travel over the pipe, not on a command line."""

    def secret(credentials: Credentials | None) -> list[str] | None:
        return [credentials.name, credentials.secret.decode()] if credentials else None

    return {
        "name": config.name,
        "alias": config.alias,
        "portals": [{**vars(each), "redirect": vars(each.redirect) if each.redirect else None} for each in config.portals],
        "luns": [vars(each) for each in config.luns],
        "credentials": secret(config.credentials),
        "mutual": secret(config.mutual),
        "chap_algorithms": config.chap_algorithms,
        "discovery_auth": config.discovery_auth,
        "addressing": config.addressing.value,
        "offer": vars(config.offer),
        "reinstatement": config.reinstatement.value,
        "lun_reset": config.lun_reset,
    }


def rebuild(described: Mapping[str, Any]) -> TargetConfig:
    """The configuration that `_describe` wrote."""

    def credentials(value: list[str] | None) -> Credentials | None:
        return Credentials(value[0], value[1].encode()) if value else None

    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    return replace(
        TargetConfig(),
        name=described["name"],
        alias=described["alias"],
        portals=tuple(
            PortalConfig(**{**each, "redirect": Redirect(**each["redirect"]) if each["redirect"] else None})
            for each in described["portals"]
        ),
        luns=tuple(LunConfig(**tuples(each)) for each in described["luns"]),
        credentials=credentials(described["credentials"]),
        mutual=credentials(described["mutual"]),
        chap_algorithms=tuple(described["chap_algorithms"]),
        discovery_auth=described["discovery_auth"],
        addressing=Addressing(described["addressing"]),
        offer=Offer(**tuples(described["offer"])),
        reinstatement=Reinstatement(described["reinstatement"]),
        lun_reset=described["lun_reset"],
    )
