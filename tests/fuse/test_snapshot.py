"""One mount lists, the others start from its file: `lazyfs index export` and `lazyfs mount --index`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from minio import Minio

from lazyfs.control.client import call
from lazyfs.core.errors import ControlError
from tests.conftest import new_bucket_name
from tests.fuse.mounts import Mount, environment, is_mounted, lazyfs
from tests.servers import Server

Mounter = Callable[..., Mount]
FILES = {f"train/{number % 3}/{number:03}.bin": bytes([number]) * (number + 1) for number in range(30)}


@pytest.fixture
def tree(server: Server, bucket: str) -> None:
    client = server.client()
    for key, content in FILES.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    client.close()


def found(mount: Mount) -> dict[str, bytes]:
    """All files of the mount, as `find` sees them, with their bytes."""
    names = subprocess.run(["find", ".", "-type", "f"], cwd=mount.path, capture_output=True, text=True, check=True)
    return {name[2:]: (mount / name).read_bytes() for name in names.stdout.splitlines()}


def export(mount: Mount, place: str | Path) -> None:
    mount.wait_imported()
    done = mount.lazyfs("index", "export", mount.path, place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("exported ")


def refused(server: Server, bucket: str, directory: Path, place: str | Path) -> str:
    """The one line with which `mount --index` fails; nothing is mounted then."""
    path = directory / "mnt"
    path.mkdir(parents=True, exist_ok=True)
    arguments = ["--endpoint-url", server.endpoint_url, "--cache-dir", directory / "cache", "--index", place]
    arguments += ["--log-file", directory / "refused.log"]
    done = lazyfs("mount", bucket, path, *arguments, env=environment(server, directory))
    assert done.returncode == 1
    assert not is_mounted(path)
    assert done.stderr.count("\n") == 1
    line: str = done.stderr
    assert line.startswith("lazyfs: cannot ")
    assert not [name for name in os.listdir(directory / "cache/index") if "snapshot" in name]
    return line


@pytest.mark.usefixtures("tree")
def test_a_new_node_finds_everything_without_listing(mount: Mounter, tmp_path: Path) -> None:
    snapshot = tmp_path / "snap"
    first = mount()
    with open(first / "unfinished", "wb") as file:
        file.write(b"x")
        file.flush()
        export(first, snapshot)
    (first / "unfinished").unlink()
    first.wait_closed()
    assert first.umount().returncode == 0
    shutil.rmtree(tmp_path / "home/cache")

    second = mount("--index", str(snapshot), "--metadata-ttl", "indefinite", "--read-only")
    # The root is listed on demand, for the unfinished file was there; of the rest every name is known.
    second.wait_imported()
    before = second.requests("list", "head")
    assert found(second) == FILES
    assert second.requests("list", "head") == before
    assert "starting from the snapshot" in second.log()


@pytest.mark.usefixtures("tree")
def test_before_the_refresh_the_snapshot_answers(mount: Mounter, tmp_path: Path, server: Server, bucket: str) -> None:
    """The refresh is held up by a server that does not answer it: names and sizes are there all the same."""
    from tests.proxy import proxied  # noqa: PLC0415

    del server, bucket, proxied
    snapshot = tmp_path / "snap"
    export(mount(), snapshot)
