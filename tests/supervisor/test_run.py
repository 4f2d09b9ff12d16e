"""All exports of a table: what the supervisor does when it is asked, signalled, or the table changes; over its real control socket."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from isblk import control
from isblk.errors import ExitCode, UsageError
from isblk.supervisor.run import Supervisor, worst
from isblk.table.check import load
from support.fakechildren import FakeChild, FakeHands
from support.waiting import eventually

NAME = "iqn.2001-05.com.example:disks"
ENDING = "the end of all exports was asked for"


class Asked:
    """A supervisor that runs, and how it is asked."""

    def __init__(self, tmp_path: Path, hands: FakeHands) -> None:
        self.table = tmp_path / "isblktab"
        self.hands = hands
        self.run = tmp_path / "run"
        self.run.mkdir(mode=0o700)
        self.supervisor = Supervisor(self.table, self.run, hands, load)
        self.code: int | None = None

    def write(self, *lines: str) -> None:
        self.table.write_text("".join(f"{NAME} {line}\n" for line in lines))

    async def ask(self, request: str, **words: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(partial(control.ask, control.socket_path(self.run), request, **words))

    async def states(self) -> dict[str, str]:
        return {export["where"]: export["state"] for export in (await self.ask("status"))["exports"]}

    async def become(self, **states: str) -> None:
        """Return when the exports are as named, and there are no others."""
        wanted = {f"/{where}": state for where, state in states.items()}
        await eventually(lambda: {where: keeper.life.state for where, keeper in self.supervisor.keepers.items()} == wanted)
        assert await self.states() == wanted

    def child(self, where: str) -> FakeChild:
        return next(child for child in reversed(self.hands.started) if child.entry.where == where)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("ISBLK_CONFIG", "")
    hands = FakeHands()
    hands.at_once = True
    return Asked(tmp_path, hands)


@asynccontextmanager
async def running(asked: Asked, where: list[str] | None = None) -> AsyncIterator[None]:
    """Run it for the length of the block; its exit code is in `code` afterwards."""
    ready = trio.Event()

    async def run() -> None:
        asked.code = await asked.supervisor.run(where, ready.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await ready.wait()
        yield
        if asked.code is None and not asked.supervisor.ended.is_set():
            asked.supervisor.stop()


async def test_it_starts_what_the_table_says_in_its_order_and_ends_it_by_force(asked: Asked) -> None:
    asked.write("/b fuse portal=a", "/a nbd portal=a", "/c fuse portal=a,noauto")
    async with running(asked):
        await asked.become(b="up", a="up", c="down")
        status = await asked.ask("status")
        assert (status["kind"], status["table"], status["pid"]) == ("supervisor", str(asked.table), os.getpid())
        assert [export["where"] for export in status["exports"]] == ["/b", "/a", "/c"]
        assert (await asked.ask("stop"))["pid"] == os.getpid()
        await eventually(lambda: asked.code is not None)
    assert asked.code == 0
    assert [child.asked for child in asked.hands.started] == [[True], [True]]
    assert not list(asked.run.iterdir())


async def test_it_starts_what_is_named_alone_and_the_rest_when_asked(asked: Asked) -> None:
    asked.write("/a fuse portal=a", "/b fuse portal=a,noauto", "/c fuse portal=a,noauto")
    async with running(asked, ["/b"]):
        await asked.become(a="down", b="up", c="down")
        assert (await asked.ask("up"))["where"] == ["/a"]
        await asked.become(a="up", b="up", c="down")
        asked.write("/a fuse portal=a", "/b fuse portal=a,noauto", "/c fuse portal=a,noauto", "/d fuse portal=a")
        assert (await asked.ask("up", where=["/d", "/c"]))["where"] == ["/c", "/d"]
        await asked.become(a="up", b="up", c="up", d="up")
    assert len(asked.hands.started) == 4


@pytest.mark.logs(r"/a could not be started: it ended with exit code 5; next try", r"/b stays up: it is in use")
async def test_ones_failure_is_nobody_elses(asked: Asked) -> None:
    asked.hands.at_once = False
    asked.write("/a fuse portal=a", "/b fuse portal=a")
    async with running(asked):
        await eventually(lambda: len(asked.hands.started) == 2)
        asked.child("/b").is_ready.set()
        asked.child("/a").dies(5, "")
        await asked.become(a="retrying", b="up")
        asked.child("/b").busy = "it is in use"
        assert (await asked.ask("down"))["where"] == ["/a", "/b"]
        await asked.become(a="down", b="up")
        assert (await asked.ask("status"))["exports"][1]["reason"] == "it is in use"
        await asked.ask("down", where=["/b"], force=True)
        await asked.become(a="down", b="down")
        await asked.ask("up", where=["/a"])
        await eventually(lambda: len(asked.hands.started) == 3)
        asked.child("/a").is_ready.set()
        await asked.become(a="up", b="down")


async def test_a_reload_follows_the_table_and_touches_nothing_else(asked: Asked) -> None:
    asked.write("/keep fuse portal=a", "/gone fuse portal=a", "/other fuse portal=a", "/own fuse portal=a")
    async with running(asked):
        await asked.become(keep="up", gone="up", other="up", own="up")
        asked.write("/own fuse portal=a,nofail", "/new fuse portal=a", "/other fuse portal=a,ro", "/keep fuse portal=a")
        plan = await asked.ask("reload")
        assert {name: plan[name] for name in ("start", "stop", "restart", "change", "keep", "leave_down")} == {
            "start": ["/new"],
            "stop": ["/gone"],
            "restart": ["/other"],
            "change": ["/own"],
            "keep": ["/keep"],
            "leave_down": [],
        }
        await asked.become(own="up", new="up", other="up", keep="up")
        assert [export["where"] for export in (await asked.ask("status"))["exports"]] == ["/own", "/new", "/other", "/keep"]
        assert {child.entry.where: len(child.asked) for child in asked.hands.started[:4]} == {
            "/keep": 0,
            "/gone": 1,
            "/other": 1,
            "/own": 0,
        }
        assert asked.child("/other").entry.has("ro")


@pytest.mark.logs(r"/a stays up: it is in use")
async def test_what_is_gone_from_the_table_and_in_use_stays_until_it_is_not(asked: Asked) -> None:
    asked.write("/a fuse portal=a", "/b fuse portal=a")
    async with running(asked):
        await asked.become(a="up", b="up")
        asked.child("/a").busy = "it is in use"
        asked.write("/b fuse portal=a")
        assert (await asked.ask("reload"))["stop"] == ["/a"]
        await eventually(lambda: asked.supervisor.keepers["/a"].life.reason == "it is in use")
        await asked.become(a="up", b="up")
        asked.child("/a").busy = ""
        assert (await asked.ask("reload"))["stop"] == ["/a"]
        await asked.become(b="up")


async def test_a_table_with_a_mistake_changes_nothing(asked: Asked) -> None:
    asked.write("/a fuse portal=a")
    async with running(asked):
        await asked.become(a="up")
        asked.write("/b fuse portl=a")
        for request in ("reload", "up"):
            with pytest.raises(UsageError, match=rf"refuses '{request}': .*isblktab:1:39: there is no option 'portl': is portal meant\?"):
                await asked.ask(request)
        await asked.become(a="up")


@pytest.mark.parametrize(
    ("request_", "words", "sentence"),
    [
        ("up", {"where": ["/x"]}, "has no export at /x"),
        ("down", {"where": ["/x"]}, "has no export at /x"),
        ("down", {"where": "/a"}, "`where` is a list of places, or null for all"),
        ("up", {"where": [1]}, "`where` is a list of places, or null for all"),
        ("explode", {}, "there is no request 'explode'; there are status, stop, log, up, down, reload, and events"),
    ],
)
async def test_what_cannot_be_asked_is_answered_with_a_sentence(asked: Asked, request_: str, words: dict[str, Any], sentence: str) -> None:
    asked.write("/a fuse portal=a")
    async with running(asked):
        with pytest.raises(UsageError, match=sentence):
            await asked.ask(request_, **words)
        await asked.become(a="up")


async def test_it_cannot_begin_with_a_table_that_is_wrong_or_without_its_socket(asked: Asked) -> None:
    asked.write("/a fuse portl=a")
    with pytest.raises(UsageError, match="there is no option"):
        await asked.supervisor.run(None, lambda: None)
    asked.write("/a fuse portal=a")
    asked.run.rmdir()
    with pytest.raises(UsageError, match=r"the control socket .* cannot be made"):
        await asked.supervisor.run(None, lambda: None)
    assert not asked.hands.started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.logs(r"/a is down: written data may be lost")
async def test_a_signal_ends_everything_and_the_exit_code_tells_what_was_lost(asked: Asked, number: int) -> None:
    asked.write("/a fuse portal=a", "/b fuse portal=a")
    async with running(asked):
        await asked.become(a="up", b="up")
        asked.child("/a").obeys = False
        os.kill(os.getpid(), number)
        await eventually(lambda: asked.child("/a").asked == [True])
        with pytest.raises(UsageError, match="it is ending"):
            await asked.ask("up")
        asked.child("/a").dies(6, "", "written data may be lost")
        await eventually(lambda: asked.code is not None)
    assert asked.code == ExitCode.IO_ERROR


@pytest.mark.logs(r"the table is not used as it is now: .*isblktab:1:32: WHERE is")
async def test_sighup_is_a_reload(asked: Asked) -> None:
    asked.write("/a fuse portal=a")
    async with running(asked):
        await asked.become(a="up")
        asked.write("/b fuse portal=a")
        os.kill(os.getpid(), signal.SIGHUP)
        await asked.become(b="up")
        asked.write(" b fuse portal=a")
        os.kill(os.getpid(), signal.SIGHUP)
        await asked.become(b="up")


async def test_one_that_is_gone_and_comes_back_while_it_ends_is_started_again(asked: Asked) -> None:
    asked.write("/a fuse portal=a")
    async with running(asked):
        await asked.become(a="up")
        asked.child("/a").obeys = False
        asked.write()
        await asked.ask("reload")
        await asked.become(a="stopping")
        asked.write("/a fuse portal=a")
        await asked.ask("up")
        first = asked.child("/a")
        first.over.set()
        await asked.become(a="up")
        assert asked.child("/a") is not first
        await asked.ask("down", where=["/a"])
        await asked.become(a="down")


def test_the_worst_exit_code_is_a_bug_or_else_the_highest() -> None:
    assert [worst(codes) for codes in ([], [0, 0], [0, 5, 3], [6, 1, 5])] == [0, 0, 5, 1]


async def test_at_the_end_all_are_told_before_any_is_waited_for(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    asked.write(*(f"/{letter} fuse portal=a" for letter in "abc"))
    order: list[str] = []

    def told(child: FakeChild) -> Callable[[bool], Any]:
        async def end(force: bool) -> None:
            order.append(child.entry.where)
            if len(order) == 3:
                for each in asked.hands.started:
                    each.over.set()

        return end

    async with running(asked):
        await asked.become(a="up", b="up", c="up")
        for child in asked.hands.started:
            child.end = told(child)  # type: ignore[method-assign]
        await asked.ask("stop")
        await eventually(lambda: asked.code is not None)
    assert sorted(order) == ["/a", "/b", "/c"]
    assert ENDING in caplog.text
