"""Renaming: in a bucket a copy by the server and a delete, of a directory one for each of its objects.

Promises that a rename which fails before its last copy leaves the old names as they were and nothing under the new
one; that one which a kill interrupts is finished by the next mount (`Journal`); that inode numbers stay, as the kernel
goes on using them; that who has a file open goes on reading it; and that what is here of it need not be fetched again.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import trio

from lazyfs.core.errors import (
    CrossDeviceError,
    ExistsError,
    IsDirectoryError,
    LazyfsError,
    NoEntryError,
    NotFoundError,
    PreconditionFailedError,
    StaleError,
    UsageError,
)
from lazyfs.core.types import Kind, ObjectId, ObjectInfo
from lazyfs.index.base import Node
from lazyfs.index.database import Index
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.copying import Copier
from lazyfs.vfs.handles import Handles, OpenFile
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.together import each
from lazyfs.vfs.writeback import WriteBack
from lazyfs.vfs.writers import Writers

log = logging.getLogger(__name__)

MAX_OBJECTS = 10_000
"""Of a directory that is renamed: more take minutes, in which nobody knows what goes on; mv copies them visibly."""
_AT_ONCE = 16
_UNDO_S = 30.0
_META = "renames"


def renames_in(text: str | None) -> dict[str, dict[str, Any]]:
    """The renames in what a journal wrote; what is no rename is left out: an index is a cache, and may be damaged."""
    try:
        document = json.loads(text or "{}")
    except (ValueError, RecursionError):
        document = None
    renames = document.items() if isinstance(document, dict) else ()
    found = {old: rename for old, rename in renames if _is_rename(rename)}
    if not isinstance(document, dict) or len(found) < len(document):
        log.warning("what the index remembers of renames is damaged; some may not be finished")
    return found


def _is_rename(document: Any) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("new"), str):
        return False
    etags, sizes, markers = (document.get(name) for name in ("etags", "sizes", "markers"))
    return (
        isinstance(etags, dict)
        and isinstance(sizes, dict)
        and isinstance(markers, list)
        and all(isinstance(text, str) for text in (*etags.values(), *markers))
        and all(isinstance(size, int) for size in sizes.values())
    )


class Journal:
    """The directory renames that are under way, kept in the index: a killed daemon's are finished by the next mount."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._renames: dict[str, dict[str, Any]] = renames_in(index.meta(_META))

    async def begin(self, old: str, new: str, objects: Sequence[ObjectInfo]) -> None:
        """Note that these objects below `old` get keys below `new`."""
        markers = [info.key for info in objects if _is_marker(info)]
        self._renames[old] = {
            "new": new,
            "etags": {info.key: info.etag for info in objects},
            "sizes": {info.key: info.size for info in objects},
            "markers": markers,
        }
        await self._index.set_meta(_META, json.dumps(self._renames))

    async def end(self, old: str) -> None:
        """The rename of `old` is over, one way or the other."""
        del self._renames[old]
        await self._index.set_meta(_META, json.dumps(self._renames))

    async def finish(self, store: Store, copier: Copier) -> None:
        """Finish what was under way when the last mount ended: of what still is as it was then. What cannot be done
        now is left for the next mount."""

        async def finish_one(source: ObjectId) -> None:
            with contextlib.suppress(NotFoundError, PreconditionFailedError):
                if source.key in rename["markers"]:
                    await _put_marker(store, source.key, new + source.key[len(old) :])
                else:
                    await copier.copy(source, new + source.key[len(old) :], rename["sizes"].get(source.key, 0))
                await store.delete(source.key)

        for old, rename in list(self._renames.items()):
            new: str = rename["new"]
            log.info("finishing the rename of %r to %r", old, new)
            try:
                await each([ObjectId(*item) for item in rename["etags"].items()], finish_one, at_once=_AT_ONCE)
                await self.end(old)
            except LazyfsError as error:
                log.warning("the rename of %r to %r is not finished: %s", old, new, error)


class Renamer:
    """Gives files and directories of a mount other names."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        store: Store,
        handles: Handles,
        writers: Writers,
        reader: Reader,
        policy: Policy,
        journal: Journal,
        copier: Copier,
        write_back: WriteBack | None,
    ) -> None:
        self._write_back = write_back
        self._copier = copier
        self._journal = journal
        self._reader = reader
        self._namespace = namespace
        self._store = store
        self._handles = handles
        self._writers = writers
        self._policy = policy

    async def rename(self, parent: int, name: str, new_parent: int, new_name: str, *, replace: bool) -> None:
        """Give what `name` is another name; what is being written is finished first, as by fsync. CrossDeviceError
        where the caller must copy. StoreError."""
        self._policy.check_writable()
        node = await self._namespace.lookup(parent, name)
        key = self._namespace.new_key(new_parent, new_name)
        try:
            target = await self._namespace.lookup(new_parent, new_name)
        except NoEntryError:
            target = None
        if target is not None and not replace:
            raise ExistsError(new_name)
        if target is not None and target.ino == node.ino:
            return
        if node.kind is Kind.DIRECTORY:
            await self._rename_directory(node, target, new_parent, new_name, key)
        else:
            await self._rename_file(node, target, new_parent, new_name, key)

    # -- files ----------------------------------------------------------------------------------------------------

    async def _rename_file(self, node: Node, target: Node | None, parent: int, name: str, key: str) -> None:
        if target is not None:
            if target.kind is Kind.DIRECTORY:
                raise IsDirectoryError(name)
            self._policy.check_replaceable()
        file = self._handles.by_ino(node.ino)
        if file is not None:
            await self._writers.commit(file)  # what is being written goes up first: an upload cannot change its key
            node = file.node
        replaced = self._handles.by_ino(target.ino) if target is not None else None
        async with replaced.turn if replaced is not None else contextlib.nullcontext():
            if replaced is not None:
                self._writers.remember(replaced)
            if self._write_back is not None:
                moved = await self._write_back.rename_file(node, parent, name, key)
            else:
                source = ObjectId(self._namespace.key(node), node.etag)
                with self._namespace.renaming(source.key, key):
                    etag = await self._known(self._copier.move(source, key, node.size), source, key, node)
                    moved = await self._namespace.move(node, parent, name, etag=etag)
            if replaced is not None:  # as if it had been unlinked: its upload must not land on this one
                self._writers.unlink(replaced)
        if file is not None:
            file.node = moved
            self._follow(file, key, moved.etag)

    async def _known(self, copying: Awaitable[str], source: ObjectId, key: str, node: Node) -> str:
        """The ETag that `copying` of `source` to `key` gives, whose bytes are as resident as those of `source`."""
        try:
            etag = await copying
        except (PreconditionFailedError, NotFoundError) as error:
            self._namespace.expire(node.parent, node.name)
            raise StaleError(f"{source.key!r} was replaced or deleted in the bucket meanwhile") from error
        self._reader.copied(source, ObjectId(key, etag))
        return etag

    def _follow(self, file: OpenFile, key: str, etag: str) -> None:
        """Who has the file open reads it by its new name from now on."""
        self._writers.dismiss(file)  # it knows the old name
        if file.object is not None and self._write_back is None:  # write-back moves it when the copy lands
            file.object.oid = ObjectId(key, etag)

    # -- directories ----------------------------------------------------------------------------------------------

    async def _rename_directory(self, node: Node, target: Node | None, parent: int, name: str, key: str) -> None:
        self._policy.check_deletable()
        old, new = self._namespace.key(node), key + "/"
        if new.startswith(old):
            raise UsageError(f"{node.name!r} cannot become a part of itself")
        if target is not None:
            await self._namespace.check_empty(target)
        open_files = self._files_below(old)
        for file in open_files:
            await self._writers.commit(file)
        if self._write_back is not None:
            await self._write_back.rename_directory(node, parent, name, new, lambda: self._listed(old))
            for file in open_files:
                self._follow_into(file)
            return
        with self._namespace.renaming(old, new):
            await self._move_objects(node, target, parent, name, old, new)
        for file in open_files:
            self._follow_into(file)

    async def _move_objects(self, node: Node, target: Node | None, parent: int, name: str, old: str, new: str) -> None:
        """All objects below `old` get keys below `new`, and then the directory its name; or nothing has changed."""
        objects = await self._listed(old)
        etags: dict[str, str] = {}
        """Of the copies, by path below the directory."""

        async def copy(info: ObjectInfo) -> None:
            path = info.key[len(old) :]
            etags[path] = await self._copy_below(info, new + path, node)

        await self._journal.begin(old, new, objects)
        try:
            await each(objects, copy, at_once=_AT_ONCE)
        except BaseException:
            with trio.move_on_after(_UNDO_S) as scope:
                scope.shield = True
                with contextlib.suppress(LazyfsError):
                    await self._journal.end(old)
                    await each(
                        [new + path for path in etags if path or target is None], self._store.delete, at_once=_AT_ONCE
                    )
            raise
        await each([info.key for info in objects], self._store.delete, at_once=_AT_ONCE)
        files = {path: etag for path, etag in etags.items() if not path.endswith("/") and path}
        await self._namespace.move(node, parent, name, etag="", below=files)
        await self._journal.end(old)

    def _follow_into(self, file: OpenFile) -> None:
        file.node = self._namespace.node(file.node.ino)
        self._follow(file, self._namespace.key(file.node), file.node.etag)

    async def _copy_below(self, info: ObjectInfo, key: str, directory: Node) -> str:
        if _is_marker(info):
            with contextlib.suppress(NotFoundError):
                await _put_marker(self._store, info.key, key)
            return info.etag
        return await self._known(self._copier.copy(info.oid, key, info.size), info.oid, key, directory)

    def _files_below(self, prefix: str) -> list[OpenFile]:
        found = []
        for file in self._handles.files():
            with contextlib.suppress(LazyfsError):
                if not file.deleted and self._namespace.key(file.node).startswith(prefix):
                    found.append(file)
        return found

    async def _listed(self, prefix: str) -> list[ObjectInfo]:
        """All objects below `prefix` as the bucket has them, the large ones first: what tells a reader that the
        directory is complete is small. CrossDeviceError if they are too many."""
        found: list[ObjectInfo] = []
        token: str | None = None
        while True:
            page = await self._store.list_page(prefix, token=token)
            found += page.objects
            if len(found) > MAX_OBJECTS:
                raise CrossDeviceError(f"{prefix!r} has more than {MAX_OBJECTS:,} objects")
            token = page.next_token
            if token is None:
                return sorted(found, key=lambda info: -info.size)


def _is_marker(info: ObjectInfo) -> bool:
    """Whether it only says that there is a directory. It is made anew and not copied, because some servers give it no
    ETag that a copy could ask for."""
    return info.key.endswith("/") and not info.size


async def _put_marker(store: Store, old: str, new: str) -> None:
    """A marker `new` that says of its directory what `old` says."""
    await store.put(new, b"", options=PutOptions(metadata=(await store.head(old)).metadata))
