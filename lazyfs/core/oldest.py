"""What goes when room is needed: the oldest first, and no more than it takes.

Pure. Holds what would go if nothing else came, and of that not more than a bound.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class OldestFirst(Generic[T]):
    """Candidates for `need` bytes, at most `limit` of them."""

    def __init__(self, *, need: int, limit: int) -> None:
        self._need = need
        self._limit = limit
        self._heap: list[tuple[float, int, int, T]] = []
        """The newest of them on top."""
        self._added = 0
        self.bytes = 0
        """Of all that are held."""
        self.has_dropped = False
        """Whether the bound has kept any out that would be needed."""

    def add(self, stored_s: float, size: int, item: T) -> None:
        """One more, of `size` bytes, here since `stored_s`."""
        self._added += 1
        heapq.heappush(self._heap, (-stored_s, -self._added, size, item))
        self.bytes += size
        while self._heap and self.bytes - self._heap[0][2] >= self._need:
            self.bytes -= heapq.heappop(self._heap)[2]
        while len(self._heap) > self._limit:
            self.bytes -= heapq.heappop(self._heap)[2]
            self.has_dropped = True

    def chosen(self) -> list[T]:
        """Those that go, oldest first; among equals in the order in which they came."""
        return [item for _, _, _, item in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]
