"""Scratch files on real mounts: what is unlinked or replaced while it is open lives until its last close."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, until
from tests.fuse.test_spool import descriptors
from tests.fuse.test_write_errors import uploads
from tests.fuse.trees import keys, put, random_bytes
from tests.servers import Server

MIB = 1024**2
DATA = random_bytes(12 * MIB + 7)
"""More than two parts."""


@pytest.fixture
def server(gateway: Server) -> Server:
    """One server: nothing of this comes to it."""
    return gateway


@pytest.fixture(params=[(), ("--write-back",)], ids=["through", "back"])
def m(mount: Mounter, request: pytest.FixtureRequest, server: Server, bucket: str) -> Iterator[Mount]:
    """A mount of which in the end nothing is left: no object, no upload, no byte of the spool, no file."""
    mounted = mount("--part-size", "5MiB", *request.param)
    yield mounted
    mounted.wait_closed()
    assert not [name for name in os.listdir(mounted.path) if name != "kept"]
    until(lambda: not uploads(server, bucket), "uploads are withdrawn")
    until(lambda: not [name for name in descriptors(mounted) if name.endswith("(deleted)")], "files are closed")
    if not os.listdir(mounted.path):
        until(lambda: mounted.status()["spool"]["used"] == 0, "the spool is empty")


@pytest.mark.both_sessions
def test_temporary_file(m: Mount, client: Minio, bucket: str) -> None:
    with tempfile.TemporaryFile(dir=m.path) as file:
        assert os.listdir(m.path) == []
        file.write(DATA)
        file.seek(3)
        file.write(b"patched")
        file.flush()
        os.fsync(file.fileno())
        found = os.fstat(file.fileno())
        assert (found.st_nlink, found.st_size) == (0, len(DATA))
        file.seek(0)
        assert file.read() == DATA[:3] + b"patched" + DATA[10:]
        file.truncate(6 * MIB)
        assert os.fstat(file.fileno()).st_size == 6 * MIB
        file.truncate(7 * MIB)
        assert os.pread(file.fileno(), 20, 6 * MIB - 10) == DATA[6 * MIB - 10 : 6 * MIB] + bytes(10)
        with mmap.mmap(file.fileno(), 7 * MIB) as mapping:
            mapping[5 * MIB : 5 * MIB + 6] = b"mapped"
            mapping.flush()
        assert os.pread(file.fileno(), 6, 5 * MIB) == b"mapped"
        assert m.status()["spool"]["used"] > 0
        assert keys(client, bucket) == []


def test_a_named_file_that_is_unlinked_while_its_parts_go_up(m: Mount, client: Minio, bucket: str) -> None:
    with tempfile.NamedTemporaryFile(dir=m.path, delete=False) as file:
        file.write(DATA)
        file.flush()
        os.unlink(file.name)
        file.write(b"more")
        file.seek(0)
        assert file.read() == DATA + b"more"
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            assert again.read(10) == DATA[:10]
    m.wait_closed()
    assert keys(client, bucket) == []


def test_what_was_synced_is_unlinked_and_written_on(m: Mount, client: Minio, bucket: str) -> None:
    with open(m / "f", "w+b") as file:
        file.write(DATA)
        file.flush()
        os.fsync(file.fileno())
        os.unlink(m / "f")
        file.seek(100)
        file.write(b"patched")
        file.seek(0)
        assert file.read() == DATA[:100] + b"patched" + DATA[107:]
    m.wait_closed()
    until(lambda: keys(client, bucket) == [], "it is deleted")


def test_a_file_that_is_replaced_while_it_is_written(m: Mount, client: Minio, bucket: str) -> None:
    with open(m / "kept", "w+b") as file:
        file.write(DATA)
        (m / "new").write_bytes(b"new")
        os.rename(m / "new", m / "kept")
        file.write(b"more")
        file.seek(0)
        assert file.read() == DATA + b"more"
        assert os.fstat(file.fileno()).st_nlink == 0
        assert (m / "kept").read_bytes() == b"new"
    m.wait_closed()
    m.wait_uploaded()
    assert client.stat_object(bucket, "kept").size == 3
    assert keys(client, bucket) == ["kept"]


def test_what_others_have_stored_is_unlinked_while_it_is_open(mount: Mounter, client: Minio, bucket: str) -> None:
    put(client, bucket, "f", DATA)
    m = mount("--part-size", "5MiB")
    with open(m / "f", "r+b") as file:
        assert file.read() == DATA
        os.unlink(m / "f")
        file.seek(0)
        file.write(b"patched")
        file.seek(0)
        assert file.read() == b"patched" + DATA[7:]
    m.wait_closed()
    assert keys(client, bucket) == []


SQLITE = """
import os, pathlib, sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/db", isolation_level=None)
db.executescript("PRAGMA temp_store = FILE; PRAGMA cache_size = 20")
db.execute("CREATE TEMP TABLE t (number INTEGER, text TEXT)")
db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
           "INSERT INTO t SELECT (i * 7919) % 20011, hex(randomblob(100)) FROM n")
db.execute("CREATE INDEX temp.x ON t (text)")
got = [row[0] for row in db.execute("SELECT number FROM t ORDER BY number")]
assert got == sorted((i * 7919) % 20011 for i in range(1, 20001))
assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
open_files = [str(fd.resolve()) for fd in pathlib.Path("/proc/self/fd").iterdir()]
assert any(name.startswith(os.environ["SQLITE_TMPDIR"]) for name in open_files), "it keeps them elsewhere"
"""


def test_sqlite_keeps_its_temporary_tables_there(mount: Mounter, client: Minio, bucket: str, tmp_path: Path) -> None:
    """It unlinks them as soon as they are open."""
    m = mount("--part-size", "5MiB")
    env = {**os.environ, "SQLITE_TMPDIR": str(m.path)}
    subprocess.run([sys.executable, "-c", SQLITE, str(tmp_path)], env=env, check=True, timeout=60)
    m.wait_closed()
    assert keys(client, bucket) == []


def test_without_a_spool_a_scratch_file_is_at_most_a_part(mount: Mounter, client: Minio, bucket: str) -> None:
    m = mount("--part-size", "5MiB", "--cache-dir", "none")
    with tempfile.TemporaryFile(dir=m.path, buffering=0) as file:
        file.write(DATA[:MIB])
        assert os.pread(file.fileno(), MIB, 0) == DATA[:MIB]
        file.write(DATA[MIB : 5 * MIB])
        with pytest.raises(OSError, match="No space left"):
            file.write(b"more")
    with open(m / "f", "wb", buffering=0) as file:
        for start in range(0, len(DATA), MIB):
            file.write(DATA[start : start + MIB])
        os.unlink(m / "f")
        with pytest.raises(OSError, match="Invalid argument"):
            file.write(b"more")
    m.wait_closed()
    assert keys(client, bucket) == []


def test_a_file_that_never_had_a_name_is_not_supported(mount: Mounter) -> None:
    """Programs then make one and unlink it, as tempfile does."""
    m = mount()
    with pytest.raises(OSError, match="not supported"):
        os.open(m.path, os.O_TMPFILE | os.O_RDWR)
