"""How long things took, in a bounded number of counters.

Promises that a quantile is never told as less than it is, and as at most an eighth more; that count and sum are exact;
and that two histograms add up to the one of both. The buckets are those of HdrHistogram with three bits: each power of
two of microseconds is cut into eight equal parts, so that a bound that is such a power is one of a bucket, too.
Source: http://hdrhistogram.org
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BITS = 3
_PARTS = 1 << _BITS
_MOST_BITS = 32
_LONGEST_US = 1 << _MOST_BITS
"""Seventy minutes: what takes longer is told as so much. No call waits so long."""
_BUCKETS = (_MOST_BITS - _BITS + 1) * _PARTS


def bucket_of(duration_ns: int) -> int:
    """The number of the bucket for a duration."""
    microseconds = min(max(1, -(-duration_ns // 1000)), _LONGEST_US) - 1  # upper bounds belong to their bucket
    shift = max(0, microseconds.bit_length() - _BITS - 1)
    return (shift << _BITS) + (microseconds >> shift)


def upper_bound_ns(bucket: int) -> int:
    """The longest duration that falls into a bucket."""
    shift = max(0, (bucket >> _BITS) - 1)
    return (((bucket - (shift << _BITS)) + 1) << shift) * 1000


class Histogram:
    """Durations in nanoseconds, of which none is kept."""

    __slots__ = ("_counts", "count", "total_ns")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total_ns = 0

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Histogram:
        """The one of which `told` tells."""
        made = cls()
        for bound_s, count in told["buckets"]:
            made._counts[bucket_of(round(bound_s * 1e9))] += count
        made.count, made.total_ns = told["count"], round(told["sum_s"] * 1e9)
        return made

    def add(self, duration_ns: int) -> None:
        """One more."""
        self._counts[bucket_of(duration_ns)] += 1
        self.count += 1
        self.total_ns += max(0, duration_ns)

    def merge(self, other: Histogram) -> None:
        """Those of `other`, too."""
        self._combine(other, 1)

    def since(self, earlier: Histogram | None) -> Histogram:
        """What has come since `earlier`, which is this one as it was."""
        rest = Histogram()
        rest.merge(self)
        if earlier is not None:
            rest._combine(earlier, -1)
        return rest

    def _combine(self, other: Histogram, sign: int) -> None:
        self._counts = [ours + sign * theirs for ours, theirs in zip(self._counts, other._counts, strict=True)]
        self.count += sign * other.count
        self.total_ns += sign * other.total_ns

    def quantile_ns(self, share: float) -> int:
        """What so large a share of them does not exceed; 0 if there are none."""
        wanted, seen = share * self.count, 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return upper_bound_ns(bucket)
        return 0

    def filled(self) -> Iterator[tuple[int, int]]:
        """Upper bound and count of each bucket that has any, in their order."""
        return ((upper_bound_ns(bucket), count) for bucket, count in enumerate(self._counts) if count)

    def told(self) -> dict[str, Any]:
        """As JSON tells it: seconds, and of each bucket that has any its upper bound and count."""
        longest = max((bound for bound, _ in self.filled()), default=0)
        return {
            "count": self.count,
            "sum_s": self.total_ns / 1e9,
            "p50_s": self.quantile_ns(0.5) / 1e9,
            "p99_s": self.quantile_ns(0.99) / 1e9,
            "max_s": longest / 1e9,
            "buckets": [[bound / 1e9, count] for bound, count in self.filled()],
        }


def cumulative(told: Mapping[str, Any], bounds_s: Sequence[float]) -> list[int]:
    """How many of what `Histogram.told` told took at most so long, for each bound; exact for powers of two of
    microseconds."""
    buckets = told["buckets"]
    return [sum(count for bound, count in buckets if bound <= limit) for limit in bounds_s]


POWERS_S = [2**exponent / 1e6 for exponent in range(8, 27)]
"""Bounds from a quarter of a millisecond, less than which hardly a wait takes, to 67 s, within which each ends."""
