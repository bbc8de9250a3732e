"""Names: right from the first call, free within the lease, and true again after it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import mounted, until
from tests.fuse.trees import put, random_bytes
from tests.proxy import Seen, proxied
from tests.servers import Server
from tests.sparse_server import sparse_server

MIB = 1024**2


def find(path: Path) -> list[str]:
    """What find(1) prints, with types and sizes."""
    command = ["find", str(path), "-printf", "%P %y %s\n"]
    return sorted(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())


def exists(path: Path) -> bool:
    """By stat(2); an error other than ENOENT raises."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


@pytest.fixture
def small_tree(client: Minio, bucket: str) -> list[str]:
    names = [f"train/class{group}/{number}.jpg" for group in range(4) for number in range(5)] + ["README", "val/1.jpg"]
    for name in names:
        put(client, bucket, name, name.encode())
    return names


def test_the_mount_is_right_while_the_import_has_not_moved(
    mount: Mounter, small_tree: list[str], server: Server
) -> None:
    released = threading.Event()

    def hold_the_import(seen: Seen) -> threading.Event | None:
        """The import lists everything; what is asked on demand names a delimiter, or wants one key."""
        whole = seen.kind == "list" and "delimiter" not in seen.query and seen.query["max-keys"] == "1000"
        return released if whole else None

    with proxied(server) as proxy, contextlib.ExitStack() as stack:
        stack.callback(released.set)
        m = mount("--import", "background", on=proxy.server)
        proxy.hold = hold_the_import
        # Whether or not the import was faster than the hold, what follows must be right.
        assert (m / "train/class3/4.jpg").read_bytes() == b"train/class3/4.jpg"
        assert not exists(m / "train/class3/5.jpg")
        assert not exists(m / "nowhere/at/all")
        assert sorted(os.listdir(m / "train")) == ["class0", "class1", "class2", "class3"]
        assert sorted(os.listdir(m.path)) == ["README", "train", "val"]
        (m / "train/new").write_bytes(b"mine")
        released.set()
        m.wait_imported()
        assert (m / "train/new").read_bytes() == b"mine"
        assert len(find(m.path)) == len(small_tree) + 1 + 1 + 6


def test_within_the_lease_nothing_is_asked(mount: Mounter, small_tree: list[str], server: Server) -> None:
    with proxied(server) as proxy:
        m = mount("--metadata-ttl", "1h", on=proxy.server)
        m.wait_imported()
        proxy.seen.clear()
        first = find(m.path)
        assert find(m.path) == first
        for name in ("missing", "train/missing", "train/class1/missing", "train/class1/missing"):
            assert not exists(m / name)
        assert os.statvfs(m.path).f_namemax == 255
        assert proxy.seen == []
        assert len(first) == len(small_tree) + 1 + 6


def test_a_mount_starts_from_what_the_last_one_knew(mount: Mounter, small_tree: list[str], server: Server) -> None:
    m = mount("--metadata-ttl", "1h")
    m.wait_imported()
    before = find(m.path)
    m.umount()
    with proxied(server) as proxy:
        again = mount("--metadata-ttl", "1h", on=proxy.server)
        # The endpoint is part of what the index is of; another port is another server.
        again.wait_imported()
        assert find(again.path) == before
        again.umount()
        third = mount("--metadata-ttl", "1h", on=proxy.server)
        until(lambda: third.status()["import"]["state"] == "done", "import")
        proxy.seen.clear()
        assert find(third.path) == before
        assert proxy.seen == []


def test_changes_of_others_are_seen_after_the_lease(
    mount: Mounter, small_tree: list[str], client: Minio, bucket: str
) -> None:
    m = mount("--metadata-ttl", "1s")
    m.wait_imported()
    assert not exists(m / "train/class0/added.jpg")
    assert (m / "README").read_bytes() == b"README"
    find(m.path)
    put(client, bucket, "train/class0/added.jpg", b"added")
    put(client, bucket, "train/class9/first.jpg", b"first")
    put(client, bucket, "README", b"a longer text than before")
    client.remove_object(bucket, "val/1.jpg")
    client.remove_object(bucket, "train/class1/0.jpg")
    until(lambda: exists(m / "train/class0/added.jpg"), "an added file appears")
    until(lambda: "class9" in os.listdir(m / "train"), "an added directory is listed")
    assert (m / "train/class9/first.jpg").read_bytes() == b"first"
    until(lambda: not exists(m / "train/class1/0.jpg"), "a deleted file goes")
    until(lambda: "0.jpg" not in os.listdir(m / "train/class1"), "a deleted file is not listed")
    until(lambda: not exists(m / "val/1.jpg"), "the last file of a directory goes")
    until(lambda: (m / "README").read_bytes() == b"a longer text than before", "new content")
    assert (m / "README").stat().st_size == 25


def test_without_a_lease_every_look_is_the_truth(mount: Mounter, client: Minio, bucket: str) -> None:
    m = mount("--metadata-ttl", "0")
    m.wait_imported()
    for turn in range(3):
        data = f"turn {turn}".encode() * (turn + 1)
        put(client, bucket, "d/file", data)
        assert (m / "d/file").read_bytes() == data
        assert os.listdir(m / "d") == ["file"]
        client.remove_object(bucket, "d/file")
        assert not exists(m / "d/file")


def test_a_replaced_object_is_never_mixed_with_the_new_one(mount: Mounter, client: Minio, bucket: str) -> None:
    size = 3 * MIB
    put(client, bucket, "shard", b"1" * size)
    m = mount("--metadata-ttl", "0")
    m.wait_imported()
    with (m / "shard").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, 0) == b"1" * 4096
        put(client, bucket, "shard", b"2" * (size + 5))
        with pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 4096, 2 * MIB)
        assert os.pread(file.fileno(), 4096, 8192) == b"1" * 4096, "resident: still the version that was opened"
        with (m / "shard").open("rb") as new:
            assert new.read() == b"2" * (size + 5)
        with pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 4096, 2 * MIB)
    assert (m / "shard").read_bytes() == b"2" * (size + 5)


def test_an_object_deleted_while_it_is_open_is_stale_not_empty(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "shard", b"1" * 2 * MIB)
    m = mount("--metadata-ttl", "0")
    with (m / "shard").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 10, 0) == b"1" * 10
        client.remove_object(bucket, "shard")
        with pytest.raises(OSError, match="Stale"):
            os.pread(file.fileno(), 10, MIB + 7)
    assert not exists(m / "shard")


def test_same_size_and_new_content_is_not_served_from_the_page_cache(
    mount: Mounter, client: Minio, bucket: str
) -> None:
    m = mount("--metadata-ttl", "0")
    for letter in (b"a", b"b", b"c"):
        put(client, bucket, "same", letter * 5000)
        assert (m / "same").read_bytes() == letter * 5000


def test_each_stable_entry_is_told_once_while_others_come_and_go(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    count = 700 if server.name == "moto" else 3000  # moto takes 3 ms an object
    plain = server.client()
    stable = {f"stable-{number:05}" for number in range(count)}
    for name in sorted(stable):
        plain.put_object(Bucket=bucket, Key=f"many/{name}", Body=b"")
    plain.close()
    m = mount("--metadata-ttl", "1h")
    m.wait_imported()
    folder = m / "many"
    ends = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        try:
            number = 0
            while not ends.is_set():
                name = folder / f"stable-{number * 37 % count:05}-passing"
                name.write_bytes(b"")
                name.unlink()
                number += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2):
            seen: Counter[str] = Counter()
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    seen[entry.name] += 1
                    if number % 500 == 0:
                        time.sleep(0.01)  # a slow reader: more churn between two batches
            assert {name for name in seen if not name.endswith("-passing")} == stable
            assert all(times == 1 for name, times in seen.items() if name in stable)
    finally:
        ends.set()
        thread.join(30)
    assert not failures
    assert not thread.is_alive()


def test_a_huge_directory_starts_to_answer_before_it_is_listed(session: str, tmp_path: Path) -> None:
    """Its second page is held back: a thousand entries come, less the last, which a directory could still hide."""
    names = [f"img_{number:05}.jpg" for number in range(2500)]
    released = threading.Event()

    def hold(seen: Seen) -> threading.Event | None:
        """Pages after the first of a listing on demand; and the import, which would answer in its place."""
        if seen.kind != "list" or seen.query["max-keys"] != "1000":  # the mount's own checks ask for less
            return None
        paged = "continuation-token" in seen.query or "start-after" in seen.query
        return released if paged or "delimiter" not in seen.query else None

    with (
        sparse_server({f"all/{name}": 1 for name in names}) as sparse,
        proxied(sparse.server) as proxy,
        contextlib.ExitStack() as stack,
    ):
        proxy.hold = hold  # before the mount: the import must not come first
        m = stack.enter_context(
            mounted(sparse.bucket, proxy.server, "--read-only", directory=tmp_path, session=session)
        )
        stack.callback(released.set)
        with os.scandir(m.path / "all") as entries:
            told = [next(entries).name for _ in range(100)]
            assert not released.is_set()
            released.set()
            told += [entry.name for entry in entries]
        assert sorted(told) == names
        pages = [seen for seen in proxy.seen if seen.query.get("prefix") == "all/" and "delimiter" in seen.query]
        assert len(pages) == 3


def test_a_directory_that_is_deleted_while_it_is_listed(mount: Mounter, client: Minio, bucket: str) -> None:
    for number in range(50):
        put(client, bucket, f"gone/{number}", b"")
    m = mount("--metadata-ttl", "0")
    m.wait_imported()
    entries = os.scandir(m / "gone")
    next(entries)
    for number in range(50):
        client.remove_object(bucket, f"gone/{number}")
    assert len(list(entries)) <= 49
    entries.close()
    assert not exists(m / "gone")


def test_two_mounts_of_one_bucket_and_one_cache(mount: Mounter, client: Minio, bucket: str, tmp_path: Path) -> None:
    data = random_bytes(MIB)
    put(client, bucket, "shared", data)
    cache = str(tmp_path / "one-cache")
    first = mount("--metadata-ttl", "0", "--cache-dir", cache, directory="first")
    second = mount("--metadata-ttl", "0", "--cache-dir", cache, directory="second")
    assert (first / "shared").read_bytes() == data
    gets = second.requests("get")
    until(lambda: first.status()["cache"]["disk"]["used"] > MIB, "the first mount has written its blocks")
    assert (second / "shared").read_bytes() == data
    assert second.requests("get") == gets, "the second mount reads from the cache that the first one filled"
    (first / "from-first").write_bytes(b"1")
    assert (second / "from-first").read_bytes() == b"1"
    (second / "from-first").write_bytes(b"22")
    assert (first / "from-first").read_bytes() == b"22"
    (first / "from-first").unlink()
    assert not exists(second / "from-first")
