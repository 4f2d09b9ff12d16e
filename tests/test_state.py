"""state.py: places, names and slots; two processes at once, a crash, and a disk that keeps nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from isblk import state
from isblk.errors import UsageError
from isblk.iscsi.names import is_normal_name
from isblk.state import MAX_SLOTS, Slot, claim_slot, initiator_name, known_name, make_directory, places

ABSENT = Path("/nonexistent/initiatorname.iscsi")


@pytest.fixture
def claimed() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# ---------------------------------------------------------------------------------------------------------------------- places


def test_root_keeps_things_where_a_service_would() -> None:
    found = places({"XDG_STATE_HOME": "/x", "XDG_RUNTIME_DIR": "/run/user/0", "HOME": "/root"}, uid=0)
    assert found == state.Places(Path("/var/lib/isblk"), Path("/run/isblk"))


def test_a_user_keeps_things_where_xdg_says() -> None:
    assert places({"XDG_STATE_HOME": "/x", "XDG_RUNTIME_DIR": "/r"}, uid=7) == state.Places(Path("/x/isblk"), Path("/r/isblk"))
    home = Path("/h/.local/state/isblk")
    assert places({"HOME": "/h"}, uid=7) == state.Places(home, home / "run")
    assert places({"HOME": "/h", "XDG_STATE_HOME": "odd", "XDG_RUNTIME_DIR": "odd"}, uid=7) == state.Places(home, home / "run")


@pytest.mark.parametrize("uid", [0, 7])
def test_our_own_variables_come_first(uid: int) -> None:
    environment = {"ISBLK_STATE_DIR": "/s", "ISBLK_RUN_DIR": "/r", "HOME": "/h", "XDG_STATE_HOME": "/x"}
    assert places(environment, uid) == state.Places(Path("/s"), Path("/r"))
    with pytest.raises(UsageError, match="ISBLK_STATE_DIR is 'odd'"):
        places({"ISBLK_STATE_DIR": "odd"}, uid)


def test_directories_are_private(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for path in (tmp_path / "a" / "b", tmp_path / "open"):
        make_directory(path)
        assert path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="ISBLK_STATE_DIR"):
        make_directory(tmp_path / "file" / "a")


def test_another_users_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UsageError, match="belongs to another user"):
        make_directory(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------- names


def test_the_name_comes_from_the_nearest_source(tmp_path: Path) -> None:
    system = tmp_path / "system"
    system.write_text("## a comment\nInitiatorName=iqn.1993-08.org.debian:01:abc\n")
    environment = {"ISBLK_INITIATOR_NAME": "iqn.2001-04.com.example:ENV"}
    assert initiator_name(tmp_path, "iqn.2001-04.com.example:OPTION", environment, system) == "iqn.2001-04.com.example:option"
    assert initiator_name(tmp_path, None, environment, system) == "iqn.2001-04.com.example:env"
    assert initiator_name(tmp_path, None, {}, system) == "iqn.1993-08.org.debian:01:abc"


@pytest.mark.parametrize("text", ["GenerateName=yes\n", "# InitiatorName=iqn.2001-04.com.example:x\n", "", None])
def test_without_any_source_a_name_is_made_once_and_kept(tmp_path: Path, text: str | None) -> None:
    system = ABSENT
    if text is not None:
        system = tmp_path / "system"
        system.write_text(text)
    name = initiator_name(tmp_path / "state", None, {}, system)
    assert is_normal_name(name)
    assert name.startswith("iqn.2026-11.invalid.isblk:")
    assert initiator_name(tmp_path / "state", None, {}, system) == name
    assert initiator_name(tmp_path / "other", None, {}, system) != name
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {"initiatorname.iscsi": 0o600}


def test_a_malformed_name_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "system").write_text("InitiatorName=my-host\n")
    with pytest.raises(UsageError, match=f"{tmp_path / 'system'}: not an iSCSI name"):
        initiator_name(tmp_path, None, {}, tmp_path / "system")
    with pytest.raises(UsageError, match="not an iSCSI name"):
        initiator_name(tmp_path, "nonsense", {}, ABSENT)


def test_a_kept_name_that_is_damaged_is_not_silently_replaced(tmp_path: Path) -> None:
    (tmp_path / "initiatorname.iscsi").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match="holds no line"):
        initiator_name(tmp_path, None, {}, ABSENT)


def test_a_name_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--initiator-name"):
        initiator_name(tmp_path / "file" / "state", None, {}, ABSENT)


# ----------------------------------------------------------------------------------------------------------------------- slots


def test_an_isid_is_random_by_type_and_numbered_by_slot(tmp_path: Path, claimed: ExitStack) -> None:
    slots = [claimed.enter_context(claim_slot(tmp_path, "a")) for _ in range(3)]
    assert [slot.isid.value[0] for slot in slots] == [0x80] * 3
    assert len({slot.isid.value[1:4] for slot in slots}) == 1
    assert [slot.isid.value[4:] for slot in slots] == [b"\0\0", b"\0\1", b"\0\2"]


def test_a_slot_that_is_free_again_goes_to_the_purpose_it_had(tmp_path: Path) -> None:
    first, second = claim_slot(tmp_path, "target a"), claim_slot(tmp_path, "target b")
    isids = {"target a": first.isid, "target b": second.isid}
    first.close()
    second.close()
    with claim_slot(tmp_path, "target b") as again:
        assert again.isid == isids["target b"]
        with claim_slot(tmp_path, "target c") as third:
            assert third.isid not in isids.values()
        with claim_slot(tmp_path, "target a") as first:
            assert first.isid == isids["target a"]


def other_process(tmp_path: Path) -> subprocess.Popen[str]:
    program = "import sys; from pathlib import Path; from isblk.state import claim_slot\n"
    program += "slot = claim_slot(Path(sys.argv[1]), 'p'); print(slot.isid, flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], text=True, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def test_processes_never_share_a_slot_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    with other_process(tmp_path) as one, other_process(tmp_path) as two:
        assert one.stdout is not None and two.stdout is not None
        isids = [process.stdout.readline().strip() for process in (one, two) if process.stdout is not None]
        with claim_slot(tmp_path, "p") as mine:
            assert len({*isids, str(mine.isid)}) == 3
        one.kill()
        one.wait()
        with claim_slot(tmp_path, "p") as again, claim_slot(tmp_path, "p") as more:
            assert {str(again.isid), str(more.isid)} == {isids[0], str(mine.isid)}
        two.kill()


def test_old_purposes_give_way_when_there_are_too_many(tmp_path: Path, claimed: ExitStack) -> None:
    (tmp_path / "isid").mkdir()
    for number in range(MAX_SLOTS):
        path = tmp_path / "isid" / f"{number}.slot"
        path.write_text(f"target {number}")
        os.utime(path, (1000 - number, 1000 - number))
    assert claimed.enter_context(claim_slot(tmp_path, "target 5")).number == 5
    assert claimed.enter_context(claim_slot(tmp_path, "new")).number == MAX_SLOTS - 1
    assert claimed.enter_context(claim_slot(tmp_path, "newer")).number == MAX_SLOTS - 2


def test_more_mounts_at_once_than_kept_slots_still_differ(tmp_path: Path, claimed: ExitStack) -> None:
    slots: list[Slot] = [claimed.enter_context(claim_slot(tmp_path, "p")) for _ in range(MAX_SLOTS + 3)]
    assert len({slot.isid for slot in slots}) == MAX_SLOTS + 3


@pytest.mark.logs("six hex digits")
def test_a_damaged_host_number_is_replaced(tmp_path: Path) -> None:
    claim_slot(tmp_path, "p").close()
    (tmp_path / "isid" / "host").write_bytes(b"\xffnot hex")
    with claim_slot(tmp_path, "p") as one, claim_slot(tmp_path, "p") as two:
        assert one.isid.value[:4] == two.isid.value[:4]
        assert (one.number, two.number) == (0, 1)


def test_rubbish_in_the_directory_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "isid").mkdir()
    for name in ("x.slot", "99999.slot", "-1.slot", "notes"):
        (tmp_path / "isid" / name).write_bytes(b"\xff")
    (tmp_path / "isid" / "0.slot").write_bytes(b"\xff" * 100_000)
    with claim_slot(tmp_path, "p") as slot:
        assert slot.number == 1


@pytest.mark.logs("no ISID can be kept")
def test_without_a_place_to_keep_it_the_isid_is_one_of_chance(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with claim_slot(tmp_path / "file", "p") as one, claim_slot(tmp_path / "file", "p") as two:
        assert one.isid.value[0] == 0x80
        assert one.isid != two.isid
        assert repr(one).startswith("<Slot of chance")


def test_the_name_that_would_be_used_is_looked_up_and_none_is_made(tmp_path: Path) -> None:
    system = tmp_path / "system"
    assert known_name(tmp_path / "state", system) == ("-", f"made when it is first needed, and kept in {tmp_path / 'state'}")
    assert not (tmp_path / "state").exists()
    made = initiator_name(tmp_path / "state", None, {}, system)
    assert known_name(tmp_path / "state", system) == (made, str(tmp_path / "state" / "initiatorname.iscsi"))
    system.write_text("InitiatorName=iqn.2026-11.test:host\n")
    assert known_name(tmp_path / "state", system) == ("iqn.2026-11.test:host", str(system))
