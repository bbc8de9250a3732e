"""Counters that tell what happened. Names are stable: `status`, `report` and the metrics endpoint show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Stats:
    """Monotonic counters and current gauges, by dotted name.

    One instance a mount. Adding is cheap enough for the hit path and is done from the main thread or a worker
    alike: each name is only ever written by one thread, so that no update is lost.
    """

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count `amount` more of `name`."""
        self._values[name] += amount

    def get(self, name: str) -> int:
        """The value of `name`; zero if it never happened."""
        return self._values[name]

    def snapshot(self) -> Mapping[str, int]:
        """All values now, sorted by name."""
        return dict(sorted(self._values.items()))
