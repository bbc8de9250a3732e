"""The shared tier: blocks that one node fetched are there for the others, in an engine that is near to all of them.

Promises that what `get_many` returns was stored for exactly that object, version and block, within a bounded time, and
never raises. An engine that is slow, away, full or wrong is a miss: after `FAILURES` failures in a row it is left alone
for `REST_S`, with one warning, and one line when it is back. Writing goes on behind the readers, within bounds; what
exceeds them is not written.

Whoever may write to the engine can forge blocks: checksums find damage, not malice. It is to be guarded as the bucket
is.

Hard points: `Switch` (when to do without), `_lookup` (two rounds at most), `_pieces` (no copy of what arrived, yet no
buffer kept alive by a part of it).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import trio

from lazyfs.cache.blockfile import Loaded
from lazyfs.cache.engine import Engine, Name, Value
from lazyfs.cache.sharedvalue import Held, decode, encode, overhead, plan_lookup, plan_more
from lazyfs.cache.switch import Switch
from lazyfs.core.errors import CacheError, CacheRefusedError
from lazyfs.core.ranges import block_range, plan_extents, plan_runs
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId

log = logging.getLogger(__name__)

FAILURES = 3
"""In a row, after which the engine is left alone: one lost packet is no reason, and a dead host costs three waits."""
REST_S = 10.0
"""How long it is left alone: a restart takes some seconds, and a dead engine then costs one deadline in fifty."""
WRITE_DEADLINE_S = 5.0
"""Nobody waits for a write; but one that takes longer than this says that the engine is in trouble."""
WRITERS = 2
"""One that sends while the other prepares; reads have the rest of the link."""
MAX_PENDING = 1024
"""Writes that wait, of small files: with more the queue would only tell that the engine cannot follow."""
PENDING_FRACTION = 8
"""What waits to be written takes at most this fraction of the memory budget: less than the SSD's half, because the
engine's other clients fill it too, and what is not written now is written by the next node that fetches it."""
DRAIN_S = 5.0
"""What an unmount waits for writes that are pending, so that a short job leaves something for the next."""
_IDENTITY_MARGIN = 64


class SharedTier:
    """Blocks in an `engine` that other nodes share; opened by `shared_tier`.

    `scope` names whatever else a block depends on (endpoint, bucket, block size), so that mounts which differ in it
    never see each other's blocks. `clock` tells monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        scope: str,
        block_size: int,
        max_pending_bytes: int,
        stats: Stats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._scope = scope
        self._block_size = block_size
        self._max_pending_bytes = max_pending_bytes
        self._stats = stats
        self._clock = clock
        self._gets = trio.CapacityLimiter(engine.gets)
        self._spare = trio.CapacityLimiter(max(1, engine.gets // 2))
        self._reading = Switch(failures=FAILURES, rest_s=REST_S)
        """Of the engine as a whole: while it is off, nothing is written either."""
        self._writing = Switch(failures=1, rest_s=REST_S)
        self._damage_told = False
        self._send, self._receive = trio.open_memory_channel[_Write | _Delete](MAX_PENDING)
        self.pending_bytes = 0
        """Bytes that wait to be written."""

    def status(self) -> dict[str, object]:
        """What `lazyfs status` tells. `state` is on, off or reading (nothing is written)."""
        now_s = self._clock()
        reading, writing = self._reading.is_on(now_s), self._writing.is_on(now_s)
        return {
            "where": self._engine.where,
            "state": "off" if not reading else "on" if writing else "reading",
            "last_error": self._reading.last_error or self._writing.last_error,
            "pending": self.pending_bytes,
        }

    # -- reading ------------------------------------------------------------------------------------------------

    async def get_many(self, oid: ObjectId, size: int, blocks: Sequence[int], *, urgent: bool = True) -> list[Loaded]:
        """Those of `blocks` (ascending) of the object of `size` bytes that are there and whole, in the buffers that
        they came in. Takes twice the engine's deadline at the most; never raises.

        What is not urgent leaves half of the turns to readers, and waits for its own without end.
        """
        if urgent:
            return await self._get_many(oid, size, blocks)
        async with self._spare:
            return await self._get_many(oid, size, blocks)

    async def _get_many(self, oid: ObjectId, size: int, blocks: Sequence[int]) -> list[Loaded]:
        """Waiting for a turn is no failure of the engine, so it has a deadline of its own."""
        if not self._reading.is_on(self._clock()):
            return []
        with trio.move_on_after(self._engine.deadline_s) as turn:
            await self._gets.acquire()
        if turn.cancelled_caught:
            self._stats.add("cache.shared.busy_blocks", len(blocks))
            return []
        found: list[Loaded] = []
        try:
            await self._answered(self._lookup(_Version(self._scope, oid), size, blocks, found))
        finally:
            self._gets.release()
        hits = sum(len(loaded.blocks) for loaded in found)
        self._stats.add("cache.shared.hit_blocks", hits)
        self._stats.add("cache.shared.hit_bytes", sum(len(loaded.whole) for loaded in found))
        self._stats.add("cache.shared.miss_blocks", len(blocks) - hits)
        return found

    async def _answered(self, lookup: Awaitable[None]) -> None:
        """Wait for the lookup as long as it is worth, and keep account of how the engine does."""
        with trio.move_on_after(self._engine.deadline_s) as answer:
            try:
                await lookup
            except CacheError as error:
                return self._failed(self._reading, str(error))
            except Exception as error:  # noqa: BLE001 - whatever an engine does, a reader must not feel it
                return self._failed(self._reading, f"unexpected {type(error).__name__}")
        if answer.cancelled_caught:
            self._stats.add("cache.shared.timeouts")
            return self._failed(self._reading, f"no answer within {self._engine.deadline_s:g} s")
        if self._reading.worked():
            log.info("shared cache %s: back again", self._engine.where)
        return None

    async def _lookup(self, version: _Version, size: int, blocks: Sequence[int], found: list[Loaded]) -> None:
        """Put what is there of `blocks` into `found`, which keeps what came even if the rest fails. CacheError."""
        run_blocks = self._engine.run_blocks
        missing = list(blocks)
        asked = plan_lookup(blocks, run_blocks)
        came = await self._round(version, size, asked, missing, found)
        more = plan_more(missing, came, asked, run_blocks)
        if more:
            await self._round(version, size, more, missing, found)

    async def _round(
        self, version: _Version, size: int, firsts: list[int], missing: list[int], found: list[Loaded]
    ) -> set[int]:
        """One call of the engine: `missing` loses what `found` gains. The first blocks of the values that came."""
        self._stats.add("cache.shared.gets")
        run_blocks = self._engine.run_blocks
        limit = run_blocks * self._block_size + overhead(version.identity(firsts[0]), run_blocks) + _IDENTITY_MARGIN
        values = await self._engine.get_many([version.name(first) for first in firsts], limit_bytes=limit)
        came: set[int] = set()
        for first, value in zip(firsts, values, strict=True):
            if value is None:
                continue
            held = self._held(version, size, first, value)
            if held is None:
                self._damaged(version, first)
                continue
            came.add(first)
            wanted = [block for block in missing if block in held.blocks]
            missing[:] = [block for block in missing if block not in held.blocks]
            found += _pieces(held, wanted)
        return came

    def _held(self, version: _Version, size: int, first: int, value: Buffer) -> Held | None:
        """The blocks of a value, or None if it is not what must lie there, down to the sizes of blocks."""
        held = decode(version.identity(first), first, value)
        if held is None:
            return None
        sizes = (block_range(block, self._block_size, size).size for block in held.blocks)
        return held if all(map(int.__eq__, map(len, held.blocks.values()), sizes)) else None

    def _damaged(self, version: _Version, first: int) -> None:
        self._stats.add("cache.shared.damaged_blocks")
        if not self._damage_told:
            self._damage_told = True
            log.warning(
                "shared cache %s: damaged block %d of %r dropped; more are only counted",
                self._engine.where,
                first,
                version.oid.key,
            )
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError):
            self._send.send_nowait(_Delete([version.name(first)]))

    # -- writing ------------------------------------------------------------------------------------------------

    def accepts(self, size: int) -> bool:
        """Whether `size` bytes more may wait to be written."""
        now_s = self._clock()
        room = self.pending_bytes + size <= self._max_pending_bytes
        room = room and self._send.statistics().current_buffer_used < MAX_PENDING
        return room and self._reading.is_on(now_s) and self._writing.is_on(now_s)

    def put_soon(self, oid: ObjectId, blocks: dict[int, Buffer], done: Callable[[], object]) -> None:
        """Write `blocks` in the background, then call `done`. The caller has asked whether the tier `accepts` them.
        Returns at once."""
        job = _Write(_Version(self._scope, oid), blocks, done)
        self._send.send_nowait(job)
        self.pending_bytes += job.size

    def forgo(self, blocks: int) -> None:
        """Count blocks that were not written, because too many waited or the engine is off."""
        self._stats.add("cache.shared.dropped_blocks", blocks)

    async def write_waiting(self) -> None:
        """Write what waits, until there will be no more."""
        async for job in self._receive:
            if isinstance(job, _Delete):
                await self._done(self._engine.delete_many(job.names))
                continue
            try:
                await self._write(job)
            finally:
                self._over(job)

    def close(self) -> None:
        """Take no more writes; `write_waiting` returns when it is done."""
        self._send.close()

    def abandon(self) -> None:
        """Give up what waits still."""
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                job = self._receive.receive_nowait()
                if isinstance(job, _Write):
                    self.forgo(len(job.blocks))
                    self._over(job)
        self._receive.close()

    def _over(self, job: _Write) -> None:
        self.pending_bytes -= job.size
        job.done()

    async def _write(self, job: _Write) -> None:
        if not self._reading.is_on(self._clock()) or not self._writing.is_on(self._clock()):
            return self.forgo(len(job.blocks))
        values = []
        for run in plan_runs(job.blocks, self._engine.run_blocks):
            pieces = encode(job.version.identity(run.start), [job.blocks[block] for block in run])
            values.append(Value(job.version.name(run.start), pieces))
        if not await self._done(self._engine.put_many(values)):
            return self.forgo(len(job.blocks))
        self._stats.add("cache.shared.put_blocks", len(job.blocks))
        self._stats.add("cache.shared.put_bytes", job.size)
        if self._writing.worked():
            log.info("shared cache %s: takes blocks again", self._engine.where)
        return None

    async def _done(self, work: Awaitable[None]) -> bool:
        """Whether the engine did it, in time. That it did proves nothing of reading, which has a shorter deadline."""
        with trio.move_on_after(WRITE_DEADLINE_S) as deadline:
            try:
                await work
            except CacheRefusedError as error:
                self._failed(self._writing, str(error))
                return False
            except CacheError as error:
                self._failed(self._reading, str(error))
                return False
            except Exception as error:  # noqa: BLE001 - see _answered
                self._failed(self._reading, f"unexpected {type(error).__name__}")
                return False
        if deadline.cancelled_caught:
            self._stats.add("cache.shared.timeouts")
            self._failed(self._reading, f"a write took longer than {WRITE_DEADLINE_S:g} s")
        return not deadline.cancelled_caught

    def _failed(self, switch: Switch, reason: str) -> None:
        self._stats.add("cache.shared.errors")
        if switch.failed(reason, self._clock()):
            doing = "going on without it" if switch is self._reading else "nothing is added"
            log.warning("shared cache %s: %s; %s, tried again every %g s", self._engine.where, reason, doing, REST_S)


@contextlib.asynccontextmanager
async def shared_tier(
    engine: Engine, *, scope: str, block_size: int, max_pending_bytes: int, stats: Stats
) -> AsyncIterator[SharedTier]:
    """The tier on `engine`, which is closed at the end, after what is pending was written or DRAIN_S have passed."""
    tier = SharedTier(engine, scope=scope, block_size=block_size, max_pending_bytes=max_pending_bytes, stats=stats)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(tier.write_waiting)
            yield tier
            tier.close()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
    finally:
        tier.close()
        tier.abandon()
        with trio.move_on_after(DRAIN_S) as closing:
            closing.shield = True
            await engine.aclose()


class _Version:
    """One version of an object, and what its values are called."""

    __slots__ = ("_identity", "_name", "oid")

    def __init__(self, scope: str, oid: ObjectId) -> None:
        self.oid = oid
        self._identity = f"{scope}\0{oid.key}\0{oid.etag}\0".encode("utf-8", "surrogatepass")
        self._name = blake2b(self._identity, digest_size=16).hexdigest()

    def identity(self, first: int) -> bytes:
        """What a value says of itself."""
        return self._identity + str(first).encode()

    def name(self, first: int) -> Name:
        """Where a value lies."""
        return Name(self._name, first)


@dataclass(slots=True)
class _Write:
    version: _Version
    blocks: dict[int, Buffer]
    done: Callable[[], object]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.blocks.values()))


@dataclass(slots=True)
class _Delete:
    names: list[Name]


def _pieces(held: Held, wanted: Sequence[int]) -> Iterator[Loaded]:
    """The `wanted` ones of the blocks of a value. All of them are handed on as they came; a part is copied, so that it
    does not keep the rest alive, which nobody counts."""
    if len(wanted) == len(held.blocks):
        yield Loaded(dict(held.blocks), held.whole)
        return
    for run in plan_extents(wanted, len(held.blocks)):
        whole = memoryview(b"".join(held.blocks[block] for block in run))
        blocks: dict[int, Buffer] = {}
        start = 0
        for block in run:
            size = len(held.blocks[block])
            blocks[block] = whole[start : start + size]
            start += size
        yield Loaded(blocks, whole)
