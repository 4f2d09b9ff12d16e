"""`isblk discover`: lines as iscsiadm prints them, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result

from isblk.target.config import PortalConfig
from support.targets import TargetProcess, target_process

Run = Callable[..., Result]


def test_one_line_for_each_target_and_portal(run: Run, target: TargetProcess) -> None:
    result = run("discover", target.portal)
    assert result.stdout == f"{target.portal},1 {target.name}\n"
    assert result.stderr == ""
    assert target.ask("sessions") == 0


def test_several_portals_and_groups_also_on_ipv6(run: Run) -> None:
    portals = (PortalConfig(port=0, tpgt=1), PortalConfig(port=0, tpgt=2), PortalConfig("::1", 0, tpgt=2))
    with target_process(portals=portals) as several:
        one, two, six = several.portals
        expected = f"{one},1 {several.name}\n{two},2 {several.name}\n{six},2 {several.name}\n"
        assert run("discover", one).stdout == expected
        assert run("discover", six).stdout == expected
        told = json.loads(run("discover", two, "--json").stdout)
        host, _, port = two.rpartition(":")
        assert [record["name"] for record in told] == [several.name]
        assert told[0]["portals"][1] == {"host": host, "port": int(port), "tpgt": 2}
        assert [portal["host"] for portal in told[0]["portals"]] == ["127.0.0.1", "127.0.0.1", "::1"]


def test_a_portal_that_cannot_be(run: Run) -> None:
    assert "not a portal" in run("discover", "127.0.0.1:x", code=2).stderr


def test_the_trace_shows_pdus_on_standard_error(run: Run, target: TargetProcess) -> None:
    result = run("discover", target.portal, "--trace")
    assert result.stdout == f"{target.portal},1 {target.name}\n"
    assert "Text" in result.stderr and "Logout" in result.stderr
