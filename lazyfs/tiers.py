"""The part of the composition root that builds the tiers of the cache."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from lazyfs.cache.bucket import CONNECTIONS, BucketEngine
from lazyfs.cache.disk import DiskTier
from lazyfs.cache.engine import Engine, RedisAddress, open_redis
from lazyfs.cache.memory import MemoryTier
from lazyfs.cache.shared import PENDING_FRACTION, SharedTier, shared_tier
from lazyfs.cache.tiered import TieredCache
from lazyfs.config import BucketConfig, CacheConfig
from lazyfs.config.endpoint import shared_settings
from lazyfs.config.shared import SharedCache
from lazyfs.core.stats import Stats
from lazyfs.store.remote import open_s3_store


@contextlib.asynccontextmanager
async def opened_cache(
    bucket: BucketConfig, cache: CacheConfig, *, block_size: int, stats: Stats
) -> AsyncIterator[TieredCache]:
    """The tiers of a mount, until the block ends. StartupError, AccessDeniedError.

    They must outlive the flights that use them: what is pending is written when those are over.
    """
    scope = f"{bucket.endpoint_url or ''}\0{bucket.name}\0{block_size}"
    disk: DiskTier | None = None
    shared: SharedTier | None = None
    async with contextlib.AsyncExitStack() as stack:
        if cache.shared is not None:
            engine, pending = _engine(bucket, cache.shared, ttl_s=cache.shared_ttl_s), cache.memory // PENDING_FRACTION
            shared = await stack.enter_async_context(
                shared_tier(engine, scope=scope, block_size=block_size, max_pending_bytes=pending, stats=stats)
            )
        if cache.directory is not None:
            disk = await stack.enter_async_context(
                DiskTier(directory=cache.directory / "blocks", limit_bytes=cache.size, scope=scope, stats=stats)
            )
        yield TieredCache(memory=MemoryTier(budget_bytes=cache.memory), disk=disk, shared=shared)


def _engine(bucket: BucketConfig, address: SharedCache, *, ttl_s: float) -> Engine:
    if isinstance(address, RedisAddress):
        return open_redis(address, ttl_s=ttl_s)
    settings = shared_settings(bucket, address, max_connections=CONNECTIONS)
    blobs = open_s3_store(settings, stats=Stats())  # its requests are not those of the origin
    return BucketEngine(blobs, where=address.where, prefix=address.prefix)
