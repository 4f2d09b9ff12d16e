"""Trees of files to copy and compare, and fio's verified random writes."""

from __future__ import annotations

import filecmp
import random
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "isblk"


def check(*argv: str | Path, seconds: float = 60) -> str:
    """Run a tool to its end; AssertionError with its words when it fails."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"{argv} exited {done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout


def fill(place: Path) -> Path:
    """Copy isblk's own sources to `place` and add what they lack: a large file, a hole, a link; returns the like of it to compare with."""
    like = place.parent.parent / "like"
    shutil.copytree(SOURCE, like, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (like / "large").write_bytes(random.Random(7).randbytes(9_000_001))
    with (like / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    (like / "symlink").symlink_to("errors.py")
    check("cp", "-a", like, place)
    return like


def compare(like: Path, place: Path) -> None:
    """Assert that two trees have the same names and bytes."""
    names = sorted(path.relative_to(like) for path in like.rglob("*"))
    assert names == sorted(path.relative_to(place) for path in place.rglob("*"))
    files = [str(name) for name in names if (like / name).is_file()]
    same, other, failed = filecmp.cmpfiles(like, place, files, shallow=False)
    assert (other, failed) == ([], []) and len(same) == len(files) > 50


def fio_verify(place: Path, size: str, *more: str) -> None:
    """Random writes of many sizes through libaio with O_DIRECT, each read back and checked by its CRC32C."""
    check(
        *("fio", "--name=verify", f"--filename={place}", f"--size={size}", "--rw=randwrite", "--bsrange=4k-256k", "--direct=1"),
        *(
            "--ioengine=libaio",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--allow_file_create=0",
            "--verify_state_save=0",
            *more,
        ),
    )
