"""`isblk mount`: its options, and what a signal does before and after the file is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from click.testing import Result

from isblk.block.choose import MANUAL, NoPathRetry, Policy
from isblk.block.policies import FencePolicy
from isblk.cli import mount as cli
from isblk.cli.mount import _caching, _mount_options
from isblk.daemon import MountSpec
from isblk.errors import UsageError
from isblk.export.fuseoptions import Caching, Engine
from isblk.iscsi.names import Portal
from isblk.link.opening import Access
from isblk.target.config import PortalConfig
from support.targets import TargetProcess, target_process

Run = Callable[..., Result]


def test_mount_options_as_mount_takes_them() -> None:
    assert _mount_options(()) == (set(), None)
    assert _mount_options(("ro,allow_other", "ro")) == ({"ro", "allow_other"}, None)
    assert _mount_options(("rw,",)) == ({"rw"}, None)
    assert _mount_options(("noexec,fsname=x=y", "noatime")) == ({"noexec", "noatime"}, "x=y")


@pytest.mark.parametrize(
    ("words", "why"),
    [(("rp",), "unknown mount option 'rp'"), (("ro", "rw"), "contradict each other"), (("ro,fsname=",), "fsname= is empty")],
)
def test_mount_options_that_cannot_be(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        _mount_options(words)


def test_the_page_cache_is_chosen_by_an_option() -> None:
    assert _caching({"ro"}, Engine.DIRECT) is Caching.WRITE_THROUGH
    assert _caching({"direct_io"}, Engine.PYFUSE3) is Caching.NONE
    assert _caching({"writeback", "allow_other"}, Engine.DIRECT) is Caching.WRITEBACK
    with pytest.raises(UsageError, match="contradict each other"):
        _caching({"writeback", "direct_io"}, Engine.DIRECT)
    with pytest.raises(UsageError, match="leave out --fuse-engine pyfuse3"):
        _caching({"writeback"}, Engine.PYFUSE3)


def test_usage_is_checked_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    run("mount", "-p", "127.0.0.1", "iqn.2026-11.test.isblk:x", tmp_path / "disk", "-o", "what", code=2)
    run("mount", "not-a-name", tmp_path / "disk", code=2)
    assert not (tmp_path / "disk").exists()


NAME = "iqn.2026-11.test.isblk:x"


@dataclass
class Asked:
    """What the command would have mounted, and how."""

    spec: MountSpec | None = None
    access: Access | None = None

    async def mount(self, spec: MountSpec, access: Access, stop: trio.Event, started: Callable[[], None]) -> None:
        self.spec, self.access = spec, access
        started()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Stands in for the daemon; with -f the command runs in this process."""
    found = Asked()
    monkeypatch.setattr(cli, "serve_mount", found.mount)
    return found


@pytest.fixture(scope="module")
def portals() -> Iterator[TargetProcess]:
    """A target with three portals in two portal groups."""
    with target_process(portals=(PortalConfig(port=0), PortalConfig(port=0, tpgt=2), PortalConfig(port=0))) as running:
        yield running


def test_engine_and_caching_reach_the_mount(run: Run, asked: Asked, tmp_path: Path) -> None:
    run("mount", "-f", "-p", "h", NAME, tmp_path / "disk")
    assert asked.spec is not None
    assert (asked.spec.engine, asked.spec.caching) == (Engine.DIRECT, Caching.WRITE_THROUGH)
    run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", "--fuse-engine", "pyfuse3", "-o", "direct_io,ro")
    assert (asked.spec.engine, asked.spec.caching, asked.spec.read_only) == (Engine.PYFUSE3, Caching.NONE, True)
    run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", "--fuse-engine", "other", code=2)


def test_automount_reaches_the_mount_and_remembers(run: Run, asked: Asked, tmp_path: Path) -> None:
    found = []
    for words in ([], ["--automount"], ["--automount", "--idle", "0.5"], ["--automount", "--no-automount"]):
        run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", *words)
        assert asked.spec is not None
        found.append(asked.spec.automount)
    assert found == [None, 300, 0.5, None]
    assert asked.spec is not None and asked.spec.state_directory == tmp_path / "state"
    config = tmp_path / "isblk.conf"
    config.write_text("automount = true\nidle = 60\n")
    config.chmod(0o600)
    env = {"ISBLK_CONFIG": str(config)}
    run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", env=env)
    assert asked.spec.automount == 60
    run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", "--no-automount", env=env)
    assert asked.spec.automount is None, "a setting for automounts is none of this"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--idle", "60"], "--idle says when an automount logs out: give --automount too"),
        (["--automount", "--all-portals"], "cannot ask for --all-portals: name each with -p"),
        (["--automount", "--idle", "-1"], "-1.0 is not in the range"),
        (["--automount", "--idle", "soon"], "'soon' is not a valid float"),
    ],
)
def test_what_contradicts_an_automount(run: Run, asked: Asked, tmp_path: Path, words: list[str], why: str) -> None:
    assert why in run("mount", "-f", "-p", "h", NAME, tmp_path / "disk", *words, code=2).stderr
    assert asked.spec is None


def test_path_options_reach_the_mount(run: Run, asked: Asked, tmp_path: Path) -> None:
    waiting = ["--no-path-retry", "7", "--noop-interval", "2", "--noop-timeout", "3", "--login-timeout", "4"]
    words = ["--policy", "service-time", "--failback", "manual", "--fence", "fast", "--shared", *waiting]
    run("mount", "-f", "-p", "h", "-p", "h:3261", NAME, tmp_path / "disk", *words)
    assert asked.spec is not None and asked.access is not None
    policies, timing = asked.spec.policies, asked.access.timing
    assert (policies.policy, policies.failback, policies.fence, policies.shared) == (Policy.SERVICE_TIME, MANUAL, FencePolicy.FAST, True)
    assert policies.no_path == NoPathRetry(7)
    assert (timing.noop_interval, timing.noop_timeout, timing.login_timeout) == (2, 3, 4)


def test_every_portal_given_is_a_path_with_an_isid_that_is_kept(run: Run, asked: Asked, tmp_path: Path) -> None:
    isids = []
    for portals in (["h", "h:3261"], ["h:3261", "h"]):
        run("mount", "-f", *[word for portal in portals for word in ("-p", portal)], NAME, tmp_path / "disk")
        assert asked.spec is not None
        assert [str(portal) for portal in asked.spec.target.portals] == [str(Portal.parse(portal)) for portal in portals]
        isids.append(asked.spec.isids)
    assert len(set(isids[0])) == 2
    assert isids[1] == isids[0][::-1], "an ISID belongs to its portal"


def test_all_portals_come_behind_those_that_were_given(run: Run, asked: Asked, portals: TargetProcess, tmp_path: Path) -> None:
    one, two, three = portals.portals
    for given, expected in (([one], [one, two, three]), ([three], [three, one, two]), ([two, one], [two, one, three])):
        words = [word for portal in given for word in ("-p", portal)]
        run("mount", "-f", "--all-portals", *words, portals.name, tmp_path / "disk")
        assert asked.spec is not None
        assert [str(portal) for portal in asked.spec.target.portals] == expected
        assert len(set(asked.spec.isids)) == 3
    assert portals.ask("sessions") == 0


def test_a_portal_given_by_another_name_is_no_second_path(run: Run, asked: Asked, portals: TargetProcess, tmp_path: Path) -> None:
    given = portals.portal.replace("127.0.0.1", "localhost")
    run("mount", "-f", "--all-portals", "-p", given, portals.name, tmp_path / "disk")
    assert asked.spec is not None
    assert [str(portal) for portal in asked.spec.target.portals] == [given, *portals.portals[1:]]


def test_a_portal_given_comes_before_that_of_the_url(run: Run, asked: Asked, portals: TargetProcess, tmp_path: Path) -> None:
    run("mount", "-f", f"iscsi://10.0.0.5/{portals.name}", "-p", portals.portals[1], tmp_path / "disk")
    assert asked.spec is not None
    assert [str(portal) for portal in asked.spec.target.portals] == [portals.portals[1]]


def test_a_target_that_its_portal_does_not_report_is_not_found(run: Run, asked: Asked, portals: TargetProcess, tmp_path: Path) -> None:
    said = run("mount", "-f", "--all-portals", "-p", portals.portal, NAME, tmp_path / "disk", code=3)
    assert f"{portals.portal} does not report {NAME}; `isblk discover {portals.portal}`" in said.stderr
    assert asked.spec is None and portals.ask("sessions") == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--policy", "roundrobin"], "did you mean round-robin?"),
        (["--fence", "none"], "no fence policy: there are strict, fast"),
        (["-p", "h:3260"], "the portal h:3260 is given twice"),
        (["--no-path-retry", "fail", "--replacement-timeout", "9"], "contradict each other"),
        (["--noop-interval", "0", "--all-portals"], "contradicts several portals"),
        (["--noop-timeout", "soon"], "--noop-timeout cannot be 'soon'"),
    ],
)
def test_path_options_that_cannot_be_are_usage(run: Run, asked: Asked, words: list[str], why: str, tmp_path: Path) -> None:
    assert why in run("mount", "-p", "h", NAME, tmp_path / "disk", *words, code=2).stderr
    assert asked.spec is None and not (tmp_path / "state").exists()
