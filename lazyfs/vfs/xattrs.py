"""Extended attributes `user.*` of files and directories, kept as user metadata of their objects.

Promises that what setxattr returned from is in the bucket, or goes up with the upload that is on its way. What an
object says is asked by a HEAD and believed as long as its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lazyfs.core.changes import MARK
from lazyfs.core.errors import (
    NoAttributeError,
    NoRoomError,
    NotFoundError,
    NotSupportedError,
    StaleError,
)
from lazyfs.core.eviction import LRU
from lazyfs.core.parts import MAX_COPY_BYTES
from lazyfs.core.posix import KEYS
from lazyfs.core.types import Kind
from lazyfs.core.xattrs import attributes_of, fits, key_of, text_of
from lazyfs.index.base import LOCAL_ETAG, Node
from lazyfs.store.base import Store
from lazyfs.store.metadata import changed
from lazyfs.vfs.facts import ATTRIBUTES, FactsOf
from lazyfs.vfs.handles import Handles, OpenFile
from lazyfs.vfs.modes import Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy

_HIDDEN = KEYS | {MARK}
"""User metadata that are no attributes of anybody's."""
MAX_TOLD = 10_000
"""Objects whose metadata are remembered; 2 KiB each at the most."""


class Xattrs:
    """Reads and changes the extended attributes of a mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        store: Store,
        handles: Handles,
        modes: Modes,
        policy: Policy,
        clock_ns: Callable[[], int],
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._handles = handles
        self._modes = modes
        self._policy = policy
        self._clock_ns = clock_ns
        self._told: LRU[int, tuple[str, int, Mapping[str, str]]] = LRU()
        """By inode: of which ETag, until when in ns, and what."""
        self.facts: FactsOf | None = None
        """What tells `user.lazyfs.*`, which are not listed: cp and rsync would try to set them on the copy."""

    async def names(self, ino: int) -> list[bytes]:
        """The attributes that there are. StoreError."""
        return sorted(attributes_of(await self._known(ino)))

    async def get(self, ino: int, name: bytes) -> bytes:
        """One attribute. NoAttributeError, StoreError."""
        if self.facts is not None and name.startswith(ATTRIBUTES.encode()):
            return await self.facts.attribute(ino, name.decode(errors="replace"))
        if key_of(name) is None:  # the kernel asks for security.capability before each write
            raise NoAttributeError(name.decode(errors="replace"))
        try:
            return attributes_of(await self._known(ino))[name]
        except KeyError:
            raise NoAttributeError(name.decode(errors="replace")) from None

    async def set(self, ino: int, name: bytes, value: bytes) -> None:
        """Make or replace an attribute. NotSupportedError for a name that no metadata can have, NoRoomError."""
        self._policy.check_writable()
        key = key_of(name)
        if key is None:
            raise NotSupportedError(f"{name.decode(errors='replace')} cannot be kept as metadata of an object")
        await self._change(ino, {key: text_of(value)})

    async def remove(self, ino: int, name: bytes) -> None:
        """Take an attribute away. NoAttributeError."""
        self._policy.check_writable()
        await self.get(ino, name)
        key = key_of(name)
        known = await self._known(ino)
        await self._change(ino, dict.fromkeys(one for one in known if one.lower() == key))

    async def load(self, file: OpenFile) -> None:
        """Before a file is written to: what its object says goes along with the next one."""
        if file.writer is None and not file.deleted:
            file.extra = await self._ask(file.node)

    async def _known(self, ino: int) -> Mapping[str, str]:
        """User metadata, but for mode, owner and times."""
        file = self._handles.by_ino(ino)
        node = self._namespace.node(ino) if file is None else file.node
        if file is not None and file.writer is not None and (node.is_local or not file.writer.is_clean):
            return file.extra
        return {} if node.kind is Kind.SYMLINK else await self._ask(node)

    async def _ask(self, node: Node) -> Mapping[str, str]:
        told = self._told.get(node.ino)
        if told is not None and told[0] == node.etag != LOCAL_ETAG and self._clock_ns() < told[1]:
            return told[2]
        key = self._namespace.key(node)
        if (waiting := self._modes.waiting(key)) is not None:
            return {name: text for name, text in waiting.items() if name.lower() not in _HIDDEN}
        try:
            info = await self._store.head(key) if key else None
        except NotFoundError:
            info = None
        if node.kind is not Kind.DIRECTORY and (info is None or info.etag != node.etag):
            self._namespace.expire(node.parent, node.name)
            raise StaleError(f"{key!r} was replaced or deleted in the bucket meanwhile")
        metadata = {} if info is None else info.metadata
        return self._remember(node, {name: text for name, text in metadata.items() if name.lower() not in _HIDDEN})

    def _remember(self, node: Node, metadata: Mapping[str, str]) -> Mapping[str, str]:
        until_ns = self._clock_ns() + round(self._namespace.lease_s(node) * 1e9)
        self._told.put(node.ino, (node.etag, until_ns, metadata), 1)
        self._told.trim(MAX_TOLD)
        return metadata

    async def _change(self, ino: int, changes: Mapping[str, str | None]) -> None:
        async with self._modes.held(ino) as file:
            after = changed(await self._known(ino), changes)
            node = self._namespace.node(ino) if file is None else file.node
            if not fits({**after, **self._modes.of(node).to_metadata()}):
                raise NoRoomError("the metadata of an object have 2 KiB at the most")
            if file is None:
                if not self._namespace.key(node):
                    raise NotSupportedError("the root of a bucket has no object that could keep it")
                await self._modes.mark(node, changes)
            elif self._modes.is_stored(node, file):
                if node.size > MAX_COPY_BYTES:
                    raise NotSupportedError(f"{node.name!r} is too large to be copied onto itself")
                file.node = node = await self._modes.put(node, file, changes)
            else:
                await self._modes.amend(node, changes)
            if file is not None:
                file.extra = after
            self._remember(node, after)
