"""Modes and symbolic links of a real mount: what the kernel makes of them, and what others find in the bucket."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

from minio import Minio

from tests.fuse.conftest import Mounter
from tests.servers import Server

FSX = {
    "file-permissions": "0100750",
    "file-owner": "12345",
    "file-group": "54321",
    "file-mtime": "1500000000123000000ns",
}


def put(client: Minio, bucket: str, key: str, data: bytes, metadata: dict[str, str]) -> None:
    client.put_object(bucket, key, io.BytesIO(data), len(data), metadata=dict(metadata))


def names(path: Path) -> list[str]:
    """What `ls` of a directory shows, by a process of its own."""
    return subprocess.run(["ls", path], capture_output=True, text=True, check=True).stdout.split()


def test_objects_are_asked_when_somebody_looks_at_them(
    mount: Mounter, bucket: str, client: Minio, server: Server
) -> None:
    for number in range(5):
        put(client, bucket, f"d/f{number}", b"1", FSX)
    first = mount("--posix-metadata", "lazy")
    first.wait_imported()
    assert (first.path / "d").is_dir()
    before = first.requests("head")
    assert names(first.path / "d") == [f"f{number}" for number in range(5)]
    assert first.requests("head") == before, "ls asks nothing"
    for _ in range(2):
        now = (first.path / "d/f3").stat()
        assert (now.st_mode, now.st_uid, now.st_gid, now.st_mtime_ns) == (0o100750, 12345, 54321, 1500000000123000000)
    assert first.requests("head") == before + 1
    listing = subprocess.run(["ls", "-l", first.path / "d"], capture_output=True, text=True, check=True).stdout
    assert listing.count("-rwxr-x--- 1 12345 54321") == 5
    assert first.requests("head") == before + 5
    first.umount()
    second = mount("--posix-metadata", "lazy")
    second.wait_imported()
    before = second.requests("head")
    assert (second.path / "d/f3").stat().st_mode == 0o100750
    assert second.requests("head") == before
    second.umount()
    third = mount()
    third.wait_imported()
    assert (third.path / "d/f3").stat().st_mode == 0o100750, "what the index knows is told without asking too"
