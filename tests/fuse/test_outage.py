"""A server that is gone for a while under a mount, and one that takes no notice of preconditions."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, drop_page_cache, until
from tests.fuse.trees import put, random_bytes
from tests.proxy import Exchange, Seen, proxied
from tests.servers import Server

BLOCK = 256 * 1024
OLD, NEW = random_bytes(8 * BLOCK, 1), random_bytes(8 * BLOCK, 2)


@pytest.fixture
def server(moto: Server) -> Server:
    """One whose answers are told from the mount's by a proxy."""
    return moto


class Doing:
    """A call in a thread of its own; `result` waits for its value, or for its errno."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._found: object = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self._found = call()
        except OSError as error:
            self._found = errno.errorcode[error.errno or 0]

    def result(self) -> object:
        self._thread.join(50)
        assert not self._thread.is_alive(), "it hangs"
        return self._found


def wait_for_trouble(m: Mount) -> None:
    """Return when the mount has met the outage, and tries again."""
    before = m.stat_of("s3.retries")
    until(lambda: m.stat_of("s3.retries") >= before + 2, "requests are tried again")


@pytest.mark.parametrize("how", [(), ("--write-back",)], ids=["write-through", "write-back"])
def test_who_waits_for_a_server_that_comes_back_notices_nothing(
    how: tuple[str, ...], mount: Mounter, moto: Server, client: Minio, bucket: str
) -> None:
    put(client, bucket, "cold", OLD)
    with proxied(moto) as proxy:
        m = mount(*how, "--retry-for", "60s", on=proxy.server, expect_log=["."])
        m.wait_imported()
        with proxy.outage():
            calls = [
                Doing((m / "cold").read_bytes),
                Doing(lambda: (m / "new").write_bytes(NEW)),
                Doing(lambda: os.listdir(m / "cold") if (m / "nowhere").exists() else "nothing"),
            ]
            wait_for_trouble(m)
        assert [call.result() for call in calls] == [OLD, len(NEW), "nothing"]
        m.wait_uploaded()
        assert client.get_object(bucket, "new").data == NEW
        assert not list(client.list_objects(bucket, prefix="new/"))
        assert m.umount().returncode == 0


def test_who_waits_too_long_is_told_and_the_mount_lives(
    mount: Mounter, moto: Server, client: Minio, bucket: str
) -> None:
    put(client, bucket, "cold", OLD)
    put(client, bucket, "warm", NEW)
    with proxied(moto) as proxy:
        m = mount("--retry-for", "1s", on=proxy.server, expect_log=["."])
        m.wait_imported()
        assert (m / "warm").read_bytes() == NEW
        with proxy.outage():
            assert Doing((m / "cold").read_bytes).result() == "EIO"
            assert Doing(lambda: (m / "new").write_bytes(NEW)).result() == "EIO"
            assert (m / "warm").read_bytes() == NEW, "what is here needs no server"
            assert sorted(os.listdir(m.path))[:1] == ["cold"]
        assert (m / "cold").read_bytes() == OLD
        (m / "new").write_bytes(NEW)
        assert client.get_object(bucket, "new").data == NEW
        assert m.umount().returncode == 0


def ignoring_if_match(seen: Seen) -> Callable[[Exchange], None] | None:
    """A server that takes no notice of If-Match."""
    return (lambda exchange: exchange.tell(exchange.ask(without="if-match"))) if seen.kind == "get" else None


def test_no_two_versions_are_mixed_where_the_server_ignores_if_match(
    mount: Mounter, moto: Server, client: Minio, bucket: str
) -> None:
    put(client, bucket, "f", OLD)
    with proxied(moto) as proxy:
        proxy.fault = ignoring_if_match
        m = mount(on=proxy.server, expect_log=["."])
        m.wait_imported()
        with (m / "f").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 1000, 0) == OLD[:1000]
            put(client, bucket, "f", NEW)
            drop_page_cache()
            whole, number = read_until_refused(file.fileno())
        assert number == errno.ESTALE
        assert OLD.startswith(whole)
        assert len(whole) < len(OLD), "nothing of it was asked for again"
        assert m.umount().returncode == 0


def read_until_refused(descriptor: int) -> tuple[bytes, int | None]:
    """What can be read from the beginning on, and the errno that ends it; None at the end of the file."""
    data = b""
    try:
        while piece := os.pread(descriptor, 4096, len(data)):
            data += piece
    except OSError as error:
        return data, error.errno
    return data, None
