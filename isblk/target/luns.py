"""The logical units of a target, found by their 8-byte LUN, and what is answered where there is none (SAM-5 4.7, SPC-4 6.33)."""

from __future__ import annotations

from collections.abc import Iterable

from isblk.errors import UsageError
from isblk.target import check
from isblk.target.config import Addressing, LunConfig, TargetConfig
from isblk.target.outcome import Data, Nexus, Outcome
from isblk.target.store import Store
from isblk.target.unit import PortGroups, Unit

_INQUIRY, _REQUEST_SENSE, _REPORT_LUNS = 0x12, 0x03, 0xA0


def decode_lun(lun: bytes | memoryview) -> int | None:
    """The unit number of a LUN in peripheral, flat, or extended flat addressing; None for what names no unit here (a hierarchy, a bus)."""
    raw = bytes(lun)
    method = raw[0] >> 6
    if method == 0 and raw[0] == 0 and not any(raw[2:]):
        return raw[1]
    if method == 1 and not any(raw[2:]):
        return int.from_bytes(raw[:2], "big") & 0x3FFF
    if method == 3 and raw[0] & 0x0F == 0x02:
        # Extended flat: byte 0 bits 5-4 give its length in steps of two bytes (SAM-5 4.7.7.5).
        end = 2 + 2 * (raw[0] >> 4 & 0x03)
        return int.from_bytes(raw[1:end], "big") if not any(raw[end:]) else None
    return None


def encode_lun(number: int, addressing: Addressing = Addressing.NATURAL) -> bytes:
    """The 8 bytes of a unit's number (0 to 2^24 - 1) as REPORT LUNS gives them."""
    if addressing is Addressing.EXTENDED or number > 0x3FFF:
        return b"\xd2" + number.to_bytes(3, "big") + bytes(4)
    if addressing is Addressing.FLAT or number > 0xFF:
        return (0x4000 | number).to_bytes(2, "big") + bytes(6)
    return bytes((0, number)) + bytes(6)


class LogicalUnits:
    """All units of one target; `units` by number may be changed while the target runs."""

    def __init__(self, units: Iterable[Unit], addressing: Addressing = Addressing.NATURAL, groups: PortGroups | None = None) -> None:
        self.units = {unit.config.number: unit for unit in units}
        self.addressing = addressing
        self.groups = groups or PortGroups({1})

    @classmethod
    def open(cls, config: TargetConfig) -> LogicalUnits:
        """Open what the configuration names; UsageError says which unit cannot be had."""
        groups = PortGroups({portal.tpgt for portal in config.portals})
        opened: dict[int, Unit] = {}
        try:
            for each in config.luns:
                if each.number in opened or not 0 <= each.number < 1 << 24:
                    raise UsageError(f"LUN {each.number} is given twice or is not within 0 to {(1 << 24) - 1}: give each its own number")
                opened[each.number] = Unit(each, config.name, _open_store(each), groups)
        except UsageError:
            cls(opened.values()).close()
            raise
        return cls(opened.values(), config.addressing, groups)

    def close(self) -> None:
        for unit in self.units.values():
            if unit.has_medium:
                unit.store.close()

    def nexus_started(self, nexus: Nexus) -> None:
        for unit in self.units.values():
            unit.nexus_started(nexus)

    def nexus_lost(self, nexus: Nexus) -> None:
        """The nexus is the same, what was in it is gone: I_T NEXUS LOSS OCCURRED takes the place of what was pending (SAM-5 6.3.4)."""
        for unit in self.units.values():
            unit.nexus_lost(nexus)

    def nexus_ended(self, nexus: Nexus) -> None:
        for unit in self.units.values():
            unit.nexus_ended(nexus)

    def find(self, lun: bytes | memoryview) -> Unit | None:
        number = decode_lun(lun)
        unit = self.units.get(number) if number is not None else None
        return unit if unit is not None and unit.present else None

    def execute(self, lun: bytes | memoryview, cdb: bytes, data_out: Data, nexus: Nexus) -> Outcome:
        """Run a command on the unit at `lun`; a LUN without a unit answers as SPC-4 6.6 and SAM-5 4.7.2 have it."""
        if cdb[0] == _REPORT_LUNS:
            return self._report_luns(cdb)
        unit = self.find(lun)
        if unit is not None:
            return unit.execute(cdb, data_out, nexus)
        if cdb[0] == _INQUIRY and not cdb[1] & 0x01:
            # Peripheral qualifier 011b, type 1Fh: no device can be here.
            return Outcome(check.GOOD, data=(b"\x7f\0\x06\x12\x1f" + bytes(31))[: int.from_bytes(cdb[3:5], "big")])
        absent = check.no_such_unit()
        if cdb[0] == _REQUEST_SENSE:
            return Outcome(check.GOOD, data=absent.sense[: cdb[4]])
        return Outcome(check.CHECK_CONDITION, absent.sense)

    def _report_luns(self, cdb: bytes) -> Outcome:
        """SELECT REPORT 0: units, 1: well-known units (there are none), 2: both. Truncation shows in LUN LIST LENGTH."""
        if cdb[2] > 2:
            return Outcome(check.CHECK_CONDITION, check.invalid_field().sense)
        numbers = [] if cdb[2] == 1 else sorted(number for number, unit in self.units.items() if unit.present)
        body = b"".join(encode_lun(number, self.addressing) for number in numbers)
        return Outcome(check.GOOD, data=(len(body).to_bytes(4, "big") + bytes(4) + body)[: int.from_bytes(cdb[6:10], "big")])


def _open_store(config: LunConfig) -> Store | None:
    """The medium of a disk; a unit of another device type has none."""
    if config.device_type != 0:
        return None
    if config.block_size < 512 or config.block_size & (config.block_size - 1):
        raise UsageError(f"LUN {config.number}: a block of {config.block_size} bytes is not a power of two from 512")
    if config.path is None:
        store = Store.in_memory(config.size or 0, config.cache_limit)
    else:
        store = Store.at_path(config.path, config.size, config.read_only, config.cache_limit)
    if store.size < config.block_size or store.size % config.block_size:
        store.close()
        raise UsageError(f"LUN {config.number}: {store.size} bytes are no whole number of {config.block_size}-byte blocks")
    return store
