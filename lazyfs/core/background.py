"""How many requests that nobody waits for may be in flight beside those of readers: as many as these hardly feel.

Pure: it is told of each small request of a reader how long it took, with the time as an argument. As LEDBAT++ does
(draft-irtf-iccrg-ledbat-plus-plus): what makes readers slower than they are with one of the others in the way is taken
back, a third at a time, and tried again one by one; how slow they are with one is measured anew now and then. It is
the slow ones among them that are looked at, for whoever loads a batch waits for the last of it, and their mean. While
nobody reads there is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL_BYTES = 1024**2
"""The time of larger requests tells of the link's width more than of what stands in the way."""
SLOW = 1.5
"""A request is slow that takes so much longer than the slowest with one of the others in the way, but for one."""
TOLERATED, WINDOW = 1.25, 32
"""Of their mean with one, of so many requests at least: where CPU is what is short, all become slower alike."""
STEP, STEP_S = 256, 4.0
"""After so many requests, or so long, of which not two were slow, one more is tried: a hundredth may be slow."""
FEWEST = 4
"""Requests that are judged together where STEP do not come in STEP_S."""
MEASURED = 64
"""Requests from which it is learnt how slow they are with one."""
SETTLING, SETTLING_S = 16, 0.5
"""Requests that are not judged after a change, or so long: those in flight were let in before."""
BACK_OFF = 0.67
MEASURE_EVERY_S = 15.0
QUIET_S = 1.0
"""Without a request of a reader for so long, nobody reads."""


@dataclass(slots=True)
class Background:
    """How many of at most so many requests may be in flight (`allowed`)."""

    _allowed: int = 1
    _afterwards: int = 1
    """How many were allowed before it is measured with one, and will be."""
    _is_measuring: bool = True
    _slowest_s: tuple[float, float] = (0.0, 0.0)
    """With one: the slowest, and the one before."""
    _mean_s: float = 0.0
    """With one."""
    _measured_s: float = 0.0
    _slow: int = 0
    _judged: int = 0
    _sum_s: float = 0.0
    """Of those that are judged, or learnt from."""
    _count: int = 0
    _began_s: float = 0.0
    _last_s: float = float("-inf")

    def allowed(self, most: int, now_s: float) -> int:
        """How many, from 1 to `most`."""
        return min(self._allowed, most) if self.is_beside(now_s) else most

    def is_beside(self, now_s: float) -> bool:
        """Whether somebody reads."""
        return now_s - self._last_s <= QUIET_S

    def observe(self, took_s: float, most: int, now_s: float) -> None:
        """A small request of a reader has ended, while at most `most` of the others may be in flight."""
        if not self.is_beside(now_s):
            self._measure(1, now_s)
        self._last_s = now_s
        self._count += 1
        if self._count <= SETTLING and now_s - self._began_s < SETTLING_S:
            return
        self._judged += 1
        self._sum_s += took_s
        if self._is_measuring:
            self._learn(took_s, now_s)
        else:
            self._judge(took_s, most, now_s)

    def _measure(self, afterwards: int, now_s: float) -> None:
        self._is_measuring, self._afterwards, self._slowest_s = True, afterwards, (0.0, 0.0)
        self._change(1, now_s, settled=0)

    def _change(self, allowed: int, now_s: float, *, settled: int = SETTLING) -> None:
        self._allowed, self._slow, self._count, self._began_s = allowed, 0, settled, now_s
        self._judged, self._sum_s = 0, 0.0

    def _is_over(self, requests: int, now_s: float) -> bool:
        return self._count >= SETTLING + requests or (self._count >= FEWEST and now_s - self._began_s >= STEP_S)

    def _learn(self, took_s: float, now_s: float) -> None:
        slowest, second = self._slowest_s
        self._slowest_s = (max(slowest, took_s), max(second, min(slowest, took_s)))
        if self._is_over(MEASURED, now_s):
            self._is_measuring, self._measured_s, self._mean_s = False, now_s, self._sum_s / self._judged
            self._change(self._afterwards, now_s)

    def _judge(self, took_s: float, most: int, now_s: float) -> None:
        self._slow += took_s > SLOW * self._slowest_s[1]
        mean_s = self._sum_s / self._judged
        is_felt = self._slow >= 2 or (self._judged >= WINDOW and mean_s > TOLERATED * self._mean_s)
        if not (is_felt or self._is_over(STEP, now_s)):
            return
        allowed = max(1, int(self._allowed * BACK_OFF)) if is_felt else min(most, self._allowed + 1)
        if now_s - self._measured_s > MEASURE_EVERY_S:
            self._measure(allowed, now_s)
        else:
            self._change(allowed, now_s, settled=0 if is_felt else SETTLING)
