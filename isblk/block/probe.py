"""Probing a logical unit over a session: who it is, how large, what it can do; and which units there are (SPC-4 6, SBC-3 5 and 6).

Control work: coroutines, one command at a time. Unit attentions of a fresh nexus are absorbed here (every target has at least one to tell),
and what came before is moot: nothing has been read yet that they could make stale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from isblk.block.request import Geometry
from isblk.errors import NotFound, ProtocolError, RequestFailed
from isblk.iscsi.task import Task
from isblk.scsi import cdb, data, inquiry
from isblk.scsi.lun_number import in_sam_order, lun_text, parse_report_luns
from isblk.scsi.sense import Action, Key, Verdict, verdict

if TYPE_CHECKING:
    from isblk.link.connection import Completion

log = logging.getLogger(__name__)

ATTENTION_LIMIT = 32
"""Unit attentions absorbed for one command: SAM-5 lets a target queue many, none queues this many."""
BACK_OFF = tuple(min(0.05 * 2**attempt, 2.0) for attempt in range(20))
"""Pauses in seconds before each retry of a command that met a busy or not yet ready unit: 20 retries, half a minute in all."""
SMALLEST_BLOCK, LARGEST_BLOCK = 512, 65536
"""Bytes."""
REPORT_LUNS_ALLOCATION = 4096
MOST_LUNS = 16384

LARGEST_SIZE = (1 << 63) - 1
"""Bytes: what an off_t holds."""

_WANTED_PAGES = (
    inquiry.VPD_SERIAL_NUMBER,
    inquiry.VPD_DEVICE_IDENTIFICATION,
    inquiry.VPD_BLOCK_LIMITS,
    inquiry.VPD_BLOCK_CHARACTERISTICS,
    inquiry.VPD_LOGICAL_BLOCK_PROVISIONING,
)
_VPD_ALLOCATION = 252  # below 256: some old units read one byte of the length only
_NOT_MODE_DATA = data.Mode(write_protected=False, fua=False, write_cache=None)
_NO_PAGES: frozenset[int] = frozenset()
_NO_DESIGNATORS: tuple[inquiry.Designator, ...] = ()
_NO_LIMITS = inquiry.BlockLimits()
_NO_CHARACTERISTICS = inquiry.BlockCharacteristics()
_NO_PROVISIONING = inquiry.BlockProvisioning()
_LUN_0 = bytes(8)

T = TypeVar("T")


class Link(Protocol):
    """What a logical unit needs of its session; link.connection.Connection is one.

    `hearers`, by LUN, are told what a unit in use announces to a command of control: it is told once to each session, to no other command.
    """

    hearers: dict[bytes, Callable[[Verdict], None]]

    def submit(self, task: Task) -> None:
        """Queue a task."""

    def kick(self) -> None:
        """End of a batch."""

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a plain function after some seconds."""

    def tasks(self) -> Sequence[Task]:
        """Those that have not finished."""

    async def execute(self, lun: bytes, cdb: bytes, read_length: int = 0, write: bytes = b"") -> Completion:
        """One command, waited for."""


class CommandFailed(RequestFailed):
    """A control command that the logical unit answered with a failure; `verdict` says which."""

    def __init__(self, lun: bytes, judged: Verdict) -> None:
        super().__init__(f"LUN {lun_text(lun)} failed a command: {judged.reason}", judged.errno)
        self.verdict = judged


@dataclass(frozen=True)
class Description:
    """What probing found. A unit that is no usable disk is described as far as it goes, and `refusal` says why it cannot be used."""

    lun: bytes
    identity: inquiry.Inquiry
    serial: str
    wwid: str | None
    designators: tuple[inquiry.Designator, ...]
    refusal: str | None
    capacity: data.Capacity | None = None
    mode: data.Mode = _NOT_MODE_DATA
    mode_sense: bytes | None = None  # the CDB that got `mode`, to ask again
    limits: inquiry.BlockLimits = _NO_LIMITS
    characteristics: inquiry.BlockCharacteristics = _NO_CHARACTERISTICS
    provisioning: inquiry.BlockProvisioning = _NO_PROVISIONING

    @property
    def is_disk(self) -> bool:
        """A direct access block device, usable or not."""
        return self.identity.is_disk

    @property
    def size(self) -> int:
        """Bytes; 0 where there is no capacity."""
        return self.capacity.size if self.capacity else 0

    @property
    def block_size(self) -> int:
        """Bytes; 0 where there is no capacity."""
        return self.capacity.block_length if self.capacity else 0


async def execute(link: Link, lun: bytes, command: bytes, read_length: int = 0, write: bytes = b"") -> bytes:
    """One command with unit attentions absorbed and busy or not ready units waited for (bounded); returns the data that came, in bytes.

    Raises CommandFailed, PathLost, ProtocolError.
    """
    attentions, retries = 0, 0
    while True:
        completion = await link.execute(lun, command, read_length, write)
        judged = verdict(completion.status, completion.sense)
        if judged.action is Action.DONE:
            return completion.data
        if judged.action is Action.ATTENTION and attentions < ATTENTION_LIMIT:
            attentions += 1
            hearer = link.hearers.get(lun)
            if hearer is not None:
                hearer(judged)
            else:
                log.info("LUN %s while it was probed: %s", lun_text(lun), judged.reason)
        elif judged.action is Action.RETRY and retries < len(BACK_OFF):
            await trio.sleep(BACK_OFF[retries])
            retries += 1
        else:
            raise CommandFailed(lun, judged)


async def list_luns(link: Link) -> list[bytes]:
    """Every LUN of the target in SAM order, as its eight bytes. Raises CommandFailed, PathLost, ProtocolError.

    A target without REPORT LUNS has one, LUN 0 (SPC-2 and older).
    """
    allocation = REPORT_LUNS_ALLOCATION
    while True:
        try:
            found = parse_report_luns(await execute(link, _LUN_0, cdb.report_luns(allocation), allocation))
        except CommandFailed as error:
            if error.verdict.sense.key is not Key.ILLEGAL_REQUEST:
                raise
            return [_LUN_0]
        if not found.missing:
            return in_sam_order(found.luns)
        # A list can grow between two questions, so ask until it fits; but neither for ever nor for more than memory should hold.
        if not allocation < found.allocation_length <= MOST_LUNS * 8 + 8:
            raise ProtocolError(f"the target announced a LUN list of {found.allocation_length} bytes and sent another")
        allocation = found.allocation_length


async def probe(link: Link, lun: bytes) -> Description:
    """Describe one logical unit. Raises NotFound when there is none at `lun`, CommandFailed, PathLost, ProtocolError."""
    standard = await _standard_inquiry(link, lun)
    pages = _Pages(await _vital_product_data(link, lun))
    designators = pages.parse(inquiry.VPD_DEVICE_IDENTIFICATION, inquiry.parse_device_identification, _NO_DESIGNATORS)
    found = Description(
        lun=lun,
        identity=standard,
        serial=pages.parse(inquiry.VPD_SERIAL_NUMBER, inquiry.parse_serial_number, ""),
        wwid=inquiry.logical_unit_wwid(designators),
        designators=designators,
        refusal=None if standard.is_disk else f"LUN {lun_text(lun)} is no disk but a {standard.type_text}",
        limits=pages.parse(inquiry.VPD_BLOCK_LIMITS, inquiry.parse_block_limits, _NO_LIMITS),
        characteristics=pages.parse(inquiry.VPD_BLOCK_CHARACTERISTICS, inquiry.parse_block_characteristics, inquiry.BlockCharacteristics()),
        provisioning=pages.parse(inquiry.VPD_LOGICAL_BLOCK_PROVISIONING, inquiry.parse_block_provisioning, inquiry.BlockProvisioning()),
    )
    return await _with_medium(link, found) if found.is_disk else found


async def probe_all(link: Link) -> list[Description]:
    """Describe every logical unit the target reports, in SAM order; a LUN that is reported and then not there is left out."""
    found = []
    for lun in await list_luns(link):
        try:
            found.append(await probe(link, lun))
        except NotFound as error:
            log.info("%s", error)
    return found


async def _standard_inquiry(link: Link, lun: bytes) -> inquiry.Inquiry:
    try:
        standard = inquiry.parse_inquiry(await execute(link, lun, cdb.inquiry(_VPD_ALLOCATION), _VPD_ALLOCATION))
    except CommandFailed as error:
        if (error.verdict.sense.key, error.verdict.sense.asc) == (Key.ILLEGAL_REQUEST, 0x25):
            raise _no_such_lun(lun) from error
        raise
    if standard.qualifier:
        raise _no_such_lun(lun)
    return standard


def _no_such_lun(lun: bytes) -> NotFound:
    return NotFound(f"the target has no LUN {lun_text(lun)}; `isblk ls TARGET` lists those it has")


async def _vital_product_data(link: Link, lun: bytes) -> dict[int, bytes]:
    """Every page that is wanted and listed in page 00; a unit that knows no such pages has none."""
    listing = await _page(link, lun, inquiry.VPD_SUPPORTED_PAGES)
    listed = _Pages({inquiry.VPD_SUPPORTED_PAGES: listing}).parse(inquiry.VPD_SUPPORTED_PAGES, inquiry.parse_supported_pages, _NO_PAGES)
    return {code: await _page(link, lun, code) for code in _WANTED_PAGES if code in listed}


async def _page(link: Link, lun: bytes, code: int) -> bytes:
    """One page, asked for again when it was longer than expected; empty when the unit refuses."""
    try:
        page = await execute(link, lun, cdb.inquiry_vpd(code, _VPD_ALLOCATION), _VPD_ALLOCATION)
        whole = min(len(page) + inquiry.vpd_missing(page), 0xFFFF)
        return await execute(link, lun, cdb.inquiry_vpd(code, whole), whole) if whole > len(page) >= _VPD_ALLOCATION else page
    except CommandFailed as error:
        log.info("VPD page %02X: %s", code, error)
        return b""


class _Pages:
    """The pages that came; one that is absent or makes no sense counts as the default, it is not worth a device."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        self._pages = pages

    def parse(self, code: int, parse: Callable[[bytes], T], default: T) -> T:
        page = self._pages.get(code)
        if not page:
            return default
        try:
            return parse(page)
        except ProtocolError as error:
            log.info("VPD page %02X is left out of account: %s", code, error)
            return default


async def _with_medium(link: Link, found: Description) -> Description:
    """What takes a unit that is ready: capacity and mode. One that is not, or is of no use, is refused in words."""
    try:
        await execute(link, found.lun, cdb.test_unit_ready())
        capacity = await read_capacity(link, found.lun)
        mode, mode_sense = await _mode(link, found.lun)
    except CommandFailed as error:
        return replace(found, refusal=str(error))
    refusal = _refusal(found.lun, capacity)
    return replace(found, capacity=capacity, mode=mode, mode_sense=mode_sense, refusal=refusal)


def _refusal(lun: bytes, capacity: data.Capacity) -> str | None:
    length = capacity.block_length
    if not SMALLEST_BLOCK <= length <= LARGEST_BLOCK or length & (length - 1):
        return (
            f"LUN {lun_text(lun)} has blocks of {length} bytes; isblk needs a power of two from {SMALLEST_BLOCK} to {LARGEST_BLOCK}, "
            "format the unit so"
        )
    if capacity.size > LARGEST_SIZE:
        return f"LUN {lun_text(lun)} claims {capacity.size} bytes, more than a file can have"
    return None


async def read_capacity(link: Link, lun: bytes) -> data.Capacity:
    """READ CAPACITY (16), which knows thin provisioning and large units, else (10). Raises CommandFailed, PathLost, ProtocolError."""
    try:
        return data.parse_capacity_16(await execute(link, lun, cdb.read_capacity_16(), data.CAPACITY_16_LENGTH))
    except CommandFailed as error:
        if error.verdict.sense.key is not Key.ILLEGAL_REQUEST:
            raise
        capacity = data.parse_capacity_10(await execute(link, lun, cdb.read_capacity_10(), data.CAPACITY_10_LENGTH))
        if capacity is None:  # too large for (10), and (16) is refused: nobody can tell how large it is
            raise
        return capacity


_MODE_QUESTIONS: tuple[tuple[bytes, int], ...] = (
    (cdb.mode_sense_6(cdb.MODE_PAGE_CACHING, 192), 192),
    (cdb.mode_sense_10(cdb.MODE_PAGE_CACHING, 255), 255),
    (cdb.mode_sense_6(cdb.MODE_PAGE_ALL, 192), 192),
    (cdb.mode_sense_10(cdb.MODE_PAGE_ALL, 255), 255),
)
"""CDB and allocation length in bytes. Units without a caching page may refuse it and still tell write protection with all pages."""


def mode_allocation(mode_sense: bytes) -> int:
    """Bytes that a MODE SENSE CDB of Description.mode_sense lets come."""
    return dict(_MODE_QUESTIONS)[mode_sense]


def parse_mode(mode_sense: bytes, answer: bytes) -> data.Mode:
    """Parse what came back for a MODE SENSE CDB of either form. Raises ProtocolError."""
    return (data.parse_mode_6 if mode_sense[0] == cdb.MODE_SENSE_6 else data.parse_mode_10)(answer)


async def _mode(link: Link, lun: bytes) -> tuple[data.Mode, bytes | None]:
    for question, allocation in _MODE_QUESTIONS:
        try:
            return parse_mode(question, await execute(link, lun, question, allocation)), question
        except CommandFailed as error:
            log.info("no mode page: %s", error)
    return _NOT_MODE_DATA, None


def geometry(found: Description) -> Geometry:
    """The geometry of a usable disk. It takes transfers of any length: the LogicalUnit splits them."""
    block, capacity, limits, provisioning = found.block_size, found.capacity, found.limits, found.provisioning
    if capacity is None:
        raise AssertionError("a unit without a capacity has no geometry")
    return Geometry(
        size=found.size,
        block_size=block,
        physical_block_size=block * capacity.blocks_per_physical_block,
        optimal_transfer=block * limits.optimal_transfer,
        trim_granularity=block * limits.unmap_granularity,
        read_only=found.mode.write_protected,
        can_trim=provisioning.unmap or provisioning.write_same_16_unmap,
        can_zero=True,
        can_fua=True,
        write_cache=found.mode.write_cache is not False,
        trim_reads_zero=capacity.reads_zero or provisioning.reads_zero,
        zero_unmaps=provisioning.write_same_16_unmap and (capacity.reads_zero or provisioning.reads_zero),
        rotational=found.characteristics.rotational,
    )
