"""The verbs of the file system: what a kernel session calls, and nothing that is FUSE's.

Plain values in and out; errors are `core.errors`. Verbs take the inode as well as the handle, so that a session that
has no handles can use them too. This is where names, readers and writers meet; each of them decides for itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

from lazyfs.core.errors import (
    BadHandleError,
    BusyError,
    IsDirectoryError,
    LazyfsError,
)
from lazyfs.core.parts import PartSizes
from lazyfs.core.posix import UNKNOWN, Posix
from lazyfs.core.readahead import ReadAheadPolicy
from lazyfs.core.types import Attributes, Buffer, Changes, Condition, Kind, Range
from lazyfs.index.base import LOCAL_ETAG, Node
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.accounting import Accounting
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.directories import DirectoryReader
from lazyfs.vfs.handles import FileHandle, Handles, OpenFile
from lazyfs.vfs.immediate import Immediate
from lazyfs.vfs.links import Links
from lazyfs.vfs.lost import LostAndFound
from lazyfs.vfs.modes import Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.renaming import Journal, Renamer
from lazyfs.vfs.writeback import WriteBack
from lazyfs.vfs.writer import Writer
from lazyfs.vfs.writers import Writers
from lazyfs.vfs.xattrs import Xattrs

log = logging.getLogger(__name__)


class FileSystem:
    """A mounted bucket.

    `new_writer(key, content, condition)` makes writers; `still_open(pid, ino, name)` tells whether the process that
    opened a file has it open still, so that a forked child's close does not finish the file.
    """

    def __init__(
        self,
        *,
        namespace: Namespace,
        store: Store,
        reader: Reader,
        new_writer: Callable[[str, Buffer, Condition], Writer],
        readahead: ReadAheadPolicy,
        part_sizes: PartSizes,
        policy: Policy,
        journal: Journal,
        copier: Copier,
        clock_ns: Callable[[], int],
        still_open: Callable[[int, int, str], bool],
        backlog: Backlog | None = None,
        fsync_to_bucket: bool = True,
    ) -> None:
        self.namespace = namespace
        self.policy = policy
        self.handles = Handles()
        self.accounting = Accounting(self.handles, root=namespace.root, key_of=namespace.key)
        self._lost = LostAndFound(namespace.root, clock_ns)
        self._fsync_to_bucket = fsync_to_bucket
        self._store = store
        self._reader = reader
        self._modes = Modes(
            namespace=namespace,
            store=store,
            reader=reader,
            handles=self.handles,
            policy=policy,
            born_ns=clock_ns(),
            backlog=backlog,
        )
        self.write_back: WriteBack | None = None
        """With `backlog`: how changes are made here and come to the bucket later."""
        if backlog is not None:
            self.write_back = WriteBack(
                backlog=backlog,
                namespace=namespace,
                handles=self.handles,
                reader=reader,
                modes=self._modes,
                lost=self._lost,
                clock_ns=clock_ns,
            )
        self._attributes = self._modes.attributes
        self._writers = Writers(
            namespace=namespace,
            reader=reader,
            new_writer=new_writer,
            readahead=readahead,
            part_sizes=part_sizes,
            policy=policy,
            clock_ns=clock_ns,
            lost=self._lost,
            write_back=self.write_back,
            modes=self._modes,
        )
        self.xattrs = Xattrs(
            namespace=namespace,
            store=store,
            handles=self.handles,
            modes=self._modes,
            policy=policy,
            clock_ns=clock_ns,
        )
        self._links = Links(
            namespace=namespace,
            store=store,
            reader=reader,
            writers=self._writers,
            modes=self._modes,
            policy=policy,
            clock_ns=clock_ns,
            write_back=self.write_back,
        )
        self._renamer = Renamer(
            namespace=namespace,
            store=store,
            handles=self.handles,
            writers=self._writers,
            reader=reader,
            policy=policy,
            journal=journal,
            copier=copier,
            write_back=self.write_back,
        )
        self._clock_ns = clock_ns
        self._still_open = still_open
        self._listing = DirectoryReader(namespace, self._attributes)
        self.now = Immediate(
            namespace=namespace,
            modes=self._modes,
            handles=self.handles,
            reader=reader,
            writers=self._writers,
            listing=self._listing,
            accounting=self.accounting,
        )
        self.versions = self.now.versions

    # -- names ----------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: str) -> Attributes:
        """What `name` is. NoEntryError."""
        node = await self.namespace.lookup(parent, name)
        return self._attributes(await self._modes.looked_at(node))

    async def getattr(self, ino: int) -> Attributes:
        """Attributes of an inode that the kernel knows. StaleInodeError if its version is gone and it is not open."""
        return self._attributes(await self._modes.looked_at(self.now.node(ino)))

    async def open_directory(self, ino: int) -> int:
        """A handle for `read_directory`. What a listing of one page runs into, an error too, is known on return."""
        handle = self._listing.open(ino)
        await self._listing.prepare(handle, 0)
        return self.handles.open_directory(handle)

    async def read_directory(self, fh: int, offset: int) -> Iterator[tuple[str, Attributes, int]]:
        """(name, attributes, offset of the next) from `offset` on; offset 0 is the start. None left: the end.

        An offset is the inode number of the entry before it. Entries that exist all the time are told exactly once,
        whatever else comes and goes. Use what this returns before the next await.
        """
        handle = self.handles.directory(fh)
        await self._listing.prepare(handle, offset)
        return self._listing.entries(handle, offset)

    def close_directory(self, fh: int) -> None:
        """Forget the handle."""
        self.handles.close_directory(fh)

    async def make_directory(self, parent: int, name: str, posix: Posix = UNKNOWN) -> Attributes:
        """Create a directory and its marker object; `posix` is whose it is and who may do what. ExistsError."""
        self.policy.check_writable()
        key = self.namespace.new_key(parent, name)
        await self.namespace.check_absent(parent, name)
        posix = self._modes.of_new(parent, Kind.DIRECTORY, posix)
        if self.write_back is not None:
            return self._attributes(await self.write_back.make_directory(parent, name, key + "/", posix))
        await self._store.put(key + "/", b"", options=PutOptions(metadata=posix.to_metadata()))
        return self._attributes(await self.namespace.put_directory(parent, name, posix))

    async def remove_directory(self, parent: int, name: str) -> None:
        """Remove an empty directory and its marker. NotEmptyError, NotDirectoryError."""
        self.policy.check_deletable()
        node = await self.namespace.lookup(parent, name)
        await self.namespace.check_empty(node)
        await self._remove(node)

    async def unlink(self, parent: int, name: str) -> None:
        """Delete a file. Who has it open goes on with it, without a name, as far as what it holds is here."""
        self.policy.check_deletable()
        node = await self.namespace.lookup(parent, name)
        if node.kind is Kind.DIRECTORY:
            raise IsDirectoryError(name)
        async with self.handles.held(node) as file:
            self._writers.remember(file)
            await self._remove(file.node)
            self._writers.unlink(file)  # a commit that waits for its turn must not bring it back

    async def _remove(self, node: Node) -> None:
        key = self.namespace.key(node)
        if self.write_back is not None:
            await self.write_back.remove(node, key)
            return
        if not node.is_local:
            await self._store.delete(key)
        await self.namespace.remove(node)

    async def rename(self, parent: int, name: str, new_parent: int, new_name: str, *, replace: bool) -> None:
        """Give a file or a directory another name. See Renamer.rename."""
        await self._renamer.rename(parent, name, new_parent, new_name, replace=replace)

    async def make_link(self, parent: int, name: str, target: bytes, posix: Posix = UNKNOWN) -> Attributes:
        """Create a symbolic link. See Links.make."""
        return self._attributes(await self._links.make(parent, name, target, posix))

    async def read_link(self, ino: int) -> bytes:
        """The target of a symbolic link. See Links.target."""
        return await self._links.target(ino)

    # -- opening --------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, pid: int) -> int:
        """A handle on an existing file. ArchivedError, BusyError, ReadOnlyError, NotPermittedError, EOPNOTSUPP."""
        await self.prove(ino)
        writable = bool(flags & os.O_ACCMODE)
        fh, file = self._begin(ino, pid=pid, writable=writable)
        try:
            if writable and self.policy.xattrs:
                await self.xattrs.load(file)
            if writable and flags & os.O_TRUNC:
                await self._writers.truncate(file, 0)
            elif self._writers.is_readable(file.node):
                self._writers.object(file)
        except BaseException:
            self.handles.close_file(fh)
            raise
        self.accounting.opened(self.handles.file(fh))
        return fh

    async def prove(self, ino: int) -> None:
        """What has to be asked before `ino` is opened, unless it is open. StaleInodeError, StoreError."""
        if self.handles.by_ino(ino) is None:
            await self._modes.looked_at(await self.namespace.current(ino))

    def open_now(self, ino: int, flags: int, pid: int) -> int | None:
        """What `open` says, where it need not wait; else None. See vfs.immediate."""
        if not self.now.may_open(ino, flags):
            return None
        fh, file = self._begin(ino, pid=pid, writable=False)
        try:
            if self._writers.is_readable(file.node):
                self._writers.object(file)
        except LazyfsError:
            self.handles.close_file(fh)
            raise
        self.accounting.opened(self.handles.file(fh))
        return fh

    def _begin(self, ino: int, *, pid: int, writable: bool) -> tuple[int, OpenFile]:
        """A handle that nobody knows of yet. ArchivedError, BusyError, ReadOnlyError, NotPermittedError."""
        node = self.now.openable(ino)
        if writable:
            self.policy.check_writable()
            self.policy.check_replaceable()
        current = self.handles.by_ino(ino)
        is_here = current is not None and (current.writer is not None or current.object is not None)
        if not is_here and not self._writers.is_readable(node):
            raise BusyError(f"{node.name!r} is not finished")
        return self.handles.open_file(node, pid=pid, writable=writable)

    def keeps_pages(self, ino: int) -> bool:
        """Whether the kernel, opening `ino` now, may keep what it has cached of it."""
        kept = ino not in self._writers.spoiled
        self._writers.spoiled.discard(ino)
        return kept

    async def create(self, parent: int, name: str, pid: int, posix: Posix = UNKNOWN) -> tuple[int, Attributes]:
        """Create a file and open it for writing; `posix` is whose it is and who may do what. ExistsError, BadNameError,
        NameTooLongError, ReadOnlyError."""
        self.policy.check_writable()
        key = self.namespace.new_key(parent, name)
        await self.namespace.check_absent(parent, name)
        posix = self._modes.of_new(parent, Kind.FILE, posix)
        now_ns = self._clock_ns()
        node = await self.namespace.put_file(parent, name, size=0, mtime_ns=now_ns, etag=LOCAL_ETAG, posix=posix)
        fh, file = self.handles.open_file(node, pid=pid, writable=True)
        file.writer = self._writers.new(key, b"", Condition(absent=True), file)
        file.knows = 0 if self.write_back is None else self.write_back.backlog.pending.newest
        self.accounting.opened(self.handles.file(fh))
        return fh, self._attributes(node)

    # -- reading and writing ----------------------------------------------------------------------------------------

    async def read(self, ino: int, fh: int, span: Range) -> Buffer:
        """The bytes of `span`, short only at the end of the file. StaleError, StoreError."""
        handle = self.handles.file(fh)
        file = handle.file
        if file.writer is not None and file.writer.is_handed_over:
            async with file.turn:  # held until write-back has it
                pass
        if file.writer is not None and (not file.writer.is_clean or file.writer.is_readable):
            return await file.writer.read(span)
        data = await self._reader.read(self._writers.object(file), span, handle.tally)
        self.accounting.read(handle, len(data))
        return data

    async def write(self, ino: int, fh: int, offset: int, data: Buffer) -> int:
        """Take `data` at `offset`; its length. OutOfOrderError, and StoreError of what was sent before."""
        handle = self.handles.file(fh)
        if not handle.writable:
            raise BadHandleError("opened for reading")
        file = handle.file
        async with file.turn:
            try:
                written = await self._writers.write(file, offset, data)
                handle.tally.written_bytes += written
                return written
            except LazyfsError as error:
                handle.refused = error
                self._writers.spoiled.add(file.ino)
                raise

    async def setattr(self, ino: int, changes: Changes) -> Attributes:
        """Change size, mode, owner or modification time."""
        self.policy.check_writable()
        if changes.size is not None:
            await self._resize(ino, changes.size)
        return self._attributes(await self._modes.change(ino, changes))

    async def _resize(self, ino: int, size: int) -> Node:
        file = self.handles.by_ino(ino)
        if file is not None and file.writer is not None:
            return await self._resize_written(ino, file.node, size)
        node = self.now.openable(ino)
        if size == node.size:
            return node
        # Nobody is writing: truncate(2) opens, truncates and closes.
        fh = await self.open(ino, os.O_WRONLY | (0 if size else os.O_TRUNC), 0)
        file = self.handles.file(fh).file
        try:
            if size:
                await self._writers.truncate(file, size)
            await self._writers.commit(file)
            return file.node
        finally:
            await self.release(ino, fh)

    async def _resize_written(self, ino: int, node: Node, size: int) -> Node:
        """Truncate what somebody is writing, whose close uploads it; if that comes meanwhile, ours does."""
        fh, file = self.handles.open_file(node._replace(ino=ino), pid=0, writable=True)
        try:
            await self._writers.truncate(file, size)
            if file.writers == 1:
                await self._writers.commit(file)
            return file.node
        finally:
            await self.release(ino, fh)

    async def flush(self, ino: int, fh: int) -> None:
        """close(2) of one descriptor: when this returns, what was written is in the bucket, or the error is told.

        While the process that opened the file still has it open (dup, fork) it is not finished; its last close does.
        """
        handle = self.handles.file(fh)
        file = handle.file
        handle.refused = None
        if not handle.writable or file.writer is None or file.deleted:
            return
        if file.writer.is_dirty and self._still_open(handle.pid, file.node.ino, file.node.name):
            return
        await self._writers.commit(file)

    async def fsync(self, ino: int, fh: int) -> None:
        """What was written so far is in the bucket when this returns, or durable here if the mount says so. StoreError,
        SpoolError."""
        handle = self.handles.file(fh)
        if handle.writable and handle.file.writer is not None:
            await self._writers.commit(handle.file)
        if handle.writable and self.write_back is not None and self._fsync_to_bucket:
            await self.write_back.uploaded(handle.file)

    async def release(self, ino: int, fh: int) -> None:
        """The last descriptor is gone. Never raises: what flush could not finish is finished or logged here."""
        handle = self.handles.file(fh)
        file = handle.file
        last_writer = handle.writable and file.writers == 1
        if handle.refused is not None and not file.deleted:
            log.error("%r was changed through a mapping after close, which is lost: %s", file.node.name, handle.refused)
        try:
            if last_writer and self._is_unfinished(file):
                await self._writers.commit(file)
        except LazyfsError as error:
            log.error("%r was not uploaded: %s", file.node.name, error)
        finally:
            self._close(fh, handle)
            if not file.handles and self.write_back is not None:
                await self.write_back.closed(file)

    def release_now(self, fh: int) -> bool:
        """`release`, where it need not wait: of a handle for reading. Whether it was one. See vfs.immediate."""
        handle = self.handles.file(fh)
        is_last = handle.file.handles == 1
        if handle.writable or (is_last and self.write_back is not None):
            return False
        self._close(fh, handle)
        return True

    def _close(self, fh: int, handle: FileHandle) -> None:
        file = handle.file
        self.handles.close_file(fh)
        self.accounting.closed(handle)
        # Whoever writes next begins anew, also while others go on reading; but what has no name is nowhere else.
        if not (file.handles if file.deleted else file.writers):
            self._writers.dismiss(file)

    def _is_unfinished(self, file: OpenFile) -> bool:
        """Whether no flush has told what becomes of the file: its bytes, or its name alone, are only here."""
        if file.writer is None or file.deleted:
            return False
        return file.writer.is_dirty or (file.node.is_local and self.namespace.has(file.node.ino))

    @property
    def lost(self) -> list[tuple[str, str]]:
        """Keys for which somebody else was faster, and the keys that have what was written here; the latest."""
        return list(self._lost.entries)

    async def abandon(self) -> None:
        """The mount ends: withdraw what programs had not finished, so that no upload stays behind."""
        for file in self.handles.files():
            if file.writer is not None and file.writer.is_dirty:
                if not file.deleted:
                    log.error("%r was still being written when the mount ended; it was not uploaded", file.writer.key)
                await file.writer.discard()
