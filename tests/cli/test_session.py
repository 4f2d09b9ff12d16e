"""What every command that logs in does first: options to how to log in, our name, an ISID slot that is free again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isblk.cli.session import logged_in, login_options, to_target
from isblk.config import LoginOptions, parse_target
from isblk.errors import UsageError
from isblk.iscsi.names import Portal
from support.logs import restored_logging
from support.targets import running_target

OPTIONS: dict[str, Any] = {
    "portals": (),
    "user": None,
    "secret_file": None,
    "target_user": None,
    "target_secret_file": None,
    "chap_algorithms": None,
    "no_md5_retry": False,
    "digest": "allow",
    "initiator_name": "iqn.2026-11.test.isblk:session",
    "login_timeout": 5.0,
    "verbose": 0,
    "quiet": False,
    "log_level": None,
    "trace": False,
    "pcap": None,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ISBLK_STATE_DIR", str(tmp_path / "state"))
    with restored_logging():
        yield tmp_path


def test_options_become_how_to_log_in() -> None:
    assert login_options(OPTIONS) == LoginOptions(login_timeout=5.0)
    changed = login_options({**OPTIONS, "digest": "header", "user": "me", "no_md5_retry": True})
    assert changed == LoginOptions(user="me", digests=("crc32c", "none"), no_md5_retry=True, login_timeout=5.0)


async def test_a_session_and_its_slot_last_for_the_block(home: Path) -> None:
    async with running_target() as target:
        there = parse_target(target.url(), ())
        isids = []
        for _ in range(2):
            async with to_target(there, OPTIONS) as (_plane, connection):
                assert target.sessions == 1
                assert connection.portal == there.portals[0]
                isids += [session.nexus for session in target.node.sessions.values()]
        assert isids[0] == isids[1], "the same purpose gets the same ISID again"
        async with to_target(there, OPTIONS), to_target(there, OPTIONS):
            assert target.sessions == 2, "two at once have different ones"


async def test_a_discovery_has_no_target_name() -> None:
    async with running_target() as target, logged_in(None, [Portal.parse(target.portal)], OPTIONS) as (_, connection):
        assert (await connection.text([("SendTargets", "All")]))[0] == ("TargetName", target.name)


async def test_a_user_without_a_secret_is_refused_before_anything_is_sent() -> None:
    async with running_target() as target:
        with pytest.raises(UsageError, match="no secret for the CHAP user me"):
            async with to_target(parse_target(target.url().replace("//", "//me@"), ()), OPTIONS):
                raise AssertionError("it let us in")
        assert not target.server.connections
