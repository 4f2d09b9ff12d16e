"""Options that are right and do not go together, with what the configuration says of the target."""

from __future__ import annotations

from typing import Any

import pytest

from isblk.table.agreement import Effective, examine
from isblk.table.entry import parse
from isblk.table.problems import Problems, Say

NAME = "iqn.2001-05.com.example:disks"


def effective(line: str, configured: dict[str, Any] | None = None) -> Effective:
    table = parse("tab", line)
    assert not table.problems, table.problems
    return Effective(table.entries[0], configured or {})


def said(line: str, configured: dict[str, Any] | None = None) -> list[Say]:
    problems = Problems("tab")
    examine(effective(line, configured), problems)
    return [problem.say for problem in problems]


def test_the_table_comes_before_the_url_and_that_before_the_configuration() -> None:
    configured = {"user": "conf", "portal": ["a", "b"], "login-timeout": 7.5}
    plain, url = effective(f"{NAME} /a fuse", configured), effective(f"iscsi://me@c/{NAME} /a fuse", configured)
    assert (plain.text("user"), plain.portals) == ("conf", ("a", "b"))
    assert (url.text("user"), url.portals) == ("me", ("c:3260",))
    own = effective(f"iscsi://me@c/{NAME} /a fuse user=own,portal=d", configured)
    assert (own.text("user"), own.portals) == ("own", ("d",))
    assert plain.text("login-timeout") == "7.5"
    assert effective(f"{NAME} /a fuse", {"portal": "one"}).portals == ("one",)


@pytest.mark.parametrize(
    ("line", "configured", "say"),
    [
        ("/a fuse", {}, Say.NO_PORTAL),
        ("/a fuse portal=a,portal=a:3260", {}, Say.SAME_PORTAL),
        ("/a fuse portal=a,portal=b,noop-interval=0", {}, Say.NO_PINGS),
        ("/a fuse portal=a,noop-interval=0", {"all-portals": True}, Say.NO_PINGS),
        ("/a fuse portal=a,ro,rw", {}, Say.CONTRADICTION),
        ("/a fuse portal=a,idle=5", {}, Say.NEEDS),
        ("/a fuse portal=a,target-user=a", {}, Say.NEEDS),
        ("/a fuse portal=a,writeback", {"fuse-engine": "pyfuse3"}, Say.WRITEBACK_ENGINE),
        ("/a fuse portal=a,no-path-retry=5,replacement-timeout=6", {}, Say.TWO_RETRIES),
        ("/a fuse portal=a,no-path-retry=5", {"replacement-timeout": 6}, Say.TWO_RETRIES),
        ("/dev/nbd0 attach portal=a,device-timeout=120", {}, Say.SHORT_DEVICE_TIMEOUT),
        ("/dev/nbd0 attach portal=a,device-timeout=500", {"no-path-retry": "queue"}, Say.SHORT_DEVICE_TIMEOUT),
        ("0.0.0.0:1 nbd portal=a", {}, Say.OPEN_TO_ALL),
        ("disk.example.com:1 nbd portal=a", {}, Say.OPEN_TO_ALL),
    ],
)
def test_what_does_not_go_together(line: str, configured: dict[str, Any], say: Say) -> None:
    assert said(f"{NAME} {line}", configured) == [say]


@pytest.mark.parametrize(
    ("line", "configured"),
    [
        ("/a fuse", {"portal": "b"}),
        ("/a fuse portal=a,portal=a:3261", {}),
        ("/a fuse portal=a,noop-interval=0", {"all-portals": False}),
        ("/a fuse portal=a,secret-file=b", {"user": "me"}),
        ("/a fuse portal=a,automount,idle=5", {}),
        ("/a fuse portal=a,writeback,fuse-engine=direct", {}),
        ("/a fuse portal=a,no-path-retry=queue,replacement-timeout=-1", {}),
        ("/a fuse portal=a,replacement-timeout=5", {"no-path-retry": "rubbish"}),
        ("/dev/nbd0 attach portal=a,device-timeout=121", {}),
        ("/dev/nbd0 attach portal=a,device-timeout=20,replacement-timeout=0", {}),
        ("127.0.0.9:1 nbd portal=a", {}),
        ("[::1]:1 nbd portal=a", {}),
        ("localhost:1 nbd portal=a", {}),
        ("0.0.0.0:1 nbd portal=a,insecure", {}),
        ("0.0.0.0:1 nbd portal=a,tls-certificates=x", {}),
        ("/a.sock nbd portal=a", {}),
    ],
)
def test_what_does(line: str, configured: dict[str, Any]) -> None:
    assert said(f"{NAME} {line}", configured) == []


def test_a_url_must_not_be_contradicted() -> None:
    assert said(f"iscsi://a/{NAME}/2 /a fuse portal=b") == [Say.URL_PORTAL]
    assert said(f"iscsi://a/{NAME}/2 /a fuse lun=3") == [Say.URL_LUN]
    assert said(f"iscsi://a/{NAME}/2 /a fuse lun=0x2") == []


def test_of_a_line_that_is_wrong_anyhow_it_is_not_said_that_it_has_no_portal() -> None:
    problems = Problems("tab")
    examine(effective(f"{NAME} /a fuse idle=5"), problems, doubtful=True)
    assert [problem.say for problem in problems] == [Say.NEEDS]
