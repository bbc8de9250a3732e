"""Reading a directory while others change it, and while it is still being listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lazyfs.core.errors import StaleInodeError
from lazyfs.core.types import Attributes
from lazyfs.index.base import Node
from lazyfs.vfs.handles import DirectoryHandle
from lazyfs.vfs.namespace import Namespace

FIRST_BATCH = 32
"""Rows read from the index at first, and whenever it has changed since; the kernel takes some twenty a request."""
BATCH = 512
"""Rows read at a time by who goes on and on: each batch is twice the one before, up to this."""


class DirectoryReader:
    """Entries of open directories, a batch of rows at a time; `attributes(node, above)` is how a node looks."""

    def __init__(self, namespace: Namespace, attributes: Callable[[Node, Node | None], Attributes]) -> None:
        self._namespace = namespace
        self._attributes = attributes

    def open(self, ino: int) -> DirectoryHandle:
        """A handle on directory `ino`, whose listing has begun if it must. NotDirectoryError, StaleInodeError."""
        return DirectoryHandle(ino, self._namespace.begin_listing(ino))

    async def prepare(self, handle: DirectoryHandle, offset: int) -> None:
        """Return when `entries` from `offset` on can tell one, or that there is none. LazyfsError: the listing's."""
        while handle.listing is not None and not handle.listing.complete:
            after = self._entry_before(handle, offset)
            ahead = self._namespace.children(handle.ino, after=after, upto=handle.listing.frontier, limit=1)
            if ahead and handle.listing.settles(ahead[0].entry):
                return
            await handle.listing.advance()
        handle.listing = None

    def entries(self, handle: DirectoryHandle, offset: int) -> Iterator[tuple[str, Attributes, int]]:
        """(name, attributes, offset of the next) from `offset` on; offset 0 is the start.

        An offset is the inode number of the entry before it. Entries that exist all the time are told exactly once,
        whatever else comes and goes. StaleInodeError for an offset that cannot be found any more.
        """
        after = self._entry_before(handle, offset)
        changed = handle.version != self._version(handle)
        if offset == 0 or offset not in handle.positions or changed:
            self._refill(handle, after, offset, FIRST_BATCH)
        position = handle.positions[offset] + 1
        while handle.batch:
            for node in handle.batch[position:]:
                if handle.listing is not None and not handle.listing.settles(node.entry):
                    return
                yield node.name, self._attributes(node, handle.above), node.ino
            position = 0
            limit = min(2 * len(handle.batch), BATCH)
            self._refill(handle, handle.batch[-1].entry, handle.batch[-1].ino, limit)

    def _version(self, handle: DirectoryHandle) -> tuple[int, str | None]:
        return self._namespace.version(), handle.listing.frontier if handle.listing is not None else None

    def _refill(self, handle: DirectoryHandle, after: str, offset: int, limit: int) -> None:
        handle.version = self._version(handle)
        batch = self._namespace.children(handle.ino, after=after, upto=handle.version[1], limit=limit)
        if batch:  # nothing is left to tell of a directory that has gone meanwhile
            handle.above = self._namespace.node(handle.ino)
        handle.refill(batch, after, offset)

    def _entry_before(self, handle: DirectoryHandle, offset: int) -> str:
        entry = handle.entry_at(offset)
        if entry is not None:
            return entry
        node = self._namespace.node(offset)
        if node.parent != handle.ino:
            raise StaleInodeError(f"offset {offset} is not of this directory")
        return node.entry
