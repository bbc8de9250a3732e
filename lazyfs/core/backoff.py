"""How long to wait before trying again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential growth with full jitter, as AWS recommends, inside a deadline.

    `base_s` is the first ceiling, `cap_s` the last; nothing starts after `deadline_s` from the first attempt.
    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    base_s: float = 0.1
    cap_s: float = 10.0
    deadline_s: float = 60.0

    def delay_s(self, attempt: int, elapsed_s: float, random: Callable[[], float]) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 1), or None to give up.

        `random` returns a float in [0, 1). A delay is at least a quarter of its ceiling, so that a lucky zero does
        not hammer a server in trouble.
        """
        ceiling = min(self.cap_s, self.base_s * 2 ** min(attempt - 1, 30))
        delay = ceiling * (0.25 + 0.75 * random())
        return delay if elapsed_s + delay < self.deadline_s else None
