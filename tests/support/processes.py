"""Commands in subprocesses: started in a home of their own, their output kept in files, all of them ended with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from support.waiting import until

MARK = "ISBLK_TEST_HOME"  # in the environment of everything started here: how a daemon that left its parent is found again
TRACEBACK = "Traceback (most recent call last)"


def isblk(*arguments: str | Path) -> list[str]:
    """The command line of the isblk that is installed beside the interpreter that runs the tests, else of this checkout's."""
    installed = Path(sys.executable).with_name("isblk")
    uninstalled = [sys.executable, "-c", "import sys; from isblk.cli import main; sys.argv[0] = 'isblk'; sys.exit(main())"]
    return [*([str(installed)] if installed.exists() else uninstalled), *map(str, arguments)]


class Started:
    """One process: its argument list, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, errors: Path) -> None:
        self.process = process
        self._output = output
        self._errors = errors

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._errors.read_text(errors="replace")

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code; subprocess.TimeoutExpired when there is none in time."""
        return self.process.wait(seconds)

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        """Return once `text` has been printed, on either stream."""
        until(lambda: text in self.stdout or text in self.stderr or self.process.poll() is not None, f"{text!r} from {self!r}", seconds)
        assert text in self.stdout or text in self.stderr, f"{self!r} ended without saying {text!r}: {self.stderr}"

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal, wait, and return the exit code; a process that ignores it is killed and the test fails."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self!r} ignored signal {number} for {seconds:.0f} s") from None

    def __repr__(self) -> str:
        return f"<{self.process.args!r} pid {self.pid}>"


class Processes:
    """Starts processes below `home` and ends whatever is left of them, also what detached itself."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[Started] = []
        self.env = {
            "ISBLK_CONFIG": "",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(home),
            # By name, since root ignores the XDG variables (isblk/state.py).
            "ISBLK_STATE_DIR": str(home / "state"),
            "ISBLK_RUN_DIR": str(home / "run"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.environ.get("PYTHONPATH") or str(Path(__file__).parents[2]),  # of scripts/test --compiled
            MARK: str(home),
        }

    def start(self, argv: list[str], *, env: dict[str, str] | None = None, **options: Any) -> Started:
        """Start a command and return at once; `env` adds to the environment, `options` go to Popen (user=, cwd=, ...)."""
        (self.home / "run").mkdir(mode=0o700, exist_ok=True)
        number = len(self.started)
        output, errors = self.home / f"{number}.out", self.home / f"{number}.err"
        with output.open("wb") as out, errors.open("wb") as err:
            options = {"stdin": subprocess.DEVNULL, **options, "env": {**self.env, **(env or {})}}
            process = subprocess.Popen(argv, stdout=out, stderr=err, **options)
        started = Started(process, output, errors)
        self.started.append(started)
        return started

    def run(self, argv: list[str], *, code: int | None = 0, seconds: float = 60.0, **options: Any) -> Started:
        """Run a command to its end; its exit code must be `code` (None: any)."""
        started = self.start(argv, **options)
        try:
            ended = started.wait(seconds)
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.wait()
            raise AssertionError(f"{argv} did not end within {seconds:.0f} s\n{started.stdout}\n{started.stderr}") from None
        assert code is None or ended == code, f"{argv} exited {ended}, not {code}\n{started.stdout}\n{started.stderr}"
        return started

    def strays(self) -> list[int]:
        """Process ids that carry this home's mark: daemons that left their parent, and their children."""
        mark = f"{MARK}={self.home}".encode()
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and mark in _environment(entry)]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.strays():
                _signal(pid, number)
            try:
                until(self._all_gone, "the test's processes to end", 10)
                break
            except AssertionError:
                if number == signal.SIGKILL:
                    raise
        for one in self.started:
            one.process.wait(10)  # a corpse has no environment: it was not counted above
        if kind is None:
            loud = [f"{one!r}: {one.stderr}" for one in self.started if TRACEBACK in one.stderr]
            assert not loud, f"a traceback on standard error: {loud}"

    def _all_gone(self) -> bool:
        for one in self.started:
            one.process.poll()
        return not self.strays()


def _environment(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return []


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
