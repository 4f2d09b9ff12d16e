"""Logical units over every portal: what is there, whether the paths lead to the same disk, and what each path lets through (ALUA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isblk.block.path import CARRYING, port_group
from isblk.block.probe import Description, Link, execute, probe_all
from isblk.doctor.findings import Report
from isblk.errors import IsblkError
from isblk.iscsi.names import Portal
from isblk.scsi import cdb
from isblk.scsi.data import AccessState, parse_target_port_groups
from isblk.scsi.lun_number import lun_text
from isblk.sizes import size_text

GROUPS_ALLOCATION = 4096
Units = Mapping[bytes, Description]


async def list_units(report: Report, portal: Portal, link: Link) -> dict[bytes, Description] | None:
    """Every unit that a portal shows; None when it could not be asked."""
    try:
        return {unit.lun: unit for unit in await probe_all(link)}
    except IsblkError as error:
        report.say("disks-unlisted", portal=portal, reason=error)
        return None


def describe(report: Report, portal: Portal, units: Units, wanted: bytes | None, initiator: str) -> None:
    """What the first portal shows. `wanted` is the LUN that TARGET names."""
    for unit in units.values():
        _describe_one(report, unit)
    if wanted is not None and wanted not in units:
        report.say("disk-absent", lun=lun_text(wanted), portal=portal, luns=", ".join(map(lun_text, units)) or "none")
    elif not any(unit.is_disk for unit in units.values()):
        report.say("disks-none", portal=portal, initiator=initiator)


def _describe_one(report: Report, unit: Description) -> None:
    lun, identity = lun_text(unit.lun), unit.identity
    if not unit.is_disk:
        report.say("no-disk", lun=lun, type=identity.type_text)
    elif unit.refusal is not None:
        report.say("disk-sick" if unit.capacity is None else "disk-unusable", reason=unit.refusal)
    else:
        values = {"vendor": identity.vendor, "product": identity.product, "wwid": unit.wwid or "without a name"}
        data = {"lun": lun, "size": unit.size, "block_size": unit.block_size, "serial": unit.serial or None, **values}
        report.say("disk", data, lun=lun, size=size_text(unit.size), block=unit.block_size, **values)
        if unit.mode.write_protected:
            report.say("disk-protected", lun=lun)
        if unit.wwid is None:
            report.say("disk-nameless", lun=lun)


def compare(report: Report, seen: Sequence[tuple[Portal, Units]]) -> None:
    """Whether a number is the same disk over every portal; `seen` are the portals that could be asked, the first of them described."""
    if len(seen) < 2:
        report.say("paths-one")
        return
    numbers = dict.fromkeys(lun for _, units in seen for lun, unit in units.items() if unit.is_disk)
    for lun in numbers:
        _compare_one(report, lun, [(portal, units.get(lun)) for portal, units in seen])


def _compare_one(report: Report, lun: bytes, over: Sequence[tuple[Portal, Description | None]]) -> None:
    there = [(portal, unit) for portal, unit in over if unit is not None]
    (first, model), is_same = there[0], True
    for portal, unit in over:
        if unit is None:
            report.say("paths-missing", lun=lun_text(lun), portal=portal)
        elif unit.wwid != model.wwid:
            report.say("paths-different", lun=lun_text(lun), wwid=unit.wwid, portal=portal, other=model.wwid, first=first)
        elif unit.size != model.size:
            report.say("paths-sizes", lun=lun_text(lun), size=unit.size, portal=portal, other=model.size, first=first)
        else:
            continue
        is_same = False
    if is_same and model.wwid is not None:
        report.say("paths-same", lun=lun_text(lun), count=len(there))


async def access(report: Report, seen: Sequence[tuple[Portal, Link, Units]]) -> None:
    """The asymmetric access state of each disk over each portal (SPC-4 5.15)."""
    numbers = dict.fromkeys(lun for _, _, units in seen for lun, unit in units.items() if unit.refusal is None)
    for lun in numbers:
        states = [await _one_access(report, portal, link, units[lun]) for portal, link, units in seen if lun in units]
        if not any(state in CARRYING for state in states):
            report.say("access-nowhere", lun=lun_text(lun))


async def _one_access(report: Report, portal: Portal, link: Link, unit: Description) -> AccessState:
    lun, group = lun_text(unit.lun), port_group(unit)
    if not unit.identity.target_port_group_support or group is None:
        report.say("access-symmetric", lun=lun, portal=portal)
        return AccessState.OPTIMIZED
    try:
        answer = await execute(link, unit.lun, cdb.report_target_port_groups(GROUPS_ALLOCATION), GROUPS_ALLOCATION)
        found = {one.identifier: one for one in parse_target_port_groups(answer)}.get(group)
    except IsblkError as error:
        report.say("access-unknown", lun=lun, portal=portal, reason=error)
        return AccessState.OPTIMIZED
    if found is None:
        report.say("access-unknown", lun=lun, portal=portal, reason=f"group {group}, where we are, is not listed")
        return AccessState.OPTIMIZED
    _say_access(report, portal, lun, found.state, found.preferred)
    return found.state


def _say_access(report: Report, portal: Portal, lun: str, state: AccessState, preferred: bool) -> None:
    if state is AccessState.OPTIMIZED:
        report.say("access-best", lun=lun, portal=portal, preferred=", preferred" if preferred else "")
    elif state in CARRYING:
        report.say("access-second", lun=lun, portal=portal)
    else:
        report.say("access-shut", lun=lun, portal=portal, state=state.name.lower())
