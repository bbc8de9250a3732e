"""The shared tier on real Redis servers, which are stopped, filled and locked under it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from lazyfs.cache.engine import RedisAddress, open_redis
from lazyfs.cache.redis import RedisEngine
from lazyfs.cache.shared import FAILURES, SharedTier, shared_tier
from lazyfs.config.shared import parse_shared_cache
from lazyfs.core.errors import CacheError, CacheRefusedError, StartupError
from lazyfs.core.stats import Stats
from lazyfs.core.types import Buffer, ObjectId
from tests.redis_server import Redis, make_certificate, running_cluster, running_redis

OID = ObjectId("train/shard-7.tar", "e1")
BLOCK = 256 * 1024
SIZE = 40 * BLOCK
WEEK_S = 7 * 86400
SECRET = "s3cr3t/pass@word"
QUOTED = "s3cr3t%2Fpass%40word"
warns = pytest.mark.expect_warnings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    with running_redis(tmp_path / "redis") as running:
        yield running


@contextlib.asynccontextmanager
async def tier_on(url: str, stats: Stats | None = None, ttl_s: float = WEEK_S) -> AsyncIterator[SharedTier]:
    address = parse_shared_cache(url)
    assert isinstance(address, RedisAddress)
    async with shared_tier(
        open_redis(address, ttl_s=ttl_s), scope="s", block_size=BLOCK, max_pending_bytes=2**30, stats=stats or Stats()
    ) as tier:
        yield tier


def block(number: int) -> bytes:
    return number.to_bytes(8) * (BLOCK // 8)


async def put(tier: SharedTier, numbers: Sequence[int], oid: ObjectId = OID) -> None:
    """Write and wait until that is over."""
    blocks: dict[int, Buffer] = {number: block(number) for number in numbers}
    done = trio.Event()
    tier.put_soon(oid, blocks, done.set)
    await done.wait()


async def got(tier: SharedTier, numbers: Sequence[int]) -> set[int]:
    """Which of these blocks the tier has; they must be right."""
    found: dict[int, Buffer] = {}
    for loaded in await tier.get_many(OID, SIZE, numbers):
        found |= loaded.blocks
    assert all(data == block(number) for number, data in found.items())
    return set(found)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_extent_is_one_mget_and_values_expire(server: Redis) -> None:
    async with tier_on(server.url) as one, tier_on(server.url) as other:
        await put(one, range(16))
        assert await got(other, range(20)) == set(range(16))
        assert (server.calls("mget"), server.calls("get"), server.calls("set")) == (1, 0, 16)
        with server.client() as client:
            keys = client.keys("lazyfs:*")
            assert len(keys) == len(client.keys("*")) == 16
            assert all(WEEK_S - 60 < client.ttl(key) <= WEEK_S for key in keys)
            assert all(OID.key.encode() not in key for key in keys)  # keys of any kind and length are names here


async def test_without_a_ttl_values_stay(server: Redis) -> None:
    async with tier_on(server.url, ttl_s=float("inf")) as tier:
        await put(tier, [0])
        with server.client() as client:
            assert client.ttl(client.keys("*")[0]) == -1


async def test_the_database_is_the_urls(server: Redis) -> None:
    async with tier_on(server.url.replace("/0", "/3")) as tier:
        await put(tier, [0])
        with server.client() as client:
            assert (client.dbsize(), client.info("keyspace")["db3"]["keys"]) == (0, 1)


@warns
async def test_planted_values_are_never_returned(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    async with tier_on(server.url, stats) as tier:
        await put(tier, range(6))
        with server.client() as client:
            keys = sorted(client.keys("*"), key=lambda key: int(key.rpartition(b"}")[2]))
            client.setrange(keys[0], 5000, b"planted")
            client.set(keys[1], b"")
            client.set(keys[2], client.get(keys[3]))
            client.append(keys[3], b"\0")
            client.delete(keys[4])
            client.rpush(keys[4], "a list")
            assert await got(tier, range(6)) == {5}
            assert stats.get("cache.shared.damaged_blocks") == 4
            with trio.fail_after(10):
                while client.exists(*keys) > 2:  # what is whole, and the list, which MGET calls nothing
                    await trio.sleep(0.01)
        assert len(warnings(caplog)) == 1


async def test_a_password_of_the_url(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis", password=SECRET) as server:
        async with tier_on(server.url.replace("://", f"://:{QUOTED}@")) as tier:
            await put(tier, [0])
            assert await got(tier, [0]) == {0}
        with server.client() as client:
            client.acl_setuser("node", enabled=True, passwords=["+" + SECRET], keys=["*"], commands=["+@all"])
        async with tier_on(server.url.replace("://", f"://node:{QUOTED}@")) as tier:
            assert await got(tier, [0]) == {0}


@warns
@pytest.mark.parametrize("given", ["", ":wr0ng-0ne@", "nobody:wr0ng-0ne@"])
async def test_a_wrong_password_is_one_warning_without_it(
    tmp_path: Path, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running_redis(tmp_path / "redis", password=SECRET) as server:
        async with tier_on(server.url.replace("://", f"://{given}")) as tier:
            for _ in range(FAILURES + 2):
                assert await got(tier, [0]) == set()
                await put(tier, [0])
            (said,) = warnings(caplog)
            assert server.url in said
            assert "wr0ng" not in said + str(tier.status())
            assert tier.status()["state"] == "off"


@pytest.mark.parametrize(
    ("said", "told", "kind"),
    [
        ("OOM command not allowed", "OOM command not allowed", CacheRefusedError),
        ("Command # 1 (SET k \x00).) secret) of pipeline caused error: OOM", "OOM", CacheRefusedError),
        ("Protocol error: unauthenticated bulk length", "Protocol error: unauthenticated bulk length", CacheError),
    ],
)
async def test_an_error_never_shows_what_was_to_be_stored(said: str, told: str, kind: type[CacheError]) -> None:
    def refuse(_client: Any) -> None:
        raise redis.ResponseError(said)

    engine = RedisEngine(RedisAddress(host="127.0.0.1", port=1, db=0), ttl_s=1.0)
    with pytest.raises(CacheError) as caught:
        await engine._call(refuse)
    assert (str(caught.value), type(caught.value)) == (told, kind)


@warns
async def test_a_user_who_may_only_read_reads(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    with server.client() as client:
        client.acl_setuser("reader", enabled=True, passwords=["+pw-of-reader"], keys=["*"], commands=["+@read"])
    async with tier_on(server.url) as writing, tier_on(server.url.replace("://", "://reader:pw-of-reader@")) as tier:
        await put(writing, [0])
        await put(tier, [1])
        assert await got(tier, [0, 1]) == {0}
        assert tier.status()["state"] == "reading"
        assert len(warnings(caplog)) == 1


@warns
async def test_a_full_server_is_still_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    with running_redis(tmp_path / "redis", "--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        async with tier_on(server.url, stats) as tier:
            for number in range(40):
                await put(tier, [number])
            assert tier.status()["state"] == "reading"
            assert await got(tier, range(3)) == {0, 1, 2}
            assert stats.get("cache.shared.dropped_blocks") > 10
            assert len(warnings(caplog)) == 1


@warns
async def test_a_server_that_dies_and_comes_back(
    server: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lazyfs")
    now_s = [0.0]
    async with tier_on(server.url) as tier:
        tier._clock = lambda: now_s[0]
        await put(tier, range(4))
        assert await got(tier, range(4)) == set(range(4))
        server.stop()
        for _ in range(FAILURES + 2):
            assert await got(tier, range(4)) == set()
        assert len(warnings(caplog)) == 1
        server.start()
        assert await got(tier, range(4)) == set()  # it is not asked yet
        assert server.calls("mget") == 0
        now_s[0] += 1000
        assert await got(tier, range(4)) == set()  # it is empty
        await put(tier, range(4))
        assert await got(tier, range(4)) == set(range(4))
        assert len(warnings(caplog)) == 1
        assert f"shared cache {server.url}: back again" in caplog.messages


@warns
async def test_a_server_that_hangs_costs_no_more_than_the_deadline(server: Redis) -> None:
    stats = Stats()
    async with tier_on(server.url, stats) as tier:
        await put(tier, [0])
        server.freeze()
        for _ in range(FAILURES + 1):
            assert await got(tier, [0]) == set()
        assert stats.get("cache.shared.timeouts") == FAILURES


async def test_many_readers_at_a_time(server: Redis) -> None:
    async with tier_on(server.url) as tier:
        await put(tier, range(32))

        async def read(number: int) -> None:
            assert await got(tier, [number, number + 1]) <= {number, number + 1}

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(read, number)


async def test_tls_with_a_certificate_that_the_url_names(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path / "redis.pem")
    with running_redis(tmp_path / "redis", tls=pem, password=SECRET) as server:
        async with tier_on(server.url.replace("://", f"://:{QUOTED}@")) as tier:
            await put(tier, range(4))
            assert await got(tier, range(4)) == set(range(4))


@warns
async def test_tls_refuses_who_cannot_prove_who_he_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pem = make_certificate(tmp_path / "redis.pem")
    with running_redis(tmp_path / "redis", tls=pem, password=SECRET) as server:
        url = server.url.partition("?")[0].replace("://", f"://:{QUOTED}@")
        async with tier_on(url) as tier:
            for _ in range(FAILURES):
                assert await got(tier, [0]) == set()
        (said,) = warnings(caplog)
        assert "certificate" in said.lower()
        assert SECRET not in said
        assert QUOTED not in said


async def test_a_cluster_gets_one_mget_for_an_extent(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as servers:
        stats = Stats()
        async with tier_on(f"redis+cluster://127.0.0.1:{servers[1].port}", stats) as tier:
            await got(tier, [0])  # makes the client learn where the slots are
            asked = sum(server.calls("mget") for server in servers)
            oids = [ObjectId(f"shard-{number}", "1") for number in range(12)]
            for oid in oids:
                await put(tier, range(16), oid)
                found = await tier.get_many(oid, SIZE, range(16))
                assert len(found) == 16
            assert sum(server.calls("mget") for server in servers) - asked == 12
            held = []
            for server in servers:
                with server.client() as client:
                    held.append(client.dbsize())
            assert sum(held) == 12 * 16
            assert all(held), held  # the objects are spread
            assert stats.get("cache.shared.errors") == 0


def test_without_redis_py_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lazyfs.cache.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(StartupError, match=r'pip install "lazyfs\[redis\]"'):
        open_redis(RedisAddress(host="h"), ttl_s=5)


def test_what_the_engine_says_has_no_password() -> None:
    engine = RedisEngine(RedisAddress(host="h", username="u", password=SECRET), ttl_s=5)
    assert engine._told(ValueError(f"cannot use\n{SECRET}!")) == "cannot use ***!"
    assert SECRET not in repr(engine._address)
    assert engine.where == "redis://h:6379/0"
