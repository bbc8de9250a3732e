"""What becomes of the spool and of the file in it when something fails: told, given back, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, until
from tests.fuse.test_write_errors import refused, uploads, write_all
from tests.fuse.trees import get, keys, put, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

MIB = 1024**2
PART = 5 * MIB
SIZE = 20 * MIB + 7
SMALL_PARTS = ("--part-size", "5MiB")


@pytest.fixture
def server(gateway: Server) -> Server:
    """moto is slow with large bodies, and which server it is does not matter here."""
    return gateway


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


def spooled(m: Mount) -> int:
    """Bytes in the spool, as the daemon counts them."""
    used = m.status()["spool"]["used"]
    assert isinstance(used, int)
    return used


def descriptors(m: Mount) -> list[str]:
    """The daemon's open files in the spool, as the kernel knows them."""
    found = []
    for link in Path(f"/proc/{m.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return [name for name in found if "/spool/" in name]


def wait_empty(m: Mount) -> None:
    """Return when nothing is in the spool any more."""
    until(lambda: spooled(m) == 0 and not descriptors(m), "the spool is empty")


def cache(m: Mount) -> Path:
    """Where its spool is."""
    (found,) = m.log_file.parent.glob("cache/**/spool")
    return found


@pytest.mark.parametrize("pattern", ["in order", "seeking back"])
@pytest.mark.parametrize("call", [os.fsync, os.close])
def test_a_part_that_fails_in_the_middle_is_told_and_its_room_given_back(
    mount: Mounter, proxy: Proxy, server: Server, client: Minio, bucket: str, pattern: str, call: object
) -> None:
    put(client, bucket, "old", b"as it was")
    m = mount(*SMALL_PARTS, on=proxy.server, expect_log=["upload of"])
    proxy.refuse = lambda seen: (403, "AccessDenied") if seen.query.get("partNumber") == "2" else None
    for name in ("new", "old"):
        file = os.open(m / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        told = 0
        try:
            write_all(file, random_bytes(SIZE))
            if pattern == "seeking back":
                os.pwrite(file, b"x", 3)
                assert spooled(m) > 0
        except PermissionError:
            told += 1
        try:
            call(file)  # type: ignore[operator]
        except PermissionError:
            told += 1
        if call is os.fsync:
            with contextlib.suppress(PermissionError):
                os.close(file)
        assert told
    wait_empty(m)
    until(lambda: not uploads(server, bucket), "the upload is aborted")
    assert keys(client, bucket) == ["old"]
    assert (m / "old").read_bytes() == b"as it was"
    proxy.refuse = lambda _seen: None
    (m / "new").write_bytes(random_bytes(SIZE))
    assert get(client, bucket, "new") == random_bytes(SIZE)
    m.wait_closed()
    wait_empty(m)


@pytest.mark.parametrize("name", ["new", "old"])
def test_a_daemon_killed_while_it_spools_leaves_no_file(mount: Mounter, client: Minio, bucket: str, name: str) -> None:
    old = random_bytes(2 * PART, 5)
    put(client, bucket, "old", old)
    m = mount(*SMALL_PARTS)
    file = os.open(m / name, os.O_CREAT | os.O_RDWR)
    write_all(file, random_bytes(SIZE))
    os.pwrite(file, b"x", 3)
    assert descriptors(m)
    assert spooled(m) > 0
    place = cache(m)
    m.kill()
    with contextlib.suppress(OSError):
        os.close(file)
    assert m.umount().returncode == 0
    assert os.listdir(place) == []
    again = mount(*SMALL_PARTS)
    assert os.listdir(again.path) == ["old"]
    assert (again / "old").read_bytes() == old
    assert spooled(again) == 0
    assert os.listdir(place) == []
    (again / "new").write_bytes(b"the name is free")


def test_a_stream_outgrows_a_small_spool(mount: Mounter, client: Minio, bucket: str) -> None:
    m = mount(*SMALL_PARTS, "--spool-size", "6MiB")
    data = random_bytes(SIZE)
    (m / "f").write_bytes(data)
    assert get(client, bucket, "f") == data
    assert (m / "f").read_bytes() == data
    wait_empty(m)


def test_a_pattern_that_outgrows_a_small_spool_is_told_at_the_write(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    data = random_bytes(SIZE)
    put(client, bucket, "large", data)
    m = mount(*SMALL_PARTS, "--spool-size", "6MiB", expect_log=["upload of"])
    for before in (6 * MIB, SIZE):  # it goes back while all of it is in the spool, and when it no longer is
        file = os.open(m / "f", os.O_CREAT | os.O_WRONLY)
        write_all(file, data[:before])
        with refused(errno.ENOSPC):
            os.pwrite(file, b"x", 3)
            os.lseek(file, before, os.SEEK_SET)
            write_all(file, data[before:])
        with refused(errno.ENOSPC):
            os.close(file)
        m.wait_closed()
        assert not (m / "f").exists()
    with (m / "large").open("r+b", buffering=0) as changed, refused(errno.ENOSPC):
        changed.write(b"x")
    assert (m / "large").read_bytes() == data
    until(lambda: not uploads(server, bucket), "the uploads are aborted")
    wait_empty(m)
    assert get(client, bucket, "large") == data
    with (m / "fits").open("w+b", buffering=0) as fits:
        write_all(fits.fileno(), data[: 9 * MIB])
        fits.seek(3)
        fits.write(b"x")
    assert get(client, bucket, "fits") == data[:3] + b"x" + data[4 : 9 * MIB]


@pytest.mark.parametrize("how", ["removed", "a file", "without room"])
def test_the_spools_directory_is_lost_in_the_middle(mount: Mounter, client: Minio, bucket: str, how: str) -> None:
    data = random_bytes(SIZE)
    put(client, bucket, "h", data)
    m = mount(*SMALL_PARTS, expect_log=["cache .*: "])
    file = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    write_all(file, data[: 11 * MIB])
    place = cache(m)
    shutil.rmtree(place)
    if how == "a file":
        place.write_text("nothing can be made here")
    elif how == "without room":
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "spool", place], check=True)
    try:
        os.pwrite(file, b"x", 3)  # its own file has no name, and is still there
        os.lseek(file, 11 * MIB, os.SEEK_SET)
        write_all(file, data[11 * MIB :])
        os.close(file)
        want = data[:3] + b"x" + data[4:]
        assert get(client, bucket, "f") == want
        assert (m / "f").read_bytes() == want
        (m / "g").write_bytes(data)  # a stream needs no spool
        assert get(client, bucket, "g") == data
        assert (m / "g").read_bytes() == data
        m.wait_closed()
        number = {"a file": errno.EIO, "without room": errno.ENOSPC}.get(how)
        told = refused(number) if number else contextlib.nullcontext()
        with (m / "h").open("r+b", buffering=0) as changed, told:
            changed.write(b"x")
        assert get(client, bucket, "h") == (data if number else b"x" + data[1:])
        assert (m / "h").read_bytes() == get(client, bucket, "h")
        m.wait_closed()
        wait_empty(m)
    finally:
        if how == "without room":
            subprocess.run(["umount", "-l", place], check=True)


def test_readers_and_a_writer_of_one_large_file(mount: Mounter, client: Minio, bucket: str) -> None:
    """Each sees bytes that were in the file at some time, while it is cut, extended and patched."""
    m = mount(*SMALL_PARTS)
    file = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    write_all(file, b"a" * SIZE)
    done, errors = threading.Event(), []

    def read() -> None:
        try:
            while not done.is_set():
                with (m / "f").open("rb") as reader:
                    assert set(reader.read()) <= set(b"abc\0")
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(8):
            os.ftruncate(file, (turn % 4) * 6 * MIB)
            os.pwrite(file, b"b" * MIB, 2 * MIB * turn)
            os.pwrite(file, b"c" * 100, 5 * MIB)
            os.fsync(file)
    finally:
        done.set()
        for reader in readers:
            reader.join(30)
        os.close(file)
    assert errors == []
    assert get(client, bucket, "f") == (m / "f").read_bytes()
