"""What is mounted below a directory: read from the kernel, and undone (lazily) when a test ends, whatever it left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import TracebackType


class Mounts:
    """Mounts and loop devices below `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def points(self) -> list[Path]:
        """Mountpoints below home, the last mounted first."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        found = [Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])) for line in lines]
        return [point for point in reversed(found) if point.is_relative_to(self.home)]

    def loops(self) -> list[str]:
        """Loop devices whose backing file is below home."""
        listed = subprocess.run(["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"], check=True, capture_output=True).stdout
        devices = json.loads(listed or b'{"loopdevices": []}')["loopdevices"]
        return [one["name"] for one in devices if Path(one["back-file"] or "/").is_relative_to(self.home)]

    def loop_mount(self, image: Path, directory: Path, *options: str) -> None:
        """Mount an image through a loop device of its own (root)."""
        directory.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", ",".join(("loop", *options)), image, directory], check=True)

    def unmount(self, point: Path) -> None:
        """Unmount in the ordinary way and return when the kernel is done."""
        subprocess.run(["umount", point], check=True)

    def __enter__(self) -> Mounts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        loops = self.loops()
        for point in self.points():
            command = ["umount", "-l", point] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", point]
            subprocess.run(command, check=False, capture_output=True)
        for device in loops:
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)  # a mount's own loop went with it
