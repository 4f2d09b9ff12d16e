"""Text for people: tables, and sizes (sizes.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isblk.sizes import size_text

__all__ = ["size_text", "table"]


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns under headings, made by tabulate; every cell as text, so that nothing is rounded or aligned as a number."""
    from tabulate import tabulate

    return tabulate([list(map(str, row)) for row in rows], headers=list(headings), tablefmt="plain", disable_numparse=True)
