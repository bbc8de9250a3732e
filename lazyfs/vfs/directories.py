"""Reading a directory while others change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lazyfs.core.errors import StaleInodeError
from lazyfs.core.types import Attributes
from lazyfs.index.base import Node
from lazyfs.vfs.handles import DirectoryHandle
from lazyfs.vfs.namespace import Namespace

BATCH = 512
"""Rows read from the index at a time; the kernel takes some twenty entries a request."""


class DirectoryReader:
    """Entries of open directories, a batch of rows at a time; `attributes(node, above)` is how a node looks."""

    def __init__(self, namespace: Namespace, attributes: Callable[[Node, Node | None], Attributes]) -> None:
        self._namespace = namespace
        self._attributes = attributes

    def entries(self, handle: DirectoryHandle, offset: int) -> Iterator[tuple[str, Attributes, int]]:
        """(name, attributes, offset of the next) from `offset` on; offset 0 is the start.

        An offset is the inode number of the entry before it. Entries that exist all the time are told exactly once,
        whatever else comes and goes. StaleInodeError for an offset that cannot be found any more.
        """
        after = handle.entry_at(offset)
        if after is None:
            after = self._entry_of(handle.ino, offset)
        if offset == 0 or offset not in handle.positions or handle.version != self._namespace.version():
            self._refill(handle, after, offset)
        position = handle.positions[offset] + 1
        while handle.batch:
            for node in handle.batch[position:]:
                yield node.name, self._attributes(node, handle.above), node.ino
            position = 0
            self._refill(handle, handle.batch[-1].entry, handle.batch[-1].ino)

    def _refill(self, handle: DirectoryHandle, after: str, offset: int) -> None:
        handle.version = self._namespace.version()
        batch = self._namespace.children(handle.ino, after=after, limit=BATCH)
        if batch:  # nothing is left to tell of a directory that has gone meanwhile
            handle.above = self._namespace.node(handle.ino)
        handle.refill(batch, after, offset)

    def _entry_of(self, directory: int, offset: int) -> str:
        node = self._namespace.node(offset)
        if node.parent != directory:
            raise StaleInodeError(f"offset {offset} is not of this directory")
        return node.entry
