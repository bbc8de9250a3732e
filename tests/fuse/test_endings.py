"""Mounts that end at a bad moment, and mounts that share what they must not take from each other."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from tests.campaign import SEED, THOROUGH, times
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, is_mounted, is_running, until
from tests.fuse.trees import get, keys, put, random_bytes, read_tree
from tests.servers import Server

MIB = 1024**2


@pytest.fixture
def server(gateway: Server) -> Server:
    """One server, a fast one."""
    return gateway


@pytest.fixture
def files(client: Minio, bucket: str) -> dict[str, bytes]:
    found = {f"d{number % 3}/f{number:02}": random_bytes(number * 40_001, number) for number in range(16)}
    for key, data in found.items():
        put(client, bucket, key, data)
    return found


LOAD = """
import hashlib, os, random, sys
root, seed = os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2])  # not what is there once it is unmounted
rng = random.Random(seed)
for n in range(1_000_000):
    body = rng.randbytes(rng.choice([0, 100, 300_000, 6 << 20]))
    name = f"w-{seed}-{n}"
    print("begin", name, hashlib.sha256(body).hexdigest(), flush=True)
    with open(name, "wb", opener=lambda path, flags: os.open(path, flags, dir_fd=root)) as f:
        f.write(body)
    print("end", name, hashlib.sha256(body).hexdigest(), flush=True)
"""


@pytest.mark.campaign
@pytest.mark.parametrize("options", [(), ("--write-back",)][not THOROUGH :], ids=["through", "back"][not THOROUGH :])
def test_sigterm_under_load_ends_in_order_and_keeps_what_was_acknowledged(
    mount: Mounter, server: Server, client: Minio, bucket: str, files: dict[str, bytes], options: tuple[str, ...]
) -> None:
    random = Random(SEED)
    begun: dict[str, str] = {}
    ended: dict[str, str] = {}
    ends_log = ["was still being written", "was not uploaded", "upload of", "left for the next mount", "listing the bu"]
    for turn in range(times(1, 12)):
        m = mount(*options, expect_log=ends_log, time_limit_s=60 + 20 * times(3, 12))
        stop = threading.Event()

        def read(number: int, m: Mount = m, stop: threading.Event = stop) -> None:
            own = Random(number)
            while not stop.is_set():
                key = own.choice(sorted(files))
                try:
                    found = (m / key).read_bytes()
                except OSError:  # it is gone, or on its way
                    return
                assert found == files[key]

        programs = [
            subprocess.Popen(
                [sys.executable, "-c", LOAD, str(m.path), str(turn * 10 + number)],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read, number) for number in range(3)]
            for program in programs:
                assert program.stdout is not None
                assert program.stdout.readline()
            stop.wait(random.uniform(0.1, 0.8))
            os.kill(m.pid, signal.SIGTERM)
            until(lambda m=m: not is_running(m.pid), "the daemon ends", 60)
            stop.set()
            for reader in readers:
                reader.result(timeout=30)
        for program in programs:
            program.kill()
            for line in program.communicate()[0].splitlines():
                if len(line.split()) == 3:
                    what, name, digest = line.split()
                    (begun if what == "begin" else ended)[name] = digest
        assert not is_mounted(m.path)
    last = mount(*options, expect_log=ends_log, time_limit_s=60 + 20 * times(3, 12))
    last.wait_imported()
    last.wait_uploaded()
    held = {
        key: hashlib.sha256(get(client, bucket, key)).hexdigest() for key in keys(client, bucket) if key[:2] == "w-"
    }
    assert {name: held.get(name) for name in ended} == ended
    assert all(begun.get(name, digest) == digest for name, digest in held.items())
    assert {key: (last / key).read_bytes() for key in files} == files
    raw = server.client()
    assert not raw.list_multipart_uploads(Bucket=bucket).get("Uploads")
    raw.close()


@pytest.mark.campaign
def test_a_directory_rename_that_is_killed_is_finished_or_never_was(mount: Mounter, client: Minio, bucket: str) -> None:
    random = Random(SEED)
    wanted = {f"part-{number:02}": random_bytes(2000 + number, number) for number in range(24)}
    for name, data in wanted.items():
        put(client, bucket, f"old/{name}", data)
    where, limit_s = "old", 60 + 10 * times(2, 40)  # of all mounts together: each has a watchdog to the end
    m = mount("--metadata-ttl", "0", time_limit_s=limit_s)
    for turn in range(times(2, 40)):
        target = f"new-{turn}"
        with ThreadPoolExecutor(1) as pool:
            rename = pool.submit(os.rename, m / where, m / target)
            time.sleep(random.random() * 0.15)
            m.kill()
            was_told = rename.exception(30) is None
        assert m.umount().returncode == 0
        m = mount("--metadata-ttl", "0", time_limit_s=limit_s)
        found = [name for name in (where, target) if (m / name).exists()]
        assert found == [target] if was_told else len(found) == 1, (turn, found)
        assert read_tree(m / found[0])[0] == wanted
        held = {key: get(client, bucket, key) for key in keys(client, bucket) if not key.endswith("/")}
        assert held == {f"{found[0]}/{name}": data for name, data in wanted.items()}
        where = found[0]


def test_two_mounts_with_one_cache_directory_and_a_third_on_a_mount_point_that_is_taken(
    mount: Mounter, client: Minio, bucket: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    one = mount("--metadata-ttl", "0")
    cache = str(one.path.parent / "cache")
    two = mount("--metadata-ttl", "0", "--cache-dir", cache, directory="other")
    assert read_tree(one.path)[0] == files
    until(lambda: one.status()["cache"]["disk"]["used"] > sum(map(len, files.values())), "blocks are on the SSD")
    until(lambda: one.stat_of("read.waiting") == 0, "it rests")
    assert read_tree(two.path)[0] == files
    assert two.requests("get") <= 4, "what one has fetched the other finds, but for what it has not written yet"
    (two / "new").write_bytes(b"by the second")
    assert (one / "new").read_bytes() == b"by the second"
    put(client, bucket, "d1/f01", b"replaced")
    assert (one / "d1/f01").read_bytes() == (two / "d1/f01").read_bytes() == b"replaced"
    third = one.lazyfs("mount", bucket, one.path, "--endpoint-url", one.server.endpoint_url, "--cache-dir", "none")
    assert third.returncode == 1, "that mount point is taken"
    assert len(third.stderr.splitlines()) == 1
    assert str(one.path) in third.stderr
    one.kill()
    now = {**files, "new": b"by the second", "d1/f01": b"replaced"}
    assert read_tree(two.path)[0] == now
    assert one.umount().returncode == 0
    again = mount("--metadata-ttl", "0")
    assert read_tree(again.path)[0] == now
    assert read_tree(two.path)[0] == now
