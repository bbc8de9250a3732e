"""Reading by inode, for a kernel session that is told of no open and no close. Read-only mounts only.

Promises P4 without handles: an inode is one version. From its first read on it stays bound to that version, also when
its name means another by then, until the kernel forgets it; what is not resident then is ESTALE, as with a handle.
"""

from __future__ import annotations

from collections.abc import Callable

from lazyfs.core.errors import StaleInodeError
from lazyfs.core.eviction import LRU
from lazyfs.core.types import Buffer, Range
from lazyfs.index.base import Node
from lazyfs.vfs.handles import OpenFile
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.reader import OpenObject, Reader
from lazyfs.vfs.writers import Writers

MAX_BOUND = 65_536
"""Inodes that are bound at a time, about 1 KiB each with their read-ahead; the kernel may know millions. Of one that
was dropped and replaced since, everything is ESTALE; else it is bound again, to the same version."""


class Versions:
    """The versions that inodes are bound to; `openable(ino)` is the row of a file that may be read; `opened(ino)`
    hears of the first read of each."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        reader: Reader,
        writers: Writers,
        openable: Callable[[int], Node],
        opened: Callable[[int], None],
    ) -> None:
        self._namespace = namespace
        self._reader = reader
        self._writers = writers
        self._openable = openable
        self._opened = opened
        self._bound: LRU[int, OpenFile] = LRU()

    def __len__(self) -> int:
        return len(self._bound)

    def read_now(self, ino: int, span: Range) -> Buffer | None:
        """The bytes of `span`, if memory has them in one piece. StaleInodeError, ArchivedError."""
        return self._reader.resident(self._object(ino), span)

    async def read(self, ino: int, span: Range) -> Buffer:
        """The bytes of `span`, short only at the end of the file. StaleInodeError, ArchivedError, StaleError,
        StoreError."""
        return await self._reader.read(self._object(ino), span)

    def bound(self, ino: int) -> OpenFile | None:
        """The version that `ino` is bound to, if it is."""
        return self._bound.get(ino)

    def node(self, ino: int) -> Node:
        """The row of `ino`, or as it was when it was bound. StaleInodeError."""
        try:
            return self._namespace.node(ino)
        except StaleInodeError:
            bound = self._bound.get(ino)
            if bound is None:
                raise
            return bound.node

    def forget(self, ino: int) -> None:
        """The kernel does not know the inode any more."""
        self._bound.pop(ino)

    def _object(self, ino: int) -> OpenObject:
        file = self._bound.get(ino)
        if file is None:
            file = OpenFile(self._openable(ino))
            self._writers.object(file)
            self._bound.put(ino, file, 1)
            self._bound.trim(MAX_BOUND)
            self._opened(ino)
        return self._writers.object(file)
