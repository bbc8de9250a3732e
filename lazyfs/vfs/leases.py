"""For how long names and attributes may be told without asking S3 again."""

from __future__ import annotations

import math
from collections.abc import Callable

LONGEST_S = 365 * 86400.0
"""What the kernel is told where a lease has no end."""


class Leases:
    """Leases of `ttl_s` seconds, infinity for data that does not change; `clock_ns` tells the time.

    Another `ttl_s` holds at once, but for what the kernel was told before: it believes that for as long as it was told.
    """

    def __init__(self, ttl_s: float, clock_ns: Callable[[], int]) -> None:
        self.ttl_s = ttl_s
        self._clock_ns = clock_ns

    def runs(self, proven_ns: int) -> bool:
        """Whether what was seen to be so at `proven_ns` may still be told."""
        return self._clock_ns() - proven_ns < self.ttl_s * 1e9

    def remaining_s(self, proven_ns: int) -> float:
        """For how many seconds from now that may be told."""
        if math.isinf(self.ttl_s):
            return LONGEST_S
        return max(0.0, min((proven_ns - self._clock_ns()) / 1e9 + self.ttl_s, LONGEST_S))
