"""Two nodes with caches of their own and a shared tier between them: what one has fetched, the other does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio

from lazyfs.cli.frames import TIERS
from tests.conftest import new_bucket_name
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, environment, is_mounted, lazyfs, until
from tests.fuse.trees import put, random_bytes, read_tree
from tests.redis_server import Redis, running_redis
from tests.servers import Server

MIB = 1024**2
SECRET = "hu5h-hu5h"


@pytest.fixture
def server(gateway: Server) -> Server:
    """The origin."""
    return gateway


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with running_redis(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def files(client: Minio, bucket: str) -> dict[str, bytes]:
    found = {f"d{number % 3}/f{number}": random_bytes(70_000 * number, number) for number in range(8)}
    found["shard.tar"] = random_bytes(11 * MIB + 17)
    for key, data in found.items():
        put(client, bucket, key, data)
    return found


@pytest.fixture
def near(request: pytest.FixtureRequest, gateway: Server) -> Iterator[str]:
    """The URL of a shared tier: Redis, a bucket of the same server, or one of another server."""
    if request.param == "redis":
        yield request.getfixturevalue("redis").url
        return
    where = gateway if request.param == "bucket" else request.getfixturevalue("moto")
    bucket = where.make_bucket(new_bucket_name())
    yield f"s3://{bucket}/blocks" + ("" if where is gateway else f"?endpoint={where.endpoint_url}")
    where.drop_bucket(bucket)


def wait_shared(mount: Mount) -> None:
    """Return when what was read is there for others."""
    until(lambda: mount.status()["cache"]["shared"]["pending"] == 0, "blocks are shared")


def lost(mount: Mount) -> int:
    """Blocks that a slow machine has not shared, or not found in time."""
    names = ("busy_blocks", "errors", "dropped_blocks")
    return sum(mount.stat_of(f"cache.shared.{name}") for name in names)


@pytest.mark.parametrize("near", ["redis", "bucket", "another server"], indirect=True)
def test_a_second_node_reads_without_the_origin(mount: Mounter, files: dict[str, bytes], near: str) -> None:
    one = mount("--shared-cache", near, directory="one")
    assert read_tree(one.path)[0] == files
    wait_shared(one)
    two = mount("--shared-cache", near, directory="two")
    gets = two.requests("get")  # those that ask what the endpoint honours
    assert read_tree(two.path)[0] == files
    if not lost(one) + lost(two):  # a cache may forget
        assert two.requests("get") == gets
        assert two.stat_of("cache.shared.hit_bytes") == sum(map(len, files.values()))
        assert two.stat_of("cache.shared.put_blocks") == 0
        assert two.stat_of("read.bytes.s3") == two.stat_of("read.bytes.disk") == 0
    two.wait_closed()
    assert sum(two.stat_of(f"read.bytes.{tier}") for tier in TIERS) == sum(map(len, files.values()))
    assert two.stat_of("read.bytes.shared") > 0
    assert two.stat_of("cache.shared.hit_bytes") > 0
    drop_page_cache()
    hits = two.stat_of("cache.shared.gets")
    assert read_tree(two.path)[0] == files
    assert two.stat_of("cache.shared.gets") == hits, "what came is kept in memory and on the SSD"
    told = two.lazyfs("status", two.path).stdout
    assert f"{near.partition('?')[0]}" in told
    assert "in use" in told


def test_an_overwritten_object_is_never_served_from_old_blocks(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str, redis: Redis
) -> None:
    one = mount("--shared-cache", redis.url, "--metadata-ttl", "0", directory="one")
    assert (one / "shard.tar").read_bytes() == files["shard.tar"]
    wait_shared(one)
    new = random_bytes(len(files["shard.tar"]), 99)
    put(client, bucket, "shard.tar", new)
    two = mount("--shared-cache", redis.url, directory="two")
    assert (two / "shard.tar").read_bytes() == new
    assert two.stat_of("cache.shared.hit_blocks") == 0
    wait_shared(two)
    assert (one / "shard.tar").read_bytes() == new
    assert one.stat_of("cache.shared.hit_blocks") > 0


def test_a_planted_block_is_never_read(mount: Mounter, files: dict[str, bytes], redis: Redis) -> None:
    one = mount("--shared-cache", redis.url, directory="one")
    assert read_tree(one.path)[0] == files
    wait_shared(one)
    with redis.client() as client:
        keys = client.keys("*")
        for number, key in enumerate(keys):
            client.setrange(key, 500 + 100 * number, b"planted")
    two = mount("--shared-cache", redis.url, directory="two", expect_log=["damaged block"])
    assert read_tree(two.path)[0] == files
    assert two.stat_of("cache.shared.hit_blocks") == 0
    assert two.log().count("damaged block") == 1


def test_reads_go_on_when_the_shared_cache_dies(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str, redis: Redis
) -> None:
    later = [f"later/{number:03}" for number in range(150)]
    for name in later:
        put(client, bucket, name, b"x" * 1000)
    m = mount("--shared-cache", redis.url, expect_log=["going on without it"])
    assert (m / "d1/f1").read_bytes() == files["d1/f1"]
    wait_shared(m)
    redis.stop()
    assert {name: (m / name).read_bytes() for name in files} == files
    assert m.log().count("going on without it") == 1
    told = m.lazyfs("status", m.path).stdout
    assert "not in use; last error: " in told
    redis.start()

    def used_again() -> bool:
        time.sleep(0.2)  # it is left alone for ten seconds
        (m / later.pop()).read_bytes()
        return bool(m.status()["cache"]["shared"]["state"] == "on" and redis.calls("mget"))

    until(used_again, "it is used again", timeout_s=30)
    assert "back again" in m.log()
    assert m.log().count("going on without it") == 1


def test_a_mount_without_the_server_works_and_says_so(mount: Mounter, files: dict[str, bytes], redis: Redis) -> None:
    redis.stop()
    m = mount("--shared-cache", redis.url, expect_log=["going on without it"])
    assert read_tree(m.path)[0] == files
    assert "Connection refused" in m.log()


def test_a_shared_cache_that_hangs_holds_up_neither_reads_nor_the_unmount(
    mount: Mounter, files: dict[str, bytes], redis: Redis
) -> None:
    m = mount("--shared-cache", redis.url, expect_log=["going on without it"])
    assert (m / "d1/f1").read_bytes() == files["d1/f1"]
    wait_shared(m)
    redis.freeze()
    assert read_tree(m.path)[0] == files
    assert m.stat_of("cache.shared.timeouts") >= 1
    assert m.umount().returncode == 0


@pytest.mark.parametrize("right", [True, False])
def test_a_password_shows_nowhere(mount: Mounter, files: dict[str, bytes], tmp_path: Path, right: bool) -> None:
    config = tmp_path / "config.toml"
    with running_redis(tmp_path / "redis", password=SECRET if right else "another") as server:
        config.write_text(f'shared-cache = "{server.url.replace("://", f"://:{SECRET}@")}"\nlog-level = "debug"\n')
        m = mount("--config", str(config), expect_log=[] if right else ["going on without it"])
        assert read_tree(m.path)[0] == files
        wait_shared(m)
        shown = [m.output, m.log(), json.dumps(m.status()), Path(f"/proc/{m.pid}/cmdline").read_text()]
        shown += [m.lazyfs("status", m.path).stdout, m.lazyfs("status", "--json").stdout]
        assert not [text for text in shown if SECRET in text]
        assert server.url in shown[4]
        assert bool(m.stat_of("cache.shared.put_blocks")) == right
        m.umount()


def test_what_cannot_be_shared_is_told_in_one_line(server: Server, bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    for url in (f"redis://:{SECRET}@node", f"redsi://:{SECRET}@node", f"s3://{bucket}/blocks"):
        done = lazyfs(
            "mount",
            bucket,
            path,
            "--endpoint-url",
            server.endpoint_url,
            "--shared-cache",
            url,
            env=environment(server, tmp_path),
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert SECRET not in done.stderr
        assert not is_mounted(path)
