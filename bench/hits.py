"""What a read costs the daemon before any kernel or network: microseconds of CPU on the main thread.

``scripts/bench hits`` drives Reader, Fetcher and the memory tier over the in-memory store. A hit must stay a few
microseconds: no await that yields, no thread, no SQL. Figures are the best of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.concurrency import Concurrency
from lazyfs.core.readahead import ReadAhead, ReadAheadPolicy
from lazyfs.core.stats import Stats
from lazyfs.core.types import ObjectId, Range
from lazyfs.store.memory import MemoryStore
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.reader import OpenObject, Reader
from lazyfs.vfs.slots import Slots

KIB, MIB = 1024, 1024**2
FILES, SIZE = 1000, 110 * KIB
ROUNDS = 7


async def best(work: Callable[[], Awaitable[object]], count: int) -> float:
    """Microseconds for one of `count`, in the fastest round."""
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        await work()
        took.append((time.process_time() - began) / count * 1e6)
    return min(took)


async def measure() -> None:
    """Print a table."""
    stats, store = Stats(), MemoryStore()
    async with trio.open_nursery() as nursery:
        memory = MemoryTier(budget_bytes=1024 * MIB)
        fetcher = Fetcher(
            store=store,
            cache=TieredCache(memory=memory, disk=None),
            nursery=nursery,
            slots=Slots(Concurrency.fixed(32)),
            block_size=256 * KIB,
            extent_size=4 * MIB,
            on_stale=lambda _: None,
            stats=stats,
        )
        reader = Reader(fetcher=fetcher, whole_object_bytes=MIB, stats=stats)

        def open_object(key: str, oid: ObjectId, size: int) -> OpenObject:
            return OpenObject(oid, size, ReadAhead(ReadAheadPolicy()))

        big = open_object("big", store.put_now("big", bytes(64 * MIB)).oid, 64 * MIB)
        oids = [store.put_now(f"{number}", bytes(SIZE)).oid for number in range(FILES)]

        async def hits() -> None:
            for at in range(0, 64 * MIB, 128 * KIB):
                await reader.read(big, Range(at, at + 128 * KIB))

        async def spanning() -> None:
            for at in range(0, 64 * MIB, MIB):
                await reader.read(big, Range(at, at + MIB))

        async def misses() -> None:
            for oid in oids:
                memory.forget(oid, 0)
                await reader.read(open_object(oid.key, oid, SIZE), Range(0, SIZE))

        await hits()
        print("| a read of | µs of CPU |\n| --- | ---: |")
        print(f"| 128 KiB in memory | {await best(hits, 512):.1f} |")
        print(f"| 1 MiB in memory, over blocks | {await best(spanning, 64):.1f} |")
        print(f"| a small file that misses | {await best(misses, FILES):.1f} |")


def main() -> None:
    """Run it."""
    trio.run(measure)


if __name__ == "__main__":
    main()
