"""How many requests that nobody waits for may be in flight beside those of readers: as many as these hardly feel.

Pure: it is told of each small request of a reader how long it took, with the time as an argument. As LEDBAT++ does
(draft-irtf-iccrg-ledbat-plus-plus): what makes them slower than they are with one of the others in the way is taken
back, a third at a time, and tried again one by one; how fast they are with one is measured anew now and then. While
nobody reads there is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL_BYTES = 1024**2
"""The time of larger requests tells of the link's width more than of what stands in the way."""
WINDOW = 16
"""Requests that are judged together: the mean of fewer is chance."""
WINDOW_S = 1.0
FEWEST = 4
"""Requests that are judged together where WINDOW do not come in WINDOW_S."""
TOLERATED = 1.25
"""Of the mean with one. The bar is 1.5 for the slowest of a hundred, which feel it more than the mean does."""
BACK_OFF = 0.67
MEASURE_EVERY_S = 10.0
WINDOWS_WITH_ONE = 3
"""The last of them is measured: in the first ones those are still in flight that were let in before."""
QUIET_S = 1.0
"""Without a request of a reader for so long, nobody reads."""


@dataclass(slots=True)
class Background:
    """How many of at most so many requests may be in flight (`allowed`)."""

    _allowed: int = 1
    _afterwards: int = 1
    """How many were allowed before it is measured with one, and will be."""
    _with_one: int = 0
    """Windows to come in which one is allowed."""
    _best_s: float = 0.0
    """The mean with one."""
    _measured_s: float = 0.0
    _sum_s: float = 0.0
    _count: int = 0
    _began_s: float = 0.0
    _last_s: float = float("-inf")

    def allowed(self, most: int, now_s: float) -> int:
        """How many, from 1 to `most`."""
        return most if now_s - self._last_s > QUIET_S else min(self._allowed, most)

    def observe(self, took_s: float, most: int, now_s: float) -> None:
        """A small request of a reader has ended, while at most `most` of the others may be in flight."""
        if now_s - self._last_s > QUIET_S:
            self._measure(1)
            self._begin(now_s)
        self._last_s = now_s
        self._sum_s += took_s
        self._count += 1
        if self._count == WINDOW or (self._count >= FEWEST and now_s - self._began_s >= WINDOW_S):
            self._judge(self._sum_s / self._count, most, now_s)
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._sum_s, self._count, self._began_s = 0.0, 0, now_s

    def _measure(self, afterwards: int) -> None:
        self._allowed, self._afterwards, self._with_one = 1, afterwards, WINDOWS_WITH_ONE

    def _judge(self, mean_s: float, most: int, now_s: float) -> None:
        if self._with_one:
            self._with_one -= 1
            if not self._with_one:
                self._best_s, self._measured_s, self._allowed = mean_s, now_s, self._afterwards
        elif now_s - self._measured_s > MEASURE_EVERY_S:
            self._measure(self._allowed)
        elif mean_s > TOLERATED * self._best_s:
            self._allowed = max(1, int(self._allowed * BACK_OFF))
        else:
            self._allowed = min(most, self._allowed + 1)
