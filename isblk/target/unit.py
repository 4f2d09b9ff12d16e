"""The logical unit: commands over a store, unit attentions, and the switches that tests turn (SAM-5, SPC-4, SBC-3).

Theory of operation: `execute` is the device server. It looks up the command in the table (primary.py, medium.py), runs its function on the
CDB and the whole Data-Out, and returns an Outcome; whatever ends in CHECK CONDITION is raised as Check and turned into an Outcome in that
one place. The transport counts residuals from `Outcome.wanted` and `Outcome.data`; the unit never hears of expected lengths.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace

from isblk.errors import UsageError
from isblk.target import check, medium, pages, primary
from isblk.target.check import Check, Key
from isblk.target.config import AccessState, LunConfig
from isblk.target.outcome import Command, Data, Nexus, Outcome, key_of
from isblk.target.outcome import Key as CommandKey
from isblk.target.store import Store

_COMMANDS: dict[CommandKey, Command] = {**primary.COMMANDS, **medium.COMMANDS}
_NEVER_ATTENTION = frozenset((0x03, 0x12))
"""REQUEST SENSE and INQUIRY are answered with a unit attention pending (SAM-5 5.14); REPORT LUNS never comes here."""
_STATE_ASCQ = {AccessState.STANDBY: 0x0B, AccessState.UNAVAILABLE: 0x0C, AccessState.TRANSITIONING: 0x0A}
_PERSISTENT_RESERVE_IN = 0x5E
"""All four of its service actions are known; what is no service action is a wrong field (SPC-4 6.15.1)."""
_EVERYWHERE = frozenset(((0x03, 0), (0x12, 0), (0xA3, 0x0A)))
"""REQUEST SENSE, INQUIRY, REPORT TARGET PORT GROUPS: answered in every access state (SPC-4 5.15.2.4)."""
_STATE_ALLOWS: dict[AccessState, frozenset[CommandKey]] = {
    AccessState.STANDBY: _EVERYWHERE | {(0x1A, 0), (0x5A, 0), *((_PERSISTENT_RESERVE_IN, action) for action in range(4))},
    AccessState.UNAVAILABLE: _EVERYWHERE,
    AccessState.TRANSITIONING: _EVERYWHERE,
}


class PortGroups:
    """The access state of every portal group of a target, changed by tests to act out failing controllers (SPC-4 5.15).

    `preferred` are the groups with the PREF bit; `units` hear of every change.
    """

    def __init__(self, tags: set[int]) -> None:
        self._states = dict.fromkeys(sorted(tags), AccessState.OPTIMIZED)
        self.preferred: set[int] = set()
        self.units: list[Unit] = []

    @property
    def states(self) -> Mapping[int, AccessState]:
        """By portal group tag; to be changed by `change` alone."""
        return self._states

    def change(self, tag: int, state: AccessState) -> None:
        """An implicit transition: every nexus finds ASYMMETRIC ACCESS STATE CHANGED (SPC-4 5.15.2.3)."""
        if self._states[tag] is state:
            return
        self._states[tag] = state
        for unit in self.units:
            unit.attention(0x2A, 0x06)

    def __repr__(self) -> str:
        return f"<PortGroups {', '.join(f'{tag}: {state.name.lower()}' for tag, state in self.states.items())}>"


class Unit:
    """One logical unit. The switches are for tests:

    inject  called with the CDB before each command; (status, sense) ends the command so, None lets it run
    present False takes the unit away, as if it had been unmapped from the initiator
    offline True answers every medium access with NOT READY, manual intervention required
    reservation_keys, reservation_generation are what READ KEYS tells: one key for each registered nexus, none unless given
    """

    def __init__(self, config: LunConfig, target_name: str, store: Store | None = None, groups: PortGroups | None = None) -> None:
        self.config = config
        self.block_size = config.block_size
        self.blocks = store.size // config.block_size if store else 0
        self.identity = pages.Identity.of(config, target_name, self.blocks)
        self.groups = groups or PortGroups({1})
        self.inject: Callable[[bytes], tuple[int, bytes] | None] | None = None
        self.present = True
        self.offline = False
        self.commands_run = 0
        self.reservation_keys: tuple[int, ...] = ()
        self.reservation_generation = 0
        self._store = store
        self._attentions: dict[Nexus, list[tuple[int, int]]] = {}
        self.groups.units.append(self)

    @property
    def store(self) -> Store:
        if self._store is None:
            raise AssertionError("a unit without a medium was asked for its medium")
        return self._store

    @property
    def has_medium(self) -> bool:
        return self._store is not None

    @property
    def commands(self) -> Mapping[CommandKey, Command]:
        """The whole table; `Command.allowed` says what this unit has of it."""
        return _COMMANDS

    # Nexus and unit attentions (SAM-5 5.14)

    def nexus_started(self, nexus: Nexus) -> None:
        fresh = self.config.fresh_attention
        self._attentions[nexus] = [fresh] if fresh else []

    def nexus_lost(self, nexus: Nexus) -> None:
        self._attentions[nexus] = [(0x29, 0x07)] if self.config.fresh_attention else []

    def nexus_ended(self, nexus: Nexus) -> None:
        self._attentions.pop(nexus, None)

    def attention(self, asc: int, ascq: int, nexus: Nexus | None = None) -> None:
        """Leave a unit attention for one nexus, or for all that exist."""
        for each in [nexus] if nexus else list(self._attentions):
            waiting = self._attentions.setdefault(each, [])
            if (asc, ascq) not in waiting:
                waiting.append((asc, ascq))

    def take_attention(self, nexus: Nexus) -> tuple[int, int] | None:
        """The oldest unit attention that waits for this nexus; it is told once."""
        waiting = self._attentions.get(nexus)
        return waiting.pop(0) if waiting else None

    def reset(self) -> None:
        """LOGICAL UNIT RESET: each nexus hears of it (SAM-5 6.3.3)."""
        self.attention(0x29, 0x03)

    def crash(self) -> None:
        """Lose power: the volatile cache is gone, each nexus finds POWER ON OCCURRED."""
        if self._store is not None:
            self._store.crash()
        self.attention(0x29, 0x01)

    def resize(self, size: int) -> None:
        """Become `size` bytes, a whole number of blocks: each nexus finds CAPACITY DATA HAS CHANGED. Raises UsageError."""
        if size < self.block_size or size % self.block_size:
            raise UsageError(f"LUN {self.config.number}: {size} bytes are no whole number of {self.block_size}-byte blocks")
        self.store.resize(size)
        self.blocks = size // self.block_size
        self.identity = replace(self.identity, blocks=self.blocks)
        self.attention(0x2A, 0x09)

    # The device server

    def execute(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """Run one command to its end. `data_out` is all that the initiator sent, perhaps less than the CDB asks for."""
        self.commands_run += 1
        if self.inject is not None:
            forced = self.inject(cdb)
            if forced is not None:
                return Outcome(*forced)
        try:
            key = key_of(cdb)
            command = _COMMANDS.get(key)
            if command is None or not command.allowed(self):
                raise check.invalid_field() if cdb[0] == _PERSISTENT_RESERVE_IN else check.invalid_opcode()
            if cdb[0] not in _NEVER_ATTENTION:
                self._check_ready(key, command, nexus)
            return command.run(self, cdb, data_out, nexus)
        except Check as failed:
            return Outcome(check.CHECK_CONDITION, failed.sense)
        except OSError as error:
            return Outcome(check.CHECK_CONDITION, _medium_failure(error).sense)

    def _check_ready(self, key: CommandKey, command: Command, nexus: Nexus) -> None:
        waiting = self.take_attention(nexus)
        if waiting:
            raise Check(Key.UNIT_ATTENTION, *waiting)
        state = self.groups.states.get(nexus.tpgt, AccessState.OPTIMIZED)
        if state in _STATE_ALLOWS and key not in _STATE_ALLOWS[state]:
            raise Check(Key.NOT_READY, 0x04, _STATE_ASCQ[state])
        if command.medium and self.offline:
            raise Check(Key.NOT_READY, 0x04, 0x03)

    # What the commands share

    def put(self, lba: int, data: Data, through: bool) -> None:
        """Write whole blocks; `through` past the cache, which a unit without one always does."""
        if not data:
            return
        if through or not self.config.write_cache:
            self.store.write_through(lba * self.block_size, data)
        else:
            self.store.write(lba * self.block_size, data)

    def compare(self, lba: int, count: int, data_out: Data) -> None:
        """Raise MISCOMPARE with the offset of the first byte that differs (SBC-3 5.2)."""
        length = count * self.block_size
        if len(data_out) < length:
            raise check.short_parameter_list()
        found, given = self.store.read(lba * self.block_size, length), bytes(data_out[:length])
        if found != given:
            at = next(index for index in range(length) if found[index] != given[index])
            raise Check(Key.MISCOMPARE, 0x1D, 0x00, at)

    def check_range(self, lba: int, count: int) -> None:
        if lba > self.blocks or count > self.blocks - lba or (lba == self.blocks and not count):
            raise check.out_of_range(lba)

    def check_access(self, cdb: bytes, lba: int, count: int) -> None:
        self.check_range(lba, count)
        # RDPROTECT, WRPROTECT, VRPROTECT: there is no protection information. READ(6) and WRITE(6) have address bits there.
        if cdb[0] not in (0x08, 0x0A) and cdb[1] & 0xE0:
            raise check.invalid_field()
        if count * self.block_size > self.config.max_transfer:
            raise check.invalid_field()

    def check_writable(self) -> None:
        if self.config.read_only:
            raise check.write_protected()

    def __repr__(self) -> str:
        return f"<Unit {self.config.number}: {self.blocks} blocks of {self.block_size} bytes>"


def _medium_failure(error: OSError) -> Check:
    """What the medium's errno means to an initiator."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return check.no_space()
    return Check(Key.MEDIUM_ERROR, 0x0C, 0x00)
