"""Writes that fail: the program is told, nothing half-made is shown, no upload stays behind."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import Mount, until
from tests.fuse.trees import get, keys, put, random_bytes
from tests.proxy import Proxy, proxied
from tests.servers import Server

MIB = 1024**2
PART = 8 * MIB


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as proxy:
        yield proxy


@contextlib.contextmanager
def refused(number: int, *also: int) -> Iterator[None]:
    """The block raises OSError with one of these numbers."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the number is looked at
        yield
    assert raised.value.errno in {number, *also}, raised.value


def uploads(server: Server, bucket: str) -> list[object]:
    client = server.client()
    found: list[object] = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    client.close()
    return found


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:MIB]) :]


@pytest.mark.parametrize("kind", ["put", "create_upload", "upload_part", "complete_upload"])
def test_a_refused_upload_is_told_and_leaves_nothing(
    mount: Mounter, proxy: Proxy, server: Server, client: Minio, bucket: str, kind: str
) -> None:
    m = mount(on=proxy.server, expect_log=["AccessDenied|refused|was not uploaded|upload of 'f'"])
    m.wait_imported()
    proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind == kind else None
    data = random_bytes(1000 if kind == "put" else 2 * PART + 1)
    file = os.open(m / "f", os.O_CREAT | os.O_WRONLY)
    told = 0
    try:
        write_all(file, data)
    except PermissionError:
        told += 1
    try:
        os.close(file)
    except PermissionError:
        told += 1
    assert told, "neither write nor close told the program"
    until(lambda: not uploads(server, bucket), "the upload is aborted")
    assert keys(client, bucket) == []
    assert not (m / "f").exists()
    assert os.listdir(m.path) == []
    proxy.refuse = lambda _seen: None
    (m / "f").write_bytes(data)
    assert get(client, bucket, "f") == data, "the next try works"


def test_programs_see_the_failure(mount: Mounter, proxy: Proxy, tmp_path: Path) -> None:
    m = mount(on=proxy.server, expect_log=["upload of"])
    proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind == "put" else None
    (tmp_path / "source").write_bytes(b"x" * 1000)
    assert subprocess.run(["cp", tmp_path / "source", m / "f"], capture_output=True, check=False).returncode == 1
    command = ["dd", f"if={tmp_path}/source", f"of={m.path}/g", "conv=fsync"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    with pytest.raises(PermissionError), (m / "h").open("wb") as file:
        file.write(b"x")
    with (m / "i").open("wb", buffering=0) as file:
        file.write(b"x")
        with pytest.raises(PermissionError):
            os.fsync(file.fileno())
        with pytest.raises(PermissionError):
            file.write(b"y")
        with pytest.raises(PermissionError):
            file.close()


def test_a_failed_rewrite_leaves_the_old_content(
    mount: Mounter, proxy: Proxy, client: Minio, bucket: str, server: Server
) -> None:
    """Also in the kernel's page cache, which has seen the new bytes."""
    old, new = random_bytes(20_000, 1), random_bytes(30_000, 2)
    for name in ("patched", "truncated"):
        put(client, bucket, name, old)
    m = mount(on=proxy.server, expect_log=["upload of"])
    m.wait_imported()
    assert (m / "patched").read_bytes() == (m / "truncated").read_bytes() == old
    proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind == "put" else None
    for name, mode in [("patched", "r+b"), ("truncated", "wb")]:
        with pytest.raises(PermissionError), (m / name).open(mode) as file:
            file.write(new)
    proxy.refuse = lambda _seen: None
    m.wait_closed()
    for name in ("patched", "truncated"):
        assert get(client, bucket, name) == old
        assert (m / name).stat().st_size == len(old)
        assert (m / name).read_bytes() == old


def test_the_bucket_is_removed_under_the_mount(mount: Mounter, bucket: str, server: Server) -> None:
    m = mount(expect_log=["upload of", "NoSuchBucket|no such bucket|not exist"])
    m.wait_imported()
    plain = server.client()
    plain.delete_bucket(Bucket=bucket)
    try:
        with refused(errno.EIO, errno.ENOENT), (m / "f").open("wb") as file:
            file.write(b"x")
        assert not (m / "f").exists()
    finally:
        plain.create_bucket(Bucket=bucket)
        plain.close()


def test_out_of_order_writes_to_a_large_file_are_refused_and_nothing_is_uploaded(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    """Where there is no cache directory, and so no spool."""
    m = mount("--cache-dir", "none", expect_log=["upload of|was not uploaded"])
    file = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    write_all(file, random_bytes(PART + MIB))
    with refused(errno.EINVAL):
        os.pwrite(file, b"patch", 100)
    with refused(errno.EINVAL):
        os.pwrite(file, b"going on", PART + MIB)
    with refused(errno.EINVAL):
        os.close(file)
    m.wait_closed()
    until(lambda: not uploads(server, bucket), "the upload is aborted")
    assert keys(client, bucket) == []
    assert not (m / "f").exists()


def test_an_object_over_one_part_is_not_changed_in_place(mount: Mounter, client: Minio, bucket: str) -> None:
    """Where there is no cache directory, and so no spool."""
    data = random_bytes(PART + 1)
    m = mount("--cache-dir", "none")
    (m / "big").write_bytes(data)
    with (m / "big").open("r+b", buffering=0) as file, refused(errno.EOPNOTSUPP):
        file.write(b"x")
    assert get(client, bucket, "big") == data
    with (m / "big").open("wb") as file:
        file.write(b"replaced as a whole")
    assert get(client, bucket, "big") == b"replaced as a whole"


def test_a_shared_mapping_of_a_large_object_without_a_spool_is_refused(
    mount: Mounter, client: Minio, bucket: str
) -> None:
    """msync tells it. After close(2) nobody can be told but the log; the page cache must not keep what is lost."""
    data = random_bytes(PART + 1)
    put(client, bucket, "big", data)
    m = mount("--cache-dir", "none", expect_log=["'big' was changed through a mapping after close, which is lost"])
    for ending in ("msync", "nothing"):
        file = os.open(m / "big", os.O_RDWR)
        view = mmap.mmap(file, 0)
        if ending == "msync":
            view[6 * MIB : 6 * MIB + 5] = b"MAGIC"
            with refused(errno.EOPNOTSUPP, errno.EIO):
                view.flush()
            assert not m.log().count("is lost")
        os.close(file)
        if ending == "nothing":
            view[6 * MIB : 6 * MIB + 5] = b"MAGIC"
        view.close()
        m.wait_closed()
        assert (m / "big").read_bytes() == data
    assert m.log().count("is lost") == 1
    assert get(client, bucket, "big") == data


def test_a_killed_writer_leaves_no_upload(mount: Mounter, server: Server, client: Minio, bucket: str) -> None:
    """kill -9 closes its files, so what it wrote so far is a file: like on any disk."""
    m = mount()
    program = (
        "import sys, time; f = open(sys.argv[1], 'wb', 0); [f.write(bytes(1 << 20)) for _ in range(9)]; "
        "print(1, flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen(["python3", "-c", program, str(m / "f")], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.read(1) == b"1"
    writer.kill()
    writer.communicate()
    m.wait_closed()
    assert uploads(server, bucket) == []
    assert keys(client, bucket) == ["f"]
    assert len(get(client, bucket, "f")) == 9 * MIB


def test_unmounting_in_the_middle_of_a_write_withdraws_it(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    m = mount(expect_log=["was still being written when the mount ended"])
    file = os.open(m / "f", os.O_CREAT | os.O_WRONLY)
    write_all(file, random_bytes(PART + MIB))
    done = m.umount()
    assert done.returncode == 1
    assert "is in use" in done.stderr
    os.kill(m.pid, 15)
    until(lambda: not os.path.exists(f"/proc/{m.pid}"), "the daemon ends")
    with contextlib.suppress(OSError):
        os.close(file)
    assert uploads(server, bucket) == []
    assert keys(client, bucket) == []


def test_another_writer_wins_the_race(mount: Mounter, server: Server, client: Minio, bucket: str) -> None:
    if "conditional-put" in server.limits:
        pytest.skip("the gateway ignores If-None-Match and If-Match on PUT: the last writer wins")
    put(client, bucket, "old", b"as it was")
    m = mount(expect_log=["upload of|is kept as"])
    m.wait_imported()
    with refused(errno.EEXIST, errno.ESTALE), (m / "new").open("wb") as file:
        file.write(b"mine")
        file.flush()
        put(client, bucket, "new", b"theirs")
    with refused(errno.EEXIST, errno.ESTALE), (m / "old").open("r+b") as file:
        file.write(b"mine")
        file.flush()
        put(client, bucket, "old", b"theirs too")
    assert get(client, bucket, "new") == b"theirs"
    assert get(client, bucket, "old") == b"theirs too"
    kept = dict(m.status()["lost_and_found"])
    assert {key: get(client, bucket, place) for key, place in kept.items()} == {"new": b"mine", "old": b"minet was"}
    assert {(m / place).read_bytes() for place in kept.values()} == {b"mine", b"minet was"}


def test_somebody_replaces_the_object_while_it_is_rewritten(
    mount: Mounter, server: Server, client: Minio, bucket: str
) -> None:
    """Whoever wins, the mount and the bucket agree afterwards, and the daemon has no trouble of its own."""
    put(client, bucket, "f", b"as it was")
    m = mount("--metadata-ttl", "0", expect_log=["upload of|is kept as"])
    m.wait_imported()
    with contextlib.suppress(OSError), (m / "f").open("r+b") as file:
        file.write(b"mine")
        file.flush()
        put(client, bucket, "f", b"theirs, which is longer")
        os.listdir(m.path)
        (m / "f").stat()
    m.wait_closed()
    assert (m / "f").read_bytes() == get(client, bucket, "f")
    assert (m / "f").read_bytes() == get(client, bucket, "f")


@pytest.mark.parametrize("size", [1000, PART + MIB])
def test_a_reader_that_stays_does_not_hold_up_the_next_writer(
    mount: Mounter, proxy: Proxy, client: Minio, bucket: str, size: int
) -> None:
    m = mount(on=proxy.server, expect_log=["upload of"])
    m.wait_imported()
    first, second, third = (random_bytes(size, seed) for seed in range(3))
    (m / "f").write_bytes(first)
    with (m / "f").open("rb", buffering=0) as reader:
        assert reader.read(10) == first[:10]
        (m / "f").write_bytes(second)
        proxy.refuse = lambda seen: (403, "AccessDenied") if seen.kind in {"put", "complete_upload"} else None
        with pytest.raises(PermissionError):
            (m / "f").write_bytes(first)
        proxy.refuse = lambda _seen: None
        until(lambda: m.status()["open_handles"] == 1, "only the reader is left")
        assert (m / "f").read_bytes() == second
        (m / "f").write_bytes(third)
        assert (m / "f").read_bytes() == third
    assert get(client, bucket, "f") == third


@pytest.fixture
def files(client: Minio, bucket: str) -> None:
    for name in ("f", "d/g"):
        put(client, bucket, name, b"content")


def acts(m: Mount) -> dict[str, object]:
    """Every call that changes something, by name."""
    return {
        "create": lambda: (m / "new").write_bytes(b"x"),
        "overwrite": lambda: (m / "f").write_bytes(b"x"),
        "patch": lambda: (m / "f").open("r+b").close(),
        "append": lambda: (m / "f").open("ab").close(),
        "truncate": lambda: os.truncate(m / "f", 1),
        "mkdir": (m / "e").mkdir,
        "rmdir": (m / "d").rmdir,
        "unlink": (m / "f").unlink,
        "rename": lambda: (m / "f").rename(m / "h"),
        "utime": lambda: os.utime(m / "f", (1, 1)),
        "chmod": lambda: (m / "f").chmod(0o600),
        "symlink": lambda: (m / "s").symlink_to("f"),
        "link": lambda: os.link(m / "f", m / "l"),
    }


def numbers(m: Mount) -> dict[str, str]:
    """What each act ends with."""
    results = {}
    for name, act in acts(m).items():
        try:
            act()  # type: ignore[operator]
            results[name] = "done"
        except OSError as error:
            results[name] = errno.errorcode[error.errno or 0]
    return results


def test_a_read_only_mount_refuses_every_change(mount: Mounter, files: None, client: Minio, bucket: str) -> None:
    m = mount("--read-only")
    assert set(numbers(m).values()) == {"EROFS"}
    assert (m / "f").read_bytes() == b"content"
    assert keys(client, bucket) == ["d/g", "f"]
    assert m.requests("put", "delete", "copy", "create_upload") == 0
    assert "read-only" in m.output


def test_no_overwrite(mount: Mounter, files: None, client: Minio, bucket: str) -> None:
    m = mount("--no-overwrite")
    assert "replacing is refused" in m.output
    for act in ("overwrite", "patch", "append", "truncate"):
        with refused(errno.EPERM):
            acts(m)[act]()  # type: ignore[operator]
    (m / "new").write_bytes(b"x")
    with refused(errno.EPERM):
        (m / "new").replace(m / "f")
    (m / "new").rename(m / "newer")
    (m / "newer").unlink()
    assert keys(client, bucket) == ["d/g", "f"]
    assert get(client, bucket, "f") == b"content"


def test_no_delete(mount: Mounter, files: None, client: Minio, bucket: str) -> None:
    m = mount("--no-delete")
    assert "deleting is refused" in m.output
    (m / "empty").mkdir()
    for act in ((m / "f").unlink, (m / "empty").rmdir):
        with refused(errno.EPERM):
            act()
    (m / "new").write_bytes(b"x")
    (m / "f").write_bytes(b"overwritten")
    assert get(client, bucket, "f") == b"overwritten"
    assert keys(client, bucket) == ["d/g", "empty/", "f", "new"]
