"""What people keep here and what they want to know of it, on real mounts: ranges, pins, reports, sums, reloads."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, until
from tests.fuse.test_lifecycle import BLOCK, LARGE, read_at, refused, state, told
from tests.fuse.test_write_back import hold
from tests.fuse.trees import put, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

MiB = 1024**2


@pytest.fixture
def server(gateway: Server) -> Server:
    """One server: what is shown here does not depend on its manners."""
    return gateway


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as found:
        yield found


@pytest.fixture
def tree(client: Minio, bucket: str) -> dict[str, bytes]:
    """A small data set in the bucket."""
    files = {f"data/{kind}/{number:02}.bin": random_bytes(1000 + number) for kind in "ab" for number in range(12)}
    files["data/large"] = LARGE
    for key, content in files.items():
        put(client, bucket, key, content)
    return files


def ranges(m: Mount, path: Path) -> Any:
    return state(m, path)["ranges"].get("disk")


def test_a_range_of_each_file_is_preloaded_and_read_without_the_endpoint(
    mount: Mounter, proxy: Proxy, tree: dict[str, bytes]
) -> None:
    m = mount("--read-only", "--metadata-ttl", "indefinite", on=proxy.server)
    m.wait_imported()
    done = m.lazyfs("preload", m / "data", "--range", "0-1", "--range", "-10", "--jobs", "2", "--wait")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preloaded 25 of 25 files")
    last = 8 * BLOCK
    assert ranges(m, m / "data/large") == [[0, BLOCK], [7 * BLOCK, len(LARGE)]], "the last 10 bytes lie in two blocks"
    proxy.refuse = lambda _seen: (403, "AccessDenied")
    assert read_at(m / "data/large", 0, 100) == LARGE[:100]
    assert read_at(m / "data/large", last, 5) == LARGE[last:]
    assert (m / "data/a/03.bin").read_bytes() == tree["data/a/03.bin"]
    assert m.lazyfs("preload", m / "data", "--range", "5-2").returncode == 2
    assert m.lazyfs("preload", m / "data", "--jobs", "0").returncode == 2


def test_a_report_has_a_row_for_each_file_that_failed(
    mount: Mounter, proxy: Proxy, tree: dict[str, bytes], tmp_path: Path
) -> None:
    m = mount("--read-only", "--retry-for", "1s", on=proxy.server)
    m.wait_imported()
    m.expect_log("preload")
    bad = {f"data/a/{number:02}.bin" for number in (2, 5)}
    proxy.refuse = lambda seen: (403, "AccessDenied") if any(key in seen.path for key in bad) else None
    report = tmp_path / "report.csv"
    done = m.lazyfs("preload", m / "data", m / "data/nothing", "--report", report)
    assert done.returncode == 1
    with report.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["path"], row["operation"]) for row in rows} == {
        *((f"{m.path}/{key}", "preload") for key in bad),
        (f"{m.path}/data/nothing", "preload"),
    }
    assert all("AccessDenied" in row["error"] or "no such file" in row["error"] for row in rows)
    (task,) = told(m, "task", "ls")
    again = m.lazyfs("task", "show", task["id"], "--report", "-")
    assert again.stdout.splitlines()[0] == "path,operation,error"
    assert len(again.stdout.splitlines()) == 3
    proxy.refuse = lambda _seen: None
    done = m.lazyfs("preload", m / "data", "--report", "-")
    assert (done.returncode, done.stdout) == (0, "path,operation,error\n")
    refused(m.lazyfs("preload", m / "data", "--report", tmp_path / "no/where"), "cannot write the report")


def test_what_is_pinned_outlives_everything_else(
    mount: Mounter, proxy: Proxy, tree: dict[str, bytes], client: Minio, bucket: str
) -> None:
    for number in range(6):
        put(client, bucket, f"more/{number}", random_bytes(2 * MiB, number))
    m = mount(
        "--read-only", "--cache-size", "6MiB", "--memory", "32MiB", "--metadata-ttl", "indefinite", on=proxy.server
    )
    m.wait_imported()
    done = m.lazyfs("pin", m / "data", "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pinned 25 of 25 files")
    refused(m.lazyfs("pin", m / "more", "--wait"), "--cache-size is used up", "80%")
    for number in range(6):
        assert m.lazyfs("preload", m / f"more/{number}", "--wait").returncode in (0, 1)
    assert state(m, m / "data/large")["pinned"] == len(LARGE)
    assert "pinned" in m.lazyfs("status", m / "data/large").stdout
    left_alone = m.lazyfs("release", m.path)
    assert left_alone.returncode == 0
    assert "files are pinned, and were left alone" in left_alone.stderr
    drop_page_cache()
    proxy.refuse = lambda _seen: (403, "AccessDenied")
    for key, content in tree.items():
        assert (m / key).read_bytes() == content
    let_go = m.lazyfs("unpin", m / "data/a", m / "data/large")
    assert let_go.stdout.startswith("unpinned 13 files")
    assert m.lazyfs("release", m / "data/a", m / "data/large").stdout.startswith("released 13 files")
    assert {one["pinned"] > 0 for one in told(m, "status", m / "data/b")} == {True}


def test_du_sums_up_by_directory_and_tier(mount: Mounter, proxy: Proxy, tree: dict[str, bytes]) -> None:
    m = mount("--write-back", on=proxy.server)
    m.wait_imported()
    assert m.lazyfs("preload", m / "data/a", "--wait").returncode == 0
    released = hold(proxy)
    (m / "data/b/new").write_bytes(b"abc")
    sizes = {kind: sum(len(c) for key, c in tree.items() if key.startswith(f"data/{kind}/")) for kind in "ab"}
    asked = m.requests("list", "head", "get")
    found = {one["path"].removeprefix(f"{m.path}/"): one for one in told(m, "du", m / "data")}
    assert {path: (one["files"], one["size"]) for path, one in found.items()} == {
        "data": (26, sum(sizes.values()) + len(LARGE) + 3),
        "data/a": (12, sizes["a"]),
        "data/b": (13, sizes["b"] + 3),
    }
    assert {path: one["disk"] for path, one in found.items()} == {"data": sizes["a"], "data/a": sizes["a"], "data/b": 0}
    assert (found["data/b"]["dirty"], found["data"]["dirty"]) == (3, 3)
    globbed = {Path(one["path"]).name: one["files"] for one in told(m, "du", m / "data/*", "--depth", "0")}
    assert globbed == {"a": 12, "b": 13, "large": 1}
    text = m.lazyfs("du", m / "data", "--depth", "0").stdout.splitlines()
    assert len(text) == 2
    assert text[1].endswith(str(m / "data"))
    assert m.requests("list", "head", "get") == asked
    refused(m.lazyfs("du", m / "nothing"), "no such file")
    released.set()
    m.wait_uploaded()


def test_a_lease_and_the_log_are_changed_while_mounted(
    mount: Mounter, client: Minio, bucket: str, tree: dict[str, bytes], tmp_path: Path
) -> None:
    m = mount("--read-only", "--metadata-ttl", "indefinite")
    m.wait_imported()
    assert "foreign" not in os.listdir(m / "data")
    put(client, bucket, "data/foreign", b"x")
    assert "foreign" not in os.listdir(m / "data")
    done = m.lazyfs("reload", m.path, "--metadata-ttl", "0", "--log-level", "debug")
    assert (done.returncode, done.stdout) == (0, f"{m.path}: --metadata-ttl 0 ms, --log-level debug\n"), done.stderr
    assert "foreign" in os.listdir(m / "data")
    read_at(m / "data/large", 0, 10)
    assert re.search(r" DEBUG lazyfs.store: list key='data/' attempt=1 outcome=ok ms=\d", m.log())
    assert re.search(r" DEBUG lazyfs.store: get key='data/large' range=0-\d+ attempt=1 outcome=ok ms=\d", m.log())
    policy = m.status()["policy"]
    assert (policy["metadata_ttl_s"], policy["log_level"]) == (0, "debug")
    file = tmp_path / "config.toml"
    file.write_text('metadata-ttl = "5m"\ncache-size = "1GiB"\n')
    assert json.loads(m.lazyfs("reload", m.path, "--config", file, "--json").stdout)["metadata_ttl_s"] == 300
    file.write_text("")
    assert m.lazyfs("reload", m.path, "--config", file).returncode == 2
    refused(m.lazyfs("reload", m.path, "--metadata-ttl", "often"), "not a duration")
    refused(m.lazyfs("reload", tmp_path, "--metadata-ttl", "1s"), "not in a mount of lazyfs")


def test_how_far_an_upload_is(mount: Mounter, proxy: Proxy) -> None:
    m = mount("--write-back", "--part-size", "5MiB", on=proxy.server)
    released = hold(proxy, {"complete_upload"})
    (m / "large").write_bytes(bytes(11 * MiB))
    until(lambda: state(m, m / "large")["parts"] == [3, 3], "all parts have arrived")
    assert "uploading 3/3" in m.lazyfs("status", m / "large").stdout
    assert state(m, m / "large")["state"] == "uploading"
    released.set()
    m.wait_uploaded()
    assert state(m, m / "large")["parts"] is None


def test_who_has_a_replaced_file_open_is_told_that_it_is_stale(
    mount: Mounter, client: Minio, bucket: str, tree: dict[str, bytes]
) -> None:
    m = mount("--read-only", "--metadata-ttl", "indefinite", "--xattrs")
    fd = os.open(m / "data/large", os.O_RDONLY)
    try:
        os.pread(fd, 1, 0)
        put(client, bucket, "data/large", b"another")
        assert os.getxattr(fd, "user.lazyfs.state") == b"partial"
        assert m.lazyfs("sync", m / "data/large").returncode == 0
        assert os.getxattr(fd, "user.lazyfs.state") == b"stale"
        assert os.getxattr(fd, "user.lazyfs.key") == b"data/large"
        assert state(m, m / "data/large")["state"] == "released"
    finally:
        os.close(fd)
