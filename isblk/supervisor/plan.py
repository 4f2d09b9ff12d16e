"""A table against what is kept up: what to start, stop, restart, change in place, and what to leave alone. PURE.

An export whose line says the same is not touched, wherever it moved to. What changes in place are the table's own options (auto, noauto,
nofail, timeout, retry), for no command knows of them, and what a daemon can be told while it serves (Entry.in_place).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from isblk.table.entry import Entry
from isblk.table.options import OPTIONS

OWN = tuple(name for name, option in OPTIONS.items() if not option.argument)
"""Options that no command sees."""


@dataclass
class Plan:
    """Each entry in one list, as the table has it now (`stop`: as it had it)."""

    start: list[Entry] = field(default_factory=list)
    stop: list[Entry] = field(default_factory=list)
    restart: list[Entry] = field(default_factory=list)
    change: list[Entry] = field(default_factory=list)
    keep: list[Entry] = field(default_factory=list)
    leave_down: list[Entry] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The places in each list, for the control socket."""
        return {each.name: [entry.where for entry in getattr(self, each.name)] for each in fields(self)}


def compare(before: Mapping[str, tuple[Entry, bool]], now: Iterable[Entry]) -> Plan:
    """What a reload does. `before` has for each WHERE the entry and whether it is wanted up."""
    plan, entries = Plan(), {entry.where: entry for entry in now}
    plan.stop = [entry for where, (entry, _) in before.items() if where not in entries]
    for where, entry in entries.items():
        old, is_wanted = before.get(where, (None, False))
        if old is None:
            (plan.leave_down if entry.noauto else plan.start).append(entry)
        elif not is_wanted:
            (plan.start if old.noauto and not entry.noauto else plan.leave_down).append(entry)
        elif needs_restart(old, entry):
            plan.restart.append(entry)
        else:
            (plan.keep if soft(old) == soft(entry) else plan.change).append(entry)
    return plan


def needs_restart(old: Entry, new: Entry) -> bool:
    """Whether only another process can have the new options."""
    return old.command(old.in_place) != new.command(new.in_place)


def soft(entry: Entry) -> set[tuple[str, str | None]]:
    """The options of an entry that change in place."""
    return {(given.name, given.value) for given in entry.options if given.name in (*OWN, *entry.in_place)}
