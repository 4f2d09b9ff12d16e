"""A terminal for commands that draw: a pty with a screen (pyte) behind it, which can be looked at, typed into and resized."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte


class Terminal:
    """A command on a screen of its own."""

    def __init__(self, argv: list[str], env: dict[str, str], width: int, height: int) -> None:
        self._master, slave = pty.openpty()
        self._size(slave, width, height)
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        try:
            self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        finally:
            os.close(slave)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def colour(self, text: str, beside: str = "") -> set[str]:
        """The colours in which the first appearance of a text is drawn; on a line that also has the text `beside`."""
        for at, line in enumerate(self.screen.display):
            if text in line and beside in line:
                start = line.index(text)
                return {self.screen.buffer[at][column].fg for column in range(start, start + len(text))}
        raise AssertionError(f"{text!r} is not on the screen\n{self.text}")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, width: int, height: int) -> None:
        self.screen.resize(height, width)
        self._size(self._master, width, height)
        self.process.send_signal(signal.SIGWINCH)  # The kernel tells the terminal's own session only, which this process is not of.

    def until(self, condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
        """Read what is drawn until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}\n{self.text}"
            if not self._read() and not condition():
                raise AssertionError(f"the command ended before {what}\n{self.text}")

    def until_text(self, text: str) -> None:
        self.until(lambda: text in self.text, repr(text))

    def ended(self, seconds: float = 20.0) -> int:
        """The exit code, with everything drawn until then."""
        end = time.monotonic() + seconds
        while self._read() and time.monotonic() < end:
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """What has been drawn by now, waited for a moment; False when nobody draws any more."""
        if not select.select([self._master], [], [], 0.05)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other end is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    @staticmethod
    def _size(descriptor: int, width: int, height: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


@contextmanager
def terminal(argv: list[str], env: dict[str, str], width: int = 100, height: int = 24) -> Iterator[Terminal]:
    """A command on a terminal for the length of a block; killed when it still runs then."""
    shown = Terminal(argv, {"TERM": "xterm-256color", **env}, width, height)
    try:
        yield shown
    finally:
        shown.close()
