"""Links to a server, simulated on a clock of their own: latency, a rate per connection, a capacity that all share.

Transfers share the capacity equally, so one number, the bytes that each has been served since the beginning, tells when
each of them ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from lazyfs.core.backoff import Backoff
from lazyfs.core.concurrency import Concurrency

MiB = 1024**2


@dataclass
class Link:
    """A way to a server.

    capacity, per_connection  bytes per second
    noise                     how far the capacity may be off, anew each second
    jitter                    how far latency and size of each request may be: without any, all would march in step
    refuses                   the server's mind: of the time, the requests in service and a source of chance
    """

    capacity: float
    per_connection: float = 90e6
    latency_s: float = 0.025
    size: int = 4 * MiB
    noise: float = 0.0
    jitter: float = 0.1
    refuses: Callable[[float, int, Random], bool] = lambda _now_s, _in_service, _random: False
    seed: int = 1


@dataclass
class Second:
    """What happened in one second."""

    limit: int = 0
    bytes: int = 0
    answers: int = 0
    refusals: int = 0


@dataclass
class Client:
    """Somebody who always has more to ask for, as far as `concurrency` lets him, and backs off as `Retrying` does."""

    link: Link
    concurrency: Concurrency
    backoff: Backoff = field(default_factory=lambda: Backoff(deadline_s=1e9))

    def run(self, seconds: int, *, busy: Callable[[float], bool] = lambda _now_s: True) -> list[Second]:
        """What each second was like. While not `busy` nothing new is asked for."""
        self._random, self._now_s, self._in_flight, self._order = Random(self.link.seed), 0.0, 0, 0
        self._served, self._capacity = 0.0, self.link.capacity
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._transfers: list[tuple[float, int, int]] = []
        self._in_service = 0
        self._seconds = [Second() for _ in range(seconds + 1)]
        self._busy = busy
        for second in range(seconds):
            self._at(float(second), self._tick)
        while self._events and self._now_s < seconds:
            self._next()
        return self._seconds[:seconds]

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when_s, self._order, act))

    def _rate(self) -> float:
        return min(self.link.per_connection, self._capacity / max(1, len(self._transfers)))

    def _next(self) -> None:
        """Go on to whatever comes first, the end of a transfer or an event."""
        event_s = self._events[0][0]
        ends_s = self._now_s + (self._transfers[0][0] - self._served) / self._rate() if self._transfers else event_s + 1
        now_s = min(event_s, ends_s)
        self._served += (now_s - self._now_s) * self._rate()
        self._now_s = now_s
        if ends_s <= event_s:
            _, _, size = heapq.heappop(self._transfers)
            self._in_service -= 1
            self._in_flight -= 1
            self._seconds[int(now_s)].bytes += size
            self._seconds[int(now_s)].answers += 1
            self.concurrency.observe_finished(size, now_s, is_wanted=self._busy(now_s))
        else:
            heapq.heappop(self._events)[2]()
        self._fill()

    def _tick(self) -> None:
        self._capacity = self.link.capacity * self._about(self.link.noise)
        self._seconds[int(self._now_s)].limit = self.concurrency.limit

    def _about(self, off: float) -> float:
        return 1 + off * (2 * self._random.random() - 1)

    def _fill(self) -> None:
        while self._in_flight < self.concurrency.limit and self._busy(self._now_s):
            self._in_flight += 1
            self._ask(1)

    def _ask(self, attempt: int) -> None:
        if self.link.refuses(self._now_s, self._in_service, self._random):
            self._at(self._now_s + self.link.latency_s, lambda: self._refused(attempt))
            return
        self._in_service += 1
        self._at(self._now_s + self.link.latency_s * self._about(self.link.jitter), self._begin)

    def _refused(self, attempt: int) -> None:
        self._seconds[int(self._now_s)].refusals += 1
        self.concurrency.observe_throttled(self._now_s)
        delay_s = self.backoff.delay_s(attempt, 0, self._random.random)
        assert delay_s is not None
        self._at(self._now_s + delay_s, lambda: self._ask(attempt + 1))

    def _begin(self) -> None:
        self._order += 1
        size = int(self.link.size * self._about(self.link.jitter))
        heapq.heappush(self._transfers, (self._served + size, self._order, size))
