"""The shared tier in a bucket: on the fake, and on real servers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from lazyfs.cache.bucket import BucketEngine
from lazyfs.cache.shared import FAILURES, SharedTier, shared_tier
from lazyfs.core.errors import AccessDeniedError, NotFoundError, StoreTimeoutError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId
from lazyfs.store.base import Blobs
from lazyfs.store.memory import MemoryStore
from lazyfs.store.remote import open_s3_store
from lazyfs.store.settings import S3Settings
from tests.servers import Server

OID = ObjectId("train/shard\n7.tar", "e1")
BLOCK = 1000
SIZE = 40 * BLOCK
warns = pytest.mark.expect_warnings


@contextlib.asynccontextmanager
async def tier_on(blobs: Blobs, stats: Stats | None = None) -> AsyncIterator[SharedTier]:
    engine = BucketEngine(blobs, where="s3://near/cache", prefix="cache/")
    async with shared_tier(
        engine, scope="s", block_size=BLOCK, max_pending_bytes=2**30, stats=stats or Stats()
    ) as tier:
        yield tier


async def put(tier: SharedTier, numbers: Sequence[int]) -> None:
    blocks: dict[int, Buffer] = {number: bytes([number]) * BLOCK for number in numbers}
    done = trio.Event()
    tier.put_soon(OID, blocks, done.set)
    await done.wait()


async def got(tier: SharedTier, numbers: Sequence[int]) -> set[int]:
    found: dict[int, Buffer] = {}
    for loaded in await tier.get_many(OID, SIZE, numbers):
        found |= loaded.blocks
    assert all(data == bytes([number]) * BLOCK for number, data in found.items())
    return set(found)


async def test_a_run_is_an_object_below_the_prefix() -> None:
    store = MemoryStore()
    async with tier_on(store) as tier:
        await put(tier, range(16))
        assert len(store.keys()) == 4
        assert all(key.startswith("cache/") and key.isascii() and len(key) < 60 for key in store.keys())  # noqa: SIM118 - a store, not a dict
        store.requests.clear()
        assert await got(tier, range(16)) == set(range(16))
        assert [request.verb for request in store.requests] == ["get"] * 4
        assert await got(tier, [6]) == {6}


@warns
async def test_what_is_damaged_too_large_or_foreign_is_deleted(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with tier_on(store) as tier:
        await put(tier, range(12))
        one, two, three = store.keys()
        store.put_now(one, store.body(one)[:-1])
        store.put_now(two, bytes(10 * BLOCK))
        assert len(await got(tier, range(12))) == 4
        with trio.fail_after(5):
            while store.keys() != [three]:
                await trio.lowlevel.checkpoint()
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


@warns
async def test_whoever_may_only_read_reads(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with tier_on(store) as tier:
        await put(tier, range(4))

        def hook(when: str, verb: str, key: str) -> None:
            if verb == "put":
                raise AccessDeniedError("PUT: not allowed")

        store.hook = hook
        await put(tier, range(4, 8))
        assert tier.status()["state"] == "reading"
        assert await got(tier, range(8)) == set(range(4))


@warns
async def test_a_bucket_in_trouble_is_a_miss() -> None:
    store = MemoryStore()
    async with tier_on(store) as tier:
        await put(tier, range(8))

        def hook(when: str, verb: str, key: str) -> None:
            raise StoreTimeoutError("GET: no answer")

        store.hook = hook
        for _ in range(FAILURES + 1):
            assert await got(tier, range(8)) == set()
        assert tier.status()["state"] == "off"


@contextlib.asynccontextmanager
async def blobs_of(server: Server, bucket: str) -> AsyncIterator[Blobs]:
    store = open_s3_store(S3Settings(bucket, endpoint_url=server.endpoint_url), stats=Stats())
    try:
        yield store
    finally:
        await store.aclose()


async def test_get_any_is_the_object_as_it_is(server: Server, bucket: str, aws_environment: pytest.MonkeyPatch) -> None:
    fake = MemoryStore()
    async with blobs_of(server, bucket) as real:
        for store in (fake, real):
            with pytest.raises(NotFoundError):
                await store.get_any("a/b", limit_bytes=100)
            for body in (b"first", b"second"):
                await store.put("a/b", body)
                assert await store.get_any("a/b", limit_bytes=6) == body
            assert await store.get_any("a/b", limit_bytes=5) == b""
            await store.delete("a/b")
            with pytest.raises(NotFoundError):
                await store.get_any("a/b", limit_bytes=100)


async def test_nodes_share_a_real_bucket(server: Server, bucket: str, aws_environment: pytest.MonkeyPatch) -> None:
    async with (
        blobs_of(server, bucket) as one,
        blobs_of(server, bucket) as other,
        tier_on(one) as tier,
        tier_on(other) as reader,
    ):
        await put(tier, range(10))
        assert await got(reader, range(12)) == set(range(10))
        assert await got(reader, [5, 6]) == {5, 6}


@warns
async def test_a_bucket_that_does_not_exist(server: Server, aws_environment: pytest.MonkeyPatch) -> None:
    stats = Stats()
    async with blobs_of(server, "lazyfs-no-such-bucket") as blobs, tier_on(blobs, stats) as tier:
        assert await got(tier, range(8)) == set()
        assert stats.get("cache.shared.errors") == 1
