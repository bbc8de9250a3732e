"""How a file looks, but for its bytes: mode, owner and time; and what chmod, chown and utimens make of that.

Promises that stat tells what a program has set, and that the bucket has it too, in the keys that FSx uses: with the
upload of what is not finished yet, by a copy onto itself for what is. A time alone is kept here, and goes along with
the next of these. What nobody has set here looks as the mount says or, where the mount asks objects, as they say.

Hard points: an ETag that such a copy changes is followed by all who know the old one (`put`), so that what is cached
and open stays; an upload of several parts gets its metadata when it begins, and may need that copy at its end
(`settled`).
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import AsyncIterator, Mapping

from lazyfs.core.changes import Change, Op
from lazyfs.core.errors import (
    AccessDeniedError,
    LazyfsError,
    NotFoundError,
    PreconditionFailedError,
    StaleError,
)
from lazyfs.core.parts import MAX_COPY_BYTES
from lazyfs.core.posix import ATIME, MTIME, UNKNOWN, Posix, from_metadata
from lazyfs.core.types import ROOT_INO, Attributes, Changes, Kind, ObjectId
from lazyfs.index.base import NO_MODE, Node, is_archived
from lazyfs.store.base import PutOptions, Store
from lazyfs.store.metadata import changed
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.handles import Handles, OpenFile
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.reader import Reader

log = logging.getLogger(__name__)

MAX_TARGET_BYTES = 4095
"""Of a symbolic link: the kernel takes no more. A longer object is no link, whatever its metadata say."""
_TYPES = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


class Modes:
    """Modes, owners and times of the files of a mount; `born_ns` is the time of a directory that has none itself."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        store: Store,
        reader: Reader,
        handles: Handles,
        policy: Policy,
        born_ns: int,
        backlog: Backlog | None,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._reader = reader
        self._handles = handles
        self._policy = policy
        self._born_ns = born_ns
        self._backlog = backlog

    # -- how it looks -----------------------------------------------------------------------------------------------

    def attributes(self, node: Node, above: Node | None = None) -> Attributes:
        """What stat tells of `node`. Who has its directory's row at hand gives it."""
        file = self._handles.by_ino(node.ino)
        writer = file.writer if file is not None else None
        size = writer.size if writer is not None and writer.error is None else node.size
        mtime_ns = node.mtime_ns if file is None else file.node.mtime_ns
        kind = node.kind
        if kind is Kind.DIRECTORY:
            size, mtime_ns = 4096, mtime_ns or self._born_ns
        mode, uid, gid = self._mode(node, kind), *self._owner(node)
        if is_archived(node):
            mode = stat.S_IFMT(mode)
        # What is being written: the kernel asks each time, or it would believe the name for long after the upload.
        # What is still to be asked for is asked for when somebody looks at it.
        is_gone = file is not None and file.deleted
        is_asked = node.is_local or is_gone or self.is_to_ask(node)
        lease_s = 0.0 if is_asked else self._namespace.lease_s(node, above)
        return Attributes(node.ino, kind, size, mtime_ns, mode, uid, gid, lease_s, links=0 if is_gone else 1)

    def _mode(self, node: Node, kind: Kind) -> int:
        if node.mode:
            return _TYPES[kind] | stat.S_IMODE(node.mode)
        return _TYPES[kind] | (self._policy.dir_mode if kind is Kind.DIRECTORY else self._policy.file_mode)

    def _owner(self, node: Node) -> tuple[int, int]:
        uid = self._policy.uid if node.uid is None else node.uid
        return uid, self._policy.gid if node.gid is None else node.gid

    def of(self, node: Node) -> Posix:
        """What the bucket should know of `node`: what programs see."""
        uid, gid = self._owner(node)
        mtime_ns = None if node.kind is Kind.DIRECTORY and not node.mtime_ns else node.mtime_ns
        return Posix(mode=self._mode(node, node.kind), uid=uid, gid=gid, mtime_ns=mtime_ns)

    def of_new(self, parent: int, kind: Kind, posix: Posix) -> Posix:
        """How a new file in `parent` looks that somebody makes as `posix`; what that leaves open, as the mount says."""
        above = self._namespace.directory(parent)
        mode = self._policy.dir_mode if kind is Kind.DIRECTORY else self._policy.file_mode
        mode = _TYPES[kind] | stat.S_IMODE(mode if posix.mode is None else posix.mode)
        uid, gid = (self._policy.uid if posix.uid is None else posix.uid), posix.gid
        if above.mode and above.mode & stat.S_ISGID:  # as everywhere: the group stays in the family
            gid = above.gid
            mode |= stat.S_ISGID if kind is Kind.DIRECTORY else 0
        return Posix(mode=mode, uid=uid, gid=self._policy.gid if gid is None else gid)

    # -- what objects say of themselves -------------------------------------------------------------------------------

    def is_to_ask(self, node: Node) -> bool:
        """Whether how `node` looks is to be asked of its object before it is told."""
        file = self._handles.by_ino(node.ino)
        if file is not None and file.deleted:  # there is none
            return False
        return self._policy.asks_modes and node.mode is None and not node.is_local and node.ino != ROOT_INO

    async def looked_at(self, node: Node) -> Node:
        """`node` as it is told: its object is asked first, if it is to be. StoreError."""
        return await self.ask(node) if self.is_to_ask(node) else node

    async def ask(self, node: Node) -> Node:
        """`node` as its object says that it looks; asked once for each version. StoreError."""
        try:
            info = await self._store.head(self._namespace.key(node))
        except NotFoundError:
            info = None
        except AccessDeniedError as error:
            log.info("%r is shown as the mount says: %s", node.name, error)
            return await self._namespace.describe(node.ino, Posix(mode=NO_MODE)) or node
        if node.kind is not Kind.DIRECTORY and (info is None or info.etag != node.etag):
            self._namespace.expire(node.parent, node.name)
            return node
        said = from_metadata(info.metadata) if info is not None else UNKNOWN
        posix = Posix(mode=_believed(node, said), uid=said.uid, gid=said.gid, mtime_ns=said.mtime_ns)
        return await self._namespace.describe(node.ino, posix) or node

    # -- what programs make of it -------------------------------------------------------------------------------------

    async def change(self, ino: int, changes: Changes) -> Node:
        """chmod, chown, utimens; the row afterwards. StaleInodeError, StaleError, StoreError."""
        if (changes.mode, changes.uid, changes.gid, changes.mtime_ns) == (None, None, None, None):
            known = self._handles.by_ino(ino)
            return self._namespace.node(ino) if known is None else known.node
        async with self.held(ino) as file:
            node = self._namespace.node(ino) if file is None else file.node
            before = self.of(node)
            after = Posix(
                mode=before.mode if changes.mode is None else _TYPES[node.kind] | stat.S_IMODE(changes.mode),
                uid=before.uid if changes.uid is None else changes.uid,
                gid=before.gid if changes.gid is None else changes.gid,
                mtime_ns=before.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
            )
            if (before.mode, before.uid, before.gid) == (after.mode, after.uid, after.gid):
                if changes.mtime_ns is None:
                    return node
                time = Posix(mtime_ns=changes.mtime_ns)
                await self.amend(node, time.to_metadata())
                return await self._note(node, file, time)
            if node.kind is Kind.DIRECTORY:
                await self.mark(node, after.to_metadata())
            elif self.is_stored(node, file):
                node = await self.put(node, file, after.to_metadata())
            else:
                await self.amend(node, after.to_metadata())
            return await self._note(node, file, after)

    @contextlib.asynccontextmanager
    async def held(self, ino: int) -> AsyncIterator[OpenFile | None]:
        """The file, as if it had been opened, while nothing else changes it; None for a directory."""
        if self._handles.by_ino(ino) is None and self._namespace.node(ino).kind is Kind.DIRECTORY:
            yield None
            return
        known = self._handles.by_ino(ino)
        node = self._namespace.node(ino) if known is None else known.node
        async with self._handles.held(node._replace(ino=ino)) as file:
            yield file

    def is_stored(self, node: Node, file: OpenFile | None) -> bool:
        """Whether the bucket has the file as it is, so that no upload will tell it."""
        if node.is_local or not self._namespace.has(node.ino):
            return False
        return file is None or file.writer is None or file.writer.is_clean

    async def _note(self, node: Node, file: OpenFile | None, posix: Posix) -> Node:
        row = await self._namespace.describe(node.ino, posix)
        if row is None:  # deleted or replaced while it is open
            row = node._replace(
                mode=node.mode if posix.mode is None else posix.mode,
                uid=node.uid if posix.uid is None else posix.uid,
                gid=node.gid if posix.gid is None else posix.gid,
                mtime_ns=node.mtime_ns if posix.mtime_ns is None else posix.mtime_ns,
            )
        elif file is not None:
            row = self._namespace.node(row.ino)  # what was just changed may have come to the bucket meanwhile
        if file is not None:
            file.node = row
        return row

    async def put(self, node: Node, file: OpenFile | None, changes: Mapping[str, str | None]) -> Node:
        """Change metadata of a stored object; its row then. StaleError, StoreError."""
        oid = ObjectId(self._namespace.key(node), node.etag)
        try:
            etag = await self._set(oid, node.size, changes)
        except LazyfsError as error:
            self._namespace.expire(node.parent, node.name)  # whether it was done after all, only the bucket knows
            if not isinstance(error, PreconditionFailedError | NotFoundError):
                raise
            raise StaleError(f"{oid.key!r} was replaced or deleted in the bucket meanwhile") from error
        if etag == node.etag:
            return node
        if file is not None and file.object is not None:
            file.object.oid = ObjectId(oid.key, etag)
        if file is not None and file.writer is not None:
            file.writer.follow(etag)
        return await self._namespace.put_file(node.parent, node.name, size=node.size, mtime_ns=node.mtime_ns, etag=etag)

    async def mark(self, node: Node, changes: Mapping[str, str | None]) -> None:
        """Change metadata of a directory's marker, made if need be; the root of a bucket has none. StoreError."""
        key = self._namespace.key(node)
        if not key or await self.amend(node, changes):
            return
        try:
            info = await self._store.head(key)
        except NotFoundError:
            info = None
        if info is not None and info.size:
            await self._store.set_metadata(info.oid, changes)
        else:
            metadata = changed({} if info is None else info.metadata, changes)
            await self._store.put(key, b"", options=PutOptions(metadata=metadata))

    # -- write-back ---------------------------------------------------------------------------------------------------

    def waiting(self, key: str) -> Mapping[str, str] | None:
        """The metadata of what waits for its upload to `key`; None if nothing does."""
        change = None if self._backlog is None else self._backlog.pending.latest(key)
        return change.metadata if change is not None and change.op is Op.PUT else None

    async def amend(self, node: Node, changes: Mapping[str, str | None]) -> bool:
        """Change metadata of what waits for its upload, if it does: whether it did."""
        if self._backlog is None or not self._namespace.has(node.ino):
            return False
        return await self._backlog.amend(self._namespace.key(node), changes)

    def current(self, change: Change, node: Node | None) -> Mapping[str, str]:
        """What the object of `change` is to say now; `node` is the row of its key, None if that means another."""
        if node is None or change.op is not Op.PUT:
            return change.metadata
        return {**change.metadata, **self.of(node).to_metadata()}

    async def restate(self, node: Node, sent: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """`node` was just uploaded with metadata `sent`; if others than a time were set meanwhile, tell the bucket."""
        differ = _differ(sent, wanted)
        if not differ:
            return
        try:
            if node.kind is Kind.DIRECTORY:
                await self.mark(node, {key: wanted.get(key) for key in differ})
                return
            async with self.held(node.ino) as file:
                now = self._namespace.node(node.ino) if file is None else file.node
                if now.etag == node.etag:
                    row = await self.put(now, file, {key: wanted.get(key) for key in differ})
                    if file is not None:
                        file.node = row
        except LazyfsError as error:
            log.warning("mode and owner of %r are known here only: %s", node.name, error)

    # -- uploads -----------------------------------------------------------------------------------------------------

    def metadata(self, file: OpenFile) -> Mapping[str, str]:
        """What an upload of `file` that begins now says of it."""
        return {**file.extra, **self.of(file.node).to_metadata()}

    async def settled(self, oid: ObjectId, size: int, sent: Mapping[str, str], wanted: Mapping[str, str]) -> str:
        """Just uploaded with metadata `sent`, and more than a time has changed since; its ETag in the end.

        What cannot be told the bucket is known here all the same: the bytes are there.
        """
        differ = _differ(sent, wanted)
        if not differ:
            return oid.etag
        try:
            return await self._set(oid, size, {key: wanted.get(key) for key in differ})
        except LazyfsError as error:
            log.warning("mode and owner of %r are known here only: %s", oid.key, error)
            self._namespace.expire_key(oid)
            return oid.etag

    async def _set(self, oid: ObjectId, size: int, changes: Mapping[str, str | None]) -> str:
        """Change metadata of a version; its ETag then. What is here of it stays."""
        if size > MAX_COPY_BYTES:
            log.info("%r is too large to be copied onto itself: its mode and owner are known here only", oid.key)
            return oid.etag
        etag = await self._store.set_metadata(oid, changes)
        if etag != oid.etag:
            self._reader.copied(oid, ObjectId(oid.key, etag))
        return etag


def _differ(sent: Mapping[str, str], wanted: Mapping[str, str]) -> set[str]:
    """The keys that must be told; not for the sake of a time alone."""
    differ = {key for key in {*sent, *wanted} if sent.get(key) != wanted.get(key)}
    return set() if differ <= {MTIME, ATIME} else differ


def _believed(node: Node, said: Posix) -> int:
    """The mode that `node` has if its object says `said`: a type only if it can be one."""
    if said.mode is None:
        return NO_MODE
    kind = node.kind
    if kind is Kind.FILE and stat.S_ISLNK(said.mode) and 0 < node.size <= MAX_TARGET_BYTES:
        kind = Kind.SYMLINK
    return _TYPES[kind] | stat.S_IMODE(said.mode)
