"""Symbolic links: objects whose body is the target and whose metadata say so, as FSx for Lustre has them.

Promises that a target comes back byte for byte. Never follows one: that is the kernel's business, in the view of the
program that asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lazyfs.core.errors import BadLinkError, ExistsError, NameTooLongError, PreconditionFailedError, UsageError
from lazyfs.core.posix import Posix
from lazyfs.core.types import Condition, Kind, ObjectId, Range
from lazyfs.index.base import Node
from lazyfs.store.base import PutOptions, Store
from lazyfs.vfs.handles import OpenFile
from lazyfs.vfs.modes import MAX_TARGET_BYTES, Modes
from lazyfs.vfs.namespace import Namespace
from lazyfs.vfs.policy import Policy
from lazyfs.vfs.reader import Reader
from lazyfs.vfs.writeback import WriteBack
from lazyfs.vfs.writers import Writers


class Links:
    """Makes and reads the symbolic links of a mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        store: Store,
        reader: Reader,
        writers: Writers,
        modes: Modes,
        policy: Policy,
        clock_ns: Callable[[], int],
        write_back: WriteBack | None,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._reader = reader
        self._writers = writers
        self._modes = modes
        self._policy = policy
        self._clock_ns = clock_ns
        self._write_back = write_back

    async def make(self, parent: int, name: str, target: bytes, posix: Posix) -> Node:
        """A new link to `target`, in the bucket when this returns, or durable here with write-back. ExistsError,
        NameTooLongError, StoreError."""
        self._policy.check_writable()
        if len(target) > MAX_TARGET_BYTES:
            raise NameTooLongError(f"a target of {len(target)} bytes")
        key = self._namespace.new_key(parent, name)
        await self._namespace.check_absent(parent, name)
        now_ns = self._clock_ns()
        posix = self._modes.of_new(parent, Kind.SYMLINK, replace(posix, mode=0o777))
        if self._write_back is not None:
            return await self._write_back.make_link(parent, name, key, target, replace(posix, mtime_ns=now_ns))
        options = PutOptions(metadata=replace(posix, mtime_ns=now_ns).to_metadata())
        condition = Condition(absent=self._policy.conditional_put)
        try:
            etag = await self._store.put(key, target, options=options, condition=condition)
        except PreconditionFailedError:
            self._namespace.expire(parent, name)
            raise ExistsError(name) from None
        self._reader.keep(ObjectId(key, etag), target)
        return await self._namespace.put_file(parent, name, size=len(target), mtime_ns=now_ns, etag=etag, posix=posix)

    async def target(self, ino: int) -> bytes:
        """Where it leads. UsageError if it is no link, StaleError, StoreError, BadLinkError."""
        node = self._namespace.node(ino)
        if node.kind is not Kind.SYMLINK:
            raise UsageError(f"{node.name!r} is not a symbolic link")
        if not 0 < node.size <= MAX_TARGET_BYTES:
            raise BadLinkError(f"{node.name!r}: a target of {node.size} bytes")
        target = bytes(await self._reader.read(self._writers.object(OpenFile(node)), Range(0, node.size)))
        if b"\0" in target:
            raise BadLinkError(f"{node.name!r}: NUL in the target")
        return target
