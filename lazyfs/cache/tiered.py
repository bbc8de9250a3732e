"""Memory above SSD above what nodes share: where a block is looked for before S3 is asked.

The memory tier answers synchronously (`resident`), so that a hit costs no scheduling point; the disk tier is asked
for many blocks at once (`load`), and so is the shared one (`load_shared`). What arrives from S3 goes through `admit`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyfs.cache.blockfile import NOTHING, Loaded
from lazyfs.cache.disk import DiskTier
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.shared import SharedTier
from lazyfs.core.types import Buffer, ObjectId


class TieredCache:
    """The tiers of one mount. `disk` is None where there is no cache directory, `shared` where nothing is shared."""

    def __init__(self, *, memory: MemoryTier, disk: DiskTier | None, shared: SharedTier | None = None) -> None:
        self.memory = memory
        self.disk = disk
        self.shared = shared

    def resident(self, oid: ObjectId, block: int) -> Buffer | None:
        """The block, if it is in memory."""
        return self.memory.get(oid, block)

    def run(self, oid: ObjectId, blocks: range) -> Buffer | None:
        """Neighbouring blocks in one piece, if memory has them so."""
        return self.memory.run(oid, blocks)

    async def load(self, oid: ObjectId, blocks: range) -> Loaded:
        """Those of `blocks` that the disk has. Never raises; empty without a disk, and then without waiting."""
        return await self.disk.get_many(oid, blocks) if self.disk is not None else NOTHING

    async def load_shared(
        self, oid: ObjectId, size: int, blocks: Sequence[int], *, to_memory: bool
    ) -> dict[int, Buffer]:
        """Those of `blocks` (ascending) of the object of `size` bytes that other nodes have left, which are then kept
        here too; what does not go `to_memory` has nobody who waits for it. The caller holds a reservation for all of
        them. Never raises; empty without a shared tier.
        """
        found: dict[int, Buffer] = {}
        if self.shared is not None:
            for loaded in await self.shared.get_many(oid, size, blocks, urgent=to_memory):
                if to_memory:
                    self.memory.put(oid, dict(loaded.blocks), len(loaded.whole), loaded.whole)
                found |= loaded.blocks
        if found:
            found = dict(sorted(found.items()))
            self._write_to_disk(oid, found, sum(map(len, found.values())))
        return found

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
        if it holds them in their order and nothing else. What goes `to_disk` came from S3, so it is shared as well.

        What waits to be written is held in memory, so it is reserved there: for the disk at most half of the budget,
        for others what the shared tier accepts; what exceeds that is not written. Writing never makes a reader wait.
        """
        if to_memory:
            self.memory.put(oid, blocks, size, whole)
        if not to_disk:
            return
        self._write_to_disk(oid, blocks, size)
        if self.shared is None:
            return
        if self.shared.accepts(size) and self.memory.try_reserve(size):
            self.shared.put_soon(oid, blocks, lambda: self.memory.release(size))
        else:
            self.shared.forgo(len(blocks))

    def _write_to_disk(self, oid: ObjectId, blocks: dict[int, Buffer], size: int) -> None:
        if self.disk is None:
            return
        if self.disk.pending_bytes + size <= self.memory.budget_bytes // 2 and self.memory.try_reserve(size):
            self.disk.put_soon(oid, blocks, lambda: self.memory.release(size))
        else:
            self.disk.forgo(len(blocks))
