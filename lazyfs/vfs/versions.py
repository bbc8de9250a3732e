"""Reading by inode, for a kernel session that is told of no open and no close. Read-only mounts only.

Promises P4 without handles: an inode is one version. From its first read on it stays bound to that version, also when
its name means another by then, until the kernel forgets it; what is not resident then is ESTALE, as with a handle.

An opening, which is what is counted elsewhere, is here a read at the beginning of a file, after others: what the page
cache answers is not known at all.
"""

from __future__ import annotations

from collections.abc import Callable

from lazyfs.core.errors import StaleInodeError
from lazyfs.core.eviction import LRU
from lazyfs.core.types import Buffer, Range
from lazyfs.index.base import Node
from lazyfs.vfs.accounting import Accounting
from lazyfs.vfs.handles import FileHandle, Handles, OpenFile
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.writers import Writers

MAX_BOUND = 65_536
"""Inodes that are bound at a time, about 1 KiB each with their read-ahead; the kernel may know millions. Of one that
was dropped and replaced since, everything is ESTALE; else it is bound again, to the same version."""


class Versions:
    """The versions that inodes are bound to; `openable(ino)` is the row of a file that may be read."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        reader: Reader,
        writers: Writers,
        handles: Handles,
        accounting: Accounting,
        openable: Callable[[int], Node],
    ) -> None:
        self._namespace = namespace
        self._reader = reader
        self._writers = writers
        self._handles = handles
        self._accounting = accounting
        self._openable = openable
        self._bound: LRU[int, FileHandle] = LRU()

    def __len__(self) -> int:
        return len(self._bound)

    def read_now(self, ino: int, span: Range, pid: int) -> Buffer | None:
        """The bytes of `span`, if memory has them in one piece, for thread `pid`. StaleInodeError, ArchivedError."""
        handle = self._opening(ino, span, pid)
        data = self._reader.resident(self._writers.object(handle.file), span)
        if data is not None:
            self._accounting.took(handle, len(data))
        return data

    async def read(self, ino: int, span: Range, pid: int) -> Buffer:
        """The bytes of `span`, short only at the end of the file, for thread `pid`. StaleInodeError, ArchivedError,
        StaleError, StoreError."""
        handle = self._opening(ino, span, pid)
        data = await self._reader.read(self._writers.object(handle.file), span, handle.tally)
        self._accounting.took(handle, len(data))
        return data

    def bound(self, ino: int) -> OpenFile | None:
        """The version that `ino` is bound to, if it is."""
        handle = self._bound.get(ino)
        return None if handle is None else handle.file

    def node(self, ino: int) -> Node:
        """The row of `ino`, or as it was when it was bound. StaleInodeError."""
        try:
            return self._namespace.node(ino)
        except StaleInodeError:
            file = self.bound(ino)
            if file is None:
                raise
            return file.node

    def forget(self, ino: int) -> None:
        """The kernel does not know the inode any more."""
        handle = self._bound.pop(ino)
        if handle is not None:
            self._accounting.closed(handle)

    def _opening(self, ino: int, span: Range, pid: int) -> FileHandle:
        handle = self._bound.get(ino)
        if handle is not None and not (span.start == 0 and handle.tally.has_read):
            return handle
        if handle is None:
            file = OpenFile(self._openable(ino))
            self._writers.object(file)
        else:
            file = handle.file
            self._accounting.closed(handle)
        handle = FileHandle(file, pid, writable=False)
        self._bound.put(ino, handle, 1)
        self._bound.trim(MAX_BOUND)
        self._handles.note_opened(ino)
        self._accounting.opened(handle)
        return handle
