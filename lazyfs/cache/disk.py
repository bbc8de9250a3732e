"""The SSD tier: blocks in a cache directory, for readers that must never feel it.

Promises that what `get_many` returns was stored for exactly that object, version and block, whatever happened to
the directory. Anything wrong with it is a miss and one warning; after `RETRY_S` it is tried again.

Hard point: SQLite has one connection a thread, so all calls run on this tier's own few threads and never on the main
one, and each thread closes its own connection when it learns that the cache was opened anew (`_use`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import trio

from lazyfs.cache.blockcache import DATABASE, BlockCache, Held, Locked
from lazyfs.cache.blockfile import NOTHING, Loaded
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId

log = logging.getLogger(__name__)
T = TypeVar("T")
_FileId: TypeAlias = tuple[int, int]

THREADS = 8
"""That read: so deep is the disk's queue. One more writes; several would only wait for SQLite's one lock."""
LINGER_S, LINGER_BYTES = 0.05, 2 * 1024**2
"""So long, or until there is so much, the writer waits for more: each transaction costs as much as a small file."""
BATCH_BYTES = 16 * 1024**2
"""What one transaction writes at the most; a small file's own would cost as much as the file."""
RETRY_S = 30.0
PIN_FRACTION = 0.8
"""Of the limit that may be pinned; what is read by the way needs room, too."""
FREE_FLOOR = 0.02
"""The fraction of the file system that is always left free: the cache gives way when others fill it."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """Blocks that wait to be written, `size` bytes together; `done` is called when that is over."""

    oid: ObjectId
    blocks: dict[int, Buffer]
    size: int
    done: Callable[[], object]


class DiskTier:
    """Blocks on a local disk, at most `limit_bytes`, shared by every mount that is given the same directory.

    `scope` names whatever else a block depends on (endpoint, bucket, block size), so that mounts which differ in it
    never see each other's blocks. `clock` tells monotonic seconds. Use as ``async with``: leaving it writes what is
    pending.
    """

    def __init__(
        self,
        *,
        directory: Path,
        limit_bytes: int,
        scope: str,
        stats: Stats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._scope = scope
        self._stats = stats
        self._clock = clock
        self._lock = threading.Lock()
        """Guards the four below, which the tier's threads share."""
        self._cache: BlockCache | None = None
        self._database: _FileId | None = None
        """Which database `_cache` has open; another one at its place means that the directory was exchanged."""
        self._off_until_s = -math.inf
        self._told: set[str] = set()
        """What was warned of and is not over."""
        self._mine = threading.local()
        """`cache`: the cache that this thread has a connection to."""
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="lazyfs-disk")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lazyfs-disk-writer")
        self._waiting: deque[_Pending] = deque()
        """What is to be written; appended to by the main thread, taken from by the writer."""
        self._hurry = threading.Event()
        """Somebody waits for what is to be written: it is not kept for the sake of a larger batch."""
        self._pending_bytes = 0
        self._idle = trio.Event()
        self._idle.set()

    async def __aenter__(self) -> DiskTier:
        await self._call(lambda: self._guard(lambda _: None, None))
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(30):
                await self.written()
            await trio.to_thread.run_sync(self._shut)

    @property
    def limit_bytes(self) -> int:
        """The size that the tier keeps to."""
        return self._limit_bytes

    async def used_bytes(self) -> int:
        """Bytes on disk now."""
        return await self._call(lambda: self._guard(lambda cache: int(cache.volume()), 0))

    async def get_many(self, oid: ObjectId, blocks: range) -> Loaded:
        """Those of `blocks`, which follow each other, that are here and whole. Never raises."""
        found = await self._call(lambda: self._guard(lambda cache: self._load(cache, oid, blocks), NOTHING))
        self._stats.add("cache.disk.hit_blocks", len(found.blocks))
        self._stats.add("cache.disk.hit_bytes", len(found.whole))
        return found

    async def missing(self, wanted: Sequence[tuple[ObjectId, range]]) -> list[list[int]]:
        """For each object, those of its blocks that are not here: all of them while the disk is in trouble."""
        return await self._call(
            lambda: self._guard(
                lambda cache: [cache.missing(self._scope, oid, blocks) for oid, blocks in wanted],
                [list(blocks) for _, blocks in wanted],
            )
        )

    async def survey(self, wanted: Sequence[tuple[ObjectId, int]]) -> list[Held]:
        """For each object of so many blocks, those that are here; none while the disk is in trouble."""
        return await self._call(
            lambda: self._guard(
                lambda cache: [cache.survey(self._scope, oid, count) for oid, count in wanted],
                [Held([], None, []) for _ in wanted],
            )
        )

    async def forget(self, wanted: Sequence[tuple[ObjectId, int]]) -> None:
        """Drop objects of so many blocks, what waits to be written of them too. Never raises."""

        def work(cache: BlockCache) -> None:
            for oid, count in wanted:
                cache.forget(self._scope, oid, count)

        # By the thread that writes, which takes its work in turn: so after all that waits now.
        await self._call(lambda: self._guard(work, None), by=self._writer)

    async def pin(self, wanted: Sequence[tuple[ObjectId, int]]) -> bool:
        """Never evict what is here of objects of so many blocks, for all mounts that share the directory; False, and
        only some done, if that is more than PIN_FRACTION of the limit. Never raises."""
        limit_bytes = int(self._limit_bytes * PIN_FRACTION)

        def work(cache: BlockCache) -> bool:
            return all(cache.pin(self._scope, oid, count, limit_bytes=limit_bytes) for oid, count in wanted)

        return await self._call(lambda: self._guard(work, otherwise=False), by=self._writer)

    async def unpin(self, wanted: Sequence[tuple[ObjectId, int]]) -> None:
        """Objects of so many blocks may be evicted again. Never raises."""

        def work(cache: BlockCache) -> None:
            for oid, count in wanted:
                cache.unpin(self._scope, oid, count)

        await self._call(lambda: self._guard(work, None), by=self._writer)

    @property
    def is_on(self) -> bool:
        """False while the disk is in trouble: nothing is found, and nothing kept."""
        return self._clock() >= self._off_until_s

    @property
    def gives_way(self) -> bool:
        """True while the cache keeps less than its limit because the disk is nearly full."""
        return "floor" in self._told

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._pending_bytes

    async def written(self) -> None:
        """Return when nothing waits to be written."""
        self._hurry.set()
        await self._idle.wait()

    def put_soon(self, oid: ObjectId, blocks: dict[int, Buffer], done: Callable[[], object]) -> None:
        """Write `blocks` in the background, then call `done`. Returns at once, never raises.

        The caller bounds what waits.
        """
        size = sum(len(data) for data in blocks.values())
        if self._pending_bytes == 0:
            self._idle = trio.Event()
        self._pending_bytes += size
        if self._pending_bytes >= LINGER_BYTES:
            self._hurry.set()
        self._waiting.append(_Pending(oid, blocks, size, done))
        self._writer.submit(self._write_waiting, trio.lowlevel.current_trio_token())

    def forgo(self, blocks: int) -> None:
        """Count blocks that were not written, because too many waited."""
        self._stats.add("cache.disk.dropped_blocks", blocks)

    def _written(self, batch: Sequence[_Pending]) -> None:
        for one in batch:
            self._pending_bytes -= one.size
            one.done()
        if self._pending_bytes == 0:
            self._idle.set()
            self._hurry.clear()

    # -- in the tier's threads ------------------------------------------------------------------------------------

    def _write_waiting(self, token: trio.lowlevel.TrioToken) -> None:
        """Write what waits, as much as a transaction may; once for each that was to be written, or in vain."""
        if self._waiting:
            self._hurry.wait(LINGER_S)
        batch: list[_Pending] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].size <= BATCH_BYTES):
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        if not batch:
            return
        try:
            self._guard(lambda cache: self._put(cache, batch, size), None)
        finally:
            with contextlib.suppress(trio.RunFinishedError):  # the mount ended without waiting for us
                token.run_sync_soon(self._written, batch)

    def _load(self, cache: BlockCache, oid: ObjectId, blocks: range) -> Loaded:
        loaded, damaged = cache.load(self._scope, oid, blocks)
        for first in damaged:
            self._stats.add("cache.disk.damaged_blocks")
            self._tell("damaged", f"damaged block {first} of {oid.key!r} dropped; more are only counted")
        return loaded

    def _put(self, cache: BlockCache, batch: Sequence[_Pending], size: int) -> None:
        usage, volume = shutil.disk_usage(self._directory), cache.volume()
        # Room is made before it is needed: a disk that is full to the brim must not end the cache's renewal.
        above_floor = volume + usage.free - int(usage.total * FREE_FLOOR)
        room = min(self._limit_bytes, above_floor) - size
        if above_floor >= self._limit_bytes:  # not sooner, or it would be told anew at each turn
            with self._lock:
                self._told.discard("floor")
        elif volume > room:
            self._tell("floor", f"the disk is nearly full; keeping less than {self._limit_bytes} bytes")
        try:
            if volume > room:
                cache.shrink(max(0, room))
            if room < 0 or (volume > room and cache.volume() > room and cache.pinned_bytes()):
                self._stats.add("cache.disk.no_space")
            else:
                cache.store(self._scope, [(one.oid, one.blocks) for one in batch])
        except (OSError, sqlite3.OperationalError) as error:
            if not _is_full(error):
                raise
            cache.roll_back()
            if volume > room:
                cache.make_way()  # the database cannot even write down what goes
            self._stats.add("cache.disk.no_space")  # what is there can still be read
            self._tell("full", f"{error}; nothing is added")

    def _guard(self, work: Callable[[BlockCache], T], otherwise: T) -> T:
        """The result of `work`, or `otherwise` while the disk is in trouble. Never raises."""
        if self._clock() < self._off_until_s:
            return otherwise
        cache: BlockCache | None = None
        try:
            cache = self._opened()
            result = work(cache)
        except Locked:  # another process holds the lock; or this thread, since a disk failed as it was to give it back
            if cache is not None:
                cache.roll_back()
            else:
                self._use(None)  # nor may an earlier connection of this thread be what keeps the file from being opened
            return otherwise
        except Exception as error:  # noqa: BLE001 - whatever a cache directory holds, a reader must not feel it
            self._trouble(cache, error)
            return otherwise
        self._told.discard("trouble")
        return result

    def _opened(self) -> BlockCache:
        """The cache, opened if it is not; a connection that this thread has to an earlier one is closed."""
        with self._lock:
            if self._cache is None:
                self._open()
            elif self._database != _file_id(self._directory / DATABASE):
                raise FileNotFoundError(errno.ENOENT, "it was removed")
            cache = self._cache
        assert cache is not None
        self._use(cache)
        return cache

    def _open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = self._directory / DATABASE
        # SQLite gives its other files the mode of this one; an empty file is an empty database.
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = _file_id(database)
        self._cache = BlockCache(self._directory)

    def _use(self, cache: BlockCache | None) -> None:
        """Close this thread's connection to any other cache: only the thread that opened one may."""
        before: BlockCache | None = getattr(self._mine, "cache", None)
        if before is not None and before is not cache:
            before.close()
        self._mine.cache = cache

    def _trouble(self, cache: BlockCache | None, error: Exception) -> None:
        """Do without the disk for a while; begin a new directory at once where the database is beyond repair."""
        self._use(None)
        with self._lock:
            if cache is not self._cache and cache is not None:
                return  # another thread had the same trouble before, and it is dealt with
            self._cache = None
            self._off_until_s = self._clock() + RETRY_S
            # Exactly this class means a damaged file; its children mean a full disk, a lock, a mistake of ours.
            if type(error) is sqlite3.DatabaseError and self._database == _file_id(self._directory / DATABASE):
                self._set_aside()
        self._tell("trouble", f"{error}; going on without it")

    def _set_aside(self) -> None:
        aside = self._directory.with_name(f"{self._directory.name}.damaged-{os.getpid()}")
        with contextlib.suppress(OSError):
            self._directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            self._off_until_s = -math.inf

    def _tell(self, what: str, message: str) -> None:
        """Warn, once as long as it lasts."""
        with self._lock:
            if what in self._told:
                return
            self._told.add(what)
        log.warning("cache %s: %s", self._directory, message)

    def _shut(self) -> None:
        """Have every thread close its connection, then end the threads."""
        self._writer.submit(self._use, None)
        self._writer.shutdown(wait=True)
        barrier = threading.Barrier(THREADS)

        def close() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(timeout=5)  # so that each thread gets one of these
            self._use(None)

        for _ in range(THREADS):
            self._readers.submit(close)
        self._readers.shutdown(wait=True)

    async def _call(self, work: Callable[[], T], *, by: ThreadPoolExecutor | None = None) -> T:
        """Run `work` on one of the tier's threads; `by` default one that reads."""
        done = trio.Event()
        if by is self._writer:
            self._hurry.set()
        token = trio.lowlevel.current_trio_token()
        future = (by or self._readers).submit(work)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await done.wait()
        return future.result()


def _file_id(path: Path) -> _FileId | None:
    """Which file is at `path`; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_full(error: BaseException | None) -> bool:
    """Whether there is no room, or was none when the handling of that failed: where SQLite itself has rolled back,
    diskcache's own ROLLBACK is an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return True
    return error is not None and _is_full(error.__context__)
