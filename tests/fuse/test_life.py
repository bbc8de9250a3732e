"""A mount from its first second to its last, whichever way it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from random import Random

import pytest
from minio import Minio

from tests.fuse.conftest import Mounter
from tests.fuse.mounts import DEAD, ROOT, Watchdog, drop_page_cache, environment, is_mounted, is_running, lazyfs, until
from tests.fuse.trees import get, keys, put, random_bytes, read_tree
from tests.proxy import proxied
from tests.servers import Server

MIB = 1024**2
PART = 8 * MIB


@pytest.fixture
def files(client: Minio, bucket: str) -> dict[str, bytes]:
    found = {f"d{number % 3}/f{number}": random_bytes(50_000 * number, number) for number in range(12)}
    for key, data in found.items():
        put(client, bucket, key, data)
    return found


@contextmanager
def foreground(bucket: str, server: Server, directory: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`lazyfs mount -f`, mounted."""
    path = directory / "mnt"
    path.mkdir(parents=True)
    watchdog = Watchdog(path, 60)
    command = [sys.executable, "-m", "lazyfs", "mount", bucket, str(path), "-f", "--endpoint-url", server.endpoint_url]
    process = subprocess.Popen(
        command,
        env=environment(server, directory),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog.watch(process.pid)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"mounted {bucket} at {path}")
        yield process, path
    finally:
        watchdog.stop()
        watchdog.end()
        process.communicate()


def closing_reader(session: str) -> AbstractContextManager[object]:
    """Closing what was open for reading on a dead mount: the direct session has told the kernel not to ask for that."""
    return nullcontext() if session == "direct" else pytest.raises(OSError, match=DEAD)


@pytest.mark.both_sessions
def test_the_mount_answers_when_the_command_returns(mount: Mounter, files: dict[str, bytes]) -> None:
    m = mount()
    assert os.path.ismount(m.path)
    assert m.output.startswith(f"mounted {m.bucket} at {m.path} (files are uploaded when closed")
    assert (m / "d1/f1").read_bytes() == files["d1/f1"]
    status = m.status()
    assert status["pid"] == m.pid
    assert os.getsid(m.pid) == m.pid, "a daemon has a session of its own"
    assert not status["untuned"], "root can tune the kernel"
    device = m.path.stat().st_dev
    assert int(Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()) >= 1024
    assert int(Path(f"/sys/fs/fuse/connections/{os.minor(device)}/max_background").read_text()) >= 128


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_in_the_foreground_a_signal_unmounts(
    bucket: str, server: Server, client: Minio, tmp_path: Path, number: signal.Signals
) -> None:
    put(client, bucket, "f", b"content")
    with foreground(bucket, server, tmp_path) as (process, path):
        assert (path / "f").read_bytes() == b"content"
        (path / "g").write_bytes(b"written")
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert not is_mounted(path)
    assert get(client, bucket, "g") == b"written"


def test_in_the_foreground_umount_ends_it(bucket: str, server: Server, tmp_path: Path) -> None:
    with foreground(bucket, server, tmp_path) as (process, path):
        assert lazyfs("umount", path, env=environment(server, tmp_path)).returncode == 0
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_signal_to_the_daemon_unmounts(mount: Mounter) -> None:
    m = mount()
    os.kill(m.pid, signal.SIGTERM)
    until(lambda: not is_running(m.pid), "the daemon ends")
    assert not is_mounted(m.path)


@pytest.mark.both_sessions
def test_a_signal_ends_a_mount_that_is_in_use(mount: Mounter, files: dict[str, bytes], session: str) -> None:
    m = mount()
    file = os.open(m / "d1/f1", os.O_RDONLY)
    assert os.read(file, 10) == files["d1/f1"][:10]
    os.kill(m.pid, signal.SIGTERM)
    until(lambda: not is_running(m.pid), "the daemon ends")
    assert not is_mounted(m.path)
    drop_page_cache()
    with pytest.raises(OSError, match=DEAD):
        os.pread(file, 10, 40_000)
    with closing_reader(session):
        os.close(file)


def test_umount_of_a_mount_in_use_says_by_whom(mount: Mounter, files: dict[str, bytes]) -> None:
    m = mount()
    with (m / "d1/f1").open("rb"):
        done = m.umount()
        assert done.returncode == 1
        assert f"{m.path} is in use by process {os.getpid()} (" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert (m / "d1/f1").read_bytes() == files["d1/f1"], "still mounted"
    m.wait_closed()
    done = m.umount()
    assert (done.returncode, done.stdout) == (0, f"unmounted {m.path}\n")
    again = m.umount()
    assert (again.returncode, again.stderr) == (1, f"lazyfs: {m.path} is not a mount point\n")


def test_umount_lazy_keeps_what_is_open(mount: Mounter, files: dict[str, bytes]) -> None:
    m = mount()
    file = (m / "d1/f1").open("rb", buffering=0)
    process = subprocess.Popen(
        [sys.executable, "-m", "lazyfs", "umount", "--lazy", str(m.path)], env=m.env, cwd=ROOT, stdout=subprocess.PIPE
    )
    until(lambda: not is_mounted(m.path), "detached")
    assert file.read() == files["d1/f1"]
    file.close()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert not is_running(m.pid)


def test_a_killed_daemon_is_cleaned_up_and_its_cache_is_used(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str
) -> None:
    m = mount()
    m.wait_imported()
    assert read_tree(m.path)[0] == files
    until(lambda: m.status()["cache"]["disk"]["used"] > sum(map(len, files.values())), "blocks are on the SSD")
    m.kill()
    with pytest.raises(OSError, match=DEAD):
        os.listdir(m.path)
    told = m.lazyfs("status")
    assert f"dead: process {m.pid} is gone; run: lazyfs umount {m.path}" in told.stdout
    refused = m.lazyfs("mount", bucket, m.path, "--endpoint-url", m.server.endpoint_url)
    assert refused.returncode == 1
    assert "daemon died; run: lazyfs umount" in refused.stderr
    done = m.umount()
    assert (done.returncode, done.stdout) == (0, f"unmounted {m.path}, whose daemon had died\n")
    assert not is_mounted(m.path)

    changed = {**files, "d1/f1": random_bytes(60_000, 99)}
    put(client, bucket, "d1/f1", changed["d1/f1"])
    client.remove_object(bucket, "d2/f2")
    del changed["d2/f2"]
    again = mount("--metadata-ttl", "0")
    gets = again.requests("get")
    assert read_tree(again.path)[0] == changed
    assert again.requests("get") == gets + 1, "only what was replaced is fetched"


@pytest.mark.both_sessions
def test_a_daemon_killed_in_the_middle_of_everything(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str, session: str
) -> None:
    m = mount()
    m.wait_imported()
    writer = os.open(m / "big", os.O_CREAT | os.O_WRONLY)
    for _ in range(9):
        os.write(writer, bytes(MIB))
    small = os.open(m / "small", os.O_CREAT | os.O_WRONLY)
    os.write(small, b"not closed")
    reader = os.open(m / "d1/f10", os.O_RDONLY)
    os.read(reader, 1)
    m.kill()
    for descriptor in (writer, small):
        with pytest.raises(OSError, match=DEAD):
            os.close(descriptor)
    with closing_reader(session):
        os.close(reader)
    assert m.umount().returncode == 0
    assert keys(client, bucket) == sorted(files)
    again = mount()
    assert read_tree(again.path)[0] == files
    (again / "small").write_bytes(b"closed")
    assert get(client, bucket, "small") == b"closed"


def test_a_damaged_cache_is_a_miss_never_a_wrong_byte(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str
) -> None:
    m = mount()
    assert read_tree(m.path)[0] == files
    until(lambda: m.status()["cache"]["disk"]["used"] > sum(map(len, files.values())), "blocks are on the SSD")
    m.umount()
    blocks = sorted((m.path.parent / "cache/blocks").rglob("*.val"))
    assert len(blocks) > 8
    random = Random(5)
    for number, block in enumerate(blocks):
        data = bytearray(block.read_bytes())
        if number % 4 == 0:
            data[random.randrange(len(data))] ^= 0xFF
            block.write_bytes(data)
        elif number % 4 == 1:
            block.write_bytes(data[: len(data) // 2])
        elif number % 4 == 2:
            block.unlink()
    again = mount(expect_log=["damaged block"])
    assert read_tree(again.path)[0] == files
    assert "damaged block" in again.log()


@pytest.mark.parametrize("damage", ["database", "index", "everything", "a file"])
def test_a_damaged_directory_is_begun_anew(
    mount: Mounter, files: dict[str, bytes], client: Minio, bucket: str, damage: str
) -> None:
    m = mount()
    assert read_tree(m.path)[0] == files
    m.umount()
    cache = m.path.parent / "cache"
    databases = {"database": list(cache.glob("blocks/*.db")), "index": list(cache.glob("index/*.db"))}
    if damage == "everything":
        subprocess.run(["rm", "-r", cache], check=True)
    elif damage == "a file":
        subprocess.run(["rm", "-r", cache / "blocks"], check=True)
        (cache / "blocks").write_bytes(b"not a directory")
    else:
        assert databases[damage]
        for path in databases[damage]:
            path.write_bytes(b"this is no database" * 1000)
    again = mount(expect_log=["cache |index"])
    assert read_tree(again.path)[0] == files
    (again / "new").write_bytes(b"x")
    assert get(client, bucket, "new") == b"x"
    assert len([line for line in again.log().splitlines() if " WARNING " in line]) <= 1


def test_no_cache_directory(mount: Mounter, files: dict[str, bytes]) -> None:
    m = mount("--cache-dir", "none")
    assert read_tree(m.path)[0] == files
    (m / "new").write_bytes(b"x")
    assert m.status()["cache"]["disk"] is None


def test_status(mount: Mounter, files: dict[str, bytes], session: str) -> None:
    m = mount("--metadata-ttl", "1h")
    m.wait_imported()
    read_tree(m.path)
    text = m.lazyfs("status").stdout
    assert str(m.path) in text
    for word in (m.bucket, session, f"process {m.pid}", "read and write", "done, 12 objects", "s3.requests.get"):
        assert word in text
    (report,) = json.loads(m.lazyfs("status", m.path, "--json").stdout)
    assert report["state"] == "mounted"
    assert report["session"] == session
    assert report["files"] == len(files)
    assert report["bytes"] == sum(map(len, files.values()))
    assert report["stats"]["s3.bytes.read"] >= report["bytes"]
    m.umount()
    assert m.lazyfs("status").stdout == "no mounts\n"


def test_a_mount_ends_in_time_although_its_server_is_silent(
    mount: Mounter, files: dict[str, bytes], server: Server
) -> None:
    if server.name != "moto":
        pytest.skip("waits for the session's patience to end; once is enough")
    silence = threading.Event()
    with proxied(server) as proxy:
        m = mount("--metadata-ttl", "1h", on=proxy.server, expect_log=["giving them up"])
        m.wait_imported()
        proxy.hold = lambda seen: silence if seen.kind == "get" else None
        ends: list[object] = []

        def read() -> None:
            try:
                ends.append((m / "d1/f10").read_bytes())
            except OSError as error:
                ends.append(error.errno)

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: proxy.count("get") > 0 and m.status()["open_handles"] == 1, "the read is on its way")
        os.kill(m.pid, signal.SIGTERM)
        until(lambda: not is_running(m.pid), "the daemon ends", 40)
        reader.join(10)
        assert not reader.is_alive()
        assert ends[0] in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.EINTR}
        silence.set()
