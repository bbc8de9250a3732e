"""Counters that tell what happened. Names are stable: `status`, `report` and the metrics endpoint show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lazyfs.core.histogram import Histogram


class Stats:
    """Monotonic counters, current gauges and histograms of durations, by dotted name.

    One instance a mount. Adding is cheap enough for the hit path and is done from the main thread or a worker
    alike: each name is only ever written by one thread, so that no update is lost.
    """

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()
        self._histograms: dict[str, Histogram] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Count `amount` more of `name`."""
        self._values[name] += amount

    def get(self, name: str) -> int:
        """The value of `name`; zero if it never happened."""
        return self._values[name]

    def snapshot(self) -> Mapping[str, int]:
        """All values now, sorted by name."""
        return dict(sorted(self._values.items()))

    def observe(self, name: str, duration_ns: int) -> None:
        """Count one more duration under `name`. From the main thread only."""
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = Histogram()
        histogram.add(duration_ns)

    def histograms(self, prefix: str) -> Mapping[str, Histogram]:
        """Copies of those whose names begin with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): histogram.since(None)
            for name, histogram in sorted(self._histograms.items())
            if name.startswith(prefix)
        }
