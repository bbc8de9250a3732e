"""Listings of directories on their way: one for each directory, told from as far as it has come.

Promises that an entry is told from an unfinished listing only when nothing that is still to come can change what its
name means.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from lazyfs.vfs.flight import Flight

Work = Callable[[Callable[[str], None]], Awaitable[object]]
"""Lists a directory; it calls what it is given with the last entry name of each page that is now in the index."""


class DirectoryListing:
    """One directory's listing, shared by all who wait for it."""

    def __init__(self) -> None:
        self._flight: Flight[None] = Flight()
        self.frontier: str | None = ""
        """Names up to here are settled; None: all are."""
        self._moved = trio.Event()
        """Set, and replaced, whenever more is settled; set for good at the end."""

    async def run(self, work: Work) -> None:
        """List. Raises nothing but cancellation: those who wait get the error."""

        async def whole() -> None:
            await work(self._advance)
            self.frontier = None

        try:
            await self._flight.run(whole)
        finally:
            self._moved.set()

    def _advance(self, upto: str) -> None:
        self.frontier = max(self.frontier or "", upto)
        self._moved.set()
        self._moved = trio.Event()

    @property
    def complete(self) -> bool:
        """Whether all entries are in the index."""
        return self.frontier is None

    def settles(self, entry: str) -> bool:
        """Whether `entry` ("x", or "x/" of a directory) can be told: x hides behind x/, which comes later."""
        return self.frontier is None or entry.removesuffix("/") + "/" <= self.frontier

    async def advance(self) -> None:
        """Return when more is settled than when this was called. LazyfsError: the listing failed."""
        if self._moved.is_set():
            await self._flight.wait()
        else:
            await self._moved.wait()

    async def finish(self) -> None:
        """Return when all is in the index. LazyfsError."""
        await self._flight.wait()


class Listings:
    """At most one listing for each directory (inode)."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running: dict[int, DirectoryListing] = {}

    def begin(self, ino: int, work: Work) -> DirectoryListing:
        """The listing of `ino` that is on its way, or a new one."""
        listing = self._running.get(ino)
        if listing is None:
            listing = DirectoryListing()
            self._nursery.start_soon(self._run, ino, listing, work)
            self._running[ino] = listing  # not before: a nursery that is closed takes nobody
        return listing

    async def _run(self, ino: int, listing: DirectoryListing, work: Work) -> None:
        try:
            await listing.run(work)
        finally:
            del self._running[ino]
