"""A set of byte ranges: which bytes of a cache count."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Extents:
    """A set of byte ranges [start, end), sorted, merged where they touch. `size` is the number of bytes in it."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, end: int) -> None:
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def remove(self, start: int, end: int) -> None:
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        kept = []
        if self._starts[first] < start:
            kept.append((self._starts[first], start))
        if self._ends[last - 1] > end:
            kept.append((end, self._ends[last - 1]))
        self._replace(first, last, kept)

    def _replace(self, first: int, last: int, ranges: list[tuple[int, int]]) -> None:
        self.size -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self.size += sum(end - start for start, end in ranges)
        self._starts[first:last] = [start for start, _ in ranges]
        self._ends[first:last] = [end for _, end in ranges]

    def overlapping(self, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges within [start, end), cut to it."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        return [(max(start, self._starts[i]), min(end, self._ends[i])) for i in range(first, last)]

    def after(self, offset: int) -> tuple[int, int] | None:
        """The first range that ends behind `offset`, or None."""
        i = bisect_right(self._ends, offset)
        return (self._starts[i], self._ends[i]) if i < len(self._ends) else None

    def clear(self) -> None:
        self._replace(0, len(self._starts), [])
