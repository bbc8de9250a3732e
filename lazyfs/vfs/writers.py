"""The life of a file that is written: how its writer begins, what commit makes true, and what is kept afterwards.

Knows nothing of handles and of the kernel's calls: `vfs.filesystem` calls it for whoever has the file open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from lazyfs.core.errors import LazyfsError, NotSupportedError
from lazyfs.core.parts import PartSizes
from lazyfs.core.readahead import ReadAhead, ReadAheadPolicy
from lazyfs.core.types import Buffer, Condition, ObjectId, Range
from lazyfs.index.base import LOCAL_ETAG, Node
from lazyfs.vfs.handles import OpenFile
from lazyfs.vfs.lost import LostAndFound
from lazyfs.vfs.modes import Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.reader import OpenObject, Reader
from lazyfs.vfs.writeback import WriteBack
from lazyfs.vfs.writer import Writer

log = logging.getLogger(__name__)

_COPY_BYTES = 4 * 1024**2
"""Copied at a time, of an object that is changed in place or of what is kept of a lost race."""


class Writers:
    """Begins, finishes and dismisses the writers of open files; `new_writer(key, content, condition)` makes them."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        reader: Reader,
        new_writer: Callable[[str, Buffer, Condition], Writer],
        readahead: ReadAheadPolicy,
        part_sizes: PartSizes,
        policy: Policy,
        clock_ns: Callable[[], int],
        lost: LostAndFound,
        write_back: WriteBack | None,
        modes: Modes,
    ) -> None:
        self._namespace = namespace
        self._reader = reader
        self._new_writer = new_writer
        self._readahead = readahead
        self._part_sizes = part_sizes
        self._policy = policy
        self._clock_ns = clock_ns
        self._lost = lost
        self._write_back = write_back
        self._modes = modes
        self.spoiled: set[int] = set()
        """Inodes of which the kernel may hold pages that are of no version: those of an upload that failed, and of a
        mapping whose changes were refused."""

    def object(self, file: OpenFile) -> OpenObject:
        """The version to read, remembered from the first open on so that all handles see the same."""
        if file.object is None:
            waiting = None if self._write_back is None else self._write_back.content(file.node)
            oid = waiting or ObjectId(self._namespace.key(file.node), file.node.etag)
            file.object = self._version(oid, file.node.size)
        return file.object

    def is_readable(self, node: Node) -> bool:
        """Whether `node`, which nobody is writing, is whole: here or in the bucket."""
        return not node.is_local or (self._write_back is not None and self._write_back.content(node) is not None)

    def new(self, key: str, content: bytes, condition: Condition, file: OpenFile | None = None) -> Writer:
        """A writer of `key`, for `file`. The condition holds where the endpoint was seen to honour it; elsewhere the
        last writer wins, as S3 always had it."""
        writer = self._new_writer(key, content, condition if self._policy.conditional_put else Condition())
        if file is not None:
            writer.metadata = lambda: self._modes.metadata(file)
        return writer

    async def truncate(self, file: OpenFile, size: int) -> None:
        """Make the file `size` bytes long."""
        async with file.turn:
            if size == 0 and (file.writer is None or (file.writer.is_clean and file.writer.size)):
                self._install(file, self._rewriter(file, b""))
                return
            self._part_sizes.check(size, file.node.name)  # before a writer takes what is there, and sends it again
            writer = file.writer or await self.begin_rewrite(file, keep=size)
            was_clean = writer.is_clean
            await writer.truncate(size)
            self._stamp(file, was_clean=was_clean)

    async def write(self, file: OpenFile, offset: int, data: Buffer) -> int:
        """Take `data` at `offset`; its length. The caller has the file's turn. Errors as of `begin_rewrite` and
        `Writer.write`."""
        self._part_sizes.check(offset + len(data), file.node.name)
        writer = file.writer or await self.begin_rewrite(file)
        was_clean = writer.is_clean
        length = await writer.write(offset, data)
        self._stamp(file, was_clean=was_clean)
        return length

    def _stamp(self, file: OpenFile, *, was_clean: bool) -> None:
        """A version has the time of its first change: a later one would cost the kernel's pages at each look."""
        if was_clean and file.writer is not None and not file.writer.is_clean:
            file.node = file.node._replace(mtime_ns=self._clock_ns())
        if self._write_back is not None:
            file.knows = self._write_back.backlog.pending.newest

    async def begin_rewrite(self, file: OpenFile, *, keep: int | None = None) -> Writer:
        """A writer that starts from what the object holds, of which `keep` bytes are wanted at the most; the caller
        has the file's turn. NotSupportedError if that is more than a part and there is no spool to copy it to."""
        target = self.object(file)
        size = target.size if keep is None else min(target.size, keep)
        if size <= self._part_sizes.size(1):
            content = await self._reader.read(target, Range(0, size))
            return self._install(file, self._rewriter(file, bytes(content)))
        writer = self._rewriter(file, b"")
        if not writer.can_spool:
            raise NotSupportedError(f"{file.node.name!r}: changing an object over --part-size in place needs a spool")
        try:
            for start in range(0, size, _COPY_BYTES):
                await writer.load(await self._reader.read(target, Range(start, min(start + _COPY_BYTES, size))))
        except BaseException:
            writer.close()
            raise
        writer.expect(self._found(file))  # what waited for its upload may have come to the bucket meanwhile
        return self._install(file, writer)

    async def commit(self, file: OpenFile) -> None:
        """Make the bucket and the index hold what the writer has."""
        async with file.turn:
            writer = file.writer
            if writer is None or file.deleted or not (writer.is_dirty or writer.error):
                return  # what has no name is only here
            try:
                if self._write_back is not None:
                    await self._write_back.commit(file)
                    return
                await writer.commit(lambda: self._rescue(writer))
            except LazyfsError as error:
                log.error("upload of %r failed: %s", writer.key, error)
                self.spoiled.add(file.ino)
                if self._namespace.has(file.node.ino) and not self.is_readable(file.node):
                    await self._namespace.remove(file.node)
                # Who won the race, or whether our object is there after all, only the bucket knows.
                self._namespace.expire(file.node.parent, file.node.name)
                raise
            assert writer.etag is not None
            oid = ObjectId(writer.key, writer.etag)
            writer.follow(await self._modes.settled(oid, writer.size, writer.sent, writer.metadata()))
            node = file.node
            file.node = await self._namespace.put_file(
                node.parent,
                node.name,
                size=writer.size,
                mtime_ns=node.mtime_ns,
                etag=writer.etag,
                posix=self._modes.of(node),
            )
            file.object = self._version(ObjectId(writer.key, writer.etag), writer.size)  # what is read from now on
            if file.node.ino != file.ino:  # replaced by somebody while it was written, and now by us
                self.spoiled.add(file.node.ino)
                self._namespace.kernel.forget_entry(node.parent, node.name)

    async def _rescue(self, writer: Writer) -> None:
        """Somebody else has changed the object meanwhile, and theirs stays: keep ours under another name."""
        if not writer.size:
            return
        key = self._lost.place(writer.key)
        copy = self.new(key, b"", Condition(absent=True))
        copy.metadata = writer.metadata
        try:
            for start in range(0, writer.size, _COPY_BYTES):
                await copy.write(start, await writer.read(Range(start, start + _COPY_BYTES)))
            await copy.commit()
            await self._namespace.learn(key)
        except LazyfsError as error:
            log.error("somebody else has changed %r, and what was written here is lost: %s", writer.key, error)
            return
        finally:
            copy.close()
        self._lost.entries.append((writer.key, key))
        log.error("somebody else has changed %r; what was written here is kept as %r", writer.key, key)

    def remember(self, file: OpenFile) -> None:
        """The file is about to lose its name: know what it holds without that. The caller has its turn."""
        if self.is_readable(file.node):
            self.object(file)

    def unlink(self, file: OpenFile) -> None:
        """It has lost its name, and lives on while somebody has it open. The caller has its turn."""
        file.deleted = True
        if file.writer is not None:
            file.writer.unlink()

    def dismiss(self, file: OpenFile) -> None:
        """Nobody writes any more. What the bucket has now is kept as if it had been read: it need not be fetched."""
        writer, file.writer = file.writer, None
        if writer is None:
            return
        if writer.is_clean and writer.etag is not None and not file.deleted:
            oid = ObjectId(writer.key, writer.etag)
            spooled, content = writer.take_spool(), writer.small_content
            if spooled is not None:
                self._reader.keep_spooled(oid, spooled)
            elif content is not None:
                self._reader.keep(oid, content)
        writer.close()

    def _install(self, file: OpenFile, writer: Writer) -> Writer:
        self.dismiss(file)
        file.writer = writer
        self._stamp(file, was_clean=True)
        return writer

    def _rewriter(self, file: OpenFile, content: bytes) -> Writer:
        if file.deleted:
            writer = self.new(file.node.name, content, Condition(), file)
            writer.unlink()
            return writer
        key = self._namespace.key(file.node) if file.node.is_local else self.object(file).oid.key
        return self.new(key, content, self._found(file), file)

    def _found(self, file: OpenFile) -> Condition:
        """What the key of `file`, which is there, must still hold; write-back knows what that is by then."""
        return Condition(etag=LOCAL_ETAG if file.node.is_local else self.object(file).oid.etag)

    def _version(self, oid: ObjectId, size: int) -> OpenObject:
        return OpenObject(oid, size, ReadAhead(self._readahead))
