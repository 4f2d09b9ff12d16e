"""Sizes for people."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Bytes in the largest unit that shows them with three digits: 512 B, 64.0 MiB, 1.50 TiB."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    if unit == "B":
        return f"{size} B"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
