"""`isblk target`: what its options make, and what cannot be."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from isblk.cli import target as cli
from isblk.errors import UsageError
from isblk.target.config import DEFAULT_NAME, LunConfig, Offer, PortalConfig
from support.processes import Processes, isblk

Run = Callable[..., Result]
OPTIONS: dict[str, Any] = {
    "name": None,
    "user": None,
    "secret_file": None,
    "target_user": None,
    "target_secret_file": None,
    "discovery_auth": False,
    "block_size": "512",
    "read_only": False,
    "no_write_cache": False,
    "values": (),
}


def config(*luns: str, portals: tuple[str, ...] = ("127.0.0.1:0",), **options: Any) -> Any:
    return cli._config(luns, portals, {**OPTIONS, **options})


def test_the_least_that_can_be_said() -> None:
    made = config("mem:1M")
    assert made.name == DEFAULT_NAME
    assert made.luns == (LunConfig(0, None, 1 << 20),)
    assert made.portals == (PortalConfig("127.0.0.1", 0, 1),)
    assert (made.credentials, made.mutual, made.offer) == (None, None, Offer())


def test_disks_are_numbered_in_the_order_given(tmp_path: Path) -> None:
    there = tmp_path / "there:1"
    there.write_bytes(bytes(512))
    made = config(f"{tmp_path}/new:2M", str(there), "mem:64k", block_size="4096", read_only=True, no_write_cache=True)
    expected = [(0, f"{tmp_path}/new", 2 << 20), (2, None, 65536)]
    assert [(lun.number, lun.path, lun.size) for lun in made.luns if lun.number != 1] == expected
    assert all(lun.block_size == 4096 and lun.read_only and not lun.write_cache for lun in made.luns)


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("127.0.0.1:3261", PortalConfig("127.0.0.1", 3261, 1)),
        ("10.0.0.1:3260,7", PortalConfig("10.0.0.1", 3260, 7)),
        ("[::1]:0,2", PortalConfig("::1", 0, 2)),
        ("127.0.0.1", PortalConfig("127.0.0.1", 3260, 1)),
    ],
)
def test_portals(text: str, portal: PortalConfig) -> None:
    assert cli._portal(text) == portal


@pytest.mark.parametrize(("lun", "words"), [(":1M", "names no file"), ("/no/such/file", "there is no such file"), ("mem", "give the size")])
def test_disks_that_cannot_be(lun: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(lun)


def test_negotiable_values() -> None:
    made = config("mem:1M", values=("InitialR2T=Yes", "MaxBurstLength=65536", "FirstBurstLength=65536"))
    assert made.offer.initial_r2t and made.offer.max_burst_length == 65536
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        config("mem:1M", values=("InitialR2T",))


def test_secrets_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-secret-of-16-b\n")
    secret.chmod(0o600)
    made = config("mem:1M", user="me", secret_file=str(secret))
    assert (made.credentials.name, made.credentials.secret) == ("me", b"a-secret-of-16-b")


def test_errors_are_sentences(run: Run, tmp_path: Path) -> None:
    assert "--lun" in run("target", code=2).stderr
    assert "cannot listen on" in run("target", "--lun", "mem:1M", "--portal", "192.0.2.1:3260", code=2).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_listens_and_ends_with_a_signal(processes: Processes, number: int) -> None:
    started = processes.start(isblk("target", "--lun", "mem:1M", "--portal", "127.0.0.1:0", "--portal", "127.0.0.1:0,2", "--json"))
    started.wait_for("}")
    told = json.loads(started.stdout)
    assert told["name"] == DEFAULT_NAME and len(told["portals"]) == 2
    listed = processes.run(isblk("discover", told["portals"][1])).stdout
    assert listed.splitlines() == [f"{told['portals'][0]},1 {DEFAULT_NAME}", f"{told['portals'][1]},2 {DEFAULT_NAME}"]
    assert started.stop(number) == 0
    assert not started.stderr
