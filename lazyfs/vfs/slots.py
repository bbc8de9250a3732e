"""Who may talk to S3 now: demand first, then read-ahead, then preload, and the latter two never take the last slots.

How many slots there are is `core.concurrency`'s answer and changes while they are in use: what is too many then is not
interrupted, but nobody is let in until enough have left.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from itertools import count

import trio

from lazyfs.core.background import SMALL_BYTES, Background
from lazyfs.core.concurrency import Concurrency

DEMAND_SHARE = 4
"""One slot of so many is for demand alone: a reader that waits finds a connection that no guess holds."""
PRELOAD_SHARE = 2
"""Preload holds one slot of so many at most, so that what a program starts to read meanwhile soon gets the others; and
while it reads, as few as `core.background` says."""
_numbers = count()


class Urgency(IntEnum):
    """Why something is fetched, most urgent first."""

    DEMAND = 0
    """A reader is waiting for it."""
    AHEAD = 1
    """A reader is likely to want it soon."""
    PRELOAD = 2
    """Somebody asked to have it here some time."""


class Ticket:
    """One fetch's place in the line: by urgency, and among equals in the order in which tickets were made."""

    __slots__ = ("_granted", "_held_as", "_number", "urgency")

    def __init__(self, urgency: Urgency) -> None:
        self.urgency = urgency
        self._number = next(_numbers)
        self._held_as = urgency
        self._granted = trio.Event()

    def __lt__(self, other: Ticket) -> bool:
        return self._number < other._number


class Slots:
    """At most `concurrency.limit` holders, and shares of them for what nobody waits for."""

    def __init__(self, concurrency: Concurrency) -> None:
        self._concurrency = concurrency
        self._background = Background()
        self._held = dict.fromkeys(Urgency, 0)
        self._waiting: dict[Urgency, list[Ticket]] = {urgency: [] for urgency in Urgency}

    @property
    def limit(self) -> int:
        """How many may be taken now; may be less than are."""
        return self._concurrency.limit

    @property
    def taken(self) -> int:
        """Slots in use; zero when nothing is going on."""
        return sum(self._held.values())

    def share(self, urgency: Urgency) -> int:
        """How many slots may be held by requests of this urgency and of lower ones together."""
        limit = self.limit
        if urgency is Urgency.DEMAND:
            return limit
        if urgency is Urgency.AHEAD:
            return limit - max(1, limit // DEMAND_SHARE)
        return self._background.allowed(limit // PRELOAD_SHARE, trio.current_time())

    @property
    def is_quiet(self) -> bool:
        """Whether no reader has waited for a small request lately."""
        return not self._background.is_beside(trio.current_time())

    @asynccontextmanager
    async def hold(self, ticket: Ticket, size: int) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for the body of the ``async with``, which fetches `size` bytes."""
        insort(self._waiting[ticket.urgency], ticket)
        self._grant()
        try:
            await ticket._granted.wait()
            began_s = trio.current_time()
            yield
            now_s = trio.current_time()
            if ticket._held_as is Urgency.DEMAND and size <= SMALL_BYTES:
                self._background.observe(now_s - began_s, self.limit // PRELOAD_SHARE, now_s)
            self._concurrency.observe_finished(size, now_s, is_wanted=any(self._waiting.values()))
        finally:
            if ticket._granted.is_set():
                self._held[ticket._held_as] -= 1
                ticket._granted = trio.Event()
            else:
                self._waiting[ticket.urgency].remove(ticket)
            self._grant()

    def promote(self, ticket: Ticket, urgency: Urgency = Urgency.DEMAND) -> None:
        """It is now wanted as urgently as this. A slot that it has already still counts as it was granted."""
        if urgency >= ticket.urgency:
            return
        line = self._waiting[ticket.urgency]
        ticket.urgency = urgency
        if ticket in line:
            line.remove(ticket)
            insort(self._waiting[urgency], ticket)
            self._grant()

    def observe_throttled(self) -> None:
        """The server has refused a request because there are too many."""
        self._concurrency.observe_throttled(trio.current_time())

    def _grant(self) -> None:
        while True:
            line = next((line for line in self._waiting.values() if line), None)
            if line is None or not self._may_enter(line[0].urgency):
                return
            ticket = line.pop(0)
            ticket._held_as = ticket.urgency
            self._held[ticket.urgency] += 1
            ticket._granted.set()

    def _may_enter(self, urgency: Urgency) -> bool:
        """Whether each share that it would count in has room. If not, there is none for less urgent ones either."""
        held = 0
        for kind in reversed(Urgency):
            held += self._held[kind]
            if kind <= urgency and held >= self.share(kind):
                return False
        return True
