"""Commands in this process, with directories of the test's own and the log put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isblk.cli import main
from support.logs import restored_logging
from support.targets import MIB, TargetProcess, disk, target_process

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`run("ls", ..., code=3)`: a command to its end, which must be `code`, without a traceback; one that fails says one sentence."""
    for variable, name in (("ISBLK_STATE_DIR", "state"), ("ISBLK_RUN_DIR", "run")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("ISBLK_INITIATOR_NAME", "iqn.2026-11.test.isblk:commands")
    monkeypatch.setenv("ISBLK_CONFIG", "")
    for variable in ("ISBLK_SECRET", "ISBLK_TARGET_SECRET"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(main, [str(one) for one in arguments], prog_name="isblk", env=env)
        assert result.exit_code == code, f"{arguments} exited {result.exit_code}, not {code}: {result.output}"
        assert "Traceback" not in result.output
        if code:
            assert result.stderr.startswith("isblk: ") and result.stderr.count("\n") == 1, f"not one sentence: {result.stderr}"
            assert not result.stdout
        return result

    with restored_logging():
        yield run


@pytest.fixture(scope="session")
def target() -> Iterator[TargetProcess]:
    """A target in a process of its own: a controller, a disk, and a write-protected one of large blocks."""
    luns = [disk(0, device_type=0x0C, size=MIB), disk(1), disk(2, size=8 * MIB, block_size=4096, read_only=True)]
    with target_process(luns) as served:
        yield served
