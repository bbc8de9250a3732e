"""`lazyfs report` on a real mount: what it tells of a run is what programs read, and what passes a proxy."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from lazyfs.control.client import call
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, until
from tests.fuse.trees import put, random_bytes
from tests.proxy import proxied
from tests.servers import Server

MIB = 1024**2


@pytest.fixture
def _once(server: Server) -> None:
    if server.name != "moto":
        pytest.skip("the endpoint does not matter")


def told(m: Mount, *options: str) -> dict[str, Any]:
    done = m.lazyfs("report", m.path, "--json", *options)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    return dict(one)


def read_all(m: Mount, files: dict[str, bytes]) -> None:
    for key, data in files.items():
        assert (m / key).read_bytes() == data
    m.wait_closed()


def of_pass(report: dict[str, Any], number: int) -> dict[str, Any]:
    (found,) = [one for one in report["passes"] if one["pass"] == number]
    return dict(found)


def test_a_run_of_two_epochs(mount: Mounter, client: Minio, bucket: str, server: Server) -> None:
    files = {f"train/c{number % 4}/{number:02}": random_bytes(20_000 + number, number) for number in range(40)}
    for key, data in {**files, "never/read": b"x" * 1000}.items():
        put(client, bucket, key, data)
    size = sum(map(len, files.values()))
    with proxied(server) as proxy:
        m = mount(on=proxy.server)
        m.wait_imported()
        quiet = told(m)
        assert (quiet["since"], quiet["passes"], quiet["beginning"]["first_open_s"]) == ("mount", [], None)
        read_all(m, files)
        first = told(m)
        assert first["listing"]["objects"] == first["files"]["listed"] == 41
        assert first["files"]["never_opened"] == 1
        begun = first["beginning"]
        assert 0 < begun["first_open_s"] <= begun["first_byte_s"] <= begun["first_batch_s"] < first["elapsed_s"]
        one = of_pass(first, 1)
        assert (one["opens"], one["file_bytes"]) == (40, size)
        assert sum(one["bytes"].values()) == size
        assert first["waits"]["reads"] == first["waits"]["all"]["count"] == 40
        assert first["waits"]["anybody_s"] <= first["waits"]["readers_s"] + 1e-6
        assert 0 < first["waits"]["all"]["p50_s"] <= first["waits"]["all"]["p99_s"] < 60
        assert first["s3"]["read_bytes"] == size
        assert first["s3"]["requests"]["get"] == proxy.count("get")
        assert first["file_mode"]["opened_bytes"] == size
        assert first["file_mode"]["listed_bytes"] == size + 1000
        assert first["file_mode"]["opened_s"] == pytest.approx(size / first["s3"]["best_bytes_per_s"])
        hottest = {row["path"]: (row["files"], row["opens"]) for row in first["directories"]["hottest"]}
        assert hottest == {f"train/c{number}": (10, 10) for number in range(4)}
        largest = [{"path": "never", "files": 1, "bytes": 1000}]
        assert first["directories"]["unread"] == {"count": 1, "files": 1, "bytes": 1000, "largest": largest}

        read_all(m, files)  # the kernel's page cache answers: only the opens are seen
        second = of_pass(told(m), 2)
        assert (second["opens"], second["file_bytes"]) == (40, size)
        assert second["bytes"].keys() <= {"memory"}, "what the kernel had to give back is in memory, too"
        drop_page_cache()
        read_all(m, files)
        third = of_pass(told(m), 3)
        assert third["bytes"] == {"memory": size}

        plain = m.lazyfs("report", m.path)
        assert plain.returncode == 0, plain.stderr
        lines = {line[2:19].strip(): line[21:] for line in plain.stdout.splitlines()[1:]}
        assert lines["pass 2"].endswith("from the page cache, or not at all")
        assert lines["never opened"] == "1 of 41 files"
        assert lines["waits"].startswith("40 reads: half within ")

        assert told(m, "--reset")["passes"][0]["opens"] == 40
        fresh = told(m)
        assert (fresh["since"], fresh["passes"], fresh["s3"]["read_bytes"]) == ("reset", [], 0)
        assert fresh["waits"]["all"]["count"] == 0
        assert m.status()["waits"]["s3"]["count"] == 40, "what Prometheus reads goes on"


@pytest.mark.usefixtures("_once")
@pytest.mark.both_sessions
def test_a_run_on_a_read_only_mount(mount: Mounter, client: Minio, bucket: str) -> None:
    """Where the kernel tells of no opens, a read at the beginning of a file is one, and of its process."""
    files = {f"train/c{number % 4}/{number:02}": random_bytes(20_000 + number, number) for number in range(40)}
    for key, data in files.items():
        put(client, bucket, key, data)
    size = sum(map(len, files.values()))
    m = mount("--read-only")
    m.wait_imported()
    for number in (1, 2):
        for key, data in files.items():
            assert (m / key).read_bytes() == data
        one = of_pass(told(m), number)
        assert (one["opens"], one["file_bytes"], sum(one["bytes"].values())) == (40, size, size)
        drop_page_cache()
    found = told(m)
    assert found["files"]["never_opened"] == 0
    assert {row["path"]: row["opens"] for row in found["directories"]["hottest"]} == {
        f"train/c{n}": 20 for n in range(4)
    }
    (socket,) = Path(m.env["LAZYFS_RUNTIME_DIR"]).glob("*.sock")
    (mine,) = [one for one in call(socket, "programs")["programs"] if one["pid"] == os.getpid()]
    assert (mine["opens"], mine["read_bytes"]) == (80, 2 * size)


@pytest.mark.usefixtures("_once")
def test_a_shard_that_is_read_and_not_closed(mount: Mounter, client: Minio, bucket: str, server: Server) -> None:
    shard = random_bytes(10 * MIB, 1)
    put(client, bucket, "shards/0", shard)
    m = mount()
    m.wait_imported()
    with (m / "shards/0").open("rb") as file:
        assert file.read() == shard
        png = m.path.parent / "run.png"
        found = told(m, *(("--png", str(png)) if importlib.util.find_spec("matplotlib") else ()))
        assert found["beginning"]["first_batch_s"] is not None
        assert sum(of_pass(found, 1)["bytes"].values()) == len(shard)
    if importlib.util.find_spec("matplotlib"):  # only lazyfs[bench] has it
        assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("_once")
def test_who_reads_what_is_in_top(mount: Mounter, client: Minio, bucket: str) -> None:
    data = random_bytes(300_000, 1)
    put(client, bucket, "train/read", data)
    m = mount()
    m.wait_imported()
    script = (
        "import sys, threading\n"
        "def read():\n"
        "    global held\n"
        "    held = open(sys.argv[1] + '/train/read', 'rb'); held.read()\n"
        "thread = threading.Thread(target=read); thread.start(); thread.join()\n"
        "new = open(sys.argv[1] + '/train/written', 'wb', buffering=0); new.write(b'x' * 5000)\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", script, str(m.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        done = m.lazyfs("top", m.path, "--once", "--interval", "200ms")
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if f"({job.pid})" in line]
        assert "293.0 KiB read" in line
        assert "4.9 KiB written" in line
        assert "train/read" in line
        assert "train/written" in line
        assert "99 of 100 within" in done.stdout
    finally:
        job.communicate("", timeout=15)
    until(lambda: m.status()["open_handles"] == 0, "all is closed")
