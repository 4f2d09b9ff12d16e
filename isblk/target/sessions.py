"""The target node and its sessions: who is logged in, reinstatement, the command window (RFC 7143 4.2.2.1, 6.3.1, 6.3.5).

A session has one connection (MaxConnections=1, ErrorRecoveryLevel=0) and ends with it; Time2Retain is 0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from isblk.iscsi.chap import Challenges
from isblk.target.config import Reinstatement, TargetConfig
from isblk.target.luns import LogicalUnits
from isblk.target.outcome import Nexus

log = logging.getLogger(__name__)

NORMAL, DISCOVERY = "Normal", "Discovery"
_MASK, _HALF = 0xFFFFFFFF, 0x80000000


def serial_less(one: int, other: int) -> bool:
    """one < other by serial number arithmetic on 32 bits (RFC 1982)."""
    return one != other and (other - one) & _MASK < _HALF


class Link(Protocol):
    """What a session knows of its connection."""

    def drop(self, reason: str) -> None:
        """End the connection now: its tasks are gone, nothing more is sent."""

    def pump(self) -> None:
        """Something may be ready to send."""

    def abort_tasks(self, lun: bytes | None) -> None:
        """Forget every task on a LUN, or on all of them, because of another session's task management."""


class Departed(NamedTuple):
    """A connection that is gone while a unit still works on commands of it (config.Reinstatement)."""

    nexus: Nexus
    session_type: str
    link: Link


class Session:
    """One session and its command numbering."""

    def __init__(self, nexus: Nexus, session_type: str, tsih: int, cid: int, link: Link, window: int) -> None:
        self.nexus = nexus
        self.session_type = session_type
        self.tsih = tsih
        self.cid = cid
        self.link = link
        self.exp_cmd_sn = 0
        self.in_progress = 0
        self._window = window

    @property
    def max_cmd_sn(self) -> int:
        """Each command in progress takes one place; the sum never moves back, since ExpCmdSN grows as a place is taken."""
        return (self.exp_cmd_sn + self._window - 1 - self.in_progress) & _MASK

    def in_window(self, cmd_sn: int) -> bool:
        """Whether ExpCmdSN <= cmd_sn <= MaxCmdSN; what is outside is ignored (4.2.2.1)."""
        room = self._window - self.in_progress
        return (cmd_sn - self.exp_cmd_sn) & _MASK < room

    def __repr__(self) -> str:
        return f"<Session {self.nexus.initiator} isid {self.nexus.isid.hex()} tsih {self.tsih} tpgt {self.nexus.tpgt}>"


class Node:
    """What all connections of a target share.

    `hold` is for tests: asked with (LUN bytes, CDB), True keeps the complete command until `release`; whether it outlives its connection
    is for `config.reinstatement` to say. `trace` is called with "<" or ">" and one line for each PDU. `addresses` is where the portals
    listen, in their order.
    """

    def __init__(self, config: TargetConfig, units: LogicalUnits | None = None) -> None:
        self.config = config
        self.units = units if units is not None else LogicalUnits.open(config)
        self.challenges = Challenges()
        self.sessions: dict[int, Session] = {}
        self.departed: list[Departed] = []
        self.addresses: list[tuple[str, int]] = []
        self.hold: Callable[[bytes, bytes], bool] | None = None
        self.held: list[Callable[[], None]] = []
        self.logins = 0
        self.trace: Callable[[str, str], None] | None = None
        self._waiting_logins: list[Callable[[], None]] = []
        self._next_tsih = 0

    @property
    def commands_outlive_connections(self) -> bool:
        return self.config.reinstatement is not Reinstatement.TERMINATE

    def find(self, tsih: int) -> Session | None:
        return self.sessions.get(tsih)

    def session_of(self, nexus: Nexus, session_type: str) -> Session | None:
        """The live session of an initiator port with a portal group."""
        return next((each for each in self.sessions.values() if each.nexus == nexus and each.session_type == session_type), None)

    def has_departed(self, nexus: Nexus, session_type: str) -> bool:
        """Whether a unit still works on commands of an old session of this nexus."""
        return any(each.nexus == nexus and each.session_type == session_type for each in self.departed)

    def depart(self, session: Session, link: Link) -> None:
        """A connection is gone, and commands of it are not."""
        self.departed.append(Departed(session.nexus, session.session_type, link))

    def settle(self, link: Link) -> None:
        """The last command of a connection that is gone has ended: logins that waited for it look again."""
        self.departed = [each for each in self.departed if each.link is not link]
        self._wake_logins()

    def await_settling(self, again: Callable[[], None]) -> None:
        """Call once when a command of a departed connection has ended."""
        self._waiting_logins.append(again)

    def _wake_logins(self) -> None:
        waiting, self._waiting_logins = self._waiting_logins, []
        for again in waiting:
            again()

    def open_session(self, nexus: Nexus, session_type: str, cid: int, link: Link, window: int, reinstated: bool = False) -> Session:
        """A new session; one that the same initiator port has with the same portal group ends first, tasks and all (6.3.5).

        `reinstated`: it had one until this login began.
        """
        old = self.session_of(nexus, session_type)
        if old is not None:
            old.link.drop("the session was reinstated")
        session = Session(nexus, session_type, self._new_tsih(), cid, link, window)
        self.sessions[session.tsih] = session
        self.logins += 1
        log.info("%s logged in (%s session, ISID %s)", nexus.initiator, session_type, nexus.isid.hex())
        if session_type == NORMAL:
            self.units.nexus_started(nexus)
            if old is not None or reinstated:
                self.units.nexus_lost(nexus)
        return session

    def adopt(self, session: Session, cid: int, link: Link) -> None:
        """Connection reinstatement: the session lives on over a new connection, the old one's tasks are gone (7.1.4.3)."""
        old, session.link, session.cid = session.link, link, cid
        session.in_progress = 0
        self.logins += 1
        old.drop("the connection was reinstated")
        self.units.nexus_lost(session.nexus)

    def close_session(self, session: Session, link: Link) -> None:
        """The connection `link` ended; its session too, unless another connection has taken it over."""
        if session.link is not link or self.sessions.get(session.tsih) is not session:
            return
        del self.sessions[session.tsih]
        if session.session_type == NORMAL:
            self.units.nexus_ended(session.nexus)

    def abort_elsewhere(self, lun: bytes | None, but: Link) -> None:
        for session in list(self.sessions.values()):
            if session.link is not but:
                session.link.abort_tasks(lun)
        for departed in list(self.departed):
            departed.link.abort_tasks(lun)

    def drop_all(self, reason: str) -> None:
        for session in list(self.sessions.values()):
            session.link.drop(reason)

    def release(self, count: int | None = None) -> int:
        """Let held commands run, oldest first (all, or `count`); how many ran. Their answers go out by themselves."""
        released, self.held = (self.held, []) if count is None else (self.held[:count], self.held[count:])
        for run in released:
            run()
        for session in list(self.sessions.values()):
            session.link.pump()
        return len(released)

    def crash(self) -> None:
        """Lose power: every unit's volatile cache is gone and every connection with it."""
        self.drop_all("the target lost power")
        self.held.clear()
        self.departed.clear()
        self._wake_logins()
        for unit in self.units.units.values():
            unit.crash()

    def _new_tsih(self) -> int:
        """A TSIH that is not in use, never 0 (11.13.3)."""
        while True:
            self._next_tsih = self._next_tsih % 0xFFFF + 1
            if self._next_tsih not in self.sessions:
                return self._next_tsih

    def __repr__(self) -> str:
        return f"<Node {self.config.name}, {len(self.sessions)} sessions>"
