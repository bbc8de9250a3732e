"""`--write-back` on real mounts: what close() promises, what the bucket sees, and what becomes of it at the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, until
from tests.fuse.trees import get, keys, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

LARGE = random_bytes(12 * 1024**2 + 5, 7)
WRITES = {"put", "upload_part", "complete_upload"}


@pytest.fixture
def server(gateway: Server) -> Server:
    """One server: what is shown here does not depend on its manners."""
    return gateway


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as found:
        yield found


def files(client: Minio, bucket: str) -> dict[str, bytes]:
    return {key: get(client, bucket, key) for key in keys(client, bucket) if not key.endswith("/")}


def hold(proxy: Proxy, kinds: set[str] = WRITES) -> threading.Event:
    """Writes wait at the endpoint until the event that this returns."""
    event = threading.Event()
    proxy.hold = lambda seen: event if seen.kind in kinds else None
    return event


def refuse(proxy: Proxy) -> None:
    proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind in WRITES else None


def admit(proxy: Proxy) -> None:
    proxy.refuse = lambda _seen: None


def test_a_checkpoint_is_saved_while_the_endpoint_takes_nothing(
    mount: Mounter, proxy: Proxy, client: Minio, bucket: str
) -> None:
    m = mount("--write-back", "--part-size", "5MiB", on=proxy.server)
    released, fetched = hold(proxy), m.requests("get")
    (m / "tmp-1").mkdir()
    (m / "tmp-1/shard").write_bytes(LARGE)
    (m / "tmp-1/index.json").write_text("{}")
    os.rename(m / "tmp-1", m / "1")
    assert files(client, bucket) == {}
    assert sorted(path.name for path in (m / "1").iterdir()) == ["index.json", "shard"]
    assert (m / "1/shard").read_bytes() == LARGE
    waiting = m.status()["write_back"]
    assert waiting["bytes"] == len(LARGE) + 2
    told = m.lazyfs("status", m.path).stdout
    assert "to upload" in told
    released.set()
    m.wait_uploaded()
    assert files(client, bucket) == {"1/shard": LARGE, "1/index.json": b"{}"}
    drop_page_cache()
    assert (m / "1/shard").read_bytes() == LARGE
    assert m.requests("get") == fetched, "what was written here need not be fetched"


def test_unmounting_waits_for_the_uploads_and_says_so(mount: Mounter, proxy: Proxy, client: Minio, bucket: str) -> None:
    m = mount("--write-back", on=proxy.server)
    released = hold(proxy)
    (m / "f").write_bytes(b"x")
    threading.Timer(3.0, released.set).start()
    done = m.umount()
    assert done.returncode == 0, done.stderr
    assert "uploading 1 changes" in done.stderr
    assert files(client, bucket) == {"f": b"x"}


def test_what_a_hasty_unmount_leaves_is_uploaded_by_the_next_mount(
    mount: Mounter, proxy: Proxy, client: Minio, bucket: str
) -> None:
    m = mount("--write-back", on=proxy.server, expect_log=["are left for the next mount", "will be tried again"])
    refuse(proxy)
    (m / "f").write_bytes(b"x")
    until(lambda: m.status()["write_back"]["failed"], "the upload fails")
    assert "AccessDenied" in m.lazyfs("status", m.path).stdout
    done = m.umount("--timeout", "1s")
    assert done.returncode == 1
    assert "the next mount with --write-back uploads it" in done.stderr
    assert files(client, bucket) == {}

    other = m.lazyfs("mount", bucket, m.path, "--endpoint-url", proxy.server.endpoint_url, "--cache-dir", _cache(m))
    assert other.returncode == 1
    assert "1 changes of an earlier mount with --write-back are not in the bucket yet" in other.stderr

    admit(proxy)
    again = mount("--write-back", on=proxy.server)
    assert (again / "f").read_bytes() == b"x"
    again.wait_uploaded()
    assert files(client, bucket) == {"f": b"x"}


def _cache(m: Mount) -> str:
    return str(m.path.parent / "cache")


def test_only_one_mount_has_the_backlog(mount: Mounter, bucket: str) -> None:
    m = mount("--write-back")
    second = m.path.parent / "second"
    second.mkdir()
    done = m.lazyfs(
        "mount", bucket, second, "--endpoint-url", m.server.endpoint_url, "--cache-dir", _cache(m), "--write-back"
    )
    assert done.returncode == 1
    assert "another mount of this bucket and prefix has --write-back" in done.stderr


def test_fsync_waits_for_the_bucket_if_it_is_told_to(mount: Mounter, proxy: Proxy, client: Minio, bucket: str) -> None:
    m = mount("--write-back", "--fsync", "s3", on=proxy.server, expect_log=["will be tried again"])
    with open(m / "f", "wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        assert files(client, bucket) == {"f": b"x"}
    refuse(proxy)
    with open(m / "g", "wb") as file:
        file.write(b"x")
        file.flush()
        with pytest.raises(PermissionError):
            os.fsync(file.fileno())
    assert (m / "g").read_bytes() == b"x"
    admit(proxy)
    m.wait_uploaded()
    assert files(client, bucket) == {"f": b"x", "g": b"x"}


def test_a_full_spool_makes_writers_wait_for_uploads(mount: Mounter, proxy: Proxy, client: Minio, bucket: str) -> None:
    m = mount("--write-back", "--part-size", "5MiB", "--spool-size", "20MiB", on=proxy.server)
    for number in range(6):
        (m / f"f{number}").write_bytes(LARGE)
    m.wait_uploaded()
    assert files(client, bucket) == {f"f{number}": LARGE for number in range(6)}


def test_write_back_needs_a_cache_directory_and_local_fsync_needs_write_back(mount: Mounter, bucket: str) -> None:
    m = mount()
    for options, message in (
        (("--write-back", "--cache-dir", "none"), "give a --cache-dir"),
        (("--fsync", "local"), "--fsync local needs --write-back"),
    ):
        done = m.lazyfs("mount", bucket, m.path.parent, *options)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_second_signal_does_not_wait(mount: Mounter, proxy: Proxy) -> None:
    m = mount("--write-back", on=proxy.server, expect_log=["are left for the next mount", "will be tried again"])
    refuse(proxy)
    (m / "f").write_bytes(b"x")
    m.wait_closed()
    os.kill(m.pid, 15)
    until(lambda: "changes are still to be uploaded" in m.log(), "it is unmounted")
    os.kill(m.pid, 15)
    until(lambda: "are left for the next mount" in m.log(), "the daemon ends")
    assert m.umount().returncode in (0, 1)
