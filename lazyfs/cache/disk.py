"""The SSD tier: blocks in a diskcache directory. The only file that says diskcache.

Promises that what `get_many` returns was stored for exactly that object, version and block, whatever happened to
the directory: each value begins with a header that names them and carries a CRC32C of the data. Anything wrong with
the directory is a miss and one warning; after `RETRY_S` it is tried again.

Never unpickles: the Disk subclass stores and returns bytes and refuses the rest. diskcache keeps one SQLite
connection a thread, so all calls run on this tier's own few threads and never on the main one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import trio
from awscrt.checksums import crc32c
from diskcache.core import MODE_BINARY, MODE_RAW

from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId

log = logging.getLogger(__name__)
T = TypeVar("T")

THREADS = 4
MAX_PENDING_BYTES = 64 * 1024**2
"""Blocks waiting to be written; more are dropped, since a cache may forget."""
RETRY_S = 30.0
FREE_FLOOR = 0.02
"""The fraction of the file system that is always left free."""
_INLINE_BYTES = 4096
_LOCK_TIMEOUT_S = 2.0
_MAGIC = b"lfs1"
_HEADER = struct.Struct("<4sIII")  # magic, identity length, data length, CRC32C of the data


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # the base is untyped
    """Stores a header and a buffer as one file, without joining them; knows no other type."""

    def store(self, value: tuple[bytes, Buffer], read: bool, key: Any = None) -> tuple[int, int, str | None, Any]:
        header, data = value
        if len(header) + len(data) < _INLINE_BYTES:
            return 0, MODE_RAW, None, sqlite3.Binary(header + data)
        filename, path = self.filename()
        self._write(path, iter(value), "xb")
        return len(header) + len(data), MODE_BINARY, filename, None

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> bytes:
        if mode == MODE_RAW and isinstance(value, bytes):
            return value
        if mode == MODE_BINARY:
            with open(os.path.join(self._directory, filename), "rb") as file:
                return file.read()
        raise ValueError("not a block")

    def put(self, key: bytes) -> tuple[Any, bool]:
        return sqlite3.Binary(key), True

    def get(self, key: Any, raw: bool) -> bytes:
        if not raw:
            raise ValueError("not a block")
        return bytes(key)


def encode_block(identity: bytes, data: Buffer) -> bytes:
    """The header that goes before `data`."""
    return _HEADER.pack(_MAGIC, len(identity), len(data), crc32c(data)) + identity


def decode_block(identity: bytes, value: bytes) -> memoryview | None:
    """The data of a stored value, or None if the value is damaged or another block's."""
    if len(value) < _HEADER.size:
        return None
    magic, identity_size, data_size, checksum = _HEADER.unpack_from(value)
    start = _HEADER.size + identity_size
    if magic != _MAGIC or value[_HEADER.size : start] != identity or len(value) != start + data_size:
        return None
    data = memoryview(value)[start:]
    return data if crc32c(data) == checksum else None


class DiskTier:
    """Blocks on a local disk, at most `limit_bytes`, shared by every mount that is given the same directory.

    `scope` names endpoint and bucket, so that mounts of different buckets never see each other's blocks.
    Use as ``async with``: leaving it writes what is pending.
    """

    def __init__(self, *, directory: Path, limit_bytes: int, scope: str, stats: Stats) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._scope = scope
        self._stats = stats
        self._cache: Any = None
        self._opening = threading.Lock()
        self._off_until_s = 0.0
        self._warned = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lazyfs-disk")
        self._pending_bytes = 0
        self._idle = trio.Event()
        self._idle.set()

    async def __aenter__(self) -> DiskTier:
        await self._call(lambda: self._guard(self._open, None))
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(30):
                await self._idle.wait()
            await trio.to_thread.run_sync(self._shut)

    @property
    def limit_bytes(self) -> int:
        """The size that the tier keeps to."""
        return self._limit_bytes

    async def used_bytes(self) -> int:
        """Bytes on disk now."""
        return await self._call(lambda: self._guard(lambda: int(self._cache.volume()), 0))

    async def get_many(self, oid: ObjectId, blocks: Sequence[int]) -> dict[int, Buffer]:
        """Those of `blocks` that are here and whole. Never raises."""
        nothing: dict[int, Buffer] = {}
        found = await self._call(lambda: self._guard(lambda: self._get(oid, blocks), nothing))
        self._stats.add("cache.disk.hit_blocks", len(found))
        self._stats.add("cache.disk.hit_bytes", sum(len(data) for data in found.values()))
        return found

    def put_soon(self, oid: ObjectId, blocks: dict[int, Buffer]) -> None:
        """Write `blocks` in the background, or forget them if too many wait. Returns at once, never raises."""
        size = sum(len(data) for data in blocks.values())
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            self._stats.add("cache.disk.dropped_blocks", len(blocks))
            return
        if self._pending_bytes == 0:
            self._idle = trio.Event()
        self._pending_bytes += size
        token = trio.lowlevel.current_trio_token()

        def work() -> None:
            try:
                self._guard(lambda: self._put(oid, blocks), None)
            finally:
                token.run_sync_soon(self._written, size)

        self._threads.submit(work)

    def _written(self, size: int) -> None:
        self._pending_bytes -= size
        if self._pending_bytes == 0:
            self._idle.set()

    # -- in the tier's threads ------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the directory unless it is open."""
        with self._opening:
            if self._cache is not None:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._cache = diskcache.Cache(
                os.fspath(self._directory),
                timeout=_LOCK_TIMEOUT_S,
                disk=_BytesDisk,
                size_limit=self._limit_bytes,
                # "stored" needs no write on a read; docs/decisions/002-ssd-tier.md
                eviction_policy="least-recently-stored",
                disk_min_file_size=_INLINE_BYTES,
            )

    def _get(self, oid: ObjectId, blocks: Iterable[int]) -> dict[int, Buffer]:
        found: dict[int, Buffer] = {}
        for block in blocks:
            identity = self._identity(oid, block)
            value = self._cache.get(_key(identity))
            if value is None:
                continue
            data = decode_block(identity, value)
            if data is None:
                log.warning("cache %s: damaged block %d of %r dropped", self._directory, block, oid.key)
                self._cache.delete(_key(identity))
            else:
                found[block] = data
        return found

    def _put(self, oid: ObjectId, blocks: dict[int, Buffer]) -> None:
        usage = shutil.disk_usage(self._directory)
        if usage.free < usage.total * FREE_FLOOR:
            self._stats.add("cache.disk.no_space")
            self._cache.cull()
            return
        for block, data in blocks.items():
            identity = self._identity(oid, block)
            self._cache.set(_key(identity), (encode_block(identity, data), data))

    def _identity(self, oid: ObjectId, block: int) -> bytes:
        return f"{self._scope}\0{oid.key}\0{oid.etag}\0{block}".encode()

    def _guard(self, work: Callable[[], T], otherwise: T) -> T:
        """The result of `work`, or `otherwise` while the disk is in trouble."""
        now_s = time.monotonic()
        if now_s < self._off_until_s:
            return otherwise
        try:
            self._open()
            result = work()
        except diskcache.Timeout:
            return otherwise  # another process holds the lock; a miss
        except (OSError, sqlite3.Error, ValueError, TypeError, KeyError) as error:
            self._off_until_s = now_s + RETRY_S
            self._cache = None
            if not self._warned:
                log.warning("cache %s: %s; going on without it", self._directory, error)
            self._warned = True
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._set_aside()
            return otherwise
        self._warned = False
        return result

    def _set_aside(self) -> None:
        """A damaged database never heals: throw the directory away, so that the next use begins a new one."""
        aside = self._directory.with_name(f"{self._directory.name}.damaged-{os.getpid()}")
        with contextlib.suppress(OSError):
            self._directory.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        self._off_until_s = 0.0

    def _shut(self) -> None:
        """Close the connection of every thread, each of which must do it itself, then end the threads."""
        cache, barrier = self._cache, threading.Barrier(THREADS)

        def close() -> None:
            try:
                barrier.wait(timeout=5)
            finally:
                if cache is not None:
                    cache.close()

        for _ in range(THREADS):
            self._threads.submit(close)
        self._threads.shutdown(wait=True)

    async def _call(self, work: Callable[[], T]) -> T:
        """Run `work` on one of the tier's threads."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        future = self._threads.submit(work)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await done.wait()
        return future.result()


def _key(identity: bytes) -> bytes:
    return blake2b(identity, digest_size=20).digest()
