"""Kicks held back while more requests are there to be read, so that one sendmsg carries several of them (block.request.Device.kick).

pyfuse3 takes one request in two passes of trio's loop, so a kick at the end of each pass would be one for each request: measured on a null
LUN at depth 32, that costs 50 us of CPU a request, and a kick for eight of them 39 us. Whether more are there is asked from the kernel
(poll(2) on /dev/fuse). It may turn out to be something that never becomes a request (an interrupt, a forget), so a kick is never later than
LATEST, whatever comes. At depth 1 nothing waits: the kernel has nothing more, and the kick is at once.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from isblk.block.request import Device

MOST = 8
"""Requests in a batch: with more the target idles at the start of a burst, which took back at 16 what it saved."""

LATEST = 0.001
"""Seconds that a kick may be late."""


class Batch:
    """Devices that have been given requests and no kick yet."""

    def __init__(self, more: Callable[[], bool] | None = None) -> None:
        self._more = more
        self._devices: set[Device] = set()
        self._count = 0
        self._waiting = trio.Event()

    def submitted(self, device: Device, last: bool = False) -> None:
        """A request was submitted to `device`: kick now, unless another is there to be read and (not `last`) somebody to read it."""
        self._devices.add(device)
        self._count += 1
        if last or self._more is None or self._count >= MOST or not self._more():
            self.send()
        else:
            self._waiting.set()

    def send(self) -> None:
        """Kick what waits."""
        devices, self._devices, self._count = self._devices, set(), 0
        for device in devices:
            device.kick()

    async def run(self) -> None:
        """See that nothing waits longer than LATEST; once cancelled nothing waits at all."""
        try:
            while True:
                await self._waiting.wait()
                await trio.sleep(LATEST)
                self._waiting = trio.Event()
                self.send()
        finally:
            self._more = None
            self.send()
