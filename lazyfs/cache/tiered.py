"""Memory above SSD: where a block is looked for before S3 is asked.

The memory tier answers synchronously (`resident`), so that a hit costs no scheduling point; the disk tier is asked
for many blocks at once (`load`). What arrives from anywhere goes through `admit`.
"""

from __future__ import annotations

from lazyfs.cache.blockfile import NOTHING, Loaded
from lazyfs.cache.disk import DiskTier
from lazyfs.cache.memory import MemoryTier
from lazyfs.core.types import Buffer, ObjectId


class TieredCache:
    """The tiers of one mount. `disk` is None where there is no cache directory."""

    def __init__(self, *, memory: MemoryTier, disk: DiskTier | None) -> None:
        self.memory = memory
        self.disk = disk

    def resident(self, oid: ObjectId, block: int) -> Buffer | None:
        """The block, if it is in memory."""
        return self.memory.get(oid, block)

    def run(self, oid: ObjectId, blocks: range) -> Buffer | None:
        """Neighbouring blocks in one piece, if memory has them so."""
        return self.memory.run(oid, blocks)

    async def load(self, oid: ObjectId, blocks: range) -> Loaded:
        """Those of `blocks` that the disk has. Never raises; empty without a disk, and then without waiting."""
        return await self.disk.get_many(oid, blocks) if self.disk is not None else NOTHING

    def admit(
        self,
        oid: ObjectId,
        blocks: dict[int, Buffer],
        size: int,
        *,
        to_disk: bool,
        to_memory: bool = True,
        whole: memoryview | None = None,
    ) -> None:
        """Keep `blocks`, views into one buffer of `size` bytes for which the caller holds a reservation; `whole` is it,
        if it holds them in their order and nothing else.

        What waits to be written to disk is held in memory, so it is reserved there: at most half of the budget, and
        what exceeds that is not written. Writing never makes a reader wait.
        """
        if to_memory:
            self.memory.put(oid, blocks, size, whole)
        if not to_disk or self.disk is None:
            return
        if self.disk.pending_bytes + size <= self.memory.budget_bytes // 2 and self.memory.try_reserve(size):
            self.disk.put_soon(oid, blocks, lambda: self.memory.release(size))
        else:
            self.disk.forgo(len(blocks))
