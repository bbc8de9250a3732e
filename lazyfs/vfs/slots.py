"""Who may talk to S3 now: demand first, then hints, and hints never take the last slots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Ticket:
    """One fetch's place in the line. `urgent` means that a reader is waiting for it."""

    __slots__ = ("_granted", "_is_hint", "urgent")

    def __init__(self, *, urgent: bool) -> None:
        self.urgent = urgent
        self._is_hint = False
        self._granted = trio.Event()


class Slots:
    """At most `total` holders, of which at most `hints` were granted as hints."""

    def __init__(self, *, total: int, hints: int) -> None:
        self._total = total
        self._hints = hints
        self._taken = 0
        self._hints_taken = 0
        self._waiting: list[Ticket] = []

    @property
    def taken(self) -> int:
        """Slots in use; zero when nothing is going on."""
        return self._taken

    @asynccontextmanager
    async def hold(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for the body of the ``async with``."""
        self._waiting.append(ticket)
        self._grant()
        try:
            await ticket._granted.wait()
            yield
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._taken -= 1
                self._hints_taken -= ticket._is_hint
            ticket._granted = trio.Event()
            self._grant()

    def promote(self, ticket: Ticket) -> None:
        """A reader now waits for what was a hint."""
        ticket.urgent = True
        self._grant()

    def _grant(self) -> None:
        while self._taken < self._total:
            ticket = next((ticket for ticket in self._waiting if ticket.urgent), None)
            if ticket is None and self._hints_taken < self._hints and self._waiting:
                ticket = self._waiting[0]
            if ticket is None:
                return
            self._waiting.remove(ticket)
            ticket._is_hint = not ticket.urgent
            self._taken += 1
            self._hints_taken += ticket._is_hint
            ticket._granted.set()
