"""A virtual machine of qemu's whose disks are mounted files, as administrators write it down; connections are lost while it runs."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from isblk.target.config import PortalConfig
from support.commands import Commands
from support.mounts import Mounts
from support.processes import Processes
from support.targets import MIB, disk, target_process
from support.trees import check
from support.waiting import until

VM = Path(__file__).parent / "disk" / "vm"
BOOT_SECONDS = 120.0
EMPTY = hashlib.sha256(bytes(2 * MIB)).hexdigest()


@pytest.mark.deadline(240)
def test_a_virtual_machine_works_on_mounted_files(fuse: None, processes: Processes, mounts: Mounts, tmp_path: Path) -> None:
    """cache=none with libaio and with io_uring, discard=unmap; one file with the host's page cache, one without."""
    portals = (PortalConfig(port=0), PortalConfig(port=0))
    images = [tmp_path / "0.img", tmp_path / "1.img"]
    with target_process([disk(lun, 128 * MIB, path=str(image)) for lun, image in enumerate(images)], portals=portals) as running:
        commands = Commands(processes, running)
        one, other = tmp_path / "one", tmp_path / "other"
        for place, more in ((one, ["--lun", "0"]), (other, ["--lun", "1", "-o", "direct_io"])):
            commands.run(
                "mount", "-p", running.portals[0], "-p", running.portals[1], running.name, place, "--log-file", tmp_path / "log", *more
            )
        check("mkfs.ext4", "-q", one)
        said, drops = _run(commands, tmp_path / "vm", one, other)
        found = dict(line.split(" ", 1) for line in said.splitlines() if line.startswith(("kept", "bare", "discarded", "size", "FAILED")))
        assert "FAILED" not in found and found["size"] == f"{128 * MIB // 512} {128 * MIB // 512}", said
        assert drops > 2, "connections were to be lost while it ran"
        for place in (one, other):
            commands.umount(place)
        running.ask("crash")
    assert found["bare"] == hashlib.sha256(images[1].read_bytes()[: 6 * MIB]).hexdigest() and found["discarded"] == EMPTY
    assert images[1].stat().st_blocks * 512 <= 5 * MIB, "what the guest discarded has been given back"
    check("e2fsck", "-fn", images[0])
    check("debugfs", "-R", f"dump /kept {tmp_path / 'kept'}", images[0])
    assert found["kept"] == hashlib.sha256((tmp_path / "kept").read_bytes()).hexdigest()
    assert images[0].stat().st_blocks * 512 < 16 * MIB, "so has what its fstrim told"


def _run(commands: Commands, home: Path, one: Path, other: Path) -> tuple[str, int]:
    """Boot, let it work until it is off, with a connection lost now and then; what its console said, and how often."""
    home.mkdir()
    console, drops = home / "console", 0
    with console.open("wb") as log:
        machine = subprocess.Popen([VM, home, one, other], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:

        def is_off() -> bool:
            nonlocal drops
            try:
                machine.wait(1.0)
            except subprocess.TimeoutExpired:
                commands.target.ask("drop")
                drops += 1
                return False
            return True

        until(is_off, f"the machine to be off, see {console}", BOOT_SECONDS)
    finally:
        machine.kill()
        machine.wait()
    said = console.read_text(errors="replace")
    assert machine.returncode == 0 and "GUEST-DONE" in said, said[-3000:]
    return said, drops
