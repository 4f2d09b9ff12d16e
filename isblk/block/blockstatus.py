"""What a disk over several paths tells of its provisioning: GET LBA STATUS over a path that is up, as a hint (mapping.py)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from isblk.block.choose import PathState
from isblk.block.mapping import Extent, block_status
from isblk.block.multipath import Multipath
from isblk.block.stack import Disk
from isblk.errors import IsblkError
from isblk.scsi.data import Provisioning

_log = logging.getLogger(__name__)


def lba_status(disk: Disk) -> Callable[[int, int], Awaitable[Sequence[Extent]]] | None:
    """How to ask which bytes are provisioned, by offset and length in whole blocks. None for a unit that is not thin."""
    device, found = disk.device, disk.description
    if not isinstance(device, Multipath) or found.capacity is None or not found.capacity.provisioning_enabled:
        return None

    async def ask(offset: int, length: int) -> Sequence[Extent]:
        """Whole blocks. A hint: what cannot be known counts as mapped, as it does while there is no path or old writes are on their way."""
        for path in list(device.live):
            if path.unit is None or path.state is not PathState.UP:  # While it is fenced, acknowledged writes may be missing.
                continue
            try:
                return await block_status(path.unit.link, found, offset, length)
            except IsblkError as error:
                _log.info("%s: the provisioning status is not known: %s", device.name, error)
        return [Extent(offset, length, Provisioning.MAPPED)]

    return ask
