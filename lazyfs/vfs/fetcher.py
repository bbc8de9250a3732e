"""Blocks on their way: memory, then flights under way, then SSD, then what nodes share, then one GET per extent.

Each block is in at most one flight, shared by all who want it. A flight runs in the mount's nursery, holds a
reservation of memory for exactly the bytes that it fetches, and takes a slot only while it talks to S3.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import trio

from lazyfs.cache.blockfile import NOTHING
from lazyfs.cache.spool import SpoolFile
from lazyfs.cache.tiered import TieredCache
from lazyfs.core.errors import NotFoundError, PreconditionFailedError, SpoolError, StaleError
from lazyfs.core.eviction import LRU
from lazyfs.core.ranges import block_range, blocks_of, plan_extents
from lazyfs.core.stats import Stats
from lazyfs.core.throughput import Throughput
from lazyfs.core.types import Buffer, ObjectId, Range
from lazyfs.store.base import Store
from lazyfs.vfs.flight import Flight
from lazyfs.vfs.slots import Slots, Ticket, Urgency
from lazyfs.vfs.tally import Tally

log = logging.getLogger(__name__)

MAX_ORIGINS = 100_000
BESIDE_BLOCKS = 4
"""Of an extent that is preloaded beside readers: what stands in their way is short then, and is still stored as one."""
MAX_RENAMES = 4
"""That one read follows: names may go in circles."""
MAX_BECAME = 10_000
"""Uploads and renames of which it is remembered what they became, for who began to read before: seconds' worth."""


SLOWEST_FIRST = ("s3", "shared", "disk", "spool")
FAILED = "failed"
"""Instead of a tier: of waits that ended in an error, or by a signal."""


def slowest(tiers: Collection[str]) -> str:
    """What a reader waited for, who waited for all of these."""
    return next((tier for tier in SLOWEST_FIRST if tier in tiers), FAILED)


Waiting: TypeAlias = Callable[[ObjectId, Range], Awaitable[Buffer | None]]
"""Bytes of a version that waits for its upload; None if it does not. SpoolError."""


async def nothing_waits(_oid: ObjectId, _span: Range) -> Buffer | None:
    """For mounts without write-back."""
    return None


class _BlockFlight(Flight[dict[int, Buffer]]):
    """The fetch of one extent."""

    __slots__ = ("ticket", "tiers")

    def __init__(self, ticket: Ticket) -> None:
        super().__init__()
        self.ticket = ticket
        self.tiers: dict[int, str] = {}
        """Where each block came from, if not from S3."""


class Fetcher:
    """Turns (version, blocks) into bytes.

    `block_size` and `extent_size` in bytes; an extent, the most that one GET asks for, is a whole number of blocks.
    `on_stale` hears of versions that the bucket no longer has. `waiting` has those that it does not have yet.
    """

    def __init__(
        self,
        *,
        store: Store,
        cache: TieredCache,
        nursery: trio.Nursery,
        slots: Slots,
        block_size: int,
        extent_size: int,
        on_stale: Callable[[ObjectId], None],
        stats: Stats,
        waiting: Waiting = nothing_waits,
    ) -> None:
        self.block_size = block_size
        self._extent_blocks = max(1, extent_size // block_size)
        self._store = store
        self._cache = cache
        self._nursery = nursery
        self._slots = slots
        self._on_stale = on_stale
        self._waiting = waiting
        self.stats = stats
        self.throughput = Throughput(now_s=trio.current_time())
        """Of range GETs."""
        self._waiting_since_s = 0.0
        """When a reader began or ended to wait, for the last time."""
        self._flights: dict[tuple[ObjectId, int], _BlockFlight] = {}
        self._spooled: dict[ObjectId, SpoolFile] = {}
        """What was written here and is not on the disk yet."""
        self._origins: LRU[ObjectId, ObjectId] = LRU()
        """Of copies that the server made for us: what they are copies of."""
        self._became: LRU[ObjectId, ObjectId] = LRU()
        """The same the other way round, and of what was only here: the version that the bucket has now."""

    @property
    def in_flight(self) -> int:
        """Blocks on their way; zero when nothing is going on."""
        return len(self._flights)

    def blocks(self, size: int) -> range:
        """All blocks of an object of `size` bytes."""
        return blocks_of(Range(0, size), self.block_size)

    def known_as(self, oid: ObjectId) -> tuple[ObjectId, ...]:
        """The versions whose blocks are blocks of `oid`: itself, and what it is a copy of."""
        origin = self._origins.get(oid) if len(self._origins) else None
        return (oid,) if origin is None else (oid, origin)

    def is_spooled(self, oid: ObjectId) -> bool:
        """Whether all of it was written here, and is served from the spool until the disk has it."""
        return any(known in self._spooled for known in self.known_as(oid))

    def run(self, oid: ObjectId, blocks: range) -> Buffer | None:
        """Neighbouring blocks in one piece if memory has them so: no await, no thread, no SQL, no copy."""
        return self._cache.run(oid, blocks)

    async def fetch(
        self, oid: ObjectId, size: int, blocks: Sequence[int], span: Range, tally: Tally | None = None
    ) -> dict[int, Buffer]:
        """Exactly `blocks` (ascending) of the object of `size` bytes. StaleError, StoreError.

        `span`, which lies in them, is what the reader will be given; it is counted by the tier that it came from, in
        its `tally` too.
        """
        tally = Tally() if tally is None else tally
        found: dict[int, Buffer] = {}
        waiting: dict[_BlockFlight, list[int]] = {}
        missing: list[int] = []
        for block in blocks:
            data = self._cache.resident(oid, block)
            flight = self._flights.get((oid, block))
            if data is not None:
                found[block] = data
            elif flight is not None:
                self._slots.promote(flight.ticket)
                waiting.setdefault(flight, []).append(block)
            else:
                missing.append(block)
        tiers = dict.fromkeys(found, "memory")
        for extent in plan_extents(missing, self._extent_blocks):
            waiting[self._start(oid, size, extent, Urgency.DEMAND)] = list(extent)
        if waiting:
            await self._wait(waiting, found, tiers, tally)
        for tier, count in self._by_tier(tiers, span, size):
            self.stats.add(f"read.bytes.{tier}", count)
            tally.found(tier, count)
        return found

    async def _wait(
        self,
        waiting: Mapping[_BlockFlight, list[int]],
        found: dict[int, Buffer],
        tiers: dict[int, str],
        tally: Tally,
    ) -> None:
        """Put into `found` and `tiers` what a reader wants of flights, and count how long it waits."""
        began_s, came_from = trio.current_time(), FAILED
        self.stats.add("read.stalls")
        self._note_waiting(began_s, 1)
        try:
            for flight, wanted in waiting.items():
                arrived = await flight.wait()
                for block in wanted:
                    found[block] = arrived[block]
                    tiers[block] = flight.tiers.get(block, "s3")
            came_from = slowest({tiers[block] for wanted in waiting.values() for block in wanted})
        finally:
            ended_s = trio.current_time()
            took_ns = int((ended_s - began_s) * 1e9)
            self._note_waiting(ended_s, -1)
            self.stats.add("read.stall_ns", took_ns)
            self.stats.observe(f"read.wait.{came_from}", took_ns)
            tally.waited_ns += took_ns

    def _note_waiting(self, now_s: float, change: int) -> None:
        """A reader begins to wait, or ends; for how long anybody did is brought up to `now_s`."""
        if self.stats.get("read.waiting"):
            self.stats.add("read.stalled_ns", int((now_s - self._waiting_since_s) * 1e9))
        self._waiting_since_s = now_s
        self.stats.add("read.waiting", change)

    def _by_tier(self, tiers: Mapping[int, str], span: Range, size: int) -> Iterator[tuple[str, int]]:
        """How many bytes of `span` came from where."""
        if len(tiers) == 1 or len(set(tiers.values())) == 1:
            yield next(iter(tiers.values())), span.size
            return
        for block in blocks_of(span, self.block_size):
            whole = block_range(block, self.block_size, size)
            yield tiers[block], min(whole.stop, span.stop) - max(whole.start, span.start)

    def prefetch(self, oid: ObjectId, size: int, blocks: Sequence[int]) -> None:
        """Bring `blocks` into memory some time soon, as far as memory allows. Never waits, never raises.

        They are asked for in their order, ascending or descending: the first are needed first.
        """
        missing = self._not_coming(oid, blocks)
        for extent in plan_extents(missing, self._extent_blocks):
            if not self._cache.memory.try_reserve(self._span(extent, size).size):
                self.stats.add("readahead.dropped_blocks", len(extent))
                return
            self._start(oid, size, extent, Urgency.AHEAD)

    async def preload(self, oid: ObjectId, size: int, blocks: Sequence[int]) -> None:
        """Bring to the disk `blocks` (ascending) that are not there; what a reader has brought comes there by itself.

        Waits until there is memory that no reader needs. StaleError, StoreError.
        """
        missing = self._not_coming(oid, blocks)
        while missing:
            most = self._extent_blocks if self._slots.is_quiet else min(BESIDE_BLOCKS, self._extent_blocks)
            extent = plan_extents(missing[:most], most)[0]
            del missing[: len(extent)]
            await self._cache.memory.reserve_spare(self._span(extent, size).size)
            if self._not_coming(oid, extent) == list(extent):
                await self._start(oid, size, extent, Urgency.PRELOAD).wait()
            else:
                self._cache.memory.release(self._span(extent, size).size)

    def keep(self, oid: ObjectId, content: Buffer) -> None:
        """Keep `content`, which is all of the object, if there is memory for it."""
        size = len(content)
        if size and self._cache.memory.try_reserve(size):
            blocks = self._cut(memoryview(content), self.blocks(size), size)
            self._cache.admit(oid, blocks, size, to_disk=True, whole=memoryview(content))
            self._cache.memory.release(size)

    def keep_spooled(self, oid: ObjectId, spooled: SpoolFile, *, formerly: ObjectId | None = None) -> None:
        """Read the object, which may have been known as `formerly`, out of `spooled`, which is all of it, while it is
        brought to the disk; closes that. It gives way to what is being written."""
        disk = self._cache.disk
        if disk is None or spooled.size > disk.limit_bytes // 2:
            spooled.close()  # it would evict everything else
            return
        spooled.spare()
        known_as = (oid,) if formerly is None else (oid, formerly)
        self._spooled |= dict.fromkeys(known_as, spooled)
        self._nursery.start_soon(self._bring_to_disk, known_as, spooled)

    def copied(self, source: ObjectId, copy: ObjectId) -> None:
        """The server has made `copy` of `source`: what is here of one is also the other's."""
        self._became.put(source, copy, 1)
        self._became.trim(MAX_BECAME)
        self._origins.put(copy, self._origins.get(source) or source, 1)
        self._origins.trim(MAX_ORIGINS)

    async def _bring_to_disk(self, known_as: Sequence[ObjectId], spooled: SpoolFile) -> None:
        oid, size = known_as[0], spooled.size
        try:
            for extent in plan_extents(self.blocks(size), self._extent_blocks):
                span = self._span(extent, size)
                await self._cache.memory.reserve_spare(span.size)
                try:
                    data = memoryview(await spooled.read(span.start, span.stop))
                    blocks = self._cut(data, extent, size)
                    self._cache.admit(oid, blocks, len(data), to_memory=False, to_disk=True, whole=data)
                finally:
                    self._cache.memory.release(span.size)
            if self._cache.disk is not None:
                await self._cache.disk.written()
        except SpoolError as error:
            log.log(logging.INFO if spooled.is_closed else logging.WARNING, "%r is not kept: %s", oid.key, error)
        finally:
            for name in known_as:
                if self._spooled.get(name) is spooled:
                    del self._spooled[name]
            spooled.close()

    async def _unspool(self, oid: ObjectId, size: int, extent: range) -> dict[int, Buffer]:
        """`extent` of what was written here; empty if it is no longer in the spool."""
        span = self._span(extent, size)
        spooled = self._spooled.get(oid)
        try:
            if spooled is not None:
                data = memoryview(await spooled.read(span.start, span.stop))
            elif (waiting := await self._waiting(oid, span)) is not None:
                data = memoryview(waiting)
            else:
                return {}
        except SpoolError:
            return {}
        blocks = self._cut(data, extent, size)
        self._cache.admit(oid, blocks, len(data), to_disk=False, whole=data)
        return blocks

    async def _from_origin(self, origin: ObjectId, oid: ObjectId, size: int, extent: range) -> dict[int, Buffer]:
        """`extent` of what `oid` is a copy of, if all of it is here; kept as the copy's from then on."""
        found = {block: data for block in extent if (data := self._cache.resident(origin, block)) is not None}
        if len(found) < len(extent):
            found = await self._unspool(origin, size, extent) or dict((await self._cache.load(origin, extent)).blocks)
        if len(found) < len(extent):
            return {}
        whole = memoryview(b"".join(found[block] for block in extent))
        blocks = self._cut(whole, extent, size)
        self._cache.admit(oid, blocks, len(whole), to_disk=True, whole=whole)
        return blocks

    def _cut(self, data: memoryview, blocks: range, size: int) -> dict[int, Buffer]:
        """`data`, which holds `blocks` of an object of `size` bytes, by block."""
        spans = {block: block_range(block, self.block_size, size) for block in blocks}
        origin = blocks.start * self.block_size
        return {block: data[span.start - origin : span.stop - origin] for block, span in spans.items()}

    def _not_coming(self, oid: ObjectId, blocks: Sequence[int]) -> list[int]:
        """Those of `blocks` that are neither in memory nor on their way."""
        return [
            block for block in blocks if (oid, block) not in self._flights and self._cache.resident(oid, block) is None
        ]

    def _start(self, oid: ObjectId, size: int, extent: range, urgency: Urgency) -> _BlockFlight:
        """Send off the fetch of `extent`. A hint's memory is already reserved; a demand waits for its own."""
        flight = _BlockFlight(Ticket(urgency))
        reserve = urgency is Urgency.DEMAND
        self._nursery.start_soon(partial(self._fly, flight, oid, size, extent, reserve=reserve))
        for block in extent:
            self._flights[oid, block] = flight
        return flight

    async def _fly(self, flight: _BlockFlight, oid: ObjectId, size: int, extent: range, *, reserve: bool) -> None:
        memory, bytes_held = self._cache.memory, self._span(extent, size).size

        async def work() -> dict[int, Buffer]:
            if reserve:
                await memory.reserve(bytes_held)
            try:
                return await self._load(flight, oid, size, extent)
            finally:
                memory.release(bytes_held)

        try:
            await flight.run(work)
        finally:
            for block in extent:
                del self._flights[oid, block]

    async def _load(self, flight: _BlockFlight, oid: ObjectId, size: int, extent: range) -> dict[int, Buffer]:
        ticket, is_local = flight.ticket, not oid.key
        if (self._spooled or is_local) and (written := await self._unspool(oid, size, extent)):
            flight.tiers = dict.fromkeys(written, "spool")
            return written
        if is_local:
            became = self._became.get(oid)
            if became is None:
                raise StaleError("what was written here was replaced before it was uploaded")
            return await self._load(flight, became, size, extent)
        origin = self._origins.get(oid) if len(self._origins) else None
        if origin is not None and (copied := await self._from_origin(origin, oid, size, extent)):
            flight.tiers = dict.fromkeys(copied, "disk")  # or a little faster
            return copied
        preloading = ticket.urgency is Urgency.PRELOAD  # then it is known that the disk has nothing
        loaded = await self._cache.load(oid, extent) if not preloading else NOTHING
        found = dict(loaded.blocks)
        if found:
            flight.tiers = dict.fromkeys(found, "disk")
            self._cache.admit(oid, found, len(loaded.whole), to_disk=False, whole=loaded.whole)
        missing = [block for block in extent if block not in found]
        if missing and self._cache.shared is not None:
            shared = await self._cache.load_shared(oid, size, missing, to_memory=not preloading)
            flight.tiers |= dict.fromkeys(shared, "shared")
            found |= shared
            missing = [block for block in missing if block not in found]
        for run in plan_extents(missing, self._extent_blocks):
            found |= await self._get(ticket, oid, size, run)
        return found

    async def _get(
        self, ticket: Ticket, oid: ObjectId, size: int, run: range, *, renames: int = MAX_RENAMES
    ) -> dict[int, Buffer]:
        span = self._span(run, size)
        try:
            async with self._slots.hold(ticket, span.size):
                data = await self._measured(oid, span)
        except (PreconditionFailedError, NotFoundError) as error:
            became = self._became.get(oid)
            if became is not None and renames:  # it was renamed while this was on its way
                return await self._get(ticket, became, size, run, renames=renames - 1)
            self._on_stale(oid)
            raise StaleError(f"{oid.key!r} was replaced or deleted in the bucket after it was opened") from error
        blocks = self._cut(data, run, size)
        to_memory = ticket.urgency is not Urgency.PRELOAD  # it may have been promoted meanwhile
        self._cache.admit(oid, blocks, len(data), to_memory=to_memory, to_disk=True, whole=data)
        return blocks

    async def _measured(self, oid: ObjectId, span: Range) -> memoryview:
        began_s, arrived = trio.current_time(), 0
        self.throughput.began(began_s)
        try:
            data = memoryview(await self._store.get_range(oid, span))
            arrived = len(data)
            return data
        finally:
            self.throughput.ended(began_s, arrived, trio.current_time())

    def _span(self, extent: range, size: int) -> Range:
        return Range(extent.start * self.block_size, min(extent.stop * self.block_size, size))
