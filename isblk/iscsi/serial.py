"""Serial number arithmetic and the command window (RFC 7143 4.2.2.1, RFC 1982)."""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


def follows(later: int, earlier: int) -> bool:
    """Whether `later` comes after `earlier` on the circle of 2**32 numbers."""
    return 0 < (later - earlier) & MASK < _HALF


class CommandWindow:
    """How many non-immediate commands may be sent now: CmdSN against the target's ExpCmdSN and MaxCmdSN.

    `room` is the number of free slots; the session's send path reads it as a plain integer.
    """

    __slots__ = ("cmd_sn", "exp_cmd_sn", "max_cmd_sn", "room")

    def __init__(self, cmd_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> None:
        self.cmd_sn = cmd_sn
        self.exp_cmd_sn = exp_cmd_sn
        self.max_cmd_sn = max_cmd_sn
        self.room = 0
        self._measure()

    def take(self) -> int:
        """The CmdSN of the next non-immediate command; the caller has seen that there is room."""
        cmd_sn = self.cmd_sn
        self.cmd_sn = (cmd_sn + 1) & MASK
        self.room -= 1
        return cmd_sn

    def update(self, exp_cmd_sn: int, max_cmd_sn: int) -> None:
        """Believe a pair from the target if it makes sense: a MaxCmdSN below ExpCmdSN - 1 and older numbers are ignored (4.2.2.1)."""
        if (max_cmd_sn - exp_cmd_sn + 1) & MASK >= _HALF:
            return
        opened = (max_cmd_sn - self.max_cmd_sn) & MASK
        if 0 < opened < _HALF:
            self.max_cmd_sn = max_cmd_sn
            self._measure()
        if 0 < (exp_cmd_sn - self.exp_cmd_sn) & MASK < _HALF:
            self.exp_cmd_sn = exp_cmd_sn

    def _measure(self) -> None:
        room = (self.max_cmd_sn - self.cmd_sn + 1) & MASK
        self.room = room if room < _HALF else 0

    def __repr__(self) -> str:
        return f"<CommandWindow cmd_sn={self.cmd_sn} exp={self.exp_cmd_sn} max={self.max_cmd_sn} room={self.room}>"
