"""Units of systemd of a table: what they are is kept in tests/golden, and systemd itself finds nothing wrong with them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from isblk import blockdevice, ending, nbdserver
from isblk.block import attach
from isblk.systemdunits import SERVICE, SOCKET, File, escape, units
from isblk.table.entry import parse

GOLDEN = Path(__file__).parent / "golden" / "systemd"
TABLE = "/etc/isblk/isblktab"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory as the generator leaves it for the golden table."""
    table = parse(TABLE, (GOLDEN / "isblktab").read_text())
    assert table
    for file in units(table.entries, "/bin/true", TABLE):
        file.write(tmp_path / "units")
    return tmp_path / "units"


def tree(directory: Path) -> str:
    """Every file with its text, every link with where it leads."""
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    return "\n".join(
        f"==> {path.relative_to(directory)}" + (f" -> {os.readlink(path)}\n" if path.is_symlink() else f"\n{path.read_text()}")
        for path in paths
    )


def test_the_units_are_as_they_were_looked_at(made: Path) -> None:
    shown, golden = tree(made), GOLDEN / "units"
    if os.environ.get("ISBLK_WRITE_GOLDEN"):
        golden.write_text(shown)
    assert shown == golden.read_text(), "look at the difference; ISBLK_WRITE_GOLDEN=1 keeps what is new"


def test_systemd_finds_nothing_wrong_with_them(made: Path) -> None:
    names = [path.name.removesuffix(".d") for path in made.glob("*@*.d")]
    assert len(names) == 8
    for name in names:
        if not list(made.glob(f"*/{name}")):  # systemd-analyze finds an instance by a link alone
            (made / name).symlink_to(SOCKET if name.endswith(".socket") else SERVICE)
    plain = [name for name in names if ":" not in name]  # a colon means an alias there; that one is sockets.target's, too
    for name in (*plain, "remote-fs.target", "sockets.target"):  # systemd 252 gives up on several instances at once
        assert verified(made, name) == (0, ""), name


def verified(directory: Path, name: str) -> tuple[int, str]:
    """What `systemd-analyze verify` says of a unit: its exit code, and its words."""
    command = ["systemd-analyze", "verify", "--man=no", name]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


def test_systemd_does_find_what_is_wrong(made: Path) -> None:
    service = made / SERVICE
    service.write_text(service.read_text().replace("Type=notify", "Type=notifi"))
    assert "notifi" in verified(made, "isblk@mnt-lun0.service")[1]


@pytest.mark.parametrize("where", ["/mnt/lun0", "/srv/lun-1.img", "/mnt/100% full", "/.hidden/a..b", "/ü/\\x", "/", "/a@b:c_d"])
def test_names_are_escaped_as_systemd_does_it(where: str) -> None:
    assert escape(where) == subprocess.run(["systemd-escape", "--path", where], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("where", ["127.0.0.1:10809", "[::1]:10809", "host-1.example:10809"])
def test_addresses_are_escaped_as_systemd_does_it(where: str) -> None:
    assert escape(where) == subprocess.run(["systemd-escape", where], check=True, capture_output=True, text=True).stdout.strip()


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_the_end_has_more_time_than_it_takes_without_a_target(made: Path) -> None:
    device = blockdevice.WRITE_BACK_SECONDS + blockdevice.DISCONNECT_SECONDS + blockdevice.DRAIN_SECONDS
    longest = max(device, nbdserver.DRAIN_SECONDS) + ending.PATIENCE_SECONDS + ending.FENCE_PATIENCE_SECONDS + attach.END_SECONDS
    assert float(settings((made / SERVICE).read_text())["TimeoutStopSec"]) > longest


MOUNT_NAMESPACE = (
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectSystem", "ProtectHome", "ProtectProc", "ProtectKernelTunables"),
    *("ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths"),
    *("BindPaths", "TemporaryFileSystem", "RootDirectory", "MountFlags", "DynamicUser"),
)
"""What has systemd give a service a mount namespace of its own (systemd.exec(5))."""


def test_what_mounts_is_not_put_into_a_mount_namespace(made: Path) -> None:
    drop_in = (made / "isblk@mnt-lun0.service.d" / "table.conf").read_text()
    for text in ((made / SERVICE).read_text(), drop_in):
        assert not set(settings(text)) & set(MOUNT_NAMESPACE)
    assert "ProtectSystem" in settings((made / "isblk@dev-nbd0.service.d" / "table.conf").read_text())


def test_a_program_may_be_anywhere(tmp_path: Path) -> None:
    (service, socket, *rest) = units((), '/opt/my "50%" $x/isblk', TABLE)
    assert [service.path, socket.path, rest] == [SERVICE, SOCKET, []]
    assert r'ExecStart="/opt/my \"50%%\" $$x/isblk" serve -f /etc/isblk/isblktab %f' in service.text


def test_a_file_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for file in (File("a/b", "one"), File("a/b", link="../c"), File("a/b", "two")):
        file.write(tmp_path)
    assert (tmp_path / "a" / "b").read_text() == "two" and not (tmp_path / "a" / "b").is_symlink()
