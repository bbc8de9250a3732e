"""The verbs, as far as they need not wait: for a kernel session that answers what is at hand without a task for it.

Promises that each method says exactly what the coroutine of that name in `filesystem` would, or None where that would
have to wait. Then nothing has happened, but that a listing which it would begin has begun. Errors are the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from lazyfs.core.errors import ArchivedError, IsDirectoryError
from lazyfs.core.types import Attributes, Buffer, Kind, Range
from lazyfs.index.base import Node, is_archived
from lazyfs.vfs.accounting import Accounting
from lazyfs.vfs.directories import DirectoryReader
from lazyfs.vfs.handles import Handles
from lazyfs.vfs.modes import Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.versions import Versions
from lazyfs.vfs.writers import Writers

log = logging.getLogger(__name__)


class Immediate:
    """What is at hand of a mounted bucket."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        modes: Modes,
        handles: Handles,
        reader: Reader,
        writers: Writers,
        listing: DirectoryReader,
        accounting: Accounting,
    ) -> None:
        self._accounting = accounting
        self._namespace = namespace
        self._modes = modes
        self._handles = handles
        self._reader = reader
        self._writers = writers
        self._listing = listing
        self.versions = Versions(
            namespace=namespace,
            reader=reader,
            writers=writers,
            handles=handles,
            accounting=accounting,
            openable=self.openable,
        )

    def node(self, ino: int) -> Node:
        """The row of an inode that the kernel knows; of an open one, as it was opened. StaleInodeError."""
        file = self._handles.by_ino(ino)
        return file.node if file is not None else self.versions.node(ino)

    def openable(self, ino: int) -> Node:
        """The row of a file that may be opened. StaleInodeError, IsDirectoryError, ArchivedError."""
        file = self._handles.by_ino(ino)
        node = file.node if file is not None else self._namespace.node(ino)
        if node.kind is Kind.DIRECTORY:
            raise IsDirectoryError(node.name)
        if is_archived(node):
            log.warning("%r is in storage class %s; restore it first", node.name, node.storage_class)
            raise ArchivedError(f"{node.name!r} is archived ({node.storage_class}); restore it first")
        return node

    def lookup(self, parent: int, name: str) -> Attributes | None:
        """What `name` is. NoEntryError."""
        node = self._namespace.known(parent, name)
        return None if node is None or self._modes.is_to_ask(node) else self._modes.attributes(node)

    def getattr(self, ino: int) -> Attributes | None:
        """Attributes of an inode. StaleInodeError."""
        node = self.node(ino)
        return None if self._modes.is_to_ask(node) else self._modes.attributes(node)

    def may_open(self, ino: int, flags: int) -> bool:
        """Whether `open` would not wait: it is for reading, and nothing has to be asked for first. StaleInodeError."""
        if flags & os.O_ACCMODE:
            return False
        if self._handles.by_ino(ino) is not None:
            return True
        node = self._namespace.node(ino)
        return self._namespace.is_current(node) and not self._modes.is_to_ask(node)

    def read(self, fh: int, span: Range) -> Buffer | None:
        """The bytes of `span`, if memory has them in one piece."""
        handle = self._handles.file(fh)
        if handle.file.writer is not None:
            return None
        data = self._reader.resident(self._writers.object(handle.file), span)
        if data is not None:
            self._accounting.read(handle, len(data))
        return data

    def flush(self, fh: int) -> bool:
        """Whether `flush` has nothing to do, the handle being for reading. BadHandleError."""
        return not self._handles.file(fh).writable

    def open_directory(self, ino: int) -> int | None:
        """A handle, if all entries of the directory are known. NotDirectoryError, StaleInodeError."""
        handle = self._listing.open(ino)
        return self._handles.open_directory(handle) if handle.listing is None else None

    def read_directory(self, fh: int, offset: int) -> Iterator[tuple[str, Attributes, int]] | None:
        """Entries from `offset` on, if all are known. BadHandleError."""
        handle = self._handles.directory(fh)
        return self._listing.entries(handle, offset) if handle.listing is None else None
