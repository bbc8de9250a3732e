"""How fast the bucket gave its bytes: on average while anything was asked of it, and in the best second.

Pure; `now_s` comes as an argument and never goes back. A request's bytes are spread evenly over the time that it took,
so that many that end together make no second look better than it was.
"""

from __future__ import annotations

_KEPT = 256
"""Seconds that may still get something: more than a request may take."""


class Throughput:
    """Of all range GETs of a mount, whoever they were for."""

    __slots__ = ("_best", "_changed_s", "_in_flight", "_seconds", "busy_s", "bytes")

    def __init__(self, *, in_flight: int = 0, now_s: float = 0.0) -> None:
        self.bytes = 0
        self.busy_s = 0.0
        """For how long at least one was on its way, when the last one began or ended."""
        self._in_flight = in_flight
        self._changed_s = now_s
        self._seconds: dict[int, float] = {}
        self._best = 0.0

    def restarted(self, now_s: float) -> Throughput:
        """One that knows nothing but what is on its way now."""
        return Throughput(in_flight=self._in_flight, now_s=now_s)

    def began(self, now_s: float) -> None:
        """A request is sent."""
        self._pass(now_s)
        self._in_flight += 1

    def ended(self, began_s: float, size: int, now_s: float) -> None:
        """It has brought `size` bytes, none if it failed."""
        self._pass(now_s)
        self._in_flight -= 1
        self.bytes += size
        if size:
            self._spread(began_s, size, now_s)

    @property
    def mean(self) -> float:
        """Bytes a second while anything was on its way."""
        return self.bytes / self.busy_s if self.busy_s > 0 else 0.0

    @property
    def best(self) -> float:
        """Bytes in the best second, or the mean if that is more: of what took less than a second."""
        return max(self._best, *self._seconds.values(), self.mean) if self._seconds else max(self._best, self.mean)

    def _pass(self, now_s: float) -> None:
        if self._in_flight:
            self.busy_s += now_s - self._changed_s
        self._changed_s = now_s

    def _spread(self, began_s: float, size: int, now_s: float) -> None:
        first, last = int(began_s), int(now_s)
        if first == last or last - first >= _KEPT:
            self._seconds[last] = self._seconds.get(last, 0.0) + size
        else:
            rate = size / (now_s - began_s)
            for second in range(first, last + 1):
                share = rate * (min(second + 1, now_s) - max(second, began_s))
                self._seconds[second] = self._seconds.get(second, 0.0) + share
        if len(self._seconds) > 2 * _KEPT:
            for second in sorted(self._seconds)[:-_KEPT]:
                self._best = max(self._best, self._seconds.pop(second))
