"""The memory tier and the one budget for all bytes of objects that lazyfs holds in memory.

A fetch reserves its bytes before it asks for them and turns the reservation into resident blocks when they
arrive. Resident blocks give way, least recently used first; reserved bytes do not, so a full budget makes a
demand wait (`reserve`) and a hint go away (`try_reserve`).

Hard point: the blocks of one GET are views into one buffer, which lives until its last block is gone. So bytes are
counted per buffer (`_Slab`), not per block: what is counted is what is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.cache.warm import WarmMemory
from lazyfs.core.eviction import LRU
from lazyfs.core.types import Buffer, ObjectId

SPARE_SHARE = 4
"""Of so much of the budget one part is for what can wait: the rest is there for a reader at any moment."""
WARM_SHARE = 16
"""As much as this part of the budget is kept warm, of memory that was lent."""
_SPARE_POLL_S = 0.02
BlockKey = tuple[ObjectId, int]


class _Slab:
    """One received buffer and how many blocks of it are resident. `whole` holds them all, from block `first` on, if
    they follow each other in it."""

    __slots__ = ("blocks", "first", "size", "whole")

    def __init__(self, size: int, whole: memoryview | None, first: int) -> None:
        self.size = size
        self.whole = whole
        self.first = first
        self.blocks = 0


class MemoryTier:
    """Resident blocks and reservations, together never above `budget_bytes`."""

    def __init__(self, *, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.warm = WarmMemory(limit_bytes=budget_bytes // WARM_SHARE)
        """For parts of what is written; what is spare of it is beyond the budget."""
        self._blocks: LRU[BlockKey, tuple[Buffer, _Slab]] = LRU()
        self._resident = 0
        self._reserved = 0
        self._waiters: deque[tuple[int, trio.Event]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes held now: resident and reserved."""
        return self._resident + self._reserved

    @property
    def reserved_bytes(self) -> int:
        """Bytes promised to fetches in flight; zero when nothing is going on."""
        return self._reserved

    def get(self, oid: ObjectId, block: int) -> Buffer | None:
        """The block, if resident."""
        found = self._blocks.get((oid, block))
        return None if found is None else found[0]

    def has(self, oid: ObjectId, block: int) -> bool:
        """Whether the block is resident; to ask this is no use of it."""
        return (oid, block) in self._blocks

    def run(self, oid: ObjectId, blocks: range) -> Buffer | None:
        """Neighbouring blocks as one view, without a copy, if all are resident in the buffer that they came in."""
        found = self._blocks.get((oid, blocks.start))
        if found is None or len(blocks) == 1:
            return None if found is None else found[0]
        data, slab = found
        if slab.whole is None:
            return None
        start, size = (blocks.start - slab.first) * len(data), len(data)
        for block in blocks[1:]:
            found = self._blocks.get((oid, block))
            if found is None or found[1] is not slab:
                return None
            size += len(found[0])
        return slab.whole[start : start + size]

    def put(self, oid: ObjectId, blocks: dict[int, Buffer], size: int, whole: memoryview | None = None) -> None:
        """Keep `blocks`, views into one buffer of `size` bytes: `whole`, if it is exactly them in their order.

        The caller still holds its reservation and releases it afterwards.
        """
        first, last = min(blocks, default=0), max(blocks, default=0)
        slab = _Slab(size, whole if len(blocks) == last - first + 1 else None, first)
        for block, data in blocks.items():
            self._drop((oid, block))
            self._blocks.put((oid, block), (data, slab), 0)
            slab.blocks += 1
        if slab.blocks:
            self._resident += size
        self._shrink(keep_reserved=size)

    def forget(self, oid: ObjectId, block: int) -> None:
        """Drop the block if it is resident."""
        self._drop((oid, block))
        self._wake()

    def try_reserve(self, size: int) -> bool:
        """Promise `size` bytes now, or not at all. Nobody who waits is overtaken."""
        return not self._waiters and self._reserve(size)

    def try_reserve_spare(self, size: int) -> bool:
        """As `try_reserve`, for what can wait for ever: only while most of the budget is nobody's reservation."""
        return self._reserved + size <= self.budget_bytes // SPARE_SHARE and self.try_reserve(size)

    async def reserve_spare(self, size: int) -> None:
        """Wait until `try_reserve_spare` succeeds."""
        # Polled, because whoever waits in line would stand before a reader.
        while not self.try_reserve_spare(size):  # noqa: ASYNC110
            await trio.sleep(_SPARE_POLL_S)

    async def reserve(self, size: int) -> None:
        """Promise `size` bytes, waiting in line while the budget is full of others' reservations.

        More than the whole budget is granted once nothing else is reserved, so that no caller waits for ever.
        """
        if self.try_reserve(size):
            return
        event = trio.Event()
        waiter = (size, event)
        self._waiters.append(waiter)
        try:
            await event.wait()
        except trio.Cancelled:
            if event.is_set():
                self.release(size)
            else:
                self._waiters.remove(waiter)
                self._wake()
            raise

    @asynccontextmanager
    async def held(self, size: int) -> AsyncIterator[None]:
        """`size` bytes are reserved for the body of the ``with``; see `reserve`."""
        await self.reserve(size)
        try:
            yield
        finally:
            self.release(size)

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self._reserved -= size
        self._wake()

    def _reserve(self, size: int) -> bool:
        if self._reserved + size > self.budget_bytes and self._reserved > 0:
            return False
        self._reserved += size
        self._shrink()
        return True

    def _wake(self) -> None:
        while self._waiters and self._reserve(self._waiters[0][0]):
            self._waiters.popleft()[1].set()

    def _shrink(self, *, keep_reserved: int = 0) -> None:
        """Evict until everything fits; `keep_reserved` bytes are counted twice for a moment (see `put`)."""
        while self._resident + self._reserved - keep_reserved > self.budget_bytes:
            oldest = self._blocks.pop_oldest()
            if oldest is None:
                return
            self._leave(oldest[1][1])

    def _drop(self, key: BlockKey) -> None:
        found = self._blocks.pop(key)
        if found is not None:
            self._leave(found[1])

    def _leave(self, slab: _Slab) -> None:
        slab.blocks -= 1
        if slab.blocks == 0:
            self._resident -= slab.size
