"""Where the SDKs block: worker threads, each call with a deadline.

Promises that who waits here gets an answer or StoreTimeoutError in time, though a thread cannot be cancelled, and
though an SDK's own timeouts count silence only: a server that sends a byte a second is never silent.

Hard point: a thread that nobody waits for any more goes on until its server falls silent or closes. It must not take
the place of calls that could be answered, nor may there be ever more of them: so there are `turns`, which end with the
waiting, and more threads than turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from lazyfs.store.answers import timed_out

T = TypeVar("T")
_SLOWEST_BYTES_PER_S = 64 * 1024
"""A line that carries less of a body than this is taken for one that carries nothing."""
_STUCK = 3
"""As many times more threads than turns may be stuck in calls that were given up."""


class Threads:
    """Runs calls, at most `at_once` that somebody waits for, each for at most `deadline_s` from when its turn came."""

    def __init__(self, at_once: int, *, deadline_s: float) -> None:
        self._turns = trio.CapacityLimiter(at_once)
        self._threads = trio.CapacityLimiter(at_once * (1 + _STUCK))
        self._deadline_s = deadline_s

    async def run(self, what: str, call: Callable[[], T], *, body_bytes: int = 0) -> T:
        """What `call` returns or raises; a body that it sends has the time that a slow line takes on top.
        StoreTimeoutError names the request `what`. Cancelling returns at once."""
        async with self._turns:
            with trio.move_on_after(self._deadline_s + body_bytes / _SLOWEST_BYTES_PER_S):
                return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        raise timed_out(what)
