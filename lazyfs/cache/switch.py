"""When to do without something that fails. Pure: time is told.

After `failures` failures in a row it is off for `rest_s`; then one more failure is enough. Who asks learns when there
is something to say to a person: once at the beginning of the trouble, once at its end.
"""

from __future__ import annotations

import math


class Switch:
    """On, until it fails; `last_error` is the reason of the latest failure."""

    def __init__(self, *, failures: int, rest_s: float) -> None:
        self._allowed = failures - 1
        self._rest_s = rest_s
        self._failures = 0
        self._off_until_s = -math.inf
        self._told = False
        self.last_error: str | None = None

    def is_on(self, now_s: float) -> bool:
        """Whether to try."""
        return now_s >= self._off_until_s

    def failed(self, reason: str, now_s: float) -> bool:
        """Learn of a failure; whether a person should hear of it now."""
        self.last_error = reason
        self._failures += 1
        if self._failures <= self._allowed:
            return False
        self._failures = self._allowed
        self._off_until_s = now_s + self._rest_s
        news, self._told = not self._told, True
        return news

    def worked(self) -> bool:
        """Learn of a success; whether it ends a trouble that a person has heard of."""
        self._failures = 0
        self._off_until_s = -math.inf
        news, self._told = self._told, False
        return news
