"""Modes and symbolic links of a real mount: what the kernel makes of them, and what others find in the bucket."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.trees import get, said
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


def as_nobody(where: Path, script: str) -> tuple[int, str]:
    """How a shell script of another user ends, and what it says."""
    done = subprocess.run(
        ["sh", "-c", script], cwd=where, user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_kernel_checks_modes_and_owners(mount: Mounter, bucket: str, client: Minio) -> None:
    root = mount("--allow-other").path
    (root / "secret").write_bytes(b"secret")
    (root / "secret").chmod(0o600)
    (root / "open").mkdir()
    (root / "open").chmod(0o1777)
    (root / "open/ours").write_bytes(b"ours")
    assert as_nobody(root, "cat open/ours") == (0, "ours")
    for script in ("cat secret", "echo x >> open/ours", "chmod 666 open/ours", "rm -f open/ours", "echo x > theirs"):
        status, message = as_nobody(root, script)
        assert status, script
        assert "denied" in message or "not permitted" in message
    assert as_nobody(root, "umask 077; echo theirs > open/theirs; chmod 640 open/theirs; cat open/theirs") == (
        0,
        "theirs\n",
    )
    assert as_nobody(root, "chown 0 open/theirs")[0]
    now = (root / "open/theirs").stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (0o100640, 65534, 65534)
    assert said(client, bucket, "open/theirs")["file-owner"] == "65534"
    os.chown(root / "secret", 65534, -1)
    assert as_nobody(root, "cat secret") == (0, "secret")


def test_symbolic_links(mount: Mounter, bucket: str, client: Minio) -> None:
    here = mount()
    root = here.path
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"content")
    targets = {
        "to-file": "d/f",
        "to-directory": "d",
        "d/up": "../d/f",
        "dangling": "/no/such",
        "é": "d/f/../é \U0001f680",
    }
    for name, target in targets.items():
        os.symlink(target, root / name)
    os.symlink(b"not utf8 \xff", root / "bytes")
    os.symlink("x" * 4095, root / "long")
    for _ in range(2):
        for name, target in targets.items():
            assert os.readlink(root / name) == target
            facts = (root / name).lstat()
            assert (facts.st_mode, facts.st_size) == (0o120777, len(target.encode()))
            assert get(client, bucket, name) == target.encode()
            assert said(client, bucket, name)["file-permissions"] == "0120777"
            assert said(client, bucket, name)["file-owner"] == str(os.getuid())
        assert os.readlink(os.fsencode(root / "bytes")) == b"not utf8 \xff"
        assert len(os.readlink(root / "long")) == 4095
        assert (root / "to-file").read_bytes() == (root / "d/up").read_bytes() == b"content"
        assert sorted(os.listdir(root / "to-directory")) == ["f", "up"]
        assert not (root / "dangling").exists()
        assert {entry.name for entry in os.scandir(root) if entry.is_symlink()} == {*targets, "bytes", "long"} - {
            "d/up"
        }
        here.umount()
        here = mount()
        here.wait_imported()
    with pytest.raises(FileExistsError):
        os.symlink("x", root / "to-file")
    os.symlink("new", root / "tmp")
    os.replace(root / "tmp", root / "to-file")
    assert os.readlink(root / "to-file") == "new"
    os.rename(root / "d", root / "e")
    assert os.readlink(root / "e/up") == "../d/f"
    assert said(client, bucket, "e/up")["file-permissions"] == "0120777"
    os.unlink(root / "dangling")
    assert "dangling" not in os.listdir(root)


def test_links_of_others(mount: Mounter, bucket: str, client: Minio) -> None:
    """Found where the mount asks objects; else they are the files that the bucket shows."""
    put(client, bucket, "d/f", b"content", {})
    put(client, bucket, "fsx", b"d/f", {"file-permissions": "0120777"})
    put(client, bucket, "s3fs", b"d", {"mode": str(0o120777)})
    put(client, bucket, "empty", b"", {"file-permissions": "0120777"})
    put(client, bucket, "huge", b"x" * 5000, {"file-permissions": "0120777"})
    put(client, bucket, "odd", b"a\0b", {"file-permissions": "0120777"})
    off = mount()
    assert (off.path / "fsx").read_bytes() == b"d/f"
    assert not (off.path / "fsx").is_symlink()
    off.umount()
    lazy = mount("--posix-metadata", "lazy")
    root = lazy.path
    lazy.wait_imported()
    assert names(root) == ["d", "empty", "fsx", "huge", "odd", "s3fs"]  # the kernel takes them for files meanwhile
    assert (root / "fsx").read_bytes() == b"content"
    assert os.readlink(root / "s3fs") == "d"
    assert os.listdir(root / "s3fs") == ["f"]
    assert (root / "empty").read_bytes() == b""
    assert (root / "huge").read_bytes() == b"x" * 5000
    with pytest.raises(OSError, match="Input/output error"):
        os.readlink(root / "odd")
    listing = subprocess.run(["ls", "-l", root / "fsx"], capture_output=True, text=True, check=True).stdout
    assert "fsx -> d/f" in listing
    put(client, bucket, "fsx", b"no link now", {})
    with (root / "fsx").open("rb") as file:
        assert file.read() == b"content", "within the lease"


def test_extended_attributes(mount: Mounter, bucket: str, client: Minio, tmp_path: Path) -> None:
    put(client, bucket, "theirs", b"1", {"colour": "blue"})
    root = mount("--xattrs", "--part-size", "5MiB").path
    assert os.listxattr(root / "theirs") == ["user.colour"]
    assert os.getxattr(root / "theirs", "user.colour") == b"blue"
    (root / "f").write_bytes(b"content")
    os.setxattr(root / "f", "user.a", b"1", os.XATTR_CREATE)
    os.setxattr(root / "f", "user.b", bytes(range(100)))
    os.setxattr(root / "f", "user.empty", b"")
    with pytest.raises(FileExistsError):
        os.setxattr(root / "f", "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(root / "f", "user.a", b"2", os.XATTR_REPLACE)
    assert said(client, bucket, "f")["a"] == "2"
    (root / "f").write_bytes(b"rewritten")
    (root / "f").chmod(0o600)
    assert {name: os.getxattr(root / "f", name) for name in os.listxattr(root / "f")} == {
        "user.a": b"2",
        "user.b": bytes(range(100)),
        "user.empty": b"",
    }
    os.removexattr(root / "f", "user.b")
    refused: list[tuple[Callable[[], object], int]] = [
        (lambda: os.getxattr(root / "f", "user.b"), errno.ENODATA),
        (lambda: os.removexattr(root / "f", "user.b"), errno.ENODATA),
        (lambda: os.setxattr(root / "f", "user.b", b"2", os.XATTR_REPLACE), errno.ENODATA),
        (lambda: os.setxattr(root / "f", "user.Upper", b"2"), errno.EOPNOTSUPP),
        (lambda: os.setxattr(root / "f", "trusted.a", b"2"), errno.EOPNOTSUPP),
        (lambda: os.setxattr(root / "f", "user.b", bytes(3000)), errno.ENOSPC),
    ]
    for act, error in refused:
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is looked at
            act()
        assert raised.value.errno == error
    for size in (10, 12 * 1024**2):
        (tmp_path / "source").write_bytes(bytes(size))
        os.setxattr(tmp_path / "source", "user.origin", b"https://example.org/a b")
        subprocess.run(["cp", "-a", tmp_path / "source", root / "copied"], check=True, stderr=subprocess.PIPE)
        subprocess.run(["rsync", "-aX", tmp_path / "source", root / "synced"], check=True, stderr=subprocess.PIPE)
        for name in ("copied", "synced"):
            assert os.getxattr(root / name, "user.origin") == b"https://example.org/a b"
            assert said(client, bucket, name)["origin"] == "https://example.org/a b"


def test_without_extended_attributes_the_kernel_stops_asking(mount: Mounter) -> None:
    root = mount().path
    (root / "f").write_bytes(b"content")
    for act in (lambda: os.listxattr(root / "f"), lambda: os.setxattr(root / "f", "user.a", b"1")):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is looked at
            act()
        assert raised.value.errno == errno.EOPNOTSUPP
