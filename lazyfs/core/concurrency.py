"""How many requests may be in flight: as many as help, and fewer for a server that asks for it.

Pure: it is told of each request that ended and of each refusal, with the time as an argument; `limit` is the answer.

It tries one step up or down at a time, and keeps what the throughput confirms. A step is kept if the throughput changed
by at least WORTH of what the connections did: so it goes up while more connections bring more bytes, and down while
fewer bring as many. Whatever does not help is taken back, and the other direction is tried after a while by half the
step. A refusal (503 SlowDown) takes connections away at once; beyond the place of the last refusal it goes one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

START = 32
"""Fills 1.9 GB/s by requests of 4 MiB at 25 ms and 90 MB/s each, more than most links have."""
HIGHEST = 256
"""A link of 100 Gbit/s takes 205 such requests. Each holds a thread, which is made when it is needed, and its bytes."""
LOWEST = 4
"""However much a server refuses: with their backoff four requests are no burden, and demand must not stand still."""
CALM = 16
"""It never goes lower by itself: sixteen steps are one stream's window, and what is not measured may need them."""
INTERVAL_S = 0.5
"""The least that is measured: seven requests of 4 MiB one after the other."""
HOLD_S = 10.0
"""From a step that did not help, or a refusal, to the next try. A try costs some percent of an interval."""
WORTH = 0.4
"""Half of the requests more must bring a fifth of the bytes more."""
BIGGEST_STEP = 0.5
SMALLEST_STEP = 0.125
"""The throughput that a step this small cannot improve is within 5 % of the best."""
RETREAT = 0.8
"""What is left of the limit after a refusal."""
FULL = 0.75
"""An interval in which fewer of the requests left somebody waiting says nothing about the limit."""


@dataclass(slots=True)
class Concurrency:
    """The number of requests in flight; `lowest` and `highest` are never passed."""

    start: int = START
    lowest: int = LOWEST
    highest: int = HIGHEST
    limit: int = field(init=False)
    """How many requests may be in flight now."""
    _step: float = BIGGEST_STEP
    _is_upward: bool = True
    """The direction of the next try."""
    _trial: tuple[int, float] | None = None
    """Limit and bytes per second before the step that is being tried."""
    _hold_until_s: float = 0.0
    _refused_at: int | None = None
    """The limit at which the server refused last, until that many were in flight without a refusal."""
    _deaf_until_s: float = 0.0
    """Refusals until then are of requests that were sent before the last retreat."""
    _unmeasured: int = 0
    """Requests to end that may have begun under another limit."""
    _began_s: float | None = None
    _bytes: int = 0
    _ended: int = 0
    _wanted: int = 0
    _unwanted_run: int = 0
    """Requests in a row that left nobody waiting: when a burst ends, all that were in flight do."""

    def __post_init__(self) -> None:
        self.limit = self.start

    @classmethod
    def fixed(cls, limit: int) -> Concurrency:
        """One that never changes."""
        return cls(start=limit, lowest=limit, highest=limit)

    def observe_finished(self, size: int, now_s: float, *, is_wanted: bool) -> None:
        """A request has brought `size` bytes; `is_wanted` if somebody was waiting to begin one in its place."""
        if self._unmeasured > 0:
            self._unmeasured -= 1
            return
        if self._began_s is None:
            self._began_s = now_s
            return
        self._bytes += size
        self._ended += 1
        self._wanted += is_wanted
        self._unwanted_run = 0 if is_wanted else self._unwanted_run + 1
        if self._unwanted_run > self.limit // 2:
            self._give_up()
        elif self._ended >= self.limit and now_s - self._began_s >= INTERVAL_S:
            self._judge(self._bytes / (now_s - self._began_s), now_s)

    def observe_throttled(self, now_s: float) -> None:
        """The server has refused a request because there are too many."""
        if now_s < self._deaf_until_s:
            return
        self._refused_at = self.limit
        self._deaf_until_s = now_s + INTERVAL_S
        self._trial, self._is_upward, self._step = None, True, BIGGEST_STEP
        self._hold_until_s = now_s + HOLD_S
        self._change(max(self.lowest, int(self.limit * RETREAT)))

    def _judge(self, rate: float, now_s: float) -> None:
        """Decide by the throughput of an interval that has ended."""
        if self._wanted < FULL * self._ended:
            self._give_up()
            return
        if self._trial is not None:
            limit, rate_before = self._trial
            if rate < rate_before * (1 + WORTH * (self.limit / limit - 1)):
                self._take_back(limit, now_s)
                return
            self._keep(now_s)
        if now_s < self._hold_until_s:
            self._change(self.limit)
            return
        wanted = self._next()
        if wanted == self.limit:
            self._take_back(wanted, now_s)
            return
        self._trial = (self.limit, rate)
        self._change(wanted)

    def _keep(self, now_s: float) -> None:
        """The step that was tried is good. Go on, unless the next one would reach where the server refused."""
        self._trial = None
        self._step = min(2 * self._step, BIGGEST_STEP)
        if self._refused_at is not None and self.limit >= self._refused_at:
            self._refused_at = None
        elif self._refused_at == self.limit + 1:
            self._hold_until_s = now_s + HOLD_S

    def _take_back(self, limit: int, now_s: float) -> None:
        """Stay at `limit` for a while, then try the other direction more carefully."""
        self._trial = None
        self._is_upward = not self._is_upward
        self._step = max(self._step / 2, SMALLEST_STEP)
        self._hold_until_s = now_s + HOLD_S
        self._change(limit)

    def _give_up(self) -> None:
        """There was not enough to do to measure anything: as if nothing had been tried."""
        limit = self._trial[0] if self._trial is not None else self.limit
        self._trial = None
        self._change(limit)

    def _next(self) -> int:
        """One step from the limit, or the limit itself if there is nowhere to go."""
        if not self._is_upward:
            floor = min(self.limit, max(CALM, self.lowest))
            return max(floor, int(self.limit / (1 + self._step)))
        wanted = min(self.highest, self.limit + max(1, int(self.limit * self._step)))
        if self._refused_at is None:
            return wanted
        return min(wanted, max((self.limit + self._refused_at) // 2, self.limit + 1))

    def _change(self, limit: int) -> None:
        """Go on with `limit`, and measure from the moment when all that is in flight began under it."""
        self._unmeasured = max(limit, self.limit) if limit != self.limit else 0
        self.limit = limit
        self._began_s = None
        self._bytes = self._ended = self._wanted = self._unwanted_run = 0
