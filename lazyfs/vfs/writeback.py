"""Write-back: the verbs of a mount on which close() returns once what was written is durable here.

Promises that the mount shows at once what the backlog holds, that a listing of the bucket never contradicts it, and
that whoever reads what is not uploaded yet reads it from here. Hard point: a name may be changed while its upload
lands. So whatever changes the index does so as the backlog's `apply`, one after the other, and looks again there at
what was known before.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from lazyfs.cache.spool import SpoolFile
from lazyfs.core.changes import Change, Op
from lazyfs.core.pending import Plan
from lazyfs.core.posix import Posix, from_metadata
from lazyfs.core.types import ANY, Condition, ObjectId, ObjectInfo
from lazyfs.index.base import LOCAL_ETAG, Node, Row
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.handles import Handles, OpenFile
from lazyfs.vfs.lost import LostAndFound
from lazyfs.vfs.modes import Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.reader import Reader

log = logging.getLogger(__name__)


class WriteBack:
    """Changes the mount now, and the bucket later, by `backlog`."""

    def __init__(
        self,
        *,
        backlog: Backlog,
        namespace: Namespace,
        handles: Handles,
        reader: Reader,
        modes: Modes,
        lost: LostAndFound,
        clock_ns: Callable[[], int],
    ) -> None:
        self.backlog = backlog
        backlog.keep = self.keep
        self._namespace = namespace
        self._index = backlog.index
        self._modes = modes
        self._handles = handles
        self._reader = reader
        self._lost = lost
        self._clock_ns = clock_ns

    async def recover(self) -> None:
        """Show what a former mount has left to be uploaded. StartupError."""
        await self.backlog.recover()
        await self.show()

    async def show(self) -> None:
        """Tell the index, which may have begun anew, of all that waits to be uploaded."""
        async with self.backlog.still():
            wanted = {change.key: change for change in self.backlog.pending.wanted()}.values()  # the latest of each key
            gone = [self._path(change.key) for change in wanted if not change.makes]
            await self._index.restore([self._row(change) for change in wanted if change.makes], gone)

    def content(self, node: Node) -> ObjectId | None:
        """Where the bytes of `node` are until the bucket has them; None if it has, or if they are not whole yet."""
        if not node.is_local or not self._namespace.has(node.ino):
            return None
        change = self.backlog.pending.made(self._namespace.key(node))
        return None if change is None else change.content

    # -- what programs do ------------------------------------------------------------------------------------------

    async def commit(self, file: OpenFile) -> None:
        """Take over what the writer of `file` has; the caller has the file's turn. NoRoomError, SpoolError."""
        writer, node = file.writer, file.node
        assert writer is not None
        size, key = writer.size, writer.key

        def change() -> Change:
            return Change(
                number=0,
                op=Op.PUT,
                key=key,
                size=size,
                mtime_ns=node.mtime_ns,
                knows=file.knows,
                condition=writer.condition,  # an upload that lands meanwhile changes it
                metadata=writer.metadata(),
            )

        async def apply(_plan: Plan) -> None:
            looks = self._modes.of(file.node)
            file.node = await self._namespace.put_file(
                node.parent, node.name, size=size, mtime_ns=node.mtime_ns, etag=LOCAL_ETAG, posix=looks
            )

        content = await writer.hand_over()
        try:
            await self.backlog.put(content, change, apply)
        except BaseException as error:
            writer.give_up(error)
            raise
        file.writer = file.object = None

    async def make_directory(self, parent: int, name: str, key: str, posix: Posix) -> Node:
        """A new directory, whose marker comes later."""
        made: list[Node] = []

        async def apply(_plan: Plan) -> None:
            made.append(await self._namespace.put_directory(parent, name, posix))

        async with self.backlog.planned(apply) as plan:
            self.backlog.pending.make_directory(plan, key, posix.to_metadata())
        return made[0]

    async def make_link(self, parent: int, name: str, key: str, target: bytes, posix: Posix) -> Node:
        """A new symbolic link."""
        made: list[Node] = []
        size, mtime_ns, metadata = len(target), posix.mtime_ns or 0, posix.to_metadata()
        known = self.backlog.pending.newest

        async def apply(_plan: Plan) -> None:
            made.append(
                await self._namespace.put_file(parent, name, size=size, mtime_ns=mtime_ns, etag=LOCAL_ETAG, posix=posix)
            )

        def change() -> Change:
            absent = Condition(absent=True)
            return Change(
                number=0, op=Op.PUT, key=key, size=size, mtime_ns=mtime_ns, knows=known, condition=absent,
                metadata=metadata,
            )  # fmt: skip

        await self.backlog.put(await self.backlog.spooled(target), change, apply)
        return made[0]

    async def remove(self, node: Node, key: str) -> None:
        """A file, or an empty directory, goes; in the bucket later. What was not even closed is only here."""

        async def apply(_plan: Plan) -> None:
            await self._namespace.remove(node)

        async with self.backlog.planned(apply) as plan:
            now = self._namespace.node(node.ino)
            self._outlive(key)
            if not now.is_local or self.backlog.pending.made(key) is not None:
                self.backlog.pending.delete(plan, key, Condition(etag=now.etag) if now.etag else ANY)

    async def rename_file(self, node: Node, parent: int, name: str, key: str) -> Node:
        """`node`, which nobody is writing, becomes `name`."""
        old = self._namespace.key(node)
        await self._copied(lambda: self.backlog.pending.of_key(old))
        moved: list[Node] = []

        async def apply(_plan: Plan) -> None:
            now = self._namespace.node(node.ino)
            moved.append(await self._namespace.move(now, parent, name, etag=LOCAL_ETAG))

        async with self.backlog.planned(apply) as plan:
            now = self._namespace.node(node.ino)
            self._outlive(key)
            self.backlog.pending.rename(plan, old, key, ObjectInfo(old, now.etag, now.size, now.mtime_ns))
        return moved[0]

    async def rename_directory(
        self, node: Node, parent: int, name: str, key: str, listed: Callable[[], Awaitable[list[ObjectInfo]]]
    ) -> None:
        """Directory `node`, in which nobody is writing, becomes `name`, whose marker is `key`. `listed` lists what the
        bucket has in it."""
        old = self._namespace.key(node)
        await self._copied(lambda: [change for change in self.backlog.pending if change.key.startswith(old)])

        async def apply(plan: Plan) -> None:
            await self._namespace.move(self._namespace.node(node.ino), parent, name, etag="")
            await self._index.restore([self._row(change) for change in plan.added if change.makes])

        with self.backlog.landing(old) as landed:
            objects = {info.key: info for info in await listed()}
            async with self.backlog.planned(apply) as plan:
                now = {**objects, **landed}
                there = {name: info for name, info in now.items() if info is not None}
                self.backlog.pending.rename_below(plan, old, key, there)

    async def _copied(self, among: Callable[[], Iterable[Change]]) -> None:
        """Return when none of these is a copy that is still to be made: those cannot be renamed once more."""
        await self.backlog.carried_out(lambda: [change for change in among() if change.op is Op.COPY])

    def _outlive(self, key: str) -> None:
        """`key` is about to lose what it has: who has that open goes on reading it here."""
        made, node = self.backlog.pending.made(key), self._node(key)
        file = None if node is None else self._handles.by_ino(node.ino)
        if made is not None and made.token and file is not None and file.handles and file.kept is None:
            file.kept = made
            self.backlog.retain(made)

    async def closed(self, file: OpenFile) -> None:
        """Nobody has it open any more."""
        made, file.kept = file.kept, None
        if made is not None:
            await self.backlog.let_go(made)

    async def uploaded(self, file: OpenFile) -> None:
        """Return when the bucket has what was committed of `file`. StoreError if that fails now; it is tried again."""
        if file.deleted:
            return
        key = self._namespace.key(file.node)
        await self.backlog.carried_out(lambda: self.backlog.pending.of_key(key))

    # -- what the uploader tells -----------------------------------------------------------------------------------

    def metadata(self, change: Change) -> Mapping[str, str]:
        """What the object of `change`, which is not over, is to say now."""
        pending = self.backlog.pending
        return self._modes.current(
            pending.current(change), self._node(change.key) if pending.is_latest(change) else None
        )

    async def restate(self, change: Change, etag: str, sent: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """`change` is in the bucket with metadata `sent`; what was set since is told it too."""
        node = self._node(change.key)
        if node is not None and (node.etag == etag or change.is_marker):
            await self._modes.restate(node, sent, wanted)

    async def landed(self, change: Change, etag: str) -> None:
        """The bucket has `change`, the latest of its key, as version `etag`."""
        if not change.makes or change.is_marker:
            return
        node, version = self._node(change.key), ObjectId(change.key, etag)
        self._reader.copied(change.content, version)
        if node is None or not node.is_local:
            return
        if await self._index.arrived(node, etag, now_ns=self._clock_ns()) is None:
            return
        file = self._handles.by_ino(node.ino)
        if file is None:
            return
        file.node = self._namespace.node(node.ino)  # a time may have been set meanwhile
        if file.object is not None and file.object.oid == change.content:
            file.object.oid = version
        if file.writer is not None:
            file.writer.expect(Condition(etag=etag))

    def keep(self, change: Change, etag: str, content: SpoolFile | None) -> None:
        """What was just uploaded need not be fetched again."""
        if content is None:
            return
        if change.makes and etag:
            self._reader.keep_spooled(ObjectId(change.key, etag), content, formerly=change.content)
        else:
            content.close()

    async def lost(self, change: Change) -> None:
        """Somebody else has changed the key meanwhile, and theirs stays; or what was to be copied is gone."""
        node = self._node(change.key)

        async def forget() -> None:
            if node is not None and node.is_local and self.backlog.pending.latest(change.key) is None:
                await self._namespace.remove(node)
                self._namespace.expire(node.parent, node.name)

        if change.op is not Op.PUT or not change.size:
            await self.backlog.give_up(change)
            await forget()
            log.error("%r was replaced or deleted in the bucket before it could be copied or written", change.key)
            return
        place = self._lost.place(change.key)

        async def apply(plan: Plan) -> None:
            await self._index.restore([self._row(diverted) for diverted in plan.added])

        async with self.backlog.planned(apply) as plan:
            self.backlog.pending.divert(plan, change, place)
        await forget()
        self._lost.entries.append((change.key, place))
        log.error("somebody else has changed %r; what was written here is kept as %r", change.key, place)

    def _node(self, key: str) -> Node | None:
        path = self._path(key)
        above, _, name = path.removesuffix("/").rpartition("/")
        parent = self._index.find_directory(above)
        name += "/" if path.endswith("/") else ""
        return None if parent is None else self._index.entry(parent, name)

    def _path(self, key: str) -> str:
        return key[len(self._namespace.root) :]

    def _row(self, change: Change) -> Row:
        return Row(self._path(change.key), change.size, change.mtime_ns, from_metadata(change.metadata))
