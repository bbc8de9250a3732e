"""Reading out of a mount: every byte is the bucket's, and none is fetched twice."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from lazyfs.core.concurrency import LOWEST, START
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import drop_page_cache, environment, lazyfs, mounted, until
from tests.fuse.trees import get, keys, odd_tree, put, random_bytes, read_tree, visible
from tests.proxy import Seen, proxied
from tests.servers import Server
from tests.sparse_server import content, sparse_server

TEN_GB = 10 * 10**9
BLOCK = 256 * 1024
MIB = 1024**2
NO_PATHS = ["bad//empty", "bad/./dot", "bad/../up", "/leading"]


@pytest.fixture
def tree(client: Minio, bucket: str, server: Server) -> dict[str, bytes]:
    """A bucket full of odd things; what is in it, as the independent client reads it back."""
    for key, data in odd_tree(server).items():
        put(client, bucket, key, data)
    if "folds-slashes" not in server.limits:
        plain = server.client()  # the minio SDK refuses such keys
        for key in NO_PATHS:
            plain.put_object(Bucket=bucket, Key=key, Body=b"not a path")
        plain.close()
    if server.name != "moto":  # moto is slow with large bodies
        put(client, bucket, "large.bin", random_bytes(200 * MIB))
    found = {
        key: get(client, bucket, key) for key in keys(client, bucket) if key not in NO_PATHS and not key.endswith("/")
    }
    found |= {key: b"" for key in odd_tree(server) if key.endswith("/")}
    return found


@pytest.mark.both_sessions
def test_a_copy_is_the_bucket_and_the_second_reading_asks_nothing(
    mount: Mounter, tree: dict[str, bytes], tmp_path: Path, server: Server
) -> None:
    files, folders = visible(tree)
    m = mount()
    m.wait_imported()
    expected_skips = 0 if "folds-slashes" in server.limits else 4
    assert m.status()["skipped_keys"] == expected_skips

    subprocess.run(["cp", "-r", m.path, tmp_path / "copy"], check=True)
    copied = read_tree(tmp_path / "copy")
    # The skipped keys leave a directory: `bad` is a good name.
    extra = {"bad"} if expected_skips else set()
    assert copied[0] == files
    assert copied[1] == folders | extra

    asked = m.requests()
    assert read_tree(m.path) == copied
    assert m.requests() == asked, "the second reading, from the kernel's page cache"

    gets = m.requests("get")
    drop_page_cache()
    assert read_tree(m.path) == copied
    assert m.requests("get") == gets, "without the page cache, from memory and SSD"

    dropped = m.stat_of("cache.disk.dropped_blocks")  # the SSD was slower than the server, and a cache may forget
    if server.name == "moto":
        assert not dropped
    m.umount()
    again = mount()
    gets = again.requests("get")  # those that ask what the endpoint honours
    assert read_tree(again.path) == copied
    assert again.requests("get") - gets <= dropped, "after a remount, from the SSD"
    assert again.stat_of("cache.disk.hit_bytes") > 0


def test_the_last_byte_of_ten_gigabytes_is_one_small_get(tmp_path: Path, session: str) -> None:
    with (
        sparse_server({"shards/big.tar": TEN_GB, "small": 11}) as sparse,
        mounted(sparse.bucket, sparse.server, "--read-only", directory=tmp_path, session=session) as m,
    ):
        m.wait_imported()
        sparse.gets.clear()  # those that ask what the endpoint honours
        path = m / "shards/big.tar"
        assert path.stat().st_size == TEN_GB
        assert not sparse.gets
        with path.open("rb", buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            assert file.read() == content(TEN_GB - 1, TEN_GB)
            ((start, stop),) = sparse.gets
            assert stop == TEN_GB
            assert stop - start <= BLOCK
            assert file.read(1) == b""


def test_random_reads_of_ten_gigabytes_are_right_and_small(tmp_path: Path, session: str) -> None:
    random = Random(7)
    spans = [(start, start + random.choice([1, 100, 4096, 70_000])) for start in random.sample(range(TEN_GB), 40)]
    with (
        sparse_server({"big": TEN_GB}) as sparse,
        mounted(sparse.bucket, sparse.server, "--read-only", directory=tmp_path, session=session) as m,
    ):
        m.wait_imported()
        sparse.gets.clear()
        descriptor = os.open(m / "big", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for start, stop in spans:
                assert os.pread(descriptor, stop - start, start) == content(start, min(stop, TEN_GB))
        finally:
            os.close(descriptor)
        fetched = sum(stop - start for start, stop in sparse.gets)
        # A read of up to 70,000 bytes touches two blocks at most.
        assert fetched <= 2 * BLOCK * len(spans)


def test_a_sequential_reader_fetches_each_byte_once_in_large_requests(tmp_path: Path, session: str) -> None:
    size = 24 * MIB
    with (
        sparse_server({"big": size}) as sparse,
        mounted(sparse.bucket, sparse.server, "--read-only", directory=tmp_path, session=session) as m,
    ):
        m.wait_imported()
        sparse.gets.clear()
        assert (m / "big").read_bytes() == content(0, size)
        gets = sorted(sparse.gets)
        assert gets[0][0] == 0
        assert gets[-1][1] == size
        assert all(before[1] == after[0] for before, after in pairwise(gets)), gets
        assert len(gets) <= 24


@pytest.mark.both_sessions
def test_mmap_and_threads_and_many_descriptors_see_the_same_bytes(mount: Mounter, client: Minio, bucket: str) -> None:
    data = random_bytes(3 * MIB + 17)
    put(client, bucket, "model.safetensors", data)
    m = mount("--memory", "64MiB")
    with (m / "model.safetensors").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for start in Random(3).sample(range(len(data) - 5000), 50):
            assert view[start : start + 5000] == data[start : start + 5000]
    commands = [["cmp", "-s", str(m / "model.safetensors"), "-"] for _ in range(4)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
    for process in processes:
        process.communicate(data)
    assert [process.returncode for process in processes] == [0] * 4


def test_names_of_a_path_that_is_a_file_and_a_directory(
    mount: Mounter, client: Minio, bucket: str, server: Server
) -> None:
    if "file-and-directory" in server.limits:
        pytest.skip("the gateway keeps keys as paths: `a` and `a/b` cannot both exist")
    put(client, bucket, "a", b"file")
    put(client, bucket, "a/b", b"below")
    m = mount("--metadata-ttl", "0")
    assert os.listdir(m.path) == ["a"]
    assert (m / "a").is_dir()
    assert (m / "a/b").read_bytes() == b"below"
    client.remove_object(bucket, "a/b")
    assert (m / "a").read_bytes() == b"file", "the file shows again when the directory is gone"


def test_a_prefix_is_a_root_of_its_own(mount: Mounter, client: Minio, bucket: str, server: Server) -> None:
    put(client, bucket, "imagenet/train/1.jpg", b"one")
    put(client, bucket, "imagenet/trainer/2.jpg", b"two")
    put(client, bucket, "imagenet.txt", b"three")
    m = mount()
    m.umount()
    directory = m.path.parent
    with mounted(f"s3://{bucket}/imagenet/train", server, directory=directory) as below:
        assert read_tree(below.path) == ({"1.jpg": b"one"}, set())
        assert not (below / "../imagenet.txt").exists()
        (below / "new").write_bytes(b"made")
    assert get(client, bucket, "imagenet/train/new") == b"made"


def test_a_server_that_refuses_is_asked_by_fewer_and_every_byte_is_right(
    mount: Mounter, client: Minio, bucket: str, server: Server
) -> None:
    """503 SlowDown for every third of the first GETs: fewer requests may be in flight, and no program notices."""
    data = random_bytes(12 * MIB)
    put(client, bucket, "shard", data)
    refused: list[str] = []
    with proxied(server) as proxy:
        m = mount("--cache-dir", "none", on=proxy.server)
        m.wait_imported()
        assert m.status()["connections"] == {"in_flight": 0, "limit": START}
        gets = itertools.count()

        def refuse(seen: Seen) -> tuple[int, str] | None:
            if seen.kind != "get" or len(refused) == 6 or next(gets) % 3:
                return None
            refused.append(seen.range or "")
            return 503, "SlowDown"

        proxy.refuse = refuse
        assert (m / "shard").read_bytes() == data
        assert refused
        until(lambda: m.status()["connections"]["in_flight"] == 0, "read-ahead ends")
        assert m.stat_of("s3.throttles") == len(refused)
        assert LOWEST <= m.status()["connections"]["limit"] < START
        assert "requests in flight" in m.lazyfs("status", m.path).stdout


def test_after_a_preload_the_whole_tree_is_read_without_the_endpoint(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    files = {f"d{number % 5}/f{number:03}": random_bytes(50_000 + number) for number in range(60)}
    files["large"] = random_bytes(6 * MIB)
    for key, data in files.items():
        put(client, bucket, key, data)
    with proxied(server) as proxy:
        m = mount("--read-only", "--preload", "--metadata-ttl", "indefinite", on=proxy.server)
        until(lambda: m.status()["preload"]["state"] == "done", "the preload", timeout_s=60)
        assert m.status()["preload"]["files"] == len(files)
        asked = proxy.count()
        proxy.refuse = lambda _: (403, "AccessDenied")
        assert read_tree(m.path)[0] == files
        assert proxy.count() == asked


def test_preload_without_a_place_for_the_data_is_refused(bucket: str, server: Server, tmp_path: Path) -> None:
    done = lazyfs(
        "mount", bucket, tmp_path, "--preload", "--cache-dir", "none", env=environment(server, tmp_path / "home")
    )
    assert done.returncode == 2
    assert "--cache-dir" in done.stderr
