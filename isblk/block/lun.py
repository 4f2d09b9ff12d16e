"""Device over one session and LUN: requests in whole blocks become SCSI commands within the unit's limits (SBC-3 5).

Theory of operation. A READ or WRITE that fits is one Task and nothing else (hot). Whatever takes several commands is a Series of child
requests that come back through the same doors. What a command's end means is decided in scsi/sense.py and acted on in command.py; this
file knows what each operation is made of, and what the unit has taught since it was probed: its mode, what it lost, what it refuses.

Durability. FLUSH is SYNCHRONIZE CACHE where the unit has a volatile cache (WCE, or unknown), and no command where it has none. FUA is the
FUA bit where the unit obeys it (DPOFUA), else the write and then a SYNCHRONIZE CACHE. Whenever the mode may have changed, cache is assumed
and FUA is not until the mode page has been read again: SYNCHRONIZE CACHE too often costs time, too seldom costs data.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import trio

from isblk.block import mapping, probe
from isblk.block.command import Command, ModeSense, Synchronize, Transfer, WriteSame
from isblk.block.flush import Flushes
from isblk.block.request import Geometry, Op, Request
from isblk.block.series import Series, pieces
from isblk.errors import PathLost, ProtocolError, RequestFailed, RequestInvalid, TaskAborted, UsageError
from isblk.scsi import cdb
from isblk.scsi.data import Mode
from isblk.scsi.lun_number import lun_text
from isblk.scsi.sense import Attention, Verdict

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE

log: Final = logging.getLogger(__name__)

LARGEST_TRANSFER: Final = 8 << 20
"""Bytes of one READ or WRITE where the unit reports no limit or a higher one: larger gains nothing and holds up what is behind it."""
ALONE: Final = 512 << 10
"""Bytes of one WRITE where the session has nothing else to do: a longer one goes as several, so that the target asks for the data of one
(R2T) while that of another is on its way. (A buffered writer of 1 MiB at a time: 541 MB/s became 597. Where others are on their way
anyway, more commands only cost: 1129 MB/s at depth 8 became 1019.)"""
LARGEST_WRITE_SAME: Final = 0x7FFFFF
"""Blocks of one WRITE SAME where the unit reports no limit (as Linux does)."""
LARGEST_UNMAP: Final = 0xFFFFFFFF
"""Blocks of one UNMAP descriptor."""
ZEROES: Final = 1 << 20
"""Bytes of zeroes written at once where WRITE SAME is unknown."""

# How loud each attention is; those that are routine (every new nexus, a controller that moves on) are not worth an administrator's night.
_LEVELS: Final = {
    Attention.CAPACITY_CHANGED: logging.WARNING,
    Attention.IDENTITY_CHANGED: logging.WARNING,
    Attention.MEDIUM_CHANGED: logging.WARNING,
    Attention.SPACE_LOW: logging.WARNING,
    Attention.WRITE_LOST: logging.ERROR,
    Attention.POWER_ON: logging.WARNING,
}
_MODE_UNSURE: Final = (Attention.MODE_CHANGED, Attention.RESET, Attention.POWER_ON)  # a reset brings back the saved mode


class LogicalUnit:
    """A disk behind one session. `attentions` collects what the unit announced since it was probed; whoever acts on one removes it.

    `splits`: a long WRITE may go as several commands (ALONE), which somebody who counts commands would not expect. Raises UsageError for a
    unit that is no usable disk (Description.refusal).
    """

    def __init__(self, link: probe.Link, description: probe.Description, splits: bool = True) -> None:
        if description.refusal is not None:
            raise UsageError(description.refusal)
        self.link = link
        self._submit_task = link.submit
        self.lun = description.lun
        self.attentions: set[Attention] = set()
        self.retries = 0
        self.on_attention: Callable[[Attention], None] | None = None
        self.on_full: Callable[[], None] | None = None
        self._flushes = Flushes(self._synchronize)
        self._alone = ALONE if splits else LARGEST_TRANSFER
        self._write_lost: str | None = None
        self._power_ons = 0
        self._mode_being_read = False
        self._mode_stale = False
        self._zero_ways = _zero_ways(description)
        self._starters = (self._read_in_pieces, self._write, self._flush, self._trim, self._zero)  # in the order of Op
        self._describe(description)
        link.hearers[description.lun] = self.attention

    def _describe(self, description: probe.Description) -> None:
        """Everything that follows from the description, worked out once; the hot path reads it."""
        self.description = description
        self._geometry = probe.geometry(description)
        block = description.block_size
        blocks = self._geometry.size // block
        most = max(1, min(description.limits.max_transfer or LARGEST_TRANSFER, LARGEST_TRANSFER // block))
        self._shift = block.bit_length() - 1
        self._most_bytes = most * block
        self._pack, self._read_opcode, self._write_opcode = cdb.transfers(blocks, most)
        self._sync_cdb = cdb.synchronize_cache_10() if blocks - 1 <= cdb.LAST_LBA_10 else cdb.synchronize_cache_16()
        self._fua_flag = cdb.FUA if description.mode.fua else 0
        self._fua_is_flush = self._geometry.write_cache and not description.mode.fua

    @property
    def geometry(self) -> Geometry:
        """The unit as it is now; a new object after `refresh` and after its mode changed."""
        return self._geometry

    def submit(self, request: Request) -> None:
        """Queue one request of whole blocks. Hot for a READ, or a WRITE without FUA, that is one command."""
        op, length = request.op, request.length
        if op > _WRITE or not 0 < length <= self._most_bytes or (op is _WRITE and (request.fua or length > self._alone)):
            self._starters[op](request)
            return
        shift = self._shift
        if op is _READ:
            command = self._pack(self._read_opcode, 0, request.offset >> shift, length >> shift)
            self._submit_task(Transfer(self, command, request, request.data))
        else:
            command = self._pack(self._write_opcode, 0, request.offset >> shift, length >> shift)
            self._submit_task(Transfer(self, command, request, None, request.data))

    def kick(self) -> None:
        """End of a batch: send what was queued."""
        self.link.kick()

    def _write(self, request: Request) -> None:
        """A WRITE with FUA, or one that is long, or empty."""
        most = self._most_bytes
        if request.length > self._alone and not self.link.tasks():
            most = min(most, self._alone)
        if request.fua and self._fua_is_flush:
            self._then_flush(request)
        elif 0 < request.length <= most:
            flags = self._fua_flag if request.fua else 0
            command = self._pack(self._write_opcode, flags, request.offset >> self._shift, request.length >> self._shift)
            self._submit_task(Transfer(self, command, request, None, request.data))
        else:
            self._in_pieces(request, most)

    def _read_in_pieces(self, request: Request) -> None:
        self._in_pieces(request, self._most_bytes)

    def _in_pieces(self, request: Request, most: int) -> None:
        Series(request, pieces(request, most), self.submit, self.kick).start()

    def _then_flush(self, request: Request) -> None:
        """FUA for a unit or an operation without the bit: first the change, then the cache, if that was one cache all the time."""
        before = self._power_ons

        def done(change: Request) -> None:
            if change.error is not None:
                request.finish(change.error)
            else:
                self._flush_since(before, request)

        self.submit(Request(request.op, request.offset, request.length, request.data, done=done))

    def _lost_since(self, before: int) -> Exception | None:
        """Why a SYNCHRONIZE CACHE that succeeded says nothing: there was a power-on on the way, so what it should have covered may be lost.

        TaskAborted, for whoever asked has to do it once more: the change too, where it was FUA's.
        """
        if before == self._power_ons:
            return None
        return TaskAborted(f"LUN {lun_text(self.lun)} was powered on while its cache was synchronized")

    def _flush(self, request: Request) -> None:
        self._flush_since(self._power_ons, request)  # Of now: the SYNCHRONIZE CACHE that serves it may be sent later.

    def _flush_since(self, before: int, request: Request) -> None:
        """A flush that says nothing when there has been a power-on since `before`."""
        if self._geometry.write_cache:
            self._flushes.submit(Request(Op.FLUSH, done=lambda flush: request.finish(flush.error or self._lost_since(before))))
        else:
            request.finish(self.write_lost() or self._lost_since(before))

    def _synchronize(self, request: Request) -> None:
        self.link.submit(Synchronize(self, self._sync_cdb, request))
        self.kick()

    def _trim(self, request: Request) -> None:
        """UNMAP, or WRITE SAME with UNMAP where that is what the unit has; only whole granules, the unit may ignore less."""
        provisioning, limits = self.description.provisioning, self.description.limits
        if provisioning.unmap:
            start, most = self._unmap, limits.max_unmap_blocks or LARGEST_UNMAP
        elif provisioning.write_same_16_unmap:
            start, most = self._write_same_unmap, limits.max_write_same or LARGEST_WRITE_SAME
        else:
            request.finish(RequestInvalid(f"LUN {lun_text(self.lun)} cannot deallocate blocks", errno.EOPNOTSUPP))
            return
        Series(request, self._granules(request, most), start, self.kick).start()

    def _granules(self, request: Request, most: int) -> Iterator[Request]:
        """The whole granules of a range in parts of at most `most` blocks; a part ends at a granule's end where that is possible."""
        granularity, alignment = max(1, self.description.limits.unmap_granularity), self.description.limits.unmap_alignment
        first, end = request.offset >> self._shift, (request.offset + request.length) >> self._shift
        first = -((alignment - first) // granularity) * granularity + alignment
        end = (end - alignment) // granularity * granularity + alignment
        most = min(most, LARGEST_UNMAP)
        step = most - most % granularity or most
        for lba in range(first, end, step):
            yield Request(Op.TRIM, lba << self._shift, min(step, end - lba) << self._shift)

    def _unmap(self, part: Request) -> None:
        """One descriptor a command: the limit on blocks is one for the whole command, so more of them would not carry more."""
        parameters = cdb.unmap_parameters([(part.offset >> self._shift, part.length >> self._shift)])
        self.link.submit(Command(self, cdb.unmap(len(parameters)), part, None, memoryview(parameters)))

    def _write_same_unmap(self, part: Request) -> None:
        command = cdb.write_same_16(part.offset >> self._shift, part.length >> self._shift, unmap=True)
        self.link.submit(Command(self, command, part, None, memoryview(bytes(self.description.block_size))))

    def _zero(self, request: Request) -> None:
        if request.fua and self._geometry.write_cache:  # WRITE SAME has no FUA bit
            self._then_flush(request)
            return
        most = min(self.description.limits.max_write_same or LARGEST_WRITE_SAME, cdb.MAX_BLOCKS_16)
        Series(request, pieces(request, most << self._shift), self._zero_part, self.kick).start()

    def _zero_part(self, part: Request) -> None:
        if self._zero_ways:
            command = cdb.write_same_16(part.offset >> self._shift, part.length >> self._shift, unmap=self._zero_ways[0])
            self.link.submit(WriteSame(self, command, part, None, memoryview(bytes(self.description.block_size))))
        else:
            zeroes = memoryview(bytes(min(ZEROES, part.length)))
            writes = (
                Request(Op.WRITE, part.offset + at, min(ZEROES, part.length - at), zeroes[: part.length - at])
                for at in range(0, part.length, ZEROES)
            )
            Series(part, writes, self.submit, self.kick).start()

    def write_same_refused(self, command: Command, forever: bool) -> None:
        """Remember what the unit does not know, and zero this part in the next way: without UNMAP, at last by writing."""
        unmap = bool(command.cdb[1] & cdb.WRITE_SAME_UNMAP)
        self._zero_ways = [] if forever else [way for way in self._zero_ways if way is not unmap]
        self._zero_part(command.request)
        self.kick()

    def full(self) -> None:
        """The unit has said TASK SET FULL: whoever sends to it should send less, and no WRITE goes as several commands any more."""
        self._alone = LARGEST_TRANSFER
        if self.on_full is not None:
            self.on_full()

    def attention(self, judged: Verdict, command: Command | None = None) -> None:
        """Note what the unit announced. Capacity and identity need a decision from above; the mode is read again here."""
        kind = judged.attention
        if kind is None:
            raise AssertionError(f"{judged} announces nothing")
        about = {"lun": lun_text(self.lun), "data_loss": kind in (Attention.WRITE_LOST, Attention.POWER_ON)}
        log.log(_LEVELS.get(kind, logging.INFO), "LUN %s: %s", lun_text(self.lun), judged.reason, extra=about)
        self.attentions.add(kind)
        if kind is Attention.WRITE_LOST:
            self._write_lost = judged.reason
        elif kind in _MODE_UNSURE:
            if kind is Attention.POWER_ON:
                self._powered_on(command)
            self._read_mode()
        if self.on_attention is not None:
            self.on_attention(kind)

    def _powered_on(self, command: Command | None) -> None:
        """Reads on their way may see what is left without the cache: they are not believed, nor is a flush (`_lost_since`)."""
        self._power_ons += 1
        for task in (command, *self.link.tasks()):
            if isinstance(task, Transfer) and task.unit is self and task.request.op is Op.READ:
                _distrust(task.request, f"LUN {lun_text(self.lun)} was powered on while it was read")

    def write_lost(self) -> Exception | None:
        """The error of the first FLUSH after the unit confessed that an acknowledged write failed; None ever after."""
        reason, self._write_lost = self._write_lost, None
        return None if reason is None else RequestFailed(f"LUN {lun_text(self.lun)} lost a write it had acknowledged: {reason}")

    def _read_mode(self) -> None:
        """Ask for the mode; one question at a time, or a unit that never stops announcing changes would be asked without end."""
        self._set_mode(replace(self.description.mode, fua=False, write_cache=None))
        self._mode_stale = True
        question = self.description.mode_sense
        if question is None or self._mode_being_read:
            return
        self._mode_being_read = True
        answer = memoryview(bytearray(probe.mode_allocation(question)))
        self.mode_asked()
        self.link.submit(ModeSense(self, question, Request(Op.READ), answer))
        self.kick()

    def mode_asked(self) -> None:
        """MODE SENSE is about to be sent: its answer will know of everything announced so far."""
        self._mode_stale = False

    def mode_came(self, answer: bytes | None) -> None:
        """The mode as it is now; ask once more when something was announced meanwhile. Nonsense teaches nothing."""
        self._mode_being_read = False
        question = self.description.mode_sense
        if answer is None or question is None:
            return
        if self._mode_stale:
            self._read_mode()
            return
        try:
            self._set_mode(probe.parse_mode(question, answer))
        except ProtocolError as error:
            log.info("LUN %s: %s", lun_text(self.lun), error)

    def _set_mode(self, mode: Mode) -> None:
        if mode != self.description.mode:
            self._describe(replace(self.description, mode=mode))

    async def refresh(self) -> Geometry:
        """Take up a changed capacity. Raises CommandFailed, PathLost, ProtocolError; RequestInvalid when the blocks themselves changed."""
        capacity = await probe.read_capacity(self.link, self.lun)
        if capacity.block_length != self.description.block_size:
            changed = f"{capacity.block_length} bytes instead of {self.description.block_size}"
            raise RequestInvalid(f"LUN {lun_text(self.lun)} now has blocks of {changed}; mount it again")
        self.attentions.discard(Attention.CAPACITY_CHANGED)
        self._describe(replace(self.description, capacity=capacity))
        return self._geometry

    async def listen(self) -> None:
        """TEST UNIT READY (SPC-4 6.47): what the unit has to announce to this session is announced before this returns. Raises PathLost."""
        finished = trio.Event()
        request = Request(Op.READ, done=lambda _: finished.set())
        self.link.submit(Command(self, cdb.test_unit_ready(), request))
        self.kick()
        await finished.wait()
        if isinstance(request.error, PathLost):
            raise request.error

    async def lba_status(self, offset: int, length: int) -> list[mapping.Extent]:
        """Provisioning of `length` bytes at `offset` (whole blocks), a hint. Raises CommandFailed, PathLost, ProtocolError."""
        return await mapping.block_status(self.link, self.description, offset, length)

    def __repr__(self) -> str:
        return f"<LogicalUnit {lun_text(self.lun)} {self._geometry.size} bytes>"


def _distrust(request: Request, why: str) -> None:
    """Let a request that is on its way end as aborted, unless it ends with another error."""
    request.error = request.error or TaskAborted(why)


def _zero_ways(description: probe.Description) -> list[bool]:
    """WRITE SAME with UNMAP and without, the better first. With UNMAP only where deallocated blocks read as zeroes (LBPRZ)."""
    provisioning, capacity = description.provisioning, description.capacity
    reads_zero = provisioning.reads_zero or (capacity is not None and capacity.reads_zero)
    return [True, False] if provisioning.write_same_16_unmap and reads_zero else [False]
