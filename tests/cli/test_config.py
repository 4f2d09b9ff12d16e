"""`isblk config`: what holds, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from isblk.settings import GLOBAL_SETTINGS, NOT_FOR_DISCOVERY, SETTINGS

Run = Callable[..., Result]
NAME = "iqn.2026-11.test.isblk:disks"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "isblk.conf"
    path.write_text(
        f'digest = "both"\nstate-dir = "{tmp_path}/elsewhere"\n[target."{NAME}"]\nportal = ["a", "b"]\n[discovery]\nuser = "me"\n'
    )
    path.chmod(0o600)
    return path


def shown(run: Run, config: Path, *arguments: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(run("config", *arguments, "--json", env={"ISBLK_CONFIG": str(config)}).stdout)
    return found


def test_every_setting_with_where_it_comes_from(run: Run, config: Path, tmp_path: Path) -> None:
    found = shown(run, config, NAME)
    assert list(found) == [*SETTINGS, *GLOBAL_SETTINGS]
    assert found["digest"] == {"value": "both", "from": str(config)}
    assert found["portal"] == {"value": "a b", "from": f'{config} [target."{NAME}"]'}
    assert found["policy"] == {"value": "failover", "from": "default"} and found["shared"]["value"] == "no"
    assert found["initiator-name"] == {"value": "iqn.2026-11.test.isblk:commands", "from": "$ISBLK_INITIATOR_NAME"}
    assert found["state-dir"] == {"value": str(tmp_path / "state"), "from": "$ISBLK_STATE_DIR"}
    assert shown(run, config)["portal"] == {"value": "-", "from": "default"}


def test_for_discovery(run: Run, config: Path) -> None:
    found = shown(run, config, "--discovery")
    assert not set(NOT_FOR_DISCOVERY) & set(found) and found["user"] == {"value": "me", "from": f"{config} [discovery]"}
    run("config", NAME, "--discovery", code=2, env={"ISBLK_CONFIG": str(config)})


def test_a_table_for_people_without_secrets(run: Run, config: Path) -> None:
    said = run("config", NAME, env={"ISBLK_CONFIG": str(config), "ISBLK_SECRET": "not to be seen anywhere"}).stdout
    heading, *lines = said.splitlines()
    assert heading.split() == ["SETTING", "VALUE", "FROM"] and any(line.split()[:2] == ["digest", "both"] for line in lines)
    assert "$ISBLK_SECRET" in said and "not to be seen" not in said


def test_without_a_file_it_says_where_it_looked(run: Run) -> None:
    assert "no file is there" in run("config").stdout


def test_what_a_command_would_refuse_is_refused(run: Run, config: Path) -> None:
    config.write_text('[target."iqn.*"]\npolicy = "fastest"\n')
    assert "policy" in run("config", NAME, code=2, env={"ISBLK_CONFIG": str(config)}).stderr
