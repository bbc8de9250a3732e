"""What is known of a file and costs no request: its state, and which of its bytes are here, tier by tier.

Promises that a range that is told of a tier is of the version that the name means now, and that asking uses nothing: no
block becomes more recent by it. What the kernel keeps in its own page cache is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import trio

from lazyfs.cache.blockcache import Held
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.changes import Change
from lazyfs.core.errors import NoAttributeError
from lazyfs.core.residency import State, format_tiers, ranges_of, runs_of, state_of_clean, total, union
from lazyfs.core.types import Kind, ObjectId, Range
from lazyfs.index.base import Node, is_archived
from lazyfs.vfs.backlog import Backlog
from lazyfs.vfs.fetcher import Fetcher
from lazyfs.vfs.handles import Handles, OpenFile
from lazyfs.vfs.namespace import Namespace

ATTRIBUTES = "user.lazyfs."
"""What the names of attributes begin with that tell these facts."""
_MAX_ATTRIBUTE = 60_000
"""Bytes of an attribute's value; the kernel takes 64 KiB."""
_BLOCKS_AT_ONCE = 8192
"""That are looked up in memory, a millisecond's work, before the mount goes on with something else."""
_FILES_AT_ONCE = 32
_NOWHERE: Mapping[str, Sequence[Range]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One file. `tiers` has the ranges of those that have any; `stored_s` is when the newest block on the disk was
    stored there, `opened_s` when the file was opened last, in seconds since the epoch; `pinned` bytes are not evicted;
    of an upload of several parts `parts` says how many have arrived, and of how many.
    """

    node: Node
    key: str
    size: int
    state: State
    tiers: Mapping[str, Sequence[Range]] = field(default_factory=lambda: _NOWHERE)
    stored_s: float | None = None
    opened_s: float | None = None
    pinned: int = 0
    parts: tuple[int, int] | None = None
    error: str = ""

    @property
    def resident(self) -> int:
        """Bytes that are here, in whichever tier."""
        return total(union(*self.tiers.values()))


class FactsOf:
    """Answers for one mount; `bound` tells the version that an inode without handles is read in."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: TieredCache,
        fetcher: Fetcher,
        handles: Handles,
        bound: Callable[[int], OpenFile | None],
        backlog: Backlog | None,
    ) -> None:
        self._namespace = namespace
        self._cache = cache
        self._fetcher = fetcher
        self._handles = handles
        self._bound = bound
        self._backlog = backlog

    async def files(self, nodes: Sequence[tuple[Node, str]]) -> list[Facts]:
        """The facts of files, given with their keys, in their order; the disk is asked once for all of them."""
        held = await self._on_disk([self._oid(node, key) for node, key in nodes], [node.size for node, _ in nodes])
        found = []
        for number, ((node, key), disk) in enumerate(zip(nodes, held, strict=True), 1):
            facts = await self._file(node, key, disk)
            found.append(replace(facts, opened_s=self._handles.opened_s(node.ino)))
            if number % _FILES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return found

    async def attribute(self, ino: int, name: str) -> bytes:
        """The extended attribute `name`. NoAttributeError, also for a directory."""
        what = name.removeprefix(ATTRIBUTES)
        file = self._handles.by_ino(ino)
        if file is None and not self._namespace.has(ino):
            file = self._bound(ino)
        node = file.node if file is not None else self._namespace.node(ino)
        if node.kind is Kind.DIRECTORY or what not in ("state", "ranges", "etag", "key", "error"):
            raise NoAttributeError(name)
        if file is not None and not self._namespace.has(node.ino):
            facts = await self._of_former(file)
        else:
            (facts,) = await self.files([(node, self._namespace.key(node))])
        values = {
            "state": facts.state.value,
            "ranges": format_tiers(facts.tiers.items(), limit=_MAX_ATTRIBUTE // 4),
            "etag": "" if node.is_local else node.etag,
            "key": facts.key,
            "error": facts.error,
        }
        if not values[what]:
            raise NoAttributeError(name)
        return values[what].encode()

    def count_blocks(self, node: Node) -> int:
        """How many blocks it has: what it costs to ask."""
        return len(self._fetcher.blocks(node.size))

    def versions(self, node: Node, key: str) -> list[tuple[ObjectId, int]]:
        """Under which names the tiers may have blocks of a file, and how many blocks it has; none if they have none."""
        if node.is_local:
            return []
        count = len(self._fetcher.blocks(node.size))
        return [(oid, count) for oid in self._fetcher.known_as(ObjectId(key, node.etag))]

    def is_here_only(self, node: Node, key: str) -> bool:
        """Whether the bucket does not have all of it, or a program is changing it."""
        return node.is_local or self._pending(key) is not None or self._being_written(node) is not None

    def _oid(self, node: Node, key: str) -> ObjectId | None:
        return None if node.is_local or not node.size else ObjectId(key, node.etag)

    async def _on_disk(self, oids: Sequence[ObjectId | None], sizes: Sequence[int]) -> list[list[Held]]:
        """Of each version what the disk has of it, under each of its names."""
        wanted: list[tuple[ObjectId, int]] = []
        found: list[list[Held]] = [[] for _ in oids]
        whose: list[list[Held]] = []
        if self._cache.disk is None:
            return found
        for oid, size, held in zip(oids, sizes, found, strict=True):
            for known in () if oid is None else self._fetcher.known_as(oid):
                wanted.append((known, len(self._fetcher.blocks(size))))
                whose.append(held)
        for held, answer in zip(whose, await self._cache.disk.survey(wanted) if wanted else (), strict=True):
            held.append(answer)
        return found

    async def _of_former(self, file: OpenFile) -> Facts:
        """A version that is open and has no name any more. NoAttributeError if it never was one of an object."""
        if file.object is None or file.writer is not None:
            raise NoAttributeError("it has no name any more")
        oid, size = file.object.oid, file.object.size
        (disk,) = await self._on_disk([oid], [size])
        tiers = await self._resident(oid, size, disk)
        return Facts(node=file.node, key=oid.key, size=size, state=State.STALE, tiers=tiers)

    async def _file(self, node: Node, key: str, disk: Sequence[Held]) -> Facts:
        writing = self._being_written(node)
        if writing is not None:
            return Facts(node=node, key=key, size=writing, state=State.DIRTY)
        change = self._pending(key)
        if change is not None:
            return self._waiting(node, key, change)
        if node.is_local:
            return Facts(node=node, key=key, size=node.size, state=State.DIRTY)
        tiers = await self._resident(ObjectId(key, node.etag), node.size, disk)
        return Facts(
            node=node,
            key=key,
            size=node.size,
            state=state_of_clean(node.size, total(union(*tiers.values()))),
            tiers=tiers,
            stored_s=max((held.stored_s for held in disk if held.stored_s is not None), default=None),
            pinned=total(union(*(self._ranges(held.pinned, node.size) for held in disk))),
            error=f"in storage class {node.storage_class}; restore it first" if is_archived(node) else "",
        )

    async def _resident(self, oid: ObjectId, size: int, disk: Sequence[Held]) -> dict[str, list[Range]]:
        blocks = self._fetcher.blocks(size)
        in_memory: list[range] = []
        for known in self._fetcher.known_as(oid):
            for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
                some = blocks[start : start + _BLOCKS_AT_ONCE]
                in_memory += runs_of(block for block in some if self._cache.memory.has(known, block))
                if len(blocks) > _BLOCKS_AT_ONCE:
                    await trio.lowlevel.checkpoint()
        whole = [Range(0, size)] if size and self._fetcher.is_spooled(oid) else []
        tiers = {
            "memory": union(self._ranges(in_memory, size)),
            "disk": union(*(self._ranges(held.runs, size) for held in disk)),
            "spool": whole,
        }
        return {name: ranges for name, ranges in tiers.items() if ranges}

    def _ranges(self, runs: Sequence[range], size: int) -> list[Range]:
        return ranges_of(runs, self._fetcher.block_size, size)

    def _waiting(self, node: Node, key: str, change: Change) -> Facts:
        assert self._backlog is not None
        error = self._backlog.failures.get(change.number)
        is_taken = self._backlog.pending.is_taken(change)
        state = State.FAILED if error is not None else State.UPLOADING if is_taken else State.DIRTY
        spool = [Range(0, change.size)] if change.token and change.size else []
        return Facts(
            node=node,
            key=key,
            size=node.size,
            state=state,
            tiers={"spool": spool} if spool else _NOWHERE,
            parts=self._backlog.parts.get(change.number),
            error="" if error is None else str(error),
        )

    def _pending(self, key: str) -> Change | None:
        """What is to become of it in the bucket."""
        return None if self._backlog is None else self._backlog.pending.made(key)

    def _being_written(self, node: Node) -> int | None:
        """How long it is now, if a program has it open and the bucket does not have all that it wrote."""
        file = self._handles.by_ino(node.ino)
        if file is None or file.writer is None or not (file.writer.is_dirty or node.is_local):
            return None
        return file.writer.size
