"""The root logger, put back after code that sets up the log of its whole process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_logging() -> Iterator[None]:
    """Handlers and levels as they were before the block."""
    root, trace = logging.getLogger(), logging.getLogger("isblk.trace")
    handlers, level, trace_level = root.handlers[:], root.level, trace.level
    try:
        yield
    finally:
        for added in [handler for handler in root.handlers if handler not in handlers]:
            added.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        trace.setLevel(trace_level)
