"""The part of the composition root that builds the shared tier: which engine, for which address."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from lazyfs.cache.bucket import CONNECTIONS, BucketEngine
from lazyfs.cache.engine import Engine, RedisAddress, open_redis
from lazyfs.cache.shared import PENDING_FRACTION, SharedTier, shared_tier
from lazyfs.config import BucketConfig, CacheConfig
from lazyfs.config.endpoint import shared_settings
from lazyfs.config.shared import SharedCache
from lazyfs.core.stats import Stats
from lazyfs.store.remote import open_s3_store


@contextlib.asynccontextmanager
async def opened_shared_tier(
    bucket: BucketConfig, cache: CacheConfig, *, scope: str, block_size: int, stats: Stats
) -> AsyncIterator[SharedTier | None]:
    """The tier that nodes share, until the block ends; None where nothing is shared. StartupError, AccessDeniedError.

    It must outlive the flights that ask it: what is pending is written when they are over.
    """
    if cache.shared is None:
        yield None
        return
    engine, pending = _engine(bucket, cache.shared, ttl_s=cache.shared_ttl_s), cache.memory // PENDING_FRACTION
    async with shared_tier(engine, scope=scope, block_size=block_size, max_pending_bytes=pending, stats=stats) as tier:
        yield tier


def _engine(bucket: BucketConfig, address: SharedCache, *, ttl_s: float) -> Engine:
    if isinstance(address, RedisAddress):
        return open_redis(address, ttl_s=ttl_s)
    settings = shared_settings(bucket, address, max_connections=CONNECTIONS)
    blobs = open_s3_store(settings, stats=Stats())  # its requests are not those of the origin
    return BucketEngine(blobs, where=address.where, prefix=address.prefix)
