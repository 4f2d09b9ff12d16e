"""The logical unit: one table of commands over a store, unit attentions, and the switches that tests turn (SPC-4, SBC-3).

Theory of operation: `execute` is the device server. It looks up the operation code in `_COMMANDS`, runs the function on the CDB and the
whole Data-Out, and returns an Outcome; whatever ends in CHECK CONDITION is raised as Check and turned into an Outcome in that one place.
The transport counts residuals from `Outcome.wanted` and `Outcome.data`; the unit never hears of expected lengths.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

from isblk.target import check, pages
from isblk.target.check import Check, Key
from isblk.target.config import AccessState, LunConfig
from isblk.target.store import Store

Data = bytes | bytearray | memoryview


class Nexus(NamedTuple):
    """An I_T nexus: initiator port (name and ISID) and target port (portal group tag) (RFC 7143 4.4.1)."""

    initiator: str
    isid: bytes
    tpgt: int


class Outcome(NamedTuple):
    """How a command ended: SAM status, sense data, Data-In, and how many bytes of Data-Out the CDB asked for."""

    status: int
    sense: bytes = b""
    data: Data = b""
    wanted: int = 0


class PortGroups:
    """The access state of every portal group of a target, changed by tests to act out failing controllers (SPC-4 5.15)."""

    def __init__(self, tags: set[int]) -> None:
        self.states = dict.fromkeys(sorted(tags), AccessState.OPTIMIZED)


class Unit:
    """One logical unit. The three switches are for tests:

    inject  called with the CDB before each command; (status, sense) ends the command so, None lets it run
    present False takes the unit away, as if it had been unmapped from the initiator
    offline True answers every medium access with NOT READY, manual intervention required
    """

    def __init__(self, config: LunConfig, target_name: str, store: Store | None = None, groups: PortGroups | None = None) -> None:
        size = store.size if store else 0
        self.config = config
        self.block_size = config.block_size
        self.blocks = size // config.block_size
        self.identity = pages.Identity.of(config, target_name, self.blocks)
        self.groups = groups or PortGroups({1})
        self.inject: Callable[[bytes], tuple[int, bytes] | None] | None = None
        self.present = True
        self.offline = False
        self.commands_run = 0
        self._store = store
        self._attentions: dict[Nexus, list[tuple[int, int]]] = {}

    @property
    def store(self) -> Store:
        if self._store is None:
            raise AssertionError("a unit without a medium was asked for its medium")
        return self._store

    @property
    def has_medium(self) -> bool:
        return self._store is not None

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

    def reset(self) -> None:
        """LOGICAL UNIT RESET: each nexus hears of it (SAM-5 6.3.3)."""
        self.attention(0x29, 0x03)

    def crash(self) -> None:
        """Lose power: the volatile cache is gone, each nexus finds POWER ON OCCURRED."""
        if self._store is not None:
            self._store.crash()
        self.attention(0x29, 0x01)

    # The device server

    def execute(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """Run one command to its end. `data_out` is all that the initiator sent, perhaps less than the CDB asks for."""
        self.commands_run += 1
        if self.inject is not None:
            forced = self.inject(cdb)
            if forced is not None:
                return Outcome(*forced)
        try:
            command = _COMMANDS.get(_code(cdb))
            if command is None or not command.allowed(self):
                raise check.invalid_opcode()
            if cdb[0] not in _NEVER_ATTENTION:
                self._check_ready(command, nexus)
            return command.run(self, cdb, data_out, nexus)
        except Check as failed:
            return Outcome(check.CHECK_CONDITION, failed.sense)
        except OSError as error:
            return Outcome(check.CHECK_CONDITION, _medium_failure(error).sense)

    def _check_ready(self, command: Command, nexus: Nexus) -> None:
        waiting = self._attentions.get(nexus)
        if waiting:
            raise Check(Key.UNIT_ATTENTION, *waiting.pop(0))
        if not command.medium:
            return
        if self.offline:
            raise Check(Key.NOT_READY, 0x04, 0x03)
        state = self.groups.states.get(nexus.tpgt, AccessState.OPTIMIZED)
        if state in _STATE_ASCQ:
            raise Check(Key.NOT_READY, 0x04, _STATE_ASCQ[state])

    # Commands that need no medium (SPC-4)

    def _test_unit_ready(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        return Outcome(check.GOOD)

    def _request_sense(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        waiting = self._attentions.get(nexus)
        sense = check.fixed_sense(Key.UNIT_ATTENTION, *waiting.pop(0)) if waiting else check.fixed_sense(Key.NO_SENSE, 0, 0)
        return _answer(sense, cdb[4])

    def _inquiry(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        length = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 0x01:
            return _answer(pages.vital_product_data(self.identity, cdb[2], nexus.tpgt), length)
        if cdb[1] & 0x02 or cdb[2]:
            raise check.invalid_field()
        return _answer(pages.standard_inquiry(self.identity, len(self.groups.states) > 1), length)

    def _mode_sense_6(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        return _answer(pages.mode_parameters(self.identity, cdb, self.config.read_only, long_header=False), cdb[4])

    def _mode_sense_10(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        data = pages.mode_parameters(self.identity, cdb, self.config.read_only, long_header=True)
        return _answer(data, int.from_bytes(cdb[7:9], "big"))

    def _report_target_port_groups(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SPC-4 6.37; a portal group is a target port group with one relative target port of the same number."""
        layout = cdb[1] >> 5
        if layout > 1:
            raise check.invalid_field()
        body = bytes((0x10, 0, 0, 0)) if layout else b""
        for tag, state in self.groups.states.items():
            port = tag.to_bytes(2, "big")
            body += bytes((state.value, 0x8F)) + port + bytes((0, 0, 0, 1)) + b"\0\0" + port
        return _answer(len(body).to_bytes(4, "big") + body, int.from_bytes(cdb[6:10], "big"))

    def _report_operation_codes(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SPC-4 6.35: every command of the table, or one."""
        length = int.from_bytes(cdb[6:10], "big")
        option, code, action = cdb[2] & 0x07, cdb[3], int.from_bytes(cdb[4:6], "big")
        have = {key: command for key, command in _COMMANDS.items() if command.allowed(self)}
        if option == 0:
            body = b"".join(_descriptor(*key, command.length, bool(cdb[2] & 0x80)) for key, command in sorted(have.items()))
            return _answer(len(body).to_bytes(4, "big") + body, length)
        has_actions = code in _WITH_ACTIONS
        if option > 3 or (option == 1 and has_actions) or (option == 2 and not has_actions):
            raise check.invalid_field()
        command = have.get((code, action if has_actions else 0))
        if command is None or (option == 3 and not has_actions and action):
            return _answer(b"\0\x01\0\0", length)
        usage = bytes((code, action if has_actions else 0xFF)) + b"\xff" * (command.length - 3) + b"\0"
        return _answer(b"\0\x03" + command.length.to_bytes(2, "big") + usage, length)

    # Capacity and provisioning (SBC-3)

    def _read_capacity_10(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        last = min(self.blocks - 1, 0xFFFFFFFF)
        return Outcome(check.GOOD, data=last.to_bytes(4, "big") + self.block_size.to_bytes(4, "big"))

    def _read_capacity_16(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        exponent = max(0, (self.config.physical_block_size // self.block_size).bit_length() - 1)
        thin = 0xC0 if self.config.thin else 0  # LBPME, LBPRZ
        data = (self.blocks - 1).to_bytes(8, "big") + self.block_size.to_bytes(4, "big") + bytes((0, exponent, thin, 0)) + bytes(16)
        return _answer(data, int.from_bytes(cdb[10:14], "big"))

    def _get_lba_status(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        lba, length = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
        self._check_range(lba, 1)
        body = b""
        for _ in range(max(1, min(length, 65536) // 16)):
            allocated, end = self.store.allocation(lba * self.block_size)
            following = max(lba + 1, min(end // self.block_size, lba + 0xFFFFFFFF))
            body += lba.to_bytes(8, "big") + (following - lba).to_bytes(4, "big") + bytes((0 if allocated else 1, 0, 0, 0))
            lba = following
            if lba >= self.blocks:
                break
        return _answer((len(body) + 4).to_bytes(4, "big") + bytes(4) + body, length)

    def _unmap(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SBC-3 5.28: nothing is unmapped unless every descriptor is good."""
        wanted = int.from_bytes(cdb[7:9], "big")
        self._check_writable()
        if cdb[1] & 0x01:
            raise check.invalid_field()
        if wanted == 0:
            return Outcome(check.GOOD)
        if wanted < 8 or len(data_out) < wanted:
            raise check.short_parameter_list()
        listed = min(int.from_bytes(data_out[2:4], "big"), wanted - 8) // 16
        ranges = []
        for at in range(8, 8 + 16 * listed, 16):
            lba, count = int.from_bytes(data_out[at : at + 8], "big"), int.from_bytes(data_out[at + 8 : at + 12], "big")
            self._check_range(lba, count)
            ranges.append((lba, count))
        if listed > pages.UNMAP_DESCRIPTORS or sum(count for _, count in ranges) * self.block_size > pages.UNMAP_BYTES:
            raise check.invalid_parameter()
        for lba, count in ranges:
            if count:
                self.store.deallocate(lba * self.block_size, count * self.block_size)
        return Outcome(check.GOOD, wanted=wanted)

    def _write_same(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SBC-3 5.44, 5.46. With UNMAP, blocks of zeros become holes (LBPRZ=1); other patterns are written as if UNMAP were not set."""
        lba, count = _extent(cdb)
        self._check_writable()
        without_buffer = cdb[0] == 0x93 and cdb[1] & 0x01
        if cdb[1] & 0xF0 or (cdb[1] & 0x08 and not self.config.thin) or not count:
            raise check.invalid_field()
        self._check_range(lba, count)
        if count * self.block_size > pages.WRITE_SAME_BYTES:
            raise check.invalid_field()
        if not without_buffer and len(data_out) < self.block_size:
            raise check.short_parameter_list()
        block = bytes(self.block_size) if without_buffer else bytes(data_out[: self.block_size])
        if cdb[1] & 0x08 and not any(block):
            self.store.deallocate(lba * self.block_size, count * self.block_size)
        else:
            self._put(lba, block * count, through=False)
        return Outcome(check.GOOD, wanted=0 if without_buffer else self.block_size)

    # Medium access (SBC-3)

    def _read(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        lba, count = _extent(cdb)
        self._check_access(cdb, lba, count)
        offset, length = lba * self.block_size, count * self.block_size
        if cdb[0] != 0x08 and cdb[1] & 0x08 and self.store.is_dirty(offset, length):
            # FUA: the answer comes from the medium, so what is cached goes there first (SBC-3 4.15).
            self.store.sync()
        return Outcome(check.GOOD, data=self.store.read(offset, length))

    def _write(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        lba, count = _extent(cdb)
        self._check_writable()
        self._check_access(cdb, lba, count)
        wanted = count * self.block_size
        # An initiator that expected to send less than the CDB says gets its whole blocks written and an overflow residual.
        usable = min(wanted, len(data_out) - len(data_out) % self.block_size)
        data = data_out if usable == len(data_out) else memoryview(data_out)[:usable]
        self._put(lba, data, through=cdb[0] != 0x0A and bool(cdb[1] & 0x08))
        return Outcome(check.GOOD, wanted=wanted)

    def _verify(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        lba, count = _extent(cdb)
        compare = cdb[1] >> 1 & 0x03
        self._check_access(cdb, lba, count)
        if compare > 1:
            raise check.invalid_field()
        if not compare:
            return Outcome(check.GOOD)
        self._compare(lba, count, data_out)
        return Outcome(check.GOOD, wanted=count * self.block_size)

    def _compare_and_write(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SBC-3 5.2: the first half is compared, the second written if they are equal."""
        lba, count = int.from_bytes(cdb[2:10], "big"), cdb[13]
        length = count * self.block_size
        self._check_writable()
        self._check_access(cdb, lba, count)
        self._compare(lba, count, memoryview(data_out)[:length])
        if len(data_out) < 2 * length:
            raise check.short_parameter_list()
        self._put(lba, memoryview(data_out)[length : 2 * length], through=bool(cdb[1] & 0x08))
        return Outcome(check.GOOD, wanted=2 * length)

    def _synchronize_cache(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """SBC-3 5.21; the range is checked, then the whole cache is written: more than asked is allowed."""
        self._check_range(*_extent(cdb))
        self.store.sync()
        return Outcome(check.GOOD)

    def _start_stop_unit(self, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """There is no motor; stopping writes the cache back (SBC-3 5.20) and the unit stays ready."""
        if not cdb[4] & 0x01 and self._store is not None:
            self.store.sync()
        return Outcome(check.GOOD)

    def _put(self, lba: int, data: Data, through: bool) -> None:
        if not data:
            return
        if through or not self.config.write_cache:
            self.store.write_through(lba * self.block_size, data)
        else:
            self.store.write(lba * self.block_size, data)

    def _compare(self, lba: int, count: int, data_out: Data) -> None:
        length = count * self.block_size
        if len(data_out) < length:
            raise check.short_parameter_list()
        found, given = self.store.read(lba * self.block_size, length), bytes(data_out[:length])
        if found != given:
            at = next(index for index in range(length) if found[index] != given[index])
            raise Check(Key.MISCOMPARE, 0x1D, 0x00, at)

    def _check_range(self, lba: int, count: int) -> None:
        if lba > self.blocks or count > self.blocks - lba or (lba == self.blocks and not count):
            raise check.out_of_range(lba)

    def _check_access(self, cdb: bytes, lba: int, count: int) -> None:
        self._check_range(lba, count)
        # RDPROTECT, WRPROTECT, VRPROTECT: there is no protection information. READ(6) and WRITE(6) have address bits there.
        if cdb[0] not in (0x08, 0x0A) and cdb[1] & 0xE0:
            raise check.invalid_field()
        if count * self.block_size > self.config.max_transfer:
            raise check.invalid_field()

    def _check_writable(self) -> None:
        if self.config.read_only:
            raise check.write_protected()

    def __repr__(self) -> str:
        return f"<Unit {self.config.number}: {self.blocks} blocks of {self.block_size} bytes>"


class Command(NamedTuple):
    """A row of the table: the CDB's length, the function, what it needs, and on which units it exists."""

    length: int
    run: Callable[[Unit, bytes, Data, Nexus], Outcome]
    medium: bool = False
    thin: bool = False
    any_device: bool = False

    def allowed(self, unit: Unit) -> bool:
        return self.any_device or (unit.has_medium and (not self.thin or unit.config.thin))


_MEDIUM, _THIN, _ANY = {"medium": True}, {"medium": True, "thin": True}, {"any_device": True}
_COMMANDS: dict[tuple[int, int], Command] = {
    (0x00, 0): Command(6, Unit._test_unit_ready, medium=True, any_device=True),
    (0x03, 0): Command(6, Unit._request_sense, **_ANY),
    (0x08, 0): Command(6, Unit._read, **_MEDIUM),
    (0x0A, 0): Command(6, Unit._write, **_MEDIUM),
    (0x12, 0): Command(6, Unit._inquiry, **_ANY),
    (0x1A, 0): Command(6, Unit._mode_sense_6, **_ANY),
    (0x1B, 0): Command(6, Unit._start_stop_unit),
    (0x25, 0): Command(10, Unit._read_capacity_10, **_MEDIUM),
    (0x28, 0): Command(10, Unit._read, **_MEDIUM),
    (0x2A, 0): Command(10, Unit._write, **_MEDIUM),
    (0x2F, 0): Command(10, Unit._verify, **_MEDIUM),
    (0x35, 0): Command(10, Unit._synchronize_cache, **_MEDIUM),
    (0x41, 0): Command(10, Unit._write_same, **_MEDIUM),
    (0x42, 0): Command(10, Unit._unmap, **_THIN),
    (0x5A, 0): Command(10, Unit._mode_sense_10, **_ANY),
    (0x88, 0): Command(16, Unit._read, **_MEDIUM),
    (0x89, 0): Command(16, Unit._compare_and_write, **_MEDIUM),
    (0x8A, 0): Command(16, Unit._write, **_MEDIUM),
    (0x8F, 0): Command(16, Unit._verify, **_MEDIUM),
    (0x91, 0): Command(16, Unit._synchronize_cache, **_MEDIUM),
    (0x93, 0): Command(16, Unit._write_same, **_MEDIUM),
    (0x9E, 0x10): Command(16, Unit._read_capacity_16, **_MEDIUM),
    (0x9E, 0x12): Command(16, Unit._get_lba_status, **_THIN),
    (0xA3, 0x0A): Command(12, Unit._report_target_port_groups, **_ANY),
    (0xA3, 0x0C): Command(12, Unit._report_operation_codes, **_ANY),
    (0xA8, 0): Command(12, Unit._read, **_MEDIUM),
    (0xAA, 0): Command(12, Unit._write, **_MEDIUM),
}
_WITH_ACTIONS = frozenset((0x9E, 0xA3))
_NEVER_ATTENTION = frozenset((0x03, 0x12))
"""REQUEST SENSE and INQUIRY are answered with a unit attention pending (SAM-5 5.14); REPORT LUNS never comes here."""
_STATE_ASCQ = {AccessState.STANDBY: 0x0B, AccessState.UNAVAILABLE: 0x0C, AccessState.TRANSITIONING: 0x0A}


def _code(cdb: bytes) -> tuple[int, int]:
    """The key of `_COMMANDS`: operation code and, where the code has them, service action."""
    return cdb[0], cdb[1] & 0x1F if cdb[0] in _WITH_ACTIONS else 0


def _extent(cdb: bytes) -> tuple[int, int]:
    """LBA and number of blocks of a 6-, 10-, 12- or 16-byte CDB (SPC-4 4.2.2): the group of the operation code says which."""
    group = cdb[0] >> 5
    if group == 0:
        # A length of zero means 256 blocks (SBC-3 5.6).
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group in (1, 2):
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if group == 5:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")


def _answer(data: bytes, allocation_length: int) -> Outcome:
    """Data-In cut to the allocation length, which is no error (SPC-4 4.2.5.6)."""
    return Outcome(check.GOOD, data=data[:allocation_length])


def _descriptor(code: int, action: int, length: int, timeouts: bool) -> bytes:
    flags = (0x01 if code in _WITH_ACTIONS else 0) | (0x02 if timeouts else 0)
    row = bytes((code, 0)) + action.to_bytes(2, "big") + bytes((0, flags)) + length.to_bytes(2, "big")
    return row + (b"\0\x0a" + bytes(10) if timeouts else b"")


def _medium_failure(error: OSError) -> Check:
    """What the medium's errno means to an initiator."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return check.no_space()
    return Check(Key.MEDIUM_ERROR, 0x0C, 0x00)
