"""A process that the kernel writes memory out through: it must not wait for that itself, be swapped out, or be the one that is killed.

Dirty pages of a block device served in user space can be freed only when its daemon writes them. A daemon that has to wait for free memory
in order to do so, waits for itself (prctl(2), PR_SET_IO_FLUSHER; mlockall(2); proc_pid_oom_score_adj(5)).
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path

PR_SET_IO_FLUSHER = 57
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
NEVER = "-1000"
"""OOM_SCORE_ADJ_MIN: never chosen by the kernel's out-of-memory killer."""

_log = logging.getLogger(__name__)


def stand_apart() -> None:
    """Let this process be one that memory is written out through; what the kernel does not allow is logged, and the rest done.

    The main thread's allocations start no writing of dirty pages; pages are locked as they are touched, so that what is never used costs
    nothing (MCL_ONFAULT, Linux 4.4).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _try("its memory waits for no writing", lambda: _check(libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)))
    _try("it is not swapped out", lambda: _check(libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)))
    _try("it is not killed for want of memory", lambda: OOM_SCORE_ADJ.write_text(NEVER))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _try(what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        _log.info("it cannot be seen to that %s: %s", what, error.strerror)
