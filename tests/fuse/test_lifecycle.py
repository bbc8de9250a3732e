"""The lifecycle commands on real mounts: what they tell is so, and what they do does what it says."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from lazyfs.control.client import call
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, lazyfs, until
from tests.fuse.test_write_back import hold, refuse
from tests.fuse.trees import get, put, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

BLOCK = 256 * 1024
LARGE = random_bytes(8 * BLOCK + 5, 3)


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


def told(m: Mount, *arguments: str | Path) -> list[dict[str, Any]]:
    """What a command tells a program."""
    done = m.lazyfs(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def state(m: Mount, path: Path) -> dict[str, Any]:
    """What the daemon says of a file; without the command line, which takes half a second to start."""
    (socket,) = Path(m.env["LAZYFS_RUNTIME_DIR"]).glob("*.sock")
    (found,) = call(socket, "entries", path=str(path.relative_to(m.path)))["entries"]
    return dict(found)


def on_disk(m: Mount, path: Path) -> dict[str, Any]:
    """The state of a file once the SSD has what was read of it."""
    until(lambda: "disk" in state(m, path)["ranges"], "the SSD has it")
    return state(m, path)


def read_at(path: Path, start: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, start)
    finally:
        os.close(fd)


def refused(done: Any, *words: str) -> None:
    """It failed with one clear line."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lazyfs: ")
    for word in words:
        assert word in done.stderr


# -- status ---------------------------------------------------------------------------------------------------------


def test_status_of_a_file_follows_what_is_read(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--read-only")
    large = m / "data/large"
    fresh = state(m, large)
    assert (fresh["state"], fresh["size"], fresh["resident"], fresh["ranges"]) == ("released", len(LARGE), 0, {})
    assert fresh["key"] == "data/large"
    assert read_at(large, 5 * BLOCK, 1) == LARGE[5 * BLOCK : 5 * BLOCK + 1]
    some = on_disk(m, large)
    assert some["state"] == "partial"
    assert some["ranges"]["memory"] == some["ranges"]["disk"]
    assert [5 * BLOCK, 6 * BLOCK] in some["ranges"]["disk"]
    assert some["resident"] == sum(stop - start for start, stop in some["ranges"]["disk"])
    assert some["resident"] == m.stat_of("s3.bytes.read")
    assert large.read_bytes() == LARGE
    until(lambda: state(m, large)["ranges"]["disk"] == [[0, len(LARGE)]], "the SSD has all")
    assert state(m, large)["state"] == "archived"
    assert told(m, "status", large) == [{**state(m, large), "path": str(large), "mountpoint": str(m.path)}]
    shown = m.lazyfs("status", large)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].split() == ["archived", "2.0", "MiB", "of", "2.0", "MiB", str(large)]
    assert f"disk    0-{len(LARGE)}" in shown.stdout


def test_when_a_file_was_opened_last(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--read-only")
    assert state(m, m / "data/large")["opened_s"] is None
    before = time.time()
    read_at(m / "data/large", 0, 1)
    opened_s = state(m, m / "data/large")["opened_s"]
    assert before <= opened_s <= time.time()
    assert "opened" in m.lazyfs("status", m / "data/large").stdout
    assert state(m, m / "data/large")["opened_s"] == opened_s, "asking is not opening"


def test_status_of_directories_and_globs(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount()
    (m / "data/a/03.bin").read_bytes()
    gets = m.requests("get")
    kinds = {Path(one["path"]).name: one["kind"] for one in told(m, "status", m / "data")}
    assert kinds == {"a": "directory", "b": "directory", "large": "file"}
    everything = told(m, "status", "-r", m / "data")
    assert [one["path"] for one in everything] == sorted(str(m / key) for key in tree)
    assert [one["state"] for one in everything].count("archived") == 1
    assert len(told(m, "status", "-r", m.path)) == len(tree)
    assert [Path(one["path"]).name for one in told(m, "status", m / "data/?/0[34].bin")] == ["03.bin", "04.bin"] * 2
    lines = m.lazyfs("status", m / "data/a", m / "data/b/00.bin").stdout.splitlines()
    assert "12 files, 11.8 KiB, of which 1003 B are here" in lines
    assert m.requests("get") == gets, "to ask brings nothing"


def test_status_of_paths_that_are_no_files_of_a_mount(mount: Mounter, tree: dict[str, bytes], tmp_path: Path) -> None:
    m = mount()
    refused(m.lazyfs("status", tmp_path / "elsewhere"), "is not in a mount of lazyfs")
    refused(m.lazyfs("status", m / "data/nothing"), "data/nothing", "no such file")
    one = m.lazyfs("status", m / "data/nothing", m / "data/large")
    assert one.returncode == 1
    assert "released" in one.stdout, "the other arguments are answered"
    link = tmp_path / "link"
    link.symlink_to(m / "data")
    assert [one["key"] for one in told(m, "status", link / "large")] == ["data/large"]


def test_a_daemon_that_died_is_one_line(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount()
    m.kill()
    refused(m.lazyfs("status", m / "data/large"), f"the daemon of {m.path} has died", "lazyfs umount")
    assert m.lazyfs("umount", m.path).returncode == 0
    refused(lazyfs("status", m / "data/large", env=m.env), "is not in a mount of lazyfs")


def test_status_of_what_waits_for_its_upload(mount: Mounter, proxy: Proxy) -> None:
    m = mount("--write-back", on=proxy.server)
    with (m / "open").open("wb") as file:
        file.write(b"abc")
        file.flush()
        assert state(m, m / "open")["state"] == "dirty"
        released = hold(proxy)
    until(lambda: state(m, m / "open")["state"] == "uploading", "the upload begins")
    assert state(m, m / "open")["ranges"] == {"spool": [[0, 3]]}
    released.set()
    m.wait_uploaded()
    m.expect_log("failed, and will be tried again")
    refuse(proxy)
    (m / "other").write_bytes(b"x")
    until(lambda: state(m, m / "other")["state"] == "failed", "the upload fails")
    assert state(m, m / "other")["error"]
    proxy.refuse = lambda _seen: None
    m.wait_uploaded()
    assert state(m, m / "other")["state"] == "archived"


def test_the_same_as_extended_attributes(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--xattrs", "--read-only")
    large = m / "data/large"
    assert os.getxattr(large, "user.lazyfs.state") == b"released"
    assert os.getxattr(large, "user.lazyfs.key") == b"data/large"
    assert os.getxattr(large, "user.lazyfs.etag").decode() == state(m, large)["etag"]
    for name in ("ranges", "error"):
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(large, f"user.lazyfs.{name}")
    assert large.read_bytes() == LARGE
    assert os.getxattr(large, "user.lazyfs.state") == b"archived"
    assert f"memory 0-{len(LARGE)}" in os.getxattr(large, "user.lazyfs.ranges").decode()
    assert os.listxattr(large) == [], "cp and rsync would copy what is listed"


def test_without_xattrs_the_kernel_does_not_ask_for_them(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--read-only")
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(m / "data/large", "user.lazyfs.state")


# -- preload --------------------------------------------------------------------------------------------------------


def test_a_preloaded_tree_is_read_without_the_endpoint(
    mount: Mounter, proxy: Proxy, tree: dict[str, bytes], tmp_path: Path
) -> None:
    m = mount("--read-only", "--metadata-ttl", "indefinite", on=proxy.server)
    done = m.lazyfs("preload", m / "data/a", m / "data/large", "--wait")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("preloaded 13 of 13 files, 2.0 MiB of 2.0 MiB")
    m.wait_imported()
    asked = m.requests()
    proxy.refuse = lambda _seen: (403, "AccessDenied")
    for key, content in tree.items():
        if not key.startswith("data/b/"):
            assert (m / key).read_bytes() == content
    assert m.requests() == asked
    assert {one["state"] for one in told(m, "status", m / "data/b")} == {"released"}
    (task,) = told(m, "task", "ls", m.path)
    assert (task["verb"], task["state"], task["progress"]["files"]) == ("preload", "done", 13)


def test_a_list_comes_in_its_order_and_its_bad_lines_are_told(
    mount: Mounter, proxy: Proxy, tree: dict[str, bytes], tmp_path: Path
) -> None:
    m = mount("--read-only", on=proxy.server)
    wanted = ["data/b/07.bin", "data/a/02.bin", "data/b/01.bin"]
    lines = [f"{m.path}/{key}" for key in wanted]
    bad = [f"{m.path}/data/none", "/etc/passwd", "x" * 9000]
    path = tmp_path / "list"
    path.write_text("\n".join([lines[0], bad[0], "", lines[1], bad[1], bad[2], lines[2]]))
    done = m.lazyfs("preload", "--list", path, "--wait", "--json")
    assert done.returncode == 1
    reasons = done.stderr.splitlines()
    assert sorted(reason.split(": ")[1] for reason in reasons) == [f"{path}:{number}" for number in (2, 5, 6)]
    assert "no such file" in done.stderr
    assert "/etc/passwd is not in a mount of lazyfs" in done.stderr
    (task,) = json.loads(done.stdout)
    assert (task["state"], task["progress"]["files"]) == ("done", 3)
    assert [state(m, m / key)["state"] for key in wanted] == ["archived"] * 3
    refused(m.lazyfs("preload", "--list", tmp_path / "nothing"), "cannot read the list")


def test_a_preload_is_seen_and_cancelled(mount: Mounter, proxy: Proxy, tree: dict[str, bytes]) -> None:
    m = mount("--read-only", on=proxy.server)
    m.wait_imported()
    released = hold(proxy, {"get"})
    done = m.lazyfs("preload", m / "data/?")
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[1]
    assert m.lazyfs("preload", m / "data/large").returncode == 0, "left to the unmount"
    shown = json.loads(m.lazyfs("task", "show", name, "--json").stdout)
    assert (shown["state"], shown["about"]) == ("running", str(m / "data/?"))
    assert m.lazyfs("task", "cancel", name).stdout == f"cancelled {name}\n"
    until(lambda: told(m, "task", "ls")[0]["state"] == "cancelled", "the task ends")
    assert told(m, "task", "ls")[1]["state"] == "running"
    released.set()
    refused(m.lazyfs("task", "cancel", name), "has ended already: cancelled")
    refused(m.lazyfs("task", "show", "1-1"), "there is no task 1-1")
    for key in ("data/a/00.bin", "data/large"):
        assert (m / key).read_bytes() == tree[key], "readers are not disturbed"


def test_preload_needs_a_place_for_the_data(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--read-only", "--cache-dir", "none")
    refused(m.lazyfs("preload", m / "data"), "no cache directory")
    assert m.lazyfs("preload").returncode == 2


# -- release --------------------------------------------------------------------------------------------------------


def test_a_released_file_reads_back_lazily(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount()
    assert m.lazyfs("preload", m / "data", "--wait").returncode == 0
    assert (
        m.lazyfs("release", m / "data/a", m / "data/a/00.bin", m / "data/large", "--dry-run").stdout.splitlines()[-1]
        == "would release 13 files, 2.0 MiB"
    )
    assert state(m, m / "data/large")["state"] == "archived"
    done = m.lazyfs("release", m / "data/a", m / "data/large")
    assert (done.returncode, done.stdout) == (0, "released 13 files, 2.0 MiB\n"), done.stderr
    states = {one["path"].removeprefix(f"{m.path}/"): one["state"] for one in told(m, "status", "-r", m / "data")}
    assert states == {key: "archived" if key.startswith("data/b/") else "released" for key in tree}
    drop_page_cache()
    gets = m.requests("get")
    for key, content in tree.items():
        assert (m / key).read_bytes() == content
    assert m.requests("get") > gets
    until(lambda: state(m, m / "data/large")["state"] == "archived", "it is here again")


def test_release_by_age_and_by_need(mount: Mounter, tree: dict[str, bytes]) -> None:
    m = mount("--read-only")
    assert m.lazyfs("preload", m / "data/b", "--wait").returncode == 0
    assert m.lazyfs("preload", m / "data/a", "--wait").returncode == 0
    assert m.lazyfs("release", m.path, "--older-than", "1h").stdout == "released 0 files, 0 B\n"
    gone = told(m, "release", m.path, "--need", "3500")
    assert len(gone) == 4, "the least that is enough"
    assert all("/data/b/" in one["path"] for one in gone), "what came first goes first"
    states = [one["state"] for one in told(m, "status", "-r", m.path)]
    assert states.count("archived") == 20
    assert m.lazyfs("release", m.path, "--older-than", "1ms", "--need", "1GiB").stdout.startswith("released 20 files")
    assert m.lazyfs("release", m.path, "--need", "lots").returncode == 2


def test_what_waits_for_its_upload_is_not_released(mount: Mounter, proxy: Proxy) -> None:
    m = mount("--write-back", on=proxy.server)
    released = hold(proxy)
    (m / "f").write_bytes(b"abc")
    done = m.lazyfs("release", m / "f")
    assert (done.returncode, done.stdout) == (0, "released 0 files, 0 B\n")
    assert "1 files are written, or wait for their upload" in done.stderr
    drop_page_cache()
    assert (m / "f").read_bytes() == b"abc"
    released.set()
    m.wait_uploaded()


# -- sync, flush, find ----------------------------------------------------------------------------------------------


def test_sync_makes_it_true_now_deletions_too(
    mount: Mounter, client: Minio, bucket: str, tree: dict[str, bytes]
) -> None:
    m = mount("--read-only", "--metadata-ttl", "indefinite")
    m.wait_imported()

    def names() -> list[str]:
        return sorted(path.name for path in (m / "data/a").iterdir())

    before = names()
    assert (m / "data/a/01.bin").read_bytes() == tree["data/a/01.bin"]
    assert not (m / "data/a/new").exists()
    client.remove_object(bucket, "data/a/00.bin")
    put(client, bucket, "data/a/01.bin", b"another")
    put(client, bucket, "data/a/new", b"new")
    put(client, bucket, "data/a/deep/er/x", b"x")
    put(client, bucket, "other", b"x")
    assert names() == before
    done = m.lazyfs("sync", m / "data/a")
    assert done.returncode == 0, done.stderr
    assert names() == sorted({*before, "new", "deep"} - {"00.bin"})
    assert (m / "data/a/01.bin").read_bytes() == b"another"
    assert (m / "data/a/new").read_bytes() == b"new"
    assert [path.name for path in (m / "data/a/deep/er").iterdir()] == ["x"]
    assert not (m / "data/a/00.bin").exists()
    assert not (m / "other").exists()
    client.remove_object(bucket, "data/a/deep/er/x")
    (task,) = told(m, "sync")
    assert (task["state"], task["progress"]["objects"]) == ("done", len(tree) + 1)
    assert (m / "other").read_bytes() == b"x"
    assert not (m / "data/a/deep").exists()
    client.remove_object(bucket, "other")
    assert m.lazyfs("sync", m / "other").returncode == 0
    assert not (m / "other").exists()
    refused(m.lazyfs("sync", m / "other"), "no such file")


def test_flush_waits_until_the_bucket_has_it(mount: Mounter, proxy: Proxy, client: Minio, bucket: str) -> None:
    m = mount("--write-back", on=proxy.server)
    assert m.lazyfs("flush").stdout == f"{m.path}: everything is in the bucket\n"
    released = hold(proxy)
    (m / "d").mkdir()
    (m / "d/f").write_bytes(b"abc")
    (m / "g").write_bytes(b"x")
    shown = m.lazyfs("flush", m / "d/f")
    assert (shown.returncode, shown.stdout) == (0, f"{m.path}/d/f: 1 changes, 3 B, are on their way\n")
    refused(m.lazyfs("flush", m / "d", "--wait", "--timeout", "100ms"), "still waiting for 2 changes")
    threading.Timer(2.0, released.set).start()
    (told_of,) = json.loads(m.lazyfs("flush", m / "d", "--wait", "--json").stdout)
    assert (told_of["changes"], told_of["failed"]) == (0, [])
    assert get(client, bucket, "d/f") == b"abc"
    m.wait_uploaded()
    with (m / "open").open("wb") as file:
        file.write(b"abc")
        file.flush()
        assert "1 files are still being written" in m.lazyfs("flush", m.path, "--wait").stdout
    m.wait_uploaded()
    m.expect_log("failed, and will be tried again")
    refuse(proxy)
    (m / "no").write_bytes(b"x")
    done = m.lazyfs("flush", m.path, "--wait")
    assert done.returncode == 1
    assert "lazyfs: no: " in done.stderr
    assert "it is tried again" in done.stderr
    proxy.refuse = lambda _seen: None
    assert m.lazyfs("flush", m.path, "--wait", "--timeout", "60s").returncode == 0
    assert get(client, bucket, "no") == b"x"
    refused(m.lazyfs("flush", m / "nothing"), "no such file")


def test_find_is_answered_by_the_index(mount: Mounter, proxy: Proxy, tree: dict[str, bytes]) -> None:
    m = mount("--read-only", on=proxy.server)
    m.wait_imported()
    (m / "data/a/05.bin").read_bytes()
    read_at(m / "data/large", 0, 1)
    asked = m.requests()
    proxy.refuse = lambda _seen: (403, "AccessDenied")

    def found(*options: str) -> list[str]:
        done = m.lazyfs("find", m.path, *options)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return [line.removeprefix(f"{m.path}/") for line in done.stdout.splitlines()]

    assert found("--state", "archived") == ["data/a/05.bin"]
    assert found("--state", "partial", "--size", "+1MiB") == ["data/large"]
    assert found("--state", "released", "--name", "1?.bin", "--size", "-1011") == ["data/a/10.bin", "data/b/10.bin"]
    assert found("--size", "1003") == ["data/a/03.bin", "data/b/03.bin"]
    assert sorted(found()) == sorted([*tree, "data/", "data/a/", "data/b/"])
    (one,) = told(m, "find", m / "data", "--name", "large")
    assert (one["state"], one["path"]) == ("partial", str(m / "data/large"))
    assert m.lazyfs("find", m.path, "--name", "large", "-0").stdout == f"{m.path}/data/large\0"
    assert m.requests() == asked
    assert m.lazyfs("find", m.path, "--state", "sleeping").returncode == 2
    refused(m.lazyfs("find", m / "nothing"), "no such file or directory in the index")
