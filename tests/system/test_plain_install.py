"""What `pip install isblk` brings is enough to mount: an environment with the packages that setup.cfg requires, and none of its extras."""

from __future__ import annotations

import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.commands import get, put
from support.mounts import Mounts
from support.processes import Processes
from support.targets import MIB, TargetProcess

CHECKOUT = Path(__file__).parents[2]
DATA = bytes(range(256)) * 16


def required(name: str) -> set[str]:
    """The distributions that one needs, itself and theirs included, without any extra."""
    found, left = set(), [name]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, distribution(name).requires or [])
            left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of such an environment: what is installed here for the tests, linked as far as it is required."""
    home = tmp_path_factory.mktemp("plain")
    venv.create(home, symlinks=True, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "isblk").symlink_to(CHECKOUT / "isblk")
    for name in required("isblk") - {"isblk"}:
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(distribution(name).locate_file(top))
    return home / "bin" / "python"


def command(python: Path, *arguments: str | Path) -> list[str]:
    start = "import sys; from isblk.cli import main; sys.argv[0] = 'isblk'; sys.exit(main())"
    return [str(python), "-c", start, *map(str, arguments)]


def test_nothing_that_is_compiled_for_fuse_is_required(python: Path, processes: Processes) -> None:
    assert {"click", "trio", "crc32c", "outcome"} <= required("isblk") and "pyfuse3" not in required("isblk")
    assert "pyfuse3" in {Requirement(each).name for each in distribution("isblk").requires or []}, "it is an extra"
    ended = processes.run([str(python), "-c", "from importlib.util import find_spec; print(find_spec('pyfuse3'))"])
    assert ended.stdout == "None\n"


def test_a_plain_installation_mounts(
    python: Path, fuse: None, target: TargetProcess, processes: Processes, mounts: Mounts, tmp_path: Path
) -> None:
    place = tmp_path / "disk"
    processes.run(command(python, "mount", "-p", target.portal, target.name, place))
    put(place, MIB, DATA, sync=True)
    assert get(place, MIB, len(DATA)) == DATA and place.stat().st_size == 64 * MIB
    assert '"engine": "direct"' in processes.run(command(python, "status", "--json")).stdout
    processes.run(command(python, "umount", place))
    assert not place.exists()


def test_the_other_engine_is_named_with_its_remedy(
    python: Path, fuse: None, target: TargetProcess, processes: Processes, tmp_path: Path
) -> None:
    words = ["mount", "-p", target.portal, target.name, tmp_path / "disk", "--fuse-engine", "pyfuse3"]
    ended = processes.run(command(python, *words), code=2)
    assert "pip install 'isblk[pyfuse3]'" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "disk").exists()
