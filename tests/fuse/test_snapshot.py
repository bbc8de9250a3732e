"""One mount lists, the others start from its file: `lazyfs index export` and `lazyfs mount --index`."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.control.client import call
from lazyfs.core.errors import ControlError
from tests.conftest import new_bucket_name
from tests.fuse.mounts import Mount, environment, is_mounted, lazyfs
from tests.proxy import proxied
from tests.servers import Server

Mounter = Callable[..., Mount]
FILES = {f"train/{number % 3}/{number:03}.bin": bytes([number]) * (number + 1) for number in range(30)}


@pytest.fixture
def tree(server: Server, bucket: str) -> None:
    """The bucket holds FILES."""
    client = server.client()
    for key, content in FILES.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    client.close()


def sizes(mount: Mount) -> dict[str, int]:
    """All files of the mount with their sizes, as `find` sees them."""
    command = ["find", ".", "-type", "f", "-printf", "%P %s\\n"]
    done = subprocess.run(command, cwd=mount.path, capture_output=True, text=True, check=True)
    return {name: int(size) for name, size in (line.split() for line in done.stdout.splitlines())}


def export(mount: Mount, place: str | Path) -> None:
    mount.wait_imported()
    done = mount.lazyfs("index", "export", mount.path, place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"exported {len(FILES)} files")


def refused(server: Server, bucket: str, directory: Path, place: str | Path) -> str:
    """The one line with which `mount --index` fails; nothing is mounted then, and no file is left."""
    path = directory / "mnt"
    path.mkdir(parents=True, exist_ok=True)
    arguments = ["--endpoint-url", server.endpoint_url, "--cache-dir", directory / "cache", "--index", place]
    done = lazyfs("mount", bucket, path, *arguments, env=environment(server, directory))
    assert done.returncode == 1
    assert not is_mounted(path)
    line: str = done.stderr
    assert line.count("\n") == 1
    assert line.startswith("lazyfs: cannot ")
    assert [name for name in os.listdir(directory / "cache/index") if not name.endswith(".lock")] == []
    return line


@pytest.mark.usefixtures("tree")
def test_a_new_node_finds_everything_before_it_has_listed_anything(
    mount: Mounter, server: Server, tmp_path: Path
) -> None:
    go_on = threading.Event()
    go_on.set()
    with proxied(server) as proxy:
        proxy.hold = lambda seen: go_on if seen.kind == "list" and seen.query.get("max-keys") == "1000" else None
        first = mount(on=proxy.server)
        export(first, tmp_path / "snap")
        assert first.umount().returncode == 0
        shutil.rmtree(tmp_path / "home/cache")
        go_on.clear()  # from here on the refresh gets no answer
        try:
            second = mount("--index", str(tmp_path / "snap"), on=proxy.server)
            before = second.requests("list", "head")
            assert sizes(second) == {name: len(content) for name, content in FILES.items()}
            assert second.requests("list", "head") - before <= 16, "the refresh's own workers"
            assert second.status()["import"]["state"] == "running"
            assert second.status()["import"]["objects"] == 0
        finally:
            go_on.set()
        second.wait_imported()
        assert {name: (second / name).read_bytes() for name in FILES} == FILES
        assert "starting from the snapshot" in second.log()
        assert second.umount().returncode == 0


@pytest.mark.usefixtures("tree")
def test_what_changed_since_is_caught_up_with(mount: Mounter, server: Server, bucket: str, tmp_path: Path) -> None:
    first = mount()
    with open(first / "unfinished", "wb") as file:
        file.write(b"x")
        file.flush()
        export(first, tmp_path / "snap")
    client = server.client()
    client.put_object(Bucket=bucket, Key="train/new", Body=b"new")
    client.delete_object(Bucket=bucket, Key="train/0/000.bin")
    client.close()
    second = mount("--index", str(tmp_path / "snap"), directory="other")
    second.wait_imported()
    expected = {name: len(content) for name, content in FILES.items()} | {"train/new": 3, "unfinished": 1}
    del expected["train/0/000.bin"]
    assert sizes(second) == expected


@pytest.mark.usefixtures("tree")
def test_a_snapshot_may_lie_in_any_bucket_of_the_endpoint(
    mount: Mounter, server: Server, bucket: str, tmp_path: Path
) -> None:
    other = server.make_bucket(new_bucket_name())
    try:
        first = mount("--read-only")
        for number, place in enumerate((f"s3://{other}/snaps/train.idx", f"s3://{bucket}/train.idx")):
            export(first, place)
            second = mount("--index", place, "--read-only", directory=f"node-{number}")
            assert "starting from the snapshot" in second.log()
            assert (second / "train/1/001.bin").read_bytes() == FILES["train/1/001.bin"]
            assert second.umount().returncode == 0
        missing = refused(server, bucket, tmp_path / "third", f"s3://{other}/no/such")
        assert f"cannot fetch the snapshot s3://{other}/no/such" in missing
    finally:
        server.drop_bucket(other)


@pytest.mark.usefixtures("tree")
def test_what_is_no_snapshot_of_this_bucket_leaves_nothing_mounted(
    mount: Mounter, server: Server, bucket: str, tmp_path: Path
) -> None:
    snapshot, changed = tmp_path / "snap", tmp_path / "changed"
    export(mount(), snapshot)
    content = snapshot.read_bytes()
    place = tmp_path / "new"
    assert f"it is of {bucket} on" in refused(server, f"{bucket}/train", place, snapshot)
    assert "No such file" in refused(server, bucket, place, tmp_path / "nothing")
    changed.write_bytes(content[: len(content) // 2])
    assert "it is cut short" in refused(server, bucket, place, changed)
    changed.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    assert "it is damaged" in refused(server, bucket, place, changed)
    changed.write_bytes(b"#!/bin/sh\n")
    assert "it is not a snapshot of lazyfs" in refused(server, bucket, place, changed)


@pytest.mark.usefixtures("tree")
def test_no_export_before_the_bucket_is_listed_nor_into_the_mount(
    mount: Mounter, server: Server, tmp_path: Path
) -> None:
    go_on = threading.Event()
    with proxied(server) as proxy:
        proxy.hold = lambda seen: go_on if seen.query.get("max-keys") == "1000" else None
        try:
            held = mount(on=proxy.server)
            done = held.lazyfs("index", "export", held.path, tmp_path / "snap")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == "lazyfs: the bucket is not completely listed yet; see lazyfs status\n"
        finally:
            go_on.set()
        held.wait_imported()
        done = held.lazyfs("index", "export", held.path, held / "snap")
        assert done.returncode == 1
        assert "lies in the mount itself" in done.stderr
        (socket,) = Path(held.env["LAZYFS_RUNTIME_DIR"]).glob("*.sock")
        with pytest.raises(ControlError, match="absolute path"):
            call(socket, "export", to="snap")
        assert held.umount().returncode == 0
