"""The last lines that a daemon logged, kept in its memory: for a bug report, whatever became of the log itself."""

from __future__ import annotations

import logging
from collections import deque

LINES = 400
LONGEST = 500
"""Characters of a line that are kept."""


class Recent(logging.Handler):
    """Remembers what was logged at INFO or worse, whatever level the log itself has."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._lines.append(self.format(record)[:LONGEST])

    def lines(self) -> list[str]:
        """The oldest first."""
        return list(self._lines)


def lines() -> list[str]:
    """What this process remembers; nothing where its log was not set up to."""
    return [line for handler in logging.getLogger().handlers if isinstance(handler, Recent) for line in handler.lines()]
