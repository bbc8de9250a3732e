"""Memory that is used again: the pages of what the allocator gives back must be made anew, which costs as much CPU as
copying into them, and several times that where the machine gives free memory back to its host.

Promises that what is lent comes back by itself, when the last view of it is gone, in whatever thread: also from a
request that was given up and still sends. What it held before is still there: nobody reads what he has not written.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

from lazyfs.cache.directio import padded


class WarmMemory:
    """Lends memory; of what came back it keeps up to `limit_bytes`. One thread's, but for what comes back."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._spare: list[mmap.mmap] = []
        """Threads only append."""

    @property
    def spare_bytes(self) -> int:
        """How much lies here."""
        return sum(map(len, self._spare))

    def lend(self, size: int) -> memoryview:
        """`size` bytes at an address that direct I/O takes, holding anything."""
        memory = self._found(padded(size))
        owner = (ctypes.c_ubyte * size).from_buffer(memory)
        weakref.finalize(owner, self._back, memory).atexit = False
        return memoryview(owner).cast("B")

    def _found(self, size: int) -> mmap.mmap:
        for number, memory in enumerate(self._spare):
            if len(memory) == size:
                return self._spare.pop(number)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _back(self, memory: mmap.mmap) -> None:
        if self.spare_bytes + len(memory) <= self._limit_bytes:
            self._spare.append(memory)
