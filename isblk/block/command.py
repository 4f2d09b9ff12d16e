"""A SCSI command on its way for a request: its end is judged, retried here within bounds, or told to the request (SAM-5 5.3).

A Task is used once, so a retry is a fresh Command for the same request. The bounds are the two limits of probe.py, counted for each
request's command: unit attentions are answered by asking again at once, a busy or not yet ready unit is given time (BACK_OFF). Writes may
be retried here without a fence: the unit has answered, so the command that failed is no longer on its way.
"""

from __future__ import annotations

import errno
from typing import Protocol

from isblk.block.probe import ATTENTION_LIMIT, BACK_OFF, Link
from isblk.block.request import Request
from isblk.errors import RequestFailed
from isblk.iscsi.task import Task
from isblk.scsi.lun_number import lun_text
from isblk.scsi.sense import Action, Status, Verdict, flush_verdict, is_unsupported_command, is_unsupported_field, verdict


class PathUnusable(RequestFailed):
    """This path cannot do the request, another may: a standby port, a controller that lost its unit. Nothing was done."""

    kind = "unusable"


class Unit(Protocol):
    """What a command needs of the logical unit it was sent to."""

    retries: int
    """Commands that were sent once more, because the unit was busy or had something to announce."""

    @property
    def lun(self) -> bytes:
        """Its eight bytes."""

    @property
    def link(self) -> Link:
        """The session it is reached by."""

    def attention(self, judged: Verdict, command: Command) -> None:
        """Something about the unit changed; `command` was told, and was not done."""

    def full(self) -> None:
        """It takes no more commands at the moment."""

    def write_lost(self) -> Exception | None:
        """An error when a write that was acknowledged has been lost since; once."""

    def write_same_refused(self, command: Command, forever: bool) -> None:
        """The unit cannot do this WRITE SAME: do its request otherwise."""

    def mode_asked(self) -> None:
        """MODE SENSE is about to be sent."""

    def mode_came(self, answer: bytes | None) -> None:
        """The answer to MODE SENSE, or None without one."""


class Command(Task):
    """One CDB for `request`, whose memory it lends. What moved is not looked at: this is for commands whose data is a parameter list."""

    __slots__ = ("attentions", "request", "retries", "unit")

    def __init__(
        self, unit: Unit, cdb: bytes, request: Request, read_into: memoryview | None = None, write_from: memoryview | None = None
    ) -> None:
        super().__init__(unit.lun, cdb, read_into, write_from)
        self.unit = unit
        self.request = request
        self.retries = 0
        self.attentions = 0

    def finished(self) -> None:
        """Called by the session, once."""
        if self.error is not None:
            self.failed(self.error)
            return
        judged = self.judge()
        if judged.action is Action.DONE:
            self.succeeded()
        elif judged.action is Action.ATTENTION and self.attentions < ATTENTION_LIMIT:
            self.attentions += 1
            self.unit.attention(judged, self)
            self.again()
        elif judged.action is Action.RETRY and self.retries < len(BACK_OFF):
            self.retries += 1
            if self.status == Status.TASK_SET_FULL:
                self.unit.full()
            self.unit.link.call_later(BACK_OFF[self.retries - 1], self.again)
        else:
            self.refused(judged)

    def judge(self) -> Verdict:
        """What status and sense mean for this command."""
        return verdict(self.status, self.sense)

    def succeeded(self) -> None:
        """The unit did it."""
        self.request.finish()

    def refused(self, judged: Verdict) -> None:
        """The unit will not do it, here and now."""
        kind = PathUnusable if judged.action is Action.OTHER_PATH else RequestFailed
        self.failed(kind(f"{self.describe()} failed: {judged.reason}", judged.errno))

    def failed(self, error: Exception) -> None:
        """No answer, or one that is final."""
        self.request.finish(error)

    def describe(self) -> str:
        """The request and the logical unit, for people."""
        request = self.request
        where = f" of {request.length} bytes at {request.offset}" if request.length else ""
        return f"{request.op.name}{where} on LUN {lun_text(self.lun)}"

    def again(self) -> None:
        """Send the same CDB once more."""
        fresh = type(self)(self.unit, self.cdb, self.request, self.read_into, self.write_from)
        fresh.retries, fresh.attentions = self.retries, self.attentions
        self.unit.retries += 1
        self.unit.link.submit(fresh)
        self.unit.link.kick()


class Transfer(Command):
    """READ or WRITE. Hot: the good end is three comparisons. A transfer that is not whole is an error, never data (RFC 7143 11.4.5)."""

    __slots__ = ()

    def finished(self) -> None:
        """Called by the session, once."""
        if self.error is None and not self.status and not self.residual:
            self.request.finish()
        else:
            super().finished()

    def succeeded(self) -> None:
        """The unit says that it did it; the session knows how much."""
        if not self.residual:
            self.request.finish()
            return
        moved = self.length - self.residual if self.residual > 0 else f"{self.length} of {self.length - self.residual}"
        self.failed(RequestFailed(f"{self.describe()} moved {moved} bytes without an error; the data is not used", errno.EIO))


class Synchronize(Command):
    """SYNCHRONIZE CACHE: a unit that does not know it has no cache; and what the unit confessed to have lost makes it fail."""

    __slots__ = ()

    def judge(self) -> Verdict:
        """What status and sense mean for this command."""
        return flush_verdict(self.status, self.sense)

    def succeeded(self) -> None:
        """What is left of the cache is on the medium."""
        self.request.finish(self.unit.write_lost())


class WriteSame(Command):
    """WRITE SAME (16) that writes zeroes: where the unit cannot, the zeroes are written some other way."""

    __slots__ = ()

    def refused(self, judged: Verdict) -> None:
        """The unit will not do it, perhaps never."""
        if is_unsupported_command(judged.sense) or is_unsupported_field(judged.sense):
            self.unit.write_same_refused(self, forever=is_unsupported_command(judged.sense))
        else:
            super().refused(judged)


class ModeSense(Command):
    """MODE SENSE of a unit in use; its request exists for the words only."""

    __slots__ = ()

    def succeeded(self) -> None:
        """The mode data is there."""
        if self.read_into is None:
            raise AssertionError("MODE SENSE without memory for its answer")
        self.unit.mode_came(bytes(self.read_into[: self.transferred]))

    def failed(self, error: Exception) -> None:
        """No mode data this time."""
        self.unit.mode_came(None)

    def again(self) -> None:
        """Send the same CDB once more: what made it necessary will be in the answer."""
        self.unit.mode_asked()
        super().again()
