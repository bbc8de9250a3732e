"""Release: what is here of files gives its room back, and is fetched again by whoever reads it.

Promises that nothing goes which the bucket does not have: only blocks of the memory tier and of the SSD are dropped,
and those are copies of one version in the bucket. What waits for its upload lies elsewhere, and its file is left alone,
as is one that is pinned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from lazyfs.cache.tiered import TieredCache
from lazyfs.core.errors import StaleInodeError
from lazyfs.core.types import Kind, ObjectId
from lazyfs.vfs.facts import FactsOf
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.namespace import Namespace

_BLOCKS_AT_ONCE = 8192
"""Dropped from memory before the mount goes on with something else: a few milliseconds."""


@dataclass(slots=True)
class Released:
    """What became of a release, by inode: bytes that were here and are not, or why it was left alone."""

    bytes: dict[int, int] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)


class Releaser:
    """Drops what one mount has of files."""

    def __init__(self, *, namespace: Namespace, facts: FactsOf, fetcher: Fetcher, cache: TieredCache) -> None:
        self._namespace = namespace
        self._facts = facts
        self._fetcher = fetcher
        self._cache = cache

    async def release(self, inos: Sequence[int]) -> Released:
        """Drop all that is here of these files. Never raises."""
        outcome = Released()
        files = []
        for ino in inos:
            try:
                node = self._namespace.node(ino)
                key = self._namespace.key(node)
            except StaleInodeError:
                outcome.kept[ino] = "was replaced or deleted meanwhile"
                continue
            if node.kind is Kind.DIRECTORY:
                outcome.kept[ino] = "is a directory"
            elif self._facts.is_here_only(node, key):
                outcome.kept[ino] = "is written, or waits for its upload"
            elif self._fetcher.is_spooled(ObjectId(key, node.etag)):
                outcome.kept[ino] = "was just written, and is on its way to the cache directory"
            else:
                files.append((node, key))
        facts = await self._facts.files(files)
        pinned = {one.node.ino for one in facts if one.pinned}
        outcome.kept |= dict.fromkeys(pinned, "is pinned (lazyfs unpin)")
        files = [(node, key) for node, key in files if node.ino not in pinned]
        facts = [one for one in facts if one.node.ino not in pinned]
        versions = [version for node, key in files for version in self._facts.versions(node, key)]
        await self._forget(versions)
        outcome.bytes = {one.node.ino: one.resident for one in facts}
        return outcome

    async def unpin(self, inos: Sequence[int]) -> None:
        """What is here of these files may be evicted and released again. Never raises."""
        versions = []
        for ino in inos:
            with contextlib.suppress(StaleInodeError):
                node = self._namespace.node(ino)
                versions += self._facts.versions(node, self._namespace.key(node))
        if self._cache.disk is not None and versions:
            await self._cache.disk.unpin(versions)

    async def _forget(self, versions: Sequence[tuple[ObjectId, int]]) -> None:
        for oid, count in versions:
            for block in range(count):
                self._cache.memory.forget(oid, block)
                if block % _BLOCKS_AT_ONCE == _BLOCKS_AT_ONCE - 1:
                    await trio.lowlevel.checkpoint()
        if self._cache.disk is not None and versions:
            await self._cache.disk.forget(versions)
